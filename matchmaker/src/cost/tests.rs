//! Against a stand-in API server, by the role in the manifests and nothing beyond.

use std::path::Path;
use std::time::Duration;

use fake_kube::{FakeKube, Fault};
use kube::config::{KubeConfigOptions, Kubeconfig};
use penstock_core::names::{
    ANNOTATION_DELETION_COST, ANNOTATION_SAFE_TO_EVICT, ANNOTATION_SET, LABEL_STREAMER,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::pods::{self, STREAMER_PORT};

#[tokio::test]
async fn a_pod_costs_what_its_players_are_worth() {
    let kube = cluster(2);
    let replica = Replica::start(&kube, 20).await;
    kube.until("both idle pods are marked", |kube| {
        (0..2).all(|n| on(kube, n) == of("0", "true"))
    })
    .await;
    replica.players(0, 1).await;
    kube.until("the first is raised", |kube| on(kube, 0) == of("100", "false"))
        .await;
    assert_eq!(on(&kube, 1), of("0", "true"));
    replica.players(0, 0).await;
    kube.until("it is lowered", |kube| on(kube, 0) == of("0", "true"))
        .await;
    assert_eq!(writes(&kube), 4);
    assert_eq!(refused(&kube), 0);
}

#[tokio::test]
async fn what_is_on_a_pod_goes_with_its_label() {
    let kube = cluster(1);
    let _replica = Replica::start(&kube, 20).await;
    kube.until("the pod is marked", |kube| on(kube, 0) == of("0", "true"))
        .await;
    kube.edit("pods", Some("penstock"), "quake-0", |pod| {
        pod["metadata"]["labels"] = json!({});
        pod["metadata"]["annotations"]["mine"] = json!("stays");
    });
    kube.until("ours are gone", |kube| on(kube, 0) == [None, None, None])
        .await;
    let annotations = annotations(&kube, 0);
    assert_eq!(annotations["mine"], "stays");
}

#[tokio::test]
async fn an_api_server_that_refuses_is_asked_again() {
    for fault in [
        Fault::refuse(409),
        Fault::too_many_requests(1),
        Fault::refuse(500),
    ] {
        let kube = cluster(1);
        let replica = Replica::start(&kube, 20).await;
        kube.until("the pod is marked", |kube| on(kube, 0) == of("0", "true"))
            .await;
        kube.fail(fault.on("patch", "pods").times(2));
        replica.players(0, 1).await;
        kube.until("it is raised all the same", |kube| {
            on(kube, 0) == of("100", "false")
        })
        .await;
    }
}

#[tokio::test]
async fn another_pod_of_the_same_name_is_left_alone() {
    let kube = cluster(1);
    let api = Api::<Pod>::namespaced(reached(&kube).await.client, "penstock");
    let write = Write {
        pod: PodUid::new("another").unwrap(),
        annotations: [(ANNOTATION_DELETION_COST, Some("100".to_owned()))].into(),
    };
    let (_, outcome) = patch(api.clone(), "quake-0".to_owned(), write.clone()).await;
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(on(&kube, 0), [None, None, None]);
    let (_, outcome) = patch(api, "nobody".to_owned(), write).await;
    assert_eq!(outcome, Outcome::Gone);
}

#[tokio::test]
async fn of_two_replicas_one_writes_and_the_other_goes_on_when_it_ends() {
    let kube = cluster(3);
    let first = Replica::start(&kube, 20).await;
    kube.until("all are marked", |_| writes(&kube) == 3).await;
    let second = Replica::start(&kube, 20).await;
    for replica in [&first, &second] {
        replica.players(1, 1).await;
    }
    kube.until("one is raised", |kube| on(kube, 1) == of("100", "false"))
        .await;
    // Long enough for the second to look at the Lease.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(writes(&kube), 4, "nobody writes what was written");
    first.end().await;
    assert_eq!(holder(&kube), Value::Null, "it was given back");
    second.players(2, 1).await;
    kube.until("the other has gone on", |kube| on(kube, 2) == of("100", "false"))
        .await;
    assert_eq!(writes(&kube), 5, "what is on the pods is known to it");
}

#[tokio::test]
async fn one_that_can_not_renew_writes_no_more() {
    let kube = cluster(1);
    let replica = Replica::start(&kube, 20).await;
    kube.until("the pod is marked", |kube| on(kube, 0) == of("0", "true"))
        .await;
    kube.fail(Fault::refuse(500).on("update", "leases"));
    tokio::time::sleep(crate::lease::ACTS_FOR + Duration::from_secs(3)).await;
    replica.players(0, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(writes(&kube), 1);
    kube.heal();
    kube.until("it writes again", |kube| on(kube, 0) == of("100", "false"))
        .await;
}

#[tokio::test]
async fn no_more_is_written_in_a_second_than_it_may() {
    let kube = cluster(30);
    let replica = Replica::start(&kube, 10).await;
    kube.until("all are marked", |_| writes(&kube) == 30).await;
    for n in 0..30 {
        replica.players(n, 1).await;
    }
    kube.until("all are raised", |_| writes(&kube) == 60).await;
    never_more_than(10, &kube);
}

/// As the property test of `penstock_core::deletion_cost`, over HTTP, and for a moment only.
#[tokio::test]
async fn while_players_flap_no_pod_with_a_player_is_cheaper_than_an_idle_one_for_long() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let kube = cluster(100);
    let replica = Replica::start(&kube, 20).await;
    kube.until("it writes", |_| writes(&kube) > 0).await;
    let mut players = [0; 100];
    let mut exposed: [Option<Instant>; 100] = [None; 100];
    let mut longest = Duration::ZERO;
    let mut step = tokio::time::interval(Duration::from_millis(30));
    // 1,000 joins and as many leaves a minute.
    for change in 0..400 {
        step.tick().await;
        let joins = change % 2;
        let fit: Vec<_> = (0..100).filter(|n| players[*n] != joins).collect();
        if let Some(n) = (!fit.is_empty()).then(|| fit[chance.random_range(0..fit.len())]) {
            players[n] = joins;
            replica.players(u16::try_from(n).unwrap(), joins).await;
        }
        let cost = |n: usize| {
            let cost = annotations(&kube, u16::try_from(n).unwrap());
            let cost = cost[ANNOTATION_DELETION_COST].as_str().map(str::to_owned);
            cost.map_or(0, |cost| cost.parse::<i32>().unwrap())
        };
        let costs: Vec<_> = (0..100).map(cost).collect();
        let idle = (0..100).filter(|n| players[*n] == 0).map(|n| costs[n]);
        let dearest = idle.max().unwrap_or(0);
        for n in 0..100 {
            let cheaper = players[n] > 0 && costs[n] < dearest;
            exposed[n] = cheaper.then(|| exposed[n].unwrap_or_else(Instant::now));
            longest = longest.max(exposed[n].map_or(Duration::ZERO, |since| since.elapsed()));
        }
    }
    eprintln!("{} writes, exposed for {longest:?} at most", writes(&kube));
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    assert!(writes(&kube) > 60, "there was something to do");
    never_more_than(20, &kube);
}

#[tokio::test]
async fn without_any_verb_of_the_role_something_is_refused() {
    let all = verbs(&cluster(0));
    assert_eq!(all.len(), 6, "{all:?}");
    for (rule, verb) in all {
        let kube = cluster(1);
        kube.edit("roles", Some("penstock"), ROLE, |role| {
            let verbs = role["rules"][rule]["verbs"].as_array_mut().unwrap();
            verbs.retain(|other| *other != *verb);
            // A rule without verbs is none.
            if verbs.is_empty() {
                role["rules"].as_array_mut().unwrap().remove(rule);
            }
        });
        let _replica = Replica::start(&kube, 20).await;
        kube.until(
            &format!("something is refused without {verb} in rule {rule}"),
            |kube| refused(kube) > 0,
        )
        .await;
    }
}

/// One matchmaker's part in it, with as many streamers as there are pods, all heard.
struct Replica {
    hears: mpsc::Sender<Heard>,
    stop: CancellationToken,
    work: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Replica {
    async fn start(kube: &FakeKube, per_second: u32) -> Self {
        let cluster = reached(kube).await;
        let args = ClusterArgs {
            pods: None,
            turn_pods: None,
            namespace: None,
            lease: "penstock-matchmaker".to_owned(),
            pod_writes_per_second: per_second,
        };
        let stop = CancellationToken::new();
        let (hears, work) = start(&cluster, &args, crate::lease::identity(), stop.clone());
        let (seen, mut changes) = mpsc::channel(16);
        let wanted = cluster.pods(&format!("{LABEL_STREAMER}=true"));
        let (client, forward) = (cluster.client, hears.clone());
        let watch = tokio::spawn(async move {
            let tell = async {
                while let Some(seen) = changes.recv().await {
                    if let Seen::All(pods) = &seen {
                        for pod in pods {
                            let address = pod.streamer().unwrap();
                            let counts = Some(Counts::default());
                            let _ = forward.send(Heard::Counts { address, counts }).await;
                        }
                    }
                    let _ = forward.send(Heard::Pods(seen)).await;
                }
            };
            tokio::join!(pods::watch(client, wanted, seen), tell);
        });
        Self {
            hears,
            stop,
            work: tokio::spawn(work),
            watch,
        }
    }

    async fn players(&self, n: u16, players: u32) {
        let counts = Some(Counts { players, viewers: 0 });
        let address = address(n);
        self.hears.send(Heard::Counts { address, counts }).await.unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        self.work.await.unwrap();
        self.watch.abort();
    }
}

fn cluster(pods: u16) -> FakeKube {
    let kube = FakeKube::start();
    kube.namespace("penstock");
    let manifests = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/matchmaker/rbac.yaml"
    );
    kube.apply_manifests(Path::new(manifests));
    for n in 0..pods {
        kube.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "penstock", "name": format!("quake-{n}"), "labels": { LABEL_STREAMER: "true" } },
            "spec": { "containers": [{ "name": "streamer", "image": "x" }] },
            "status": { "phase": "Running", "podIP": address(n).ip() },
        }));
    }
    kube
}

