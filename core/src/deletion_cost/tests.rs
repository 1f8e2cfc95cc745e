use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;

#[test]
fn bands_rise_with_who_is_there() {
    let of = |players, viewers| Band::of(Counts { players, viewers });
    let bands = [of(0, 0), of(0, 3), of(1, 0), of(2, 9), of(4, 0)];
    assert!(bands.is_sorted_by(|a, b| a < b && a.cost() < b.cost()));
    let safe: Vec<_> = bands.iter().map(|band| band.safe_to_evict()).collect();
    assert_eq!(safe, [true, true, false, false, false]);
}

#[test]
fn a_pod_is_raised_at_once_and_lowered_lazily() {
    let mut story = Story::new();
    story.found(Annotations::default());
    story.players(0);
    assert_eq!(story.write(0), said("0", "true"), "an idle pod is marked");
    story.players(1);
    assert_eq!(story.write(0), said("100", "false"));
    story.players(0);
    assert_eq!(story.write(9_999), None);
    assert_eq!(story.write(10_000), said("0", "true"));
    assert_eq!(story.write(60_000), None);
}

#[test]
fn one_who_comes_back_meanwhile_costs_no_write() {
    let mut story = Story::new();
    story.found(left("100", "false"));
    story.players(0);
    assert_eq!(story.write(6_000), None);
    story.players(1);
    story.players(0);
    assert_eq!(story.write(12_000), None, "the time runs anew");
    assert_eq!(story.write(16_000), said("0", "true"));
}

#[test]
fn what_is_found_after_a_restart_is_the_state() {
    let mut story = Story::new();
    story.found(left("100", "false"));
    assert_eq!(story.write(60_000), None, "nobody knows who is there");
    story.players(1);
    assert_eq!(story.write(60_000), None);
}

#[test]
fn what_others_have_set_is_left_alone() {
    let mut story = Story::new();
    let theirs = Annotations {
        cost: Some("-5".into()),
        ..Annotations::default()
    };
    story.found(theirs);
    story.players(1);
    let write = story.write(0).unwrap();
    assert_eq!(
        write,
        changes(&[
            (ANNOTATION_SAFE_TO_EVICT, Some("false")),
            (ANNOTATION_SET, Some("safe-to-evict=false"))
        ])
    );
    // Somebody takes over what was ours.
    let overruled = Annotations {
        cost: Some("7".into()),
        safe_to_evict: Some("true".into()),
        set: Some("safe-to-evict=false".into()),
    };
    story.found(overruled);
    let write = story.write(10_000).unwrap();
    assert_eq!(
        write,
        changes(&[(ANNOTATION_SET, None)]),
        "only our own note goes"
    );
    assert_eq!(story.write(100_000), None);
}

#[test]
fn only_our_own_go_from_a_pod_that_is_not_ours_any_more() {
    let mut story = Story::new();
    story.found(Annotations {
        cost: Some("7".into()),
        safe_to_evict: Some("true".into()),
        set: Some("pod-deletion-cost=0,safe-to-evict=true".into()),
    });
    story.players(0);
    story.costs.leave(story.now, &pod(0), true);
    let expected = changes(&[(ANNOTATION_SAFE_TO_EVICT, None), (ANNOTATION_SET, None)]);
    assert_eq!(story.write(0).unwrap(), expected);
    assert!(story.costs.pods.is_empty());
}

#[test]
fn a_pod_that_ends_is_written_on_no_more() {
    let mut story = Story::new();
    story.found(left("100", "false"));
    story.players(0);
    story.costs.leave(story.now, &pod(0), false);
    assert_eq!(story.write(60_000), None);
}

