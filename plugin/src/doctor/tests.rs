use std::path::PathBuf;

use penstock_core::ids::GpuUuid;

use super::checks::all;
use super::facts::{Checkpoint, Cuda, Driver, Facts, Gpu, GpuFacts, Kubelet, Mps, Processes, enables_cdi};
use super::*;
use crate::cdi::{Specs, Wanted, read};
use crate::cuda::Seen;
use crate::mps::look;

#[test]
fn a_good_node_reads_as_a_list_of_ok() {
    let report = report(&good());
    assert_eq!(
        report,
        "\
ok       driver       NVIDIA 590.44, CUDA 13.1
ok       GPU          GPU-a, NVIDIA L4
ok       injection    GPU-a: by NVIDIA_VISIBLE_DEVICES
ok       MPS          the control program is /usr/bin/nvidia-cuda-mps-control
ok       MPS          GPU-a: its daemon lives, for 60 clients
ok       CUDA         GPU-a: a CUDA program sees 58 SMs and 22905 MiB; with 50 % of the SMs, 1024 MiB of video memory it sees 28 SMs and 1024 MiB
ok       engine       /etc/containerd/config.toml turns CDI off
ok       kubelet      takes device plugins at /var/lib/kubelet/device-plugins
ok       kubelet      tells which pod has what at /var/lib/kubelet/pod-resources/kubelet.sock
ok       kubelet      stores what it gave at /var/lib/kubelet/device-plugins/kubelet_internal_checkpoint; 3 entries are ours
ok       processes    the host's are visible; process 1 is systemd
ok       kernel       Linux 6.8.0, cgroup v2
"
    );
}

#[test]
fn a_pod_with_nothing_mounted_is_told_what_to_mount() {
    let mut facts = good();
    let gpu = facts.gpu.as_mut().unwrap();
    gpu.nvml = Err("the library was not found".to_owned());
    gpu.mps = Mps {
        root: "/run/penstock/mps".into(),
        ..Mps::default()
    };
    gpu.cuda.clear();
    facts.kubelet = Kubelet {
        in_pod: true,
        ..Kubelet::default()
    };
    facts.processes = Processes {
        first: "penstock-plugin".to_owned(),
        ..Processes::default()
    };
    facts.engines.clear();
    assert_eq!(
        report(&facts),
        "\
PROBLEM  driver       NVML (libnvidia-ml.so.1) can't be used: the library was not found
                      -> install NVIDIA's driver; in a pod, use runtimeClassName: nvidia; a node without GPU offers --software-slices
warning  MPS          nvidia-cuda-mps-control was not found here
                      -> it comes with NVIDIA's driver; only the pod of penstock-plugin mps needs it (--control-program)
warning  MPS          no daemon has pipes in /run/penstock/mps
                      -> pods can't have penstock.dev/mps: deploy penstock-plugin mps, and mount its directory here
PROBLEM  kubelet      /var/lib/kubelet/device-plugins is missing
                      -> mount it into this pod from the host (hostPath)
PROBLEM  processes    the host's are not visible; process 1 is penstock-plugin
                      -> set hostPID: true: NVML names processes by the host's numbers, and load could be put down to no pod
ok       kernel       Linux 6.8.0, cgroup v2
"
    );
}

#[test]
fn a_generated_cdi_specification_is_said_to_ignore_the_capabilities() {
    let mut facts = good();
    facts.gpu.as_mut().unwrap().cdi = by_index();
    let report = report(&facts);
    for line in [
        "warning  CDI          /etc/cdi/nvidia.json gives the same files to every container\n",
        "-> a generated specification ignores NVIDIA_DRIVER_CAPABILITIES: pods without penstock.dev/nvenc find",
        "warning  CDI          /etc/cdi/nvidia.json brings no encoder library\n",
        "warning  injection    GPU-a: by CDI, as nvidia.com/gpu=0, known by its device file since no name is its",
        "PROBLEM  engine       /etc/containerd/config.toml turns CDI off, and there are CDI specifications\n",
    ] {
        assert!(report.contains(line), "{line} is not in:\n{report}");
    }
}

