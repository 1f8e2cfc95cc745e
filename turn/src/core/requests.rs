//! Requests: Binding (RFC 8489), Allocate, Refresh, CreatePermission and ChannelBind (RFC 8656).
//!
//! ```text
//!  Binding ─────────────────────────────────────────────────────────────► success
//!  the others ─► authenticate ─► attributes known? ─► the method's own ─► success, signed
//!                    │ 400 401 438      │ 420             │ 400 403 437 440 441 442 443 486 508
//!                    ▼                  ▼                 ▼
//!                 challenge          error, signed     error, signed
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::CryptoRng;
use stun_types::AddressFamily;
use stun_types::attribute::{
    Attribute as _, AttributeStaticType as _, AttributeType, MessageIntegrity, MessageIntegritySha256, Nonce,
    Realm, Username,
};
use stun_types::message::{BINDING, IntegrityKey, Message, MessageClass};
use turn_types::attribute::{
    ChannelNumber as ChannelNumberAttribute, Data, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, XorPeerAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

use super::allocation::{Allocation, BindError, Full, State};
use super::answer::{self, Asked, Challenge, Refusal};
use super::auth::{AuthError, User};
use super::counters::{AuthFailure, Class, Count, Drop, Method};
use super::peers::{Denied, canonical};
use super::ports::Parity;
use super::server::{Command, Server, allocated};
use super::table::NoRoom;
use super::wire::ChannelNumber;
use super::{FiveTuple, Now, RelayId};

/// The lifetime of an allocation for a client that asks for none, or for less (RFC 8656, section 3.2).
pub(super) const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// The longest lifetime that is granted at once.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// An authenticated request.
struct Request<'a> {
    now: Now,
    from: FiveTuple,
    asked: Asked,
    user: User,
    message: &'a Message<'a>,
}

/// What a method makes of a request: an answer now, or later, or a refusal.
type Handled = Result<Option<Vec<u8>>, Refusal>;

impl<R: CryptoRng> Server<R> {
    /// Takes a STUN message other than a Send indication.
    pub(super) fn stun_input(&mut self, now: Now, from: FiveTuple, bytes: &[u8]) {
        let Ok(message) = Message::from_bytes(bytes) else {
            self.counters.dropped(Drop::Malformed);
            return;
        };
        if message.class() != MessageClass::Request {
            // A Binding indication keeps a NAT's mapping alive and wants no answer. Responses answer nothing of ours.
            return;
        }
        match method_of(&message) {
            Some(Method::Binding) => self.binding(now, from, &message),
            Some(method) => self.authenticated(now, from, method, &message),
            // RFC 8489, section 6.3: unknown methods are discarded silently.
            None => self.counters.dropped(Drop::Malformed),
        }
    }

    fn binding(&mut self, now: Now, from: FiveTuple, message: &Message<'_>) {
        let asked = Asked::of(message);
        match known_attributes(message) {
            Ok(()) => self.answer_success(from, Method::Binding, answer::binding(asked, from.remote)),
            Err(refusal) => self.answer_refusal(now, from, asked, Method::Binding, &refusal, None),
        }
    }

    fn authenticated(&mut self, now: Now, from: FiveTuple, method: Method, message: &Message<'_>) {
        let asked = Asked::of(message);
        let user = match self.auth.authenticate(now, from.remote, message) {
            Ok(user) => user,
            Err(error) => {
                let refusal = self.auth_refusal(error);
                return self.answer_refusal(now, from, asked, method, &refusal, None);
            }
        };
        let key = user.key.clone();
        let request = Request {
            now,
            from,
            asked,
            user,
            message,
        };
        let handled = known_attributes(message).and_then(|()| self.handle(method, request));
        match handled {
            Ok(Some(bytes)) => self.answer_success(from, method, bytes),
            Ok(None) => {}
            Err(refusal) => self.answer_refusal(now, from, asked, method, &refusal, Some(&key)),
        }
    }

