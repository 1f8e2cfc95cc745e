//! Datagrams in batches: many in and out with one system call, and runs of them in one piece of work for the kernel.
//!
//! ```text
//!  recvmmsg, UDP_GRO        one message: ┌──────────┬──────────┬──────────┬─────┐ cut every `segment` bytes
//!                                        └──────────┴──────────┴──────────┴─────┘ (the last may be shorter)
//!  sendmmsg, UDP_SEGMENT    one message: head body head body head body            gathered, then cut likewise
//! ```
//!
//! These system calls, and the options behind them, have no safe wrapper that takes a segment size for each message of
//! a batch without allocating, so the calls stand here, and nowhere else.

#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and their control messages")]

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr;

use crate::core::family::Family;

/// What was received, until the next [`Inbox::receive`].
pub struct Inbox {
    bytes: Box<[u8]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    received: usize,
}

/// One message of an [`Inbox`]: one datagram, or several of one sender that the kernel merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// The address of ours that it was sent to, of sockets that [`tell_destination`]. Of multicasts and broadcasts
    /// there is none.
    pub to: Option<IpAddr>,
    /// The datagrams, one after another.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
}

impl<'a> Received<'a> {
    /// Whether there are several datagrams.
    pub fn is_merged(self) -> bool {
        self.bytes.len() > self.segment
    }

    /// Each datagram. An empty message is one empty datagram.
    pub fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        self.bytes.chunks(self.segment.max(1)).chain(empty)
    }
}

// SAFETY: the pointers among the fields lead into the boxes beside them, which move with it.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Inbox {
    /// Room for so many messages at once. Of the memory, only what is used becomes real.
    pub fn new(messages: usize) -> Self {
        // SAFETY: all of these are plain C data, for which zeros are valid.
        let zeroed = || unsafe { mem::zeroed() };
        let mut inbox = Self {
            bytes: vec![0; messages * STRIDE].into(),
            addresses: vec![zeroed(); messages].into(),
            controls: vec![Control([0; CONTROL_LEN]); messages].into(),
            // SAFETY: as above.
            vectors: vec![unsafe { mem::zeroed() }; messages].into(),
            // SAFETY: as above.
            headers: vec![unsafe { mem::zeroed() }; messages].into(),
            received: messages,
        };
        for index in 0..messages {
            inbox.vectors[index] = libc::iovec {
                iov_base: inbox.bytes[index * STRIDE..][..MAX_MESSAGE].as_mut_ptr().cast(),
                iov_len: MAX_MESSAGE,
            };
            let header = &mut inbox.headers[index].msg_hdr;
            header.msg_name = (&raw mut inbox.addresses[index]).cast();
            header.msg_control = (&raw mut inbox.controls[index]).cast();
            header.msg_iov = &raw mut inbox.vectors[index];
            header.msg_iovlen = 1;
        }
        inbox
    }

    /// Receives what there is, without waiting, and gives the number of messages.
    ///
    /// # Errors
    /// `WouldBlock` where there is nothing; others as recvmmsg(2).
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        for header in &mut self.headers[..self.received] {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
        }
        self.received = 0;
        // SAFETY: each header leads to memory of this inbox, of the length that it says.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        self.received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.received)
    }

    /// Whether the last [`Self::receive`] may have left something.
    pub fn is_full(&self) -> bool {
        self.received == self.headers.len()
    }

    /// What the last [`Self::receive`] brought.
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        (0..self.received).filter_map(|index| self.message(index))
    }

    fn message(&self, index: usize) -> Option<Received<'_>> {
        let header = &self.headers[index];
        let bytes = &self.bytes[index * STRIDE..][..header.msg_len as usize];
        let told = Told::of(&header.msg_hdr);
        Some(Received {
            from: address_of(&self.addresses[index])?,
            to: told.destination,
            bytes,
            segment: told.segment.unwrap_or(bytes.len()),
        })
    }
}

/// One message to send: one datagram, or several to one receiver for the kernel to cut.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The receiver.
    pub to: SocketAddr,
    /// The bytes, gathered in this order.
    pub parts: &'a [IoSlice<'a>],
    /// Where set, a datagram is cut off after every so many bytes.
    pub segment: Option<u16>,
}

/// Sends the first of `messages`, without waiting, and gives their number: all, but where one was refused or there are
/// more than [`MAX_MESSAGES`].
///
/// # Errors
/// Why the first was refused, as sendmmsg(2).
pub fn send(socket: impl AsFd, messages: &[Message<'_>]) -> io::Result<usize> {
    send_from(socket, None, messages)
}

/// As [`send`], from that address of ours; the system chooses one where there is none. For sockets that are bound to
/// all addresses.
///
/// # Errors
/// Why the first was refused, as sendmmsg(2).
pub(super) fn send_from(
    socket: impl AsFd,
    source: Option<IpAddr>,
    messages: &[Message<'_>],
) -> io::Result<usize> {
    let mut addresses = [const { MaybeUninit::<Address>::uninit() }; MAX_MESSAGES];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_MESSAGES];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let places = addresses.iter_mut().zip(&mut controls).zip(&mut headers);
    for (message, ((address, control), header)) in messages.iter().zip(places) {
        header.write(header_of(message, source, address, control));
    }
    let count = messages.len().min(MAX_MESSAGES);
    // SAFETY: the first `count` headers were written just now. What they lead to outlives the call, and the kernel
    // only reads it.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel may hand over datagrams of one sender merged. Where it can't, they come one by one.
pub fn receive_merged(socket: impl AsFd, on: bool) {
    // What this kernel does not know stays as it is.
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO, on);
}

/// Lets the kernel say which address each datagram was sent to, for a socket that is bound to all of a family.
///
/// # Errors
/// As setsockopt(2).
pub(super) fn tell_destination(socket: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, true),
        Family::V6 => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, true),
    }
}

