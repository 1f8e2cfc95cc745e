//! The programs under load, each pinned to one core.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_turn::shell::{datagrams, sockets};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::client::{CHANNEL, Client, REALM, USER};
use crate::load::{Flow, Kind, PAYLOAD};
use crate::network::{CARD, Network, SERVER, WORLD};

/// Where the servers run.
pub(crate) const SERVER_CORE: usize = 0;
/// Where the load runs.
pub(crate) const LOAD_CORE: usize = 1;

const COTURN_PROGRAM: &str = "turnserver";
const LOOPBACK: &str = "127.0.0.1";
/// How many clients may be refused, in all.
const MAX_REFUSED: usize = 1000;
/// Ours.
pub(crate) const OURS: &str = "penstock";
/// Ours, with the network driver relaying.
pub(crate) const XDP: &str = "xdp";
pub(crate) const COTURN: &str = "coturn";
pub(crate) const FORWARDER: &str = "forwarder";
/// Client and peer without anything between.
pub(crate) const NONE: &str = "none";

/// How a client gets a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Turn,
    /// The bare forwarder's one word.
    Open,
    /// Nothing: client and peer are connected to each other.
    Direct,
}

/// One of them.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    address: SocketAddr,
    speaks: Speaks,
    process: Option<Ended>,
    /// Where its clients and peers are, if not on loopback.
    pub(crate) network: Option<Network>,
}

/// All of them.
pub(crate) struct Servers {
    pub(crate) on_loopback: Vec<Server>,
    pub(crate) behind_cards: Vec<Server>,
}

impl Servers {
    /// Starts ours, coturn (`COTURN`, or the one of the system) and the forwarder, on loopback and each behind a card of
    /// its own, and there ours with the driver relaying.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let direct = Server {
            name: NONE,
            address: "127.0.0.1:0".parse()?,
            speaks: Speaks::Direct,
            process: None,
            network: None,
        };
        let card = |name| Network::build(name).map(Some);
        Ok(Self {
            on_loopback: vec![ours(OURS, None)?, coturn(None)?, forwarder(None)?, direct],
            behind_cards: vec![
                ours(OURS, card(OURS)?)?,
                coturn(card(COTURN)?)?,
                forwarder(card(FORWARDER)?)?,
                ours(XDP, card(XDP)?)?,
            ],
        })
    }
}

impl Server {
    /// Opens so many flows through it.
    pub(crate) fn flows(&self, count: usize, kind: Kind) -> anyhow::Result<Vec<Flow>> {
        within(self.network.as_ref(), || {
            let (_, world) = addresses(self.network.as_ref());
            self.flows_from(world, count, kind)
        })
    }

    fn flows_from(&self, ip: &str, count: usize, kind: Kind) -> anyhow::Result<Vec<Flow>> {
        let any = SocketAddr::new(ip.parse()?, 0);
        let mut flows = Vec::with_capacity(count);
        // coturn remembers an allocation for some seconds after its end, so a client that comes by an old port is refused.
        // Its socket is kept until the end, so that nobody gets that port again.
        let mut refused = Vec::new();
        while flows.len() < count {
            let (client, peer) = (sockets::udp(any)?, sockets::udp(any)?);
            match self.connect(&client, &peer, kind) {
                Ok(head) => flows.push(Flow { client, peer, head }),
                Err(error) if refused.len() >= MAX_REFUSED => return Err(error),
                Err(_) => refused.push(client),
            }
        }
        Ok(flows)
    }

    /// Whether it is a TURN server.
    pub(crate) fn is_turn(&self) -> bool {
        self.speaks == Speaks::Turn
    }

    /// Gives them up, so that their ports can serve again.
    pub(crate) fn close(&self, flows: Vec<Flow>) -> anyhow::Result<()> {
        for flow in flows.iter().filter(|_| self.speaks == Speaks::Turn) {
            flow.client.set_nonblocking(false)?;
            Client::new(&flow.client)?.release()?;
        }
        Ok(())
    }