fn address(n: u16) -> SocketAddr {
    let [high, low] = n.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], STREAMER_PORT))
}

async fn reached(kube: &FakeKube) -> Cluster {
    let file = tempfile::NamedTempFile::new().unwrap();
    kube.kubeconfig(file.path(), Some(("penstock", ROLE))).unwrap();
    let read = Kubeconfig::read_from(file.path()).unwrap();
    let whole = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(read, &whole).await;
    Cluster::new(config.unwrap(), "penstock".to_owned()).unwrap()
}

fn annotations(kube: &FakeKube, n: u16) -> Value {
    let pod = kube.get("pods", Some("penstock"), &format!("quake-{n}"));
    pod.unwrap()["metadata"]["annotations"].clone()
}

fn on(kube: &FakeKube, n: u16) -> [Option<String>; 3] {
    let annotations = annotations(kube, n);
    [ANNOTATION_DELETION_COST, ANNOTATION_SAFE_TO_EVICT, ANNOTATION_SET]
        .map(|name| annotations[name].as_str().map(str::to_owned))
}

fn of(cost: &str, safe: &str) -> [Option<String>; 3] {
    let set = format!("pod-deletion-cost={cost},safe-to-evict={safe}");
    [cost.to_owned(), safe.to_owned(), set].map(Some)
}

