//! What the device plugin tells of its node: to Prometheus, and to the cluster.
//!
//! ```text
//!   occupancy   who holds what ──┐             ┌──► metrics
//!   described   models ──────────┼──► known ───┼──► NodeState ──► GpuNode
//!   measures    NVML ─► by pod ──┘             └──► over its slice ──► an Event on the pod
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use penstock_core::ids::NodeName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::known::{Loads, NodeKnown, ending, known, node_state, overuse, uses};
use super::metrics::Metrics;
use crate::assign::Occupancy;
use crate::gpunode::{NodeState, Overuse, OveruseReporter, PodRef, publish};
use crate::gpus::{Described, Measuring};
use crate::load::{EncoderUse, Watch, by_pod};
use crate::nvml::measures::Measures;
use crate::nvml::pods::PodFinder;

/// Who holds what; none until it is known.
pub(super) type Occupied = watch::Receiver<Option<Arc<Occupancy>>>;
/// Tells of the node.
pub(super) struct Reporter {
    inputs: Inputs,
    metrics: Metrics,
    finder: PodFinder,
    measures: Arc<Vec<Measures>>,
    loads: Loads,
    watch: Watch,
    over: Vec<EncoderUse>,
    cluster: Option<Cluster>,
}

/// What is told of.
pub(super) struct Inputs {
    pub(super) occupied: Occupied,
    pub(super) described: Described,
    pub(super) measured: Measuring,
    pub(super) registered: watch::Receiver<bool>,
    /// The program is about to end.
    pub(super) ending: CancellationToken,
}

/// The cluster that is told.
struct Cluster {
    client: Client,
    node: NodeName,
    /// Begun with the first state that is known.
    telling: Option<Telling>,
}

struct Telling {
    states: watch::Sender<NodeState>,
    overuse: mpsc::Sender<(PodRef, Overuse)>,
    publishing: JoinSet<()>,
    _events: JoinSet<()>,
}

impl Reporter {
    /// One that shows `metrics`, and tells the cluster of `node` where there is one.
    pub(super) fn new(inputs: Inputs, metrics: Metrics, cluster: Option<(Client, NodeName)>) -> Self {
        Self {
            inputs,
            metrics,
            finder: PodFinder::default(),
            measures: Arc::default(),
            loads: Loads::new(),
            watch: Watch::default(),
            over: Vec::new(),
            cluster: cluster.map(|(client, node)| Cluster {
                client,
                node,
                telling: None,
            }),
        }
    }

    /// Tells until those it hears from are gone, or the program ends: then the cluster is told that, and this returns once
    /// it knows. Who is bound to the node before can still be served meanwhile.
    pub(super) async fn run(mut self) {
        loop {
            self.tell();
            let inputs = &mut self.inputs;
            let heard = tokio::select! {
                heard = inputs.occupied.changed() => heard,
                heard = inputs.described.changed() => heard,
                heard = inputs.registered.changed() => heard,
                heard = inputs.measured.changed() => {
                    if heard.is_ok() {
                        self.measured();
                    }
                    heard
                }
                () = inputs.ending.cancelled() => return self.take_leave().await,
            };
            if heard.is_err() {
                return;
            }
        }
    }

    async fn take_leave(mut self) {
        let known = self.known();
        if let Some((known, cluster)) = known.zip(self.cluster)
            && let Some(telling) = cluster.telling
        {
            telling.take_leave(&known).await;
        }
    }

    fn measured(&mut self) {
        self.measures = Arc::clone(&self.inputs.measured.borrow_and_update());
        let finder = &mut self.finder;
        let load = |measures: &Measures| {
            let pods = by_pod(measures, |pid| finder.pod_of(pid));
            (measures.gpu.clone(), pods)
        };
        self.loads = self.measures.iter().map(load).collect();
        let uses = match self.known() {
            Some(known) => uses(&known, &self.inputs.described.borrow()),
            None => Vec::new(),
        };
        self.over = self.watch.take(&uses);
    }

    fn tell(&mut self) {
        let Some(known) = self.known() else { return };
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(&known);
        }
        self.metrics.show(known);
    }

    fn known(&mut self) -> Option<NodeKnown> {
        let occupancy = self.inputs.occupied.borrow_and_update().clone()?;
        let described = self.inputs.described.borrow_and_update().clone();
        let (gpus, pods) = known(&occupancy, &described, &self.measures, &self.loads, &self.over);
        Some(NodeKnown {
            registered: *self.inputs.registered.borrow_and_update(),
            gpus,
            pods,
        })
    }
}

