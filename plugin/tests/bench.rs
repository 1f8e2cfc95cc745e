//! `make bench-plugin`: how soon the device plugin is registered, how long the kubelet waits for its answers, and how
//! much memory it takes.
//!
//! A node with 8 GPUs of 310 encoder units each, in the stand-ins for NVML, for the kubelet and for Kubernetes. 96 pods
//! of two containers are on it, and each of 600 more takes the place of the one that is there longest. A plugin that thinks nothing tells what is theirs of the times.

#![allow(clippy::unwrap_used)] // Here a panic is a benchmark that failed.

mod bare;
mod kubelet;

use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use fake_nvml::{Stage, State};
use kubelet::{Event, Kubelet, PodSpec, until};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

#[tokio::test]
#[ignore = "a minute: make bench-plugin"]
async fn bench() {
    println!(
        "{GPUS} GPUs with {UNITS} encoder units each. A pod has two containers, and so the kubelet asks thrice for \
         devices, of up to {} IDs, and gives thrice.",
        GPUS * UNITS
    );
    let directory = tempfile::tempdir().unwrap();
    let ids: Vec<_> = (0..GPUS * UNITS)
        .map(|n| format!("{}::{}", uuid(n % GPUS), n / GPUS))
        .collect();
    let bare = bare::took(directory.path(), &ids, PODS).await;
    println!("A plugin that thinks nothing, and nothing else to do:");
    println!("  Allocate: {}", Times::of(&bare.allocate).words());
    println!(
        "  GetPreferredAllocation, always of {} IDs: {}",
        ids.len(),
        Times::of(&bare.preferred).words()
    );
    println!("{STARTS} starts, with an API server at hand and none of the kubelet's pods there as yet:");
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let node = Node::start(true).await;
        starts.push(node.registered_after());
    }
    starts.sort();
    println!(
        "  registered after {:.0} ms (median), {:.0} ms (longest)",
        ms(starts[STARTS / 2]),
        ms(starts[STARTS - 1])
    );

    let alone = Node::start(false).await;
    alone.all_offered().await;
    tokio::time::sleep(SETTLE).await;
    println!("Without an API server (no --node-name), idle: {}", alone.memory());
    drop(alone);

    let node = Node::start(true).await;
    let offered = node.all_offered().await;
    println!(
        "With it, all devices are offered {:.0} ms after the start",
        ms(offered)
    );
    tokio::time::sleep(SETTLE).await;
    println!("With it, idle: {}", node.memory());
    node.pods(0..HELD).await;
    let before = node.kubelet.took();
    let used_before = node.cpu_time();
    node.pods(HELD..HELD + PODS).await;
    tokio::time::sleep(SETTLE).await;
    let used = node.cpu_time() - used_before;
    let took = node.kubelet.took();
    let memory = node.memory();
    println!("With it, after {} pods: {memory}", HELD + PODS);
    assert_eq!(node.kubelet.faults(), Ok(()));

    let [allocate, preferred] = [
        Times::of(&took.allocate[before.allocate.len()..]),
        Times::of(&took.preferred[before.preferred.len()..]),
    ];
    println!(
        "For each of the last {PODS}, {:.1} ms of CPU time",
        ms(used) / PODS as f64
    );
    println!("Allocate: {}", allocate.words());
    println!("GetPreferredAllocation: {}", preferred.words());
    println!(
        "RESULT allocate_p99_ms={:.2} preferred_p99_ms={:.2} rss_mib={:.1} register_ms={:.0}",
        ms(allocate.percentile(99)),
        ms(preferred.percentile(99)),
        memory.resident_mib,
        ms(starts[STARTS / 2]),
    );
}

/// A node with the program on it.
struct Node {
    // Killed before what it looks at goes.
    process: Child,
    kube: Option<FakeKube>,
    kubelet: Kubelet,
    started: Instant,
    _daemons: Vec<UnixListener>,
    _directory: TempDir,
}

impl Node {
    /// Starts the program, and gives it back once it is registered. `in_cluster` says whether it watches pods and
    /// writes a GpuNode.
    async fn start(in_cluster: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let gpus = (0..GPUS).map(|gpu| fake_nvml::Gpu {
            uuid: uuid(gpu),
            minor: u32::try_from(gpu).unwrap(),
            encoder_utilization: Some(42),
            ..fake_nvml::Gpu::default()
        });
        let state = State {
            gpus: gpus.collect(),
            ..State::default()
        };
        let stage = Stage::set(place, &state).unwrap();
        let daemons = (0..GPUS).map(|gpu| daemon(place, gpu)).collect();
        let config = place.join("plugin.yaml");
        std::fs::write(&config, format!("models: {{ NVIDIA L4: {{ nvenc: {UNITS} }} }}")).unwrap();
        let kube = in_cluster.then(|| cluster(place));
        let kubelet = Kubelet::start(place, 1);
        let mut command = command(place);
        command
            .arg("--nvml-library")
            .arg(stage.library())
            .arg("--config")
            .arg(config);
        if in_cluster {
            command
                .args(["--node-name", NODE])
                .env("KUBECONFIG", place.join("kubeconfig"));
        }
        let started = Instant::now();
        let process = command.spawn().unwrap();
        until("it is registered", || kubelet.registrations() == 3).await;
        Self {
            _directory: directory,
            kube,
            kubelet,
            started,
            process,
            _daemons: daemons,
        }
    }

