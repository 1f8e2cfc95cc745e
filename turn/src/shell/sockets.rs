//! Sockets, and what the system says about addresses.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use penstock_shell::open_files;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::datagrams::{self, Message, Received};
use crate::core::family::Family;
use crate::core::server::OpenFailure;
use crate::core::{FiveTuple, RelayId};

/// Where clients come in.
#[derive(Debug)]
pub struct Listener {
    /// Its address, which may be all of a family's.
    pub local: SocketAddr,
    /// Its socket.
    pub socket: UdpSocket,
}

impl Listener {
    /// Listens on `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// Where the address can't be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = udp(address)?;
        // Only now, so that another server at this address would have been noticed.
        sockopt::set_socket_reuseport(&socket, true)?;
        let local = socket.local_addr()?;
        Ok(Self { local, socket })
    }

    /// Another one at the same address. The kernel gives each client to one of them, always the same by its address
    /// and port, as long as none is closed.
    ///
    /// # Errors
    /// Where the address can't be bound.
    pub fn beside(&self) -> io::Result<Self> {
        Ok(Self {
            local: self.local,
            socket: bound(self.local, true)?,
        })
    }

    /// The address of ours that a datagram was sent to: where the answer comes from, and a part of what tells clients
    /// apart. `None` where that is no address of ours alone, as of a multicast.
    pub(super) fn reached(&self, datagram: &Received<'_>) -> Option<SocketAddr> {
        match (self.local.ip().is_unspecified(), datagram.to) {
            (false, _) => Some(self.local),
            (true, to) => Some(SocketAddr::new(to?, self.local.port())),
        }
    }
}

/// A socket that sends to clients, and the address that it has to send from, where it could send from several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender<'a> {
    pub(super) socket: &'a UdpSocket,
    pub(super) source: Option<IpAddr>,
}

/// All sockets of a shard.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listeners: Vec<Listener>,
    relays: Vec<Option<UdpSocket>>,
}

impl Sockets {
    pub(super) fn new(listeners: Vec<Listener>) -> Self {
        Self {
            listeners,
            relays: Vec::new(),
        }
    }

    /// Takes in the socket of a relay.
    pub(super) fn insert(&mut self, relay: RelayId, socket: UdpSocket) {
        let index = relay.0 as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some(socket);
    }

    /// Closes the socket of a relay; epoll forgets it by that.
    pub(super) fn remove(&mut self, relay: RelayId) {
        if let Some(slot) = self.relays.get_mut(relay.0 as usize) {
            *slot = None;
        }
    }

    pub(super) fn relay(&self, relay: RelayId) -> Option<&UdpSocket> {
        self.relays.get(relay.0 as usize)?.as_ref()
    }

    /// Sends an answer. Whether it arrives is the client's to find out, by asking again.
    pub(super) fn answer(&self, to: &FiveTuple, bytes: &[u8]) -> io::Result<()> {
        let by = self.listener(to.local).ok_or(io::ErrorKind::NotFound)?;
        let message = Message {
            to: to.remote,
            parts: &[IoSlice::new(bytes)],
            segment: None,
        };
        datagrams::send_from(by.socket, by.source, &[message])?;
        Ok(())
    }

    /// What is sent from an address of ours. There are few listeners, so looking at each is the quickest.
    pub(super) fn listener(&self, local: SocketAddr) -> Option<Sender<'_>> {
        self.listeners.iter().find_map(|listener| {
            let is_everywhere = listener.local.ip().is_unspecified()
                && listener.local.port() == local.port()
                && listener.local.is_ipv4() == local.is_ipv4();
            let source = is_everywhere.then_some(local.ip());
            let found = is_everywhere || listener.local == local;
            found.then_some(Sender {
                socket: &listener.socket,
                source,
            })
        })
    }
}

/// A UDP socket that doesn't block, with large buffers since video comes in bursts, and that hands over merged datagrams:
/// to be read with an [`Inbox`](datagrams::Inbox). An IPv6 one takes no IPv4. One at all addresses of a family says
/// which one each datagram was sent to.
///
/// # Errors
/// Where the address can't be bound.
pub fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    bound(address, false)
}

fn bound(address: SocketAddr, beside_others: bool) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if beside_others {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    // Before anything comes.
    if address.ip().is_unspecified() {
        datagrams::tell_destination(&socket, Family::of_socket(address))?;
    }
    rustix::net::bind(&socket, &address)?;
    let socket = UdpSocket::from(socket);
    // The kernel cuts these to net.core.rmem_max and wmem_max; there is nothing to do about less.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES);
    datagrams::receive_merged(&socket, true);
    Ok(socket)
}

/// What a failure to open a relay's socket means for the core.
pub(super) fn open_failure(error: &io::Error) -> OpenFailure {
    match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => OpenFailure::PortTaken,
        _ => OpenFailure::Other,
    }
}

/// The address of ours that packets to `there` come from. Nothing is sent.
pub(super) fn route_to(there: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match there {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    #[allow(clippy::disallowed_methods, reason = "asks the system for a route")]
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(there)?;
    Ok(socket.local_addr()?.ip())
}

/// Lets this process have as many files open as the system does, and says how many of `wanted` sockets that is room for.
pub fn raise_open_files(wanted: usize) -> usize {
    match open_files::raise_limit() {
        Some(files) => wanted.min(files.saturating_sub(OTHER_FILES) as usize),
        None => wanted,
    }
}

/// Every address of this machine, as far as the system tells.
pub fn own_addresses() -> BTreeSet<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = local_v4(&read("/proc/net/fib_trie")).into_iter().map(IpAddr::V4);
    let v6 = local_v6(&read("/proc/net/if_inet6")).into_iter().map(IpAddr::V6);
    v4.chain(v6).collect()
}

/// `|-- 10.0.0.5`, and on the next line `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> Vec<Ipv4Addr> {
    let lines: Vec<_> = fib_trie.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[1] == "/32 host LOCAL")
        .filter_map(|pair| pair[0].strip_prefix("|-- ")?.parse().ok())
        .collect()
}

/// 32 hexadecimal digits at the beginning of each line.
fn local_v6(if_inet6: &str) -> Vec<Ipv6Addr> {
    let digits = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    if_inet6.lines().filter_map(digits).map(Ipv6Addr::from).collect()
}

const BUFFER_BYTES: usize = 4 << 20;
/// Files that are not relays' sockets: listeners, the operators' connections, standard streams.
const OTHER_FILES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_addresses_are_found() {
        let fib_trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n        |-- 10.0.0.0\n           /24 link UNICAST\n        \
             |-- 10.0.0.5\n           /32 host LOCAL\n        |-- 10.0.0.255\n           /32 link BROADCAST\n";
        assert_eq!(local_v4(fib_trie), [Ipv4Addr::new(10, 0, 0, 5)]);
        let if_inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(local_v6(if_inet6), [Ipv6Addr::LOCALHOST]);
        assert!(own_addresses().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn to_loopback_packets_go_from_loopback() {
        assert_eq!(
            route_to("127.0.0.1:9".parse().unwrap()).unwrap(),
            Ipv4Addr::LOCALHOST
        );
    }
}
