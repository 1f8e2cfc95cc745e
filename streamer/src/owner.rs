//! The one task that owns who is on this streamer: it feeds [`Session`] and carries out what that decides.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use penstock_core::ids::{ApplicationName, SessionId, StreamerId};
use penstock_core::units::StreamSize;
use penstock_core::wire::link::{Claim, RefusedReason};
use penstock_core::wire::status::StreamerStatus;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::media::Media;
use crate::metrics::Metrics;
use crate::pace::KeyframeGate;
use crate::session::{Decision, LinkId, Session};

/// What links ask of the owner.
enum Ask {
    Claim {
        link: LinkId,
        claim: Claim,
        answer: oneshot::Sender<Answer>,
    },
    Left(LinkId),
    End {
        session: SessionId,
        answer: oneshot::Sender<bool>,
    },
    Keyframe,
}

/// Yes, with the reason to come when the seat is lost; or no.
type Answer = Result<oneshot::Receiver<&'static str>, RefusedReason>;

/// How links reach the owner.
#[derive(Clone)]
pub(crate) struct OwnerHandle {
    asks: mpsc::UnboundedSender<Ask>,
    next_link: Arc<AtomicU64>,
}

/// A place on this streamer, given back when dropped.
pub(crate) struct Seat {
    _claimed: Claimed,
    /// Says why, when the streamer takes the seat back.
    pub(crate) ended: oneshot::Receiver<&'static str>,
}

/// Gives a claim back, whatever became of it.
struct Claimed {
    link: LinkId,
    owner: OwnerHandle,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.owner.ask(Ask::Left(self.link));
    }
}

impl OwnerHandle {
    /// Asks for a seat. Dropping the future withdraws the claim.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<Seat, RefusedReason> {
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let claimed = Claimed {
            link,
            owner: self.clone(),
        };
        self.ask(Ask::Claim { link, claim, answer });
        // The owner lives as long as the process; where it is gone, the streamer is ending.
        let ended = answered.await.unwrap_or(Err(RefusedReason::Draining))?;
        Ok(Seat {
            _claimed: claimed,
            ended,
        })
    }

    /// Ends the session of this name. Whether it was here.
    pub(crate) async fn end(&self, session: SessionId) -> bool {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::End { session, answer });
        answered.await.unwrap_or(false)
    }

    /// Asks for a keyframe; requests close together are answered by one.
    pub(crate) fn keyframe(&self) {
        self.ask(Ask::Keyframe);
    }

    fn ask(&self, ask: Ask) {
        // Where the owner is gone the process is ending, and nobody needs an answer.
        let _ = self.asks.send(ask);
    }
}

/// What does not change about a streamer, for its status.
pub(crate) struct Identity {
    pub(crate) streamer_id: StreamerId,
    pub(crate) application: Option<ApplicationName>,
    pub(crate) stream: StreamSize,
    pub(crate) media_addresses: Vec<IpAddr>,
    pub(crate) max_viewers: u32,
}

/// Owns the session.
pub(crate) struct Owner {
    identity: Identity,
    session: Session,
    gate: KeyframeGate,
    media: Arc<Media>,
    metrics: Metrics,
    asks: mpsc::UnboundedReceiver<Ask>,
    waiting: BTreeMap<LinkId, oneshot::Sender<Answer>>,
    seated: BTreeMap<LinkId, oneshot::Sender<&'static str>>,
    status: watch::Sender<StreamerStatus>,
    playing: bool,
}

impl Owner {
    pub(crate) fn new(
        identity: Identity,
        media: Arc<Media>,
        metrics: Metrics,
    ) -> (Self, OwnerHandle, watch::Receiver<StreamerStatus>) {
        let (asks_to, asks) = mpsc::unbounded_channel();
        let session = Session::new(identity.max_viewers);
        let (status, published) = watch::channel(status_of(&identity, &session));
        metrics.units.set(identity.stream.units().0.into());
        let owner = Self {
            identity,
            session,
            gate: KeyframeGate::default(),
            media,
            metrics,
            asks,
            waiting: BTreeMap::new(),
            seated: BTreeMap::new(),
            status,
            playing: true,
        };
        let handle = OwnerHandle {
            asks: asks_to,
            next_link: Arc::new(AtomicU64::new(0)),
        };
        (owner, handle, published)
    }