    /// Opens so many allocations, each with a channel that nothing will go over.
    pub(crate) fn idle(&self, count: usize) -> anyhow::Result<Vec<UdpSocket>> {
        let nobody = "127.0.0.1:9".parse()?;
        let mut clients = Vec::with_capacity(count);
        let mut refused = Vec::new();
        while clients.len() < count {
            let client = UdpSocket::bind("127.0.0.1:0")?;
            client.connect(self.address)?;
            let mut asking = Client::new(&client)?;
            match asking.allocate().and_then(|_| asking.bind_channel(nobody)) {
                Ok(()) => clients.push(client),
                Err(error) if refused.len() >= MAX_REFUSED => return Err(error),
                Err(_) => refused.push(client),
            }
        }
        Ok(clients)
    }

    /// Gives what comes before a payload that the client sends.
    fn connect(&self, client: &UdpSocket, peer: &UdpSocket, kind: Kind) -> anyhow::Result<Vec<u8>> {
        datagrams::receive_merged(client, kind.receives_merged);
        datagrams::receive_merged(peer, kind.receives_merged);
        let peer_address = peer.local_addr()?;
        client.set_nonblocking(false)?;
        let (head, relay) = match self.speaks {
            Speaks::Direct => {
                client.connect(peer_address)?;
                (Vec::new(), client.local_addr()?)
            }
            Speaks::Open => {
                client.connect(self.address)?;
                client.send(format!("open {peer_address}").as_bytes())?;
                let mut buffer = [0; 64];
                let length = client.recv(&mut buffer)?;
                (Vec::new(), std::str::from_utf8(&buffer[..length])?.parse()?)
            }
            Speaks::Turn => {
                client.connect(self.address)?;
                let mut asking = Client::new(client)?;
                let relay = asking.allocate()?;
                if kind.indications {
                    asking.permit(peer_address)?;
                    (send_head(peer_address), relay)
                } else {
                    asking.bind_channel(peer_address)?;
                    (channel_head(), relay)
                }
            }
        };
        peer.connect(relay)?;
        client.set_nonblocking(true)?;
        Ok(head)
    }

    /// The time that its threads have been on a CPU, and its program in the kernel, in seconds.
    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let Some(process) = &self.process else {
            return Ok(0.0);
        };
        let mut sum_s = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", process.0.id()))? {
            sum_s += schedstat_s(&task?.path().join("schedstat"))?;
        }
        if let Some(network) = &self.network {
            sum_s += network.poller_s()?;
        }
        Ok(sum_s)
    }

    /// The memory that it has for itself, in bytes.
    pub(crate) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let Some(process) = &self.process else {
            return Ok(0);
        };
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }
}

/// A program that ends with the benchmark.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The time on a CPU, in seconds.
pub(crate) fn schedstat_s(file: &Path) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(file)?;
    let ns = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(ns.parse::<f64>()? / 1e9)
}

/// Lets a process run on one core only.
pub(crate) fn pin(process: u32, core: usize) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(Pid::from_raw(process as i32), &cores)
        .with_context(|| format!("pinning to core {core}"))
}

/// Starts a program on the servers' core. It ends when this one does, however that ends.
fn pinned(network: Option<&Network>, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.args(network.iter().flat_map(|network| network.on_servers()));
    command.args(["taskset", "-c", &SERVER_CORE.to_string(), program]);
    command.stdin(Stdio::null());
    command
}

/// The server's address and the world's.
fn addresses(network: Option<&Network>) -> (&'static str, &'static str) {
    network.map_or((LOOPBACK, LOOPBACK), |_| (SERVER, WORLD))
}

/// Does something where the clients are.
fn within<T>(network: Option<&Network>, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    match network {
        Some(network) => network.in_world(act),
        None => act(),
    }
}

