//! The core's counters as Prometheus metrics.

use std::sync::Arc;
use std::time::Duration;

use penstock_core::metrics::{self, Metric};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::xdp::{Count, Xdp};
use crate::core::counters::{Count as Counted, Counters, Direction, Side};
use crate::core::wire::CHANNEL_HEADER_LEN;

/// Carries a shard's counters over to the registry. Shards may share one registry through clones.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    allocations: IntGauge,
    connections: IntGauge,
    handling: Histogram,
    counters: Vec<(Counted, IntCounter)>,
    published: Counters,
    published_allocations: usize,
    published_connections: usize,
    by_drivers: IntCounterVec,
}

impl Meter {
    /// Registers all there is, at 0.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let allocations = IntGauge::with_opts(opts(metrics::TURN_ALLOCATIONS))?;
        registry.register(Box::new(allocations.clone()))?;
        let connections = IntGauge::with_opts(opts(metrics::TURN_CONNECTIONS))?;
        registry.register(Box::new(connections.clone()))?;
        let metric = metrics::TURN_HANDLING_SECONDS;
        let handling = HistogramOpts::new(metric.name, metric.help);
        let buckets = prometheus::exponential_buckets(SHORTEST_S, 2.0, BUCKETS)?;
        let handling = Histogram::with_opts(handling.buckets(buckets))?;
        registry.register(Box::new(handling.clone()))?;
        let family = |metric, labels: &[&str]| {
            let family = IntCounterVec::new(opts(metric), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let families = Families {
            received_packets: family(metrics::TURN_RECEIVED_PACKETS, &["side"])?,
            received_bytes: family(metrics::TURN_RECEIVED_BYTES, &["side"])?,
            relayed_packets: family(metrics::TURN_RELAYED_PACKETS, &["direction"])?,
            relayed_bytes: family(metrics::TURN_RELAYED_BYTES, &["direction"])?,
            dropped: family(metrics::TURN_DROPPED_PACKETS, &["direction", "reason"])?,
            requests: family(metrics::TURN_REQUESTS, &["method", "class"])?,
            auth_failures: family(metrics::TURN_AUTH_FAILURES, &["reason"])?,
            connections_ended: family(metrics::TURN_CONNECTIONS_ENDED, &["reason"])?,
        };
        let by_drivers = family(metrics::TURN_XDP_PACKETS, &["direction"])?;
        Ok(Self {
            allocations,
            connections,
            handling,
            counters: Counted::all()
                .map(|count| (count, families.counter(count)))
                .collect(),
            published: Counters::default(),
            published_allocations: 0,
            published_connections: 0,
            by_drivers,
        })
    }

    /// Adds what came since the last call.
    pub(super) fn publish(&mut self, counters: &Counters, allocations: usize) {
        for (count, counter) in &self.counters {
            let new = counters.get(*count) - self.published.get(*count);
            if new > 0 {
                counter.inc_by(new);
                self.published.add(*count, new);
            }
        }
        publish_change(&self.allocations, &mut self.published_allocations, allocations);
    }

    /// Allocations alive, of all shards.
    pub(super) fn allocations(&self) -> u64 {
        u64::try_from(self.allocations.get()).unwrap_or(0)
    }

    /// Bytes of payload relayed both ways since the start, by all shards.
    pub(super) fn relayed_bytes(&self) -> u64 {
        let relayed = |(count, _): &&(Counted, IntCounter)| matches!(count, Counted::RelayedBytes(_));
        let counters = self.counters.iter().filter(relayed);
        counters.map(|(_, counter)| counter.get()).sum()
    }

    /// Adds what network drivers relay, every second, for ever.
    pub(super) async fn publish_xdp(self, xdp: Option<Arc<Xdp>>) {
        let Some(xdp) = xdp else {
            return std::future::pending().await;
        };
        let mut published = [Count::default(); Direction::ALL.len()];
        loop {
            for (direction, published) in Direction::ALL.into_iter().zip(&mut published) {
                let count = xdp.count(direction);
                self.add_xdp(direction, count.since(*published));
                *published = count;
            }
            tokio::time::sleep(XDP_EVERY).await;
        }
    }

    fn add_xdp(&self, direction: Direction, new: Count) {
        self.by_drivers
            .with_label_values(&[direction.label()])
            .inc_by(new.packets);
        let (side, around) = match direction {
            Direction::ToPeer => (Side::Client, CHANNEL_HEADER_LEN as u64),
            Direction::ToClient => (Side::Peer, 0),
        };
        for (count, counter) in &self.counters {
            let new = match count {
                Counted::ReceivedPackets(at) if *at == side => new.packets,
                Counted::ReceivedBytes(at) if *at == side => new.bytes + around * new.packets,
                Counted::RelayedPackets(to) if *to == direction => new.packets,
                Counted::RelayedBytes(to) if *to == direction => new.bytes,
                _ => continue,
            };
            counter.inc_by(new);
        }
    }

    /// Notes how long a round took.
    pub(super) fn took(&self, time: Duration) {
        self.handling.observe(time.as_secs_f64());
    }

    /// Says how many stream connections there are.
    pub(super) fn publish_connections(&mut self, connections: usize) {
        publish_change(&self.connections, &mut self.published_connections, connections);
    }
}

/// Adds what a gauge's number has changed by.
fn publish_change(gauge: &IntGauge, published: &mut usize, number: usize) {
    if number != *published {
        gauge.add(number as i64 - *published as i64);
        *published = number;
    }
}

struct Families {
    received_packets: IntCounterVec,
    received_bytes: IntCounterVec,
    relayed_packets: IntCounterVec,
    relayed_bytes: IntCounterVec,
    dropped: IntCounterVec,
    requests: IntCounterVec,
    auth_failures: IntCounterVec,
    connections_ended: IntCounterVec,
}

impl Families {
    fn counter(&self, count: Counted) -> IntCounter {
        match count {
            Counted::ReceivedPackets(side) => self.received_packets.with_label_values(&[side.label()]),
            Counted::ReceivedBytes(side) => self.received_bytes.with_label_values(&[side.label()]),
            Counted::RelayedPackets(direction) => {
                self.relayed_packets.with_label_values(&[direction.label()])
            }
            Counted::RelayedBytes(direction) => self.relayed_bytes.with_label_values(&[direction.label()]),
            Counted::Dropped(direction, reason) => self
                .dropped
                .with_label_values(&[direction.label(), reason.label()]),
            Counted::Requests(method, class) => {
                self.requests.with_label_values(&[method.label(), class.label()])
            }
            Counted::AuthFailures(reason) => self.auth_failures.with_label_values(&[reason.label()]),
            Counted::ConnectionsEnded(why) => self.connections_ended.with_label_values(&[why.label()]),
        }
    }
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

const XDP_EVERY: Duration = Duration::from_secs(1);
/// From 4 µs to 65 ms.
const SHORTEST_S: f64 = 4e-6;
const BUCKETS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_published_once() {
        let registry = Registry::new();
        let mut meter = Meter::new(&registry).unwrap();
        let mut counters = Counters::default();
        counters.relayed(Direction::ToPeer, 100);
        meter.publish(&counters, 2);
        meter.publish(&counters, 1);
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        assert!(
            text.contains("penstock_turn_relayed_bytes_total{direction=\"to_peer\"} 100\n"),
            "{text}"
        );
        assert!(text.contains("penstock_turn_relayed_packets_total{direction=\"to_peer\"} 1\n"));
        assert!(text.contains("penstock_turn_allocations 1\n"));
        assert_eq!((meter.allocations(), meter.relayed_bytes()), (1, 100));
    }
}
