//! The desk: the one task that owns the lobby. It takes events in, and executes the lobby's commands. It never
//! waits for a page or a streamer: their channels are bounded, and one that is full loses its connection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use penstock_core::ids::PlayerId;
use penstock_core::wire::link::ToStreamer;
use penstock_core::wire::signalling::ToPlayer;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::clock::now_unix;
use crate::events::{Event, OUTBOX, Survey, ToPage};
use crate::ice::Ice;
use crate::link;
use crate::lobby::{Command, Input, LinkId, Lobby};
use crate::metrics::Metrics;

/// See the module.
pub struct Desk {
    lobby: Lobby,
    pages: HashMap<PlayerId, mpsc::Sender<ToPage>>,
    links: HashMap<LinkId, mpsc::Sender<ToStreamer>>,
    link_tasks: JoinSet<()>,
    events: mpsc::Receiver<Event>,
    own_events: mpsc::Sender<Event>,
    metrics: Metrics,
    ice: Ice,
}

impl Desk {
    /// The desk, and where its events go in.
    pub fn new(metrics: Metrics, ice: Ice) -> (mpsc::Sender<Event>, Self) {
        let (own_events, events) = mpsc::channel(INBOX);
        let desk = Self {
            lobby: Lobby::default(),
            pages: HashMap::new(),
            links: HashMap::new(),
            link_tasks: JoinSet::new(),
            events,
            own_events: own_events.clone(),
            metrics,
            ice,
        };
        (own_events, desk)
    }

    /// Works for ever.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.take(event),
                Some(ended) = self.link_tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a link's task ended in a panic");
                    }
                }
                _ = ticks.tick() => self.input(Input::Tick),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Joined {
                player,
                session,
                want,
                back,
                page,
            } => {
                self.pages.insert(player.clone(), page);
                self.input(Input::Joined {
                    player,
                    session,
                    want,
                    back,
                });
            }
            Event::Input(input) => self.input(input),
            Event::Look(answer) => {
                // Who asked may have gone.
                let _ = answer.send(self.lobby.view());
            }
            Event::Survey(answer) => {
                let streamers = self.lobby.streamers();
                let streamers = streamers.map(|(address, status)| (address, status.clone()));
                let _ = answer.send(Survey {
                    streamers: streamers.collect(),
                    waiting: self.lobby.wishes().cloned().collect(),
                    queue: self.lobby.queue(Instant::now()),
                });
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.forget(&input);
        for command in self.lobby.handle(Instant::now(), input) {
            self.execute(command);
        }
    }

    fn forget(&mut self, input: &Input) {
        match input {
            Input::Left { player, .. } => {
                self.pages.remove(player);
            }
            Input::LinkClosed { link } => {
                self.links.remove(link);
            }
            _ => {}
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Send { player, message } => self.post(&player, ToPage::Message(Box::new(message))),
            Command::Configure { player, peers } => {
                let config = self.ice.config(&player, &peers, now_unix());
                let message = Box::new(ToPlayer::Config(config));
                self.post(&player, ToPage::Message(message));
            }
            Command::Close { player, code, reason } => {
                self.post(&player, ToPage::Close { code, reason });
            }
            Command::Dial { link, address, claim } => {
                let (messages, outbox) = mpsc::channel(OUTBOX);
                self.links.insert(link, messages);
                let dial = link::Dial { link, address, claim };
                self.link_tasks.spawn(dial.run(outbox, self.own_events.clone()));
            }
            Command::Tell { link, message } => self.tell(link, message),
            // Its task ends when its channel does.
            Command::HangUp { link } => {
                self.links.remove(&link);
            }
            Command::Count(outcome) => self.metrics.claim(outcome),
        }
    }

    /// A page that takes nothing is not worth the memory: its channel goes, then its task ends, then it has left.
    fn post(&mut self, player: &PlayerId, message: ToPage) {
        let Some(page) = self.pages.get(player) else {
            return;
        };
        if let Err(error) = page.try_send(message) {
            if let TrySendError::Full(_) = error {
                tracing::info!(%player, "a page takes its messages too slowly, and is dropped");
            }
            self.pages.remove(player);
        }
    }

    fn tell(&mut self, link: LinkId, message: ToStreamer) {
        let Some(messages) = self.links.get(&link) else {
            return;
        };
        if let Err(error) = messages.try_send(message) {
            // Else the link has just ended by itself, which the lobby is about to hear.
            if let TrySendError::Full(_) = error {
                tracing::warn!(
                    link = link.0,
                    "a streamer takes its messages too slowly; its link is closed"
                );
            }
            self.links.remove(&link);
        }
    }
}

const INBOX: usize = 1024;
const TICK: Duration = Duration::from_millis(100);
