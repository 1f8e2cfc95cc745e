//! The manifests: that each is one, that the programs take what is written in them, and that their parts agree.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use fake_nvml::{Gpu, Stage, State};
use serde_json::Value;

#[test]
fn every_manifest_is_one() {
    for path in [
        "base/plugin",
        "overlays/software",
        "components/software-slices",
        "crd",
    ] {
        let kube = cluster(path);
        let objects = fake_kube::objects(&manifests(path)).unwrap();
        assert!(!objects.is_empty(), "{path}");
        // Nothing refers to an account that no manifest brings.
        for daemons in kube.list("daemonsets") {
            let spec = &daemons["spec"]["template"]["spec"];
            let account = spec["serviceAccountName"].as_str();
            let is_there = |name| {
                cluster("overlays/software")
                    .get("serviceaccounts", Some("penstock"), name)
                    .is_some()
            };
            assert!(account.is_none_or(is_there), "{account:?}");
        }
    }
}

#[test]
fn daemons_that_hold_programs_are_replaced_by_hand_only() {
    let kube = cluster("overlays/software");
    let strategy = |name: &str| daemons(&kube, name)["spec"]["updateStrategy"]["type"].clone();
    assert_eq!(strategy("penstock-mps"), "OnDelete");
    assert_eq!(strategy("penstock-plugin"), "RollingUpdate");
    assert_eq!(strategy("penstock-plugin-software"), "RollingUpdate");
}

#[test]
fn the_agent_stays_whatever_a_node_is_tainted_with_and_slices_of_gpus_are_looked_for_on_nodes_with_gpus() {
    let kube = cluster("base/plugin");
    for name in ["penstock-plugin", "penstock-mps"] {
        let spec = daemons(&kube, name)["spec"]["template"]["spec"].clone();
        assert_eq!(
            spec["tolerations"],
            serde_json::json!([{ "operator": "Exists" }]),
            "{name}"
        );
        assert_eq!(spec["nodeSelector"]["app.pixel/gpu"], "true", "{name}");
    }
    let patch = std::fs::read_to_string(manifests("overlays/gpu/streamer.yaml")).unwrap();
    let patch: Value = serde_yaml_ng::from_str(&patch).unwrap();
    let spec = &patch["spec"]["template"]["spec"];
    assert_eq!(spec["runtimeClassName"], "nvidia");
    assert_eq!(spec["nodeSelector"]["app.pixel/gpu"], "true");
}