    /// Runs until `drain` is asked for and the last player has left.
    pub(crate) async fn run(mut self, drain: CancellationToken) {
        let mut first_picture = self.media.first_picture.clone();
        while !self.session.is_drained() {
            let due = [self.session.poll_timeout(), self.gate.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            let draining = self.session.state() == penstock_core::wire::status::StreamerState::Draining;
            let decisions = tokio::select! {
                ask = self.asks.recv() => ask.map_or_else(Vec::new, |ask| self.answer(ask)),
                () = at(due) => self.timeout(),
                changed = first_picture.wait_for(|seen| *seen), if !self.is_ready() => {
                    self.session.set_ready(changed.is_ok())
                }
                () = drain.cancelled(), if !draining => self.session.drain(),
            };
            self.carry_out(decisions);
            self.publish();
        }
    }

    fn is_ready(&self) -> bool {
        self.session.state() != penstock_core::wire::status::StreamerState::Starting
    }

    fn answer(&mut self, ask: Ask) -> Vec<Decision> {
        let now = Instant::now();
        match ask {
            Ask::Claim { link, claim, answer } => {
                self.waiting.insert(link, answer);
                self.session.claim(now, link, claim)
            }
            Ask::Left(link) => {
                self.waiting.remove(&link);
                self.seated.remove(&link);
                self.session.left(now, link)
            }
            Ask::End { session, answer } => {
                let ends = self.session.end(&session);
                // Who asked may have gone.
                let _ = answer.send(!ends.is_empty());
                ends
            }
            Ask::Keyframe => {
                if self.gate.request(now) {
                    self.media.force_keyframe();
                }
                Vec::new()
            }
        }
    }

    fn timeout(&mut self) -> Vec<Decision> {
        let now = Instant::now();
        if self.gate.timeout(now) {
            self.media.force_keyframe();
        }
        self.session.timeout(now)
    }

    /// Links may have gone in the meantime; their `Left` then follows.
    fn carry_out(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Grant(link) => {
                    self.metrics.claims.with_label_values(&["granted"]).inc();
                    let (end, ended) = oneshot::channel();
                    self.seated.insert(link, end);
                    self.reply(link, Ok(ended));
                }
                Decision::Refuse(link, reason) => {
                    self.metrics.claims.with_label_values(&[label(reason)]).inc();
                    self.reply(link, Err(reason));
                }
                Decision::End(link, reason) => {
                    if let Some(end) = self.seated.remove(&link) {
                        let _ = end.send(reason);
                    }
                }
            }
        }
    }

    fn reply(&mut self, link: LinkId, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&link) {
            let _ = waiting.send(answer);
        }
    }

    fn publish(&mut self) {
        let status = status_of(&self.identity, &self.session);
        self.metrics.players.set(status.players.into());
        self.metrics.viewers.set(status.viewers.into());
        // Nothing is captured for nobody, once there was a picture.
        let playing = status.players + status.viewers > 0 || !*self.media.first_picture.borrow();
        if playing != std::mem::replace(&mut self.playing, playing)
            && let Err(error) = self.media.set_playing(playing)
        {
            tracing::error!(%error, playing, "the pipeline did not follow");
        }
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

fn status_of(identity: &Identity, session: &Session) -> StreamerStatus {
    StreamerStatus {
        streamer_id: identity.streamer_id.clone(),
        state: session.state(),
        application: identity.application.clone(),
        session_id: session.session_id().cloned(),
        players: session.players(),
        viewers: session.viewers(),
        stream: identity.stream,
        units: identity.stream.units(),
        media_addresses: identity.media_addresses.clone(),
    }
}

fn label(reason: RefusedReason) -> &'static str {
    match reason {
        RefusedReason::Starting => "starting",
        RefusedReason::Busy => "busy",
        RefusedReason::Draining => "draining",
        RefusedReason::NoSuchSession => "no_such_session",
        RefusedReason::TooManyViewers => "too_many_viewers",
    }
}

/// Waits until `due`, or for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
