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
/// How long a client may take nothing while there is something for it.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// What is kept for a client that takes it slower than it comes. Media that is older than this is worth nothing.
const MAX_PENDING: usize = 256 << 10;

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
    tls: Option<Box<ServerConnection>>,
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

    /// Keeps the beginning of a message until the rest of it comes.
    pub(super) fn keep(&mut self, begun: &[u8]) {
        self.begun.extend_from_slice(begun);
    }

    /// Sends a message in parts, all of it or nothing.
    ///
    /// # Errors
    /// Where the connection is over.
    pub(super) fn send(&mut self, now: Instant, parts: [&[u8]; 3]) -> io::Result<Sent> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.pending.len() + length > MAX_PENDING {
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
        if self.pending.is_empty() && self.pending.capacity() > KEPT_CAPACITY {
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
        let without = since(self.without_allocation);
        without
            .is_some_and(|without| without >= WITHOUT_ALLOCATION)
            .then_some(End::Idle)
    }

    fn decrypt(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), End> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).map_err(|_| End::Tls)?;
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

/// A queue that was longer than this is not kept when it is empty.
const KEPT_CAPACITY: usize = 8 << 10;
