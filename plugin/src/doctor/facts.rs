//! What there is on a node, gathered without judgement.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use penstock_core::ids::GpuUuid;
use penstock_core::packing::Resources;
use penstock_core::units::{SmPercent, VramBlocks};

use crate::cdi::{self, DIRECTORIES, Inject, Specs, Wanted};
use crate::cuda::{self, Seen};
use crate::gpus::wanted;
use crate::kubelet::checkpoint::{self, CheckpointError};
use crate::mps::{Health, Layout, look};
use crate::nvml::inventory::{Inventory, Unreadable};
use crate::nvml::{in_full, open};

/// All that the checks look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// What only a node with GPUs has; nothing on a node that offers software slices.
    pub(super) gpu: Option<GpuFacts>,
    pub(super) kubelet: Kubelet,
    pub(super) processes: Processes,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Whether there is one cgroup hierarchy, version 2.
    pub(super) cgroup_v2: bool,
    /// Container engines' configuration files and whether each turns CDI on; nothing where it does not say.
    pub(super) engines: Vec<(PathBuf, Option<bool>)>,
}

#[derive(Debug, Clone)]
pub(super) struct GpuFacts {
    /// How the plugin is told to inject GPUs.
    pub(super) inject: Inject,
    /// What NVML says, or why it says nothing.
    pub(super) nvml: Result<Driver, String>,
    /// The numbered device files: `/dev/nvidia<minor>`.
    pub(super) device_files: Vec<String>,
    pub(super) cdi: Specs,
    pub(super) mps: Mps,
    /// What CUDA says of each GPU.
    pub(super) cuda: Vec<Cuda>,
}

/// What a CUDA program sees of a GPU.
#[derive(Debug, Clone)]
pub(super) struct Cuda {
    pub(super) gpu: GpuUuid,
    /// Without limits.
    pub(super) whole: Result<Seen, String>,
    /// As a slice of [`TRIED`], where an MPS daemon lives.
    pub(super) slice: Option<Result<Seen, String>>,
}

#[derive(Debug, Clone)]
pub(super) struct Driver {
    pub(super) version: String,
    /// 1000 × major + 10 × minor.
    pub(super) cuda: i32,
    pub(super) gpus: Vec<Gpu>,
    /// GPUs that do not answer.
    pub(super) unreadable: Vec<Unreadable>,
}

