//! One allocation: a relay for one client (or two, one of each address family), the peers it may exchange packets with,
//! and its channels (RFC 8656, sections 3.2, 9 and 12).
//!
//! Both lists are short (a client has one peer, or a few), so they are searched from the front; and each ends at
//! [`MAX_PEERS`], so that one client can't fill the memory.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::answer::{Asked, Refusal};
use super::auth::User;
use super::family::{ByFamily, Family};
use super::ports::Parity;
use super::shared::{Buckets, Holder};
use super::wire::ChannelNumber;
use super::{FiveTuple, PERMISSION_LIFETIME};

/// How long a channel lasts (RFC 8656, section 12).
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// How many permissions, and how many channels, one allocation may have.
pub const MAX_PEERS: usize = 64;

/// What one client has.
#[derive(Debug)]
pub struct Allocation {
    /// Whose it is.
    pub client: FiveTuple,
    /// Who made it.
    pub user: User,
    /// The request that made it.
    pub asked: Asked,
    /// The lifetime it was made with.
    pub granted: Duration,
    /// Its relays, one at least.
    pub relays: ByFamily<Option<Relay>>,
    /// The second family that the client asked for and didn't get, and why not.
    pub lacks: Option<(Family, Refusal)>,
    /// The token of the port that was reserved beside the relay's.
    pub token: Option<u64>,
    /// What its packets draw from.
    pub buckets: Buckets,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

/// One relayed transport address of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// The address that its socket is bound to.
    pub bind: SocketAddr,
    /// Which ports would do for it.
    pub ports: Ports,
    /// Whether that socket is there yet.
    pub state: State,
    /// When it ends.
    pub ends: Instant,
}

/// Which ports would do for a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Any other of that kind.
    Of(Parity),
    /// None but the one that was reserved.
    Reserved,
}

/// Whether a relay's socket is there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The shell was told to open it. How many more ports will be tried should this one be taken.
    Opening {
        /// Tries left.
        tries_left: u8,
    },
    /// It is, and the client knows it by this address.
    Open {
        /// XOR-RELAYED-ADDRESS.
        relayed: SocketAddr,
    },
}

impl Relay {
    /// A new one, whose socket is still to be opened.
    pub fn new(bind: SocketAddr, ports: Ports, ends: Instant) -> Self {
        let tries_left = match ports {
            Ports::Of(_) => MAX_TRIES,
            Ports::Reserved => 0,
        };
        Self {
            bind,
            ports,
            state: State::Opening { tries_left },
            ends,
        }
    }
}

#[derive(Debug)]
struct Permission {
    peer: IpAddr,
    expires: Instant,
}

#[derive(Debug)]
struct Channel {
    number: ChannelNumber,
    peer: SocketAddr,
    expires: Instant,
}

/// A channel that packets may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenChannel {
    /// Its number.
    pub number: ChannelNumber,
    /// The peer behind it.
    pub peer: SocketAddr,
    /// Until when, unless it is renewed: the end of the channel, of the permission for its peer or of the relay.
    pub until: Instant,
}

/// Why a channel was not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindError {
    /// The number is another peer's, or the peer has another number (RFC 8656, section 12.2).
    Taken,
    /// There are [`MAX_PEERS`] already.
    Full,
}

