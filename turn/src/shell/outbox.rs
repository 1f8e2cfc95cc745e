//! What waits to be sent: payloads to pass on, kept in runs that the kernel can send as one.
//!
//! ```text
//!  Forward ─► push ─────┬─ same way, same receiver, same length ──► longer run ─┐
//!  Run ─────► push_run ─┴─ else ──────────────────────────────────► new run ────┴─► flush: one sendmmsg per socket,
//!                                                                                   UDP_SEGMENT for each run
//! ```
//!
//! Nothing is copied: heads, payloads and padding are gathered from where they lie. The order of the datagrams to one
//! receiver is kept. A run is what UDP_SEGMENT can cut: equal lengths, the last may be shorter.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use arrayvec::ArrayVec;

use super::datagrams::{MAX_MESSAGES, Message, send_from};
use super::sockets::{Sender, Sockets};
use crate::core::counters::{Counters, Direction, Drop};
use crate::core::runs::Receiver;
use crate::core::server::Forward;
use crate::core::wire::Envelope;
use crate::core::{self, RelayId};

/// Payloads of one inbox on their way. To be emptied with [`Outbox::flush`].
#[derive(Debug, Default)]
pub(super) struct Outbox<'a> {
    pieces: ArrayVec<Piece<'a>, MAX_PIECES>,
    runs: ArrayVec<Run, MAX_MESSAGES>,
    /// Of how many parts the pieces are gathered, at most.
    parts: usize,
}

/// Whether the kernel may be asked to cut runs.
#[derive(Debug, Default)]
pub(super) struct Segmentation {
    /// How many runs are sent datagram by datagram before it is asked again.
    rest: u32,
}

/// What came in one piece.
#[derive(Debug)]
enum Piece<'a> {
    Datagram {
        envelope: Option<Envelope>,
        payload: &'a [u8],
    },
    Run(core::runs::Run<'a>),
}

/// The socket that something leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Relay(RelayId),
    /// The listener that is at this address, or everywhere; from this address.
    Listener(SocketAddr),
}

#[derive(Debug)]
struct Run {
    way: Way,
    to: SocketAddr,
    /// How many pieces.
    pieces: usize,
    size: Size,
    /// Whether the last datagram is as long as the first, so that another may follow.
    is_open: bool,
}

/// How much a piece or a run is.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// How many datagrams.
    count: usize,
    /// The length of the first.
    length: usize,
    /// All their bytes.
    total: usize,
}

impl<'a> Outbox<'a> {
    /// Whether it must be flushed before more goes in.
    pub(super) fn is_full(&self) -> bool {
        self.pieces.is_full() || self.runs.is_full() || self.parts + MAX_PARTS_OF_PIECE > MAX_PARTS
    }

    /// Takes a payload in. There must be room.
    #[inline]
    pub(super) fn push(&mut self, forward: Forward<'a>) {
        let (way, to, envelope, payload) = match forward {
            Forward::Nothing => return,
            Forward::ToPeer { relay, peer, payload } => (Way::Relay(relay), peer, None, payload),
            Forward::ToClient {
                to,
                envelope,
                payload,
            } => (Way::Listener(to.local), to.remote, Some(envelope), payload),
        };
        self.add(way, to, Piece::Datagram { envelope, payload });
    }

    /// Takes in what came in one piece, unless the kernel could not send it so. There must be room.
    pub(super) fn push_run(&mut self, run: core::runs::Run<'a>) -> bool {
        let (way, to) = match run.to {
            Receiver::Peer { relay, peer } => (Way::Relay(relay), peer),
            Receiver::Client(to) => (Way::Listener(to.local), to.remote),
        };
        let piece = Piece::Run(run);
        let size = piece.size();
        let fits = size.count <= MAX_SEGMENTS && size.length <= MAX_SEGMENT && size.total <= MAX_RUN_BYTES;
        if fits {
            self.add(way, to, piece);
        }
        fits
    }

