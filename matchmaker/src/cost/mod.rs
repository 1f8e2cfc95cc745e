//! Writes on streamers' pods what it costs to delete them: `penstock_core::deletion_cost` decides, this carries it out.
//!
//! ```text
//!  discovery ── pods, counts ──► one task that owns Costs ── while it holds the Lease ──► PATCH pods
//!                                       ▲ written, gone, failed ◄─────────────────────────┘
//! ```
//!
//! Every replica listens and so knows all; the one that holds the Lease writes. Needs the verb `patch` on pods.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use penstock_core::deletion_cost::{Costs, Counts, Outcome, Write};
use penstock_core::ids::PodUid;
use penstock_shell::api_errors;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterArgs};
use crate::lease::{ENDS_WITHIN, Holder};
use crate::pods::{LabelledPod, Seen};

/// What the task hears.
#[derive(Debug)]
pub enum Heard {
    /// Pods with streamers came, changed or went.
    Pods(Seen),
    /// So many are on a streamer; none where it can't be heard.
    Counts {
        /// Where it listens.
        address: SocketAddr,
        /// How many.
        counts: Option<Counts>,
    },
}

/// Starts it. Ends only after `stop`, once what is on its way has arrived and the Lease is given back.
pub fn start(
    cluster: &Cluster,
    args: &ClusterArgs,
    me: String,
    stop: CancellationToken,
) -> (mpsc::Sender<Heard>, impl Future<Output = ()> + Send + use<>) {
    let (hears, heard) = mpsc::channel(INBOX);
    let (holder, held) = Holder::new(cluster.client.clone(), &cluster.namespace, args.lease.clone(), me);
    let writer = Writer::new(cluster, args.pod_writes_per_second, heard, held);
    let work = async move {
        let written = CancellationToken::new();
        let write = async {
            writer.run(stop).await;
            written.cancel();
        };
        tokio::join!(holder.run(written.clone()), write);
    };
    (hears, work)
}

struct Writer {
    api: Api<Pod>,
    costs: Costs,
    pods: BTreeMap<PodUid, LabelledPod>,
    /// The names of pods that are not ours any more, whose annotations are still to be removed.
    left: BTreeMap<PodUid, String>,
    /// Whose counts are heard where.
    addresses: HashMap<SocketAddr, PodUid>,
    counts: HashMap<SocketAddr, Counts>,
    heard: mpsc::Receiver<Heard>,
    /// Until when it may write.
    held: watch::Receiver<Option<Instant>>,
    writes: JoinSet<(PodUid, Outcome)>,
}

impl Writer {
    fn new(
        cluster: &Cluster,
        per_second: u32,
        heard: mpsc::Receiver<Heard>,
        held: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            api: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            costs: Costs::new(per_second),
            pods: BTreeMap::new(),
            left: BTreeMap::new(),
            addresses: HashMap::new(),
            counts: HashMap::new(),
            heard,
            held,
            writes: JoinSet::new(),
        }
    }

    /// Works until `stop`; then waits for what is on its way.
    async fn run(mut self, stop: CancellationToken) {
        loop {
            self.write();
            let due = self.due();
            tokio::select! {
                Some(heard) = self.heard.recv() => self.take(heard),
                Some(done) = self.writes.join_next() => self.done(done),
                () = at(due) => {}
                Ok(()) = self.held.changed() => {}
                () = stop.cancelled() => break,
            }
        }
        while self.writes.join_next().await.is_some() {}
    }

    fn may_write(&self) -> bool {
        self.held.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// While the Lease is another's, nothing is due.
    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        self.may_write()
            .then(|| self.costs.due(now.into_std()))?
            .map(Instant::from_std)
    }

    fn write(&mut self) {
        while self.may_write() {
            let Some(write) = self.costs.next(Instant::now().into_std()) else {
                return;
            };
            let pod = self.pods.get(&write.pod).map(|pod| &pod.name);
            match pod.or_else(|| self.left.get(&write.pod)).cloned() {
                Some(name) => {
                    self.writes.spawn(patch(self.api.clone(), name, write));
                }
                None => self
                    .costs
                    .done(Instant::now().into_std(), &write.pod, Outcome::Gone),
            }
        }
        self.left
            .retain(|uid, _| self.costs.remembers(uid) && !self.pods.contains_key(uid));
    }

    fn done(&mut self, done: Result<(PodUid, Outcome), tokio::task::JoinError>) {
        match done {
            Ok((uid, outcome)) => self.costs.done(Instant::now().into_std(), &uid, outcome),
            Err(error) => tracing::error!(%error, "a write to a pod ended in a panic"),
        }
    }

    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Pods(seen) => self.seen(seen),
            Heard::Counts { address, counts } => {
                match counts {
                    Some(counts) => self.counts.insert(address, counts),
                    None => self.counts.remove(&address),
                };
                if let Some(uid) = self.addresses.get(&address) {
                    self.costs.count(Instant::now().into_std(), uid, counts);
                }
            }
        }
    }

    fn seen(&mut self, seen: Seen) {
        match seen {
            Seen::All(pods) => {
                let still: BTreeSet<_> = pods.iter().map(|pod| &pod.uid).collect();
                let gone: Vec<_> = self
                    .pods
                    .keys()
                    .filter(|uid| !still.contains(uid))
                    .cloned()
                    .collect();
                gone.iter().for_each(|uid| self.gone(uid));
                pods.into_iter().for_each(|pod| self.changed(pod));
            }
            Seen::Changed(pod) => self.changed(pod),
            Seen::Gone(uid) => self.gone(&uid),
        }
    }

    fn changed(&mut self, pod: LabelledPod) {
        let now = Instant::now().into_std();
        self.forget_address(&pod.uid);
        let address = pod.streamer();
        if pod.ending {
            self.costs.leave(now, &pod.uid, false);
        } else {
            self.costs.found(now, &pod.uid, pod.annotations.clone());
            let counts = address.and_then(|address| self.counts.get(&address));
            self.costs.count(now, &pod.uid, counts.copied());
            self.addresses
                .extend(address.map(|address| (address, pod.uid.clone())));
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn gone(&mut self, uid: &PodUid) {
        self.forget_address(uid);
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        // One that has lost its label only is still there.
        self.costs.leave(Instant::now().into_std(), uid, !pod.ending);
        if self.costs.remembers(uid) {
            self.left.insert(uid.clone(), pod.name);
        }
    }

    fn forget_address(&mut self, uid: &PodUid) {
        let address = self.pods.get(uid).and_then(LabelledPod::streamer);
        if let Some(address) = address
            && self.addresses.get(&address) == Some(uid)
        {
            self.addresses.remove(&address);
        }
    }
}

async fn patch(api: Api<Pod>, name: String, write: Write) -> (PodUid, Outcome) {
    // The UID keeps it off another pod of the same name.
    let body = json!({ "metadata": { "uid": write.pod, "annotations": write.annotations } });
    let (how, patch) = (PatchParams::default(), Patch::Merge(&body));
    let why = match timeout(ENDS_WITHIN, api.patch_metadata(&name, &how, &patch)).await {
        Ok(Ok(_)) => return (write.pod, Outcome::Written),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return (write.pod, Outcome::Gone),
        Ok(Err(error)) => api_errors::of(&error),
        Err(_) => api_errors::no_answer(ENDS_WITHIN),
    };
    tracing::warn!("writing on the pod {name} what it costs to delete it: {why}; it is tried again");
    (write.pod, Outcome::Failed)
}

/// How many things heard may wait.
const INBOX: usize = 256;

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
