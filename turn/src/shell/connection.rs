//! One client's connection, over TCP or TLS. Nothing here waits, and what is kept for a client is bounded.
//!
//! ```text
//!  socket ─► (TLS) ─► begun: a message whose end hasn't come ─► whole messages
//!  head, payload, padding ─► (TLS) ─► socket, and what it doesn't take ─► pending ─► socket, when it has room
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};

use crate::core::FiveTuple;
use crate::core::counters::End;

/// How long a connection may be without an allocation.
pub(super) const WITHOUT_ALLOCATION: Duration = Duration::from_secs(30);
/// How long the handshake of TLS may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take nothing while there is something for it.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// What is kept for a client that takes it slower than it comes. Media that is older than this is worth nothing.
const MAX_PENDING: usize = 256 << 10;
/// How many bytes of a client's are read before its handshake is made: all that a client has to say is a tenth of that,
/// and the library would keep four times as many.
const MAX_HANDSHAKE_BYTES: usize = 16 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Both ends.
    pub(super) client: FiveTuple,
    /// Its socket.
    pub(super) socket: TcpStream,
    /// Whether epoll says when the socket has room.
    pub(super) waits_for_room: bool,
    /// Since when it has had no allocation.
    pub(super) without_allocation: Option<Instant>,
    /// What its owner has counted of [`Self::keeps`].
    pub(super) counted: usize,
    tls: Option<Box<ServerConnection>>,
    /// What was read of the handshake, in bytes.
    handshake: usize,
    begun: Vec<u8>,
    pending: VecDeque<u8>,
    stalled: Option<Instant>,
}

/// What became of something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way.
    Sent,
    /// There is too much before it; nothing of it was sent.
    Full,
}

impl Connection {
    /// A new one.
    ///
    /// # Errors
    /// Where TLS can't be begun.
    pub(super) fn new(
        client: FiveTuple,
        socket: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        now: Instant,
    ) -> Result<Self, rustls::Error> {
        let tls = tls.map(ServerConnection::new).transpose()?;
        Ok(Self {
            client,
            socket,
            waits_for_room: false,
            without_allocation: Some(now),
            tls: tls.map(|mut tls| {
                // We take out at once what goes in.
                tls.set_buffer_limit(None);
                Box::new(tls)
            }),
            counted: 0,
            handshake: 0,
            begun: Vec::new(),
            pending: VecDeque::new(),
            stalled: None,
        })
    }