    fn handle(&mut self, method: Method, request: Request<'_>) -> Handled {
        match method {
            Method::Binding => Err(Refusal::BadRequest),
            Method::Allocate => self.allocate(request),
            Method::Refresh => self.refresh(&request).map(Some),
            Method::CreatePermission => self.create_permission(&request).map(Some),
            Method::ChannelBind => self.channel_bind(&request).map(Some),
        }
    }

    fn auth_refusal(&mut self, error: AuthError) -> Refusal {
        let AuthError::Failed(failure) = error else {
            return Refusal::Unauthorized;
        };
        self.counters.add(Count::AuthFailures(failure), 1);
        match failure {
            AuthFailure::Incomplete => Refusal::BadRequest,
            AuthFailure::StaleNonce => Refusal::StaleNonce,
            AuthFailure::WrongUser => Refusal::WrongCredentials,
            AuthFailure::UnknownUser | AuthFailure::Expired | AuthFailure::WrongPassword => {
                Refusal::Unauthorized
            }
        }
    }

    /// RFC 8656, section 7.2.
    fn allocate(&mut self, request: Request<'_>) -> Handled {
        if let Some((_, existing)) = self.table.of_client(&request.from) {
            return repeated(existing, &request);
        }
        if request.user.is_expired(request.now) {
            return Err(self.auth_refusal(AuthError::Failed(AuthFailure::Expired)));
        }
        check_transport(request.message)?;
        self.check_relay_family(request.message, Refusal::AddressFamilyNotSupported)?;
        if self.draining {
            return Err(Refusal::InsufficientCapacity);
        }
        self.table.room_for(&request.user.who)?;
        let lifetime = granted(lifetime_asked(request.message)?);
        let parity = parity_asked(request.message)?;
        // From here on nothing fails but for want of a port, so none is taken in vain.
        let port = self.ports.take(parity, &mut self.rng);
        let port = port.ok_or(Refusal::InsufficientCapacity)?;
        let bind = SocketAddr::new(self.relay_ip, port);
        let client = request.from;
        let mut allocation = Allocation::new(client, request.user, request.asked, bind, lifetime);
        allocation.parity = parity;
        let relay = self.table.insert(allocation, request.now.instant + lifetime);
        self.commands
            .push_back(Command::OpenRelay { relay, bind, client });
        Ok(None)
    }

