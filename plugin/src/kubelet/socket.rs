//! Unix sockets between the kubelet and us: ours to be served, its own to be connected to.

use std::error::Error;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::registrar::SocketIdentity;

/// Which socket is at `path`; none where there is nothing, or nothing that can be looked at.
pub(super) fn identity(path: &Path) -> Option<SocketIdentity> {
    let file = path.symlink_metadata().ok()?;
    Some(SocketIdentity {
        device: file.dev(),
        inode: file.ino(),
        made: (file.ctime(), file.ctime_nsec()),
    })
}

/// A socket of ours in the kubelet's directory: the file goes when this does, unless another plugin has put its own
/// there in the meantime.
#[derive(Debug)]
pub(super) struct OurSocket {
    path: PathBuf,
    identity: Option<SocketIdentity>,
}

/// Listens at `path`, in the place of whatever socket was left there.
///
/// # Errors
/// Where the directory can't be written to.
pub(super) fn listen(path: PathBuf) -> io::Result<(OurSocket, UnixListener)> {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let identity = identity(&path);
    Ok((OurSocket { path, identity }, listener))
}

impl OurSocket {
    /// Whether the file is there still, and is ours.
    pub(super) fn is_there(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

impl Drop for OurSocket {
    fn drop(&mut self) {
        if self.is_there() {
            // Somebody may remove it between look and deed; then all is as it should be.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The connections that come in.
pub(super) fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        if accepted.is_err() {
            // Out of file descriptors, say: a moment without spinning.
            tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
        }
        Some((accepted, listener))
    })
}

/// A connection to the kubelet's socket at `path`. The authority is `localhost`, since HTTP/2 servers reset streams
/// whose authority is a path.
///
/// # Errors
/// Where nobody listens there.
pub(super) async fn connect(path: &Path) -> io::Result<Channel> {
    let path = path.to_owned();
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_WITHIN)
        .timeout(ANSWER_WITHIN);
    let connecting = endpoint.connect_with_connector(service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }));
    connecting.await.map_err(|error| io::Error::other(root(&error)))
}

/// What is at the bottom of an error: each layer above repeats it.
fn root(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What a call of ours was answered instead.
pub(super) fn in_words(status: &Status) -> anyhow::Error {
    anyhow::anyhow!("it answered {:?}: {}", status.code(), status.message())
}

const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The kubelet dials back and asks for our options before it answers a registration.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_goes_with_its_owner_but_not_a_successors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (first, _listener) = listen(path.clone()).unwrap();
        assert!(first.is_there());
        let (second, _listener) = listen(path.clone()).unwrap();
        assert!(!first.is_there());
        drop(first);
        assert!(second.is_there(), "the first has removed the second's");
        drop(second);
        assert!(!path.exists());
    }
}
