//! `penstock-plugin device-plugin` as a kubelet meets it: the real program, with a stand-in for the kubelet.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

mod kubelet;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use fake_nvml::{Stage, State};
use kubelet::{Event, Kubelet, PATIENCE, PodSpec, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

#[tokio::test]
async fn software_slices_are_offered_allocated_and_offered_again() {
    let node = Node::start(&["--units", "10"]).await;
    node.kubelet.until_allocatable(NVENC, 10).await;
    node.kubelet.until_allocatable(MPS, 100).await;
    until("there is some memory", || node.kubelet.allocatable(VRAM) > 0).await;
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 7), (MPS, 20), (VRAM, 1)]);
    let given = node.kubelet.admit(&pod).await.unwrap();
    assert_eq!(given.len(), 3);
    for given in &given {
        let gpu = &given.response.envs["PENSTOCK_GPU"];
        assert!(gpu.starts_with("CPU-"), "{gpu}");
        assert_eq!(given.response.envs.get("NVIDIA_VISIBLE_DEVICES"), None);
        assert!(
            given.ids.iter().all(|id| id.starts_with(&format!("{gpu}::"))),
            "{given:?}"
        );
    }
    let too_much = PodSpec::new("games/b").container("app", &[(NVENC, 4)]);
    let message = node.kubelet.admit(&too_much).await.unwrap_err();
    assert!(message.contains("Available: 3"), "{message}");
    node.kubelet.remove("games/a");
    node.kubelet
        .admit(&PodSpec::new("games/c").container("app", &[(NVENC, 10)]))
        .await
        .unwrap();
}

#[tokio::test]
async fn software_slices_are_as_many_as_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.yaml");
    std::fs::write(&file, "software: { nvenc: 6 }").unwrap();
    let node = Node::start(&["--config", file.to_str().unwrap()]).await;
    node.kubelet.until_allocatable(NVENC, 6).await;
}

#[tokio::test]
async fn gpus_are_offered_by_their_model_and_an_encoders_error_leaves_the_rest() {
    let gpu = |uuid: &str, name: &str| fake_nvml::Gpu {
        uuid: uuid.into(),
        name: name.into(),
        max_video_clock: Some(1950),
        memory_total: 15 << 30,
        ..fake_nvml::Gpu::default()
    };
    let mut state = State {
        gpus: vec![
            gpu("GPU-t4", "Tesla T4"),
            gpu("GPU-h200", "NVIDIA H200"),
            gpu("GPU-other", "Tesla T4"),
        ],
        ..State::default()
    };
    let (node, stage) = Node::with_gpus(&state, &["--gpus", "GPU-t4,GPU-h200", "--inject", "env"]).await;
    node.kubelet.until_allocatable(NVENC, 124).await;
    node.kubelet.until_allocatable(VRAM, 120).await;
    // Nobody runs MPS daemons here.
    assert_eq!(node.kubelet.allocatable(MPS), 0);
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 13), (VRAM, 8)]);
    for given in node.kubelet.admit(&pod).await.unwrap() {
        let env = &given.response.envs;
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "GPU-t4");
        assert_eq!(
            env["NVIDIA_DRIVER_CAPABILITIES"],
            "compute,utility,graphics,video"
        );
    }
    state.events.push(fake_nvml::Event {
        gpu: "GPU-t4".into(),
        xid: Some(47),
        ..fake_nvml::Event::default()
    });
    stage.change(&state).unwrap();
    node.kubelet.until_allocatable(NVENC, 0).await;
    assert_eq!(node.kubelet.allocatable(VRAM), 120);
}

#[tokio::test]
async fn what_gpus_do_is_in_the_metrics_and_what_cannot_be_measured_is_not() {
    let session = |codec| fake_nvml::EncoderSession {
        pid: 1,
        codec,
        width: 1280,
        height: 720,
        fps: 30,
        ..fake_nvml::EncoderSession::default()
    };
    let state = State {
        gpus: vec![fake_nvml::Gpu {
            uuid: "GPU-l4".into(),
            encoder_utilization: Some(42),
            sm_utilization: None,
            // The second is AV1.
            encoder_sessions: Some(vec![session(0), session(2)]),
            ..fake_nvml::Gpu::default()
        }],
        ..State::default()
    };
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let (node, _stage) = Node::with_gpus(&state, &["--gpus", "all", "--metrics-listen", &address]).await;
    node.kubelet.until_allocatable(VRAM, 89).await;
    let pod = PodSpec::new("games/a").container("app", &[(VRAM, 8)]);
    node.kubelet.admit(&pod).await.unwrap();
    let wanted = [
        r#"penstock_plugin_gpu_encoder_utilization_ratio{gpu="GPU-l4"} 0.42"#,
        r#"penstock_plugin_gpu_encoder_sessions{gpu="GPU-l4"} 2"#,
        r#"penstock_plugin_gpu_encoder_fps{gpu="GPU-l4"} 60"#,
        r#"penstock_plugin_allocated{gpu="GPU-l4",resource="vram"} 8"#,
        r#"penstock_plugin_allocations_total{resource="vram"} 1"#,
        r#"penstock_plugin_healthy{gpu="GPU-l4",resource="mps"} 0"#,
        "penstock_plugin_registered 1",
    ];
    let text = metrics_with(&address, &wanted.map(str::to_owned)).await;
    assert!(!text.contains("gpu_sm_utilization_ratio{"), "{text}");
}