/// Sends without checksums; then the kernel refuses to cut runs.
#[cfg(test)]
pub(super) fn without_checksums(socket: impl AsFd) {
    set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, true).unwrap();
}

fn set(socket: impl AsFd, level: libc::c_int, option: libc::c_int, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: the option's value is an int, and that is its length.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn header_of(
    message: &Message<'_>,
    source: Option<IpAddr>,
    address: &mut MaybeUninit<Address>,
    control: &mut MaybeUninit<Control>,
) -> libc::mmsghdr {
    let (address, address_len) = Address::of(message.to, address);
    // SAFETY: plain C data, for which zeros are valid.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = ptr::from_mut(address).cast();
    header.msg_hdr.msg_namelen = address_len;
    // IoSlice is an iovec by its own promise.
    header.msg_hdr.msg_iov = message.parts.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_iovlen = message.parts.len() as _;
    if message.segment.is_none() && source.is_none() {
        return header;
    }
    let control = control.write(Control([0; CONTROL_LEN]));
    header.msg_hdr.msg_control = ptr::from_mut(control).cast();
    header.msg_hdr.msg_controllen = CONTROL_LEN as _;
    let mut filled = 0;
    // SAFETY: `control` is aligned for a cmsghdr, zeroed, and has room for one with a u16 behind it, and one with either
    // kind of pktinfo behind that.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
        if let Some(segment) = message.segment {
            filled += put_control(at, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            at = libc::CMSG_NXTHDR(&raw const header.msg_hdr, at);
        }
        filled += match source {
            None => 0,
            Some(IpAddr::V4(source)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(source),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                put_control(at, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            Some(IpAddr::V6(source)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: in6_addr(source),
                    ipi6_ifindex: 0,
                };
                put_control(at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        };
    }
    header.msg_hdr.msg_controllen = filled as _;
    header
}

/// Writes a control message, and gives the room that it takes.
///
/// # Safety
/// There must be that much room at `at`.
unsafe fn put_control<T>(at: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let length = size_of::<T>() as libc::c_uint;
    // SAFETY: these calculate, or write where the caller says that there is room.
    unsafe {
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(length) as usize
    }
}

/// An address as the kernel takes it.
#[repr(C)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    fn of(address: SocketAddr, place: &mut MaybeUninit<Self>) -> (&mut Self, libc::socklen_t) {
        match address {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: in_addr(*address.ip()),
                    sin_zero: [0; 8],
                };
                (place.write(Self { v4 }), size_of_val(&v4) as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: in6_addr(*address.ip()),
                    sin6_scope_id: address.scope_id(),
                };
                (place.write(Self { v6 }), size_of_val(&v6) as libc::socklen_t)
            }
        }
    }
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and the storage is large and aligned enough for every kind of address.
            let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from_ne_bytes(ip.octets()),
    }
}

fn in6_addr(ip: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: ip.octets() }
}

/// What the kernel said of a message.
#[derive(Default)]
struct Told {
    /// The segment size, where it merged several datagrams.
    segment: Option<usize>,
    /// The address of ours that it was sent to.
    destination: Option<IpAddr>,
}

