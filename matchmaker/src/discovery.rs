//! Finding streamers, and hearing how they stand.
//!
//! ```text
//!  agent's /v1/events ──► which addresses ──┐ one follower for each
//!  pods with our label ─────────────────────┤
//!  --streamer ──────────────────────────────┤
//!                                           └──► GET http://<address>/events ──► Status, StreamerLost
//! ```
//!
//! The events carry the whole state each time, so a stream of them that broke is simply opened again. A source that is
//! away changes nothing: what it said last holds. Other ways to find streamers only have to name addresses.
//!
//! A pod that was told to end is followed for as long as it is there, as one that takes nobody new, whatever it says
//! itself: its player stays, and those who look for that player's session still find it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_core::deletion_cost::Counts;
use penstock_core::ids::PodUid;
use penstock_core::wire::agent::{SliceState, SliceStatus};
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use penstock_shell::events::SseReader;
use penstock_shell::ops::Ready;
use reqwest::{Client, Response};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::cost::Heard;
use crate::events::Event;
use crate::lobby::Input;
use crate::overview::agent;
use crate::overview::places::{Heard as Told, Places};
use crate::pods::{self, LabelledPod, Wanted};

/// See the module.
pub struct Discovery {
    agent: Option<Agent>,
    pods: Option<Pods>,
    by_hand: Vec<SocketAddr>,
    events: mpsc::Sender<Event>,
    places: Places,
    streamers: Client,
    known: Known,
    followers: HashMap<SocketAddr, Follower>,
    tasks: JoinSet<()>,
}

struct Agent {
    socket: PathBuf,
    client: Client,
}

/// Streamers in pods.
pub struct Pods {
    /// Who knows of them.
    pub client: kube::Client,
    /// Which they are.
    pub wanted: Wanted,
    /// Who also hears of them, and how many are on each.
    pub cost: mpsc::Sender<Heard>,
}

/// Which sources have said where streamers are.
#[derive(Debug, Clone)]
struct Known {
    agent: Arc<AtomicBool>,
    pods: Arc<AtomicBool>,
}

struct Follower {
    mode: Mode,
    task: AbortHandle,
}

/// How a streamer is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As it says.
    AsItSays,
    /// As one that drains.
    Draining,
}

type Addresses = BTreeMap<SocketAddr, Mode>;

/// What a source of addresses says.
enum Found {
    Agent(Addresses),
    Pods(Addresses),
}