    fn add(&mut self, way: Way, to: SocketAddr, piece: Piece<'a>) {
        let size = piece.size();
        let is_even = size.total == size.count * size.length;
        match self.runs.last_mut() {
            Some(run) if run.takes(way, to, size) => {
                run.pieces += 1;
                run.size.count += size.count;
                run.size.total += size.total;
                run.is_open = is_even && size.length == run.size.length;
            }
            _ => self.runs.push(Run {
                way,
                to,
                pieces: 1,
                size,
                is_open: is_even && (1..=MAX_SEGMENT).contains(&size.length),
            }),
        }
        self.parts += piece.most_parts();
        self.pieces.push(piece);
    }

    /// Sends all there is, and counts what became of it.
    pub(super) fn flush(
        &mut self,
        sockets: &Sockets,
        segmentation: &mut Segmentation,
        counters: &mut Counters,
    ) {
        let (mut pieces, mut runs) = (&self.pieces[..], &self.runs[..]);
        while let Some(first) = runs.first() {
            let alike = runs.iter().take_while(|run| run.way == first.way).count();
            let (now, later) = runs.split_at(alike);
            let (these, rest) = pieces.split_at(now.iter().map(|run| run.pieces).sum());
            match sockets.by_way(first.way) {
                Some(by) => send_runs(by, now, these, segmentation, counters),
                None => now.iter().for_each(|run| run.dropped(Drop::SendFailed, counters)),
            }
            (pieces, runs) = (rest, later);
        }
        self.pieces.clear();
        self.runs.clear();
        self.parts = 0;
    }
}

impl Run {
    /// Datagrams may follow that are as long as the first, or one that is shorter.
    #[inline]
    fn takes(&self, way: Way, to: SocketAddr, size: Size) -> bool {
        let is_next = size.length == self.size.length || size.count == 1;
        self.is_open
            && is_next
            && (1..=self.size.length).contains(&size.length)
            && self.size.count + size.count <= MAX_SEGMENTS
            && self.size.total + size.total <= MAX_RUN_BYTES
            && self.way == way
            && self.to == to
    }

    fn dropped(&self, reason: Drop, counters: &mut Counters) {
        (0..self.size.count).for_each(|_| counters.dropped(self.direction(), reason));
    }

    fn direction(&self) -> Direction {
        match self.way {
            Way::Relay(_) => Direction::ToPeer,
            Way::Listener(_) => Direction::ToClient,
        }
    }
}

impl Piece<'_> {
    fn size(&self) -> Size {
        match self {
            Self::Datagram { envelope, payload } => {
                let around = envelope.as_ref();
                let around = around.map_or(0, |around| around.head().len() + around.padding().len());
                let length = payload.len() + around;
                Size {
                    count: 1,
                    length,
                    total: length,
                }
            }
            Self::Run(run) => Size {
                count: run.count(),
                length: run.each_len(),
                total: run.total_len(),
            },
        }
    }

    fn payload_len(&self) -> usize {
        match self {
            Self::Datagram { payload, .. } => payload.len(),
            Self::Run(run) => run.payload_len(),
        }
    }

    fn most_parts(&self) -> usize {
        match self {
            Self::Datagram { .. } => 3,
            Self::Run(run) => 2 * run.count(),
        }
    }

    /// Gives each of its datagrams: head, payload and padding.
    fn each<'p>(&'p self, mut datagram: impl FnMut([&'p [u8]; 3])) {
        match self {
            Self::Datagram { envelope, payload } => {
                let around = envelope.as_ref();
                let head = around.map_or(&[][..], Envelope::head);
                let padding = around.map_or(&[][..], Envelope::padding);
                datagram([head, payload, padding]);
            }
            Self::Run(run) => run
                .datagrams()
                .for_each(|(head, payload)| datagram([head.unwrap_or_default(), payload, &[]])),
        }
    }
}

/// Those that are not empty, for the system.
fn slices(parts: [&[u8]; 3]) -> impl Iterator<Item = IoSlice<'_>> {
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(IoSlice::new)
}

impl Sockets {
    fn by_way(&self, way: Way) -> Option<Sender<'_>> {
        match way {
            Way::Relay(relay) => self.relay(relay).map(|socket| Sender { socket, source: None }),
            Way::Listener(local) => self.listener(local),
        }
    }
}