impl Told {
    fn of(header: &libc::msghdr) -> Self {
        let mut told = Self::default();
        // SAFETY: the kernel has filled in the control messages and their length; each of these kinds holds what is read.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(control) = at.as_ref() {
                match (control.cmsg_level, control.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let segment = libc::CMSG_DATA(at).cast::<libc::c_int>().read_unaligned();
                        told.segment = usize::try_from(segment).ok().filter(|segment| *segment > 0);
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = libc::CMSG_DATA(at).cast::<libc::in_pktinfo>().read_unaligned();
                        // Of a broadcast they differ: the second is an address of ours, which nobody asked.
                        let was_asked = info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr;
                        let ip = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                        told.destination = was_asked.then_some(ip.into());
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = libc::CMSG_DATA(at).cast::<libc::in6_pktinfo>().read_unaligned();
                        let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                        told.destination = (!ip.is_multicast()).then_some(ip.into());
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
        told
    }
}

/// Room for two control messages, one with an int in it and one with an address, aligned as the kernel wants them.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// How many messages one [`send`] sends at most.
pub const MAX_MESSAGES: usize = 32;
/// More than UDP can carry, so that nothing is cut off.
const MAX_MESSAGE: usize = 65_536;
/// Some cache lines more than that: buffers a power of two apart would all compete for the same places of the cache.
const STRIDE: usize = MAX_MESSAGE + 19 * 64;
const CONTROL_LEN: usize = 64;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests have sockets of their own")]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_was_sent_in_one_piece_is_received_in_one_and_cut_again() {
        let (from, to) = pair("127.0.0.1:0");
        let bytes: Vec<u8> = (0..2500_u32).map(|at| (at / 3) as u8).collect();
        let parts = [IoSlice::new(&bytes[..7]), IoSlice::new(&bytes[7..])];
        let message = Message {
            to: to.local_addr().unwrap(),
            parts: &parts,
            segment: Some(1000),
        };
        assert_eq!(send(&from, &[message]).unwrap(), 1);
        let mut inbox = Inbox::new(4);
        assert_eq!(inbox.receive(&to).unwrap(), 1);
        let message = inbox.messages().next().unwrap();
        assert_eq!(
            (message.from, message.segment),
            (from.local_addr().unwrap(), 1000)
        );
        let cut: Vec<_> = message.datagrams().collect();
        assert_eq!(cut, [&bytes[..1000], &bytes[1000..2000], &bytes[2000..]]);
    }

    #[test]
    fn datagrams_come_one_by_one_with_their_senders_and_in_several_rounds() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (from, to) = pair(any);
            let (other, _) = pair(any);
            let to_address = to.local_addr().unwrap();
            for (socket, text) in [(&from, "one"), (&other, ""), (&from, "three")] {
                socket.send_to(text.as_bytes(), to_address).unwrap();
            }
            let mut inbox = Inbox::new(2);
            let mut came = Vec::new();
            while let Ok(1..) = inbox.receive(&to) {
                for message in inbox.messages() {
                    came.extend(message.datagrams().map(|bytes| (message.from, bytes.to_vec())));
                }
            }
            let (from, other) = (from.local_addr().unwrap(), other.local_addr().unwrap());
            let sent = [
                (from, b"one".to_vec()),
                (other, vec![]),
                (from, b"three".to_vec()),
            ];
            assert_eq!(came, sent);
        }
    }

    #[test]
    fn a_socket_everywhere_hears_which_address_was_asked_and_answers_from_it() {
        for (family, any, asked) in [
            (Family::V4, "0.0.0.0:0", "127.0.0.2"),
            (Family::V4, "0.0.0.0:0", "127.0.0.1"),
            (Family::V6, "[::]:0", "::1"),
        ] {
            let (client, server) = pair(any);
            tell_destination(&server, family).unwrap();
            let asked: IpAddr = asked.parse().unwrap();
            let at = SocketAddr::new(asked, server.local_addr().unwrap().port());
            client.connect(at).unwrap();
            let mut inbox = Inbox::new(2);
            for segment in [None, Some(1000)] {
                let (parts, to) = ([IoSlice::new(&[7; 2500])], at);
                let message = Message {
                    to,
                    parts: &parts,
                    segment,
                };
                assert_eq!(send(&client, &[message]).unwrap(), 1);
                assert_eq!(inbox.receive(&server).unwrap(), 1);
                let received = inbox.messages().next().unwrap();
                assert_eq!(received.to, Some(asked));
                assert_eq!(received.segment, segment.map_or(2500, usize::from));
                let to = received.from;
                let message = Message { to, ..message };
                assert_eq!(send_from(&server, received.to, &[message]).unwrap(), 1);
                // Being connected, it hears that address only.
                let expected = segment.map_or(2500, usize::from);
                assert_eq!(client.recv(&mut [0; 3000]).unwrap(), expected);
                while segment.is_some() && client.recv(&mut [0; 3000]).unwrap() == expected {}
            }
        }
    }

    #[test]
    fn what_was_sent_to_many_was_sent_to_no_address_of_ours() {
        let (from, to) = pair("0.0.0.0:0");
        tell_destination(&to, Family::V4).unwrap();
        let (group, loopback) = (Ipv4Addr::new(224, 0, 0, 7), Ipv4Addr::LOCALHOST);
        to.join_multicast_v4(&group, &loopback).unwrap();
        rustix::net::sockopt::set_ip_multicast_if(&from, &loopback).unwrap();
        let to_group = (group, to.local_addr().unwrap().port());
        from.send_to(b"who is there?", to_group).unwrap();
        let mut inbox = Inbox::new(1);
        assert_eq!(inbox.receive(&to).unwrap(), 1);
        assert_eq!(inbox.messages().next().unwrap().to, None);
    }

    #[test]
    fn a_socket_at_one_address_is_told_nothing_of_it() {
        let (from, to) = pair("127.0.0.1:0");
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        let mut inbox = Inbox::new(1);
        assert_eq!(inbox.receive(&to).unwrap(), 1);
        assert_eq!(inbox.messages().next().unwrap().to, None);
    }

    #[test]
    fn an_empty_socket_would_block() {
        let (_, to) = pair("127.0.0.1:0");
        let error = Inbox::new(2).receive(&to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    fn pair(any: &str) -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind(any).unwrap();
        let (from, to) = (bind(), bind());
        from.set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        receive_merged(&to, true);
        (from, to)
    }
}