impl Discovery {
    /// Follows the agent at `agent`, the streamers in `pods`, and those `by_hand`, as far as there are any. Which slice
    /// or pod each is in goes into `places`.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(
        agent: Option<PathBuf>,
        pods: Option<Pods>,
        by_hand: Vec<SocketAddr>,
        events: mpsc::Sender<Event>,
        places: Places,
    ) -> Result<Self, reqwest::Error> {
        let agent = agent.map(|socket| Agent::new(&socket)).transpose()?;
        Ok(Self {
            known: Known {
                agent: Arc::new(AtomicBool::new(agent.is_none())),
                pods: Arc::new(AtomicBool::new(pods.is_none())),
            },
            agent,
            pods,
            by_hand,
            events,
            places,
            streamers: client().build()?,
            followers: HashMap::new(),
            tasks: JoinSet::new(),
        })
    }

    /// Whether all sources were heard.
    pub fn ready(&self) -> Ready {
        let known = self.known.clone();
        Arc::new(move || {
            let heard = |source: &AtomicBool| source.load(Ordering::Relaxed);
            match (heard(&known.agent), heard(&known.pods)) {
                (false, _) => Err("the agent was not heard yet".to_owned()),
                (true, false) => Err("the pods were not listed yet".to_owned()),
                (true, true) => Ok(()),
            }
        })
    }

    /// Works for ever.
    pub async fn run(mut self) {
        let (lists, mut heard) = mpsc::channel::<Found>(1);
        let cost = self.pods.as_ref().map(|pods| pods.cost.clone());
        if let Some(agent) = self.agent.take() {
            let gpus = agent::follow_gpus(agent.client.clone(), self.places.clone());
            self.tasks.spawn(gpus);
            self.tasks
                .spawn(follow_agent(agent, lists.clone(), self.places.clone()));
        }
        if let Some(pods) = self.pods.take() {
            self.tasks
                .spawn(follow_pods(pods, lists.clone(), self.places.clone()));
        }
        let (mut of_agent, mut of_pods) = (Addresses::new(), Addresses::new());
        loop {
            let by_hand = self.by_hand.iter().map(|address| (*address, Mode::AsItSays));
            let wanted = of_pods.clone().into_iter().chain(of_agent.clone()).chain(by_hand);
            self.follow(wanted.collect(), cost.as_ref()).await;
            tokio::select! {
                Some(found) = heard.recv() => match found {
                    Found::Agent(addresses) => {
                        self.known.agent.store(true, Ordering::Relaxed);
                        of_agent = addresses;
                    }
                    Found::Pods(addresses) => {
                        self.known.pods.store(true, Ordering::Relaxed);
                        of_pods = addresses;
                    }
                },
                Some(Err(error)) = self.tasks.join_next() => {
                    if error.is_panic() {
                        tracing::error!(%error, "a task that follows a streamer ended in a panic");
                        return;
                    }
                }
            }
        }
    }

    /// Follows those `wanted`, and nobody else.
    async fn follow(&mut self, wanted: Addresses, cost: Option<&mpsc::Sender<Heard>>) {
        let gone: Vec<_> = self
            .followers
            .keys()
            .filter(|known| !wanted.contains_key(known))
            .copied()
            .collect();
        for address in gone {
            if let Some(follower) = self.followers.remove(&address) {
                follower.end(address, cost).await;
            }
            tracing::info!(%address, "a streamer is gone");
            let _ = self
                .events
                .send(Event::Input(Input::StreamerLost { address }))
                .await;
        }
        for (address, mode) in wanted {
            match self.followers.get(&address) {
                Some(follower) if follower.mode == mode => continue,
                // What it says is heard anew, and taken otherwise.
                Some(follower) => {
                    follower.end(address, cost).await;
                    tracing::info!(%address, "the pod of a streamer ends");
                }
                None => tracing::info!(%address, "following a streamer"),
            }
            let follow = Follow {
                client: self.streamers.clone(),
                address,
                mode,
                events: self.events.clone(),
                cost: cost.cloned(),
            };
            let task = self.tasks.spawn(follow.run());
            self.followers.insert(address, Follower { mode, task });
        }
    }
}

impl Follower {
    /// What it has counted is true no more: the address may be another pod's next.
    async fn end(&self, address: SocketAddr, cost: Option<&mpsc::Sender<Heard>>) {
        self.task.abort();
        if let Some(cost) = cost {
            let counts = None;
            let _ = cost.send(Heard::Counts { address, counts }).await;
        }
    }
}

impl Agent {
    fn new(socket: &Path) -> Result<Self, reqwest::Error> {
        let client = client().unix_socket(socket).build()?;
        let socket = socket.to_owned();
        Ok(Self { socket, client })
    }
}

/// Streams are silent for 10 s at most: then comes a sign of life.
fn client() -> reqwest::ClientBuilder {
    Client::builder()
        .connect_timeout(Duration::from_secs(3))
        .read_timeout(Duration::from_secs(25))
        .no_proxy()
}

fn running(slices: &[SliceStatus]) -> Addresses {
    let running = slices.iter().filter(|slice| slice.state == SliceState::Running);
    let addresses = running.filter_map(|slice| slice.address);
    addresses.map(|address| (address, Mode::AsItSays)).collect()
}

fn streaming<'a>(pods: impl Iterator<Item = &'a LabelledPod>) -> Addresses {
    let mut addresses = Addresses::new();
    for pod in pods {
        let mode = match pod.ending {
            true => Mode::Draining,
            false => Mode::AsItSays,
        };
        let Some(address) = pod.streamer() else {
            continue;
        };
        // The address of a pod that has ended may be another's by now: the one that lives counts.
        let known = addresses.entry(address).or_insert(mode);
        if mode == Mode::AsItSays {
            *known = mode;
        }
    }
    addresses
}

