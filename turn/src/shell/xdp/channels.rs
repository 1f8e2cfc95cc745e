//! Which of a shard's channels the program knows.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Way, Xdp};
use crate::core::allocation::OpenChannel;
use crate::core::{FiveTuple, RelayId, Transport};
use crate::shell::clock;

/// What one shard has told it.
#[derive(Debug)]
pub(in crate::shell) struct Channels {
    xdp: Arc<Xdp>,
    told: HashMap<RelayId, Told>,
}

#[derive(Debug)]
struct Told {
    client: FiveTuple,
    ways: Vec<(Way, Instant)>,
}

/// A relay, with the addresses that its packets have.
#[derive(Debug, Clone, Copy)]
pub(in crate::shell) struct Ends {
    /// The client's.
    pub(in crate::shell) client: FiveTuple,
    /// The one of ours that the client sends to.
    pub(in crate::shell) server: SocketAddr,
    /// The one that the relay is bound to.
    pub(in crate::shell) relay: SocketAddr,
}

impl Channels {
    /// Of a shard that has told nothing yet.
    pub(in crate::shell) fn new(xdp: Arc<Xdp>) -> Self {
        Self {
            xdp,
            told: HashMap::new(),
        }
    }

    /// Tells what has changed of a relay's channels.
    pub(in crate::shell) fn update(&mut self, relay: RelayId, ends: Ends, open: &[OpenChannel]) {
        let told = self.told.entry(relay).or_insert_with(|| Told {
            client: ends.client,
            ways: Vec::new(),
        });
        let wanted: Vec<_> = open
            .iter()
            .filter_map(|channel| Some((way(ends, channel)?, channel.until)))
            .collect();
        for (way, _) in &told.ways {
            if !wanted.iter().any(|(wanted, _)| wanted == way) {
                self.xdp.remove(way);
            }
        }
        let before = std::mem::take(&mut told.ways);
        for (way, until) in wanted {
            if before.contains(&(way, until)) {
                told.ways.push((way, until));
                continue;
            }
            match self.xdp.put(&way, monotonic(until)) {
                Ok(()) => told.ways.push((way, until)),
                Err(error) => {
                    self.xdp.remove(&way);
                    tracing::debug!(?way, %error, "a channel stays in user space");
                }
            }
        }
    }

    /// Forgets a relay that is closed.
    pub(in crate::shell) fn remove(&mut self, relay: RelayId) {
        for (way, _) in self.told.remove(&relay).into_iter().flat_map(|told| told.ways) {
            self.xdp.remove(&way);
        }
    }

    /// The clients of all relays.
    pub(in crate::shell) fn clients(&self) -> Vec<FiveTuple> {
        self.told.values().map(|told| told.client).collect()
    }
}

/// Of IPv4 over UDP only.
fn way(ends: Ends, channel: &OpenChannel) -> Option<Way> {
    if ends.client.transport != Transport::Udp {
        return None;
    }
    Some(Way {
        client: v4(ends.client.remote)?,
        server: v4(ends.server)?,
        channel: channel.number.get(),
        relay: v4(ends.relay)?,
        peer: v4(channel.peer)?,
    })
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

/// The same moment by the clock that the program reads.
fn monotonic(until: Instant) -> Duration {
    clock::monotonic() + until.saturating_duration_since(clock::read().instant)
}
