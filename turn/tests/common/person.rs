//! A client of a running server, over sockets.

use std::io::{IoSlice, Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use penstock_turn::shell::datagrams;
use rustls::{ClientConnection, StreamOwned};
use stun_types::attribute::AttributeWrite;
use stun_types::message::{Message, Method, TransactionId};
use turn_types::attribute::{ChannelNumber, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

use super::{Answer, Client};

/// Over UDP, TCP or TLS. Its user is `demo`, with that password.
pub struct Person {
    pub socket: Socket,
    pub client: Client,
    /// How many requests it has sent.
    pub requests: u64,
}

pub enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Person {
    pub fn new(server: SocketAddr) -> Self {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(server).unwrap();
        Self::over(Socket::Udp(socket))
    }

    pub fn over_tcp(server: SocketAddr) -> Self {
        Self::over(Socket::Tcp(TcpStream::connect(server).unwrap()))
    }

    pub fn over(socket: Socket) -> Self {
        let person = Self {
            socket,
            client: Client::new(1, "demo", "demo"),
            requests: 0,
        };
        person.wait_for(Duration::from_secs(10));
        person
    }

    /// How long [`Self::receive`] waits.
    pub fn wait_for(&self, time: Duration) {
        match &self.socket {
            Socket::Udp(socket) => socket.set_read_timeout(Some(time)).unwrap(),
            Socket::Tcp(stream) => stream.set_read_timeout(Some(time)).unwrap(),
            Socket::Tls(stream) => stream.sock.set_read_timeout(Some(time)).unwrap(),
        }
    }

    pub fn udp(&self) -> &UdpSocket {
        match &self.socket {
            Socket::Udp(socket) => socket,
            Socket::Tcp(_) | Socket::Tls(_) => panic!("it has a stream"),
        }
    }

    /// Asks, and asks again with the nonce that it is given.
    pub fn ask(&mut self, method: Method, attributes: &[&dyn AttributeWrite]) -> Answer {
        let transaction = self.client.transaction();
        let (answer, _) = self.ask_in(transaction, method, attributes);
        answer
    }

    fn ask_in(
        &mut self,
        transaction: TransactionId,
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> (Answer, Vec<u8>) {
        let mut last = (Answer::None, Vec::new());
        for _ in 0..3 {
            let request = self.client.signed_in(transaction, method, attributes);
            self.requests += 1;
            self.put(&request);
            let bytes = self.receive();
            last = (self.client.read(&bytes), bytes);
            if !matches!(last.0, Answer::Error(401 | 438)) {
                break;
            }
        }
        last
    }

    /// Gives the relay's address.
    pub fn allocate(&mut self) -> SocketAddr {
        let transaction = self.client.transaction();
        let (answer, bytes) = self.ask_in(transaction, ALLOCATE, &[&RequestedTransport::new(17)]);
        assert_eq!(answer, Answer::Success);
        let message = Message::from_bytes(&bytes).unwrap();
        message
            .attribute::<XorRelayedAddress>()
            .unwrap()
            .addr(transaction)
    }

    pub fn permit(&mut self, peer: SocketAddr) -> Answer {
        let transaction = self.client.transaction();
        let peer = XorPeerAddress::new(peer, transaction);
        self.ask_in(transaction, CREATE_PERMISSION, &[&peer]).0
    }

    pub fn bind(&mut self, channel: u16, peer: SocketAddr) -> Answer {
        let transaction = self.client.transaction();
        let peer = XorPeerAddress::new(peer, transaction);
        let attributes: [&dyn AttributeWrite; 2] = [&ChannelNumber::new(channel), &peer];
        self.ask_in(transaction, CHANNEL_BIND, &attributes).0
    }

    pub fn refresh(&mut self, lifetime_s: u32) -> Answer {
        self.ask(REFRESH, &[&Lifetime::new(lifetime_s)])
    }

    pub fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        let indication = self.client.indication(peer, data);
        self.put(&indication);
    }

    pub fn send_on(&mut self, channel: u16, data: &[u8]) {
        let data = channel_data(channel, data);
        self.put(&data);
    }

    pub fn put(&mut self, bytes: &[u8]) {
        match &mut self.socket {
            Socket::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Socket::Tcp(stream) => stream.write_all(bytes).unwrap(),
            Socket::Tls(stream) => stream.write_all(bytes).unwrap(),
        }
    }

    /// One message.
    pub fn receive(&mut self) -> Vec<u8> {
        match &mut self.socket {
            Socket::Udp(socket) => {
                let mut buffer = [0; 65_536];
                let length = socket.recv(&mut buffer).unwrap();
                buffer[..length].to_vec()
            }
            Socket::Tcp(stream) => read_stream(stream),
            Socket::Tls(stream) => read_stream(stream.as_mut()),
        }
    }
}

pub fn channel_data(channel: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [&channel.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// One STUN message, or ChannelData with its padding.
pub fn read_stream(stream: &mut impl Read) -> Vec<u8> {
    let mut message = vec![0; 4];
    stream.read_exact(&mut message).unwrap();
    let length = usize::from(u16::from_be_bytes([message[2], message[3]]));
    let rest = match message[0] >> 6 {
        0 => 16 + length,
        _ => length.next_multiple_of(4),
    };
    message.resize(4 + rest, 0);
    stream.read_exact(&mut message[4..]).unwrap();
    message
}

/// All at once, for the kernel to cut.
pub fn send_burst(from: &UdpSocket, to: SocketAddr, payloads: &[Vec<u8>]) {
    let parts: Vec<_> = payloads.iter().map(|payload| IoSlice::new(payload)).collect();
    let message = datagrams::Message {
        to,
        parts: &parts,
        segment: Some(u16::try_from(payloads[0].len()).unwrap()),
    };
    assert_eq!(datagrams::send(from, &[message]).unwrap(), 1);
}
