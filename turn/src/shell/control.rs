//! What the main thread tells shards, and what shards know of each other.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustls::ServerConfig;

use crate::core::server::Rules;

/// How another thread tells a shard to drain, or to go by other rules; and how shards know of each other.
#[derive(Debug)]
pub(super) struct Control {
    /// How many shards there are.
    pub(super) shards: usize,
    /// How many shards have allocations, of all.
    busy_shards: Arc<AtomicUsize>,
    /// Whether this one is among them.
    is_busy: AtomicBool,
    draining: AtomicBool,
    news: Mutex<Option<News>>,
    /// Becomes readable when there is something new here.
    pub(super) wake: OwnedFd,
}

/// What a shard is to go by from now on.
#[derive(Debug, Clone)]
pub(super) struct News {
    /// Who may use the server, and whom they may reach.
    pub(super) rules: Rules,
    /// What clients over TLS see; without it, what they saw until now.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Control {
    /// One for each of `shards`.
    pub(super) fn of_shards(shards: usize) -> io::Result<Vec<Arc<Self>>> {
        let busy_shards = Arc::new(AtomicUsize::new(0));
        (0..shards)
            .map(|_| Self::new(shards, busy_shards.clone()).map(Arc::new))
            .collect()
    }

    fn new(shards: usize, busy_shards: Arc<AtomicUsize>) -> io::Result<Self> {
        Ok(Self {
            shards,
            busy_shards,
            is_busy: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            news: Mutex::new(None),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Tells it.
    pub(super) fn drain(&self) -> io::Result<()> {
        self.draining.store(true, Ordering::Release);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Tells it news.
    pub(super) fn reload(&self, news: News) -> io::Result<()> {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// What it was told last, once.
    pub(super) fn take_news(&self) -> Option<News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says whether this shard has allocations. Only the shard itself says so.
    pub(super) fn set_busy(&self, busy: bool) {
        if self.is_busy.load(Ordering::Relaxed) != busy {
            self.is_busy.store(busy, Ordering::Relaxed);
            if busy {
                self.busy_shards.fetch_add(1, Ordering::Relaxed);
            } else {
                self.busy_shards.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// How many shards have allocations.
    pub(super) fn busy_shards(&self) -> usize {
        self.busy_shards.load(Ordering::Relaxed)
    }

    /// Whether it was told.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
