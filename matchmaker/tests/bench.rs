//! What many players who wait cost, and how soon one of them plays; beside a plain relay in Node.js.
//! `scripts/bench-matchmaker` runs it.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench run by the test harness has no command line of its own"
)]

mod support;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use support::StandIn;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{interval_at, sleep};
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, and a machine of its own: scripts/bench-matchmaker"]
async fn bench() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .unwrap();
    let players = number("PLAYERS", 10_000);
    let placements = number("PLACEMENTS", 500);

    let streamer = StandIn::start("demo").await;
    streamer.take_up();
    let ours = Server::ours(&streamer).await;
    let (ours, mut crowd) = measure(ours, players).await;
    let mut took = placed(&streamer, &mut crowd, placements).await;
    took.sort_unstable();
    let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!(
        "placing {} of them, one after the other: median {median:?}, p99 {p99:?}, worst {:?}",
        took.len(),
        took[took.len() - 1]
    );
    crowd.tasks.shutdown().await;
    let (ours, _) = (ours.costs, drop(ours.server));

    let (theirs, mut crowd) = measure(Server::node().await, players).await;
    crowd.tasks.shutdown().await;
    let theirs = theirs.costs;
    println!(
        "RESULT kib_per_player={:.1} place_p99_ms={:.1} vs_node_cpu={:.2}",
        ours.kib,
        p99.as_secs_f64() * 1e3,
        ours.cpu / theirs.cpu,
    );
}

/// What so many players cost.
struct Costs {
    kib: f64,
    /// Seconds, to join, to stand idle and to send pings.
    cpu: f64,
}

struct Measured {
    costs: Costs,
    server: Server,
}

async fn measure(server: Server, players: usize) -> (Measured, Crowd) {
    let (name, empty) = (server.name, server.rss_kib());
    let begun = (Instant::now(), server.cpu());
    let crowd = Crowd::join(server.address, players).await;
    let joining = (begun.0.elapsed().as_secs_f64(), server.cpu() - begun.1);
    sleep(SETTLE).await;
    let kib = (server.rss_kib() - empty) / players as f64;

    let before = server.cpu();
    sleep(IDLE).await;
    let idle = server.cpu() - before;

    let before = server.cpu();
    crowd.pings.add_permits(players);
    sleep(IDLE).await;
    assert_eq!(
        crowd.answered.load(Ordering::Relaxed),
        players,
        "all pings are answered"
    );
    let pings = server.cpu() - before;
    println!(
        "{name}: {players} players: {kib:.1} KiB each beside {empty:.0} KiB; CPU {:.1} s to join in {:.1} s, {:.1} % idle, \
         {pings:.1} s for a ping each",
        joining.1,
        joining.0,
        100.0 * idle / IDLE.as_secs_f64(),
    );
    let cpu = joining.1 + idle + pings;
    (
        Measured {
            costs: Costs { kib, cpu },
            server,
        },
        crowd,
    )
}

/// Players who wait.
struct Crowd {
    tasks: JoinSet<()>,
    pings: Arc<Semaphore>,
    answered: Arc<AtomicUsize>,
    /// When one was told that it plays. It leaves when the other end of the channel is dropped.
    matched: mpsc::UnboundedReceiver<(Instant, oneshot::Sender<()>)>,
}

