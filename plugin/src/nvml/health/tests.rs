use proptest::prelude::*;

use super::*;

const QUIET: Duration = Duration::from_secs(60);

#[test]
fn what_an_application_does_leaves_its_gpu_healthy() {
    let mut gpu = Story::new();
    for xid in [13, 31, 43, 45, 68, 109, 154] {
        gpu.xid(xid);
    }
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn an_encoder_error_takes_the_encoder_alone_and_passes() {
    let mut gpu = Story::new();
    gpu.xid(47);
    let verdict = gpu.verdict();
    assert_eq!(verdict.gpu, None);
    assert!(verdict.encoder.unwrap().contains("XID 47: video encoder"));
    gpu.after(59).answers();
    assert_ne!(gpu.verdict(), Verdict::default());
    gpu.after(1).answers();
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn a_device_error_passes_after_quiet_probes_only() {
    let mut gpu = Story::new();
    gpu.xid(94);
    gpu.after(50).xid(94);
    gpu.after(59).answers();
    assert!(gpu.verdict().gpu.unwrap().contains("contained memory error"));
    gpu.after(1);
    assert!(gpu.verdict().gpu.is_some(), "no probe has seen it well");
    gpu.answers();
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn a_lost_gpu_is_healthy_when_it_is_back() {
    let mut gpu = Story::new();
    gpu.xid(79);
    gpu.lost("device fell off the bus");
    assert_eq!(
        gpu.verdict().gpu.as_deref(),
        Some("it does not answer: device fell off the bus")
    );
    gpu.answers();
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn an_error_that_needs_a_reset_outlasts_any_quiet() {
    let mut gpu = Story::new();
    gpu.xid(119);
    gpu.xid(94); // A lesser one does not hide it.
    gpu.after(1_000_000).answers();
    let why = gpu.verdict().gpu.unwrap();
    assert!(why.contains("XID 119") && why.contains("reset the GPU"), "{why}");
}

#[test]
fn a_gpu_that_falls_silent_for_a_while_is_not_taken_for_one_that_was_reset() {
    let mut gpu = Story::new();
    gpu.xid(119);
    gpu.silent("an internal driver error occurred");
    assert!(gpu.verdict().gpu.unwrap().contains("internal driver error"));
    gpu.after(600).answers();
    assert!(gpu.verdict().gpu.unwrap().contains("XID 119"));
    // Gone, then in the driver's way while it comes back: that was a reset.
    gpu.lost("device fell off the bus");
    gpu.silent("an internal driver error occurred");
    gpu.answers();
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn a_gpu_is_not_gone_only_because_its_driver_could_not_ask_it() {
    let mut board = Board::new(QUIET);
    board.found(&inventory(vec![whole("GPU-0")]));
    let event = XidEvent {
        gpu: uuid("GPU-0"),
        xid: 120,
        gpu_instance: None,
    };
    board.xid(Instant::now(), &event);
    let mut trouble = inventory(vec![]);
    let why = "an internal driver error occurred".to_owned();
    trouble
        .unreadable
        .push(super::super::inventory::Unreadable { index: 0, why });
    board.found(&trouble);
    let reason = |board: &Board| board.verdicts()[&uuid("GPU-0")].gpu.clone().unwrap();
    assert!(reason(&board).contains("GPU 0 can't be asked: an internal"));
    board.probe(Instant::now(), &uuid("GPU-0"), Probe::Answers(Vitals::default()));
    assert!(reason(&board).contains("XID 120"));
}

#[test]
fn a_reset_is_seen_by_what_the_driver_no_longer_asks_for() {
    let mut gpu = Story::new();
    gpu.xid(95);
    gpu.answers_with(None, Some(Recovery::Reset));
    gpu.answers_with(None, None); // The driver can't tell: no reset was seen.
    gpu.answers_with(None, Some(Recovery::Reset));
    assert!(gpu.verdict().gpu.is_some());
    gpu.answers_with(None, Some(Recovery::Nothing));
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn a_reset_is_seen_by_a_count_that_falls() {
    let mut gpu = Story::new();
    gpu.answers_with(Some(3), None);
    assert_eq!(
        gpu.verdict(),
        Verdict::default(),
        "errors of the past are history"
    );
    gpu.answers_with(Some(5), None);
    assert_eq!(
        gpu.verdict().gpu.as_deref(),
        Some("2 new uncorrectable memory errors")
    );
    gpu.xid(48);
    gpu.after(600).answers_with(None, None); // Can't be read now.
    assert!(gpu.verdict().gpu.unwrap().contains("XID 48"));
    gpu.answers_with(Some(0), None);
    assert_eq!(gpu.verdict(), Verdict::default());
}

#[test]
fn what_the_driver_asks_for_is_a_reason_without_any_xid() {
    for action in 1..6 {
        let mut gpu = Story::new();
        gpu.answers_with(None, Some(Recovery::from_nvml(action)));
        let why = gpu.verdict().gpu.unwrap();
        assert!(why.starts_with("the driver asks for "), "{why}");
        gpu.answers_with(None, Some(Recovery::from_nvml(0)));
        assert_eq!(gpu.verdict(), Verdict::default());
    }
}

#[test]
fn an_event_of_one_mig_instance_spares_the_others() {
    let mut board = Board::new(QUIET);
    board.found(&inventory(vec![
        divided(),
        instance("MIG-a", 1),
        instance("MIG-b", 2),
    ]));
    let mut unhealthy_after = |gpu_instance| {
        let event = XidEvent {
            gpu: uuid("GPU-0"),
            xid: 94,
            gpu_instance,
        };
        board.xid(Instant::now(), &event);
        let verdicts = board.verdicts().into_iter();
        verdicts
            .filter(|(_, verdict)| verdict.gpu.is_some())
            .map(|(uuid, _)| uuid.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(unhealthy_after(Some(2)), ["MIG-b"]);
    assert_eq!(unhealthy_after(None), ["MIG-a", "MIG-b"]);
}

#[test]
fn a_gpu_that_the_driver_no_longer_lists_is_lost_and_may_come_back() {
    let mut board = Board::new(QUIET);
    board.found(&inventory(vec![whole("GPU-0"), whole("GPU-1")]));
    board.found(&inventory(vec![whole("GPU-0")]));
    assert!(board.any_absent());
    let gone = |board: &Board| board.verdicts()[&uuid("GPU-1")].gpu.clone();
    assert!(gone(&board).unwrap().contains("does not list it"));
    board.found(&inventory(vec![whole("GPU-0"), whole("GPU-1")]));
    assert!(gone(&board).is_some(), "listed is not yet answering");
    board.probe(Instant::now(), &uuid("GPU-1"), Probe::Answers(Vitals::default()));
    assert_eq!(gone(&board), None);
    board.all_silent("the driver is gone");
    assert!(board.verdicts().values().all(|verdict| verdict.gpu.is_some()));
}

#[test]
fn a_mig_instance_that_was_taken_apart_is_forgotten() {
    let mut board = Board::new(QUIET);
    board.found(&inventory(vec![divided(), instance("MIG-a", 1)]));
    board.found(&inventory(vec![divided(), instance("MIG-b", 1)]));
    assert_eq!(board.verdicts().into_keys().collect::<Vec<_>>(), [uuid("MIG-b")]);
    board.found(&inventory(vec![]));
    assert!(board.any_absent(), "its GPU is gone too, so nobody meant it");
}

#[derive(Debug, Clone)]
enum Step {
    Xid(u64),
    Lost,
    Silent,
    Answers(Option<u64>, Option<u32>),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop_oneof![0_u64..160, Just(79), Just(94), Just(47)].prop_map(Step::Xid),
        Just(Step::Lost),
        Just(Step::Silent),
        (proptest::option::of(0_u64..3), proptest::option::of(0_u32..6))
            .prop_map(|(errors, action)| Step::Answers(errors, action)),
        (0_u64..200).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn never_healthy_while_absent_and_never_unhealthy_without_a_reason(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        let mut gpu = Story::new();
        let (mut absent, mut gone) = (false, false);
        for step in steps {
            let before = gpu.verdict();
            match step.clone() {
                Step::Xid(xid) => {
                    gpu.xid(xid);
                    let after = gpu.verdict();
                    match xid::impact(xid) {
                        Impact::Device(_) => prop_assert!(after.gpu.is_some()),
                        Impact::Encoder => prop_assert!(after.encoder.is_some() && after.gpu == before.gpu),
                        Impact::Application | Impact::Notice => prop_assert_eq!(&after, &before),
                    }
                }
                Step::Lost => {
                    gpu.lost("gone");
                    (absent, gone) = (true, true);
                }
                Step::Silent => {
                    gpu.silent("busy");
                    absent = true;
                }
                Step::Answers(errors, action) => {
                    gpu.answers_with(errors, action.map(Recovery::from_nvml));
                    // Back, and the driver wants nothing: healthy at once.
                    if gone && action == Some(0) {
                        prop_assert_eq!(gpu.verdict(), Verdict::default());
                    }
                    if action.is_some_and(|action| action != 0) {
                        prop_assert!(gpu.verdict().gpu.is_some());
                    }
                    (absent, gone) = (false, false);
                }
                Step::Wait(seconds) => {
                    gpu.after(seconds);
                    // Time alone changes nothing; a probe must have seen the GPU well.
                    prop_assert_eq!(&gpu.verdict(), &before);
                }
            }
            let verdict = gpu.verdict();
            prop_assert!(!absent || verdict.gpu.is_some(), "healthy while absent, after {:?}", step);
            for why in [&verdict.gpu, &verdict.encoder].into_iter().flatten() {
                prop_assert!(!why.trim().is_empty());
            }
        }
    }
}

/// One GPU and a clock that the test holds.
struct Story {
    now: Instant,
    health: Health,
}

impl Story {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            health: Health::default(),
        }
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    fn xid(&mut self, xid: u64) {
        self.health.xid(self.now, xid);
    }

    fn lost(&mut self, why: &str) {
        self.health.probe(self.now, QUIET, Probe::Lost(why.into()));
    }

    fn silent(&mut self, why: &str) {
        self.health.probe(self.now, QUIET, Probe::Silent(why.into()));
    }

    fn answers(&mut self) {
        self.answers_with(None, None);
    }

    fn answers_with(&mut self, uncorrectable: Option<u64>, recovery: Option<Recovery>) {
        let vitals = Vitals {
            uncorrectable,
            recovery,
        };
        self.health.probe(self.now, QUIET, Probe::Answers(vitals));
    }

    fn verdict(&self) -> Verdict {
        self.health.verdict()
    }
}

fn uuid(text: &str) -> GpuUuid {
    GpuUuid::new(text).unwrap()
}

fn inventory(gpus: Vec<Gpu>) -> Inventory {
    Inventory {
        driver_version: None,
        cuda_version: None,
        gpus,
        unreadable: Vec::new(),
    }
}

fn whole(name: &str) -> Gpu {
    Gpu {
        uuid: uuid(name),
        index: 0,
        minor: None,
        model: "NVIDIA A30".into(),
        memory_bytes: None,
        max_video_clock_mhz: None,
        compute_mode: None,
        kind: Kind::Whole,
    }
}

fn divided() -> Gpu {
    Gpu {
        kind: Kind::Divided,
        ..whole("GPU-0")
    }
}

fn instance(name: &str, gpu_instance: u32) -> Gpu {
    let mig = super::super::inventory::MigInstance {
        parent: uuid("GPU-0"),
        profile: None,
        index: 0,
        gpu_instance: Some(gpu_instance),
        compute_instance: Some(0),
        encoders: None,
    };
    Gpu {
        kind: Kind::Mig(mig),
        ..whole(name)
    }
}