#[test]
fn cdi_that_is_demanded_and_knows_no_gpu_is_a_problem_and_otherwise_none() {
    let mut facts = good();
    facts.gpu.as_mut().unwrap().inject = Inject::Cdi;
    let demanded = report(&facts);
    assert!(
        demanded.contains("PROBLEM  injection    GPU-a: no CDI specification"),
        "{demanded}"
    );
    let gpu = facts.gpu.as_mut().unwrap();
    gpu.inject = Inject::Auto;
    gpu.cdi = by_index();
    gpu.nvml.as_mut().unwrap().gpus[0].wanted.minor = Some(7);
    let automatic = report(&facts);
    assert!(
        automatic.contains(
            "ok       injection    GPU-a: by NVIDIA_VISIBLE_DEVICES, since the CDI specification names 0,"
        ),
        "{automatic}"
    );
}

#[test]
fn a_dead_daemon_and_a_missing_device_file_are_problems() {
    let mut facts = good();
    let gpu = facts.gpu.as_mut().unwrap();
    gpu.device_files.clear();
    gpu.mps.daemons[0].1 = look("/nonexistent".as_ref());
    let report = report(&facts);
    assert!(
        report.contains("PROBLEM  MPS          GPU-a: no MPS daemon runs for it\n"),
        "{report}"
    );
    assert!(report.contains("PROBLEM  GPU          GPU-a, NVIDIA L4: /dev/nvidia0 is missing\n"));
}

#[test]
fn cuda_without_limits_that_hold_is_a_problem_and_no_cuda_at_all_may_be_none() {
    let line = |change: fn(&mut Cuda)| {
        let mut facts = good();
        change(&mut facts.gpu.as_mut().unwrap().cuda[0]);
        let report = report(&facts);
        let cuda = report.lines().find(|line| line.contains(" CUDA  "));
        cuda.unwrap().to_owned()
    };
    let equal = line(|cuda| cuda.slice = Some(cuda.whole.clone()));
    assert!(
        equal.starts_with("PROBLEM") && equal.contains("it sees 58 SMs"),
        "{equal}"
    );
    let refused = line(|cuda| cuda.slice = Some(Err("no server".to_owned())));
    assert!(
        refused.starts_with("PROBLEM") && refused.ends_with("no server"),
        "{refused}"
    );
    let untried = line(|cuda| cuda.slice = None);
    assert!(
        untried.starts_with("ok") && untried.contains("no limits were tried"),
        "{untried}"
    );
    let none = line(|cuda| cuda.whole = Err("no libcuda".to_owned()));
    assert!(
        none.starts_with("warning") && none.ends_with("GPU-a: no libcuda"),
        "{none}"
    );
}

#[test]
fn a_gpu_that_does_not_answer_is_a_problem() {
    let mut facts = good();
    let driver = facts.gpu.as_mut().unwrap().nvml.as_mut().unwrap();
    driver.unreadable.push(crate::nvml::inventory::Unreadable {
        index: 1,
        why: "it fell off the bus".to_owned(),
    });
    let report = report(&facts);
    assert!(
        report.contains("PROBLEM  GPU          GPU 1 can't be asked: it fell off the bus\n"),
        "{report}"
    );
}

