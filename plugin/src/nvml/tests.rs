//! The room against the stand-in for NVML.

use std::time::Duration;

use fake_nvml::{EncoderSession, Event, Gpu, MigDevice, Process, Sample, Stage, State};
use penstock_core::ids::GpuUuid;
use tokio::sync::mpsc::Receiver;

use super::health::{Probe, Recovery, Verdict, Vitals, XidEvent};
use super::inventory::{Compute, CudaVersion, Inventory, Kind};
use super::measures::{Codec, Measures, ProcessLoad, Sampler};
use super::watch::{Pace, Report};
use super::{Nvml, OpenError, in_full, open, probe, wait_for, watch};

#[test]
fn gpus_are_found_with_what_is_known_of_them() {
    let scene = Scene::new(two_gpus());
    let inventory = Inventory::read(&scene.nvml()).unwrap();
    assert_eq!(inventory.driver_version.as_deref(), Some("580.95.05"));
    assert_eq!(inventory.cuda_version, Some(CudaVersion { major: 13, minor: 0 }));
    let [first, second] = &inventory.gpus[..] else {
        panic!("{inventory:?}");
    };
    assert_eq!(
        (first.uuid.as_str(), first.index, first.minor),
        ("GPU-a", 0, Some(4))
    );
    assert_eq!(
        (&*first.model, first.memory_bytes),
        ("NVIDIA L4", Some(23_034 << 20))
    );
    assert_eq!(first.max_video_clock_mhz, Some(1_770));
    assert_eq!(first.compute_mode, Some(Compute::Shared));
    assert_eq!(first.kind, Kind::Whole);
    assert_eq!(
        (second.max_video_clock_mhz, second.compute_mode),
        (None, Some(Compute::ExclusiveProcess))
    );
}

#[test]
fn mig_instances_are_gpus_of_their_own() {
    let scene = Scene::new(divided_gpu());
    let inventory = Inventory::read(&scene.nvml()).unwrap();
    let names: Vec<_> = inventory.usable().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!(names, ["MIG-1", "MIG-2"]);
    assert_eq!(inventory.physical().count(), 1);
    let gpu = inventory.usable().next().unwrap();
    assert_eq!(gpu.physical().as_str(), "GPU-m");
    assert_eq!(
        (&*gpu.model, gpu.memory_bytes),
        ("NVIDIA RTX PRO 6000", Some(24 << 30))
    );
    let Kind::Mig(mig) = &gpu.kind else {
        panic!("{gpu:?}");
    };
    assert_eq!(mig.profile.as_deref(), Some("1g.24gb"));
    assert_eq!((mig.gpu_instance, mig.compute_instance), (Some(3), Some(0)));
    let places = inventory.usable().map(|gpu| match &gpu.kind {
        Kind::Mig(mig) => mig.index,
        _ => panic!("{gpu:?}"),
    });
    assert_eq!(places.collect::<Vec<_>>(), [0, 1]);
    let encoders = inventory.usable().map(|gpu| match &gpu.kind {
        Kind::Mig(mig) => mig.encoders,
        _ => panic!("{gpu:?}"),
    });
    assert_eq!(
        encoders.collect::<Vec<_>>(),
        [Some(1), None],
        "what is not told is not 0"
    );
}

#[test]
fn a_lost_gpu_hides_no_other() {
    let mut state = two_gpus();
    state.gpus[0].lost = true;
    let inventory = Inventory::read(&Scene::new(state).nvml()).unwrap();
    assert_eq!(inventory.gpus.len(), 1);
    assert_eq!(inventory.gpus[0].uuid.as_str(), "GPU-b");
    assert_eq!(inventory.unreadable[0].index, 0);
    assert!(inventory.unreadable[0].why.contains("fell off the bus"));
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let error = open(Some("/nowhere/libnvidia-ml.so.1".as_ref())).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }));
    let text = in_full(&error);
    assert!(
        text.contains("/nowhere/libnvidia-ml.so.1") && text.contains("install the NVIDIA driver"),
        "{text}"
    );
    for (code, advice) in [(9, "modprobe nvidia"), (18, "reboot this node"), (999, "dmesg")] {
        let state = State {
            init_error: code,
            ..State::default()
        };
        let text = in_full(&open(Some(Scene::new(state).stage.library())).unwrap_err());
        assert!(text.contains(advice), "{text}");
    }
}

