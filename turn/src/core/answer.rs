//! Responses, written with the STUN library (RFC 8489, section 6.3.1; attributes of RFC 8656, section 18).

use std::net::SocketAddr;

use stun_types::attribute::{
    AlternateServer, AttributeStaticType as _, AttributeType, AttributeWrite, ErrorCode, Fingerprint, Nonce,
    Realm, Software, UnknownAttributes, XorMappedAddress,
};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, Message, MessageClass, MessageType, MessageWrite as _,
    MessageWriteExt as _, MessageWriteVec, Method, TransactionId,
};

use super::counters::Class;

/// What of a request its answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The request's method.
    pub method: Method,
    /// Its transaction.
    pub transaction: TransactionId,
    /// Whether it had a FINGERPRINT; then so has the answer (RFC 8489, section 7).
    pub fingerprint: bool,
}

impl Asked {
    /// Of `message`.
    pub fn of(message: &Message<'_>) -> Self {
        Self {
            method: message.method(),
            transaction: message.transaction_id(),
            fingerprint: message.has_attribute(Fingerprint::TYPE),
        }
    }
}

/// Why a request is refused, by its error code (RFC 8489, section 14.8; RFC 8656, section 19).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 300: ask that server instead.
    TryAlternate(SocketAddr),
    /// 400: something is missing or makes no sense.
    BadRequest,
    /// 401: authenticate.
    Unauthorized,
    /// 403: this peer may not be reached.
    Forbidden,
    /// 420: it asks for something that we don't know.
    UnknownAttributes(Vec<AttributeType>),
    /// 437: there is no allocation, or there is one already.
    AllocationMismatch,
    /// 438: authenticate again.
    StaleNonce,
    /// 440: no relay address of that family.
    AddressFamilyNotSupported,
    /// 441: the allocation is another user's.
    WrongCredentials,
    /// 442: relays are UDP.
    UnsupportedTransport,
    /// 443: the peer is of another family than the relay.
    PeerAddressFamilyMismatch,
    /// 486: the user has as many allocations as one may have.
    QuotaReached,
    /// 508: the server has nothing left, or is about to end.
    InsufficientCapacity,
}

impl Refusal {
    /// The error code.
    pub fn code(&self) -> u16 {
        match self {
            Self::TryAlternate(_) => 300,
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::UnknownAttributes(_) => 420,
            Self::AllocationMismatch => 437,
            Self::StaleNonce => 438,
            Self::AddressFamilyNotSupported => 440,
            Self::WrongCredentials => 441,
            Self::UnsupportedTransport => 442,
            Self::PeerAddressFamilyMismatch => 443,
            Self::QuotaReached => 486,
            Self::InsufficientCapacity => 508,
        }
    }

    /// What it counts as.
    pub fn class(&self) -> Class {
        match self {
            Self::Unauthorized | Self::StaleNonce => Class::Challenge,
            Self::TryAlternate(_) | Self::QuotaReached | Self::InsufficientCapacity => Class::Full,
            _ => Class::Refused,
        }
    }
}

/// What a client needs to authenticate.
#[derive(Debug, Clone, Copy)]
pub struct Challenge<'a> {
    /// The realm.
    pub realm: &'a str,
    /// A nonce.
    pub nonce: &'a str,
}

/// The answer to a Binding request. Without SOFTWARE, which RFC 8656, section 5, wants in answers to Allocate and Refresh
/// only: anyone may have asked for this one in another's name, and it is 12 bytes longer than the request as it is.
pub fn binding(asked: Asked, client: SocketAddr) -> Vec<u8> {
    success(asked, None, &[&XorMappedAddress::new(client, asked.transaction)])
}

/// A success response, signed with `key` if there is one.
pub fn success(asked: Asked, key: Option<&IntegrityKey>, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
    let mut message = begin(asked, MessageClass::Success);
    attributes
        .iter()
        .for_each(|attribute| put(&mut message, *attribute));
    if key.is_some() {
        put_software(&mut message);
    }
    finish(message, asked, key)
}

/// An error response. What is not signed is as short as can be, so it has no SOFTWARE, though RFC 8656, section 5, would
/// like it in a failed Allocate too: anyone may have asked for it in another's name.
pub fn refused(
    asked: Asked,
    refusal: &Refusal,
    key: Option<&IntegrityKey>,
    challenge: Option<Challenge<'_>>,
) -> Vec<u8> {
    let mut message = begin(asked, MessageClass::Error);
    if let Ok(error) = ErrorCode::builder(refusal.code()).build() {
        put(&mut message, &error);
    }
    if let Refusal::UnknownAttributes(unknown) = refusal {
        put(&mut message, &UnknownAttributes::new(unknown));
    }
    if let Refusal::TryAlternate(server) = refusal {
        put(&mut message, &AlternateServer::new(*server));
    }
    if let Some(challenge) = challenge {
        put_challenge(&mut message, challenge);
    }
    if key.is_some() {
        put_software(&mut message);
    }
    finish(message, asked, key)
}