#[test]
fn a_write_that_failed_is_tried_again_later_and_later() {
    let mut story = Story::new();
    story.found(Annotations::default());
    story.players(1);
    let mut tries = Vec::new();
    while tries.len() < 10 {
        let due = story.costs.due(story.now).unwrap();
        tries.push(due.duration_since(story.now).as_millis());
        story.now = due;
        story.costs.next(due).unwrap();
        story.costs.done(due, &pod(0), Outcome::Failed);
    }
    assert_eq!(
        tries,
        [0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
    );
}

#[test]
fn old_news_after_a_write_is_not_believed() {
    let mut story = Story::new();
    story.found(Annotations::default());
    story.players(1);
    story.write(0).unwrap();
    story.found(Annotations::default());
    assert_eq!(story.write(1_000), None);
    story.now += OLD_NEWS_FOR;
    story.found(Annotations::default());
    assert_eq!(
        story.write(0),
        said("100", "false"),
        "somebody has removed it since"
    );
}

#[test]
fn raises_find_room_however_much_there_is_to_lower() {
    let start = some_time();
    let mut costs = Costs::new(10);
    for n in 0..100 {
        costs.found(start, &pod(n), left("100", "false"));
        costs.count(start, &pod(n), Some(Counts::default()));
    }
    let now = start + LOWERED_AFTER;
    let lowered = std::iter::from_fn(|| costs.next(now)).count();
    assert_eq!(lowered, 5);
    for n in 200..220 {
        costs.found(now, &pod(n), Annotations::default());
        costs.count(
            now,
            &pod(n),
            Some(Counts {
                players: 1,
                viewers: 0,
            }),
        );
    }
    let raised = std::iter::from_fn(|| costs.next(now)).count();
    assert_eq!(raised, 5);
    assert_eq!(costs.due(now), Some(now + SECOND));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn flapping_players_cost_few_writes_and_no_player_its_pod(seed in any::<[u8; 32]>()) {
        Cluster::new(seed).run();
    }
}

/// 100 pods with 1,000 joins and as many leaves in each of three minutes, and an API server that takes up to 150 ms
/// for a write and refuses one in twenty.
struct Cluster {
    rng: TestRng,
    now: Instant,
    costs: Costs,
    pods: BTreeMap<PodUid, OnServer>,
    in_flight: Vec<(Instant, Write)>,
    writes: Vec<Instant>,
}

#[derive(Default)]
struct OnServer {
    players: u32,
    annotations: Annotations,
    refused: u32,
    /// Since when it is cheaper than an idle one although it has a player.
    exposed: Option<Instant>,
}

impl Cluster {
    fn new(seed: [u8; 32]) -> Self {
        let now = some_time();
        let mut costs = Costs::new(PER_SECOND);
        let pods: BTreeMap<_, _> = (0..PODS).map(|n| (pod(n), OnServer::default())).collect();
        for uid in pods.keys() {
            costs.found(now, uid, Annotations::default());
            costs.count(now, uid, Some(Counts::default()));
        }
        Self {
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
            now,
            costs,
            pods,
            in_flight: Vec::new(),
            writes: Vec::new(),
        }
    }

    fn below(&mut self, n: u32) -> u32 {
        self.rng.next_u32() % n
    }

    fn run(&mut self) {
        let start = self.now;
        let mut changes: Vec<_> = (0..6_000).map(|n| (self.below(180_000), n % 2 == 0)).collect();
        changes.sort_unstable();
        for (at, join) in changes {
            self.until(start + Duration::from_millis(at.into()));
            self.flap(join);
        }
        self.until(self.now + Duration::from_secs(60));
        for (uid, on_server) in &self.pods {
            let band = Band::of(Counts {
                players: on_server.players,
                viewers: 0,
            });
            assert_eq!(on_server.annotations.cost_in_effect(), band.cost(), "{uid}");
        }
        for few in self.writes.windows(PER_SECOND as usize + 1) {
            assert!(few[few.len() - 1] >= few[0] + SECOND, "too many writes");
        }
    }

    /// Somebody joins a pod that is free, or leaves one.
    fn flap(&mut self, join: bool) {
        let fit: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| (pod.players == 0) == join)
            .map(|(uid, _)| uid.clone())
            .collect();
        let Some(count) = u32::try_from(fit.len()).ok().filter(|count| *count > 0) else {
            return;
        };
        let uid = &fit[self.below(count) as usize];
        self.pods.get_mut(uid).unwrap().players = u32::from(join);
        let counts = Counts {
            players: join.into(),
            viewers: 0,
        };
        self.costs.count(self.now, uid, Some(counts));
        self.step();
    }

    fn until(&mut self, end: Instant) {
        loop {
            let landing = self.in_flight.iter().map(|(at, _)| *at).min();
            let next = landing.into_iter().chain(self.costs.due(self.now)).min();
            match next.filter(|next| *next <= end) {
                Some(next) => {
                    self.now = next.max(self.now);
                    self.step();
                }
                None => {
                    self.now = end;
                    return;
                }
            }
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let (landed, flying) = self.in_flight.drain(..).partition(|(at, _)| *at <= now);
        self.in_flight = flying;
        for (_, write) in landed {
            self.land(&write);
        }
        while let Some(write) = self.costs.next(now) {
            self.writes.push(now);
            let takes = Duration::from_millis(self.below(150).into());
            self.in_flight.push((now + takes, write));
        }
        self.look();
    }

    fn land(&mut self, write: &Write) {
        let refuse = self.below(20) == 0;
        let on_server = self.pods.get_mut(&write.pod).unwrap();
        if refuse && on_server.refused < 2 {
            on_server.refused += 1;
            self.costs.done(self.now, &write.pod, Outcome::Failed);
            return;
        }
        on_server.refused = 0;
        apply(&mut on_server.annotations, &write.annotations);
        let annotations = on_server.annotations.clone();
        self.costs.done(self.now, &write.pod, Outcome::Written);
        self.costs.found(self.now, &write.pod, annotations);
    }

    fn look(&mut self) {
        let now = self.now;
        let idle = self.pods.values().filter(|pod| pod.players == 0);
        let dearest = idle.map(|pod| pod.annotations.cost_in_effect()).max();
        for (uid, pod) in &mut self.pods {
            let cost = pod.annotations.cost_in_effect();
            let cheaper = pod.players > 0 && dearest.is_some_and(|idle| cost < idle);
            pod.exposed = cheaper.then(|| pod.exposed.unwrap_or(now));
            let long = pod.exposed.map_or(Duration::ZERO, |since| now - since);
            assert!(
                long <= Duration::from_secs(2),
                "{uid} was cheaper than an idle pod for {long:?}"
            );
        }
    }
}

/// One pod, and a clock.
struct Story {
    now: Instant,
    start: Instant,
    costs: Costs,
    on_server: Annotations,
}

impl Story {
    fn new() -> Self {
        let now = some_time();
        Self {
            now,
            start: now,
            costs: Costs::new(10),
            on_server: Annotations::default(),
        }
    }

    fn found(&mut self, annotations: Annotations) {
        self.on_server = annotations.clone();
        self.costs.found(self.now, &pod(0), annotations);
    }

    fn players(&mut self, players: u32) {
        let counts = Counts { players, viewers: 0 };
        self.costs.count(self.now, &pod(0), Some(counts));
    }

    /// The write that is there so many milliseconds after the start, at the latest now, and it succeeds.
    fn write(&mut self, at_ms: u64) -> Option<BTreeMap<&'static str, Option<String>>> {
        self.now = self.now.max(self.start + Duration::from_millis(at_ms));
        let write = self.costs.next(self.now)?;
        apply(&mut self.on_server, &write.annotations);
        self.costs.done(self.now, &write.pod, Outcome::Written);
        Some(write.annotations)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a story has to begin some time; its clock goes on from there"
)]
fn some_time() -> Instant {
    Instant::now()
}

