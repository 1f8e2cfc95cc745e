//! What the facts of a node mean: each check a plain function of them.

use super::Finding;
use super::facts::{
    Checkpoint, Cuda, Driver, Facts, GpuFacts, Kubelet, Mps, PLUGIN_DIRECTORY, POD_RESOURCES_SOCKET,
    Processes, TRIED,
};
use crate::cdi::{self, Inject, Injection, Specs, Wanted};
use crate::cuda::Seen;
use crate::kubelet::checkpoint::FILE as CHECKPOINT;
use crate::mps::{Health, mps_client_limit};

/// All findings, in the order of what needs what.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(gpu) = &facts.gpu {
        findings.extend(driver(gpu));
        if gpu.inject != Inject::Env {
            findings.extend(cdi_files(&gpu.cdi));
        }
        findings.extend(injection(gpu));
        findings.extend(mps(gpu));
        findings.extend(gpu.cuda.iter().map(cuda));
    }
    findings.extend(engines(facts));
    findings.extend(kubelet(&facts.kubelet));
    findings.push(processes(&facts.processes));
    findings.push(kernel(facts));
    findings
}

fn driver(facts: &GpuFacts) -> Vec<Finding> {
    let driver = match &facts.nvml {
        Ok(driver) => driver,
        Err(why) => return vec![no_driver(why)],
    };
    let Driver {
        version,
        cuda,
        gpus,
        unreadable,
    } = driver;
    let (major, minor) = (cuda / 1000, cuda % 1000 / 10);
    let mut findings = vec![Finding::ok(
        "driver",
        format!("NVIDIA {version}, CUDA {major}.{minor}"),
    )];
    findings.extend(unreadable.iter().map(|gpu| {
        let found = format!("GPU {} can't be asked: {}", gpu.index, gpu.why);
        Finding::problem("GPU", found, NO_GPU)
    }));
    if gpus.is_empty() && unreadable.is_empty() {
        findings.push(Finding::problem("GPUs", "the driver knows none", NO_GPU));
    }
    for gpu in gpus {
        let found = format!("{}, {}", gpu.wanted.uuid, gpu.model);
        let file = gpu.wanted.minor.map(|minor| format!("nvidia{minor}"));
        match file.filter(|file| !facts.device_files.contains(file)) {
            None => findings.push(Finding::ok("GPU", found)),
            Some(file) => findings.push(Finding::problem(
                "GPU",
                format!("{found}: /dev/{file} is missing"),
                "load the driver's device files: `nvidia-modprobe -c 0 -u`; in a pod, mount /dev or use NVIDIA's runtime",
            )),
        }
    }
    findings
}

fn no_driver(why: &str) -> Finding {
    Finding::problem(
        "driver",
        format!("NVML (libnvidia-ml.so.1) can't be used: {why}"),
        "install NVIDIA's driver; in a pod, use runtimeClassName: nvidia; a node without GPU offers --software-slices",
    )
}

fn cdi_files(specs: &Specs) -> Vec<Finding> {
    let skipped = specs.skipped.iter().map(|(path, why)| {
        Finding::warning(
            "CDI",
            format!("{} was skipped: {why}", path.display()),
            "repair or remove it: container engines skip it too, or refuse to start",
        )
    });
    let read = specs.specs.iter().flat_map(|spec| {
        let path = spec.path.display();
        let names: Vec<_> = spec.devices.iter().map(|device| device.name.as_str()).collect();
        let names = format!("{path} names {}", names.join(", "));
        let generated = format!("{path} gives the same files to every container");
        let generated = Finding::warning("CDI", generated, PREGENERATED);
        let silent = format!("{path} brings no encoder library");
        let silent = (!spec.encodes).then(|| Finding::warning("CDI", silent, NO_ENCODER));
        [Some(Finding::ok("CDI", names)), Some(generated), silent]
    });
    skipped.chain(read.flatten()).collect()
}

fn injection(facts: &GpuFacts) -> Vec<Finding> {
    let gpus = facts.nvml.as_ref().map_or(&[][..], |driver| &driver.gpus);
    gpus.iter().map(|gpu| injection_of(&gpu.wanted, facts)).collect()
}

fn injection_of(gpu: &Wanted, facts: &GpuFacts) -> Finding {
    let uuid = &gpu.uuid;
    match cdi::choose(facts.inject, &facts.cdi, gpu) {
        Ok(Injection::Cdi(name)) if name.to_string().ends_with(uuid.as_str()) => {
            Finding::ok("injection", format!("{uuid}: by CDI, as {name}"))
        }
        Ok(Injection::Cdi(name)) => Finding::warning(
            "injection",
            format!("{uuid}: by CDI, as {name}, known by its device file since no name is its UUID"),
            "generate it anew with `nvidia-ctk cdi generate --device-name-strategy=uuid`: indices change",
        ),
        Ok(Injection::Environment) => Finding::ok(
            "injection",
            format!("{uuid}: by NVIDIA_VISIBLE_DEVICES{}", why(gpu, facts)),
        ),
        Err(error) => Finding::problem(
            "injection",
            format!("{uuid}: {error}"),
            "until then it can't be given to pods; --inject auto would use NVIDIA_VISIBLE_DEVICES",
        ),
    }
}

