//! What is counted. Plain numbers, one writer; the shell carries them over to the metrics.

/// Which side a packet came in from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A TURN client.
    Client,
    /// A peer, at a relay.
    Peer,
}

/// Which way a payload was relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a client to a peer.
    ToPeer,
    /// From a peer to a client.
    ToClient,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Neither STUN nor ChannelData, or broken.
    Malformed,
    /// The client has no allocation.
    NoAllocation,
    /// No permission for the peer.
    NoPermission,
    /// The channel is not bound.
    NoChannel,
    /// The peer is of another address family than the relay.
    WrongFamily,
    /// Too long for what goes around it.
    TooLong,
    /// The user, or the source, has used up its bytes per second.
    OverRate,
    /// A request that was not authenticated, from a source that got its share of answers to such.
    AnswerLimit,
    /// A request from a source that failed to authenticate too often.
    AuthLimit,
    /// The socket's send buffer was full.
    SendBufferFull,
    /// The system refused to send it.
    SendFailed,
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Binding (RFC 8489).
    Binding,
    /// Allocate.
    Allocate,
    /// Refresh.
    Refresh,
    /// CreatePermission.
    CreatePermission,
    /// ChannelBind.
    ChannelBind,
}

/// What kind of answer a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Success.
    Success,
    /// 401 or 438: authenticate (again). Every client's first Allocate gets one.
    Challenge,
    /// 486 or 508: a quota or the server is full.
    Full,
    /// Another error.
    Refused,
}

/// Why a request that carried credentials failed to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// The nonce is over, or of another address.
    StaleNonce,
    /// No such user, or no user name of ours.
    UnknownUser,
    /// The user name's time is over.
    Expired,
    /// The message integrity is of another password.
    WrongPassword,
    /// Another user than the one the allocation is of.
    WrongUser,
    /// A part of the credentials is missing.
    Incomplete,
}

/// Why a stream's connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client closed it, or its network broke it.
    Client,
    /// It had no allocation for too long.
    Idle,
    /// The client didn't take what was sent to it.
    Slow,
    /// What came was not of ours.
    Malformed,
    /// TLS failed.
    Tls,
    /// There were too many already, of its source or in all; or too many newer handshakes; or no room to keep its message.
    Limit,
}

/// One counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Packets received.
    ReceivedPackets(Side),
    /// Bytes received.
    ReceivedBytes(Side),
    /// Packets relayed.
    RelayedPackets(Direction),
    /// Bytes of payload relayed.
    RelayedBytes(Direction),
    /// Packets dropped on their way.
    Dropped(Direction, Drop),
    /// Requests answered.
    Requests(Method, Class),
    /// Requests that failed to authenticate.
    AuthFailures(AuthFailure),
    /// Connections that ended.
    ConnectionsEnded(End),
}

impl Count {
    /// How many counters there are.
    pub const TOTAL: usize = 8 + 2 * DROPS + 20 + 6 + 6;

    /// The counter's place.
    pub const fn index(self) -> usize {
        match self {
            Self::ReceivedPackets(side) => side as usize,
            Self::ReceivedBytes(side) => 2 + side as usize,
            Self::RelayedPackets(direction) => 4 + direction as usize,
            Self::RelayedBytes(direction) => 6 + direction as usize,
            Self::Dropped(direction, reason) => 8 + direction as usize * DROPS + reason as usize,
            Self::Requests(method, class) => 8 + 2 * DROPS + method as usize * 4 + class as usize,
            Self::AuthFailures(reason) => 28 + 2 * DROPS + reason as usize,
            Self::ConnectionsEnded(why) => 34 + 2 * DROPS + why as usize,
        }
    }