    /// Reads once, through `buffer`, and appends to `plain` what was begun before and what has come now. Nothing may
    /// have come.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn read(&mut self, now: Instant, buffer: &mut [u8], plain: &mut Vec<u8>) -> Result<(), End> {
        plain.append(&mut self.begun);
        if self.begun.capacity() > OWN_BEGUN {
            self.begun = Vec::new();
        }
        let length = match self.socket.read(buffer) {
            Ok(0) => return Err(End::Client),
            Ok(length) => length,
            Err(error) if would_wait(&error) => return Ok(()),
            Err(_) => return Err(End::Client),
        };
        let bytes = &buffer[..length];
        if self.tls.is_none() {
            plain.extend_from_slice(bytes);
            return Ok(());
        }
        let read = self.decrypt(bytes, plain);
        // The handshake's next step, or the alert that says why it failed.
        self.encrypted_to_pending();
        let flushed = self.flush(now).map_err(|_| End::Client);
        read.and(flushed)
    }

    /// Whether TLS is still to be agreed on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Keeps the beginning of a message until the rest of it comes; false where that is more than the connection may
    /// keep anyhow, and more than there is `room` for.
    #[must_use]
    pub(super) fn keep(&mut self, begun: &[u8], room: usize) -> bool {
        let fits = begun.len() <= self.begun.capacity().max(OWN_BEGUN + room);
        if fits {
            self.begun.reserve_exact(begun.len());
            self.begun.extend_from_slice(begun);
        }
        fits
    }

    /// What it takes of the memory beyond what every connection may, in bytes.
    pub(super) fn keeps(&self) -> usize {
        self.begun.capacity().saturating_sub(OWN_BEGUN) + self.pending.capacity().saturating_sub(OWN_PENDING)
    }

    /// Sends a message in parts, all of it or nothing. What its socket doesn't take is kept, where the connection may keep
    /// that anyhow or there is `room` for it.
    ///
    /// # Errors
    /// Where the connection is over.
    pub(super) fn send(&mut self, now: Instant, parts: [&[u8]; 3], room: usize) -> io::Result<Sent> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if !self.reserve(length, room) {
            return Ok(Sent::Full);
        }
        let slices = parts.map(IoSlice::new);
        if let Some(tls) = &mut self.tls {
            if tls.writer().write_vectored(&slices)? < length {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.encrypted_to_pending();
            self.flush(now)?;
            return Ok(Sent::Sent);
        }
        let mut sent = 0;
        if self.pending.is_empty() {
            sent = match self.socket.write_vectored(&slices) {
                Ok(sent) => sent,
                Err(error) if would_wait(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        for part in parts {
            let skipped = sent.min(part.len());
            sent -= skipped;
            self.pending.extend(&part[skipped..]);
        }
        self.note_progress(now, false);
        Ok(Sent::Sent)
    }

    /// Sends what is pending, as far as the socket takes it.
    ///
    /// # Errors
    /// Where the connection is over.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        let mut progress = false;
        while !self.pending.is_empty() {
            let (first, second) = self.pending.as_slices();
            match self
                .socket
                .write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
            {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.pending.drain(..sent);
                    progress = true;
                }
                Err(error) if would_wait(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if self.pending.is_empty() && self.pending.capacity() > OWN_PENDING {
            self.pending = VecDeque::new();
        }
        self.note_progress(now, progress);
        Ok(())
    }

    /// Whether something waits for room in the socket.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether it has lived for too long without an allocation, or without taking what there is for it.
    pub(super) fn is_over(&self, now: Instant) -> Option<End> {
        let since = |begin: Option<Instant>| begin.map(|begin| now.saturating_duration_since(begin));
        if since(self.stalled).is_some_and(|stalled| stalled >= STALLED) {
            return Some(End::Slow);
        }
        let most = if self.is_handshaking() {
            HANDSHAKE
        } else {
            WITHOUT_ALLOCATION
        };
        since(self.without_allocation)
            .is_some_and(|without| without >= most)
            .then_some(End::Idle)
    }

    /// Makes room for `length` bytes to send, and what TLS puts around them.
    fn reserve(&mut self, length: usize, room: usize) -> bool {
        let around = self
            .tls
            .as_ref()
            .map_or(0, |_| (length / MAX_RECORD + 1) * RECORD_OVERHEAD);
        let (wanted, has) = (self.pending.len() + length + around, self.pending.capacity());
        if wanted <= has {
            return true;
        }
        // Twice as much, so that not each message moves those before it.
        let most = MAX_PENDING.min(has.max(OWN_PENDING) + room);
        if wanted > most {
            return false;
        }
        if !self.pending.is_empty() {
            let larger = wanted.max(has * 2).min(most);
            self.pending.reserve_exact(larger - self.pending.len());
        }
        true
    }

    fn decrypt(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), End> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while !bytes.is_empty() {
            let was_handshaking = tls.is_handshaking();
            let read = tls.read_tls(&mut bytes).map_err(|_| End::Tls)?;
            if was_handshaking {
                self.handshake += read;
                if self.handshake > MAX_HANDSHAKE_BYTES {
                    return Err(End::Tls);
                }
            }
            tls.process_new_packets().map_err(|_| End::Tls)?;
            match tls.reader().read_to_end(plain) {
                Err(error) if would_wait(&error) => {}
                // The end of what the client has to say.
                Ok(_) => return Err(End::Client),
                Err(_) => return Err(End::Tls),
            }
        }
        Ok(())
    }

    fn encrypted_to_pending(&mut self) {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                // Writing to memory doesn't fail.
                if tls.write_tls(&mut self.pending).is_err() {
                    break;
                }
            }
        }
    }

    fn note_progress(&mut self, now: Instant, progress: bool) {
        if self.pending.is_empty() {
            self.stalled = None;
        } else if progress || self.stalled.is_none() {
            self.stalled = Some(now);
        }
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// What every connection may keep to be sent. A queue that was longer is not kept when it is empty.
const OWN_PENDING: usize = 8 << 10;
/// What every connection may keep of a message that was begun.
const OWN_BEGUN: usize = 2 << 10;
/// The most that one record of TLS carries, and more than it puts around that (22 bytes by RFC 8446, section 5.2, and 29 by
/// RFC 5288, section 3).
const MAX_RECORD: usize = 16 << 10;
const RECORD_OVERHEAD: usize = 32;