#[test]
fn a_checkpoint_that_is_not_understood_is_one_to_look_at_and_none_at_all_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubelet_internal_checkpoint");
    let looked = || {
        let mut facts = good();
        facts.kubelet.checkpoint = Checkpoint::look(directory.path());
        report(&facts)
    };
    let missing = looked();
    assert!(
        missing.contains("ok       kubelet      has stored nothing at /var/lib/kubelet/"),
        "{missing}"
    );
    std::fs::write(&path, r#"{"Data":{"PodDeviceEntries":null},"Checksum":1}"#).unwrap();
    assert!(looked().contains("kubelet_internal_checkpoint; 0 entries are ours"));
    std::fs::write(&path, r#"{"Data":{"PodDeviceEntries":"elsewhere"}}"#).unwrap();
    let other = looked();
    for part in [
        "warning  kubelet      /var/lib/kubelet/device-plugins/kubelet_internal_checkpoint: it has a form that is not",
        "-> this kubelet is newer than this plugin",
    ] {
        assert!(other.contains(part), "{part} is not in:\n{other}");
    }
    // Nobody reads a directory, root neither.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let closed = looked();
    assert!(
        closed.contains("can't be opened") && closed.contains("-> run the plugin as root"),
        "{closed}"
    );
}

#[test]
fn a_node_of_software_slices_needs_no_gpu() {
    let facts = Facts { gpu: None, ..good() };
    let findings = all(&facts);
    assert!(findings.iter().all(|finding| finding.grade == Grade::Ok));
}

#[test]
fn an_engine_that_is_silent_on_cdi_is_one_to_look_at_where_cdi_is_used() {
    let mut facts = good();
    facts.engines[0].1 = None;
    assert!(
        report(&facts).contains("ok       engine       /etc/containerd/config.toml does not mention CDI\n")
    );
    facts.gpu.as_mut().unwrap().cdi = by_index();
    let used = report(&facts);
    assert!(
        used.contains("warning  engine       /etc/containerd/config.toml does not mention CDI, which"),
        "{used}"
    );
    facts.gpu.as_mut().unwrap().inject = Inject::Env;
    assert!(!report(&facts).contains("warning"));
}

#[test]
fn containerds_answer_on_cdi_is_read_as_it_is_written() {
    let toml = "[plugins]\n  # enable_cdi = false\n  enable_cdi = true # for GPUs\n";
    assert_eq!(enables_cdi(toml), Some(true));
    assert_eq!(enables_cdi("enable_cdi=false"), Some(false));
    assert_eq!(enables_cdi("[plugins]\ncdi_spec_dirs = []"), None);
}

#[tokio::test]
async fn looking_at_this_machine_finds_something_and_breaks_nothing() {
    let root = tempfile::tempdir().unwrap();
    // Not at its GPUs: what is asked of CUDA is asked by the real program.
    let nvml = Some("/nowhere/libnvidia-ml.so.1".as_ref());
    let facts = facts::gather(nvml, root.path(), "/".as_ref(), Some(Inject::Auto)).await;
    assert!(!report(&facts).is_empty());
}

fn report(facts: &Facts) -> String {
    Report(&all(facts)).to_string()
}

fn good() -> Facts {
    let uuid = GpuUuid::new("GPU-a").unwrap();
    let seen = |sms, mib: u64| Seen {
        sms,
        memory_bytes: mib << 20,
        free_bytes: 0,
    };
    Facts {
        gpu: Some(GpuFacts {
            inject: Inject::Auto,
            nvml: Ok(Driver {
                version: "590.44".to_owned(),
                cuda: 13_010,
                gpus: vec![Gpu {
                    wanted: Wanted {
                        uuid: uuid.clone(),
                        minor: Some(0),
                        mig: None,
                    },
                    model: "NVIDIA L4".to_owned(),
                }],
                unreadable: Vec::new(),
            }),
            device_files: vec!["nvidia0".to_owned()],
            cdi: Specs::default(),
            mps: Mps {
                control_program: Some("/usr/bin/nvidia-cuda-mps-control".into()),
                root: "/run/penstock/mps".into(),
                daemons: vec![(uuid.clone(), crate::mps::Health::Alive)],
                has_shm: true,
            },
            cuda: vec![Cuda {
                gpu: uuid,
                whole: Ok(seen(58, 22_905)),
                slice: Some(Ok(seen(28, 1024))),
            }],
        }),
        kubelet: Kubelet {
            in_pod: true,
            plugin_directory: true,
            plugin_socket: true,
            pod_resources_socket: true,
            checkpoint: Checkpoint::Read(3),
        },
        processes: Processes {
            first: "systemd".to_owned(),
            is_first_namespace: true,
            sees_kubelet: true,
        },
        kernel: "6.8.0".to_owned(),
        cgroup_v2: true,
        engines: vec![(PathBuf::from("/etc/containerd/config.toml"), Some(false))],
    }
}

/// What an older `nvidia-ctk cdi generate` makes.
fn by_index() -> Specs {
    let directory = tempfile::tempdir().unwrap();
    let text = r#"{"kind":"nvidia.com/gpu","devices":[
        {"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0"}]}}]}"#;
    std::fs::write(directory.path().join("nvidia.json"), text).unwrap();
    let mut specs = read(&[directory.path()]);
    specs.specs[0].path = "/etc/cdi/nvidia.json".into();
    specs
}
