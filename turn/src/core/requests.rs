//! Requests: Binding (RFC 8489), Allocate (in `allocate.rs`), Refresh, CreatePermission and ChannelBind (RFC 8656).
//!
//! ```text
//!  Binding ─────────────────────────────────────────────────────────────► success
//!  the others ─► authenticate ─► attributes known? ─► the method's own ─► success, signed
//!                    │ 400 401 420 438  │ 420             │ 400 403 437 440 441 442 443 486 508
//!                    ▼                  ▼                 ▼
//!                 challenge          error, signed     error, signed
//! ```
//!
//! Whoever has no allocation may have made up its address. Answers to such are as short as can be, and limited for each
//! source. Failures to authenticate are limited too; how, and what a client sees of that, stands in `auth.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::CryptoRng;
use stun_types::attribute::{
    Attribute as _, AttributeStaticType as _, AttributeType, MessageIntegrity, MessageIntegritySha256, Nonce,
    Realm, Username,
};
use stun_types::message::{BINDING, IntegrityKey, Message, MessageClass};
use turn_types::attribute::{
    AdditionalAddressFamily, ChannelNumber as ChannelNumberAttribute, Data, EvenPort, Lifetime,
    RequestedAddressFamily, RequestedTransport, ReservationToken, XorPeerAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

use super::allocation::{Allocation, BindError, Full};
use super::answer::{self, Asked, Challenge, Refusal};
use super::auth::{AuthError, Guesser, User};
use super::counters::{AuthFailure, Class, Count, Direction, Drop, Method};
use super::family::Family;
use super::peers::{Denied, canonical};
use super::server::{Command, Server};
use super::shared::NoRoom;
use super::wire::ChannelNumber;
use super::{AllocationId, FiveTuple, Now, RelayId, Source};

/// The lifetime of an allocation for a client that asks for none, or for less (RFC 8656, section 3.2).
pub(super) const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// The longest lifetime that is granted at once.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// An authenticated request.
pub(super) struct Request<'a> {
    pub(super) now: Now,
    pub(super) from: FiveTuple,
    pub(super) asked: Asked,
    pub(super) user: User,
    pub(super) message: &'a Message<'a>,
}

/// What a method makes of a request: an answer now, or later, or a refusal.
pub(super) type Handled = Result<Option<Vec<u8>>, Refusal>;

impl<R: CryptoRng> Server<R> {
    /// Takes a STUN message other than a Send indication.
    pub(super) fn stun_input(&mut self, now: Now, from: FiveTuple, bytes: &[u8]) {
        let Ok(message) = Message::from_bytes(bytes) else {
            self.drop_request(Drop::Malformed);
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
            None => self.drop_request(Drop::Malformed),
        }
    }

    fn binding(&mut self, now: Now, from: FiveTuple, message: &Message<'_>) {
        if !self.may_answer_unproven(now, &from) {
            return self.drop_request(Drop::AnswerLimit);
        }
        let asked = Asked::of(message);
        match known_attributes(message) {
            Ok(()) => self.answer_success(from, Method::Binding, answer::binding(asked, from.remote)),
            Err(refusal) => self.answer_refusal(now, from, asked, Method::Binding, &refusal, None),
        }
    }

