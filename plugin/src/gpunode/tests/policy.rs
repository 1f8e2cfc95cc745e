//! The policy, with a held clock.

use std::time::{Duration, Instant};

use penstock_core::gpu_node::GpuNodeSpec;
use proptest::prelude::*;

use super::super::policy::{
    AT_MOST_EVERY, GATHER, Jitter, LONGEST_BACKOFF, MEASURED_EVERY, Policy, REFRESH_EVERY,
};
use super::support::{loaded, taken};

#[test]
fn the_first_state_is_written_at_once() {
    let mut node = Node::new();
    node.policy.set(node.now, "", taken(1));
    assert_eq!(node.policy.due(), Some(node.now));
}

#[test]
fn changes_that_come_together_are_one_write() {
    let mut node = Node::settled(taken(1));
    node.pass(AT_MOST_EVERY);
    for units in [2, 3, 4] {
        node.policy.set(node.now, "", taken(units));
        node.pass(GATHER / 4);
    }
    node.pass(GATHER);
    assert_eq!(node.written(), [4]);
}

#[test]
fn a_stream_of_changes_is_written_once_a_second() {
    let mut node = Node::settled(taken(1));
    for units in 2..=41 {
        node.policy.set(node.now, "", taken(units));
        node.pass(Duration::from_millis(100));
    }
    let times: Vec<_> = node.writes.iter().map(|(at, _)| *at - node.start).collect();
    assert_eq!(times, [1, 2, 3, 4].map(Duration::from_secs));
}

#[test]
fn what_changes_back_is_not_written() {
    let mut node = Node::settled(taken(1));
    node.policy.set(node.now, "", taken(2));
    node.policy.set(node.now, "", taken(1));
    node.pass(Duration::from_secs(60));
    assert!(node.writes.is_empty());
}

#[test]
fn a_load_is_written_when_it_leaves_its_band_for_good() {
    let mut node = Node::settled(loaded(1, 35));
    for percent in [39, 42, 43, 38] {
        node.policy.set(node.now, "", loaded(1, percent));
        node.pass(Duration::from_secs(5));
    }
    node.pass(MEASURED_EVERY);
    assert!(node.writes.is_empty(), "it went back in time");
    node.policy.set(node.now, "", loaded(1, 43));
    assert_eq!(node.policy.due(), Some(node.start + MEASURED_EVERY));
    node.pass(Duration::ZERO);
    assert_eq!(node.bands(), [Some(40)]);
}

#[test]
fn a_load_that_is_known_no_more_is_not_0() {
    let mut node = Node::settled(loaded(1, 35));
    node.policy.set(node.now, "", taken(1));
    node.pass(MEASURED_EVERY);
    assert_eq!(node.bands(), [None]);
}

#[test]
fn a_change_of_facts_brings_the_newest_load() {
    let mut node = Node::settled(loaded(1, 35));
    node.pass(AT_MOST_EVERY);
    node.policy.set(node.now, "", loaded(2, 77));
    node.pass(AT_MOST_EVERY);
    assert_eq!((node.written(), node.bands()), (vec![2], vec![Some(70)]));
}

#[test]
fn measurements_are_jittered() {
    let mut policy = Policy::default();
    let start = Instant::now();
    policy.set(start, "", loaded(1, 5));
    policy.begin(start).unwrap();
    policy.wrote(start, Jitter::new(1.0));
    policy.set(start, "", loaded(1, 50));
    assert_eq!(policy.due(), Some(start + MEASURED_EVERY.mul_f64(1.2)));
}

#[test]
fn nothing_new_is_said_again_after_five_minutes() {
    let mut node = Node::settled(taken(1));
    node.pass(REFRESH_EVERY);
    assert_eq!(node.written(), [1]);
}

#[test]
fn failures_wait_longer_and_longer_for_the_newest_state() {
    let mut node = Node::with(1.0);
    node.up = false;
    node.policy.set(node.now, "", taken(1));
    node.pass(Duration::from_secs(300));
    let gaps: Vec<_> = node
        .attempts
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs())
        .collect();
    assert_eq!(gaps[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    node.up = true;
    node.policy.set(node.now, "", taken(2));
    node.pass(LONGEST_BACKOFF);
    assert_eq!(node.written(), [2]);
}

#[test]
fn nothing_is_begun_while_a_write_is_in_flight() {
    let mut policy = Policy::default();
    let start = Instant::now();
    policy.set(start, "", taken(1));
    policy.begin(start).unwrap();
    policy.set(start, "", taken(2));
    assert_eq!(policy.due(), None);
    assert!(policy.begin(start + LONGEST_BACKOFF).is_none());
    policy.wrote(start, Jitter::new(0.0));
    assert_eq!(policy.due(), Some(start + AT_MOST_EVERY));
}

#[test]
fn chance_out_of_range_is_brought_into_it() {
    for (chance, wait) in [(f64::NAN, 500), (-1.0, 500), (7.0, 1000)] {
        let mut policy = Policy::default();
        assert_eq!(
            policy.failed(Instant::now(), Jitter::new(chance)),
            Duration::from_millis(wait)
        );
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Another pod gets a slice.
    Facts,
    /// The load becomes this.
    Load(u8),
    /// The API server comes or goes.
    Up(bool),
}

fn steps(outages: bool) -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        3 => Just(Step::Facts),
        4 => (0..=100u8).prop_map(Step::Load),
        1 => any::<bool>().prop_map(move |up| Step::Up(up || !outages)),
    ];
    let pause = prop_oneof![0..300u64, 0..5_000u64, 0..40_000u64];
    proptest::collection::vec((pause, step), 1..60)
}