impl Segmentation {
    fn is_on(&mut self) -> bool {
        let on = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        on
    }

    /// Whether an error means that a run has to go datagram by datagram.
    fn is_refusal(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            // The way there can't do it at all, such as through IPsec: the next runs will likely go the same way.
            Some(libc::EIO) => {
                self.rest = RUNS_UNTIL_NEXT_TRY;
                true
            }
            // This run can't be cut: its segments are too long for the path, or the socket sends no checksums.
            Some(libc::EINVAL | libc::EMSGSIZE) => true,
            _ => false,
        }
    }
}

/// Sends runs by one socket.
fn send_runs(
    by: Sender<'_>,
    runs: &[Run],
    pieces: &[Piece<'_>],
    segmentation: &mut Segmentation,
    counters: &mut Counters,
) {
    // Filled in place: what is collected is moved once more, and this is 8 kB.
    let mut parts: ArrayVec<IoSlice<'_>, MAX_PARTS> = ArrayVec::new();
    let mut of_runs: ArrayVec<(&Run, &[Piece<'_>], usize), MAX_MESSAGES> = ArrayVec::new();
    let mut rest = pieces;
    for run in runs {
        let (these, others) = rest.split_at(run.pieces);
        let before = parts.len();
        for piece in these {
            piece.each(|datagram| parts.extend(slices(datagram)));
        }
        of_runs.push((run, these, parts.len() - before));
        rest = others;
    }
    let mut parts = &parts[..];
    let mut messages: ArrayVec<Message<'_>, MAX_MESSAGES> = ArrayVec::new();
    for (run, _, count) in &of_runs {
        let (own, others) = parts.split_at(*count);
        parts = others;
        messages.push(Message {
            to: run.to,
            parts: own,
            segment: (run.size.count > 1).then_some(run.size.length as u16),
        });
    }
    let mut done = 0;
    while done < messages.len() {
        let (run, these, _) = of_runs[done];
        if run.size.count > 1 && !segmentation.is_on() {
            send_singly(by, run, these, counters);
            done += 1;
            continue;
        }
        match send_from(by.socket, by.source, &messages[done..]) {
            Ok(sent) => {
                for (run, these, _) in &of_runs[done..done + sent] {
                    let payload = these.iter().map(Piece::payload_len).sum();
                    counters.relayed_many(run.direction(), run.size.count, payload);
                }
                done += sent.max(1);
            }
            Err(error) if run.size.count > 1 && segmentation.is_refusal(&error) => {
                send_singly(by, run, these, counters);
                done += 1;
            }
            Err(error) => {
                run.dropped(reason(&error), counters);
                done += 1;
            }
        }
    }
}

/// Sends the datagrams of a run one by one, though with few system calls.
fn send_singly(by: Sender<'_>, run: &Run, pieces: &[Piece<'_>], counters: &mut Counters) {
    let mut datagrams: ArrayVec<ArrayVec<IoSlice<'_>, 3>, MAX_SEGMENTS> = ArrayVec::new();
    let mut payloads: ArrayVec<usize, MAX_SEGMENTS> = ArrayVec::new();
    for piece in pieces {
        piece.each(|datagram| {
            datagrams.push(slices(datagram).collect());
            payloads.push(datagram[1].len());
        });
    }
    let messages: ArrayVec<Message<'_>, MAX_SEGMENTS> = datagrams
        .iter()
        .map(|parts| Message {
            to: run.to,
            parts,
            segment: None,
        })
        .collect();
    let mut done = 0;
    while done < messages.len() {
        match send_from(by.socket, by.source, &messages[done..]) {
            Ok(sent) => {
                for payload in &payloads[done..done + sent] {
                    counters.relayed(run.direction(), *payload);
                }
                done += sent.max(1);
            }
            Err(error) => {
                counters.dropped(run.direction(), reason(&error));
                done += 1;
            }
        }
    }
}

fn reason(error: &io::Error) -> Drop {
    match error.kind() {
        io::ErrorKind::WouldBlock => Drop::SendBufferFull,
        _ => Drop::SendFailed,
    }
}

/// How many pieces wait at most.
const MAX_PIECES: usize = 128;
/// And parts of them.
const MAX_PARTS: usize = 512;
/// Of the longest run, each datagram has a head and a payload.
const MAX_PARTS_OF_PIECE: usize = 2 * MAX_SEGMENTS;
/// What every kernel with UDP_SEGMENT takes at once (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;
/// A little less than an IP packet holds.
const MAX_RUN_BYTES: usize = 65_000;
/// What fits an Ethernet frame. Segments that are longer than the path takes would be refused.
const MAX_SEGMENT: usize = 1472;
/// Some seconds, on a server worth the name.
const RUNS_UNTIL_NEXT_TRY: u32 = 10_000;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::sockets::{Listener, udp};
    use super::*;
    use crate::core::counters::Count;
    use crate::core::runs::Run;
    use crate::core::wire::ChannelNumber;
    use crate::core::{FiveTuple, Transport};

    #[test]
    fn a_run_is_of_equal_lengths_and_a_shorter_one_ends_it() {
        let world = World::new();
        let mut outbox = Outbox::default();
        for length in [1200, 1200, 700, 1200, 1200, 0, 0, 1300, 1300] {
            outbox.push(world.to_peer(&PAYLOAD[..length]));
        }
        assert_eq!(counts(&outbox), [3, 2, 1, 1, 2]);
    }

    #[test]
    fn a_run_goes_one_way_to_one_receiver() {
        let world = World::new();
        let mut outbox = Outbox::default();
        let other = Forward::ToPeer {
            relay: RelayId(0),
            peer: ([127, 0, 0, 1], 9).into(),
            payload: &PAYLOAD[..100],
        };
        outbox.push(world.to_peer(&PAYLOAD[..100]));
        outbox.push(other);
        outbox.push(world.to_client(&PAYLOAD[..100]));
        outbox.push(world.to_client(&PAYLOAD[..100]));
        outbox.push(Forward::Nothing);
        assert_eq!(counts(&outbox), [1, 1, 2]);
    }

    #[test]
    fn a_run_is_no_longer_than_the_kernel_takes() {
        let world = World::new();
        let mut outbox = Outbox::default();
        for length in [[10; 65], [1472; 65]].concat() {
            if outbox.is_full() {
                break;
            }
            outbox.push(world.to_peer(&PAYLOAD[..length]));
        }
        assert_eq!(counts(&outbox), [64, 1, 44, 19]);
    }

    #[test]
    fn what_came_in_one_piece_lengthens_a_run_or_ends_it() {
        let world = World::new();
        let mut outbox = Outbox::default();
        let piece =
            |length, every| Run::to_client(world.client(), channel(), &PAYLOAD[..length], every).unwrap();
        outbox.push(world.to_client(&PAYLOAD[..100]));
        for (length, every) in [
            (200, 100),
            (300, 100),
            (250, 100),
            (300, 100),
            (200, 50),
            (100, 50),
        ] {
            assert!(outbox.push_run(piece(length, every)));
        }
        outbox.push(world.to_client(&PAYLOAD[..30]));
        outbox.push(world.to_client(&PAYLOAD[..30]));
        assert_eq!(counts(&outbox), [1 + 2 + 3 + 3, 3, 4 + 2 + 1, 1]);
    }

    #[test]
    fn a_piece_that_the_kernel_could_not_send_is_not_taken() {
        let long = vec![0; 64_900];
        let world = World::new();
        let mut outbox = Outbox::default();
        let piece =
            |length, every| Run::to_client(world.client(), channel(), &long[..length], every).unwrap();
        // Too long each, too many, too long together.
        for (length, every) in [(4000, 1469), (650, 10), (64_900, 1400)] {
            assert!(!outbox.push_run(piece(length, every)));
        }
        while !outbox.is_full() {
            assert!(outbox.push_run(piece(640, 10)));
        }
        assert_eq!(counts(&outbox), [64; 4], "each datagram has two parts");
    }

    #[test]
    fn what_is_sent_in_runs_arrives_as_it_was() {
        let mut world = World::new();
        world.send_and_compare(&mut Segmentation::default());
    }

    #[test]
    fn what_the_kernel_may_not_cut_arrives_as_it_was() {
        let mut world = World::new();
        world.send_and_compare(&mut Segmentation { rest: u32::MAX });
    }

    #[test]
    fn what_the_kernel_will_not_cut_arrives_as_it_was() {
        let mut world = World::new();
        // UDP_SEGMENT needs checksums, so on such sockets the kernel refuses it.
        world.refuse_segmentation();
        world.send_and_compare(&mut Segmentation::default());
    }

    #[test]
    fn after_a_path_refused_runs_others_go_singly_for_a_while() {
        let mut segmentation = Segmentation::default();
        assert!(segmentation.is_on());
        assert!(segmentation.is_refusal(&io::Error::from_raw_os_error(libc::EMSGSIZE)));
        assert!(segmentation.is_on());
        assert!(segmentation.is_refusal(&io::Error::from_raw_os_error(libc::EIO)));
        for _ in 0..RUNS_UNTIL_NEXT_TRY {
            assert!(!segmentation.is_on());
        }
        assert!(segmentation.is_on());
        assert!(!segmentation.is_refusal(&io::Error::from_raw_os_error(libc::EPERM)));
    }

    #[test]
    fn each_client_hears_from_the_address_that_it_sent_to() {
        let mut world = World::new();
        let listener = Listener::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = listener.local.port();
        world.sockets = Sockets::new(vec![listener]);
        let ips = [[127, 0, 0, 1], [127, 0, 0, 2]];
        let clients = ips.map(|ip| {
            let client = receiver();
            client.connect((std::net::IpAddr::from(ip), port)).unwrap();
            let to = FiveTuple {
                transport: Transport::Udp,
                local: (ip, port).into(),
                remote: client.local_addr().unwrap(),
            };
            (client, to)
        });
        let mut outbox = Outbox::default();
        for length in [100, 100, 200] {
            for (_, to) in &clients {
                outbox.push(Forward::ToClient {
                    to: *to,
                    envelope: Envelope::channel_data(channel(), length as u16, false),
                    payload: &PAYLOAD[..length],
                });
            }
        }
        let mut counters = Counters::default();
        outbox.flush(&world.sockets, &mut Segmentation::default(), &mut counters);
        for (client, to) in &clients {
            world.sockets.answer(to, b"an answer").unwrap();
            let lengths = [(); 4].map(|()| client.recv(&mut [0; 2048]).unwrap());
            assert_eq!(lengths, [104, 104, 204, 9]);
        }
    }

    #[test]
    fn what_can_not_be_sent_is_counted() {
        let world = World::new();
        let mut counters = Counters::default();
        let mut outbox = Outbox::default();
        let to = |relay, peer: &str| Forward::ToPeer {
            relay: RelayId(relay),
            peer: peer.parse().unwrap(),
            payload: &PAYLOAD[..10],
        };
        outbox.push(to(7, "127.0.0.1:9"));
        // Broadcast, which no socket of ours may send to.
        outbox.push(to(0, "255.255.255.255:9"));
        outbox.push(to(0, "127.0.0.1:9"));
        outbox.flush(&world.sockets, &mut Segmentation::default(), &mut counters);
        assert_eq!(
            counters.get(Count::Dropped(Direction::ToPeer, Drop::SendFailed)),
            2
        );
        assert_eq!(counters.get(Count::RelayedPackets(Direction::ToPeer)), 1);
    }

    /// A relay, a listener, and who receives from them.
    struct World {
        sockets: Sockets,
        local: SocketAddr,
        peer: UdpSocket,
        client: UdpSocket,
    }

    impl World {
        fn new() -> Self {
            let any = "127.0.0.1:0".parse().unwrap();
            let listener = Listener::bind(any).unwrap();
            let local = listener.local;
            let mut sockets = Sockets::new(vec![listener]);
            sockets.insert(RelayId(0), udp(any).unwrap());
            Self {
                sockets,
                local,
                peer: receiver(),
                client: receiver(),
            }
        }

        fn refuse_segmentation(&mut self) {
            for way in [Way::Relay(RelayId(0)), Way::Listener(self.local)] {
                crate::shell::datagrams::without_checksums(self.sockets.by_way(way).unwrap().socket);
            }
        }

        fn to_peer<'a>(&self, payload: &'a [u8]) -> Forward<'a> {
            Forward::ToPeer {
                relay: RelayId(0),
                peer: self.peer.local_addr().unwrap(),
                payload,
            }
        }

        fn client(&self) -> FiveTuple {
            FiveTuple {
                transport: Transport::Udp,
                local: self.local,
                remote: self.client.local_addr().unwrap(),
            }
        }

        fn to_client<'a>(&self, payload: &'a [u8]) -> Forward<'a> {
            Forward::ToClient {
                to: self.client(),
                envelope: Envelope::channel_data(channel(), payload.len() as u16, false),
                payload,
            }
        }

        /// Sends datagrams of many lengths both ways, and receives them in the same order with the same bytes.
        fn send_and_compare(&mut self, segmentation: &mut Segmentation) {
            let lengths = [
                1200, 1200, 1200, 333, 0, 5, 5, 5, 1472, 1472, 1473, 9000, 1, 1, 2, 2,
            ];
            let mut payloads: Vec<&[u8]> = lengths
                .iter()
                .enumerate()
                .map(|(at, length)| &PAYLOAD[at..at + length])
                .collect();
            // And what came in one piece.
            let pieces = [1000, 1000, 1000, 300];
            let (peer, of_peer) = (self.peer.local_addr().unwrap(), &PAYLOAD[..3300]);
            let with_head = |payload: &[u8]| {
                let head = [0x4000, payload.len() as u16].map(u16::to_be_bytes);
                [head.as_flattened(), payload].concat()
            };
            let of_client: Vec<_> = of_peer.chunks(1000).flat_map(with_head).collect();
            let mut outbox = Outbox::default();
            payloads
                .iter()
                .for_each(|payload| outbox.push(self.to_peer(payload)));
            assert!(outbox.push_run(Run::to_peer(RelayId(0), peer, &of_client, 1004).unwrap()));
            payloads
                .iter()
                .for_each(|payload| outbox.push(self.to_client(payload)));
            let piece = Run::to_client(self.client(), channel(), of_peer, 1000).unwrap();
            assert!(outbox.push_run(piece));
            payloads.extend(of_peer.chunks(1000));
            let lengths: Vec<_> = lengths.into_iter().chain(pieces).collect();
            let mut counters = Counters::default();
            outbox.flush(&self.sockets, segmentation, &mut counters);
            let mut buffer = [0; 10_000];
            for payload in &payloads {
                let length = self.peer.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], **payload);
            }
            for payload in &payloads {
                let length = self.client.recv(&mut buffer).unwrap();
                assert_eq!(buffer[4..length], **payload);
                assert_eq!(buffer[2..4], (payload.len() as u16).to_be_bytes());
            }
            for direction in [Direction::ToPeer, Direction::ToClient] {
                let bytes: usize = lengths.iter().sum();
                assert_eq!(
                    counters.get(Count::RelayedPackets(direction)),
                    lengths.len() as u64
                );
                assert_eq!(counters.get(Count::RelayedBytes(direction)), bytes as u64);
            }
        }
    }

    fn channel() -> ChannelNumber {
        ChannelNumber::new(0x4000).unwrap()
    }

    fn counts(outbox: &Outbox<'_>) -> Vec<usize> {
        outbox.runs.iter().map(|run| run.size.count).collect()
    }

    #[allow(clippy::disallowed_methods, reason = "the test has sockets of its own")]
    fn receiver() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// Bytes of which no two neighbouring stretches are alike.
    const PAYLOAD: [u8; 10_000] = {
        let mut bytes = [0; 10_000];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (at * at / 7 + at) as u8;
            at += 1;
        }
        bytes
    };
}
