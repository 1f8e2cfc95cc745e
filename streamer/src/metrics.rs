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
    /// Shows who is here, and whether another may come; and whether there is a picture.
    pub(crate) fn show(&self, status: &StreamerStatus, pictured: bool) {
        self.players.set(status.players.into());
        self.viewers.set(status.viewers.into());
        let open = i64::from(pictured);
        // Whoever is away has a seat, but no socket.
        let here = i64::from(status.players) - i64::from(status.away) + i64::from(status.viewers);
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use penstock_core::ids::{PlayerId, SessionId, StreamerId};
    use penstock_core::wire::link::{Back, Claim, Role};
    use penstock_core::wire::returning::ReturnToken;

    use super::*;
    use crate::owner::{Identity, status_of};
    use crate::session::{BID_WINDOW, Gone, Limits, LinkId, Session};

    /// Players and viewers connected, streams, whether there is one, and whether it is free.
    #[test]
    fn what_earlier_dashboards_show_is_true_at_all_times() {
        let mut story = Story::new();
        assert_eq!(story.earlier(), [0, 0, 0, 0], "nothing is shown yet");
        story.pictured = true;
        story.session.set_ready(true);
        assert_eq!(story.earlier(), [0, 1, 1, 1]);

        story.claim(1, Role::Player, false);
        assert_eq!(story.earlier(), [1, 1, 1, 0], "one plays");
        story.claim(2, Role::Viewer, false);
        assert_eq!(story.earlier(), [2, 1, 1, 0], "and one watches");
        story.gone(1, Gone::Lost, false);
        assert_eq!(
            story.earlier(),
            [1, 1, 1, 0],
            "the seat is kept, but nobody is on it"
        );
        story.claim(3, Role::Player, true);
        assert_eq!(story.earlier(), [2, 1, 1, 0], "back");
        story.gone(1, Gone::ForGood, true);
        story.gone(2, Gone::ForGood, true);
        assert_eq!(story.earlier(), [0, 1, 1, 1], "all have left");

        story.now += 2 * BID_WINDOW;
        story.session.timeout(story.now);
        story.claim(4, Role::Player, false);
        story.session.drain();
        assert_eq!(story.earlier(), [1, 1, 1, 0], "the last one, before it ends");
        story.gone(4, Gone::Lost, true);
        story.now += GRACE;
        story.session.timeout(story.now);
        assert_eq!(story.earlier(), [0, 1, 1, 0], "nobody may come any more");
    }

    #[test]
    fn one_that_ends_before_it_shows_anything_has_no_stream() {
        let mut story = Story::new();
        story.session.drain();
        assert_eq!(story.earlier(), [0, 0, 0, 0]);
    }

    struct Story {
        identity: Identity,
        session: Session,
        metrics: Metrics,
        now: Instant,
        pictured: bool,
    }

    impl Story {
        fn new() -> Self {
            let limits = Limits {
                players: 1,
                viewers: Some(4),
                return_grace: GRACE,
            };
            let identity = Identity {
                streamer_id: StreamerId::new("demo").unwrap(),
                application: None,
                stream: "720p30".parse().unwrap(),
                media_addresses: Vec::new(),
                limits,
            };
            Self {
                identity,
                session: Session::new(limits),
                metrics: Metrics::new().unwrap(),
                now: Instant::now(),
                pictured: false,
            }
        }

        /// As its owner shows it after each step.
        fn earlier(&self) -> [i64; 4] {
            let status = status_of(&self.identity, &self.session);
            self.metrics.show(&status, self.pictured);
            let families = self.metrics.registry.gather();
            let value = |metric: Metric| {
                let family = families.iter().find(|family| family.name() == metric.name);
                family.unwrap().get_metric()[0].get_gauge().value() as i64
            };
            [
                names::EARLIER_STREAM_PLAYERS,
                names::EARLIER_STREAM_CONNECTIONS,
                names::EARLIER_STREAM_OPEN,
                names::EARLIER_STREAM_FREE,
            ]
            .map(value)
        }

        fn claim(&mut self, link: u64, role: Role, back: bool) {
            let token = ReturnToken::new("seat", "secret").unwrap();
            let back = back.then(|| Back {
                token: token.clone(),
                live: true,
            });
            let claim = Claim {
                player_id: PlayerId::new("p").unwrap(),
                session_id: SessionId::new("show").unwrap(),
                role,
                waited_ms: 0,
                back,
                may_return: role == Role::Player,
            };
            let decided = self.session.claim(self.now, LinkId(link), claim, token);
            assert!(!format!("{decided:?}").contains("Refuse"), "{decided:?}");
        }

        fn gone(&mut self, link: u64, how: Gone, ended: bool) {
            self.session.gone(self.now, LinkId(link), how, ended);
        }
    }

    const GRACE: Duration = Duration::from_secs(30);
}