/// There are [`MAX_PEERS`] already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Allocation {
    /// A new one, without relays.
    pub fn new(client: FiveTuple, user: User, asked: Asked, granted: Duration, buckets: Buckets) -> Self {
        Self {
            client,
            user,
            asked,
            granted,
            relays: ByFamily::default(),
            lacks: None,
            token: None,
            buckets,
            permissions: Vec::new(),
            channels: Vec::new(),
        }
    }

    /// What quotas count it for.
    pub fn holder(&self) -> Holder {
        Holder::of(&self.user, &self.client)
    }

    /// Whether so many bytes of payload may pass between a relay of that family and a peer, as far as bandwidth goes.
    /// They cost what the packet takes on the way there, so that empty ones are not free.
    #[inline]
    pub fn draw(&self, now: Instant, family: Family, payload: usize) -> bool {
        let headers = match family {
            Family::V4 => IPV4_HEADER_LEN + UDP_HEADER_LEN,
            Family::V6 => IPV6_HEADER_LEN + UDP_HEADER_LEN,
        };
        self.buckets.take(now, payload + headers)
    }

    /// Whether a socket is still to be opened.
    pub fn is_opening(&self) -> bool {
        self.relays
            .present()
            .any(|(_, relay)| matches!(relay.state, State::Opening { .. }))
    }

    /// The addresses that the client knows, IPv4's first.
    pub fn relayed(&self) -> impl Iterator<Item = SocketAddr> {
        self.relays.present().filter_map(|(_, relay)| match relay.state {
            State::Open { relayed } => Some(relayed),
            State::Opening { .. } => None,
        })
    }

    /// Forgets permissions and channels for peers that are not to be reached any more.
    pub fn keep_peers(&mut self, keep: impl Fn(IpAddr) -> bool) {
        self.permissions.retain(|known| keep(known.peer));
        self.channels.retain(|known| keep(known.peer.ip()));
    }

    /// Installs or renews a permission for each of `peers`, or none where there is no room for all.
    ///
    /// # Errors
    /// [`Full`].
    pub fn permit(&mut self, now: Instant, peers: &[IpAddr]) -> Result<(), Full> {
        self.may_permit(now, peers)?;
        self.permissions.retain(|permission| now < permission.expires);
        peers.iter().for_each(|peer| self.permit_one(now, *peer));
        Ok(())
    }

    /// Whether [`Self::permit`] would do it. Changes nothing.
    ///
    /// # Errors
    /// As that.
    pub fn may_permit(&self, now: Instant, peers: &[IpAddr]) -> Result<(), Full> {
        let known = self
            .permissions
            .iter()
            .filter(|permission| now < permission.expires)
            .count();
        let new = peers
            .iter()
            .enumerate()
            .filter(|(at, peer)| !self.is_permitted(now, **peer) && !peers[..*at].contains(peer))
            .count();
        if known + new > MAX_PEERS {
            return Err(Full);
        }
        Ok(())
    }

    fn permit_one(&mut self, now: Instant, peer: IpAddr) {
        let expires = now + PERMISSION_LIFETIME;
        match self.permissions.iter_mut().find(|known| known.peer == peer) {
            Some(known) => known.expires = expires,
            None => self.permissions.push(Permission { peer, expires }),
        }
    }

    /// Whether packets may go to and come from `peer`.
    pub fn is_permitted(&self, now: Instant, peer: IpAddr) -> bool {
        self.permissions
            .iter()
            .any(|known| known.peer == peer && now < known.expires)
    }

    /// Binds or renews a channel, and the permission for its peer.
    ///
    /// # Errors
    /// [`BindError`]; then nothing has changed.
    pub fn bind_channel(
        &mut self,
        now: Instant,
        number: ChannelNumber,
        peer: SocketAddr,
    ) -> Result<(), BindError> {
        self.may_bind_channel(now, number, peer)?;
        self.permit(now, &[peer.ip()]).map_err(|Full| BindError::Full)?;
        self.channels.retain(|channel| now < channel.expires);
        let expires = now + CHANNEL_LIFETIME;
        match self.channels.iter_mut().find(|known| known.number == number) {
            Some(known) => known.expires = expires,
            None => self.channels.push(Channel {
                number,
                peer,
                expires,
            }),
        }
        Ok(())
    }

    /// Whether [`Self::bind_channel`] would do it. Changes nothing.
    ///
    /// # Errors
    /// As that.
    pub fn may_bind_channel(
        &self,
        now: Instant,
        number: ChannelNumber,
        peer: SocketAddr,
    ) -> Result<(), BindError> {
        let live = || self.channels.iter().filter(|channel| now < channel.expires);
        match live().find(|known| known.number == number || known.peer == peer) {
            Some(known) if (known.number, known.peer) != (number, peer) => return Err(BindError::Taken),
            None if live().count() >= MAX_PEERS => return Err(BindError::Full),
            Some(_) | None => {}
        }
        self.may_permit(now, &[peer.ip()]).map_err(|Full| BindError::Full)
    }

    /// The channels through one of its relays.
    pub fn open_channels(&self, now: Instant, family: Family) -> Vec<OpenChannel> {
        let Some(relay) = &self.relays[family] else {
            return Vec::new();
        };
        let of_family = self
            .channels
            .iter()
            .filter(|known| Family::of_socket(known.peer) == family);
        let open = of_family.filter_map(|known| {
            let permission = self
                .permissions
                .iter()
                .find(|permission| permission.peer == known.peer.ip())?;
            let until = known.expires.min(permission.expires).min(relay.ends);
            (now < until).then_some(OpenChannel {
                number: known.number,
                peer: known.peer,
                until,
            })
        });
        open.collect()
    }

    /// The peer behind a channel.
    pub fn peer_of(&self, now: Instant, number: ChannelNumber) -> Option<SocketAddr> {
        let channel = self.channels.iter().find(|channel| channel.number == number)?;
        (now < channel.expires).then_some(channel.peer)
    }

    /// The channel to a peer.
    pub fn channel_to(&self, now: Instant, peer: SocketAddr) -> Option<ChannelNumber> {
        let channel = self.channels.iter().find(|channel| channel.peer == peer)?;
        (now < channel.expires).then_some(channel.number)
    }
}

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const UDP_HEADER_LEN: usize = 8;
/// How many ports are tried before an Allocate fails: others on this machine may hold some of our range.
const MAX_TRIES: u8 = 10;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use super::super::Transport;
    use super::*;

    #[test]
    fn a_permission_ends_after_300_seconds_unless_renewed() {
        let (mut allocation, now) = setup();
        allocation.permit(now, &[ip(1), ip(2)]).unwrap();
        let later = now + Duration::from_secs(299);
        allocation.permit(later, &[ip(1)]).unwrap();
        let end = now + PERMISSION_LIFETIME;
        assert!(allocation.is_permitted(end - Duration::from_millis(1), ip(2)));
        assert!(!allocation.is_permitted(end, ip(2)));
        assert!(allocation.is_permitted(end, ip(1)));
        assert!(!allocation.is_permitted(later + PERMISSION_LIFETIME, ip(1)));
    }

    #[test]
    fn a_channel_outlives_its_permission() {
        let (mut allocation, now) = setup();
        allocation.bind_channel(now, channel(0x4000), peer(1)).unwrap();
        let between = now + Duration::from_secs(599);
        assert_eq!(allocation.peer_of(between, channel(0x4000)), Some(peer(1)));
        assert_eq!(allocation.channel_to(between, peer(1)), Some(channel(0x4000)));
        assert!(!allocation.is_permitted(between, peer(1).ip()));
        assert_eq!(allocation.peer_of(now + CHANNEL_LIFETIME, channel(0x4000)), None);
        assert_eq!(allocation.channel_to(now + CHANNEL_LIFETIME, peer(1)), None);
    }

    #[test]
    fn a_channel_and_a_peer_belong_to_each_other() {
        let (mut allocation, now) = setup();
        allocation.bind_channel(now, channel(0x4000), peer(1)).unwrap();
        assert_eq!(allocation.bind_channel(now, channel(0x4000), peer(1)), Ok(()));
        assert_eq!(
            allocation.bind_channel(now, channel(0x4000), peer(2)),
            Err(BindError::Taken)
        );
        assert_eq!(
            allocation.bind_channel(now, channel(0x4001), peer(1)),
            Err(BindError::Taken)
        );
        let end = now + CHANNEL_LIFETIME;
        assert_eq!(allocation.bind_channel(end, channel(0x4000), peer(2)), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_what_is_over_makes_room() {
        let (mut allocation, now) = setup();
        for n in 0..MAX_PEERS as u8 {
            allocation
                .bind_channel(now, channel(0x4000 + u16::from(n)), peer(n))
                .unwrap();
        }
        assert_eq!(allocation.permit(now, &[ip(200)]), Err(Full));
        assert_eq!(
            allocation.bind_channel(now, channel(0x4FFF), peer(200)),
            Err(BindError::Full)
        );
        assert_eq!(allocation.permit(now, &[ip(1), ip(2), ip(1)]), Ok(()), "known");
        assert_eq!(allocation.permit(now + PERMISSION_LIFETIME, &[ip(200)]), Ok(()));
    }

    #[test]
    fn peers_that_are_not_kept_are_out_of_reach() {
        let (mut allocation, now) = setup();
        allocation.bind_channel(now, channel(0x4000), peer(1)).unwrap();
        allocation.permit(now, &[ip(2)]).unwrap();
        allocation.keep_peers(|peer| peer == ip(2));
        assert!(!allocation.is_permitted(now, ip(1)) && allocation.is_permitted(now, ip(2)));
        assert_eq!(allocation.peer_of(now, channel(0x4000)), None);
    }

    #[test]
    fn a_channel_is_open_until_it_or_its_permission_or_its_relay_ends() {
        let (mut allocation, now) = setup();
        let at = |seconds| now + Duration::from_secs(seconds);
        let open = |allocation: &Allocation, seconds| {
            let open = allocation.open_channels(at(seconds), Family::V4);
            open.iter()
                .map(|channel| channel.until - now)
                .map(|until| until.as_secs())
                .collect::<Vec<_>>()
        };
        allocation.bind_channel(now, channel(0x4000), peer(1)).unwrap();
        assert_eq!(open(&allocation, 0), [0; 0], "there is no relay");
        allocation.relays[Family::V4] = Some(relay(at(3600)));
        let only = OpenChannel {
            number: channel(0x4000),
            peer: peer(1),
            until: at(300),
        };
        assert_eq!(allocation.open_channels(now, Family::V4), [only]);
        assert_eq!(open(&allocation, 299), [300]);
        assert_eq!(open(&allocation, 300), [0; 0], "its permission is over");
        allocation.permit(at(310), &[ip(2)]).unwrap();
        assert_eq!(open(&allocation, 310), [0; 0], "another's does not matter");
        allocation.permit(at(320), &[ip(1)]).unwrap();
        assert_eq!(open(&allocation, 320), [600], "as long as the channel");
        allocation
            .bind_channel(at(330), channel(0x4000), peer(1))
            .unwrap();
        assert_eq!(open(&allocation, 330), [630], "both were renewed");
        allocation.permit(at(600), &[ip(1)]).unwrap();
        assert_eq!(open(&allocation, 600), [900]);
        allocation.relays[Family::V4] = Some(relay(at(700)));
        assert_eq!(open(&allocation, 699), [700]);
        assert_eq!(open(&allocation, 700), [0; 0], "the relay is over");
        allocation.relays[Family::V4] = Some(relay(at(3600)));
        assert_eq!(open(&allocation, 899), [900]);
        assert_eq!(open(&allocation, 930), [0; 0]);
        allocation.permit(at(930), &[ip(1)]).unwrap();
        assert_eq!(open(&allocation, 930), [0; 0], "the channel is over too");
        allocation.keep_peers(|peer| peer != ip(1));
        allocation
            .bind_channel(at(940), channel(0x4001), peer(2))
            .unwrap();
        assert_eq!(open(&allocation, 940), [1240]);
        allocation.keep_peers(|peer| peer != ip(2));
        assert_eq!(open(&allocation, 940), [0; 0]);
    }

    #[test]
    fn each_relay_has_the_channels_of_its_family() {
        let (mut allocation, now) = setup();
        let ends = now + Duration::from_secs(600);
        allocation.relays[Family::V4] = Some(relay(ends));
        allocation.relays[Family::V6] = Some(relay(ends));
        let v6: SocketAddr = "[2001:db8::1]:4000".parse().unwrap();
        let peers = [(0x4000, peer(1)), (0x4001, v6), (0x4002, (ip(1), 4001).into())];
        for (number, peer) in peers {
            allocation.bind_channel(now, channel(number), peer).unwrap();
        }
        let open = |family| {
            let open = allocation.open_channels(now, family);
            open.iter()
                .map(|channel| (channel.number.get(), channel.peer))
                .collect::<Vec<_>>()
        };
        assert_eq!(open(Family::V4), [peers[0], peers[2]]);
        assert_eq!(open(Family::V6), [peers[1]]);
    }

    fn relay(ends: Instant) -> Relay {
        Relay::new("192.0.2.1:50000".parse().unwrap(), Ports::Of(Parity::Any), ends)
    }

    fn setup() -> (Allocation, Instant) {
        let client = FiveTuple {
            transport: Transport::Udp,
            local: "192.0.2.1:3478".parse().unwrap(),
            remote: "192.0.2.7:5000".parse().unwrap(),
        };
        let key = stun_types::message::ShortTermCredentials::new("p".to_owned()).make_key();
        let user = User {
            name: "u".into(),
            who: "u".into(),
            only_peers: None,
            expiry_unix: None,
            key,
        };
        let asked = Asked {
            method: turn_types::message::ALLOCATE,
            transaction: 1_u128.into(),
            fingerprint: false,
        };
        let granted = Duration::from_secs(600);
        let allocation = Allocation::new(client, user, asked, granted, Buckets::default());
        (allocation, Instant::now())
    }

    fn channel(number: u16) -> ChannelNumber {
        ChannelNumber::new(number).unwrap()
    }

    fn ip(n: u8) -> IpAddr {
        [203, 0, 113, n].into()
    }

    fn peer(n: u8) -> SocketAddr {
        (ip(n), 4000).into()
    }
}
