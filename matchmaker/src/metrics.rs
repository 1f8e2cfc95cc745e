//! The matchmaker's metrics: our own, and beside them those that dashboards and autoscalers of an earlier deployment
//! know. What is true of the lobby is asked of it when `/metrics` is asked for, so it is never old.
//!
//! With several replicas, players and queues add up, and streamers count once: each replica knows all of them.
//! `manifests/components/monitoring/rules.yaml` does that.

use penstock_core::metrics::{
    EARLIER_AVAILABLE, EARLIER_DEMAND_RATIO, EARLIER_PLAYERS, EARLIER_QUEUE, EARLIER_STREAMERS,
    MATCHMAKER_BAD_MESSAGES, MATCHMAKER_CAPACITY, MATCHMAKER_CLAIMS, MATCHMAKER_DEMAND, MATCHMAKER_PLAYERS,
    MATCHMAKER_QUEUE, MATCHMAKER_REFUSED, MATCHMAKER_STREAMERS, MATCHMAKER_WAIT, Metric,
};
use penstock_core::wire::status::StreamerState;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tokio::sync::{mpsc, oneshot};

use crate::events::Event;
use crate::lobby::{Outcome, StreamerView, View};
use crate::problem::Reason;

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
    refused: IntCounterVec,
    wait: Histogram,
    taken: IntGauge,
    capacity: IntGauge,
    earlier: Earlier,
}

