//! The one task that owns who is on this streamer: it feeds [`Session`] and carries out what that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::ws::WebSocket;
use penstock_core::ids::{ApplicationName, PlayerId, SessionId, StreamerId};
use penstock_core::units::StreamSize;
use penstock_core::wire::link::{Claim, RefusedReason};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::EndKind;
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::media::Media;
use crate::metrics::Metrics;
use crate::pace::{BitrateWishes, KeyframeFor, KeyframeGate};
use crate::session::{Decision, Gone, Limits, LinkId, Session};

/// What links ask of the owner.
enum Ask {
    Claim {
        link: LinkId,
        claim: Claim,
        answer: oneshot::Sender<Result<Reply, RefusedReason>>,
    },
    Gone {
        link: LinkId,
        how: Gone,
        ended: bool,
    },
    End {
        session: SessionId,
        answer: oneshot::Sender<bool>,
    },
    Keyframe(KeyframeFor),
    Bitrate {
        link: LinkId,
        kbps: u32,
    },
}

/// The owner's yes, before the link has made a seat of it.
enum Reply {
    Seat(ReturnToken, SessionId, mpsc::Receiver<SeatEvent>),
    HandOver(mpsc::Sender<SeatEvent>),
}

type Answer = Result<Granted, RefusedReason>;

/// The streamer's yes.
pub(crate) enum Granted {
    /// A seat.
    Seat(Seat),
    /// The player sits here already, over another link: that one takes the socket.
    HandOver(mpsc::Sender<SeatEvent>),
}

/// What happens to one who has a seat.
pub(crate) enum SeatEvent {
    /// The streamer takes the seat back, and says why.
    Ended(EndKind, &'static str),
    /// The player is back over another socket, under another name.
    Resumed(Box<WebSocket>, PlayerId),
}

/// How links reach the owner.
#[derive(Clone)]
pub(crate) struct OwnerHandle {
    asks: mpsc::UnboundedSender<Ask>,
    next_link: Arc<AtomicU64>,
}

/// A place on this streamer, given back when dropped.
pub(crate) struct Seat {
    claimed: Claimed,
    /// With what its player may come back.
    pub(crate) token: ReturnToken,
    /// The session that it is of.
    pub(crate) session: SessionId,
    /// What happens to it.
    pub(crate) events: mpsc::Receiver<SeatEvent>,
}

impl Seat {
    /// The link that it was claimed over.
    pub(crate) fn link(&self) -> LinkId {
        self.claimed.link
    }

    /// The player can't be reached, but its peer connection goes on.
    pub(crate) fn away(&self, how: Gone) {
        let (link, ended) = (self.claimed.link, false);
        self.claimed.owner.ask(Ask::Gone { link, how, ended });
    }

    /// How the player is gone when the seat is dropped; for good if this is not said.
    pub(crate) fn leave(&mut self, how: Gone) {
        self.claimed.how = how;
    }
}

/// Gives a claim back, whatever became of it.
struct Claimed {
    link: LinkId,
    how: Gone,
    owner: OwnerHandle,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let (link, how, ended) = (self.link, self.how, true);
        self.owner.ask(Ask::Gone { link, how, ended });
    }
}

impl OwnerHandle {
    /// Asks for a seat. Dropping the future withdraws the claim.
    pub(crate) async fn claim(&self, claim: Claim) -> Answer {
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let claimed = Claimed {
            link,
            how: Gone::ForGood,
            owner: self.clone(),
        };
        self.ask(Ask::Claim { link, claim, answer });
        // The owner lives as long as the process; where it is gone, the streamer is ending.
        match answered.await.unwrap_or(Err(RefusedReason::Draining))? {
            Reply::Seat(token, session, events) => Ok(Granted::Seat(Seat {
                claimed,
                token,
                session,
                events,
            })),
            Reply::HandOver(to) => Ok(Granted::HandOver(to)),
        }
    }

    /// Ends the session of this name. Whether it was here.
    pub(crate) async fn end(&self, session: SessionId) -> bool {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::End { session, answer });
        answered.await.unwrap_or(false)
    }

    /// Asks for a keyframe; requests close together are answered by one.
    pub(crate) fn keyframe(&self, who: KeyframeFor) {
        self.ask(Ask::Keyframe(who));
    }

    /// The player of `link` wishes for a video bitrate; the least that any wishes for holds.
    pub(crate) fn bitrate(&self, link: LinkId, kbps: u32) {
        self.ask(Ask::Bitrate { link, kbps });
    }

    /// To an owner that is gone.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self {
            asks: mpsc::unbounded_channel().0,
            next_link: Arc::default(),
        }
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
    pub(crate) limits: Limits,
}