#[tokio::test]
async fn a_node_of_many_models_offers_of_each_what_it_has() {
    let gpu = |uuid: &str, name: &str, mib: u64, clock| fake_nvml::Gpu {
        uuid: uuid.into(),
        name: name.into(),
        memory_total: mib << 20,
        max_video_clock: Some(clock),
        ..fake_nvml::Gpu::default()
    };
    let state = State {
        gpus: vec![
            gpu("GPU-t4", "Tesla T4", 15_360, 1950),
            gpu("GPU-l4", "NVIDIA L4", 23_034, 1770),
            gpu("GPU-l40s", "NVIDIA L40S", 46_068, 2415),
            gpu("GPU-a16", "NVIDIA A16", 15_356, 1560),
            gpu("GPU-h100", "NVIDIA H100 80GB HBM3", 81_559, 1980),
            gpu("GPU-new", "NVIDIA Unheard Of", 8_192, 2000),
        ],
        ..State::default()
    };
    let address = format!("127.0.0.1:{}", free_port());
    let (node, _stage) = Node::with_gpus(&state, &["--gpus", "all", "--metrics-listen", &address]).await;
    // Engines x frames x clock: 124.4; 2 x 135.2 x 1770/2415; 3 x 135.2; 127.1 x 1560/1950; none; not known.
    let units = [124, 198, 405, 101, 0, 0];
    node.kubelet.until_allocatable(NVENC, units.iter().sum()).await;
    let capacity = |gpu: &fake_nvml::Gpu, units: usize| {
        let [uuid, model] = [&gpu.uuid, &gpu.name];
        format!(r#"penstock_plugin_capacity{{gpu="{uuid}",model="{model}",resource="nvenc"}} {units}"#)
    };
    let wanted: Vec<_> = state
        .gpus
        .iter()
        .zip(units)
        .map(|(gpu, units)| capacity(gpu, units))
        .collect();
    metrics_with(&address, &wanted).await;
}

#[tokio::test]
async fn a_cluster_is_told_who_holds_what_and_an_annotated_gpu_is_used() {
    let kube = FakeKube::start();
    kube.apply_manifests(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/plugin"
    )));
    let owner = kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
    kube.namespace("games");
    let gpu = |uuid: &str| fake_nvml::Gpu {
        uuid: uuid.into(),
        encoder_utilization: Some(42),
        ..fake_nvml::Gpu::default()
    };
    let state = State {
        gpus: vec![gpu("GPU-a"), gpu("GPU-b")],
        ..State::default()
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    kube.kubeconfig(config.path(), Some(("penstock", "penstock-plugin")))
        .unwrap();
    let kubeconfig = config.path().to_str().unwrap();
    let args = ["--gpus", "all", "--node-name", "node-1"];
    let (node, _stage) = Node::with_gpus_in(&state, &args, &[("KUBECONFIG", kubeconfig)]).await;
    node.kubelet.until_allocatable(NVENC, 2 * 198).await;
    let told = |kube: &FakeKube| kube.get("gpunodes", None, "node-1");
    kube.until("the node is told of", |kube| told(kube).is_some())
        .await;
    assert_eq!(
        told(&kube).unwrap()["metadata"]["ownerReferences"][0]["uid"],
        owner["metadata"]["uid"]
    );

    let made = kube.create(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "quake", "namespace": "games", "annotations": { "penstock.dev/gpu": "GPU-b" },
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{
                "name": "app", "image": "quake",
                "resources": { "limits": { NVENC: "13", VRAM: "8" } },
            }],
        },
    }));
    let pod = PodSpec::new("games/quake")
        .uid(made["metadata"]["uid"].as_str().unwrap())
        .container("app", &[(NVENC, 13), (VRAM, 8)]);
    for given in node.kubelet.admit(&pod).await.unwrap() {
        assert_eq!(given.response.envs["PENSTOCK_GPU"], "GPU-b");
    }
    let admitted = Instant::now();
    let slice = json!({
        "namespace": "games", "pod": "quake", "podUid": made["metadata"]["uid"],
        "nvenc": 13, "mps": 0, "vram": 8, "mpsClients": 0,
    });
    kube.until("the slice is told of", |kube| {
        told(kube).unwrap()["spec"]["gpus"][1]["allocated"][0] == slice
    })
    .await;
    let took = admitted.elapsed();
    // A second at most, but for what else the machine does.
    assert!(took < Duration::from_secs(3), "{took:?}");
    let spec = &told(&kube).unwrap()["spec"];
    assert_eq!(spec["summary"]["encoder"], "383/396");
    assert_eq!(spec["gpus"][0]["allocated"], json!([]));
    assert_eq!(spec["gpus"][0]["model"], "NVIDIA L4");

    kube.finish("games", "quake");
    node.kubelet.remove("games/quake");
    kube.until("it is gone", |kube| {
        told(kube).unwrap()["spec"]["gpus"][1]["allocated"] == json!([])
    })
    .await;
}

