//! The agent's Unix socket: for its own user only, and one agent at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Where the agent listens, unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/penstock/agent.sock";
/// The environment variable that tells otherwise.
pub(crate) const ENV_SOCKET: &str = "PENSTOCK_AGENT_SOCKET";

/// A socket path that is ours as long as this lives. The lock beside it ends with the process, however that
/// ends, so a dead agent's socket is told from a live one's without asking it.
#[derive(Debug)]
pub(super) struct Claimed {
    path: PathBuf,
    listens: bool,
    _lock: File,
}

/// Makes `path` ours, with its directory.
///
/// # Errors
/// Where another agent holds it, or a file there can't be made.
pub(super) fn claim(path: &Path) -> anyhow::Result<Claimed> {
    let shown = path.display();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(|| {
                let directory = directory.display();
                format!("creating {directory}, the socket's directory (--socket chooses another)")
            })?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .with_context(|| {
            format!("opening the lock beside the socket {shown} (--socket chooses another place)")
        })?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(taken(path)),
        Err(error) => return Err(error).with_context(|| format!("locking the socket {shown}")),
    }
    Ok(Claimed {
        path: path.to_owned(),
        listens: false,
        _lock: lock,
    })
}

impl Claimed {
    /// Listens, in the place of a dead agent's socket where one was left.
    ///
    /// # Errors
    /// Where something that is no dead agent's is in the way.
    pub(super) fn listen(&mut self) -> anyhow::Result<UnixListener> {
        let path = &self.path;
        let shown = path.display();
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("looking at the socket {shown}")),
            Ok(there) if !there.file_type().is_socket() => {
                bail!("{shown} is there and is no socket: remove it, or choose another --socket")
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => bail!(taken(path)),
            Ok(_) => std::fs::remove_file(path)
                .with_context(|| format!("removing {shown}, the socket of an agent that is gone"))?,
        }
        let listener =
            listen(path).with_context(|| format!("listening on {shown} (--socket chooses another place)"))?;
        self.listens = true;
        Ok(listener)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.listens {
            // Where somebody removed it before us, all is as it should be.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A listening socket with mode 0600. Linux gives the file the mode that the socket has, so nobody else gets a
/// connection in the instant between its making and a later chmod (unix(7)).
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

fn taken(path: &Path) -> String {
    format!(
        "an agent answers on {} already: end it, or choose another --socket",
        path.display()
    )
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_only_its_user_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/agent.sock");
        std::fs::create_dir(directory.path().join("new")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let mut claimed = claim(&path).unwrap();
        let _listener = claimed.listen().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn two_agents_do_not_share_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = claim(&path).unwrap();
        let error = claim(&path).unwrap_err().to_string();
        assert!(error.contains("choose another --socket"), "{error}");
        drop(first);
        claim(&path).unwrap();
    }

    #[tokio::test]
    async fn another_programs_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = claim(&path).unwrap().listen().unwrap_err().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
