//! TURN servers in pods: where they are, and how loaded.
//!
//! ```text
//!  pods with our label ──► a follower for each: GET /status every few seconds ──► TurnServers ──► ice
//!                               no answer for 15 s, draining, or ending: not told to anybody
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_core::ids::PodUid;
use penstock_core::names::PORT_METRICS;
use penstock_core::wire::turn::TurnStatus;
use reqwest::{Client, Response};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::pods::{self, LabelledPod, Wanted};

/// Those that answer; a clone is another handle to the same.
#[derive(Debug, Clone, Default)]
pub struct TurnServers(Arc<Mutex<BTreeMap<PodUid, Server>>>);

#[derive(Debug)]
struct Server {
    status: TurnStatus,
    /// How often it was told to pages since it said that.
    told: u64,
}

impl TurnServers {
    /// The URLs of the `most` least loaded ones that take clients. They count as a little more loaded from then on, so
    /// that a crowd does not go to one while its load is not heard yet.
    pub fn choose(&self, most: usize) -> Vec<Vec<String>> {
        let mut servers = self.lock();
        let takes = |server: &&mut Server| !server.status.draining && !server.status.urls.is_empty();
        let mut fit: Vec<_> = servers.values_mut().filter(takes).collect();
        fit.sort_by(|a, b| a.load().total_cmp(&b.load()));
        fit.truncate(most);
        let tell = |server: &mut Server| {
            server.told += 1;
            server.status.urls.clone()
        };
        fit.into_iter().map(tell).collect()
    }

    /// The URLs of any of them.
    pub fn any(&self) -> Option<Vec<String>> {
        self.lock()
            .values()
            .next()
            .map(|server| server.status.urls.clone())
    }

    /// A server has said how it stands.
    pub fn answered(&self, uid: &PodUid, status: TurnStatus) {
        self.lock().insert(uid.clone(), Server { status, told: 0 });
    }

