//! This streamer's metrics.

use penstock_core::metrics::{self as names, Metric};
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// All counters and gauges, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) players: IntGauge,
    pub(crate) viewers: IntGauge,
    pub(crate) units: IntGauge,
    earlier: Earlier,
    pub(crate) frames: IntCounter,
    pub(crate) keyframes: IntCounter,
    pub(crate) frames_dropped: IntCounter,
    pub(crate) encoded_bytes: IntCounter,
    pub(crate) copied_bytes: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) sent_packets: IntCounter,
    pub(crate) transport_feedback: IntCounter,
    pub(crate) claims: IntCounterVec,
    pub(crate) input_events: IntCounterVec,
    pub(crate) bad_messages: IntCounterVec,
    pub(crate) app_restarts: IntCounter,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        Ok(Self {
            players: gauge(&registry, names::STREAMER_PLAYERS)?,
            viewers: gauge(&registry, names::STREAMER_VIEWERS)?,
            units: gauge(&registry, names::STREAMER_UNITS)?,
            earlier: Earlier {
                players: gauge(&registry, names::EARLIER_STREAM_PLAYERS)?,
                streams: gauge(&registry, names::EARLIER_STREAM_CONNECTIONS)?,
                open: gauge(&registry, names::EARLIER_STREAM_OPEN)?,
                free: gauge(&registry, names::EARLIER_STREAM_FREE)?,
            },
            frames: counter(&registry, names::STREAMER_FRAMES)?,
            keyframes: counter(&registry, names::STREAMER_KEYFRAMES)?,
            frames_dropped: counter(&registry, names::STREAMER_FRAMES_DROPPED)?,
            encoded_bytes: counter(&registry, names::STREAMER_ENCODED_BYTES)?,
            copied_bytes: counter(&registry, names::STREAMER_COPIED_BYTES)?,
            sent_bytes: counter(&registry, names::STREAMER_SENT_BYTES)?,
            sent_packets: counter(&registry, names::STREAMER_SENT_PACKETS)?,
            transport_feedback: counter(&registry, names::STREAMER_TRANSPORT_FEEDBACK)?,
            claims: counters(&registry, names::STREAMER_CLAIMS, "answer")?,
            input_events: counters(&registry, names::STREAMER_INPUT_EVENTS, "kind")?,
            bad_messages: counters(&registry, names::STREAMER_BAD_MESSAGES, "link")?,
            app_restarts: counter(&registry, names::STREAMER_APP_RESTARTS)?,
            registry,
        })
    }
}

/// The names that dashboards of an earlier deployment know.
#[derive(Debug, Clone)]
struct Earlier {
    players: IntGauge,
    streams: IntGauge,
    open: IntGauge,
    free: IntGauge,
}

impl Metrics {
    /// Shows who is here, and whether another may come.
    pub(crate) fn show(&self, status: &StreamerStatus) {
        self.players.set(status.players.into());
        self.viewers.set(status.viewers.into());
        let open = i64::from(status.state != StreamerState::Starting);
        let here = i64::from(status.players) + i64::from(status.viewers);
        self.earlier.players.set(here);
        self.earlier.streams.set(open);
        self.earlier.open.set(open);
        self.earlier
            .free
            .set(i64::from(status.state == StreamerState::Free));
    }
}

fn gauge(registry: &Registry, metric: Metric) -> prometheus::Result<IntGauge> {
    let gauge = IntGauge::new(metric.name, metric.help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn counter(registry: &Registry, metric: Metric) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(metric.name, metric.help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn counters(registry: &Registry, metric: Metric, label: &str) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(metric.name, metric.help), &[label])?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}