#[tokio::test]
async fn a_gpu_that_is_lost_stays_in_the_books_as_ill() {
    let Cluster { kube, config } = cluster();
    let gpu = |uuid: &str| fake_nvml::Gpu {
        uuid: uuid.into(),
        ..fake_nvml::Gpu::default()
    };
    let mut state = State {
        gpus: vec![gpu("GPU-a"), gpu("GPU-b")],
        ..State::default()
    };
    let address = format!("127.0.0.1:{}", free_port());
    let args = [
        "--gpus",
        "all",
        "--node-name",
        "node-1",
        "--metrics-listen",
        &address,
    ];
    let environment = [("KUBECONFIG", config.path().to_str().unwrap())];
    let (mut node, stage) = Node::with_gpus_in(&state, &args, &environment).await;
    let mut log = node.log();
    node.kubelet.until_allocatable(NVENC, 2 * 198).await;
    let gpus = |kube: &FakeKube| {
        kube.get("gpunodes", None, "node-1")
            .map(|told| told["spec"]["gpus"].clone())
    };
    kube.until("both are told of", |kube| {
        gpus(kube).is_some_and(|gpus| gpus[1] != json!(null))
    })
    .await;

    state.gpus[0].lost = true;
    state.events.push(fake_nvml::Event {
        gpu: "GPU-a".into(),
        xid: Some(79),
        ..fake_nvml::Event::default()
    });
    stage.change(&state).unwrap();
    // NVML is opened again, and lists it no more.
    line_with(&mut log, "GPU 0 can't be offered").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = gpus(&kube).unwrap();
    assert_eq!(told[0]["uuid"], "GPU-a");
    assert_eq!(told[0]["health"]["nvenc"]["healthy"], false, "{told}");
    assert_eq!(told[1]["health"]["nvenc"]["healthy"], true, "{told}");
    let wanted = [("GPU-a", 0), ("GPU-b", 1)]
        .map(|(gpu, well)| format!(r#"penstock_plugin_healthy{{gpu="{gpu}",resource="vram"}} {well}"#));
    metrics_with(&address, &wanted).await;
    assert_eq!(node.kubelet.allocatable(NVENC), 198);
}

#[tokio::test]
async fn before_it_ends_the_cluster_is_told() {
    let Cluster { kube, config } = cluster();
    let state = State {
        gpus: vec![fake_nvml::Gpu {
            uuid: "GPU-a".into(),
            ..fake_nvml::Gpu::default()
        }],
        ..State::default()
    };
    let args = ["--gpus", "all", "--node-name", "node-1"];
    let environment = [("KUBECONFIG", config.path().to_str().unwrap())];
    let (mut node, _stage) = Node::with_gpus_in(&state, &args, &environment).await;
    let registered = |kube: &FakeKube, status: &str| {
        let told = kube.get("gpunodes", None, "node-1");
        told.is_some_and(|told| {
            let conditions = told["spec"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "Registered" && c["status"] == status)
        })
    };
    kube.until("it is registered", |kube| registered(kube, "True"))
        .await;
    node.signal(Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, node.process.wait()).await;
    assert!(status.unwrap().unwrap().success());
    assert!(registered(&kube, "False"));
}

/// A cluster with the plugin's permissions and the Node `node-1`.
struct Cluster {
    kube: FakeKube,
    config: tempfile::NamedTempFile,
}

fn cluster() -> Cluster {
    let kube = FakeKube::start();
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/plugin");
    kube.apply_manifests(Path::new(manifests));
    kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
    let config = tempfile::NamedTempFile::new().unwrap();
    kube.kubeconfig(config.path(), Some(("penstock", "penstock-plugin")))
        .unwrap();
    Cluster { kube, config }
}

/// What /metrics says once all of `lines` are in it.
async fn metrics_with(address: &str, lines: &[String]) -> String {
    let mut text = String::new();
    let deadline = Instant::now() + PATIENCE;
    while !lines.iter().all(|line| text.lines().any(|l| l == line)) {
        assert!(Instant::now() < deadline, "{lines:#?} are not all in\n{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let url = format!("http://{address}/metrics");
        text = match reqwest::get(url).await {
            Ok(response) => response.text().await.unwrap(),
            Err(_) => continue,
        };
    }
    text
}

/// Free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn without_a_gpu_opted_in_it_says_how() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &[]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--gpus all"), "{said}");
}

#[tokio::test]
async fn a_restarted_kubelet_is_registered_with_within_a_second() {
    let node = Node::start(&["--units", "10"]).await;
    node.kubelet.until_allocatable(NVENC, 10).await;
    node.kubelet.restart();
    let restarted = Instant::now();
    for (resource, count) in [(NVENC, 10), (MPS, 100)] {
        node.kubelet.until_allocatable(resource, count).await;
    }
    let took = restarted.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn told_to_end_it_ends_its_streams_and_takes_its_sockets_along() {
    let mut node = Node::start(&["--units", "10"]).await;
    node.kubelet.until_allocatable(MPS, 100).await;
    node.signal(Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, node.process.wait()).await;
    assert!(status.unwrap().unwrap().success());
    let ended = |happened: &&kubelet::Happened| matches!(happened.event, Event::StreamEnded(_));
    until("all three streams have ended", || {
        node.kubelet.events().iter().filter(ended).count() == 3
    })
    .await;
    let left = std::fs::read_dir(node.directory.path().join("device-plugins")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kubelet.sock"]);
}

#[tokio::test]
async fn while_the_kubelet_is_away_it_says_so_once() {
    let directory = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::stopped(directory.path(), 1);
    let mut node = Node::with(directory, kubelet, &["--units", "10"]);
    let mut log = node.log();
    let line = line_with(&mut log, "waiting for the kubelet").await;
    assert!(line.contains("--kubelet-dir"), "{line}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.kubelet.begin();
    let next = log.next_line().await.unwrap().unwrap();
    assert!(next.contains("registered with the kubelet"), "{next}");
}

#[tokio::test]
async fn without_gpus_to_offer_it_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &[]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("--software-slices"),
        "{said}"
    );
}

#[tokio::test]
async fn its_help_says_which_kubelets_it_works_with() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &["--help"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Kubernetes 1.20 and later"), "{said}");
}

/// A node with the program on it.
struct Node {
    directory: TempDir,
    kubelet: Kubelet,
    process: Child,
}

impl Node {
    async fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(directory.path(), 3);
        Self::with(directory, kubelet, args)
    }

    /// With GPUs that exist only in a file.
    async fn with_gpus(state: &State, args: &[&str]) -> (Self, Stage) {
        Self::with_gpus_in(state, args, &[]).await
    }

    /// The same in an environment.
    async fn with_gpus_in(state: &State, args: &[&str], environment: &[(&str, &str)]) -> (Self, Stage) {
        let directory = tempfile::tempdir().unwrap();
        let stage = Stage::set(directory.path(), state).unwrap();
        let kubelet = Kubelet::start(directory.path(), 3);
        let library = stage.library().to_str().unwrap();
        let root = directory.path().join("mps");
        let args = [
            args,
            &["--nvml-library", library, "--mps-root", root.to_str().unwrap()],
        ]
        .concat();
        let environment = environment.iter().copied();
        let process = command(directory.path(), &args)
            .envs(environment)
            .spawn()
            .unwrap();
        (
            Self {
                directory,
                kubelet,
                process,
            },
            stage,
        )
    }

    fn with(directory: TempDir, kubelet: Kubelet, args: &[&str]) -> Self {
        let args: Vec<_> = ["--software-slices"].iter().chain(args).copied().collect();
        let process = command(directory.path(), &args).spawn().unwrap();
        Self {
            directory,
            kubelet,
            process,
        }
    }

    fn log(&mut self) -> Lines<BufReader<ChildStderr>> {
        BufReader::new(self.process.stderr.take().unwrap()).lines()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

/// No story ends with a fault in the kubelet's books.
impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.kubelet.faults(), Ok(()));
        }
    }
}

fn command(kubelet_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
    command
        .arg("device-plugin")
        .args(args)
        .env("PENSTOCK_KUBELET_DIR", kubelet_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn line_with(log: &mut Lines<BufReader<ChildStderr>>, words: &str) -> String {
    let search = async {
        loop {
            let line = log.next_line().await.unwrap().expect("the log ended");
            if line.contains(words) {
                return line;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap()
}

const NVENC: &str = "penstock.dev/nvenc";
const MPS: &str = "penstock.dev/mps";
const VRAM: &str = "penstock.dev/vram";
