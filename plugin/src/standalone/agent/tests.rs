//! The agent's decisions, told as stories on a clock that is held, and checked against a model.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use penstock_core::units::{EncoderUnits, SmPercent};
use proptest::prelude::*;

use super::*;

#[test]
fn a_killed_streamer_is_started_again_half_a_second_later() {
    let mut story = Story::with_units(20);
    story.start(Some("a"), 7);
    story.answered(0);
    story.exited(0, "killed by signal 9");
    story.after(400);
    story.after(100);
    story.answered(1);
    story.reads(
        "
0 ms: start a
    spawn run 0 of a on CPU-x with 7 encoder units
    a: starting at :4000, 0 restarts
0 ms: run 0 answers
    a: running at :4000, 0 restarts
0 ms: run 0 killed by signal 9
    sweep
    a: backing-off, 0 restarts, killed by signal 9
400 ms: tick
500 ms: tick
    spawn run 1 of a on CPU-x with 7 encoder units, again
    a: starting at :4001, 1 restarts, killed by signal 9
500 ms: run 1 answers
    a: running at :4001, 1 restarts, killed by signal 9
",
    );
}

#[test]
fn a_streamer_that_fails_over_and_over_is_started_ever_less_often() {
    let mut agent = agent(10);
    let mut now = Instant::now();
    agent.start(spec(Some("a"), 3)).unwrap();
    let mut waits = Vec::new();
    for run in 0..8 {
        agent.exited(
            now,
            Run(run),
            "exited with status 2: error: no display".to_owned(),
        );
        let next = agent.next_tick().unwrap();
        waits.push((next - now).as_secs_f64());
        now = next;
        agent.tick(now);
    }
    assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
    let slice = agent.slices().remove(0);
    assert_eq!(slice.restarts, 8);
    assert_eq!(
        slice.last_exit.as_deref(),
        Some("exited with status 2: error: no display")
    );
}

#[test]
fn a_minute_of_running_well_forgives_earlier_failures() {
    let mut agent = agent(10);
    let mut now = Instant::now();
    agent.start(spec(Some("a"), 3)).unwrap();
    for run in 0..5 {
        agent.exited(now, Run(run), String::new());
        now = agent.next_tick().unwrap();
        agent.tick(now);
    }
    agent.answered(now, Run(5));
    now += Duration::from_secs(60);
    agent.exited(now, Run(5), String::new());
    assert_eq!(agent.next_tick(), Some(now + Duration::from_millis(500)));
}

#[test]
fn a_minute_without_an_answer_forgives_nothing() {
    let mut agent = agent(10);
    let mut now = Instant::now();
    agent.start(spec(Some("a"), 3)).unwrap();
    agent.exited(now, Run(0), String::new());
    now = agent.next_tick().unwrap();
    agent.tick(now);
    now += Duration::from_secs(90);
    agent.exited(now, Run(1), String::new());
    assert_eq!(agent.next_tick(), Some(now + Duration::from_secs(1)));
}

#[test]
fn an_ended_slice_keeps_its_units_until_all_of_it_is_gone() {
    let mut story = Story::with_units(10);
    story.start(None, 7);
    story.start(None, 7);
    story.end("slice-1");
    story.end("slice-1");
    story.start(None, 7);
    story.exited(0, "exited with status 0");
    story.start(None, 7);
    story.swept();
    story.start(None, 7);
    story.reads(
        "
0 ms: start any
    spawn run 0 of slice-1 on CPU-x with 7 encoder units
    slice-1: starting at :4000, 0 restarts
0 ms: start any
    refused: no GPU has room for 7 encoder units: CPU-x has 3 encoder units free
0 ms: end slice-1
    stop run 0
    slice-1: stopping at :4000, 0 restarts
0 ms: end slice-1
0 ms: start any
    refused: no GPU has room for 7 encoder units: CPU-x has 3 encoder units free
0 ms: run 0 exited with status 0
    sweep
    slice-1: stopping, 0 restarts, exited with status 0
0 ms: start any
    refused: no GPU has room for 7 encoder units: CPU-x has 3 encoder units free
0 ms: swept
    slice-1 is gone
    no slices
0 ms: start any
    spawn run 1 of slice-1 on CPU-x with 7 encoder units
    slice-1: starting at :4001, 0 restarts
",
    );
}