    /// A server does not answer, or ends.
    pub fn lost(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, Server>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// 1 is full, by places or by bytes, whichever is more.
    fn load(&self) -> f64 {
        let held = self.status.allocations.saturating_add(self.told);
        let places = held as f64 / self.status.max_allocations.max(1) as f64;
        places.max(self.status.bytes_per_second as f64 / FULL_BYTES_PER_SECOND)
    }
}

/// Follows the TURN servers in the pods `wanted`, for ever.
///
/// # Errors
/// Where no HTTP client can be made.
pub fn follow(
    client: kube::Client,
    wanted: Wanted,
    servers: TurnServers,
) -> Result<impl Future<Output = ()> + Send + use<>, reqwest::Error> {
    let http = Client::builder().timeout(ANSWER_WITHIN).no_proxy().build()?;
    Ok(async move {
        let (seen, mut changes) = mpsc::channel(CHANGES);
        let mut following = Following {
            http,
            servers,
            followers: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let listen = async {
            let mut known = BTreeMap::<PodUid, LabelledPod>::new();
            while let Some(seen) = changes.recv().await {
                pods::apply(&mut known, &seen);
                following.follow(&known);
            }
        };
        // The watch ends only when nobody listens, which is here.
        tokio::join!(pods::watch(client, wanted, seen), listen);
    })
}

struct Following {
    http: Client,
    servers: TurnServers,
    followers: HashMap<PodUid, (SocketAddr, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Following {
    /// Follows these and nobody else.
    fn follow(&mut self, pods: &BTreeMap<PodUid, LabelledPod>) {
        let address = |pod: &LabelledPod| {
            pod.address(PORT_METRICS, TURN_METRICS_PORT)
                .filter(|_| !pod.ending)
        };
        self.followers.retain(|uid, (at, task)| {
            let stays = pods.get(uid).and_then(address) == Some(*at);
            if !stays {
                task.abort();
                self.servers.lost(uid);
                tracing::info!(address = %at, "a TURN server ends, or is gone");
            }
            stays
        });
        for (uid, pod) in pods {
            let Some(at) = address(pod).filter(|_| !self.followers.contains_key(uid)) else {
                continue;
            };
            tracing::info!(address = %at, pod = pod.name, "following a TURN server");
            let ask = ask(self.http.clone(), at, uid.clone(), self.servers.clone());
            let task = self.tasks.spawn(ask);
            self.followers.insert(uid.clone(), (at, task));
        }
        // Those that were let go.
        while self.tasks.try_join_next().is_some() {}
    }
}

/// Asks one server for ever.
async fn ask(http: Client, at: SocketAddr, uid: PodUid, servers: TurnServers) {
    let mut heard = Instant::now();
    let mut answers = true;
    loop {
        match status(&http, at).await {
            Ok(status) => {
                servers.answered(&uid, status);
                heard = Instant::now();
                answers = true;
            }
            Err(error) => {
                if std::mem::take(&mut answers) {
                    tracing::warn!(
                        "asking the TURN server at {at} for its /status: {error}; it is asked again"
                    );
                }
                if heard.elapsed() >= TOLD_FOR {
                    servers.lost(&uid);
                }
            }
        }
        tokio::time::sleep(ASKED_EVERY.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

async fn status(http: &Client, at: SocketAddr) -> Result<TurnStatus, StatusError> {
    let answer = http.get(format!("http://{at}/status")).send().await?;
    let body = body(answer.error_for_status()?).await?;
    Ok(serde_json::from_slice(&body)?)
}

async fn body(mut answer: Response) -> Result<Vec<u8>, StatusError> {
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        body.extend_from_slice(&part);
        if body.len() > LONGEST_ANSWER {
            return Err(StatusError::TooLong);
        }
    }
    Ok(body)
}

#[derive(Debug, thiserror::Error)]
enum StatusError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("it can't be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is longer than {LONGEST_ANSWER} bytes")]
    TooLong,
}

/// The port of a TURN server's pod that names none.
const TURN_METRICS_PORT: u16 = 9641;
/// A relay of a gigabit a second counts as full.
const FULL_BYTES_PER_SECOND: f64 = 125e6;
const ASKED_EVERY: Duration = Duration::from_secs(3);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a server that does not answer is still told to pages.
const TOLD_FOR: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: usize = 64 << 10;
const CHANGES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn server(servers: &TurnServers, name: &str, allocations: u64, bytes_per_second: u64, draining: bool) {
        let status = TurnStatus {
            urls: vec![name.to_owned()],
            draining,
            allocations,
            max_allocations: 100,
            bytes_per_second,
        };
        servers.answered(&name.parse().unwrap(), status);
    }

    fn chosen(servers: &TurnServers, most: usize) -> Vec<String> {
        servers.choose(most).concat()
    }

    #[test]
    fn the_least_loaded_comes_first_and_one_that_drains_not_at_all() {
        let servers = TurnServers::default();
        server(&servers, "places", 50, 0, false);
        server(&servers, "bytes", 0, 100_000_000, false);
        server(&servers, "idle", 10, 0, false);
        server(&servers, "drains", 0, 0, true);
        assert_eq!(chosen(&servers, 9), ["idle", "places", "bytes"]);
        assert_eq!(chosen(&servers, 2), ["idle", "places"]);
        servers.lost(&"idle".parse().unwrap());
        assert_eq!(chosen(&servers, 1), ["places"]);
    }

    #[test]
    fn a_crowd_is_spread_before_its_load_is_heard() {
        let servers = TurnServers::default();
        server(&servers, "a", 0, 0, false);
        server(&servers, "b", 2, 0, false);
        let crowd: Vec<_> = (0..6).flat_map(|_| chosen(&servers, 1)).collect();
        let of_a = crowd.iter().filter(|name| *name == "a").count();
        assert_eq!(of_a, 4, "{crowd:?}");
    }
}
