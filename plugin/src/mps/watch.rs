//! Whether an MPS daemon lives at its pipe directory. It only looks: nothing here writes, and no daemon notices.
//!
//! ```text
//!   control, a Unix socket ── connect as a datagram socket ─┬─ refused ──► nobody holds it: dead
//!                                                           └─ wrong type ──► somebody does: alive
//! ```
//!
//! The daemon listens on a socket of another type. Linux looks for a living holder before it compares types
//! (`unix_find_bsd` in net/unix/af_unix.c), so this question is answered by the kernel alone: a real connection
//! would leave a line in the daemon's log every time. It needs no process ID, so it works from any PID namespace;
//! the PID file only makes the reason clearer.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use penstock_core::ids::GpuUuid;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::watch::Sender;

use super::layout::{CONTROL_SOCKET, Layout, PID_FILE};

/// Whether clients can reach a GPU's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// They can.
    Alive,
    /// They can't, and why.
    Dead(Cause),
}

/// Why no client can reach a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No daemon was started here, or it was ended.
    NoSocket,
    /// The daemon was killed; the process that it was, where that is known.
    Gone(Option<u32>),
    /// The socket can't be looked at.
    Unclear(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSocket => f.write_str("no MPS daemon runs for it"),
            Self::Gone(Some(pid)) => write!(f, "its MPS daemon, process {pid}, is gone"),
            Self::Gone(None) => f.write_str("its MPS daemon is gone"),
            Self::Unclear(why) => write!(f, "its MPS daemon's socket can't be looked at: {why}"),
        }
    }
}

/// Looks at one pipe directory, once. Never blocks.
pub(crate) fn look(pipe_dir: &Path) -> Health {
    judge(knock(&pipe_dir.join(CONTROL_SOCKET)), || pid(pipe_dir))
}

/// Looks at each GPU's daemon at once and then every `every`, and sends what is found whenever it changes. Ends
/// once nobody listens.
pub(crate) async fn follow(
    layout: Layout,
    gpus: Vec<GpuUuid>,
    every: Duration,
    states: Sender<BTreeMap<GpuUuid, Health>>,
) {
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = states.closed() => return,
        }
        let found: BTreeMap<_, _> = gpus
            .iter()
            .map(|gpu| (gpu.clone(), look(&layout.pipe_dir(gpu))))
            .collect();
        states.send_if_modified(|known| {
            let differs = *known != found;
            if differs {
                *known = found;
            }
            differs
        });
    }
}

fn judge(answer: Result<(), Errno>, pid: impl FnOnce() -> Option<u32>) -> Health {
    match answer {
        // A datagram socket that takes us, or a socket of another type: somebody holds it.
        Ok(()) | Err(Errno::PROTOTYPE) => Health::Alive,
        Err(Errno::NOENT | Errno::NOTDIR) => Health::Dead(Cause::NoSocket),
        Err(Errno::CONNREFUSED) => Health::Dead(Cause::Gone(pid())),
        Err(error) => Health::Dead(Cause::Unclear(error.to_string())),
    }
}

fn knock(socket: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ours = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    net::connect(&ours, &SocketAddrUnix::new(socket)?)
}

fn pid(pipe_dir: &Path) -> Option<u32> {
    std::fs::read_to_string(pipe_dir.join(PID_FILE))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_lives_as_long_as_somebody_holds_its_socket() {
        let pipes = tempfile::tempdir().unwrap();
        assert_eq!(look(pipes.path()), Health::Dead(Cause::NoSocket));
        let daemon = UnixListener::bind(pipes.path().join("control")).unwrap();
        std::fs::write(pipes.path().join("nvidia-cuda-mps-control.pid"), "4711\n").unwrap();
        assert_eq!(look(pipes.path()), Health::Alive);
        daemon.set_nonblocking(true).unwrap();
        let noticed = daemon.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(noticed, Err(std::io::ErrorKind::WouldBlock));
        drop(daemon);
        let health = look(pipes.path());
        assert_eq!(health, Health::Dead(Cause::Gone(Some(4711))));
    }

    #[test]
    fn what_is_no_socket_is_no_daemon() {
        let pipes = tempfile::tempdir().unwrap();
        std::fs::write(pipes.path().join("control"), "").unwrap();
        assert_eq!(look(pipes.path()), Health::Dead(Cause::Gone(None)));
        assert_eq!(look(&pipes.path().join("none")), Health::Dead(Cause::NoSocket));
        let too_long = pipes.path().join("x".repeat(200));
        assert!(matches!(look(&too_long), Health::Dead(Cause::Unclear(_))));
    }

    #[test]
    fn a_reason_reads_as_a_sentence_about_the_gpu() {
        assert_eq!(
            Cause::Gone(Some(7)).to_string(),
            "its MPS daemon, process 7, is gone"
        );
        assert_eq!(Cause::NoSocket.to_string(), "no MPS daemon runs for it");
    }

    #[tokio::test]
    async fn a_gpu_falls_ill_with_its_daemon_and_recovers_with_it() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let gpu = GpuUuid::new("GPU-a").unwrap();
        let pipes = layout.pipe_dir(&gpu);
        std::fs::create_dir_all(&pipes).unwrap();
        let start = || UnixListener::bind(pipes.join("control")).unwrap();
        let daemon = start();
        let (states, mut seen) = tokio::sync::watch::channel(BTreeMap::new());
        let following = tokio::spawn(follow(
            layout,
            vec![gpu.clone()],
            Duration::from_millis(5),
            states,
        ));
        let is = |health: Health| BTreeMap::from([(gpu.clone(), health)]);
        seen.wait_for(|now| *now == is(Health::Alive)).await.unwrap();
        drop(daemon);
        seen.wait_for(|now| *now == is(Health::Dead(Cause::Gone(None))))
            .await
            .unwrap();
        std::fs::remove_file(pipes.join("control")).unwrap();
        let _daemon = start();
        seen.wait_for(|now| *now == is(Health::Alive)).await.unwrap();
        drop(seen);
        following.await.unwrap();
    }
}