fn by_uid(pods: &BTreeMap<PodUid, LabelledPod>) -> BTreeMap<PodUid, SocketAddr> {
    let at = |(uid, pod): (&PodUid, &LabelledPod)| {
        let address = pod.streamer()?;
        Some((uid.clone(), address))
    };
    pods.iter().filter_map(at).collect()
}

async fn follow_agent(agent: Agent, lists: mpsc::Sender<Found>, places: Places) {
    // The host part is for the protocol's sake only: the connection goes over the socket.
    let mut feed = Feed::new(agent.client, "http://agent/v1/events".to_owned());
    loop {
        match feed.next().await {
            Ok(slices) => {
                let slices: Vec<SliceStatus> = slices;
                let _ = lists.send(Found::Agent(running(&slices))).await;
                places.slices.send_replace(Told::Now(slices));
            }
            Err(error) => {
                places.slices.send_modify(Told::away);
                let socket = agent.socket.display();
                feed.complain(&format!(
                    "the agent at {socket} can't be heard: {error}. Is `penstock-plugin standalone` running, and \
                     is that its socket?"
                ));
                feed.wait().await;
            }
        }
    }
}

async fn follow_pods(pods: Pods, lists: mpsc::Sender<Found>, places: Places) {
    let (seen, mut changes) = mpsc::channel(CHANGES);
    let watch = pods::watch(pods.client, pods.wanted, seen);
    let tell = async {
        let mut known = BTreeMap::<PodUid, LabelledPod>::new();
        let mut told = None;
        while let Some(seen) = changes.recv().await {
            pods::apply(&mut known, &seen);
            let _ = pods.cost.send(Heard::Pods(seen)).await;
            places.pods.send_replace(Told::Now(by_uid(&known)));
            let addresses = streaming(known.values());
            if told.as_ref() != Some(&addresses) {
                told = Some(addresses.clone());
                let _ = lists.send(Found::Pods(addresses)).await;
            }
        }
    };
    // The watch ends only when nobody listens, which is here.
    tokio::join!(watch, tell);
}

struct Follow {
    client: Client,
    address: SocketAddr,
    mode: Mode,
    events: mpsc::Sender<Event>,
    cost: Option<mpsc::Sender<Heard>>,
}

impl Follow {
    async fn run(self) {
        let address = self.address;
        let mut feed = Feed::<StreamerStatus>::new(self.client.clone(), format!("http://{address}/events"));
        loop {
            match feed.next().await {
                Ok(status) => self.said(status).await,
                Err(error) => {
                    feed.complain(&format!("the streamer at {address} can't be heard: {error}"));
                    self.lost().await;
                    feed.wait().await;
                }
            }
        }
    }

    async fn said(&self, mut status: StreamerStatus) {
        let counts = Counts {
            players: status.players,
            viewers: status.viewers,
        };
        self.count(Some(counts)).await;
        if self.mode == Mode::Draining {
            status.state = StreamerState::Draining;
        }
        self.tell(Input::Status {
            address: self.address,
            status,
        })
        .await;
    }

    async fn lost(&self) {
        self.count(None).await;
        let address = self.address;
        self.tell(Input::StreamerLost { address }).await;
    }

    async fn count(&self, counts: Option<Counts>) {
        if let Some(cost) = &self.cost {
            let address = self.address;
            let _ = cost.send(Heard::Counts { address, counts }).await;
        }
    }

    async fn tell(&self, input: Input) {
        let _ = self.events.send(Event::Input(input)).await;
    }
}

/// A stream of server-sent events that is opened anew after it broke.
struct Feed<T> {
    client: Client,
    url: String,
    open: Option<(Response, SseReader)>,
    ready: VecDeque<String>,
    failures: u32,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Feed<T> {
    fn new(client: Client, url: String) -> Self {
        Self {
            client,
            url,
            open: None,
            ready: VecDeque::new(),
            failures: 0,
            of: PhantomData,
        }
    }

    /// The next value. After an error the stream is closed, and the next call opens it again.
    async fn next(&mut self) -> Result<T, StreamError> {
        let value = self.read().await;
        match &value {
            Ok(_) => self.failures = 0,
            Err(_) => {
                self.open = None;
                self.ready.clear();
                self.failures += 1;
            }
        }
        value
    }

    async fn read(&mut self) -> Result<T, StreamError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(serde_json::from_str(&event)?);
            }
            let (answer, reader) = match &mut self.open {
                Some(open) => open,
                None => self.open.insert(open(&self.client, &self.url).await?),
            };
            let part = answer.chunk().await?.ok_or(StreamError::Ended)?;
            self.ready.extend(reader.push(&part)?);
        }
    }

    /// Says what is wrong: loudly the first time, quietly until it works again.
    fn complain(&self, what: &str) {
        match self.failures {
            1 => tracing::warn!("{what}"),
            failures => tracing::debug!(failures, "{what}"),
        }
    }

    async fn wait(&self) {
        tokio::time::sleep(delay(self.failures)).await;
    }
}

