//! Allocate (RFC 8656, section 7.2).
//!
//! ```text
//!  wanted ─► draining? ─► a place in the quotas ─► ports ─► OpenRelay, one or two ─► the answer, when all have opened
//!    │400 440 442  │300 508        │486 508         │440 508
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::CryptoRng;
use stun_types::attribute::AttributeStaticType as _;
use stun_types::message::Message;
use turn_types::attribute::{
    AdditionalAddressFamily, EvenPort, RequestedAddressFamily, RequestedTransport, ReservationToken,
};

use super::RelayId;
use super::allocation::{Allocation, Ports, Relay};
use super::answer::Refusal;
use super::counters::AuthFailure;
use super::family::Family;
use super::ports::Parity;
use super::requests::{Handled, Request, family_asked, granted, lifetime_asked};
use super::server::{Command, Server, allocated};
use super::shared::Holder;

/// What an Allocate request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// A relay of that family.
    One(Family, Parity),
    /// One of each: ADDITIONAL-ADDRESS-FAMILY.
    Both(Parity),
    /// The port that was reserved under this token.
    Reserved(u64),
}

impl<R: CryptoRng> Server<R> {
    pub(super) fn allocate(&mut self, request: Request<'_>) -> Handled {
        if let Some((_, existing)) = self.table.of_client(&request.from) {
            return repeated(existing, &request);
        }
        if request.user.is_expired(request.now) {
            return Err(self.auth_refusal(AuthFailure::Expired));
        }
        let wanted = wanted(request.message)?;
        let lifetime = granted(lifetime_asked(request.message)?);
        if self.draining {
            return Err(self.go_elsewhere(&request));
        }
        let holder = Holder::of(&request.user, &request.from);
        let mut allocation = match wanted {
            Wanted::Reserved(token) => self.redeemed(request, lifetime, token, &holder)?,
            Wanted::One(family, parity) => self.with_ports(request, lifetime, &holder, &[family], parity)?,
            Wanted::Both(parity) => self.with_ports(request, lifetime, &holder, &Family::ALL, parity)?,
        };
        self.lacking(&mut allocation, wanted);
        let client = allocation.client;
        let opening: Vec<_> = allocation
            .relays
            .present()
            .map(|(family, relay)| (family, relay.bind))
            .collect();
        let id = self.table.insert(allocation);
        for (family, bind) in opening {
            let relay = RelayId::new(id, family);
            self.commands
                .push_back(Command::OpenRelay { relay, bind, client });
        }
        Ok(None)
    }

    /// What a server that is about to end says (RFC 8489, section 10).
    fn go_elsewhere(&self, request: &Request<'_>) -> Refusal {
        let family = Family::of(request.from.remote.ip());
        self.alternates[family].map_or(Refusal::InsufficientCapacity, Refusal::TryAlternate)
    }

    fn redeemed(
        &self,
        request: Request<'_>,
        lifetime: Duration,
        token: u64,
        holder: &Holder,
    ) -> Result<Allocation, Refusal> {
        let now = request.now.instant;
        let redeemed = self.shared.redeem(now, token, holder);
        let (family, port, buckets) = redeemed.ok_or(Refusal::InsufficientCapacity)?;
        let Some(ip) = self.relay_ips[family] else {
            // Ports are reserved in families that are served, so this is never reached; but what was taken goes back.
            self.shared.give_back(family, port);
            self.shared.release(holder);
            return Err(Refusal::InsufficientCapacity);
        };
        let mut allocation = Allocation::new(request.from, request.user, request.asked, lifetime, buckets);
        let bind = SocketAddr::new(ip, port);
        allocation.relays[family] = Some(Relay::new(bind, Ports::Reserved, now + lifetime));
        Ok(allocation)
    }

