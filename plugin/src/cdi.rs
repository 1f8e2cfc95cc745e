//! How a GPU gets into a container: by an environment variable that NVIDIA's runtime reads, or by the name of a
//! device in a CDI specification that containerd or CRI-O reads.
//!
//! ```text
//!   /etc/cdi, /var/run/cdi ── read ──► Specs ── find(GPU) ──► nvidia.com/gpu=GPU-… , or why there is none
//!                              └ kept until a file changes: Kept
//! ```
//!
//! Nothing is guessed: where no device of a specification is known to be the GPU in question, none is named. A
//! container would get another GPU, and all accounting would be wrong.
//!
//! Source: the [CDI specification](https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use penstock_core::ids::GpuUuid;
use serde::Deserialize;

/// How a GPU gets into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Injection {
    /// NVIDIA's runtime reads `NVIDIA_VISIBLE_DEVICES`.
    Environment,
    /// The container engine reads a CDI specification.
    Cdi(QualifiedName),
}

/// How an administrator wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Inject {
    /// By NVIDIA_VISIBLE_DEVICES, for NVIDIA's container runtime.
    Env,
    /// By the GPU's name in the node's CDI specification.
    Cdi,
    /// By CDI where the node's specification names the GPU, else by the variable.
    Auto,
}

impl Inject {
    /// The variable: the plugin's own container has its driver by it, so it is known to work. CDI is not: containerd 1.7 has
    /// it off by default and drops the names without a word, and recent toolkits write a specification on every node,
    /// so that there is one says nothing.
    pub(crate) const DEFAULT: Self = Self::Env;
}

/// A CDI device's full name: `nvidia.com/gpu=GPU-…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QualifiedName(String);

impl QualifiedName {
    /// The full name of NVIDIA's device `name`.
    pub(crate) fn gpu(name: &str) -> Self {
        Self(format!("{KIND}={name}"))
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The GPU that is looked for, by all that a specification may know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) uuid: GpuUuid,
    /// The number of its device file, `/dev/nvidia<minor>`; of a MIG instance, its GPU's.
    pub(crate) minor: Option<u32>,
    /// For a MIG instance, its GPU's index and its own, as NVML counts them.
    pub(crate) mig: Option<(u32, u32)>,
}

/// Why no CDI device is the GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFound {
    /// There is no specification of NVIDIA's devices.
    #[error(
        "no CDI specification of {KIND} was found: make one with `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, or use --inject env"
    )]
    NoSpec,
    /// None of the names stands for it.
    #[error(
        "the CDI specification names {names}, none of which is known to be {gpu}: generate it anew with `nvidia-ctk cdi generate --device-name-strategy=uuid`"
    )]
    NoName {
        /// The GPU.
        gpu: GpuUuid,
        /// What there is.
        names: String,
    },
    /// Two files give the same name, so container engines take neither.
    #[error("{name} is in more than one CDI specification of {directory}: remove all but one")]
    Twice {
        /// The name.
        name: String,
        /// Where.
        directory: String,
    },
}

/// Chooses how `gpu` gets into containers.
///
/// # Errors
/// [`NotFound`] where CDI is demanded and does not know the GPU.
pub(crate) fn choose(inject: Inject, specs: &Specs, gpu: &Wanted) -> Result<Injection, NotFound> {
    match inject {
        Inject::Env => Ok(Injection::Environment),
        Inject::Cdi => specs.find(gpu).map(Injection::Cdi),
        Inject::Auto => Ok(specs.find(gpu).map_or(Injection::Environment, Injection::Cdi)),
    }
}

/// The node's specifications of NVIDIA's GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Specs {
    /// One for each file, in the order of the directories.
    pub(crate) specs: Vec<Spec>,
    /// Files that could not be read, and why.
    pub(crate) skipped: Vec<(PathBuf, String)>,
}

/// One specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Its file.
    pub(crate) path: PathBuf,
    /// Its devices.
    pub(crate) devices: Vec<Device>,
    /// Whether it puts NVIDIA's encoder library into containers.
    pub(crate) encodes: bool,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// The GPUs' device files that it brings, by number.
    minors: BTreeSet<u32>,
    /// Whether it brings MIG's files too.
    is_mig: bool,
}

/// Reads all specifications in `directories`, the one that counts most last.
pub(crate) fn read<P: AsRef<Path>>(directories: &[P]) -> Specs {
    let mut specs = Specs::default();
    for path in directories.iter().flat_map(|d| files(d.as_ref())) {
        match read_one(&path) {
            Ok(Some(spec)) => specs.specs.push(spec),
            Ok(None) => {}
            Err(why) => specs.skipped.push((path, why)),
        }
    }
    specs
}

/// Specifications that are read again only when a file has come, gone or changed: they may be made long after this
/// program has started, and reading them takes longer than all else in an answer.
#[derive(Debug)]
pub(crate) struct Kept {
    directories: Vec<PathBuf>,
    /// What the files were like when they were read.
    seen: Vec<(PathBuf, Option<Stamp>)>,
    specs: Specs,
}

/// What changes with a file's content, whether it is written in place or replaced: device, inode, size, and when its
/// content and its inode were changed last, in seconds and nanoseconds.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Kept {
    /// Those in `directories`, the one that counts most last. Nothing is read yet.
    pub(crate) fn new<P: AsRef<Path>>(directories: &[P]) -> Self {
        Self {
            directories: directories.iter().map(|d| d.as_ref().to_owned()).collect(),
            seen: Vec::new(),
            specs: Specs::default(),
        }
    }

    /// As they are now.
    pub(crate) fn now(&mut self) -> &Specs {
        let files = self.directories.iter().flat_map(|directory| files(directory));
        // Looked at before they are read: a change meanwhile is then found the next time.
        let found: Vec<_> = files
            .map(|path| {
                let stamp = stamp(&path);
                (path, stamp)
            })
            .collect();
        if found != self.seen {
            self.seen = found;
            self.specs = read(&self.directories);
        }
        &self.specs
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = path.metadata().ok()?;
    let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
    Some((file.dev(), file.ino(), file.size(), times))
}