    /// Every counter.
    pub fn all() -> impl Iterator<Item = Self> {
        let sides = [Side::Client, Side::Peer].into_iter();
        let directions = [Direction::ToPeer, Direction::ToClient].into_iter();
        let drops = directions.clone().flat_map(|direction| {
            Drop::ALL
                .into_iter()
                .map(move |reason| Self::Dropped(direction, reason))
        });
        let requests = Method::ALL.into_iter().flat_map(|method| {
            Class::ALL
                .into_iter()
                .map(move |class| Self::Requests(method, class))
        });
        (sides.clone().map(Self::ReceivedPackets))
            .chain(sides.map(Self::ReceivedBytes))
            .chain(directions.clone().map(Self::RelayedPackets))
            .chain(directions.map(Self::RelayedBytes))
            .chain(drops)
            .chain(requests)
            .chain(AuthFailure::ALL.into_iter().map(Self::AuthFailures))
            .chain(End::ALL.into_iter().map(Self::ConnectionsEnded))
    }
}

/// All counters, and how many allocations there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters([u64; Count::TOTAL]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Count::TOTAL])
    }
}

impl Counters {
    /// Adds to a counter.
    #[inline]
    pub fn add(&mut self, count: Count, amount: u64) {
        self.0[count.index()] += amount;
    }

    /// A counter's value.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count.index()]
    }

    /// Adds a received packet.
    #[inline]
    pub(super) fn received(&mut self, side: Side, bytes: usize) {
        self.received_many(side, 1, bytes);
    }

    /// Adds so many received packets, with so many bytes together.
    #[inline]
    pub fn received_many(&mut self, side: Side, packets: usize, bytes: usize) {
        self.add(Count::ReceivedPackets(side), packets as u64);
        self.add(Count::ReceivedBytes(side), bytes as u64);
    }

    /// Adds a relayed packet.
    #[inline]
    pub fn relayed(&mut self, direction: Direction, bytes: usize) {
        self.relayed_many(direction, 1, bytes);
    }

    /// Adds so many relayed packets, with so many bytes together.
    #[inline]
    pub fn relayed_many(&mut self, direction: Direction, packets: usize, bytes: usize) {
        self.add(Count::RelayedPackets(direction), packets as u64);
        self.add(Count::RelayedBytes(direction), bytes as u64);
    }

    /// Adds a dropped packet.
    #[inline]
    pub fn dropped(&mut self, direction: Direction, reason: Drop) {
        self.add(Count::Dropped(direction, reason), 1);
    }
}

const DROPS: usize = Drop::ALL.len();

macro_rules! labels {
    ($type:ident { $($variant:ident = $label:literal),* $(,)? }) => {
        impl $type {
            /// Every one there is.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$variant),*];

            /// The metric's label.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label),*
                }
            }
        }
    };
}

labels!(Side { Client = "client", Peer = "peer" });
labels!(Direction { ToPeer = "to_peer", ToClient = "to_client" });
labels!(Drop {
    Malformed = "malformed",
    NoAllocation = "no_allocation",
    NoPermission = "no_permission",
    NoChannel = "no_channel",
    WrongFamily = "wrong_family",
    TooLong = "too_long",
    OverRate = "over_rate",
    AnswerLimit = "answer_limit",
    AuthLimit = "auth_limit",
    SendBufferFull = "send_buffer_full",
    SendFailed = "send_failed",
});
labels!(Method {
    Binding = "binding",
    Allocate = "allocate",
    Refresh = "refresh",
    CreatePermission = "create_permission",
    ChannelBind = "channel_bind",
});
labels!(Class {
    Success = "success",
    Challenge = "challenge",
    Full = "full",
    Refused = "refused",
});
labels!(AuthFailure {
    StaleNonce = "stale_nonce",
    UnknownUser = "unknown_user",
    Expired = "expired",
    WrongPassword = "wrong_password",
    WrongUser = "wrong_user",
    Incomplete = "incomplete",
});
labels!(End {
    Client = "client",
    Idle = "idle",
    Slow = "slow",
    Malformed = "malformed",
    Tls = "tls",
    Limit = "limit",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_place_of_its_own() {
        let indices: Vec<_> = Count::all().map(Count::index).collect();
        assert_eq!(indices, (0..Count::TOTAL).collect::<Vec<_>>());
    }
}