#[derive(Debug, Clone)]
pub(super) struct Gpu {
    pub(super) wanted: Wanted,
    pub(super) model: String,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Mps {
    pub(super) control_program: Option<PathBuf>,
    pub(super) root: PathBuf,
    /// By the directories there are.
    pub(super) daemons: Vec<(GpuUuid, Health)>,
    pub(super) has_shm: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Kubelet {
    /// Whether this program runs in a pod.
    pub(super) in_pod: bool,
    pub(super) plugin_directory: bool,
    pub(super) plugin_socket: bool,
    pub(super) pod_resources_socket: bool,
    pub(super) checkpoint: Checkpoint,
}

/// What comes of reading the kubelet's checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// There is no such file.
    #[default]
    Missing,
    /// As many entries are of our resources.
    Read(usize),
    /// It can't be opened, for this reason.
    Closed(String),
    /// It has another form than we know.
    Unknown(String),
}

impl Checkpoint {
    /// Of the file that the kubelet keeps in `directory`.
    pub(super) fn look(directory: &Path) -> Self {
        match checkpoint::read(&directory.join(checkpoint::FILE)) {
            Ok(entries) => Self::Read(entries.len()),
            Err(CheckpointError::Io(error)) if error.kind() == ErrorKind::NotFound => Self::Missing,
            Err(error @ CheckpointError::Io(_)) => Self::Closed(error.to_string()),
            Err(error @ CheckpointError::Form(_)) => Self::Unknown(error.to_string()),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Processes {
    /// The command of process 1.
    pub(super) first: String,
    /// Whether this is the kernel's first PID namespace.
    pub(super) is_first_namespace: bool,
    /// Whether a kubelet is to be seen.
    pub(super) sees_kubelet: bool,
}

/// Looks at everything; at GPUs only where it is told how they get into containers.
pub(super) async fn gather(
    nvml: Option<&Path>,
    mps_root: &Path,
    host: &Path,
    inject: Option<Inject>,
) -> Facts {
    let gpu = match inject {
        Some(inject) => Some(gpu_facts(nvml, mps_root, inject).await),
        None => None,
    };
    Facts {
        gpu,
        kubelet: Kubelet {
            in_pod: Path::new("/var/run/secrets/kubernetes.io").exists(),
            plugin_directory: Path::new(PLUGIN_DIRECTORY).is_dir(),
            plugin_socket: is_socket(&Path::new(PLUGIN_DIRECTORY).join("kubelet.sock")),
            pod_resources_socket: is_socket(Path::new(POD_RESOURCES_SOCKET)),
            checkpoint: Checkpoint::look(Path::new(PLUGIN_DIRECTORY)),
        },
        processes: processes(),
        kernel: text("/proc/sys/kernel/osrelease"),
        cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        engines: engines(host),
    }
}

async fn gpu_facts(nvml: Option<&Path>, mps_root: &Path, inject: Inject) -> GpuFacts {
    let mut facts = GpuFacts {
        inject,
        nvml: driver(nvml),
        device_files: device_files(),
        cdi: cdi::read(&DIRECTORIES),
        mps: mps(mps_root),
        cuda: Vec::new(),
    };
    for gpu in facts.nvml.iter().flat_map(|driver| &driver.gpus) {
        facts.cuda.push(cuda(&gpu.wanted.uuid, &facts.mps).await);
    }
    facts
}

fn driver(library: Option<&Path>) -> Result<Driver, String> {
    let nvml = open(library).map_err(|error| in_full(&error))?;
    let inventory = Inventory::read(&nvml).map_err(|error| in_full(&error))?;
    let gpu = |gpu| Gpu {
        wanted: wanted(gpu),
        model: gpu.model.clone(),
    };
    Ok(Driver {
        gpus: inventory.usable().map(gpu).collect(),
        version: inventory.driver_version.unwrap_or_else(|| "?".to_owned()),
        cuda: inventory.cuda_version.map_or(0, |version| version.number()),
        unreadable: inventory.unreadable,
    })
}

/// Where a daemon lives, all goes through it: it may be the only one that a GPU takes.
async fn cuda(gpu: &GpuUuid, mps: &Mps) -> Cuda {
    let has_daemon = mps
        .daemons
        .iter()
        .any(|(name, health)| name == gpu && *health == Health::Alive);
    let whole = Resources {
        mps: SmPercent(if has_daemon { 100 } else { 0 }),
        ..Resources::NONE
    };
    let whole = cuda::seen(gpu, whole, &mps.root).await;
    let slice = match has_daemon {
        true => Some(cuda::seen(gpu, TRIED, &mps.root).await),
        false => None,
    };
    Cuda {
        gpu: gpu.clone(),
        whole,
        slice,
    }
}

/// The slice that is tried.
pub(super) const TRIED: Resources = Resources {
    mps: SmPercent(50),
    vram: VramBlocks(4),
    ..Resources::NONE
};

fn device_files() -> Vec<String> {
    let number = |name: &str| name.strip_prefix("nvidia")?.parse::<u32>().ok();
    let mut files: Vec<_> = names("/dev")
        .into_iter()
        .filter(|name| number(name).is_some())
        .collect();
    files.sort_by_key(|name| number(name));
    files
}

fn mps(root: &Path) -> Mps {
    let layout = Layout::new(root);
    let is_gpu = |name: &String| name.starts_with("GPU-") || name.starts_with("MIG-");
    let gpus = names(root).into_iter().filter(is_gpu);
    let mut daemons: Vec<_> = gpus
        .filter_map(|name| GpuUuid::new(name).ok())
        .map(|gpu| (gpu.clone(), look(&layout.pipe_dir(&gpu))))
        .collect();
    daemons.sort_by(|a, b| a.0.cmp(&b.0));
    Mps {
        control_program: PROGRAM_DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join("nvidia-cuda-mps-control"))
            .find(|program| program.is_file()),
        root: root.to_owned(),
        daemons,
        has_shm: layout.shm_dir().is_dir(),
    }
}

fn processes() -> Processes {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let is_process = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let mut pids = names("/proc").into_iter().filter(is_process);
    Processes {
        first: text("/proc/1/comm"),
        is_first_namespace: namespace.as_os_str() == FIRST_PID_NAMESPACE,
        sees_kubelet: pids.any(|pid| KUBELETS.contains(&text(format!("/proc/{pid}/comm")).as_str())),
    }
}

fn engines(host: &Path) -> Vec<(PathBuf, Option<bool>)> {
    ENGINE_FILES
        .iter()
        .map(|file| host.join(file))
        .filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            let is_crio = path.extension().is_some_and(|extension| extension == "conf");
            let says = if is_crio { Some(true) } else { enables_cdi(&text) };
            Some((path, says))
        })
        .collect()
}

/// What a configuration in TOML says of `enable_cdi` (containerd's key; CRI-O has CDI on always).
pub(super) fn enables_cdi(toml: &str) -> Option<bool> {
    toml.lines().find_map(|line| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        (key.trim() == "enable_cdi").then(|| value.trim() == "true")
    })
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.file_type().is_socket())
}

fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

pub(super) const PLUGIN_DIRECTORY: &str = "/var/lib/kubelet/device-plugins";
pub(super) const POD_RESOURCES_SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/bin"];
/// `PROC_PID_INIT_INO` in include/linux/proc_ns.h.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
const KUBELETS: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "rke2", "microk8s"];
const ENGINE_FILES: [&str; 3] = [
    "etc/containerd/config.toml",
    "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "etc/crio/crio.conf",
];
