//! Channels past user space: the network driver relays their packets itself, by a program of ours (XDP, `relay.bpf.c`).
//!
//! ```text
//!  client ──► driver ─ ChannelData of a known channel ─► head off, addresses changed ─► next hop ──► peer
//!               │
//!               └─ all else ─► socket ─► shard ─► Server
//!                                 ▲        │ after each answer to a client: its channels, and until when
//!                                 └────────┴──────────────────────────────────────────► maps of the program
//! ```
//!
//! Who may reach whom is decided by the [`Server`](crate::core::server::Server) alone, before a channel gets here; the
//! program only carries on, and stops by the clock when channel, permission or allocation is over.

mod channels;
mod features;
mod maps;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddrV4;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use aya::maps::xdp::DevMapHash;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, Xdp as Program, XdpMode};
use aya::{Ebpf, include_bytes_aligned};
pub(super) use channels::{Channels, Ends};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

use crate::core::counters::Direction;

/// The program, on its interfaces until it is dropped.
pub struct Xdp(Mutex<Loaded>);

impl fmt::Debug for Xdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Xdp").field(&self.interfaces()).finish()
    }
}

struct Loaded {
    to_peers: HashMap<MapData, maps::ToPeerKey, maps::Value>,
    to_clients: HashMap<MapData, maps::ToClientKey, maps::Value>,
    counts: PerCpuArray<MapData, [u64; 2]>,
    interfaces: BTreeMap<String, Mode>,
    /// With it go the program and what holds it to the interfaces.
    _program: Ebpf,
}

/// Where a channel's packets go, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Way {
    /// The client, as its packets come in.
    pub client: SocketAddrV4,
    /// The address of ours that it sends to.
    pub server: SocketAddrV4,
    /// The channel's number.
    pub channel: u16,
    /// The address that the relay is bound to.
    pub relay: SocketAddrV4,
    /// The peer.
    pub peer: SocketAddrV4,
}

/// Who runs the program for an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its driver, before anything else is done for a packet.
    Native,
    /// The kernel, after the driver: for drivers that can't, or could not send what they relay.
    Generic,
}

/// What the program relayed since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
}

/// Why the program is not on an interface.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such interface.
    #[error("--xdp {0}: there is no such interface here: `ip link` lists them")]
    NoInterface(String),
    /// Routes are not asked for what it brings.
    #[error("--xdp {0}: packets are not forwarded there: set `sysctl -w net.ipv4.conf.{0}.forwarding=1`")]
    NoForwarding(String),
    /// The kernel did not take the program.
    #[error("--xdp: loading the program for the network driver: {0}")]
    Load(String),
    /// The interface did not.
    #[error("--xdp {interface}: {why}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why not.
        why: String,
    },
}

impl Count {
    /// What came after an earlier count.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

impl Xdp {
    /// Loads the program and puts it on `interfaces`. Packets come in and leave by these only.
    ///
    /// # Errors
    /// [`Refused`] says what to do.
    pub fn attach(interfaces: &[String]) -> Result<Self, Refused> {
        // Whoever names one twice means it once.
        let interfaces: BTreeSet<_> = interfaces.iter().map(String::as_str).collect();
        let interfaces = interfaces.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
        for (interface, _) in &interfaces {
            check_forwarding(interface)?;
        }
        let mut ebpf = Ebpf::load(OBJECT).map_err(|error| Refused::Load(explained(&error)))?;
        let modes = attach_all(&mut ebpf, &interfaces)?;
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| Refused::Load(format!("it has no map {name}; this is a bug")))
        };
        let bug = |error: MapError| Refused::Load(error.to_string());
        let loaded = Loaded {
            to_peers: map("TO_PEERS")?.try_into().map_err(bug)?,
            to_clients: map("TO_CLIENTS")?.try_into().map_err(bug)?,
            counts: map("COUNTS")?.try_into().map_err(bug)?,
            interfaces: modes,
            _program: ebpf,
        };
        Ok(Self(Mutex::new(loaded)))
    }

    /// The interfaces that it is on.
    pub fn interfaces(&self) -> BTreeMap<String, Mode> {
        self.loaded().interfaces.clone()
    }

    /// From now on packets go this way, until CLOCK_MONOTONIC says `until`.
    ///
    /// # Errors
    /// Where there is no room for it; then they go by user space, as before.
    pub fn put(&self, way: &Way, until: Duration) -> io::Result<()> {
        let mut loaded = self.loaded();
        let to_peer = maps::to_peer(way, until);
        loaded
            .to_peers
            .insert(maps::to_peer_key(way), to_peer, 0)
            .map_err(io::Error::other)?;
        let to_client = maps::to_client(way, until);
        loaded
            .to_clients
            .insert(maps::to_client_key(way), to_client, 0)
            .map_err(io::Error::other)
    }

    /// From now on they go by user space.
    pub fn remove(&self, way: &Way) {
        let mut loaded = self.loaded();
        // What is not there is removed already.
        let _ = loaded.to_peers.remove(&maps::to_peer_key(way));
        let _ = loaded.to_clients.remove(&maps::to_client_key(way));
    }

    /// What it has relayed.
    pub fn count(&self, direction: Direction) -> Count {
        let index = match direction {
            Direction::ToPeer => 0,
            Direction::ToClient => 1,
        };
        let cpus = self.loaded().counts.get(&index, 0);
        let cpus = cpus.iter().flat_map(|cpus| cpus.iter());
        cpus.fold(Count::default(), |sum, [packets, bytes]| Count {
            packets: sum.packets + packets,
            bytes: sum.bytes + bytes,
        })
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An interface with its number.
fn found(interface: &str) -> Result<(&str, u32), Refused> {
    match index_of(interface) {
        Ok(index) => Ok((interface, index)),
        Err(Errno::NODEV) => Err(Refused::NoInterface(interface.to_owned())),
        Err(error) => Err(refused(interface, &error)),
    }
}

/// The program asks for the way to the next hop as a router does, and is told only where this machine is one. Nodes of
/// a Kubernetes cluster are.
fn check_forwarding(interface: &str) -> Result<(), Refused> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == "0" => Err(Refused::NoForwarding(interface.to_owned())),
        Ok(_) => Ok(()),
        Err(error) => Err(refused(interface, &error)),
    }
}