/// Where specifications are, the directory that counts most last: it holds what programs generate.
pub(crate) const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

impl Specs {
    /// The device that is `gpu`: by its UUID; else, for a MIG instance, by the indices of its GPU and its own;
    /// else by its device file.
    ///
    /// # Errors
    /// [`NotFound`].
    pub(crate) fn find(&self, gpu: &Wanted) -> Result<QualifiedName, NotFound> {
        let device = self
            .device(|device| device.name == gpu.uuid.as_str())
            .or_else(|| self.device(|device| device.stands_for(gpu)));
        let Some((spec, device)) = device else {
            return Err(self.not_found(gpu));
        };
        let same_directory = |other: &&Spec| other.path.parent() == spec.path.parent();
        let has_name = |other: &&Spec| other.devices.iter().any(|d| d.name == device.name);
        if self.specs.iter().filter(same_directory).filter(has_name).count() > 1 {
            return Err(NotFound::Twice {
                name: device.name.clone(),
                directory: spec.path.parent().unwrap_or(&spec.path).display().to_string(),
            });
        }
        Ok(QualifiedName::gpu(&device.name))
    }

    /// The first such device of the specification that counts most.
    fn device(&self, is_wanted: impl Fn(&Device) -> bool) -> Option<(&Spec, &Device)> {
        let find = |spec: &'_ Spec| spec.devices.iter().position(&is_wanted);
        self.specs
            .iter()
            .rev()
            .find_map(|spec| Some((spec, &spec.devices[find(spec)?])))
    }

    fn not_found(&self, gpu: &Wanted) -> NotFound {
        let names: BTreeSet<_> = self
            .specs
            .iter()
            .flat_map(|spec| &spec.devices)
            .map(|device| device.name.as_str())
            .collect();
        if names.is_empty() {
            return NotFound::NoSpec;
        }
        NotFound::NoName {
            gpu: gpu.uuid.clone(),
            names: names.into_iter().collect::<Vec<_>>().join(", "),
        }
    }
}

impl Device {
    /// Whether its device files say that it is this GPU and no more than that. A name is believed only of a MIG
    /// instance, whose GPU's file all its siblings bring too.
    fn stands_for(&self, gpu: &Wanted) -> bool {
        let Some(minor) = gpu.minor else { return false };
        let is_its_gpu = self.minors.len() == 1 && self.minors.contains(&minor);
        match gpu.mig {
            // `all` is one GPU today, and two once another is built in.
            None => is_its_gpu && !self.is_mig && self.name != "all",
            // As nvidia-ctk names by index, and by type and index.
            Some((gpu_index, own)) => {
                let name = self.name.strip_prefix("mig").unwrap_or(&self.name);
                is_its_gpu && self.is_mig && name == format!("{gpu_index}:{own}")
            }
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    // Container engines look at these two endings, and into no subdirectory.
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml");
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_spec)
        .collect();
    files.sort();
    files
}

/// A specification, or nothing where it is of other devices than NVIDIA's GPUs.
fn read_one(path: &Path) -> Result<Option<Spec>, String> {
    let text = read_text(path)?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let raw: RawSpec = if is_json {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?
    };
    if raw.kind != KIND {
        return Ok(None);
    }
    let encoder = |mount: &RawMount| mount.container_path.contains(ENCODER_LIBRARY);
    let mut edits =
        std::iter::once(&raw.container_edits).chain(raw.devices.iter().map(|d| &d.container_edits));
    Ok(Some(Spec {
        path: path.to_owned(),
        encodes: edits.any(|edits| edits.mounts.iter().any(encoder)),
        devices: raw.devices.into_iter().map(Device::from).collect(),
    }))
}

fn read_text(path: &Path) -> Result<String, String> {
    // A pipe would keep us waiting.
    if !path.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(MAX_SPEC_BYTES + 1).read_to_string(&mut text);
    match read.map_err(|error| error.to_string())? {
        read if read as u64 > MAX_SPEC_BYTES => Err(format!("it is longer than {MAX_SPEC_BYTES} bytes")),
        _ => Ok(text),
    }
}

impl From<RawDevice> for Device {
    fn from(raw: RawDevice) -> Self {
        let paths = || {
            raw.container_edits
                .device_nodes
                .iter()
                .map(|node| node.path.as_str())
        };
        let minor = |path: &str| path.rsplit('/').next()?.strip_prefix("nvidia")?.parse().ok();
        Self {
            minors: paths().filter_map(minor).collect(),
            is_mig: paths().any(|path| path.contains("/nvidia-caps/")),
            name: raw.name,
        }
    }
}

/// The parts of a specification that matter here; others may come and go with its version.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    kind: String,
    #[serde(default)]
    devices: Vec<RawDevice>,
    #[serde(default)]
    container_edits: RawEdits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDevice {
    name: String,
    #[serde(default)]
    container_edits: RawEdits,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEdits {
    #[serde(default)]
    device_nodes: Vec<RawNode>,
    #[serde(default)]
    mounts: Vec<RawMount>,
}

#[derive(Deserialize)]
struct RawNode {
    path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMount {
    container_path: String,
}

const KIND: &str = "nvidia.com/gpu";
const ENCODER_LIBRARY: &str = "libnvidia-encode.so";
/// NVIDIA's own are some 20 KiB.
const MAX_SPEC_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests;