#[test]
fn ending_the_agent_ends_every_slice_and_starts_nothing_more() {
    let mut story = Story::with_units(20);
    story.start(Some("a"), 3);
    story.start(Some("b"), 3);
    story.exited(1, "exited with status 1");
    story.end_all();
    story.start(Some("c"), 3);
    story.after(60_000);
    story.exited(0, "exited with status 0");
    assert!(!story.agent.is_over());
    story.swept();
    assert!(story.agent.is_over());
    story.reads(
        "
0 ms: start a
    spawn run 0 of a on CPU-x with 3 encoder units
    a: starting at :4000, 0 restarts
0 ms: start b
    spawn run 1 of b on CPU-x with 3 encoder units
    a: starting at :4000, 0 restarts
    b: starting at :4001, 0 restarts
0 ms: run 1 exited with status 1
    sweep
    a: starting at :4000, 0 restarts
    b: backing-off, 0 restarts, exited with status 1
0 ms: end all
    stop run 0
    sweep
    a: stopping at :4000, 0 restarts
    b: stopping, 0 restarts, exited with status 1
0 ms: start c
    refused: the agent is ending and starts nothing: try again once it is back
60000 ms: tick
60000 ms: run 0 exited with status 0
    sweep
    a: stopping, 0 restarts, exited with status 0
    b: stopping, 0 restarts, exited with status 1
60000 ms: swept
    a is gone
    b is gone
    no slices
",
    );
}

#[test]
fn a_program_that_cannot_be_started_is_tried_again_like_one_that_ends() {
    let mut agent = agent(10);
    let now = Instant::now();
    agent.start(spec(Some("a"), 3)).unwrap();
    agent.spawned(now, Run(0), Err("no such file".to_owned()));
    let slice = agent.slices().remove(0);
    assert_eq!(slice.state, SliceState::BackingOff);
    assert_eq!(slice.last_exit.as_deref(), Some("no such file"));
    assert_eq!(agent.next_tick(), Some(now + Duration::from_millis(500)));
}

#[test]
fn late_words_about_a_process_that_is_gone_change_nothing() {
    let mut agent = agent(10);
    let now = Instant::now();
    agent.start(spec(Some("a"), 3)).unwrap();
    agent.exited(now, Run(0), "first".to_owned());
    agent.tick(now + Duration::from_secs(1));
    agent.answered(now, Run(0));
    agent.exited(now, Run(0), "again".to_owned());
    let slice = agent.slices().remove(0);
    assert_eq!(
        (slice.state, slice.last_exit.as_deref()),
        (SliceState::Starting, Some("first"))
    );
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut agent = agent(10);
    let mut wanted = spec(None, 3);
    wanted.demand.mps = SmPercent(10);
    let refused = agent.start(wanted).unwrap_err().to_string();
    assert!(
        refused.contains("10 % of the SMs") && refused.contains("CPU-x"),
        "{refused}"
    );
    let mut wanted = spec(None, 3);
    wanted.streamer_args.push("a\0b".to_owned());
    assert!(matches!(agent.start(wanted), Err(Refused::Argument(_))));
    assert_eq!(agent.next_command(), None);
    assert_eq!(agent.gpus()[0].free, nvenc(10));
}

#[test]
fn slices_are_packed_over_all_gpus_and_never_over_two() {
    let mut agent = Agent::new(vec![gpu("GPU-a"), gpu("GPU-b")]);
    let mut on = |units| {
        let id = agent
            .start(spec(None, units))
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(agent.slice(&id).unwrap().gpu.to_string())
    };
    assert_eq!(on(6), Ok("GPU-a".to_owned()));
    assert_eq!(on(3), Ok("GPU-a".to_owned()), "the fuller one first");
    assert_eq!(on(6), Ok("GPU-b".to_owned()));
    let refused = on(5).unwrap_err();
    assert!(
        refused.contains("GPU-a has 1 encoder unit,") && refused.contains("GPU-b has 4 encoder units,"),
        "{refused}"
    );
    assert!(
        matches!(agent.next_command(), Some(Command::Spawn(launch)) if launch.engine == Some(EncoderUnits(5)))
    );
}

