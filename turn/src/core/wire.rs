//! The hot path's formats: ChannelData, Send and Data indications, parsed and written in place.
//!
//! ```text
//!  ChannelData (RFC 8656, section 12.4)          Send / Data indication (RFC 8489, section 5)
//!  ┌────────────┬────────────┬─────────          ┌──────┬──────┬────────┬─────────────┬─────────────────┬──────
//!  │ channel 16 │ length 16  │ data …            │ type │ len  │ cookie │ transaction │ XOR-PEER-ADDRESS│ DATA …
//!  └────────────┴────────────┴─────────          └──────┴──────┴────────┴─────────────┴─────────────────┴──────
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A channel's number, 0x4000 to 0x7FFF. RFC 8656, section 12, leaves clients the first quarter of that, to 0x4FFF, and
/// would have the rest refused; RFC 5766, section 11, gave them all of it, and coturn's `turnutils_uclient` 4.6 takes its
/// numbers at random from there, so refusing would break it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// Takes a number of that range.
    pub fn new(number: u16) -> Option<Self> {
        (0x4000..=0x7FFF).contains(&number).then_some(Self(number))
    }

    /// The number as it stands on the wire.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What a client's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// Payload for a channel.
    ChannelData(ChannelNumber, &'a [u8]),
    /// A Send indication.
    Send(SendIndication<'a>),
    /// Another STUN message, for the STUN library to read. Exactly one message, by its length field.
    Stun(&'a [u8]),
}

/// Payload for a peer.
#[derive(Debug, PartialEq, Eq)]
pub struct SendIndication<'a> {
    /// Where to.
    pub peer: SocketAddr,
    /// What.
    pub data: &'a [u8],
}

/// Tells what `bytes` are; `None` where they are nothing of ours. RFC 8656, section 12: the first two bits.
pub fn classify(bytes: &[u8]) -> Option<Inbound<'_>> {
    let first = *bytes.first()?;
    match first >> 6 {
        0b00 => stun(bytes),
        0b01 => channel_data(bytes),
        _ => None,
    }
}

/// A stream carries something else than our messages; what follows can't be told apart any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOurs;

/// How many bytes of a stream its first message takes, padding included (RFC 8656, section 12.5); `None` where `bytes`
/// are too few to tell. They may be fewer than the message, or more.
///
/// # Errors
/// [`NotOurs`]; then the stream is of no use any more.
pub fn length_in_stream(bytes: &[u8]) -> Result<Option<usize>, NotOurs> {
    let Some(first) = bytes.first() else {
        return Ok(None);
    };
    let length = u16_at(bytes, 2).map(usize::from);
    match first >> 6 {
        0b00 => {
            let cookie = bytes.get(4..).unwrap_or_default();
            let known = cookie.len().min(MAGIC_COOKIE.len());
            if cookie[..known] != MAGIC_COOKIE[..known]
                || length.is_some_and(|length| !length.is_multiple_of(4))
            {
                return Err(NotOurs);
            }
            Ok(length.map(|length| STUN_HEADER_LEN + length))
        }
        0b01 => Ok(length.map(|length| CHANNEL_HEADER_LEN + length.next_multiple_of(4))),
        _ => Err(NotOurs),
    }
}

/// A message of a stream, and what comes after it.
pub type Cut<'a> = (&'a [u8], &'a [u8]);

/// The first message of a stream's `bytes`, and what comes after it; `None` where it isn't all there.
///
/// # Errors
/// [`NotOurs`].
pub fn first_message(bytes: &[u8]) -> Result<Option<Cut<'_>>, NotOurs> {
    Ok(length_in_stream(bytes)?.and_then(|length| bytes.split_at_checked(length)))
}

/// The head of ChannelData: its channel, and how long its payload is to be (RFC 8656, section 12.4).
pub(super) fn channel_head(bytes: &[u8]) -> Option<(ChannelNumber, usize)> {
    let number = ChannelNumber::new(u16_at(bytes, 0)?)?;
    Some((number, usize::from(u16_at(bytes, 2)?)))
}

/// The head of ChannelData with so many bytes of payload.
pub(super) fn channel_head_of(channel: ChannelNumber, payload_len: u16) -> [u8; CHANNEL_HEADER_LEN] {
    let ([a, b], [c, d]) = (channel.get().to_be_bytes(), payload_len.to_be_bytes());
    [a, b, c, d]
}