#[test]
fn privileges_are_few_and_every_volume_is_used() {
    let kube = cluster("overlays/software");
    for daemons in kube.list("daemonsets") {
        let name = daemons["metadata"]["name"].as_str().unwrap();
        let spec = &daemons["spec"]["template"]["spec"];
        assert_eq!(
            (&spec["hostNetwork"], &spec["hostIPC"]),
            (&Value::Null, &Value::Null),
            "{name}"
        );
        for container in spec["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["privileged"], Value::Null, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
        }
        let names = |list: &Value| -> Vec<String> {
            let list = list.as_array().into_iter().flatten();
            let mut names: Vec<_> = list
                .map(|item| item["name"].as_str().unwrap().to_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            names(&spec["volumes"]),
            names(&spec["containers"][0]["volumeMounts"]),
            "{name}"
        );
    }
}

#[test]
fn plugin_and_mps_meet_in_one_directory() {
    let kube = cluster("base/plugin");
    let (plugin, mps) = (paths(&kube, "penstock-plugin"), paths(&kube, "penstock-mps"));
    let root = "/run/penstock/mps".to_owned();
    assert_eq!(
        plugin[&root], root,
        "the paths that the plugin tells the kubelet are the node's"
    );
    assert_eq!(mps[&root], root);
    assert_eq!(mps["/dev/shm"], format!("{root}/shm"));
    assert!(args(&kube, "penstock-mps").contains(&format!("--root={root}")));
    let help = program(&["device-plugin", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let help: Vec<_> = help.split_whitespace().collect();
    let help = help.join(" ");
    assert!(
        help.contains(&format!("[env: PENSTOCK_MPS_ROOT=] [default: {root}]")),
        "{help}"
    );
}

#[tokio::test]
async fn the_device_plugin_starts_as_the_manifests_have_it() {
    let kube = cluster("overlays/software");
    let driver = tempfile::tempdir().unwrap();
    let stage = Stage::set(
        driver.path(),
        &State {
            gpus: vec![Gpu::default()],
            ..State::default()
        },
    )
    .unwrap();
    for name in ["penstock-plugin", "penstock-plugin-software"] {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("device-plugins")).unwrap();
        kube.kubeconfig(
            &place.path().join("config"),
            Some(("penstock", "penstock-plugin")),
        )
        .unwrap();
        let container = container(&kube, name);
        let port = free_port();
        let declared = container["ports"][0]["containerPort"].to_string();
        let args = args(&kube, name)
            .into_iter()
            .map(|arg| arg.replace(&declared, &port.to_string()));
        let mut command = program(&args.collect::<Vec<_>>());
        command
            .envs(environment(&container))
            .env("PENSTOCK_KUBELET_DIR", place.path())
            .env("PENSTOCK_NVML_LIBRARY", stage.library())
            // It would be measured, with a streamer that this test has not.
            .envs(
                name.ends_with("software")
                    .then_some(("PENSTOCK_AGENT_UNITS", "6")),
            )
            .env("KUBECONFIG", place.path().join("config"));
        let _running = Running(command.spawn().unwrap());
        for (probe, expected) in [("livenessProbe", 200), ("readinessProbe", 503)] {
            let path = container[probe]["httpGet"]["path"].as_str().unwrap();
            assert_eq!(container[probe]["httpGet"]["port"], container["ports"][0]["name"]);
            // No kubelet is there, so it is well but not ready.
            eventually(&format!("{name} answers at {path}"), async || {
                let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await;
                answer.is_ok_and(|answer| answer.status() == expected)
            })
            .await;
        }
        let watched = |kube: &FakeKube| kube.requests_to("watch", "pods");
        eventually("it watches pods", async || !watched(&kube).is_empty()).await;
        assert!(watched(&kube).iter().all(|request| request.code == 200));
    }
}

#[tokio::test]
async fn the_mps_daemons_start_as_the_manifests_have_it() {
    let kube = cluster("base/plugin");
    let place = tempfile::tempdir().unwrap();
    let stage = Stage::set(
        place.path(),
        &State {
            gpus: vec![Gpu::default()],
            ..State::default()
        },
    )
    .unwrap();
    let control = place.path().join("nvidia-cuda-mps-control");
    symlink(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mps_control.py"),
        &control,
    )
    .unwrap();
    let root = place.path().join("mps").display().to_string();
    let args = args(&kube, "penstock-mps")
        .into_iter()
        .map(|arg| arg.replace("/run/penstock/mps", &root));
    let mut command = program(&args.collect::<Vec<_>>());
    command
        .envs(environment(&container(&kube, "penstock-mps")))
        .env("PENSTOCK_NVML_LIBRARY", stage.library())
        .env("PENSTOCK_MPS_CONTROL_PROGRAM", control);
    let _running = Running(command.spawn().unwrap());
    let log = Path::new(&root)
        .join(Gpu::default().uuid)
        .join("log/started.json");
    eventually("a daemon was started", async || log.exists()).await;
}

fn manifests(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests")).join(path)
}

/// A cluster that has taken these manifests. Fields that no kind knows are refused.
fn cluster(path: &str) -> FakeKube {
    let kube = FakeKube::start();
    kube.namespace("penstock");
    kube.apply_manifests(&manifests(path));
    kube
}

fn daemons(kube: &FakeKube, name: &str) -> Value {
    kube.get("daemonsets", Some("penstock"), name).unwrap()
}

fn container(kube: &FakeKube, name: &str) -> Value {
    daemons(kube, name)["spec"]["template"]["spec"]["containers"][0].clone()
}

fn args(kube: &FakeKube, name: &str) -> Vec<String> {
    serde_json::from_value(container(kube, name)["args"].clone()).unwrap()
}

/// What a container's environment is on node-1.
fn environment(container: &Value) -> BTreeMap<String, String> {
    let pair = |variable: &Value| {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => "node-1",
            Some(other) => panic!("{other}"),
            None => variable["value"].as_str().unwrap(),
        };
        (variable["name"].as_str().unwrap().to_owned(), value.to_owned())
    };
    container["env"].as_array().unwrap().iter().map(pair).collect()
}

/// The node's paths by those in the container.
fn paths(kube: &FakeKube, name: &str) -> BTreeMap<String, String> {
    let spec = &daemons(kube, name)["spec"]["template"]["spec"];
    let on_node = |volume: &Value| {
        let volumes = spec["volumes"].as_array().unwrap();
        let found = volumes.iter().find(|other| other["name"] == *volume).unwrap();
        found["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    let mounts = container(kube, name)["volumeMounts"].clone();
    let pair = |mount: &Value| {
        (
            mount["mountPath"].as_str().unwrap().to_owned(),
            on_node(&mount["name"]),
        )
    };
    mounts.as_array().unwrap().iter().map(pair).collect()
}

fn program(args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
    command.args(args).stdin(Stdio::null());
    command
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !so().await {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}