impl Cluster {
    fn tell(&mut self, known: &NodeKnown) {
        let state = node_state(known);
        let telling = match &self.telling {
            Some(telling) => {
                telling.states.send_replace(state);
                telling
            }
            None => self
                .telling
                .insert(Telling::begin(&self.client, &self.node, state)),
        };
        for pod in known.pods.iter().filter(|pod| pod.over) {
            // Where the API server is slow the rest is told of at the next measurement.
            let _ = overuse(pod).map(|event| telling.overuse.try_send(event));
        }
    }
}

impl Telling {
    fn begin(client: &Client, node: &NodeName, state: NodeState) -> Self {
        let (states, seen_states) = watch::channel(state);
        let mut publishing = JoinSet::new();
        publishing.spawn(publish(client.clone(), node.clone(), seen_states));
        let (overuse, events) = mpsc::channel(MOST_EVENTS_WAITING);
        let reporter = OveruseReporter::new(client.clone(), node);
        let mut writing = JoinSet::new();
        writing.spawn(write_events(reporter, events));
        Self {
            states,
            overuse,
            publishing,
            _events: writing,
        }
    }

    async fn take_leave(mut self, known: &NodeKnown) {
        let mut state = node_state(known);
        state.conditions = vec![ending()];
        self.states.send_replace(state);
        drop(self.states);
        if timeout(TAKE_LEAVE_WITHIN, self.publishing.join_next())
            .await
            .is_err()
        {
            tracing::warn!(
                "the API server was not told in time that this plugin ends: pods that are bound here until the next one is \
                 there may fail"
            );
        }
    }
}

async fn write_events(mut reporter: OveruseReporter, mut events: mpsc::Receiver<(PodRef, Overuse)>) {
    while let Some((pod, overuse)) = events.recv().await {
        if let Err(error) = reporter.report(Instant::now(), &pod, &overuse).await {
            tracing::warn!("{error}");
        }
    }
}

const MOST_EVENTS_WAITING: usize = 64;
const TAKE_LEAVE_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use penstock_core::ids::PodUid;
    use prometheus::Registry;

    use super::super::known::tests::{node, t4};
    use super::super::metrics::tests::shown;
    use super::*;
    use crate::nvml::measures::ProcessLoad;
    use crate::nvml::pods::tests::Proc;

    #[tokio::test]
    async fn a_process_of_a_pod_is_counted_as_the_pods_and_told_of_once_it_stays_over() {
        let proc = Proc::new();
        let uid = "0c2d3e4f-1a2b-4c3d-8e9f-0123456789ab";
        proc.write(7, 100, &format!("0::/kubepods/burstable/pod{uid}/ab12\n"));
        let (gpu, mut slice) = {
            let known = node();
            (known.gpus[0].clone(), known.pods[0].slice.clone())
        };
        slice.uid = Some(PodUid::new(uid).unwrap());
        let occupancy = Occupancy {
            gpus: vec![gpu.offer],
            slices: vec![slice],
        };
        let described = Arc::new(BTreeMap::from([("GPU-1".parse().unwrap(), t4())]));
        let (_occupied, occupied) = watch::channel(Some(Arc::new(occupancy)));
        let (_described, described) = watch::channel(described);
        let (measure, measured) = watch::channel(Arc::default());
        let (_registered, registered) = watch::channel(true);
        let inputs = Inputs {
            occupied,
            described,
            measured,
            registered,
            ending: CancellationToken::new(),
        };
        let registry = Registry::new();
        let mut reporter = Reporter::new(inputs, Metrics::new(&registry).unwrap(), None);
        reporter.finder = proc.finder();
        let line = |value| {
            format!(r#"penstock_plugin_pod_over_slice{{gpu="GPU-1",namespace="games",pod="a"}} {value}"#)
        };
        let mut over = Vec::new();
        for percent in [30, 30, 30, 5] {
            let load = ProcessLoad {
                encoder_percent: Some(percent),
                ..ProcessLoad::default()
            };
            let measures = Measures {
                processes: BTreeMap::from([(7, load)]),
                ..gpu.measured.clone().unwrap()
            };
            measure.send_replace(Arc::new(vec![measures]));
            reporter.measured();
            reporter.tell();
            let text = shown(&registry);
            assert!(text.contains(&line(0)) || text.contains(&line(1)), "{text}");
            over.push(text.contains(&line(1)));
        }
        assert_eq!(over, [false, false, true, false]);
    }
}
