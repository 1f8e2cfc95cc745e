//! A TURN client that gets a relay, a permission and a channel, and no more.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, bail};
use stun_types::attribute::{AttributeWrite, Nonce, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
    MessageType, MessageWrite as _, MessageWriteExt as _, MessageWriteVec, Method, TransactionId,
};
use turn_types::attribute::{ChannelNumber, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

pub(crate) const USER: &str = "bench";
pub(crate) const REALM: &str = "penstock";
pub(crate) const CHANNEL: u16 = 0x4000;

/// A client that asks one thing after another.
pub(crate) struct Client<'a> {
    socket: &'a UdpSocket,
    realm: String,
    nonce: String,
}

impl<'a> Client<'a> {
    /// Over a socket that is connected to the server, and blocks.
    pub(crate) fn new(socket: &'a UdpSocket) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(Self {
            socket,
            realm: REALM.to_owned(),
            nonce: "none".to_owned(),
        })
    }

    /// Gives the relay's address.
    pub(crate) fn allocate(&mut self) -> anyhow::Result<SocketAddr> {
        let (transaction, answer) = self.ask(ALLOCATE, |_| vec![Box::new(RequestedTransport::new(17))])?;
        let message = Message::from_bytes(&answer)?;
        Ok(message.attribute::<XorRelayedAddress>()?.addr(transaction))
    }

    pub(crate) fn permit(&mut self, peer: SocketAddr) -> anyhow::Result<()> {
        self.ask(CREATE_PERMISSION, |transaction| {
            vec![Box::new(XorPeerAddress::new(peer, transaction))]
        })?;
        Ok(())
    }

    pub(crate) fn bind_channel(&mut self, peer: SocketAddr) -> anyhow::Result<()> {
        self.ask(CHANNEL_BIND, |transaction| {
            vec![
                Box::new(ChannelNumber::new(CHANNEL)),
                Box::new(XorPeerAddress::new(peer, transaction)),
            ]
        })?;
        Ok(())
    }

    /// Ends the allocation.
    pub(crate) fn release(&mut self) -> anyhow::Result<()> {
        self.ask(REFRESH, |_| vec![Box::new(Lifetime::new(0))])?;
        Ok(())
    }

    fn ask(
        &mut self,
        method: Method,
        attributes: impl Fn(TransactionId) -> Vec<Box<dyn AttributeWrite>>,
    ) -> anyhow::Result<(TransactionId, Vec<u8>)> {
        // The first answer may be a challenge, and a packet may be lost.
        for _ in 0..100 {
            let transaction = TransactionId::generate();
            self.socket
                .send(&self.signed(method, transaction, &attributes(transaction))?)?;
            let mut buffer = [0; 2048];
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            // What is relayed late may come between.
            let Ok(answer) = Message::from_bytes(&buffer[..length]) else {
                continue;
            };
            if answer.transaction_id() != transaction {
                continue;
            }
            if answer.has_class(MessageClass::Success) {
                return Ok((transaction, buffer[..length].to_vec()));
            }
            let nonce = answer.attribute::<Nonce>();
            self.nonce = nonce
                .with_context(|| format!("refused: {answer}"))?
                .nonce()
                .to_owned();
            self.realm = answer.attribute::<Realm>()?.realm().to_owned();
        }
        bail!("no success after six requests")
    }

    fn signed(
        &self,
        method: Method,
        transaction: TransactionId,
        attributes: &[Box<dyn AttributeWrite>],
    ) -> anyhow::Result<Vec<u8>> {
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let mut message = Message::builder(kind, transaction, MessageWriteVec::new());
        for attribute in attributes {
            message.add_attribute(attribute.as_ref())?;
        }
        message.add_attribute(&Username::new(USER)?)?;
        message.add_attribute(&Realm::new(&self.realm)?)?;
        message.add_attribute(&Nonce::new(&self.nonce)?)?;
        let key: MessageIntegrityCredentials =
            LongTermKeyCredentials::new(USER.to_owned(), USER.to_owned(), self.realm.clone()).into();
        message.add_message_integrity(&key, IntegrityAlgorithm::Sha1)?;
        Ok(message.finish())
    }
}
