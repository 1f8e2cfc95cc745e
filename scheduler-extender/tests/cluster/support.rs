//! A cluster of the stand-in for Kubernetes, and the extender at it, by the roles of its manifests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Long enough for a busy machine; what takes this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn manifests(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests")).join(path)
}

/// A cluster that has taken the manifests.
pub(crate) fn cluster() -> FakeKube {
    let kube = FakeKube::start();
    for name in ["penstock", "games"] {
        kube.namespace(name);
    }
    kube.apply_manifests(&manifests("crd"));
    kube.apply_manifests(&manifests("base/scheduler"));
    kube.apply_manifests(&manifests("components/scheduler-name"));
    kube
}

/// The extender. It ends with the test.
pub(crate) struct Extender {
    process: Child,
    scheduler: String,
    operators: String,
    _place: tempfile::TempDir,
}

impl Extender {
    /// Starts it with the account of the manifests.
    pub(crate) fn start(kube: &FakeKube) -> Self {
        let [scheduler, operators] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let args = [
            format!("--listen={scheduler}"),
            format!("--metrics-listen={operators}"),
        ];
        Self::start_with(
            kube,
            &[&["serve".to_owned()][..], &args].concat(),
            &scheduler,
            &operators,
        )
    }

    pub(crate) fn start_with(kube: &FakeKube, args: &[String], scheduler: &str, operators: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("config");
        kube.kubeconfig(&config, Some(("penstock", "penstock-scheduler")))
            .unwrap();
        // The benchmark names the optimised one.
        let program = std::env::var_os("PENSTOCK_EXTENDER_PROGRAM");
        let mut command =
            Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_penstock-scheduler-extender").into()));
        command.args(args).env("KUBECONFIG", config).stdin(Stdio::null());
        Self {
            process: command.spawn().unwrap(),
            scheduler: format!("http://{scheduler}"),
            operators: format!("http://{operators}"),
            _place: place,
        }
    }

    /// The same, once it is ready.
    pub(crate) async fn ready(kube: &FakeKube) -> Self {
        let extender = Self::start(kube);
        extender.until_ready().await;
        extender
    }

    pub(crate) async fn until_ready(&self) {
        eventually("the extender is ready", async || {
            self.look("/readyz").await.0 == 200
        })
        .await;
    }

    pub(crate) fn url(&self, verb: &str) -> String {
        format!("{}/{verb}", self.scheduler)
    }

    /// Its memory, as the kernel counts it.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Tells it to end, and waits for that.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.process.wait().unwrap()
    }

    /// What operators see; status 0 where nobody listens.
    pub(crate) async fn look(&self, path: &str) -> (u16, String) {
        match reqwest::get(format!("{}{path}", self.operators)).await {
            Ok(response) => (response.status().as_u16(), response.text().await.unwrap()),
            Err(_) => (0, String::new()),
        }
    }

    /// The value of a metric.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.look("/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    pub(crate) async fn post(&self, verb: &str, body: impl Into<reqwest::Body>) -> (StatusCode, String) {
        let sent = reqwest::Client::new()
            .post(self.url(verb))
            .body(body)
            .send()
            .await
            .unwrap();
        (sent.status(), sent.text().await.unwrap())
    }

    /// What the scheduler is answered.
    pub(crate) async fn ask(&self, verb: &str, body: &Value) -> Value {
        let (status, text) = self.post(verb, body.to_string()).await;
        assert_eq!(status, 200, "{verb}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn filter(&self, pod: &Value, nodes: &[&str]) -> Value {
        self.ask(
            "filter",
            &json!({ "Pod": pod, "Nodes": null, "NodeNames": nodes }),
        )
        .await
    }

    /// Binds a pod: the error, empty where there is none.
    pub(crate) async fn bind(&self, pod: &Value, node: &str) -> String {
        let metadata = &pod["metadata"];
        let args = json!({
            "PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"], "Node": node,
        });
        let answer = self.ask("bind", &args).await;
        assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
        answer["Error"].as_str().unwrap().to_owned()
    }
}

impl Drop for Extender {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.end();
        }
    }
}

/// Makes a pod, as the API server then has it.
pub(crate) fn pod(kube: &FakeKube, name: &str, limits: Value) -> Value {
    kube.create(described(name, limits))
}

pub(crate) fn described(name: &str, limits: Value) -> Value {
    let container = json!({ "name": "game", "image": "game", "resources": { "limits": limits } });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "games" },
        "spec": { "containers": [container] },
    })
}

/// A GpuNode with so many GPUs of 124 encoder units, 100 % of the SMs and 64 blocks of memory; and what pods hold:
/// of which GPU, which pod, how many encoder units.
pub(crate) fn gpu_node(name: &str, gpus: usize, held: &[(usize, &Value, u32)]) -> Value {
    let allocated = |gpu: usize| -> Vec<Value> {
        let here = held.iter().filter(|(on, ..)| *on == gpu);
        let of = |(_, pod, units): &(usize, &Value, u32)| {
            let metadata = &pod["metadata"];
            json!({ "namespace": metadata["namespace"], "pod": metadata["name"], "podUid": metadata["uid"], "nvenc": units })
        };
        here.map(of).collect()
    };
    let gpu = |i: usize| {
        let capacity = json!({ "nvenc": 124, "mps": 100, "vram": 64, "mpsClients": 48 });
        json!({ "uuid": format!("GPU-{name}-{i}"), "model": "L4", "capacity": capacity, "allocated": allocated(i) })
    };
    let spec = json!({ "summary": { "gpus": gpus, "pods": held.len() }, "gpus": (0..gpus).map(gpu).collect::<Vec<_>>() });
    json!({ "apiVersion": "penstock.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": name }, "spec": spec })
}

pub(crate) fn nvenc(units: u32) -> Value {
    json!({ "penstock.dev/nvenc": units.to_string() })
}

pub(crate) async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
