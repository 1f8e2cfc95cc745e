//! Two matchmakers before one lot of streamers, in pods of a stand-in API server.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]
#![expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]

mod crowd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crowd::{Decider, Doing, Ledger, Person, Seen};
use fake_kube::FakeKube;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use support::{Matchmaker, StandIn, cluster, costs, run_pod, until};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// `PENSTOCK_SEED` repeats one, as far as chance is ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_players_while_streamers_die() {
    let seed = std::env::var("PENSTOCK_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("PENSTOCK_SEED={seed}");
    let mut storm = Storm::start(seed).await;
    storm.rage(Duration::from_secs(5)).await;
    storm.calm_down().await;
    storm.agrees_with_the_truth().await;
    storm.goes_in_order(12).await;
    storm.agrees_with_the_truth().await;
    storm.verdict();
}

#[tokio::test]
async fn another_matchmaker_takes_over_the_costs_of_one_that_was_killed() {
    let kube = cluster();
    let streamers = [StandIn::start("one").await, StandIn::start("two").await];
    for streamer in &streamers {
        run_pod(&kube, &streamer.name, streamer.address);
    }
    let mut first = Matchmaker::on_cluster(&kube, &[]).await;
    kube.until("the first writes", |kube| costs(kube) == ["0", "0"])
        .await;
    let holder = holder(&kube);
    let second = Matchmaker::on_cluster(&kube, &[]).await;
    let _lost = first.playing().await;
    kube.until("one is dear", |kube| costs(kube).contains(&"100".to_owned()))
        .await;
    first.kill().await;
    let killed = Instant::now();
    let (_one, _two) = (second.playing().await, second.playing().await);
    until("all that have a player are dear", async || {
        costs(&kube) == ["100", "100"]
    })
    .await;
    let took = killed.elapsed();
    eprintln!("taken over after {took:?}");
    // The Lease's 15 s since its last renewal, and a round of those who look at it.
    assert!(took < Duration::from_secs(19), "{took:?}");
    assert_ne!(self::holder(&kube), holder);
}