async fn open(client: &Client, url: &str) -> Result<(Response, SseReader), StreamError> {
    let request = client.get(url).header("accept", "text/event-stream");
    let answer = request.send().await?.error_for_status()?;
    Ok((answer, SseReader::default()))
}

/// Waits grow up to two seconds.
fn delay(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    (FIRST_WAIT * factor).min(LONGEST_WAIT)
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{}", innermost(.0))]
    Http(#[from] reqwest::Error),
    #[error("{0}")]
    TooLong(#[from] penstock_shell::events::EventTooLong),
    #[error("an event of it can't be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it ended the stream")]
    Ended,
}

/// reqwest's own text says only that sending failed; why is in its sources.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// How many changes of pods may wait.
const CHANGES: usize = 64;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::STREAMER_PORT;

    #[test]
    fn waits_grow_to_two_seconds() {
        let waits: Vec<_> = [1, 2, 3, 20].map(|n| delay(n).as_millis()).into();
        assert_eq!(waits, [100, 200, 400, 2000]);
    }

    #[test]
    fn only_slices_that_run_and_listen_are_streamers() {
        let slice = |state: &str, address: &str| {
            format!(r#"{{"id":"s","gpu":"G","demand":{{}},"state":"{state}","restarts":0{address}}}"#)
        };
        let text = [
            slice("running", r#","address":"127.0.0.1:1""#),
            slice("starting", r#","address":"127.0.0.1:2""#),
            slice("running", ""),
        ];
        let slices: Vec<SliceStatus> = serde_json::from_str(&format!("[{}]", text.join(","))).unwrap();
        let expected = Addresses::from([("127.0.0.1:1".parse().unwrap(), Mode::AsItSays)]);
        assert_eq!(running(&slices), expected);
    }

    /// Else the next pod at this address would cost what the last one did.
    #[tokio::test]
    async fn what_a_streamer_counted_goes_with_it() {
        // Nobody answers there, so the follower itself has nothing to say.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let (events, _inputs) = mpsc::channel(8);
        let (cost, mut heard) = mpsc::channel(8);
        let places = Places::new(false, false);
        let mut discovery = Discovery::new(None, None, Vec::new(), events, places).unwrap();
        let at = |mode| Addresses::from([(address, mode)]);
        discovery.follow(at(Mode::Draining), Some(&cost)).await;
        assert!(heard.try_recv().is_err());
        for next in [at(Mode::AsItSays), Addresses::new()] {
            discovery.follow(next, Some(&cost)).await;
            let said = heard.try_recv();
            assert!(
                matches!(said, Ok(Heard::Counts { address: of, counts: None }) if of == address),
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_pod_that_ends_drains_unless_its_address_is_anothers() {
        let pod = |uid: &str, ip: &str, ending| LabelledPod {
            uid: PodUid::new(uid).unwrap(),
            name: uid.to_owned(),
            ip: ip.parse().ok(),
            ports: BTreeMap::new(),
            ending,
            annotations: penstock_core::deletion_cost::Annotations::default(),
        };
        let pods = [
            pod("a", "10.0.0.1", true),
            pod("b", "10.0.0.2", false),
            pod("c", "10.0.0.2", true),
            pod("d", "", false),
        ];
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), STREAMER_PORT);
        let expected = Addresses::from([(at("10.0.0.1"), Mode::Draining), (at("10.0.0.2"), Mode::AsItSays)]);
        assert_eq!(streaming(pods.iter()), expected);
    }
}
