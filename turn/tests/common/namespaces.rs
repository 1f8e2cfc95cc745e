//! Network namespaces, and the real program inside one.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Some namespaces; gone with the test.
pub struct Namespaces {
    prefix: String,
    names: Vec<String>,
}

/// One end of a link: the namespace, the device's name in it, its address.
pub type End<'a> = (&'a str, &'a str, &'a str);

impl Namespaces {
    /// `None` where namespaces are not permitted, or the tools are not there.
    pub fn build(names: &[&str], tools: &[&str]) -> Option<Self> {
        for tool in [&["ip", "sysctl"], tools].concat() {
            if !Command::new("which").arg(tool).output().unwrap().status.success() {
                return skip(&format!("{tool} is missing: run scripts/setup packages"));
            }
        }
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        let mut net = Self {
            prefix: format!("pst{}-{number}", std::process::id()),
            names: Vec::new(),
        };
        for name in names {
            if !run("ip", &["netns", "add", &net.name(name)]).status.success() {
                return skip("network namespaces are not permitted: run it as root");
            }
            net.names.push((*name).to_owned());
            net.ip_in(name, &["link", "set", "lo", "up"]);
        }
        Some(net)
    }

    /// A pair of virtual Ethernet devices.
    pub fn connect(&self, one: End<'_>, other: End<'_>) {
        let far = self.name(other.0);
        let pair = ["type", "veth", "peer", "name", other.1, "netns", &far];
        self.ip_in(one.0, &[&["link", "add", one.1][..], &pair].concat());
        for (at, device, address) in [one, other] {
            self.ip_in(at, &["address", "add", address, "dev", device]);
            self.ip_in(at, &["link", "set", device, "up"]);
        }
    }

    pub fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.prefix)
    }

    /// Does it there, in a thread. Sockets stay there when they are brought back.
    pub fn within<T: Send>(&self, at: &str, what: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let namespace = File::open(format!("/run/netns/{}", self.name(at))).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn command(&self, at: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name(at), program])
            .stdin(Stdio::null());
        command
    }

    pub fn exec(&self, at: &str, program: &str, args: &[&str]) -> String {
        let output = self.command(at, program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
        text(&output)
    }

    pub fn ip_in(&self, at: &str, args: &[&str]) -> String {
        let name = self.name(at);
        let args = [&["-n", &name], args].concat();
        let output = run("ip", &args);
        assert!(output.status.success(), "ip {args:?}: {}", text(&output));
        text(&output)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &["netns", "delete", &self.name(name)]);
        }
    }
}

/// `penstock-turn` in a namespace; ends with the test.
pub struct Program<'a> {
    pub announced: String,
    net: &'a Namespaces,
    at: &'a str,
    child: Ended,
    metrics: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
}

impl<'a> Program<'a> {
    /// With a user `demo`.
    pub fn start(net: &'a Namespaces, at: &'a str, options: &[&str]) -> Self {
        Self::start_by(net, at, &[], options)
    }

    /// By another program, which becomes it.
    pub fn start_by(net: &'a Namespaces, at: &'a str, by: &[&str], options: &[&str]) -> Self {
        let mut command = program_by(net, at, by, options);
        let mut child = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let announced = loop {
            let line = lines.next().unwrap_or_else(|| {
                panic!("it ended: {:?}", said.lock().unwrap());
            });
            let line = line.unwrap();
            said.lock().unwrap().push(line.clone());
            if line.contains("listening on udp ") {
                break line;
            }
        };
        // What comes after is read at once, so that the server never waits for a full pipe.
        let all = said.clone();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| all.lock().unwrap().push(line));
        });
        Self {
            metrics: after(&announced, "metrics on http://"),
            announced,
            net,
            at,
            child,
            said,
        }
    }

    /// How often it has logged that.
    pub fn said(&self, part: &str) -> usize {
        let said = self.said.lock().unwrap();
        said.iter().filter(|line| line.contains(part)).count()
    }

    pub fn metrics(&self) -> String {
        self.net.within(self.at, || get(self.metrics, "/metrics"))
    }

    /// A metric's number.
    pub fn metric(&self, metric: &str) -> u64 {
        number(&self.metrics(), metric)
    }

    /// Waits until a metric has come to `number`, and gives all of that moment.
    pub fn until(&self, metric: &str, wanted: u64) -> String {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let metrics = self.metrics();
            if number(&metrics, metric) >= wanted {
                return metrics;
            }
            assert!(Instant::now() < end, "{metric} {wanted}: {metrics}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.0), signal).unwrap();
    }

    /// Waits until it has ended; whether that was as it should.
    pub fn ends_well(&mut self) -> bool {
        self.child.0.wait().unwrap().success()
    }
}

/// What a program says that does not come to listen, within 10 s.
pub fn refused(net: &Namespaces, at: &str, by: &[&str], options: &[&str]) -> String {
    let by = [&["timeout", "10"], by].concat();
    let output = program_by(net, at, &by, options).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    text(&output)
}

fn program_by(net: &Namespaces, at: &str, by: &[&str], options: &[&str]) -> Command {
    let words = [by, &[env!("CARGO_BIN_EXE_penstock-turn")]].concat();
    let mut command = net.command(at, words[0]);
    let fixed = ["--user", "demo:demo", "--metrics-listen", "127.0.0.1:0"];
    command.args(&words[1..]).args(fixed).args(options);
    command
}

/// A metric's number in the text of all.
pub fn number(metrics: &str, metric: &str) -> u64 {
    let found = metrics.lines().find_map(|line| {
        let (name, number) = line.rsplit_once(' ')?;
        (name == metric).then(|| number.parse().unwrap())
    });
    // A counter with labels shows once it was counted.
    found.unwrap_or(0)
}

/// Ends with the test.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In CI that is an error.
#[expect(
    clippy::disallowed_methods,
    reason = "the variable CI is how the test's surroundings say what they are"
)]
pub fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var("CI").is_err(), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// An HTTP answer, with its head.
pub fn get(server: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(server).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The address that stands behind `mark`.
pub fn after(line: &str, mark: &str) -> SocketAddr {
    let (_, rest) = line.split_once(mark).unwrap();
    let end = rest.find([';', '/', '"', ',']).unwrap();
    let opened = if mark.ends_with('[') { "[" } else { "" };
    format!("{opened}{}", &rest[..end]).parse().unwrap()
}

pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

pub fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}