/// Those of an earlier deployment.
#[derive(Debug, Clone)]
struct Earlier {
    players: IntGauge,
    queue: IntGauge,
    available: IntGauge,
    streamers: IntGauge,
    demand_ratio: Gauge,
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
            refused: register(
                &registry,
                IntCounterVec::new(opts(MATCHMAKER_REFUSED), &["reason"])?,
            )?,
            wait: register(&registry, Histogram::with_opts(wait_opts())?)?,
            taken: register(&registry, IntGauge::with_opts(opts(MATCHMAKER_DEMAND))?)?,
            capacity: register(&registry, IntGauge::with_opts(opts(MATCHMAKER_CAPACITY))?)?,
            earlier: Earlier {
                players: register(&registry, IntGauge::with_opts(opts(EARLIER_PLAYERS))?)?,
                queue: register(&registry, IntGauge::with_opts(opts(EARLIER_QUEUE))?)?,
                available: register(&registry, IntGauge::with_opts(opts(EARLIER_AVAILABLE))?)?,
                streamers: register(&registry, IntGauge::with_opts(opts(EARLIER_STREAMERS))?)?,
                demand_ratio: register(&registry, Gauge::with_opts(opts(EARLIER_DEMAND_RATIO))?)?,
            },
            registry,
        };
        // All series exist from the start, so that a rate over them is never without data.
        for outcome in ["claimed", "refused", "failed"] {
            made.claims.with_label_values(&[outcome]);
        }
        for reason in Reason::ALL {
            made.refused.with_label_values(&[reason.label()]);
        }
        Ok(made)
    }

    /// Counts what became of a claim.
    pub fn claim(&self, outcome: Outcome) {
        let label = match outcome {
            Outcome::Claimed(waited) => {
                if let Some(waited) = waited {
                    self.wait.observe(waited.as_secs_f64());
                }
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

    /// Counts somebody who was refused.
    pub fn refused(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.label()]).inc();
    }

    /// Asks the desk how the lobby stands, and shows it. Where the program ends, the last answer stays.
    pub async fn refresh(&self, desk: &mpsc::Sender<Event>) {
        let (answer, view) = oneshot::channel();
        let asked = desk.send(Event::Look(answer)).await;
        if let (Ok(()), Ok(view)) = (asked, view.await) {
            self.show(&view);
        }
    }

    fn show(&self, view: &View) {
        let demand = Demand::of(view);
        self.taken.set(gauge(demand.taken));
        self.capacity.set(gauge(demand.capacity));
        self.earlier.players.set(gauge(view.players));
        self.earlier.queue.set(gauge(view.waiting));
        self.earlier.streamers.set(gauge(view.streamers.len()));
        self.earlier.available.set(gauge(demand.free));
        self.earlier.demand_ratio.set(demand.ratio());
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

/// How much of what there is is asked for: in places for players, but for `free`, which counts streamers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Demand {
    waiting: usize,
    taken: usize,
    free: usize,
    capacity: usize,
}

impl Demand {
    fn of(view: &View) -> Self {
        // One that drains is no capacity any more, and its player takes none of what is left.
        let stays = |streamer: &&StreamerView| streamer.state != StreamerState::Draining;
        let places = |streamer: &StreamerView| usize::try_from(streamer.max_players).unwrap_or(usize::MAX);
        // A busy one takes nobody, however few are on it: it may have no player for a moment.
        let taken = |streamer: &StreamerView| {
            let busy = usize::from(streamer.state == StreamerState::Busy);
            let players = usize::try_from(streamer.players).unwrap_or(usize::MAX);
            players.max(places(streamer).saturating_mul(busy))
        };
        let is_free = |streamer: &&StreamerView| streamer.state == StreamerState::Free;
        Self {
            waiting: view.waiting,
            taken: view.streamers.iter().filter(stays).map(taken).sum(),
            free: view.streamers.iter().filter(is_free).count(),
            capacity: view.streamers.iter().filter(stays).map(places).sum(),
        }
    }

    /// Never infinite and never not a number: an autoscaler could do nothing with it. Without any streamer, who waits
    /// counts as if there were one place.
    fn ratio(&self) -> f64 {
        let demand = self.waiting.saturating_add(self.taken);
        demand as f64 / self.capacity.max(1) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(waiting: usize, streamers: &[(StreamerState, u32)]) -> f64 {
        ratio_of(1, waiting, streamers)
    }

    fn ratio_of(max_players: u32, waiting: usize, streamers: &[(StreamerState, u32)]) -> f64 {
        let view = |(n, (state, players)): (usize, &(StreamerState, u32))| StreamerView {
            max_players,
            streamer_id: format!("s{n}").parse().unwrap(),
            state: *state,
            players: *players,
            viewers: 0,
            away: 0,
        };
        let view = View {
            streamers: streamers.iter().enumerate().map(view).collect(),
            waiting,
            players: 0,
        };
        Demand::of(&view).ratio()
    }

    #[test]
    fn the_ratio_is_who_plays_or_waits_for_each_streamer() {
        use StreamerState::{Busy, Draining, Free, Starting};
        assert!((ratio(1, &[(Busy, 1), (Free, 0), (Starting, 0), (Busy, 1)]) - 0.75).abs() < 1e-9);
        assert!((ratio(0, &[(Draining, 1), (Busy, 1), (Free, 0)]) - 0.5).abs() < 1e-9);
        assert!(
            (ratio(0, &[(Busy, 0), (Free, 0)]) - 0.5).abs() < 1e-9,
            "kept for one who comes back"
        );
        assert!((ratio(3, &[(Busy, 1)]) - 4.0).abs() < 1e-9);
    }

    /// With four players each, one in two of four places is no reason for more streamers.
    #[test]
    fn where_several_share_a_streamer_its_places_count() {
        use StreamerState::{Busy, Free};
        assert!((ratio_of(4, 0, &[(Free, 3), (Free, 1)]) - 0.5).abs() < 1e-9);
        assert!((ratio_of(4, 2, &[(Busy, 4), (Free, 0)]) - 0.75).abs() < 1e-9);
        assert!(
            (ratio_of(4, 0, &[(Busy, 1)]) - 1.0).abs() < 1e-9,
            "a busy one takes nobody"
        );
    }

    #[test]
    fn without_streamers_the_ratio_is_a_number() {
        assert!(ratio(0, &[]).abs() < 1e-9);
        assert!((ratio(7, &[]) - 7.0).abs() < 1e-9);
        assert!((ratio(7, &[(StreamerState::Draining, 1)]) - 7.0).abs() < 1e-9);
    }
}
