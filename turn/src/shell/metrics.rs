//! The core's counters as Prometheus metrics.

use std::time::Duration;

use penstock_core::metrics::{self, Metric};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::core::counters::{Count, Counters};

/// Carries a shard's counters over to the registry. Shards may share one registry through clones.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    allocations: IntGauge,
    connections: IntGauge,
    handling: Histogram,
    counters: Vec<(Count, IntCounter)>,
    published: Counters,
    published_allocations: usize,
    published_connections: usize,
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
        Ok(Self {
            allocations,
            connections,
            handling,
            counters: Count::all()
                .map(|count| (count, families.counter(count)))
                .collect(),
            published: Counters::default(),
            published_allocations: 0,
            published_connections: 0,
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
        let relayed = |(count, _): &&(Count, IntCounter)| matches!(count, Count::RelayedBytes(_));
        let counters = self.counters.iter().filter(relayed);
        counters.map(|(_, counter)| counter.get()).sum()
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
    fn counter(&self, count: Count) -> IntCounter {
        match count {
            Count::ReceivedPackets(side) => self.received_packets.with_label_values(&[side.label()]),
            Count::ReceivedBytes(side) => self.received_bytes.with_label_values(&[side.label()]),
            Count::RelayedPackets(direction) => self.relayed_packets.with_label_values(&[direction.label()]),
            Count::RelayedBytes(direction) => self.relayed_bytes.with_label_values(&[direction.label()]),
            Count::Dropped(direction, reason) => self
                .dropped
                .with_label_values(&[direction.label(), reason.label()]),
            Count::Requests(method, class) => {
                self.requests.with_label_values(&[method.label(), class.label()])
            }
            Count::AuthFailures(reason) => self.auth_failures.with_label_values(&[reason.label()]),
            Count::ConnectionsEnded(why) => self.connections_ended.with_label_values(&[why.label()]),
        }
    }
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

/// From 4 µs to 65 ms.
const SHORTEST_S: f64 = 4e-6;
const BUCKETS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::counters::Direction;

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
