//! The real program behind NATs, in network namespaces of its own:
//!
//! ```text
//!  client 10.1.0.2 ──► router ──► internet 198.51.100.9 (the peer)
//!          masquerading, 10.1.0.1 │ 198.51.100.1
//!                                 └──► server 10.9.0.2, one-to-one 198.51.100.7
//!                                             10.9.0.3, one-to-one 198.51.100.8
//! ```
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the variable CI is how the test's surroundings say what they are"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

#[test]
fn a_server_behind_a_one_to_one_nat_relays_for_a_client_behind_a_masquerading_one() {
    let Some(net) = Net::build() else { return };
    for external in ["198.51.100.7", "198.51.100.7/10.9.0.2"] {
        for transport in ["", "-t"] {
            let (announced, output) = net.relay(&["--external-ip", external], transport);
            assert!(announced.contains("told relays at 198.51.100.7"), "{announced}");
            assert!(announced.contains("bound to 10.9.0.2;"), "{announced}");
            assert!(output.contains("Received relay addr: 198.51.100.7:"), "{output}");
            assert!(output.contains("Total lost packets 0 "), "{output}");
        }
    }
}

#[test]
fn without_an_external_address_clients_are_told_the_nodes_own() {
    let Some(net) = Net::build() else { return };
    let (announced, output) = net.relay(&[], "");
    assert!(announced.contains("(this node's is 10.9.0.2)"), "{announced}");
    assert!(output.contains("Received relay addr: 10.9.0.2:"), "{output}");
}

#[test]
fn a_relay_address_of_its_own_is_what_peers_see() {
    let Some(net) = Net::build() else { return };
    net.ip(&[
        "-n",
        &net.name("server"),
        "address",
        "add",
        "10.9.0.3/24",
        "dev",
        "eth0",
    ]);
    let (announced, output) = net.relay(&["--relay-ip", "10.9.0.3", "--external-ip", "198.51.100.7"], "");
    assert!(announced.contains("bound to 10.9.0.3;"), "{announced}");
    assert!(output.contains("Received relay addr: 198.51.100.7:"), "{output}");
    assert!(output.contains("Total lost packets 0 "), "{output}");
}

#[test]
fn each_interface_has_an_external_address_of_its_own() {
    let Some(net) = Net::build() else { return };
    net.ip(&[
        "-n",
        &net.name("server"),
        "address",
        "add",
        "10.9.0.3/24",
        "dev",
        "eth0",
    ]);
    let listen = ["--listen", "10.9.0.3:3478"];
    let external = ["--external-ip", "198.51.100.7/10.9.0.2,198.51.100.8/10.9.0.3"];
    for at in ["198.51.100.7", "198.51.100.8"] {
        let options = [&["--listen", "10.9.0.2:3478"][..], &listen, &external].concat();
        let (announced, output) = net.relay_at(at, &options, "");
        assert!(
            announced.contains("198.51.100.7 (for 10.9.0.2), 198.51.100.8 (for 10.9.0.3)"),
            "{announced}"
        );
        assert!(
            output.contains(&format!("Received relay addr: {at}:")),
            "{output}"
        );
        assert!(output.contains("Total lost packets 0 "), "{output}");
    }
}

/// The namespaces; gone with the test.
struct Net {
    prefix: String,
}

impl Net {
    /// `None` where namespaces are not permitted, or the tools are not there.
    fn build() -> Option<Self> {
        for tool in ["ip", "nft", "turnutils_uclient", "turnutils_peer"] {
            if !Command::new("which").arg(tool).output().unwrap().status.success() {
                return skip(&format!("{tool} is missing: run scripts/setup packages"));
            }
        }
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        let net = Self {
            prefix: format!("pst{}-{number}", std::process::id()),
        };
        let router = net.name("router");
        if !run("ip", &["netns", "add", &router]).status.success() {
            return skip("network namespaces are not permitted: run it as root");
        }
        for (name, gateway, address) in [
            ("client", "10.1.0.1/24", "10.1.0.2/24"),
            ("server", "10.9.0.1/24", "10.9.0.2/24"),
            ("internet", "198.51.100.1/24", "198.51.100.9/24"),
        ] {
            net.connect(name, gateway, address);
        }
        net.translate();
        Some(net)
    }