proptest! {
    #[test]
    fn a_change_is_written_within_a_second(steps in steps(false), jitter in 0.0..=1.0f64) {
        let mut node = Node::with(jitter);
        let changes = node.live(&steps);
        for (at, facts) in changes {
            let in_time = node.writes.iter().any(|(when, content)| {
                *when >= at && *when <= at + Duration::from_secs(1) && units(content) >= facts
            });
            prop_assert!(in_time, "change {facts}");
        }
    }

    #[test]
    fn writes_keep_their_distance(steps in steps(true), jitter in 0.0..=1.0f64) {
        let mut node = Node::with(jitter);
        node.live(&steps);
        for pair in node.attempts.windows(2) {
            prop_assert!(pair[1] - pair[0] >= Duration::from_secs(1));
        }
        for pair in node.writes.windows(2) {
            let apart = pair[1].0 - pair[0].0;
            let same_facts = units(&pair[0].1) == units(&pair[1].1);
            prop_assert!(!same_facts || apart >= Duration::from_secs(30), "{apart:?}");
            let refresh = pair[0].1 == pair[1].1;
            prop_assert!(!refresh || apart >= REFRESH_EVERY, "{apart:?}");
        }
    }

    #[test]
    fn after_any_outage_the_newest_is_written(steps in steps(true), jitter in 0.0..=1.0f64) {
        let mut node = Node::with(jitter);
        let changes = node.live(&steps);
        node.up = true;
        node.pass(LONGEST_BACKOFF + MEASURED_EVERY * 2);
        let (_, content) = node.writes.last().unwrap();
        prop_assert_eq!(units(content), changes.last().map_or(1, |(_, facts)| *facts));
        let shown = band(content).unwrap();
        prop_assert!(shown <= node.load + 3 && node.load <= shown + 13, "{} shown as {shown}", node.load);
    }
}

/// A node, its clock, and an API server that is there or not.
struct Node {
    policy: Policy,
    start: Instant,
    now: Instant,
    jitter: Jitter,
    up: bool,
    load: u8,
    attempts: Vec<Instant>,
    writes: Vec<(Instant, GpuNodeSpec)>,
}

impl Node {
    fn with(jitter: f64) -> Self {
        let now = Instant::now();
        Self {
            policy: Policy::default(),
            start: now,
            now,
            jitter: Jitter::new(jitter),
            up: true,
            load: 0,
            attempts: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// A node whose chance is always 0.
    fn new() -> Self {
        Self::with(0.0)
    }

    /// A node that has just written `state`.
    fn settled(state: super::super::NodeState) -> Self {
        let mut node = Self::new();
        node.policy.set(node.now, "", state);
        node.pass(Duration::ZERO);
        assert_eq!(node.writes.len(), 1);
        node.writes.clear();
        node
    }

    /// Goes through `steps`, and a minute more. Gives when which facts came.
    fn live(&mut self, steps: &[(u64, Step)]) -> Vec<(Instant, u32)> {
        let mut facts = 1;
        let mut changes = Vec::new();
        self.policy.set(self.now, "", loaded(facts, self.load));
        for (pause, step) in steps {
            self.pass(Duration::from_millis(*pause));
            match step {
                Step::Facts => {
                    facts += 1;
                    changes.push((self.now, facts));
                }
                Step::Load(percent) => self.load = *percent,
                Step::Up(up) => self.up = *up,
            }
            self.policy.set(self.now, "", loaded(facts, self.load));
        }
        self.pass(Duration::from_secs(60));
        changes
    }

    /// Lets time pass, and does what is due meanwhile.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.policy.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.attempt();
        }
        self.now = end;
    }

    fn attempt(&mut self) {
        let content = self.policy.begin(self.now).unwrap();
        self.attempts.push(self.now);
        if self.up {
            self.policy.wrote(self.now, self.jitter);
            self.writes.push((self.now, content));
        } else {
            self.policy.failed(self.now, self.jitter);
        }
    }

    fn written(&self) -> Vec<u32> {
        self.writes.iter().map(|(_, content)| units(content)).collect()
    }

    fn bands(&self) -> Vec<Option<u8>> {
        self.writes.iter().map(|(_, content)| band(content)).collect()
    }
}

fn units(content: &GpuNodeSpec) -> u32 {
    content.gpus[0].allocated[0].nvenc.0
}

fn band(content: &GpuNodeSpec) -> Option<u8> {
    content.gpus[0]
        .measured
        .encoder_load_percent
        .map(|band| band.percent())
}