#[test]
fn an_ill_gpu_takes_no_new_slice_and_its_slices_say_so() {
    let mut agent = Agent::new(vec![gpu("GPU-a"), gpu("GPU-b")]);
    agent.start(spec(Some("first"), 3)).unwrap();
    let mut ill = gpu("GPU-a");
    ill.unhealthy.insert(Resource::Nvenc, "XID 47".to_owned());
    agent.set_offers(vec![ill, gpu("GPU-b")]);
    agent.start(spec(Some("second"), 3)).unwrap();
    let unhealthy = |agent: &Agent, name: &str| agent.slice(&id(name)).unwrap().unhealthy;
    assert_eq!(unhealthy(&agent, "first").as_deref(), Some("XID 47"));
    assert_eq!(unhealthy(&agent, "second"), None);
    assert_eq!(agent.slice(&id("second")).unwrap().gpu.as_str(), "GPU-b");
    assert_eq!(agent.gpus()[0].unhealthy["nvenc"], "XID 47");
    // What it is not ill in can still be had.
    let mut compute = spec(Some("third"), 0);
    compute.demand.mps = SmPercent(10);
    agent.start(compute).unwrap();
    assert_eq!(agent.slice(&id("third")).unwrap().gpu.as_str(), "GPU-a");
    let refused = agent.start(spec(None, 8)).unwrap_err().to_string();
    assert!(refused.contains("GPU-a can't be used now: XID 47"), "{refused}");

    agent.set_offers(vec![gpu("GPU-b")]);
    assert!(unhealthy(&agent, "first").unwrap().contains("does not list it"));
    agent.set_offers(vec![gpu("GPU-a"), gpu("GPU-b")]);
    assert_eq!(unhealthy(&agent, "first"), None);
    assert_eq!(agent.gpus()[0].free.nvenc.0, 7, "it still holds what it held");
}

#[test]
fn an_mps_daemon_gets_no_more_slices_than_it_takes_clients() {
    let mut agent = Agent::new(vec![gpu("GPU-a")]);
    let mut start = || {
        let mut wanted = spec(None, 1);
        wanted.demand.mps = SmPercent(1);
        agent.start(wanted).map_err(|error| error.to_string())
    };
    start().unwrap();
    start().unwrap();
    let refused = start().unwrap_err();
    assert!(refused.contains("takes 2 clients"), "{refused}");
    agent.start(spec(None, 1)).unwrap();
}

#[test]
fn names_of_ended_slices_are_used_again() {
    let mut agent = agent(20);
    for expected in ["slice-1", "slice-2", "slice-3"] {
        assert_eq!(agent.start(spec(None, 1)).unwrap(), id(expected));
    }
    agent.end(&id("slice-2")).unwrap();
    agent.exited(Instant::now(), Run(1), String::new());
    agent.swept();
    assert_eq!(agent.start(spec(None, 1)).unwrap(), id("slice-2"));
}

/// Something that may happen to the agent; processes are told by their place among those that live.
#[derive(Debug, Clone)]
enum Step {
    Start(Option<u8>, u32),
    End(u8),
    Exit(usize),
    Answer(usize),
    Pass(u64),
    Swept,
    EndAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (proptest::option::of(0..5u8), 0..9u32).prop_map(|(name, units)| Step::Start(name, units)),
        4 => (0..6u8).prop_map(Step::End),
        4 => (0..6usize).prop_map(Step::Exit),
        4 => (0..6usize).prop_map(Step::Answer),
        4 => (0..40_000u64).prop_map(Step::Pass),
        3 => Just(Step::Swept),
        1 => Just(Step::EndAll),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// The model knows only the commands: which processes live, and whether a sweep is owed.
    #[test]
    fn nothing_is_promised_twice_and_nothing_runs_twice(
        capacity in 1..20u32,
        spawns_fail in proptest::collection::vec(any::<bool>(), 40),
        steps in steps(),
    ) {
        let mut model = Model::new(capacity, spawns_fail);
        for step in steps {
            model.apply(step)?;
            model.check()?;
        }
        model.wind_up()?;
    }
}

struct Model {
    agent: Agent,
    now: Instant,
    capacity: u32,
    spawns_fail: Vec<bool>,
    alive: BTreeMap<Run, SliceId>,
    told: BTreeSet<Run>,
    sweep_owed: bool,
}