fn ours(name: &'static str, network: Option<Network>) -> anyhow::Result<Server> {
    let mut command = pinned(network.as_ref(), env!("CARGO_BIN_EXE_penstock-turn"));
    let (ip, world) = addresses(network.as_ref());
    if name == XDP {
        command.args(["--xdp", CARD]);
    }
    command.args([
        "--allow-peer",
        world,
        "--listen",
        &format!("{ip}:0"),
        "--metrics-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    command.args([
        "--user",
        &format!("{USER}:{USER}"),
        "--realm",
        REALM,
        "--user-quota",
        "100000",
    ]);
    command.args(["--relay-ports", "2000-31999"]);
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .context("starting penstock-turn")?;
    let stderr = child.stderr.take().context("no stderr")?;
    let process = Some(Ended(child));
    let mut lines = BufReader::new(stderr).lines();
    let mark = "listening on udp ";
    let line = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains(mark));
    let line = line.context("penstock-turn did not start")?;
    std::thread::spawn(move || lines.count());
    let address = line
        .split_once(mark)
        .and_then(|(_, rest)| rest.split([';', ',']).next());
    let address = address.context("no address")?.parse()?;
    Ok(Server {
        name,
        address,
        speaks: Speaks::Turn,
        process,
        network,
    })
}

fn coturn(network: Option<Network>) -> anyhow::Result<Server> {
    let program = std::env::var("COTURN").unwrap_or_else(|_| COTURN_PROGRAM.to_owned());
    let (ip, world) = addresses(network.as_ref());
    let port = sockets::udp("127.0.0.1:0".parse()?)?.local_addr()?.port();
    let mut command = pinned(network.as_ref(), &program);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/turn/coturn.conf");
    command.args(["-c", config, "--listening-port", &port.to_string()]);
    command.args(["--listening-ip", ip, "--relay-ip", ip]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let process = command.spawn().with_context(|| format!("starting {program}"))?;
    let server = Server {
        name: COTURN,
        address: SocketAddr::new(ip.parse()?, port),
        speaks: Speaks::Turn,
        process: Some(Ended(process)),
        network,
    };
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let socket = within(server.network.as_ref(), || Ok(UdpSocket::bind((world, 0))?))?;
        socket.connect(server.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        // A Binding request.
        let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 12]].concat();
        if socket.send(&binding).is_ok() && socket.recv(&mut [0; 256]).is_ok() {
            return Ok(server);
        }
    }
    let address = server.address;
    bail!("{program} did not answer on {address}: install Debian's package coturn, or set COTURN")
}

fn forwarder(network: Option<Network>) -> anyhow::Result<Server> {
    let own = std::env::current_exe()?;
    let mut command = pinned(
        network.as_ref(),
        own.to_str().context("a path that is not UTF-8")?,
    );
    let (ip, _) = addresses(network.as_ref());
    let mut child = command.args(["forwarder", ip]).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let process = Some(Ended(child));
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(Server {
        name: FORWARDER,
        address: line.trim().parse()?,
        speaks: Speaks::Open,
        process,
        network,
    })
}

fn channel_head() -> Vec<u8> {
    [CHANNEL.to_be_bytes(), (PAYLOAD as u16).to_be_bytes()].concat()
}

/// All of a Send indication but the payload itself.
fn send_head(peer: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(peer) = peer else {
        return Vec::new();
    };
    let cookie = [0x21, 0x12, 0xA4, 0x42];
    let port = peer.port() ^ 0x2112;
    let ip: Vec<u8> = peer
        .ip()
        .octets()
        .iter()
        .zip(cookie)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    [
        &[0x00, 0x16][..],
        &(PAYLOAD as u16 + 16).to_be_bytes(),
        &cookie,
        &[7; 12],
        &[0x00, 0x12, 0, 8, 0, 1],
        &port.to_be_bytes(),
        &ip,
        &[0x00, 0x13],
        &(PAYLOAD as u16).to_be_bytes(),
    ]
    .concat()
}