/// Owns the session.
pub(crate) struct Owner {
    identity: Identity,
    session: Session,
    gate: KeyframeGate,
    wishes: BitrateWishes,
    media: Arc<Media>,
    metrics: Metrics,
    asks: mpsc::UnboundedReceiver<Ask>,
    waiting: BTreeMap<LinkId, oneshot::Sender<Result<Reply, RefusedReason>>>,
    seated: BTreeMap<LinkId, mpsc::Sender<SeatEvent>>,
    /// Links that were granted a seat and have not ended yet; those whose seat was taken back, too.
    open: BTreeSet<LinkId>,
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
        let session = Session::new(identity.limits);
        let (status, published) = watch::channel(status_of(&identity, &session));
        metrics.units.set(identity.stream.units().0.into());
        let owner = Self {
            identity,
            session,
            gate: KeyframeGate::default(),
            wishes: BitrateWishes::default(),
            media,
            metrics,
            asks,
            waiting: BTreeMap::new(),
            seated: BTreeMap::new(),
            open: BTreeSet::new(),
            status,
            playing: true,
        };
        let handle = OwnerHandle {
            asks: asks_to,
            next_link: Arc::new(AtomicU64::new(0)),
        };
        (owner, handle, published)
    }

    /// Runs until `drain` is asked for and the last player has left, or until `end`, which sends them elsewhere.
    pub(crate) async fn run(mut self, drain: CancellationToken, end: CancellationToken) {
        let mut first_picture = self.media.first_picture.clone();
        while !self.session.is_drained() || !self.open.is_empty() {
            let due = [self.session.poll_timeout(), self.gate.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            let draining = self.session.state() == StreamerState::Draining;
            let decisions = tokio::select! {
                ask = self.asks.recv() => ask.map_or_else(Vec::new, |ask| self.answer(ask)),
                () = at(due) => self.timeout(),
                changed = first_picture.wait_for(|seen| *seen), if !self.is_ready() => {
                    self.session.set_ready(changed.is_ok())
                }
                () = drain.cancelled(), if !draining => self.session.drain(),
                () = end.cancelled(), if !self.session.is_drained() => self.evict(),
            };
            self.carry_out(decisions);
            self.publish();
        }
    }

    fn is_ready(&self) -> bool {
        self.session.state() != StreamerState::Starting
    }

    fn evict(&mut self) -> Vec<Decision> {
        let refused = self.session.drain();
        refused.into_iter().chain(self.session.evict()).collect()
    }

    fn answer(&mut self, ask: Ask) -> Vec<Decision> {
        let now = Instant::now();
        match ask {
            Ask::Claim { link, claim, answer } => {
                self.waiting.insert(link, answer);
                self.session.claim(now, link, claim, random_token())
            }
            Ask::Gone { link, how, ended } => {
                if ended {
                    self.waiting.remove(&link);
                    self.seated.remove(&link);
                    self.open.remove(&link);
                    if let Some(kbps) = self.wishes.gone(link) {
                        self.media.set_bitrate_kbps(kbps);
                    }
                }
                self.session.gone(now, link, how, ended)
            }
            Ask::End { session, answer } => {
                let ends = self.session.end(now, &session);
                // Who asked may have gone.
                let _ = answer.send(ends.is_some());
                ends.unwrap_or_default()
            }
            Ask::Keyframe(who) => {
                if self.gate.request(now, who) {
                    self.media.force_keyframe();
                }
                Vec::new()
            }
            Ask::Bitrate { link, kbps } => {
                // What a link asks for comes before its end.
                self.media.set_bitrate_kbps(self.wishes.wish(link, kbps));
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

    /// Links may have gone in the meantime; their `Gone` then follows.
    fn carry_out(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Grant(link, token) => {
                    self.count("granted");
                    self.grant(link, token);
                }
                Decision::HandOver { from, to } => {
                    self.count("resumed");
                    let answer = self.seated.get(&to).cloned();
                    let answer = answer.map(Reply::HandOver).ok_or(RefusedReason::Busy);
                    self.reply(from, answer);
                }
                Decision::Refuse(link, reason) => {
                    self.count(label(reason));
                    self.reply(link, Err(reason));
                }
                Decision::End(link, kind, reason) => {
                    // Where its channel is full, the link learns from its end that it is over.
                    if let Some(seat) = self.seated.remove(&link) {
                        let _ = seat.try_send(SeatEvent::Ended(kind, reason));
                    }
                }
            }
        }
    }

    fn grant(&mut self, link: LinkId, token: ReturnToken) {
        let Some(session) = self.session.session_id().cloned() else {
            return;
        };
        let (events, seat) = mpsc::channel(SEAT_EVENTS);
        self.seated.insert(link, events);
        self.open.insert(link);
        self.reply(link, Ok(Reply::Seat(token, session, seat)));
    }

    fn count(&self, answer: &'static str) {
        self.metrics.claims.with_label_values(&[answer]).inc();
    }

    fn reply(&mut self, link: LinkId, answer: Result<Reply, RefusedReason>) {
        if let Some(waiting) = self.waiting.remove(&link) {
            let _ = waiting.send(answer);
        }
    }

    fn publish(&mut self) {
        let status = status_of(&self.identity, &self.session);
        let pictured = *self.media.first_picture.borrow();
        self.metrics.show(&status, pictured);
        // Nothing is captured for nobody, once there was a picture.
        let playing = status.players + status.viewers > 0 || !pictured;
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

pub(crate) fn status_of(identity: &Identity, session: &Session) -> StreamerStatus {
    StreamerStatus {
        streamer_id: identity.streamer_id.clone(),
        state: session.state(),
        application: identity.application.clone(),
        session_id: session.session_id().cloned(),
        players: session.players(),
        away: session.away(),
        max_players: identity.limits.players,
        seats: session.seat_names(),
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
        RefusedReason::Exclusive => "exclusive",
    }
}

/// Two times 128 random bits. Hexadecimal digits and a dot are always a token.
fn random_token() -> ReturnToken {
    let random = || format!("{:032x}", rand::random::<u128>());
    let made = ReturnToken::new(&random(), &random());
    made.expect("hexadecimal digits may stand in a token")
}

/// How much may happen to a seat before its link has taken note.
const SEAT_EVENTS: usize = 4;

/// Waits until `due`, or for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