    fn authenticated(&mut self, now: Now, from: FiveTuple, method: Method, message: &Message<'_>) {
        let asked = Asked::of(message);
        let user = match self.user_of(now, &from, message) {
            Ok(user) => user,
            Err(error) => {
                let refusal = match error {
                    AuthError::TooOften => return self.drop_request(Drop::AuthLimit),
                    AuthError::NoCredentials => Refusal::Unauthorized,
                    AuthError::UnknownIntegrity => {
                        Refusal::UnknownAttributes(vec![MessageIntegritySha256::TYPE])
                    }
                    AuthError::Failed(failure) => self.auth_refusal(failure),
                };
                if !self.may_answer_unproven(now, &from) {
                    return self.drop_request(Drop::AnswerLimit);
                }
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

    /// Whether one more answer may go to `to`, which has not shown to be there.
    fn may_answer_unproven(&mut self, now: Now, to: &FiveTuple) -> bool {
        self.has_allocation(to)
            || self
                .unproven_answers
                .take(now.instant, Source::of(to.remote.ip()))
    }

    /// Who sent a request. A client that has an allocation is never kept from refreshing it, but from guessing at other
    /// users' passwords.
    fn user_of(&mut self, now: Now, from: &FiveTuple, message: &Message<'_>) -> Result<User, AuthError> {
        let name = self.auth.claimed(now, from.remote, message)?;
        let guesser = Guesser::new(Source::of(from.remote.ip()), &name);
        let existing = self.table.of_client(from);
        let is_its_own = existing.is_some_and(|(_, allocation)| *allocation.user.name == *name);
        if !is_its_own && !self.auth_failures.allows(now.instant, guesser) {
            return Err(AuthError::TooOften);
        }
        self.auth.user(&name, message).map_err(|failure| {
            self.auth_failures.take(now.instant, guesser);
            AuthError::Failed(failure)
        })
    }

    fn drop_request(&mut self, reason: Drop) {
        self.counters.dropped(Direction::ToPeer, reason);
    }

    pub(super) fn auth_refusal(&mut self, failure: AuthFailure) -> Refusal {
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

    /// RFC 8656, section 8.2. REQUESTED-ADDRESS-FAMILY names one of two relays.
    fn refresh(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Refusal> {
        let id = self.own_allocation(request)?;
        let asked = family_asked(request.message, Refusal::PeerAddressFamilyMismatch)?;
        let allocation = self.table.get(id).ok_or(Refusal::AllocationMismatch)?;
        let relays: Vec<_> = allocation
            .relays
            .present()
            .map(|(family, _)| family)
            .filter(|family| asked.is_none_or(|asked| asked == *family))
            .map(|family| RelayId::new(id, family))
            .collect();
        if relays.is_empty() {
            return Err(Refusal::PeerAddressFamilyMismatch);
        }
        let lifetime = match lifetime_asked(request.message)? {
            Some(Duration::ZERO) => {
                relays.iter().for_each(|relay| self.close_relay(*relay));
                Duration::ZERO
            }
            asked => {
                let lifetime = granted(asked);
                let ends = request.now.instant + lifetime;
                relays.iter().for_each(|relay| self.table.set_end(*relay, ends));
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
        let id = self.own_allocation(request)?;
        let peers = peers_of(request.message)?;
        for peer in &peers {
            self.check_peer(id, &request.user, peer.ip())?;
        }
        let ips: Vec<_> = peers.iter().map(SocketAddr::ip).collect();
        let allocation = self.table.get_mut(id).ok_or(Refusal::AllocationMismatch)?;
        // What the allocation refuses must not count.
        allocation.may_permit(request.now.instant, &ips)?;
        self.shared
            .permit(request.now.instant, &allocation.holder(), &ips)
            .map_err(|_| Refusal::InsufficientCapacity)?;
        allocation.permit(request.now.instant, &ips)?;
        Ok(answer::success(request.asked, Some(&request.user.key), &[]))
    }

    /// RFC 8656, section 12.2.
    fn channel_bind(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Refusal> {
        let id = self.own_allocation(request)?;
        let number = request.message.attribute::<ChannelNumberAttribute>();
        let number = number
            .ok()
            .and_then(|number| ChannelNumber::new(number.channel()));
        let number = number.ok_or(Refusal::BadRequest)?;
        let peer = *peers_of(request.message)?.first().ok_or(Refusal::BadRequest)?;
        self.check_peer(id, &request.user, peer.ip())?;
        let allocation = self.table.get_mut(id).ok_or(Refusal::AllocationMismatch)?;
        allocation.may_bind_channel(request.now.instant, number, peer)?;
        // 486 is about allocations only (RFC 8656, section 19).
        self.shared
            .permit(request.now.instant, &allocation.holder(), &[peer.ip()])
            .map_err(|_| Refusal::InsufficientCapacity)?;
        allocation.bind_channel(request.now.instant, number, peer)?;
        Ok(answer::success(request.asked, Some(&request.user.key), &[]))
    }

    /// The allocation that a request is about, if it is its user's and all its sockets are there.
    fn own_allocation(&mut self, request: &Request<'_>) -> Result<AllocationId, Refusal> {
        let found = self.table.of_client(&request.from);
        let (id, allocation) = found.ok_or(Refusal::AllocationMismatch)?;
        if allocation.user.name != request.user.name {
            return Err(self.auth_refusal(AuthFailure::WrongUser));
        }
        if allocation.is_opening() {
            return Err(Refusal::AllocationMismatch);
        }
        Ok(id)
    }

    /// A mapped address is an IPv4 one in disguise, and no relay of ours sends IPv4 from an IPv6 socket.
    fn check_peer(&self, id: AllocationId, user: &User, peer: IpAddr) -> Result<(), Refusal> {
        let allocation = self.table.get(id).ok_or(Refusal::AllocationMismatch)?;
        let mapped = matches!(peer, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        if allocation.relays[Family::of(peer)].is_none() || mapped {
            return Err(Refusal::PeerAddressFamilyMismatch);
        }
        let is_it = |only: &IpAddr| canonical(*only) == canonical(peer);
        if user
            .only_peers
            .as_ref()
            .is_some_and(|only| !only.iter().any(is_it))
        {
            return Err(Denied::OtherPeer.into());
        }
        Ok(self.policy.check(peer)?)
    }

    /// Answers with `bytes`, a success.
    pub(super) fn answer_success(&mut self, to: FiveTuple, method: Method, bytes: Vec<u8>) {
        self.counters.add(Count::Requests(method, Class::Success), 1);
        self.commands.push_back(Command::ToClient { to, bytes });
    }

    /// Answers the Allocate request of what could not be opened.
    pub(super) fn answer_full(&mut self, allocation: &Allocation) {
        let refusal = Refusal::InsufficientCapacity;
        self.counters
            .add(Count::Requests(Method::Allocate, refusal.class()), 1);
        let bytes = answer::refused(allocation.asked, &refusal, Some(&allocation.user.key), None);
        let to = allocation.client;
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

/// RFC 8489, section 6.3.1: what must be understood and isn't.
fn known_attributes(message: &Message<'_>) -> Result<(), Refusal> {
    let signed_twice = message.has_attribute(MessageIntegrity::TYPE);
    let is_known = |kind: &AttributeType| {
        UNDERSTOOD.contains(kind) || (*kind == MessageIntegritySha256::TYPE && signed_twice)
    };
    let unknown: Vec<AttributeType> = message
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && !is_known(kind))
        .take(MAX_UNKNOWN_NAMED)
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(Refusal::UnknownAttributes(unknown))
    }
}

/// REQUESTED-ADDRESS-FAMILY. One that can't be read, or is none that we know, is refused with `otherwise`.
pub(super) fn family_asked(message: &Message<'_>, otherwise: Refusal) -> Result<Option<Family>, Refusal> {
    if !message.has_attribute(RequestedAddressFamily::TYPE) {
        return Ok(None);
    }
    let asked = message.attribute::<RequestedAddressFamily>();
    let asked = asked.map_err(|_| otherwise)?;
    Ok(Some(asked.family().into()))
}

pub(super) fn lifetime_asked(message: &Message<'_>) -> Result<Option<Duration>, Refusal> {
    if !message.has_attribute(Lifetime::TYPE) {
        return Ok(None);
    }
    let lifetime = message.attribute::<Lifetime>().map_err(|_| Refusal::BadRequest)?;
    Ok(Some(Duration::from_secs(lifetime.seconds().into())))
}

pub(super) fn granted(asked: Option<Duration>) -> Duration {
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
            NoRoom::Quota => Self::QuotaReached,
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

/// What must be understood, and is. DONT-FRAGMENT is not, nor is MESSAGE-INTEGRITY-SHA256, which is passed over where
/// there is MESSAGE-INTEGRITY too.
const UNDERSTOOD: [AttributeType; 13] = [
    Username::TYPE,
    MessageIntegrity::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    ChannelNumberAttribute::TYPE,
    Lifetime::TYPE,
    XorPeerAddress::TYPE,
    Data::TYPE,
    AdditionalAddressFamily::TYPE,
    EvenPort::TYPE,
    ReservationToken::TYPE,
    RequestedAddressFamily::TYPE,
    RequestedTransport::TYPE,
];
/// An answer names no more unknown attributes than this, so that it stays short.
const MAX_UNKNOWN_NAMED: usize = 8;