    fn connect(&self, name: &str, gateway: &str, address: &str) {
        let (router, inside) = (self.name("router"), self.name(name));
        self.ip(&["netns", "add", &inside]);
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &inside];
        self.ip(&[&["-n", &router, "link", "add", name][..], &pair].concat());
        for (at, device, ip) in [(&router, name, gateway), (&inside, "eth0", address)] {
            self.ip(&["-n", at, "address", "add", ip, "dev", device]);
            self.ip(&["-n", at, "link", "set", device, "up"]);
            self.ip(&["-n", at, "link", "set", "lo", "up"]);
        }
        let gateway = gateway.split('/').next().unwrap();
        self.ip(&["-n", &inside, "route", "add", "default", "via", gateway]);
    }

    /// The router's NAT. The internet knows no way to the networks behind it.
    fn translate(&self) {
        let rules = "
            table ip nat {
                chain before {
                    type nat hook prerouting priority dstnat;
                    ip daddr 198.51.100.7 dnat to 10.9.0.2
                    ip daddr 198.51.100.8 dnat to 10.9.0.3
                }
                chain after {
                    type nat hook postrouting priority srcnat;
                    ip saddr 10.9.0.2 oifname internet snat to 198.51.100.7
                    ip saddr 10.9.0.3 oifname internet snat to 198.51.100.8
                    ip saddr { 10.1.0.0/24, 10.9.0.0/24 } masquerade
                }
            }";
        let router = self.name("router");
        for ip in ["198.51.100.7/32", "198.51.100.8/32"] {
            self.ip(&["-n", &router, "address", "add", ip, "dev", "internet"]);
        }
        self.exec("router", "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        self.exec("router", "nft", &[rules]);
        self.ip(&["-n", &self.name("internet"), "route", "delete", "default"]);
    }

    /// What the server announced, and what coturn's client said of 4 clients with 50 packets each.
    fn relay(&self, options: &[&str], transport: &str) -> (String, String) {
        let everywhere = ["--listen", "0.0.0.0:3478"];
        self.relay_at("198.51.100.7", &[&everywhere[..], options].concat(), transport)
    }

    /// The same with all options, at an address of the server. Three tries: on a machine that is short of time, datagrams
    /// are lost in the buffers of those who send and receive.
    fn relay_at(&self, at: &str, options: &[&str], transport: &str) -> (String, String) {
        let lost_nothing = |(_, output): &(String, String)| output.contains("Total lost packets 0 ");
        (0..2)
            .map(|_| self.relay_once(at, options, transport))
            .find(lost_nothing)
            .unwrap_or_else(|| self.relay_once(at, options, transport))
    }

    fn relay_once(&self, at: &str, options: &[&str], transport: &str) -> (String, String) {
        let fixed = [
            ["--user", "demo:demo"],
            ["--allow-peer", "198.51.100.9"],
            ["--metrics-listen", "127.0.0.1:0"],
        ];
        let mut command = self.command("server", env!("CARGO_BIN_EXE_penstock-turn"));
        command.args(fixed.as_flattened()).args(options);
        let mut server = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
        let announced = lines
            .find(|line| line.as_ref().unwrap().contains("listening on udp "))
            .unwrap()
            .unwrap();
        std::thread::spawn(move || lines.count());
        let mut peer = self.command("internet", "turnutils_peer");
        peer.args(["-L", "198.51.100.9", "-p", "34800"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let _peer = Ended(peer.spawn().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let load = ["-m", "4", "-n", "50", "-z", "10", "-l", "1000", "-c", "-v"];
        let where_to = ["-u", "demo", "-w", "demo", "-e", "198.51.100.9", "-r", "34800"];
        let mut client = self.command("client", "timeout");
        client.args(["30", "turnutils_uclient"]).args(load).args(where_to);
        if !transport.is_empty() {
            client.arg(transport);
        }
        (announced, text(&client.arg(at).output().unwrap()))
    }

    fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.prefix)
    }

    fn command(&self, at: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name(at), program])
            .stdin(Stdio::null());
        command
    }

    fn exec(&self, at: &str, program: &str, args: &[&str]) {
        let output = self.command(at, program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    }

    fn ip(&self, args: &[&str]) {
        let output = run("ip", args);
        assert!(output.status.success(), "ip {args:?}: {}", text(&output));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["client", "server", "internet", "router"] {
            let _ = run("ip", &["netns", "delete", &self.name(name)]);
        }
    }
}

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In CI that is an error.
fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var("CI").is_err(), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}