fn attach_all(ebpf: &mut Ebpf, interfaces: &[(&str, u32)]) -> Result<BTreeMap<String, Mode>, Refused> {
    let bug = |what: &str| Refused::Load(format!("it has no {what}; this is a bug"));
    let program: &mut Program = ebpf
        .program_mut("relay")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| bug("program"))?;
    program.load().map_err(|error| Refused::Load(explained(&error)))?;
    let mut modes = BTreeMap::new();
    for (interface, index) in interfaces {
        let mode = attach(program, interface, *index).map_err(|error| refused(interface, &error))?;
        modes.insert((*interface).to_owned(), mode);
    }
    let ports = ebpf.map_mut("PORTS").ok_or_else(|| bug("map PORTS"))?;
    let mut ports = DevMapHash::try_from(ports).map_err(|error| Refused::Load(explained(&error)))?;
    // A driver hands packets to drivers only; the kernel hands them to all.
    let is_driver_among = modes.values().any(|mode| *mode == Mode::Native);
    for (interface, index) in interfaces {
        if is_driver_among && modes[*interface] != Mode::Native {
            continue;
        }
        ports
            .insert(*index, *index, None, 0)
            .map_err(|error| refused(interface, &error))?;
    }
    Ok(modes)
}

/// By its driver, or else by the kernel.
fn attach(program: &mut Program, interface: &str, index: u32) -> Result<Mode, ProgramError> {
    match program.attach(interface, XdpMode::Driver) {
        // Only now: with a program, some drivers can what they else can't. What a kernel does not say is taken as said.
        Ok(link) if !features::sends(index).unwrap_or(true) => program.detach(link)?,
        Ok(_) => return Ok(Mode::Native),
        Err(error) if errno_of(&error).is_some_and(is_final) => return Err(error),
        Err(_) => {}
    }
    program.attach(interface, XdpMode::Skb).map(|_| Mode::Generic)
}

/// Whether asking in another way would come to the same.
fn is_final(errno: Errno) -> bool {
    [Errno::PERM, Errno::BUSY, Errno::EXIST].contains(&errno)
}

fn index_of(interface: &str) -> Result<u32, Errno> {
    let any_socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(any_socket, interface)
}

fn refused(interface: &str, error: &(dyn Error + 'static)) -> Refused {
    Refused::Attach {
        interface: interface.to_owned(),
        why: explained(error),
    }
}

/// What the kernel said, and what to do about it.
fn explained(error: &(dyn Error + 'static)) -> String {
    let Some(errno) = errno_of(error) else {
        return error.to_string();
    };
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "not permitted: it takes the capabilities BPF and NET_ADMIN (see docs/install.md)".to_owned()
        }
        Errno::BUSY | Errno::EXIST => {
            "another XDP program is there already (`ip link show` names it), and it takes one only".to_owned()
        }
        Errno::INVAL => format!("{error}; it takes Linux 5.18 or later"),
        errno => format!("{errno}: {error}"),
    }
}

/// The number that the kernel gave, at the bottom of it.
fn errno_of(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut at = Some(error);
    while let Some(error) = at {
        let errno = error.downcast_ref::<Errno>().copied();
        let of_io = || Errno::from_io_error(error.downcast_ref::<io::Error>()?);
        if let Some(errno) = errno.or_else(of_io) {
            return Some(errno);
        }
        at = error.source();
    }
    None
}

const OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay.bpf.o"));