fn pod(n: u32) -> PodUid {
    PodUid::new(format!("pod-{n}")).unwrap()
}

fn left(cost: &str, safe: &str) -> Annotations {
    Annotations {
        cost: Some(cost.into()),
        safe_to_evict: Some(safe.into()),
        set: Some(format!("pod-deletion-cost={cost},safe-to-evict={safe}")),
    }
}

fn said(cost: &str, safe: &str) -> Option<BTreeMap<&'static str, Option<String>>> {
    let set = format!("pod-deletion-cost={cost},safe-to-evict={safe}");
    Some(changes(&[
        (ANNOTATION_DELETION_COST, Some(cost)),
        (ANNOTATION_SAFE_TO_EVICT, Some(safe)),
        (ANNOTATION_SET, Some(&set)),
    ]))
}

fn changes(all: &[(&'static str, Option<&str>)]) -> BTreeMap<&'static str, Option<String>> {
    all.iter()
        .map(|(name, value)| (*name, value.map(str::to_owned)))
        .collect()
}

fn apply(annotations: &mut Annotations, changes: &BTreeMap<&'static str, Option<String>>) {
    for (name, value) in changes {
        let field = match *name {
            ANNOTATION_DELETION_COST => &mut annotations.cost,
            ANNOTATION_SAFE_TO_EVICT => &mut annotations.safe_to_evict,
            _ => &mut annotations.set,
        };
        field.clone_from(value);
    }
}

const PODS: u32 = 100;
const PER_SECOND: u32 = 20;
