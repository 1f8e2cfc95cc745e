//! The extender's metrics. Labels are bounded: verbs, reasons, resources and kinds by what this program knows.

use std::time::Instant;

use penstock_core::metrics::{
    EXTENDER_BAD_REQUESTS, EXTENDER_DECISIONS, EXTENDER_FRAGMENTATION, EXTENDER_FREE, EXTENDER_KNOWLEDGE_AGE,
    EXTENDER_PACKED, EXTENDER_REQUEST_SECONDS, Metric,
};
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramTimer, HistogramVec, IntCounterVec, Opts, Registry,
};

use crate::index::{Dimension, Obstacle, Refusal, Usage, Verdict};
use crate::watches::{News, Watched};

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// What `/metrics` shows.
    pub(crate) registry: Registry,
    seconds: HistogramVec,
    decisions: IntCounterVec,
    bad_requests: IntCounterVec,
    packed: GaugeVec,
    free: GaugeVec,
    fragmentation: Gauge,
    age: GaugeVec,
}

/// What the scheduler can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Filter,
    Prioritize,
    Bind,
    Preempt,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Filter, Self::Prioritize, Self::Bind, Self::Preempt];

    fn label(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Prioritize => "prioritize",
            Self::Bind => "bind",
            Self::Preempt => "preempt",
        }
    }
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// Where two have one name.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let seconds = HistogramOpts::new(EXTENDER_REQUEST_SECONDS.name, EXTENDER_REQUEST_SECONDS.help);
        let made = Self {
            seconds: register(
                &registry,
                HistogramVec::new(seconds.buckets(BUCKETS.to_vec()), &["verb"])?,
            )?,
            decisions: register(
                &registry,
                IntCounterVec::new(opts(EXTENDER_DECISIONS), &["verb", "reason"])?,
            )?,
            bad_requests: register(
                &registry,
                IntCounterVec::new(opts(EXTENDER_BAD_REQUESTS), &["verb"])?,
            )?,
            packed: register(&registry, GaugeVec::new(opts(EXTENDER_PACKED), &["resource"])?)?,
            free: register(&registry, GaugeVec::new(opts(EXTENDER_FREE), &["resource"])?)?,
            fragmentation: register(&registry, Gauge::with_opts(opts(EXTENDER_FRAGMENTATION))?)?,
            age: register(
                &registry,
                GaugeVec::new(opts(EXTENDER_KNOWLEDGE_AGE), &["resource"])?,
            )?,
            registry,
        };
        // A counter that is not there until it counts can't be alerted on.
        for verb in Verb::ALL {
            made.bad_requests.with_label_values(&[verb.label()]);
        }
        Ok(made)
    }

    /// Measures until it is dropped.
    pub(crate) fn time(&self, verb: Verb) -> HistogramTimer {
        self.seconds.with_label_values(&[verb.label()]).start_timer()
    }

    /// Counts a request that could not be understood.
    pub(crate) fn bad_request(&self, verb: Verb) {
        self.bad_requests.with_label_values(&[verb.label()]).inc();
    }

    /// Counts what became of each node.
    pub(crate) fn filter(&self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            self.decided(Verb::Filter, of_verdict(verdict), 1);
        }
    }

    /// Counts nodes where others could make room, and those where not.
    pub(crate) fn preempt(&self, proposed: usize, helped: usize) {
        self.decided(Verb::Preempt, "victims", helped as u64);
        self.decided(Verb::Preempt, "no_help", proposed.saturating_sub(helped) as u64);
    }

    /// Counts what became of a pod.
    pub(crate) fn bind(&self, outcome: &'static str) {
        self.decided(Verb::Bind, outcome, 1);
    }

    fn decided(&self, verb: Verb, reason: &str, times: u64) {
        self.decisions
            .with_label_values(&[verb.label(), reason])
            .inc_by(times);
    }

    /// Shows how the cluster stands.
    pub(crate) fn show(&self, usage: &Usage) {
        for (i, dimension) in Dimension::ALL.into_iter().enumerate() {
            let label = [resource(dimension)];
            self.packed.with_label_values(&label).set(usage.packed[i] as f64);
            self.free.with_label_values(&label).set(usage.free[i] as f64);
        }
        self.fragmentation.set(usage.fragmentation);
    }

    /// Shows how old it is what is known.
    pub(crate) fn show_age(&self, news: &News, now: Instant) {
        for of in Watched::ALL {
            self.age
                .with_label_values(&[of.name()])
                .set(news.age(of, now).as_secs_f64());
        }
    }
}

fn of_verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Fits => "fits",
        Verdict::Refused(why) | Verdict::Unresolvable(why) => match why {
            Refusal::NoGpus => "no_gpus",
            Refusal::Unregistered => "unregistered",
            Refusal::Sessions { .. } => "sessions",
            Refusal::Gpu { obstacle, .. } => of_obstacle(obstacle),
        },
    }
}

fn of_obstacle(obstacle: &Obstacle) -> &'static str {
    match obstacle {
        Obstacle::Load { .. } => "load",
        Obstacle::Short { dimension, .. } => resource(*dimension),
        Obstacle::TooSmall { .. } => "too_small",
        Obstacle::Unhealthy { .. } => "unhealthy",
    }
}

fn resource(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Encoder => "nvenc",
        Dimension::Sms => "mps",
        Dimension::Memory => "vram",
        Dimension::Clients => "mps_clients",
    }
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// From what a question takes to how long a bind may wait, in seconds.
const BUCKETS: [f64; 13] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0,
];