#[tokio::test]
async fn a_driver_that_comes_late_is_waited_for() {
    let scene = Scene::new(State {
        init_error: 9,
        ..State::default()
    });
    let waiting = wait_for(Some(scene.stage.library()), Duration::from_millis(10));
    let arrival = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        scene.stage.change(&two_gpus()).unwrap();
    };
    let (nvml, ()) = tokio::join!(waiting, arrival);
    assert_eq!(nvml.device_count().unwrap(), 2);
}

#[test]
fn sessions_of_any_codec_and_any_number_are_seen() {
    let mut state = two_gpus();
    let session = |codec| EncoderSession {
        id: codec,
        pid: 100 + codec,
        codec,
        width: 1920,
        height: 1080,
        fps: 60,
        latency_us: 1_500,
    };
    state.gpus[0].encoder_sessions = Some([0, 1, 2, 77].map(session).to_vec());
    state.gpus[1].encoder_sessions = Some((0..100).map(|_| session(0)).collect());
    let scene = Scene::new(state);
    let sessions = scene.measure("GPU-a").sessions.unwrap();
    let codecs: Vec<_> = sessions.iter().map(|session| session.codec).collect();
    assert_eq!(codecs, [Codec::H264, Codec::Hevc, Codec::Av1, Codec::Other]);
    let av1 = sessions[2];
    assert_eq!(
        (av1.pid, av1.width, av1.height, av1.fps, av1.latency_us),
        (102, 1920, 1080, 60, 1_500)
    );
    assert_eq!(scene.measure("GPU-b").sessions.unwrap().len(), 100);
}

#[test]
fn processes_are_measured_over_all_lists() {
    let mut state = two_gpus();
    state.gpus[0].processes = Some(vec![
        Process {
            pid: 7,
            memory: Some(500),
            compute: true,
            graphics: true,
            ..Process::default()
        },
        Process {
            pid: 8,
            memory: None,
            mps: true,
            ..Process::default()
        },
    ]);
    let sample = |pid, timestamp, encoder| Sample {
        pid,
        timestamp,
        sm: 5,
        encoder,
    };
    state.gpus[0].samples = Some(vec![sample(7, 100, 30), sample(7, 200, 40), sample(9, 150, 10)]);
    let scene = Scene::new(state.clone());
    let (nvml, mut sampler) = (scene.nvml(), Sampler::default());
    let mut processes = || sampler.measure(&nvml, &uuid("GPU-a")).unwrap().processes;
    let load = |memory_bytes, encoder_percent| ProcessLoad {
        memory_bytes,
        encoder_percent,
        sm_percent: encoder_percent.map(|_| 5),
    };
    let all = processes();
    assert_eq!(all[&7], load(Some(500), Some(40)), "once, with all that it has");
    assert_eq!(all[&8], load(None, None));
    assert_eq!(all[&9], load(None, Some(10)));
    // No samples since: no load is known, which is not a load of 0.
    assert_eq!(processes()[&7], load(Some(500), None));
    state.gpus[0].samples = Some(vec![sample(7, 200, 40), sample(7, 300, 50)]);
    scene.stage.change(&state).unwrap();
    assert_eq!(processes()[&7], load(Some(500), Some(50)));
}

#[test]
fn what_cannot_be_measured_is_absent() {
    let mut state = divided_gpu();
    state.gpus[0].encoder_utilization = None;
    state.gpus[0].sm_utilization = None;
    state.gpus[0].encoder_sessions = None;
    state.gpus[0].samples = None;
    state.gpus[0].processes = None;
    let scene = Scene::new(state);
    for gpu in ["GPU-m", "MIG-1"] {
        let measures = scene.measure(gpu);
        assert_eq!((measures.encoder_percent, measures.sm_percent), (None, None));
        assert_eq!(measures.sessions, None);
    }
    let instance = scene.measure("MIG-1");
    assert_eq!(instance.memory_used_bytes, Some(1 << 30));
    assert_eq!(instance.processes[&70].memory_bytes, Some(1 << 30));
    let gone = Sampler::default().measure(&scene.nvml(), &uuid("MIG-9"));
    assert!(gone.is_err());
}