fn writes(kube: &FakeKube) -> usize {
    let all = kube.requests_to("patch", "pods");
    all.iter().filter(|request| request.code == 200).count()
}

/// In a second.
fn never_more_than(most: usize, kube: &FakeKube) {
    let patches = kube.requests_to("patch", "pods");
    let at: Vec<_> = patches.iter().map(|request| request.at).collect();
    // The way to the server takes some time more for one than for another.
    let second = Duration::from_millis(900);
    let too_many = at.windows(most + 1).find(|few| few[most] - few[0] < second);
    assert!(too_many.is_none(), "{too_many:?}");
}

fn holder(kube: &FakeKube) -> Value {
    let lease = kube.get("leases", Some("penstock"), "penstock-matchmaker");
    lease.unwrap()["spec"]["holderIdentity"].clone()
}

fn refused(kube: &FakeKube) -> usize {
    let all = kube.requests();
    all.iter().filter(|request| request.code == 403).count()
}

/// Each verb of each rule of the role.
fn verbs(kube: &FakeKube) -> Vec<(usize, String)> {
    let role = kube.get("roles", Some("penstock"), ROLE).unwrap();
    let rules = role["rules"].as_array().unwrap().iter().enumerate();
    let of_rule = |(index, rule): (usize, &Value)| {
        assert_eq!(
            rule["resources"].as_array().unwrap().len(),
            1,
            "so that each verb counts"
        );
        let verbs = rule["verbs"].as_array().unwrap().iter();
        verbs
            .map(|verb| (index, verb.as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    rules.flat_map(of_rule).collect()
}

const ROLE: &str = "penstock-matchmaker";
