//! Where the daemons' files are.
//!
//! ```text
//!   <root>/lock              held by the one process that runs daemons here
//!   <root>/shm/              /dev/shm of the daemons and of all their clients
//!   <root>/<GPU>/pipe/       made by the daemon: control, control_lock, control_privileged, log,
//!                            nvidia-cuda-mps-control.pid
//!   <root>/<GPU>/log/        control.log, server.log
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use penstock_core::ids::GpuUuid;
use rustix::fs::{FlockOperation, flock};

/// Where the daemons' files are, unless told otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/run/penstock/mps";
/// The environment variable that tells otherwise.
pub(crate) const ENV_ROOT: &str = "PENSTOCK_MPS_ROOT";

/// The paths below one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The paths below `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What clients of `gpu` need as their `CUDA_MPS_PIPE_DIRECTORY`.
    pub(crate) fn pipe_dir(&self, gpu: &GpuUuid) -> PathBuf {
        self.root.join(gpu.as_str()).join("pipe")
    }

    /// Where the daemon of `gpu` writes control.log and server.log.
    pub(crate) fn log_dir(&self, gpu: &GpuUuid) -> PathBuf {
        self.root.join(gpu.as_str()).join("log")
    }

    /// What clients need as their /dev/shm.
    pub(crate) fn shm_dir(&self) -> PathBuf {
        self.root.join("shm")
    }

    /// Makes the root, and makes it ours until what is returned is dropped.
    ///
    /// # Errors
    /// Where another process runs daemons here, a directory can't be made, or the root's name is too long.
    pub(super) fn claim(&self) -> anyhow::Result<File> {
        let longest = self
            .root
            .join("x".repeat(UUID_LENGTH))
            .join("pipe")
            .join(LONGEST_FILE);
        let length = longest.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            bail!(
                "{} is too long a path for the daemons' sockets by {} bytes: choose a shorter --root",
                self.root.display(),
                length - MAX_SOCKET_PATH
            );
        }
        directory(&self.root, 0o755)?;
        let lock = self.lock()?;
        directory(&self.shm_dir(), 0o1777)?;
        Ok(lock)
    }

    /// Makes a GPU's directories.
    ///
    /// # Errors
    /// Where one can't be made.
    pub(super) fn make(&self, gpu: &GpuUuid) -> anyhow::Result<()> {
        // Clients of every user pass through the first, and connect in the second.
        directory(&self.root.join(gpu.as_str()), 0o755)?;
        directory(&self.pipe_dir(gpu), 0o755)?;
        directory(&self.log_dir(gpu), 0o755)
    }

    /// Whether this process has as /dev/shm what clients are given.
    pub(super) fn shm_is_ours(&self) -> bool {
        let identity = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
        let ours = identity(Path::new("/dev/shm"));
        ours.is_some() && ours == identity(&self.shm_dir())
    }

    fn lock(&self) -> anyhow::Result<File> {
        let path = self.root.join("lock");
        let shown = path.display();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options
            .open(&path)
            .with_context(|| format!("opening {shown} (--root chooses another place)"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another penstock-plugin mps holds {shown}: end it, or choose another --root")
            }
            Err(error) => Err(error).with_context(|| format!("locking {shown}")),
        }
    }
}

/// The files that a daemon makes in its pipe directory.
pub(super) const FILES: [&str; 5] = ["control", "control_lock", LONGEST_FILE, "log", PID_FILE];
/// Names the daemon's process, in its own PID namespace.
pub(super) const PID_FILE: &str = "nvidia-cuda-mps-control.pid";
/// The socket that clients connect to.
pub(super) const CONTROL_SOCKET: &str = "control";
const LONGEST_FILE: &str = "control_privileged";
/// `GPU-` and a UUID as it is written.
const UUID_LENGTH: usize = 40;
/// `sun_path` has 108 bytes, the last of them NUL: unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// Makes a directory that has this very mode, whatever the umask.
fn directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let make = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    };
    make().with_context(|| {
        format!(
            "making the directory {} (it takes root; --root chooses another place)",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_open_to_clients_of_every_user() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("mps"));
        let _lock = layout.claim().unwrap();
        let gpu = GpuUuid::new("GPU-5c89852c-d268-5e9a-8e7c-0a1b2c3d4e5f").unwrap();
        layout.make(&gpu).unwrap();
        let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(layout.pipe_dir(&gpu)), 0o755);
        assert_eq!(mode(layout.log_dir(&gpu)), 0o755);
        assert_eq!(mode(layout.shm_dir()), 0o1777);
        assert!(!layout.shm_is_ours());
    }

    #[test]
    fn one_process_at_a_time_runs_daemons_in_a_root() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let lock = layout.claim().unwrap();
        let error = layout.claim().unwrap_err().to_string();
        assert!(error.contains("choose another --root"), "{error}");
        drop(lock);
        layout.claim().unwrap();
    }

    #[test]
    fn a_root_too_long_for_sockets_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("x".repeat(60)));
        let error = layout.claim().unwrap_err().to_string();
        assert!(error.contains("choose a shorter --root"), "{error}");
    }
}