impl Crowd {
    async fn join(door: SocketAddr, players: usize) -> Self {
        let (said, matched) = mpsc::unbounded_channel();
        let (pings, answered) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let (waiting, mut waits) = mpsc::unbounded_channel();
        let at_once = Arc::new(Semaphore::new(64));
        let mut tasks = JoinSet::new();
        for number in 0..players {
            let one = One {
                number,
                said: said.clone(),
                waiting: waiting.clone(),
                pings: Arc::clone(&pings),
                answered: Arc::clone(&answered),
            };
            let turn = Arc::clone(&at_once).acquire_owned().await.unwrap();
            tasks.spawn(async move {
                let socket = connect(door).await;
                drop(turn);
                one.stay(socket).await;
            });
        }
        for _ in 0..players {
            waits.recv().await.unwrap();
        }
        Self {
            tasks,
            pings,
            answered,
            matched,
        }
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(door: SocketAddr) -> Socket {
    let small = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0);
    let (socket, _) = connect_async_with_config(format!("ws://{door}/signalling"), Some(small), true)
        .await
        .unwrap();
    socket
}

struct One {
    number: usize,
    said: mpsc::UnboundedSender<(Instant, oneshot::Sender<()>)>,
    waiting: mpsc::UnboundedSender<()>,
    pings: Arc<Semaphore>,
    answered: Arc<AtomicUsize>,
}

impl One {
    async fn stay(self, mut socket: Socket) {
        let list = json!({ "type": "listStreamers" }).to_string();
        socket.send(Message::text(list)).await.unwrap();
        let (mut waits, mut pinged) = (false, false);
        loop {
            tokio::select! {
                permit = self.pings.acquire(), if !pinged => {
                    permit.unwrap().forget();
                    pinged = true;
                    // Not all in one go.
                    sleep(IDLE.mul_f64(0.8) * u32::try_from(self.number % 1000).unwrap() / 1000).await;
                    let ping = json!({ "type": "ping", "time": 1 }).to_string();
                    socket.send(Message::text(ping)).await.unwrap();
                }
                frame = socket.next() => {
                    let frame = frame.expect("the socket ends").expect("the socket breaks");
                    let Message::Text(text) = frame else { continue };
                    if text.contains("\"queued\"") && !std::mem::replace(&mut waits, true) {
                        self.waiting.send(()).unwrap();
                    } else if text.contains("\"pong\"") {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    } else if text.contains("\"matched\"") {
                        let (plays, leaves) = oneshot::channel();
                        let _ = self.said.send((Instant::now(), plays));
                        let _ = leaves.await;
                        let _ = socket.close(None).await;
                        return;
                    }
                }
            }
        }
    }
}

/// How long it took each time from a streamer becoming free to a player knowing that it plays there.
async fn placed(streamer: &StandIn, crowd: &mut Crowd, times: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut pause = interval_at(tokio::time::Instant::now(), Duration::from_millis(23));
    streamer.give_up();
    while took.len() < times {
        let (matched, plays) = crowd.matched.recv().await.unwrap();
        took.push(matched - streamer.freed_at());
        pause.tick().await;
        drop(plays);
    }
    took
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    _files: tempfile::TempDir,
}

impl Server {
    async fn ours(streamer: &StandIn) -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("index.html"), "the page").unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let program =
            std::env::var("PENSTOCK_MATCHMAKER_PROGRAM").expect("scripts/bench-matchmaker names the program");
        let child = Command::new(program)
            .args([
                "--listen",
                &address.to_string(),
                "--streamer",
                &streamer.address.to_string(),
            ])
            .args([
                "--max-per-address",
                "0",
                "--new-per-address",
                "0",
                "--log",
                "warn",
            ])
            .arg("--page")
            .arg(files.path())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..200 {
            sleep(Duration::from_millis(20)).await;
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                break;
            }
        }
        sleep(Duration::from_secs(1)).await;
        Self {
            name: "penstock-matchmaker",
            address,
            child,
            _files: files,
        }
    }

    async fn node() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/relay.mjs");
        let files = tempfile::tempdir().unwrap();
        // Modules are looked for beside the script.
        let copy = files.path().join("relay.mjs");
        std::fs::copy(script, &copy).unwrap();
        let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/../player/node_modules");
        std::os::unix::fs::symlink(modules, files.path().join("node_modules")).unwrap();
        let mut child = Command::new("node")
            .arg(copy)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port: u16 = lines
            .next_line()
            .await
            .unwrap()
            .expect("node ended")
            .parse()
            .unwrap();
        Self {
            name: "ws in Node.js",
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            child,
            _files: files,
        }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id().unwrap())).unwrap()
    }

    fn rss_kib(&self) -> f64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Seconds of user and system time.
    fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let after_name = stat.rsplit_once(") ").unwrap().1;
        // Fields 14 and 15 of proc_pid_stat(5); the third comes first here.
        let ticks: u64 = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

const SETTLE: Duration = Duration::from_secs(6);
const IDLE: Duration = Duration::from_secs(10);