/// Why CDI was not chosen, where there is a specification.
fn why(gpu: &Wanted, facts: &GpuFacts) -> String {
    match facts.cdi.find(gpu) {
        Err(error) if facts.inject == Inject::Auto && !facts.cdi.specs.is_empty() => {
            format!(", since {error}")
        }
        _ => String::new(),
    }
}

fn mps(facts: &GpuFacts) -> Vec<Finding> {
    let mps = &facts.mps;
    let mut findings = vec![control_program(mps)];
    if mps.daemons.is_empty() {
        let found = format!("no daemon has pipes in {}", mps.root.display());
        findings.push(Finding::warning("MPS", found, NO_DAEMON));
    }
    for (gpu, health) in &mps.daemons {
        findings.push(match health {
            Health::Alive => {
                let limit = facts.nvml.as_ref().map(|driver| mps_client_limit(driver.cuda));
                let limit = limit.map_or(String::new(), |limit| format!(", for {limit} clients"));
                Finding::ok("MPS", format!("{gpu}: its daemon lives{limit}"))
            }
            Health::Dead(cause) => Finding::problem(
                "MPS",
                format!("{gpu}: {cause}"),
                "look at the log of the penstock-plugin mps pod; it starts a dead daemon again within 30 s",
            ),
        });
    }
    if !mps.daemons.is_empty() && !mps.has_shm {
        findings.push(Finding::problem(
            "MPS",
            format!("{}/shm is missing", mps.root.display()),
            "mount the whole MPS directory of the host into this pod, not only a part",
        ));
    }
    findings
}

/// What a CUDA program sees, and whether a slice's limits hold.
fn cuda(cuda: &Cuda) -> Finding {
    let gpu = &cuda.gpu;
    let mib = |seen: &Seen| seen.memory_bytes >> 20;
    let whole = match &cuda.whole {
        Ok(whole) => whole,
        Err(why) => return Finding::warning("CUDA", format!("{gpu}: {why}"), NO_CUDA),
    };
    let all = format!(
        "{gpu}: a CUDA program sees {} SMs and {} MiB",
        whole.sms,
        mib(whole)
    );
    match &cuda.slice {
        None => Finding::ok(
            "CUDA",
            format!("{all}; without an MPS daemon no limits were tried"),
        ),
        Some(Err(why)) => Finding::problem("CUDA", format!("{all}, but none with {TRIED}: {why}"), NO_SLICE),
        Some(Ok(slice)) => {
            let found = format!(
                "{all}; with {TRIED} it sees {} SMs and {} MiB",
                slice.sms,
                mib(slice)
            );
            match slice.sms < whole.sms {
                true => Finding::ok("CUDA", found),
                false => Finding::problem("CUDA", found, NO_LIMIT),
            }
        }
    }
}

fn control_program(mps: &Mps) -> Finding {
    match &mps.control_program {
        Some(program) => Finding::ok("MPS", format!("the control program is {}", program.display())),
        None => Finding::warning(
            "MPS",
            "nvidia-cuda-mps-control was not found here",
            "it comes with NVIDIA's driver; only the pod of penstock-plugin mps needs it (--control-program)",
        ),
    }
}

fn engines(facts: &Facts) -> Vec<Finding> {
    let uses_cdi = |gpu: &GpuFacts| gpu.inject != Inject::Env && !gpu.cdi.specs.is_empty();
    let has_specs = facts.gpu.as_ref().is_some_and(uses_cdi);
    let finding = |(path, says): &(std::path::PathBuf, Option<bool>)| {
        let path = path.display();
        match says {
            Some(false) if has_specs => Finding::problem(
                "engine",
                format!("{path} turns CDI off, and there are CDI specifications"),
                ENABLE_CDI,
            ),
            Some(false) => Finding::ok("engine", format!("{path} turns CDI off")),
            Some(true) => Finding::ok("engine", format!("{path} turns CDI on")),
            None if has_specs => Finding::warning(
                "engine",
                format!("{path} does not mention CDI, which containerd 1.7 then leaves off"),
                ENABLE_CDI,
            ),
            None => Finding::ok("engine", format!("{path} does not mention CDI")),
        }
    };
    facts.engines.iter().map(finding).collect()
}