fn begin(asked: Asked, class: MessageClass) -> MessageWriteVec {
    let kind = MessageType::from_class_method(class, asked.method);
    Message::builder(kind, asked.transaction, MessageWriteVec::with_capacity(USUAL_LEN))
}

fn finish(mut message: MessageWriteVec, asked: Asked, key: Option<&IntegrityKey>) -> Vec<u8> {
    if let Some(key) = key {
        let signed = message.add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1);
        debug_assert!(signed.is_ok(), "a message is signed once, before its fingerprint");
    }
    if asked.fingerprint {
        let printed = message.add_fingerprint();
        debug_assert!(printed.is_ok(), "a message gets one fingerprint");
    }
    message.finish()
}

fn put_challenge(message: &mut MessageWriteVec, challenge: Challenge<'_>) {
    if let (Ok(realm), Ok(nonce)) = (Realm::new(challenge.realm), Nonce::new(challenge.nonce)) {
        put(message, &realm);
        put(message, &nonce);
    }
}

fn put_software(message: &mut MessageWriteVec) {
    if let Ok(software) = Software::new(SOFTWARE) {
        put(message, &software);
    }
}

fn put(message: &mut MessageWriteVec, attribute: &dyn AttributeWrite) {
    let written = message.add_attribute(attribute);
    debug_assert!(
        written.is_ok(),
        "ours are few and short, and come before the signature"
    );
}

/// What the server calls itself. No version: an attacker need not know it.
const SOFTWARE: &str = "Penstock";
const USUAL_LEN: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_reason_in_words() {
        let refusals = [
            Refusal::TryAlternate("192.0.2.9:3478".parse().unwrap()),
            Refusal::BadRequest,
            Refusal::Unauthorized,
            Refusal::Forbidden,
            Refusal::UnknownAttributes(vec![AttributeType::new(0x18)]),
            Refusal::AllocationMismatch,
            Refusal::StaleNonce,
            Refusal::AddressFamilyNotSupported,
            Refusal::WrongCredentials,
            Refusal::UnsupportedTransport,
            Refusal::PeerAddressFamilyMismatch,
            Refusal::QuotaReached,
            Refusal::InsufficientCapacity,
        ];
        for refusal in refusals {
            let bytes = refused(asked(), &refusal, None, None);
            let error = Message::from_bytes(&bytes)
                .unwrap()
                .attribute::<ErrorCode>()
                .unwrap();
            assert_eq!(error.code(), refusal.code());
            assert_ne!(error.reason(), "Unknown");
        }
    }

    #[test]
    fn an_answer_to_a_binding_request_amplifies_little() {
        let asked = Asked {
            method: stun_types::message::BINDING,
            fingerprint: false,
            ..asked()
        };
        for (client, len) in [("192.0.2.9:3478", 32), ("[2001:db8::9]:3478", 44)] {
            assert_eq!(binding(asked, client.parse().unwrap()).len(), len);
        }
    }

    #[test]
    fn what_is_signed_says_what_we_are_and_what_is_not_does_not() {
        let key = stun_types::message::LongTermKeyCredentials::new("u".into(), "p".into(), "r".into())
            .make_key(IntegrityAlgorithm::Sha1);
        for (key, says) in [(Some(&key), true), (None, false)] {
            let success = success(asked(), key, &[]);
            let error = refused(asked(), &Refusal::AllocationMismatch, key, None);
            for bytes in [success, error] {
                let message = Message::from_bytes(&bytes).unwrap();
                assert_eq!(message.has_attribute(Software::TYPE), says);
            }
        }
    }

    #[test]
    fn a_challenge_amplifies_little() {
        let challenge = Challenge {
            realm: "penstock",
            nonce: &"n".repeat(22),
        };
        let bytes = refused(asked(), &Refusal::Unauthorized, None, Some(challenge));
        assert!(bytes.len() <= 88, "{} bytes", bytes.len());
    }

    fn asked() -> Asked {
        Asked {
            method: turn_types::message::ALLOCATE,
            transaction: 7_u128.into(),
            fingerprint: true,
        }
    }
}