impl Model {
    fn new(capacity: u32, spawns_fail: Vec<bool>) -> Self {
        Self {
            agent: agent(capacity),
            now: Instant::now(),
            capacity,
            spawns_fail,
            alive: BTreeMap::new(),
            told: BTreeSet::new(),
            sweep_owed: false,
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Start(name, units) => {
                let name = name.map(|n| format!("slice-{n}"));
                let free = self.agent.gpus()[0].free.nvenc.0;
                let taken = name.as_ref().is_some_and(|n| self.agent.slice(&id(n)).is_some());
                let expected = units > 0 && units <= free && !taken && !self.agent.ending;
                let started = self.agent.start(spec(name.as_deref(), units));
                prop_assert_eq!(started.is_ok(), expected, "{:?}", started);
            }
            Step::End(n) => {
                let id = id(&format!("slice-{n}"));
                let known = self.agent.slice(&id).is_some();
                prop_assert_eq!(self.agent.end(&id).is_ok(), known);
            }
            Step::Exit(n) => {
                if let Some(run) = self.nth_alive(n) {
                    self.alive.remove(&run);
                    self.agent.exited(self.now, run, "killed by signal 9".to_owned());
                }
            }
            Step::Answer(n) => {
                if let Some(run) = self.nth_alive(n) {
                    self.agent.answered(self.now, run);
                }
            }
            Step::Pass(ms) => {
                self.now += Duration::from_millis(ms);
                self.agent.tick(self.now);
            }
            Step::Swept => {
                if std::mem::take(&mut self.sweep_owed) {
                    self.agent.swept();
                }
            }
            Step::EndAll => self.agent.end_all(),
        }
        self.carry_out()
    }