#[test]
fn a_probe_tells_whether_a_gpu_answers_and_what_it_says() {
    let mut state = two_gpus();
    state.gpus[0].ecc_uncorrected = Some(3);
    state.gpus[0].recovery_action = Some(2);
    state.gpus[1].ecc_uncorrected = None;
    state.gpus[1].recovery_action = None;
    let scene = Scene::new(state.clone());
    let nvml = scene.nvml();
    let inventory = Inventory::read(&nvml).unwrap();
    let look = |gpu: usize| probe::probe(&nvml, &inventory.gpus[gpu]);
    let vitals = Vitals {
        uncorrectable: Some(3),
        recovery: Some(Recovery::Reboot),
    };
    assert_eq!(look(0), Probe::Answers(vitals));
    assert_eq!(look(1), Probe::Answers(Vitals::default()));
    state.gpus[0].lost = true;
    state.gpus.pop();
    scene.stage.change(&state).unwrap();
    let why = |gpu| match look(gpu) {
        Probe::Lost(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(0).contains("fell off the bus"));
    assert!(why(1).contains("unsuccessful"));
}

#[tokio::test]
async fn a_watch_tells_the_story_of_a_gpu() {
    let mut state = two_gpus();
    let scene = Scene::new(State {
        init_error: 9,
        ..State::default()
    });
    let mut reports = scene.watch();
    assert!(matches!(next(&mut reports).await, Report::Unavailable(why) if why.contains("modprobe")));

    scene.stage.change(&state).unwrap();
    assert!(matches!(next(&mut reports).await, Report::Found(inventory) if inventory.gpus.len() == 2));
    let healthy = Verdict::default();
    assert_eq!(health(&mut reports).await, [healthy.clone(), healthy.clone()]);
    let measured = find(&mut reports, |report| matches!(report, Report::Measured(_))).await;
    assert!(matches!(measured, Report::Measured(gpus) if gpus.len() == 2));

    let mut happens = |gpu: &str, xid| {
        state.events.push(Event {
            gpu: gpu.into(),
            xid: Some(xid),
            gpu_instance: None,
        });
        scene.stage.change(&state).unwrap();
    };
    happens("GPU-b", 47);
    let event = XidEvent {
        gpu: uuid("GPU-b"),
        xid: 47,
        gpu_instance: None,
    };
    find(&mut reports, |report| *report == Report::Xid(event.clone())).await;
    let [a, b] = health(&mut reports).await;
    assert_eq!((a, &b.gpu), (healthy.clone(), &None));
    assert!(b.encoder.unwrap().contains("XID 47"));
    // It passes after a quiet while.
    assert_eq!(health(&mut reports).await, [healthy.clone(), healthy.clone()]);

    happens("GPU-a", 13);
    find(
        &mut reports,
        |report| matches!(report, Report::Xid(event) if event.xid == 13),
    )
    .await;
    state.gpus[0].lost = true;
    scene.stage.change(&state).unwrap();
    let [a, b] = health(&mut reports).await;
    assert!(
        a.gpu.unwrap().contains("fell off the bus"),
        "13 alone was no reason"
    );
    assert_eq!(b, healthy);
    state.gpus[0].lost = false;
    scene.stage.change(&state).unwrap();
    loop {
        // Meanwhile the reason may change, as NVML is opened again.
        let [a, b] = health(&mut reports).await;
        assert_eq!(b, healthy);
        if a == healthy {
            break;
        }
    }
}

#[tokio::test]
async fn a_driver_that_goes_away_takes_all_gpus_with_it() {
    let mut state = two_gpus();
    let scene = Scene::new(state.clone());
    let mut reports = scene.watch();
    health(&mut reports).await;
    state.init_error = 9;
    state.gpus[0].lost = true; // So that it is opened again.
    scene.stage.change(&state).unwrap();
    loop {
        if health(&mut reports)
            .await
            .iter()
            .all(|verdict| verdict.gpu.is_some())
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_library_that_is_of_no_use_any_more_is_told_of_after_a_while_and_one_that_is_waited_for_is_not() {
    let init_error = |init_error| State {
        init_error,
        ..State::default()
    };
    // The driver is not loaded yet: it may come.
    let scene = Scene::new(init_error(9));
    let mut reports = scene.watch();
    assert!(matches!(next(&mut reports).await, Report::Unavailable(_)));
    let more = tokio::time::timeout(Duration::from_millis(1500), reports.recv()).await;
    assert!(more.is_err(), "{more:?}");
    // Library and driver are of different releases.
    scene.stage.change(&init_error(18)).unwrap();
    let stale = |report: &Report| matches!(report, Report::Stale(why) if why.contains("driver was updated"));
    find(&mut reports, stale).await;
    // It had been there.
    let mut state = two_gpus();
    let scene = Scene::new(state.clone());
    let mut reports = scene.watch();
    health(&mut reports).await;
    (state.init_error, state.gpus[0].lost) = (9, true);
    scene.stage.change(&state).unwrap();
    find(&mut reports, |report| matches!(report, Report::Stale(_))).await;
}

#[tokio::test]
async fn a_gpu_without_events_is_probed_all_the_same() {
    let mut state = two_gpus();
    state.gpus.truncate(1);
    state.gpus[0].has_events = false;
    let scene = Scene::new(state.clone());
    let mut reports = scene.watch();
    find(&mut reports, |report| matches!(report, Report::Measured(_))).await;
    state.gpus[0].ecc_uncorrected = Some(1);
    scene.stage.change(&state).unwrap();
    let report = find(&mut reports, |report| matches!(report, Report::Health(_))).await;
    let why = format!("{report:?}");
    assert!(why.contains("1 new uncorrectable memory error"), "{why}");
}

#[tokio::test]
async fn a_gpu_that_is_added_is_found() {
    let mut state = two_gpus();
    let third = Gpu {
        uuid: "GPU-c".into(),
        ..Gpu::default()
    };
    let scene = Scene::new(state.clone());
    let mut reports = scene.watch();
    health(&mut reports).await;
    state.gpus.push(third);
    scene.stage.change(&state).unwrap();
    find(
        &mut reports,
        |report| matches!(report, Report::Found(inventory) if inventory.gpus.len() == 3),
    )
    .await;
}

/// A machine of the test's own.
struct Scene {
    stage: Stage,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn new(state: State) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            stage: Stage::set(directory.path(), &state).unwrap(),
            _directory: directory,
        }
    }

    fn nvml(&self) -> Nvml {
        open(Some(self.stage.library())).unwrap()
    }

    fn measure(&self, gpu: &str) -> Measures {
        Sampler::default().measure(&self.nvml(), &uuid(gpu)).unwrap()
    }

    fn watch(&self) -> Receiver<Report> {
        let pace = Pace {
            probe: Duration::from_millis(30),
            measure: Duration::from_millis(50),
            reopen: Duration::from_millis(100),
            stale: Duration::from_millis(500),
            rediscover: Duration::from_millis(100),
            quiet: Duration::from_millis(300),
        };
        watch::start(Some(self.stage.library().to_owned()), pace).unwrap()
    }
}

async fn next(reports: &mut Receiver<Report>) -> Report {
    let report = tokio::time::timeout(PATIENCE, reports.recv()).await;
    report
        .expect("waited in vain for a report")
        .expect("the watch ended")
}

async fn find(reports: &mut Receiver<Report>, wanted: impl Fn(&Report) -> bool) -> Report {
    loop {
        let report = next(reports).await;
        if wanted(&report) {
            return report;
        }
    }
}

/// The next health of the two GPUs.
async fn health(reports: &mut Receiver<Report>) -> [Verdict; 2] {
    match find(reports, |report| matches!(report, Report::Health(_))).await {
        Report::Health(verdicts) => ["GPU-a", "GPU-b"].map(|gpu| verdicts[&uuid(gpu)].clone()),
        other => panic!("{other:?}"),
    }
}

fn uuid(text: &str) -> GpuUuid {
    GpuUuid::new(text).unwrap()
}

fn two_gpus() -> State {
    let first = Gpu {
        uuid: "GPU-a".into(),
        minor: 4,
        ..Gpu::default()
    };
    let second = Gpu {
        uuid: "GPU-b".into(),
        max_video_clock: None,
        compute_mode: 3,
        ..Gpu::default()
    };
    State {
        gpus: vec![first, second],
        ..State::default()
    }
}

fn divided_gpu() -> State {
    let instance = |uuid: &str, gpu_instance, encoders| MigDevice {
        uuid: uuid.into(),
        name: "NVIDIA RTX PRO 6000 MIG 1g.24gb".into(),
        gpu_instance,
        compute_instance: 0,
        memory_total: 24 << 30,
        memory_used: 1 << 30,
        encoders,
        processes: vec![Process {
            pid: 70,
            memory: Some(1 << 30),
            compute: true,
            ..Process::default()
        }],
    };
    let gpu = Gpu {
        uuid: "GPU-m".into(),
        name: "NVIDIA RTX PRO 6000".into(),
        mig: Some(true),
        mig_devices: vec![instance("MIG-1", 3, Some(1)), instance("MIG-2", 4, None)],
        ..Gpu::default()
    };
    State {
        gpus: vec![gpu],
        ..State::default()
    }
}

/// Long enough for a busy machine; what takes this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