fn kubelet(kubelet: &Kubelet) -> Vec<Finding> {
    if !kubelet.plugin_directory {
        let found = format!("{PLUGIN_DIRECTORY} is missing");
        return vec![if kubelet.in_pod {
            Finding::problem(
                "kubelet",
                found,
                "mount it into this pod from the host (hostPath)",
            )
        } else {
            Finding::warning(
                "kubelet",
                found,
                "no Kubernetes node? Then use `penstock-plugin standalone`",
            )
        }];
    }
    let plugin = if kubelet.plugin_socket {
        Finding::ok("kubelet", format!("takes device plugins at {PLUGIN_DIRECTORY}"))
    } else {
        let found = format!("{PLUGIN_DIRECTORY}/kubelet.sock is missing");
        Finding::problem(
            "kubelet",
            found,
            "is the kubelet running? It makes this socket at its start",
        )
    };
    let pods = if kubelet.pod_resources_socket {
        Finding::ok(
            "kubelet",
            format!("tells which pod has what at {POD_RESOURCES_SOCKET}"),
        )
    } else {
        let found = format!("{POD_RESOURCES_SOCKET} is missing");
        Finding::problem(
            "kubelet",
            found,
            "mount /var/lib/kubelet/pod-resources into this pod from the host",
        )
    };
    vec![plugin, pods, checkpoint(&kubelet.checkpoint)]
}

/// Whether it is known after a restart what init containers hold.
fn checkpoint(checkpoint: &Checkpoint) -> Finding {
    let path = format!("{PLUGIN_DIRECTORY}/{CHECKPOINT}");
    match checkpoint {
        Checkpoint::Read(ours) => Finding::ok(
            "kubelet",
            format!("stores what it gave at {path}; {ours} entries are ours"),
        ),
        Checkpoint::Missing => Finding::ok(
            "kubelet",
            format!("has stored nothing at {path} as yet: it does once a plugin has listed its devices"),
        ),
        Checkpoint::Closed(why) => Finding::warning("kubelet", format!("{path}: {why}"), CLOSED_CHECKPOINT),
        Checkpoint::Unknown(why) => Finding::warning("kubelet", format!("{path}: {why}"), UNKNOWN_CHECKPOINT),
    }
}

fn processes(processes: &Processes) -> Finding {
    let first = &processes.first;
    if processes.is_first_namespace || processes.sees_kubelet {
        return Finding::ok(
            "processes",
            format!("the host's are visible; process 1 is {first}"),
        );
    }
    Finding::problem(
        "processes",
        format!("the host's are not visible; process 1 is {first}"),
        "set hostPID: true: NVML names processes by the host's numbers, and load could be put down to no pod",
    )
}

fn kernel(facts: &Facts) -> Finding {
    let kernel = &facts.kernel;
    if facts.cgroup_v2 {
        return Finding::ok("kernel", format!("Linux {kernel}, cgroup v2"));
    }
    Finding::warning(
        "kernel",
        format!("Linux {kernel}, cgroup v1 or none mounted here"),
        "Kubernetes is giving cgroup v1 up: boot with systemd.unified_cgroup_hierarchy=1",
    )
}

/// Source: <https://github.com/containerd/containerd/pull/11975> (devices asked for are dropped without an error),
/// and 9621 there (on by default from 2.0).
const ENABLE_CDI: &str = "set enable_cdi = true and restart containerd, or run the plugin with --inject env: containerd would start pods without their GPU, and say nothing";
const NO_CUDA: &str =
    "penstock-plugin itself needs no CUDA; where pods find none either, look at this in one of them";
const NO_SLICE: &str =
    "pods with penstock.dev/mps would fail the same way: look at <MPS directory>/<GPU>/log/";
const NO_LIMIT: &str =
    "MPS does not limit the SMs here: look at <MPS directory>/<GPU>/log/ for whether the server started";
const NO_GPU: &str = "look at `dmesg` for the driver's errors, and at `lspci` for the GPU";
const PREGENERATED: &str = "a generated specification ignores NVIDIA_DRIVER_CAPABILITIES: pods without penstock.dev/nvenc find the encoder too; use --inject env to withhold it";
const NO_ENCODER: &str = "pods with penstock.dev/nvenc can't encode with it: install the driver's encoder library (libnvidia-encode) and generate it anew";
const CLOSED_CHECKPOINT: &str = "run the plugin as root: the file is root's alone. Without it, a pod whose init container holds devices may be refused after a restart of the plugin";
const UNKNOWN_CHECKPOINT: &str = "this kubelet is newer than this plugin: look for a newer Penstock. Until then, a pod whose init container holds devices may be refused after a restart of the plugin";
const NO_DAEMON: &str =
    "pods can't have penstock.dev/mps: deploy penstock-plugin mps, and mount its directory here";
