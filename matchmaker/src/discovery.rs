//! Finding streamers, and hearing how they stand.
//!
//! ```text
//!  agent's /v1/events ──► which addresses ──┐ one follower for each
//!  --streamer ──────────────────────────────┤
//!                                           └──► GET http://<address>/events ──► Status, StreamerLost
//! ```
//!
//! Both are streams of server-sent events that carry the whole state each time, so one that broke is simply opened
//! again. Other ways to find streamers only have to name addresses.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_core::wire::agent::{SliceState, SliceStatus};
use penstock_shell::events::SseReader;
use reqwest::{Client, Response};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::events::Event;
use crate::lobby::Input;

/// See the module.
pub struct Discovery {
    agent: Option<Agent>,
    by_hand: BTreeSet<SocketAddr>,
    events: mpsc::Sender<Event>,
    streamers: Client,
    agent_seen: Arc<AtomicBool>,
    followers: HashMap<SocketAddr, AbortHandle>,
    tasks: JoinSet<()>,
}

struct Agent {
    socket: PathBuf,
    client: Client,
}

impl Discovery {
    /// Follows the agent at `agent`, if there is one, and the streamers `by_hand`.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(
        agent: Option<PathBuf>,
        by_hand: Vec<SocketAddr>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, reqwest::Error> {
        let agent = agent.map(|socket| Agent::new(&socket)).transpose()?;
        Ok(Self {
            agent_seen: Arc::new(AtomicBool::new(agent.is_none())),
            agent,
            by_hand: by_hand.into_iter().collect(),
            events,
            streamers: client().build()?,
            followers: HashMap::new(),
            tasks: JoinSet::new(),
        })
    }

    /// Whether the agent was heard; true from the start where there is none.
    pub fn agent_seen(&self) -> Arc<AtomicBool> {
        self.agent_seen.clone()
    }

    /// Works for ever.
    pub async fn run(mut self) {
        let (lists, mut heard) = mpsc::channel::<Vec<SliceStatus>>(1);
        if let Some(agent) = self.agent.take() {
            self.tasks.spawn(follow_agent(agent, lists.clone()));
        }
        self.follow(BTreeSet::new()).await;
        loop {
            tokio::select! {
                Some(slices) = heard.recv() => {
                    self.agent_seen.store(true, Ordering::Relaxed);
                    self.follow(running(&slices)).await;
                }
                Some(Err(error)) = self.tasks.join_next() => {
                    if error.is_panic() {
                        tracing::error!(%error, "a task that follows a streamer ended in a panic");
                        return;
                    }
                }
            }
        }
    }

    /// Follows `found` and those by hand, and nobody else.
    async fn follow(&mut self, found: BTreeSet<SocketAddr>) {
        let wanted: BTreeSet<_> = found.union(&self.by_hand).copied().collect();
        let gone: Vec<_> = self
            .followers
            .keys()
            .filter(|known| !wanted.contains(known))
            .copied()
            .collect();
        for address in gone {
            if let Some(follower) = self.followers.remove(&address) {
                follower.abort();
            }
            tracing::info!(%address, "a streamer is gone");
            let _ = self
                .events
                .send(Event::Input(Input::StreamerLost { address }))
                .await;
        }
        for address in wanted {
            if self.followers.contains_key(&address) {
                continue;
            }
            tracing::info!(%address, "following a streamer");
            let task = follow_streamer(self.streamers.clone(), address, self.events.clone());
            self.followers.insert(address, self.tasks.spawn(task));
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

fn running(slices: &[SliceStatus]) -> BTreeSet<SocketAddr> {
    let running = slices.iter().filter(|slice| slice.state == SliceState::Running);
    running.filter_map(|slice| slice.address).collect()
}

async fn follow_agent(agent: Agent, lists: mpsc::Sender<Vec<SliceStatus>>) {
    // The host part is for the protocol's sake only: the connection goes over the socket.
    let mut feed = Feed::new(agent.client, "http://agent/v1/events".to_owned());
    loop {
        match feed.next().await {
            Ok(slices) => {
                let _ = lists.send(slices).await;
            }
            Err(error) => {
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

async fn follow_streamer(client: Client, address: SocketAddr, events: mpsc::Sender<Event>) {
    let mut feed = Feed::new(client, format!("http://{address}/events"));
    loop {
        let input = match feed.next().await {
            Ok(status) => Input::Status { address, status },
            Err(error) => {
                feed.complain(&format!("the streamer at {address} can't be heard: {error}"));
                Input::StreamerLost { address }
            }
        };
        let lost = matches!(input, Input::StreamerLost { .. });
        let _ = events.send(Event::Input(input)).await;
        if lost {
            feed.wait().await;
        }
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

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(running(&slices), BTreeSet::from(["127.0.0.1:1".parse().unwrap()]));
    }
}