    /// RFC 8656, section 8.2.
    fn refresh(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Refusal> {
        let relay = self.own_relay(request)?;
        self.check_relay_family(request.message, Refusal::PeerAddressFamilyMismatch)?;
        let lifetime = match lifetime_asked(request.message)? {
            Some(Duration::ZERO) => {
                self.close(relay);
                Duration::ZERO
            }
            asked => {
                let lifetime = granted(asked);
                self.table.set_end(relay, request.now.instant + lifetime);
                lifetime
            }
        };
        let lifetime = Lifetime::new(lifetime.as_secs() as u32);
        Ok(answer::success(
            request.asked,
            Some(&request.user.key),
            &[&lifetime],
        ))
    }

    /// RFC 8656, section 10.2.
    fn create_permission(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Refusal> {
        let relay = self.own_relay(request)?;
        let peers = peers_of(request.message)?;
        for peer in &peers {
            self.check_peer(&request.user, peer.ip())?;
        }
        let ips: Vec<_> = peers.iter().map(SocketAddr::ip).collect();
        let allocation = self.table.get_mut(relay).ok_or(Refusal::AllocationMismatch)?;
        allocation.permit(request.now.instant, &ips)?;
        Ok(answer::success(request.asked, Some(&request.user.key), &[]))
    }

    /// RFC 8656, section 12.2.
    fn channel_bind(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Refusal> {
        let relay = self.own_relay(request)?;
        let number = request.message.attribute::<ChannelNumberAttribute>();
        let number = number
            .ok()
            .and_then(|number| ChannelNumber::new(number.channel()));
        let number = number.ok_or(Refusal::BadRequest)?;
        let peer = *peers_of(request.message)?.first().ok_or(Refusal::BadRequest)?;
        self.check_peer(&request.user, peer.ip())?;
        let allocation = self.table.get_mut(relay).ok_or(Refusal::AllocationMismatch)?;
        allocation.bind_channel(request.now.instant, number, peer)?;
        Ok(answer::success(request.asked, Some(&request.user.key), &[]))
    }

    /// The open relay that a request is about, if it is its user's.
    fn own_relay(&mut self, request: &Request<'_>) -> Result<RelayId, Refusal> {
        let found = self.table.of_client(&request.from);
        let (relay, allocation) = found.ok_or(Refusal::AllocationMismatch)?;
        if allocation.user.name != request.user.name {
            return Err(self.auth_refusal(AuthError::Failed(AuthFailure::WrongUser)));
        }
        match allocation.state {
            State::Open { .. } => Ok(relay),
            State::Opening { .. } => Err(Refusal::AllocationMismatch),
        }
    }

    fn check_peer(&self, user: &User, peer: IpAddr) -> Result<(), Refusal> {
        if peer.is_ipv4() != self.relay_ip.is_ipv4() {
            return Err(Refusal::PeerAddressFamilyMismatch);
        }
        if user
            .only_peer
            .is_some_and(|only| canonical(only) != canonical(peer))
        {
            return Err(Denied::OtherPeer.into());
        }
        Ok(self.policy.check(peer)?)
    }

    /// REQUESTED-ADDRESS-FAMILY, if it is there, must be our relays' (RFC 8656, sections 7.2 and 8.2).
    fn check_relay_family(&self, message: &Message<'_>, otherwise: Refusal) -> Result<(), Refusal> {
        if !message.has_attribute(RequestedAddressFamily::TYPE) {
            return Ok(());
        }
        let ours = AddressFamily::from(&self.relay_ip);
        match message.attribute::<RequestedAddressFamily>() {
            Ok(asked) if asked.family() == ours => Ok(()),
            _ => Err(otherwise),
        }
    }

    /// Answers with `bytes`, a success.
    pub(super) fn answer_success(&mut self, to: FiveTuple, method: Method, bytes: Vec<u8>) {
        self.counters.add(Count::Requests(method, Class::Success), 1);
        self.commands.push_back(Command::ToClient { to, bytes });
    }

    /// Answers an Allocate request whose relay could not be opened.
    pub(super) fn answer_full(&mut self, to: FiveTuple, asked: Asked, key: &IntegrityKey) {
        let refusal = Refusal::InsufficientCapacity;
        self.counters
            .add(Count::Requests(Method::Allocate, refusal.class()), 1);
        let bytes = answer::refused(asked, &refusal, Some(key), None);
        self.commands.push_back(Command::ToClient { to, bytes });
    }

    fn answer_refusal(
        &mut self,
        now: Now,
        to: FiveTuple,
        asked: Asked,
        method: Method,
        refusal: &Refusal,
        key: Option<&IntegrityKey>,
    ) {
        self.counters.add(Count::Requests(method, refusal.class()), 1);
        let bytes = if refusal.class() == Class::Challenge {
            let nonce = self.auth.nonce(now, to.remote);
            let challenge = Challenge {
                realm: self.auth.realm(),
                nonce: &nonce,
            };
            answer::refused(asked, refusal, None, Some(challenge))
        } else {
            answer::refused(asked, refusal, key, None)
        };
        self.commands.push_back(Command::ToClient { to, bytes });
    }
}

fn method_of(message: &Message<'_>) -> Option<Method> {
    match message.method() {
        BINDING => Some(Method::Binding),
        ALLOCATE => Some(Method::Allocate),
        REFRESH => Some(Method::Refresh),
        CREATE_PERMISSION => Some(Method::CreatePermission),
        CHANNEL_BIND => Some(Method::ChannelBind),
        _ => None,
    }
}

/// A second Allocate request of one client: the same success if it was sent again, else 437.
fn repeated(existing: &Allocation, request: &Request<'_>) -> Handled {
    let same =
        existing.asked.transaction == request.asked.transaction && existing.user.name == request.user.name;
    match existing.state {
        State::Open { relayed } if same => Ok(Some(allocated(existing, relayed))),
        // The answer to the first is on its way.
        State::Opening { .. } if same => Ok(None),
        _ => Err(Refusal::AllocationMismatch),
    }
}

/// RFC 8489, section 6.3.1: what must be understood and isn't.
fn known_attributes(message: &Message<'_>) -> Result<(), Refusal> {
    let unknown: Vec<AttributeType> = message
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && !UNDERSTOOD.contains(kind))
        .take(MAX_UNKNOWN_NAMED)
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(Refusal::UnknownAttributes(unknown))
    }
}

fn check_transport(message: &Message<'_>) -> Result<(), Refusal> {
    let transport = message.attribute::<RequestedTransport>();
    match transport.map_err(|_| Refusal::BadRequest)?.protocol() {
        PROTOCOL_UDP => Ok(()),
        _ => Err(Refusal::UnsupportedTransport),
    }
}

/// EVEN-PORT: an even port is easy; its neighbour is not reserved for anybody (RTP and RTCP share a port today).
fn parity_asked(message: &Message<'_>) -> Result<Parity, Refusal> {
    if !message.has_attribute(EvenPort::TYPE) {
        return Ok(Parity::Any);
    }
    match message.attribute::<EvenPort>() {
        Ok(even) if even.requested() => Err(Refusal::InsufficientCapacity),
        Ok(_) => Ok(Parity::Even),
        Err(_) => Err(Refusal::BadRequest),
    }
}

fn lifetime_asked(message: &Message<'_>) -> Result<Option<Duration>, Refusal> {
    if !message.has_attribute(Lifetime::TYPE) {
        return Ok(None);
    }
    let lifetime = message.attribute::<Lifetime>().map_err(|_| Refusal::BadRequest)?;
    Ok(Some(Duration::from_secs(lifetime.seconds().into())))
}

fn granted(asked: Option<Duration>) -> Duration {
    asked
        .unwrap_or(DEFAULT_LIFETIME)
        .clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

/// Every XOR-PEER-ADDRESS, at least one.
fn peers_of(message: &Message<'_>) -> Result<Vec<SocketAddr>, Refusal> {
    let raw = message
        .iter_attributes()
        .filter(|(_, raw)| raw.get_type() == XorPeerAddress::TYPE);
    let transaction = message.transaction_id();
    let peers: Result<Vec<_>, _> = raw
        .map(|(_, raw)| XorPeerAddress::try_from(&raw).map(|peer| peer.addr(transaction)))
        .collect();
    match peers {
        Ok(peers) if !peers.is_empty() => Ok(peers),
        _ => Err(Refusal::BadRequest),
    }
}

impl From<NoRoom> for Refusal {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Server => Self::InsufficientCapacity,
            NoRoom::User => Self::QuotaReached,
        }
    }
}

impl From<Denied> for Refusal {
    fn from(_: Denied) -> Self {
        Self::Forbidden
    }
}

impl From<Full> for Refusal {
    fn from(Full: Full) -> Self {
        Self::InsufficientCapacity
    }
}

impl From<BindError> for Refusal {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Taken => Self::BadRequest,
            BindError::Full => Self::InsufficientCapacity,
        }
    }
}

/// What must be understood, and is. RESERVATION-TOKEN and DONT-FRAGMENT are not.
const UNDERSTOOD: [AttributeType; 12] = [
    Username::TYPE,
    MessageIntegrity::TYPE,
    MessageIntegritySha256::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    ChannelNumberAttribute::TYPE,
    Lifetime::TYPE,
    XorPeerAddress::TYPE,
    Data::TYPE,
    EvenPort::TYPE,
    RequestedAddressFamily::TYPE,
    RequestedTransport::TYPE,
];
/// UDP's number in REQUESTED-TRANSPORT (RFC 8656, section 18.7).
const PROTOCOL_UDP: u8 = 17;
/// An answer names no more unknown attributes than this, so that it stays short.
const MAX_UNKNOWN_NAMED: usize = 8;