fn channel_data(bytes: &[u8]) -> Option<Inbound<'_>> {
    let (number, length) = channel_head(bytes)?;
    // Over UDP a sender may pad, so there may be more bytes than the length says.
    let data = bytes.get(CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + length)?;
    Some(Inbound::ChannelData(number, data))
}

fn stun(bytes: &[u8]) -> Option<Inbound<'_>> {
    let length = usize::from(u16_at(bytes, 2)?);
    let whole = bytes.len() == STUN_HEADER_LEN + length && length.is_multiple_of(4);
    if !whole || bytes.get(4..8)? != MAGIC_COOKIE {
        return None;
    }
    if u16_at(bytes, 0)? != SEND_INDICATION {
        return Some(Inbound::Stun(bytes));
    }
    send_indication(bytes).map(Inbound::Send)
}

/// RFC 8656, section 11.2: exactly XOR-PEER-ADDRESS and DATA are needed; what else must be understood and is not,
/// DONT-FRAGMENT among it, makes the indication void. FINGERPRINT is not looked at: it tells STUN from other
/// protocols on one port, and there are none here.
fn send_indication(bytes: &[u8]) -> Option<SendIndication<'_>> {
    let transaction = bytes.get(8..STUN_HEADER_LEN)?;
    let (mut peer, mut data) = (None, None);
    let mut rest = bytes.get(STUN_HEADER_LEN..)?;
    while !rest.is_empty() {
        let (kind, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        match kind {
            XOR_PEER_ADDRESS if peer.is_none() => peer = Some(xor_address(value, transaction)?),
            DATA if data.is_none() => data = Some(value),
            XOR_PEER_ADDRESS | DATA => {}
            kind if kind < COMPREHENSION_OPTIONAL && !IGNORED_IN_INDICATIONS.contains(&kind) => return None,
            _ => {}
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
    Some(SendIndication {
        peer: peer?,
        data: data?,
    })
}

/// RFC 8489, section 14.2.
fn xor_address(value: &[u8], transaction: &[u8]) -> Option<SocketAddr> {
    let port = u16_at(value, 2)? ^ COOKIE_HIGH;
    let ip: IpAddr = match (*value.get(1)?, value.len()) {
        (FAMILY_V4, 8) => {
            let mut octets: [u8; 4] = value.get(4..)?.try_into().ok()?;
            xor(&mut octets, &MAGIC_COOKIE);
            Ipv4Addr::from(octets).into()
        }
        (FAMILY_V6, 20) => {
            let mut octets: [u8; 16] = value.get(4..)?.try_into().ok()?;
            xor(&mut octets[..4], &MAGIC_COOKIE);
            xor(&mut octets[4..], transaction);
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// What stands before a payload on its way to a client, and how many zero bytes behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    head: [u8; MAX_HEAD_LEN],
    head_len: u8,
    padding: u8,
}

impl Envelope {
    /// The bytes before the payload.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The zero bytes behind the payload.
    pub fn padding(&self) -> &'static [u8] {
        &[0; 3][..usize::from(self.padding)]
    }

    /// ChannelData around `payload_len` bytes; padded where the client's transport is a stream.
    pub fn channel_data(channel: ChannelNumber, payload_len: u16, padded: bool) -> Self {
        let mut envelope = Self::empty();
        envelope.push(&channel_head_of(channel, payload_len));
        if padded {
            envelope.padding = padding_of(payload_len);
        }
        envelope
    }

    /// A Data indication (RFC 8656, section 11.3) around `payload_len` bytes from `peer`; `None` where they don't
    /// fit the message's 16-bit length.
    pub fn data_indication(peer: SocketAddr, payload_len: u16, transaction: [u8; 12]) -> Option<Self> {
        let address_len: u16 = if peer.is_ipv4() { 8 } else { 20 };
        let padding = padding_of(payload_len);
        let length = payload_len.checked_add(u16::from(padding) + 4 + address_len + 4)?;
        let mut envelope = Self::empty();
        envelope.padding = padding;
        envelope.push(&DATA_INDICATION.to_be_bytes());
        envelope.push(&length.to_be_bytes());
        envelope.push(&MAGIC_COOKIE);
        envelope.push(&transaction);
        envelope.push(&XOR_PEER_ADDRESS.to_be_bytes());
        envelope.push(&address_len.to_be_bytes());
        envelope.push_xor_address(peer, &transaction);
        envelope.push(&DATA.to_be_bytes());
        envelope.push(&payload_len.to_be_bytes());
        Some(envelope)
    }

    fn empty() -> Self {
        Self {
            head: [0; MAX_HEAD_LEN],
            head_len: 0,
            padding: 0,
        }
    }

    fn push_xor_address(&mut self, address: SocketAddr, transaction: &[u8; 12]) {
        let port = (address.port() ^ COOKIE_HIGH).to_be_bytes();
        match address.ip() {
            IpAddr::V4(ip) => {
                let mut octets = ip.octets();
                xor(&mut octets, &MAGIC_COOKIE);
                self.push(&[0, FAMILY_V4, port[0], port[1]]);
                self.push(&octets);
            }
            IpAddr::V6(ip) => {
                let mut octets = ip.octets();
                xor(&mut octets[..4], &MAGIC_COOKIE);
                xor(&mut octets[4..], transaction);
                self.push(&[0, FAMILY_V6, port[0], port[1]]);
                self.push(&octets);
            }
        }
    }

    /// Appends `bytes`. All callers together write [`MAX_HEAD_LEN`] bytes at most: 20 + 4 + 20 + 4.
    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.head_len);
        self.head[start..start + bytes.len()].copy_from_slice(bytes);
        self.head_len += bytes.len() as u8;
    }
}

fn padding_of(length: u16) -> u8 {
    (4 - (length % 4) as u8) % 4
}

fn xor(bytes: &mut [u8], mask: &[u8]) {
    bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// The longest head: a Data indication's with an IPv6 peer.
const MAX_HEAD_LEN: usize = 48;
/// The length of ChannelData's head (RFC 8656, section 12.4).
pub const CHANNEL_HEADER_LEN: usize = 4;
const STUN_HEADER_LEN: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const COOKIE_HIGH: u16 = 0x2112;
const SEND_INDICATION: u16 = 0x0016;
const DATA_INDICATION: u16 = 0x0017;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const DATA: u16 = 0x0013;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// From here on, an unknown attribute may be passed over (RFC 8489, section 14).
const COMPREHENSION_OPTIONAL: u16 = 0x8000;
/// USERNAME, MESSAGE-INTEGRITY, REALM, NONCE, MESSAGE-INTEGRITY-SHA256: understood, and without meaning in an
/// indication of TURN (RFC 8656, section 11: indications aren't authenticated).
const IGNORED_IN_INDICATIONS: [u16; 5] = [0x0006, 0x0008, 0x0014, 0x0015, 0x001C];

#[cfg(test)]
mod tests {
    use stun_types::message::{Message, MessageWrite as _, MessageWriteExt as _, MessageWriteVec};
    use turn_types::attribute::{Data, DontFragment, XorPeerAddress};
    use turn_types::message::{DATA, SEND};

    use super::*;

    #[test]
    fn channel_data_gives_what_its_length_says() {
        let channel = ChannelNumber::new(0x4001).unwrap();
        assert_eq!(
            classify(&[0x40, 1, 0, 2, 7, 8, 0, 0]),
            Some(Inbound::ChannelData(channel, &[7, 8]))
        );
        assert_eq!(
            classify(&[0x40, 1, 0, 0]),
            Some(Inbound::ChannelData(channel, &[]))
        );
    }

    #[test]
    fn channel_data_that_is_short_or_out_of_range_is_nothing() {
        assert_eq!(classify(&[0x40, 1, 0, 3, 7, 8]), None);
        assert_eq!(classify(&[0x40, 1, 0]), None);
        assert_eq!(classify(&[0x80, 0, 0, 0]), None);
        assert_eq!(classify(&[]), None);
    }

    #[test]
    fn a_send_indication_is_read_as_the_library_wrote_it() {
        for peer in ["203.0.113.9:4000", "[2001:db8::7]:4000"] {
            let peer: SocketAddr = peer.parse().unwrap();
            let bytes = indication(SEND, peer, b"hello");
            assert_eq!(
                classify(&bytes),
                Some(Inbound::Send(SendIndication { peer, data: b"hello" }))
            );
        }
    }

    #[test]
    fn a_send_indication_that_asks_what_we_lack_is_nothing() {
        let peer = "203.0.113.9:4000".parse().unwrap();
        let mut message = Message::builder_indication(SEND, MessageWriteVec::new());
        let transaction = message.transaction_id();
        message
            .add_attribute(&XorPeerAddress::new(peer, transaction))
            .unwrap();
        message.add_attribute(&DontFragment::new()).unwrap();
        message.add_attribute(&Data::new(b"hello")).unwrap();
        assert_eq!(classify(&message.finish()), None);
    }

    #[test]
    fn stun_with_a_wrong_length_or_cookie_is_nothing() {
        let good = Message::builder_request(stun_types::message::BINDING, MessageWriteVec::new()).finish();
        assert_eq!(classify(&good), Some(Inbound::Stun(&good)));
        let longer: Vec<u8> = good.iter().copied().chain([0; 4]).collect();
        assert_eq!(classify(&longer), None);
        let mut other = good;
        other[4] ^= 1;
        assert_eq!(classify(&other), None);
    }

    #[test]
    fn a_data_indication_is_written_as_the_library_reads_it() {
        for (peer, payload) in [("203.0.113.9:4000", &b"hello"[..]), ("[2001:db8::7]:9", b"")] {
            let peer: SocketAddr = peer.parse().unwrap();
            let envelope = Envelope::data_indication(peer, payload.len() as u16, [9; 12]).unwrap();
            let bytes = [envelope.head(), payload, envelope.padding()].concat();
            let message = Message::from_bytes(&bytes).unwrap();
            assert!(message.has_method(DATA));
            let transaction = message.transaction_id();
            assert_eq!(
                message.attribute::<XorPeerAddress>().unwrap().addr(transaction),
                peer
            );
            assert_eq!(message.attribute::<Data<'_>>().unwrap().data(), payload);
        }
    }

    #[test]
    fn a_payload_too_long_for_an_indication_is_refused() {
        let peer = "[2001:db8::7]:9".parse().unwrap();
        assert!(Envelope::data_indication(peer, 65_500, [0; 12]).is_some());
        assert!(Envelope::data_indication(peer, 65_510, [0; 12]).is_none());
    }

    #[test]
    fn channel_data_is_padded_on_streams_only() {
        let channel = ChannelNumber::new(0x4FFF).unwrap();
        let datagram = Envelope::channel_data(channel, 5, false);
        assert_eq!(
            (datagram.head(), datagram.padding().len()),
            (&[0x4F, 0xFF, 0, 5][..], 0)
        );
        assert_eq!(Envelope::channel_data(channel, 5, true).padding().len(), 3);
        assert_eq!(Envelope::channel_data(channel, 8, true).padding().len(), 0);
    }

    #[test]
    fn a_stream_says_how_long_its_first_message_is() {
        let request = Message::builder_request(stun_types::message::BINDING, MessageWriteVec::new()).finish();
        let channel_data = [0x40, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0];
        for message in [&request[..], &channel_data] {
            for so_far in 0..4 {
                assert_eq!(length_in_stream(&message[..so_far]), Ok(None));
            }
            for so_far in 4..=message.len() {
                assert_eq!(length_in_stream(&message[..so_far]), Ok(Some(message.len())));
            }
            let more = [message, message].concat();
            assert_eq!(length_in_stream(&more), Ok(Some(message.len())));
        }
    }

    #[test]
    fn a_stream_of_something_else_is_told_at_once() {
        assert_eq!(length_in_stream(&[0x80]), Err(NotOurs));
        assert_eq!(length_in_stream(b"\x16\x03\x01\x02\x00\x01"), Err(NotOurs), "TLS");
        assert_eq!(length_in_stream(&[0, 1, 0, 3]), Err(NotOurs), "a length of STUN");
        assert_eq!(length_in_stream(b"GET / HTTP/1.1\r\n"), Ok(Some(4 + 0x5420)));
        assert_eq!(
            length_in_stream(&[0, 1, 0, 0, 0x21, 0x13]),
            Err(NotOurs),
            "no cookie"
        );
    }

    fn indication(method: stun_types::message::Method, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let mut message = Message::builder_indication(method, MessageWriteVec::new());
        let transaction = message.transaction_id();
        message
            .add_attribute(&XorPeerAddress::new(peer, transaction))
            .unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        message.add_fingerprint().unwrap();
        message.finish()
    }
}