    fn registered_after(&self) -> Duration {
        let events = self.kubelet.events().into_iter();
        let mut registered = events.filter(|happened| matches!(happened.event, Event::Registered(_)));
        registered.next_back().unwrap().at - self.started
    }

    /// How long it took from the start.
    async fn all_offered(&self) -> Duration {
        for (resource, each) in [(NVENC, UNITS), (MPS, 100), (VRAM, 89)] {
            self.kubelet.until_allocatable(resource, GPUS * each).await;
        }
        self.started.elapsed()
    }

    /// Binds and admits those pods, and takes away what was in their places.
    async fn pods(&self, numbers: Range<usize>) {
        let kube = self.kube.as_ref().unwrap();
        for number in numbers {
            if let Some(old) = number.checked_sub(HELD) {
                kube.finish("games", &format!("pod-{old}"));
                self.kubelet.remove(&format!("games/pod-{old}"));
            }
            let [nvenc, mps, vram] = SIZES[number % SIZES.len()];
            let name = format!("pod-{number}");
            let container = |name: &str, limits| json!({ "name": name, "image": "game", "resources": { "limits": limits } });
            let made = kube.create(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": "games",
                    "annotations": { "penstock.dev/gpu": uuid(number % HELD % GPUS) },
                },
                "spec": {
                    "nodeName": NODE,
                    "containers": [
                        container("streamer", json!({ NVENC: nvenc.to_string() })),
                        container("game", json!({ MPS: mps.to_string(), VRAM: vram.to_string() })),
                    ],
                },
            }));
            // A real kubelet's first call was seen 11 ms after the binding.
            tokio::time::sleep(Duration::from_millis(11)).await;
            let uid = made["metadata"]["uid"].as_str().unwrap();
            let pod = PodSpec::new(&format!("games/{name}"))
                .uid(uid)
                .container("streamer", &[(NVENC, nvenc)])
                .container("game", &[(MPS, mps), (VRAM, vram)]);
            self.kubelet.admit(&pod).await.unwrap();
        }
    }

    /// What all threads of the program have used.
    fn cpu_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id().unwrap())).unwrap();
        let of = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
            Duration::from_nanos(ns.unwrap_or_default())
        };
        tasks.map(of).sum()
    }

    fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let mib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            kib / 1024.0
        };
        Memory {
            resident_mib: mib("VmRSS:"),
            anonymous_mib: mib("RssAnon:"),
            peak_mib: mib("VmHWM:"),
        }
    }
}

/// As the kernel counts it.
struct Memory {
    resident_mib: f64,
    anonymous_mib: f64,
    peak_mib: f64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            resident_mib,
            anonymous_mib,
            peak_mib,
        } = self;
        write!(
            f,
            "{resident_mib:.1} MiB resident, {anonymous_mib:.1} of them its own data and the rest pages of files; at \
             most {peak_mib:.1} since its start"
        )
    }
}

/// An API server that has taken the manifests, and a file that tells of it.
fn cluster(place: &Path) -> FakeKube {
    let kube = FakeKube::start();
    kube.apply_manifests(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/plugin"
    )));
    kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } }));
    kube.namespace("games");
    kube.kubeconfig(&place.join("kubeconfig"), Some(("penstock", "penstock-plugin")))
        .unwrap();
    kube
}

/// Where an MPS daemon would listen.
fn daemon(place: &Path, gpu: usize) -> UnixListener {
    let pipe = place.join("mps").join(uuid(gpu)).join("pipe");
    std::fs::create_dir_all(&pipe).unwrap();
    UnixListener::bind(pipe.join("control")).unwrap()
}

fn command(place: &Path) -> Command {
    // The optimised one.
    let program = std::env::var_os("PENSTOCK_PLUGIN_PROGRAM");
    let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_penstock-plugin").into()));
    command
        .args(["device-plugin", "--gpus", "all", "--mps-root"])
        .arg(place.join("mps"))
        .env("PENSTOCK_KUBELET_DIR", place)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn uuid(gpu: usize) -> String {
    format!("GPU-4a7f0000-0000-4000-8000-{gpu:012}")
}

struct Times(Vec<Duration>);

impl Times {
    fn of(took: &[Duration]) -> Self {
        let mut took = took.to_vec();
        took.sort();
        Self(took)
    }

    fn percentile(&self, percentile: usize) -> Duration {
        self.0[(self.0.len() * percentile).div_ceil(100) - 1]
    }

    fn words(&self) -> String {
        let [p50, p99, longest] = [50, 99, 100].map(|percentile| ms(self.percentile(percentile)));
        let calls = self.0.len();
        format!("{calls} calls; p50 {p50:.2} ms, p99 {p99:.2} ms, longest {longest:.2} ms")
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

const GPUS: usize = 8;
const UNITS: usize = 310;
const STARTS: usize = 11;
/// Twelve on each GPU, which are as many as fit of the largest.
const HELD: usize = 96;
const PODS: usize = 600;
/// nvenc, mps, vram: streams from 720p30 to 1440p60.
const SIZES: [[usize; 3]; 4] = [[3, 2, 2], [7, 3, 3], [13, 4, 4], [23, 6, 7]];
const SETTLE: Duration = Duration::from_secs(3);
const NODE: &str = "node-1";
const NVENC: &str = "penstock.dev/nvenc";
const MPS: &str = "penstock.dev/mps";
const VRAM: &str = "penstock.dev/vram";