    /// With a port in each of `families` that is served and has one; at least one of them.
    fn with_ports(
        &mut self,
        request: Request<'_>,
        lifetime: Duration,
        holder: &Holder,
        families: &[Family],
        parity: Parity,
    ) -> Result<Allocation, Refusal> {
        let served: Vec<(Family, IpAddr)> = families
            .iter()
            .filter_map(|family| Some((*family, self.relay_ips[*family]?)))
            .collect();
        if served.is_empty() {
            return Err(Refusal::AddressFamilyNotSupported);
        }
        let now = request.now.instant;
        let buckets = self.shared.admit(now, holder)?;
        let mut allocation = Allocation::new(request.from, request.user, request.asked, lifetime, buckets);
        let mut refusal = Refusal::InsufficientCapacity;
        for (family, ip) in served {
            match self.port(now, family, parity, holder) {
                Ok((port, token)) => {
                    let bind = SocketAddr::new(ip, port);
                    allocation.token = token;
                    allocation.relays[family] = Some(Relay::new(bind, Ports::Of(parity), now + lifetime));
                }
                Err(why) => refusal = why,
            }
        }
        if allocation.relays.present().next().is_none() {
            self.shared.release(holder);
            return Err(refusal);
        }
        Ok(allocation)
    }

    /// A port, and the token of the one reserved beside it.
    fn port(
        &mut self,
        now: Instant,
        family: Family,
        parity: Parity,
        holder: &Holder,
    ) -> Result<(u16, Option<u64>), Refusal> {
        if parity == Parity::EvenPair {
            let (port, token) = self.shared.take_pair(now, family, holder, &mut self.rng)?;
            return Ok((port, Some(token)));
        }
        let port = self.shared.take_port(now, family, parity, &mut self.rng);
        Ok((port.ok_or(Refusal::InsufficientCapacity)?, None))
    }

    /// Notes which of two families there is nothing of, and why: ADDRESS-ERROR-CODE.
    fn lacking(&self, allocation: &mut Allocation, wanted: Wanted) {
        let Wanted::Both(_) = wanted else { return };
        let lacks = Family::ALL
            .into_iter()
            .find(|family| allocation.relays[*family].is_none());
        allocation.lacks = lacks.map(|family| match self.relay_ips[family] {
            None => (family, Refusal::AddressFamilyNotSupported),
            Some(_) => (family, Refusal::InsufficientCapacity),
        });
    }
}

/// A second Allocate request of one client: the same success if it was sent again, else 437.
fn repeated(existing: &Allocation, request: &Request<'_>) -> Handled {
    let same =
        existing.asked.transaction == request.asked.transaction && existing.user.name == request.user.name;
    match (same, existing.is_opening()) {
        (true, false) => Ok(Some(allocated(existing))),
        // The answer to the first is on its way.
        (true, true) => Ok(None),
        (false, _) => Err(Refusal::AllocationMismatch),
    }
}

/// Which attributes go together, and which don't.
fn wanted(message: &Message<'_>) -> Result<Wanted, Refusal> {
    let transport = message.attribute::<RequestedTransport>();
    if transport.map_err(|_| Refusal::BadRequest)?.protocol() != PROTOCOL_UDP {
        return Err(Refusal::UnsupportedTransport);
    }
    let has_even = message.has_attribute(EvenPort::TYPE);
    let has_family = message.has_attribute(RequestedAddressFamily::TYPE);
    let has_additional = message.has_attribute(AdditionalAddressFamily::TYPE);
    if message.has_attribute(ReservationToken::TYPE) {
        if has_even || has_family || has_additional {
            return Err(Refusal::BadRequest);
        }
        let token = message.attribute::<ReservationToken>();
        return Ok(Wanted::Reserved(token.map_err(|_| Refusal::BadRequest)?.token()));
    }
    let parity = parity_asked(message)?;
    if !has_additional {
        let family = family_asked(message, Refusal::AddressFamilyNotSupported)?;
        return Ok(Wanted::One(family.unwrap_or(Family::V4), parity));
    }
    let additional = message.attribute::<AdditionalAddressFamily>();
    let additional = additional.map_err(|_| Refusal::BadRequest)?;
    let is_v6 = Family::from(additional.family()) == Family::V6;
    if has_family || !is_v6 || parity == Parity::EvenPair {
        return Err(Refusal::BadRequest);
    }
    Ok(Wanted::Both(parity))
}

fn parity_asked(message: &Message<'_>) -> Result<Parity, Refusal> {
    if !message.has_attribute(EvenPort::TYPE) {
        return Ok(Parity::Any);
    }
    match message.attribute::<EvenPort>() {
        Ok(even) if even.requested() => Ok(Parity::EvenPair),
        Ok(_) => Ok(Parity::Even),
        Err(_) => Err(Refusal::BadRequest),
    }
}

/// UDP's number in REQUESTED-TRANSPORT (RFC 8656, section 18.7).
const PROTOCOL_UDP: u8 = 17;
