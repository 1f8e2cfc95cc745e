//! The matchmaker's metrics.

use penstock_core::metrics::{
    MATCHMAKER_BAD_MESSAGES, MATCHMAKER_CLAIMS, MATCHMAKER_PLAYERS, MATCHMAKER_QUEUE, MATCHMAKER_STREAMERS,
    MATCHMAKER_WAIT, Metric,
};
use penstock_core::wire::status::StreamerState;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::lobby::{Outcome, View};

/// All of them, and the registry that they are in.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    players: IntGauge,
    queue: IntGauge,
    streamers: IntGaugeVec,
    claims: IntCounterVec,
    bad_messages: IntCounter,
    wait: Histogram,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// Where two have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let made = Self {
            players: register(&registry, IntGauge::with_opts(opts(MATCHMAKER_PLAYERS))?)?,
            queue: register(&registry, IntGauge::with_opts(opts(MATCHMAKER_QUEUE))?)?,
            streamers: register(
                &registry,
                IntGaugeVec::new(opts(MATCHMAKER_STREAMERS), &["state"])?,
            )?,
            claims: register(
                &registry,
                IntCounterVec::new(opts(MATCHMAKER_CLAIMS), &["outcome"])?,
            )?,
            bad_messages: register(&registry, IntCounter::with_opts(opts(MATCHMAKER_BAD_MESSAGES))?)?,
            wait: register(&registry, Histogram::with_opts(wait_opts())?)?,
            registry,
        };
        // All series exist from the start, so that a rate over them is never without data.
        for outcome in ["claimed", "refused", "failed"] {
            made.claims.with_label_values(&[outcome]);
        }
        Ok(made)
    }

    /// Counts what became of a claim.
    pub fn claim(&self, outcome: Outcome) {
        let label = match outcome {
            Outcome::Claimed(waited) => {
                self.wait.observe(waited.as_secs_f64());
                "claimed"
            }
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        };
        self.claims.with_label_values(&[label]).inc();
    }

    /// Counts a message that could not be understood.
    pub fn bad_message(&self) {
        self.bad_messages.inc();
    }

    /// Shows how the lobby stands.
    pub fn show(&self, view: &View) {
        self.players.set(gauge(view.players));
        self.queue.set(gauge(view.waiting));
        for (state, label) in STATES {
            let count = view
                .streamers
                .iter()
                .filter(|streamer| streamer.state == state)
                .count();
            self.streamers.with_label_values(&[label]).set(gauge(count));
        }
    }
}

const STATES: [(StreamerState, &str); 4] = [
    (StreamerState::Starting, "starting"),
    (StreamerState::Free, "free"),
    (StreamerState::Busy, "busy"),
    (StreamerState::Draining, "draining"),
];

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

fn wait_opts() -> HistogramOpts {
    let buckets = vec![0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];
    HistogramOpts::new(MATCHMAKER_WAIT.name, MATCHMAKER_WAIT.help).buckets(buckets)
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