struct Storm {
    kube: FakeKube,
    doors: [Matchmaker; 2],
    chance: StdRng,
    ledger: Arc<Mutex<Ledger>>,
    streamers: Vec<Decider>,
    /// They show no picture yet, and so have no player.
    _starting: Vec<Decider>,
    born: usize,
    seen: Arc<Mutex<Seen>>,
    raging: watch::Sender<bool>,
    people: Vec<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Storm {
    async fn start(seed: u64) -> Self {
        let kube = cluster();
        let doors = [
            Matchmaker::on_cluster(&kube, &DOOR).await,
            Matchmaker::on_cluster(&kube, &DOOR).await,
        ];
        let ledger = Arc::default();
        let mut storm = Self {
            kube,
            doors,
            chance: StdRng::seed_from_u64(seed),
            ledger,
            streamers: Vec::new(),
            _starting: Vec::new(),
            born: 0,
            seen: Arc::default(),
            raging: watch::Sender::new(true),
            people: Vec::new(),
        };
        for _ in 0..STREAMERS {
            let streamer = storm.bear(true).await;
            storm.streamers.push(streamer);
        }
        for _ in 0..2 {
            let starting = storm.bear(false).await;
            storm._starting.push(starting);
        }
        let doors = storm.doors.each_ref().map(Matchmaker::address);
        for number in 0..PEOPLE {
            let seen = Arc::clone(&storm.seen);
            let person = Person::start(number, &doors, seed, seen, storm.raging.subscribe());
            storm.people.push(person);
        }
        storm
    }

    async fn bear(&mut self, ready: bool) -> Decider {
        self.born += 1;
        let name = format!("streamer-{}", self.born);
        let streamer = Decider::start(&name, ready, Arc::clone(&self.ledger)).await;
        run_pod(&self.kube, &name, streamer.address);
        streamer
    }

    /// Streamers die and others come in their place, while players come and go.
    async fn rage(&mut self, long: Duration) {
        let end = Instant::now() + long;
        while Instant::now() < end {
            let pause = self.chance.random_range(50..400);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let dies = self.chance.random_range(0..self.streamers.len());
            let dead = self.streamers.remove(dies);
            dead.die();
            // Kubernetes notices a little later, or a little earlier.
            let notice = self.chance.random_range(0..300);
            tokio::time::sleep(Duration::from_millis(notice)).await;
            self.kube.delete("pods", Some("penstock"), &dead.name);
            self.kube.finish("penstock", &dead.name);
            let streamer = self.bear(true).await;
            self.streamers.push(streamer);
        }
    }

    /// All who are there stay: every streamer has a player, and all others wait.
    async fn calm_down(&self) {
        self.raging.send_replace(false);
        until("all are where they stay", async || {
            let all_play = self.streamers.iter().all(|s| s.status.borrow().players == 1);
            all_play && self.settled()
        })
        .await;
    }

    /// Whether as many play as can, and the others know their places, which are those from 1 on at each door.
    fn settled(&self) -> bool {
        let (playing, queues) = self.seen();
        let true_queue = |queue: &Queue| {
            let length = u64::try_from(queue.len()).unwrap();
            (1..)
                .zip(queue)
                .all(|(n, (place, of, _))| (*place, *of) == (n, length))
        };
        let all = playing.len() + queues.iter().map(Queue::len).sum::<usize>();
        let there = self
            .seen
            .lock()
            .unwrap()
            .people
            .values()
            .filter(|doing| **doing != Doing::Gone)
            .count();
        playing.len() == STREAMERS && all == there && queues.iter().all(true_queue)
    }

    /// Who plays which session, and who waits at each door.
    fn seen(&self) -> (BTreeMap<usize, String>, [Queue; 2]) {
        let seen = self.seen.lock().unwrap();
        let (mut playing, mut queues) = (BTreeMap::new(), [Queue::new(), Queue::new()]);
        for (number, doing) in &seen.people {
            match doing {
                Doing::Playing { session, .. } => {
                    playing.insert(*number, session.clone());
                }
                Doing::Waiting {
                    door,
                    place: Some((place, of)),
                } => {
                    queues[*door].insert((*place, *of, *number));
                }
                _ => {}
            }
        }
        (playing, queues)
    }

    /// Metrics, the list of sessions, and what is written on pods.
    async fn agrees_with_the_truth(&self) {
        let (playing, queues) = self.seen();
        let sessions: BTreeSet<_> = playing.values().cloned().collect();
        assert_eq!(sessions.len(), STREAMERS);
        let at = |wanted: usize| {
            let seen = self.seen.lock().unwrap();
            let here = seen.people.values().filter(|doing| match doing {
                Doing::Waiting { door, .. } | Doing::Playing { door, .. } => *door == wanted,
                _ => false,
            });
            here.count()
        };
        for (number, door) in self.doors.iter().enumerate() {
            let expected = [at(number), queues[number].len(), 0, STREAMERS + 2];
            let what = format!("door {number} counts {expected:?}");
            until(&what, async || counts(&door.metrics().await) == expected).await;
            let listed = door.ask("GET", "/sessions", &[], "").await.json();
            let listed: Vec<_> = listed["sessions"].as_array().unwrap().clone();
            assert!(listed.iter().all(|session| session["players"] == 1), "{listed:?}");
            let ids = listed
                .iter()
                .map(|session| session["id"].as_str().unwrap().to_owned());
            assert_eq!(ids.collect::<BTreeSet<_>>(), sessions, "door {number}");
        }
        until("every pod's cost is right", async || {
            let costs = costs(&self.kube);
            let of = |wanted: &str| costs.iter().filter(|cost| *cost == wanted).count();
            (of("100"), of("0"), costs.len()) == (STREAMERS, 2, STREAMERS + 2)
        })
        .await;
    }

    /// One after the other who play go; who comes next was first at its door.
    async fn goes_in_order(&mut self, rounds: usize) {
        let mut rivals = 0;
        for round in 0..rounds {
            let (playing, queues) = self.seen();
            let first = queues
                .each_ref()
                .map(|queue| queue.first().map(|(_, _, number)| *number));
            let leaves = *playing
                .keys()
                .nth(self.chance.random_range(0..playing.len()))
                .unwrap();
            let contested = self.ledger.lock().unwrap().contested.len();
            self.people[leaves].0.send(()).await.unwrap();
            until("the next plays", async || {
                let (now, _) = self.seen();
                now.len() == STREAMERS && !now.contains_key(&leaves)
            })
            .await;
            let (now, _) = self.seen();
            let next = *now.keys().find(|number| !playing.contains_key(number)).unwrap();
            assert!(
                first.contains(&Some(next)),
                "round {round}: {next} came before {first:?}"
            );
            rivals += self.ledger.lock().unwrap().contested.len() - contested;
            until("those in front know it", async || {
                let (_, queues) = self.seen();
                queues
                    .iter()
                    .all(|queue| queue.iter().zip(1..).take(10).all(|((place, ..), n)| *place == n))
            })
            .await;
        }
        assert!(
            rivals > rounds / 2,
            "only {rivals} of {rounds} places were wanted at both doors"
        );
        until("all know their places", async || self.settled()).await;
    }

    fn verdict(&self) {
        let (seen, ledger) = (self.seen.lock().unwrap(), self.ledger.lock().unwrap());
        eprintln!(
            "{} matched, {} moved, {} granted, {} contested, {} streamers born",
            seen.matched,
            seen.moved,
            ledger.granted,
            ledger.contested.len(),
            self.born,
        );
        assert_eq!(seen.wrong, [""; 0]);
        assert_eq!(ledger.wrong, [""; 0]);
        assert!(
            self.people
                .iter()
                .zip(seen.people.values())
                .all(|((_, task), doing)| !task.is_finished() || *doing == Doing::Gone)
        );
        for (won, others) in &ledger.contested {
            assert!(
                others.iter().all(|other| other <= won),
                "{won} ms before {others:?}"
            );
        }
        assert!(seen.moved > 5 && ledger.contested.len() > 20, "that was no storm");
    }
}

/// Those who wait at a door: place, length of the queue, and number.
type Queue = BTreeSet<(u64, u64, usize)>;

/// Players, those of them who wait, free streamers and all of them.
fn counts(metrics: &str) -> [usize; 4] {
    [
        "player_socket_connections",
        "player_queue_count",
        "streamer_available_count",
        "streamer_connections",
    ]
    .map(|name| {
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&format!("matchmaker_{name} ")));
        value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    })
}

fn holder(kube: &FakeKube) -> Value {
    let lease = kube.get("leases", Some("penstock"), "penstock-matchmaker");
    lease.unwrap()["spec"]["holderIdentity"].clone()
}

const DOOR: [&str; 4] = ["--max-per-address", "0", "--new-per-address", "0"];
const STREAMERS: usize = 20;
const PEOPLE: usize = 200;