    fn carry_out(&mut self) -> Result<(), TestCaseError> {
        while let Some(command) = self.agent.next_command() {
            match command {
                Command::Spawn(launch) => {
                    let running = self.alive.values().any(|slice| *slice == launch.slice);
                    prop_assert!(!running, "a second process for {}", launch.slice);
                    let fails = self.spawns_fail.pop().unwrap_or(false);
                    if !fails {
                        prop_assert!(self.alive.insert(launch.run, launch.slice).is_none());
                    }
                    let outcome = if fails {
                        Err("no".to_owned())
                    } else {
                        Ok(process(launch.run))
                    };
                    self.agent.spawned(self.now, launch.run, outcome);
                }
                Command::Stop(run) => {
                    prop_assert!(self.alive.contains_key(&run), "told to end, but not alive");
                    prop_assert!(self.told.insert(run), "told to end twice");
                }
                Command::Sweep => self.sweep_owed = true,
                Command::Gone(id) => prop_assert!(!self.alive.values().any(|slice| *slice == id)),
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let slices = self.agent.slices();
        let held: u32 = slices.iter().map(|slice| slice.demand.nvenc.0).sum();
        prop_assert!(held <= self.capacity);
        prop_assert_eq!(self.agent.gpus()[0].free.nvenc.0, self.capacity - held);
        for (run, id) in &self.alive {
            let slice = slices.iter().find(|slice| slice.id == *id);
            prop_assert_eq!(slice.and_then(|slice| slice.pid), Some(process(*run).pid));
        }
        let with_process = slices.iter().filter(|slice| slice.pid.is_some()).count();
        prop_assert_eq!(with_process, self.alive.len());
        for slice in slices.iter().filter(|s| s.state == SliceState::BackingOff) {
            prop_assert!(
                self.agent.next_tick().is_some(),
                "{} is never started again",
                slice.id
            );
        }
        Ok(())
    }

    /// However the story went: told to end, with every process heeding that, the agent ends with all units free.
    fn wind_up(mut self) -> Result<(), TestCaseError> {
        self.apply(Step::EndAll)?;
        for run in std::mem::take(&mut self.alive).into_keys() {
            prop_assert!(self.told.contains(&run));
            self.agent.exited(self.now, run, String::new());
        }
        self.carry_out()?;
        self.apply(Step::Swept)?;
        prop_assert!(self.agent.is_over());
        prop_assert_eq!(self.agent.gpus()[0].free, nvenc(self.capacity));
        Ok(())
    }

    fn nth_alive(&self, n: usize) -> Option<Run> {
        self.alive.keys().nth(n).copied()
    }
}

/// A story: what happened to an agent, what it decided, and how its slices then stood, where that changed.
struct Story {
    agent: Agent,
    began: Instant,
    now: Instant,
    stood: String,
    text: String,
}

impl Story {
    fn with_units(units: u32) -> Self {
        let now = Instant::now();
        Self {
            agent: agent(units),
            began: now,
            now,
            stood: "    no slices\n".to_owned(),
            text: "\n".to_owned(),
        }
    }

    fn start(&mut self, name: Option<&str>, units: u32) {
        self.tell(&format!("start {}", name.unwrap_or("any")));
        if let Err(refused) = self.agent.start(spec(name, units)) {
            writeln!(self.text, "    refused: {refused}").unwrap();
        }
        self.settle();
    }

    fn end(&mut self, name: &str) {
        self.tell(&format!("end {name}"));
        self.agent.end(&id(name)).unwrap();
        self.settle();
    }

    fn end_all(&mut self) {
        self.tell("end all");
        self.agent.end_all();
        self.settle();
    }

    fn answered(&mut self, run: u64) {
        self.tell(&format!("run {run} answers"));
        self.agent.answered(self.now, Run(run));
        self.settle();
    }

    fn exited(&mut self, run: u64, how: &str) {
        self.tell(&format!("run {run} {how}"));
        self.agent.exited(self.now, Run(run), how.to_owned());
        self.settle();
    }

    fn swept(&mut self) {
        self.tell("swept");
        self.agent.swept();
        self.settle();
    }

    fn after(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.tell("tick");
        self.agent.tick(self.now);
        self.settle();
    }

    fn tell(&mut self, what: &str) {
        let ms = (self.now - self.began).as_millis();
        writeln!(self.text, "{ms} ms: {what}").unwrap();
    }

    fn settle(&mut self) {
        while let Some(command) = self.agent.next_command() {
            writeln!(self.text, "    {}", told(&command)).unwrap();
            if let Command::Spawn(launch) = command {
                self.agent.spawned(self.now, launch.run, Ok(process(launch.run)));
            }
        }
        let stand = stand(&self.agent.slices());
        if stand != self.stood {
            self.text += &stand;
            self.stood = stand;
        }
    }

    fn reads(&self, expected: &str) {
        assert_eq!(self.text, expected, "the story was:\n{}", self.text);
    }
}

fn told(command: &Command) -> String {
    match command {
        Command::Spawn(l) => {
            let again = if l.again { ", again" } else { "" };
            format!(
                "spawn run {} of {} on {} with {}{again}",
                l.run.0, l.slice, l.gpu, l.demand
            )
        }
        Command::Stop(run) => format!("stop run {}", run.0),
        Command::Sweep => "sweep".to_owned(),
        Command::Gone(id) => format!("{id} is gone"),
    }
}

fn stand(slices: &[SliceStatus]) -> String {
    if slices.is_empty() {
        return "    no slices\n".to_owned();
    }
    slices.iter().map(stand_of).collect()
}

fn stand_of(slice: &SliceStatus) -> String {
    let state = serde_json::to_value(slice.state).unwrap();
    let at = slice
        .address
        .map_or(String::new(), |a| format!(" at :{}", a.port()));
    let exit = slice
        .last_exit
        .as_ref()
        .map_or(String::new(), |e| format!(", {e}"));
    let state = state.as_str().unwrap_or_default();
    format!(
        "    {}: {state}{at}, {} restarts{exit}\n",
        slice.id, slice.restarts
    )
}

fn agent(units: u32) -> Agent {
    Agent::new(vec![Offer {
        uuid: GpuUuid::new("CPU-x").unwrap(),
        model: "software".to_owned(),
        capacity: nvenc(units),
        engine: None,
        mps_clients: 0,
        unhealthy: BTreeMap::new(),
    }])
}

/// A GPU of 10 units, two engines of 5, and two MPS clients.
fn gpu(name: &str) -> Offer {
    Offer {
        uuid: GpuUuid::new(name).unwrap(),
        model: "NVIDIA L4".to_owned(),
        capacity: Resources {
            mps: SmPercent(100),
            ..nvenc(10)
        },
        engine: Some(EncoderUnits(5)),
        mps_clients: 2,
        unhealthy: BTreeMap::new(),
    }
}

fn spec(name: Option<&str>, units: u32) -> SliceSpec {
    SliceSpec {
        id: name.map(id),
        demand: nvenc(units),
        streamer_args: vec!["--source".to_owned(), "test".to_owned()],
    }
}

fn nvenc(units: u32) -> Resources {
    Resources {
        nvenc: EncoderUnits(units),
        ..Resources::NONE
    }
}

fn id(name: &str) -> SliceId {
    SliceId::new(name).unwrap()
}

fn process(run: Run) -> Process {
    let number = u16::try_from(run.0).unwrap();
    Process {
        pid: 100 + u32::from(number),
        address: (Ipv4Addr::LOCALHOST, 4000 + number).into(),
    }
}
