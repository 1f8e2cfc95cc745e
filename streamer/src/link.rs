//! One player or viewer: the matchmaker's WebSocket on one side, the browser's peer connection on the other.
//!
//! ```text
//!  claim ─► claimed ─► playerConnected ─► offer ─► answer, candidates ─► connected: media flows
//!    └────► refused, closed                              any end ─► the seat is given back, or kept for a while
//! ```
//!
//! Media that flows goes on without the WebSocket: the player is away, and the owner hands on the next socket that it
//! comes back over, or ends the link when its time is over.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use penstock_core::ids::{PlayerId, StreamerId};
use penstock_core::units::StreamSize;
use penstock_core::wire::link::{
    Claim, Claimed, DisconnectPlayer, Draining, FromStreamer, Refused, RefusedReason, Role, ToStreamer,
};
use penstock_core::wire::signalling::{self, CandidateInit, EndKind, IceCandidate, Offer};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use webrtc::data_channel::DataChannelEvent;

use crate::data_channel::{self, FromPage, Settings, TextMessage};
use crate::input::Input;
use crate::media::{AccessUnit, AudioFrame, Media};
use crate::metrics::Metrics;
use crate::owner::{Granted, OwnerHandle, Seat, SeatEvent};
use crate::pace::{Cursor, Frame, KeyframeFor};
use crate::peer::{Peer, PeerEvent};
use crate::session::Gone;
use crate::tap::Tap;

/// What every link needs.
pub(crate) struct Shared {
    pub(crate) owner: OwnerHandle,
    pub(crate) media: Arc<Media>,
    pub(crate) input: Input,
    pub(crate) metrics: Metrics,
    pub(crate) name: StreamerId,
    pub(crate) stream: StreamSize,
    pub(crate) media_ips: Vec<IpAddr>,
    /// Whether sessions take viewers.
    pub(crate) viewers: bool,
    /// When this streamer ends, once it was told to.
    pub(crate) ends_at: watch::Receiver<Option<std::time::Instant>>,
}

/// From the connection to the claim.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);
/// From the claim to media that flows; a player that never comes must not hold a streamer.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// How much longer a page's last word may take through the matchmaker than the end of its data channel.
const PARTING_WORD: Duration = Duration::from_millis(300);
/// A matchmaker that is there pings every 15 s.
const SILENCE: Duration = Duration::from_secs(40);
/// Data-channel frames that can't be read, after which a page is sent away.
const MOST_BAD_FRAMES: u32 = 100;

/// Serves one WebSocket to its end.
pub(crate) async fn serve(mut socket: WebSocket, shared: Arc<Shared>) {
    let claim = match tokio::time::timeout(CLAIM_WITHIN, first_claim(&mut socket)).await {
        Ok(Ok(claim)) => claim,
        Ok(Err(error)) => return close(socket, 1008, &format!("{error:#}")).await,
        Err(_) => return close(socket, 1008, "no claim came within 5 s").await,
    };
    let player = claim.player_id.clone();
    let role = claim.role;
    let granted = tokio::select! {
        granted = shared.owner.claim(claim) => granted,
        () = gone(&mut socket) => return,
    };
    let seat = match granted {
        Ok(Granted::Seat(seat)) => seat,
        Ok(Granted::HandOver(link)) => return hand_over(socket, player, link).await,
        Err(reason) => return refuse(socket, reason).await,
    };
    tracing::info!(%player, ?role, "joined");
    let mut link = Link::new(socket, shared, seat, player, role);
    let over = link
        .run()
        .await
        .unwrap_or_else(|error| Over::new(Gone::ForGood, format!("{error:#}")));
    let why = &over.why;
    tracing::info!(player = %link.player, ?role, why, "left");
    link.end(over).await;
}

/// The matchmaker may be gone already.
async fn refuse(mut socket: WebSocket, reason: RefusedReason) {
    let refused = FromStreamer::Refused(Refused { reason });
    let _ = socket.send(frame(&refused)).await;
    close(socket, 1000, "the claim was refused").await;
}

/// Gives the socket to the link that has the player's peer connection. Where that has just ended, the matchmaker asks
/// again.
async fn hand_over(socket: WebSocket, player: PlayerId, link: mpsc::Sender<SeatEvent>) {
    let resumed = SeatEvent::Resumed(Box::new(socket), player);
    if let Err(mpsc::error::SendError(SeatEvent::Resumed(socket, _))) = link.send(resumed).await {
        refuse(*socket, RefusedReason::Busy).await;
    }
}

async fn first_claim(socket: &mut WebSocket) -> anyhow::Result<Claim> {
    match socket.recv().await {
        Some(Ok(Message::Text(text))) => match signalling::parse(&text)? {
            ToStreamer::Claim(claim) => Ok(claim),
            _ => bail!("the first message must be a claim"),
        },
        Some(Ok(_)) => bail!("the first message must be a claim, as text"),
        Some(Err(error)) => Err(error).context("reading the claim"),
        None => bail!("the connection closed before a claim"),
    }
}

/// Until the socket ends; what it says before its claim is answered is out of order, and dropped.
async fn gone(socket: &mut WebSocket) {
    while let Some(Ok(_)) = socket.recv().await {}
}

struct Link {
    /// None while the player is away.
    socket: Option<WebSocket>,
    shared: Arc<Shared>,
    seat: Seat,
    player: PlayerId,
    role: Role,
    connect_by: Instant,
    heard: Instant,
    /// How the player is gone when the socket closes.
    parting: Gone,
    away: bool,
    ends_at: watch::Receiver<Option<std::time::Instant>>,
    bad_frames: u32,
    peer: Option<Connected>,
}

/// How a link ends.
struct Over {
    gone: Gone,
    kind: EndKind,
    why: String,
}

impl Over {
    fn new(gone: Gone, why: impl Into<String>) -> Self {
        let (kind, why) = (EndKind::Over, why.into());
        Self { gone, kind, why }
    }
}

/// The browser's side, once the page is there.
struct Connected {
    peer: Peer,
    events: mpsc::UnboundedReceiver<PeerEvent>,
    video: Option<broadcast::Receiver<Arc<AccessUnit>>>,
    audio: Option<broadcast::Receiver<Arc<AudioFrame>>>,
    cursor: Cursor,
}

/// Whatever happens next.
enum Next {
    Socket(Option<Result<Message, axum::Error>>),
    Silence,
    Seat(Option<SeatEvent>),
    Draining,
    Late,
    Peer(Happened),
}

/// Whatever happens next on the browser's side.
enum Happened {
    Event(Option<PeerEvent>),
    Video(Result<Arc<AccessUnit>, RecvError>),
    Audio(Result<Arc<AudioFrame>, RecvError>),
    Channel(Option<DataChannelEvent>),
}

impl Link {
    fn new(socket: WebSocket, shared: Arc<Shared>, seat: Seat, player: PlayerId, role: Role) -> Self {
        let now = Instant::now();
        Self {
            socket: Some(socket),
            ends_at: shared.ends_at.clone(),
            shared,
            seat,
            player,
            role,
            connect_by: now + CONNECT_WITHIN,
            heard: now,
            parting: Gone::Lost,
            away: false,
            bad_frames: 0,
            peer: None,
        }
    }

    /// Runs to the link's end, and says why it ended.
    async fn run(&mut self) -> anyhow::Result<Over> {
        self.welcome(false).await;
        loop {
            let over = match self.next().await {
                Next::Socket(None | Some(Err(_) | Ok(Message::Close(_)))) | Next::Silence => self.lost(),
                Next::Socket(Some(Ok(message))) => {
                    self.heard = Instant::now();
                    self.on_message(message).await?
                }
                Next::Seat(Some(SeatEvent::Resumed(socket, player))) => {
                    self.resume(*socket, player).await;
                    None
                }
                Next::Seat(Some(SeatEvent::Ended(kind, why))) => Some(Over {
                    kind,
                    ..Over::new(Gone::ForGood, why)
                }),
                Next::Seat(None) => Some(Over::new(Gone::ForGood, "The streamer ends.")),
                Next::Draining => {
                    self.tell_draining().await;
                    None
                }
                Next::Late => Some(Over::new(Gone::ForGood, "The page did not connect within 30 s.")),
                Next::Peer(happened) => self.on_peer(happened).await?,
            };
            if let Some(over) = over {
                return Ok(over);
            }
        }
    }

    async fn next(&mut self) -> Next {
        let late = !self.is_connected();
        tokio::select! {
            message = receive_message(&mut self.socket, self.away) => Next::Socket(message),
            () = tokio::time::sleep_until(self.heard + SILENCE), if self.socket.is_some() => Next::Silence,
            event = self.seat.events.recv() => Next::Seat(event),
            Ok(()) = self.ends_at.changed() => Next::Draining,
            () = tokio::time::sleep_until(self.connect_by), if late => Next::Late,
            happened = happened(&mut self.peer) => Next::Peer(happened),
        }
    }

    /// Whether media flows, or would, did the page take it.
    fn is_connected(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.video.is_some())
    }

    async fn welcome(&mut self, resumed: bool) {
        self.say(&FromStreamer::Claimed(Claimed {
            streamer_id: self.shared.name.clone(),
            session_id: self.seat.session.clone(),
            return_token: Some(self.seat.token.clone()),
            resumed,
            shared: self.shared.viewers,
        }))
        .await;
        self.tell_draining().await;
    }

    async fn tell_draining(&mut self) {
        let Some(end) = *self.ends_at.borrow_and_update() else {
            return;
        };
        let seconds_left = end.saturating_duration_since(std::time::Instant::now()).as_secs();
        self.say(&FromStreamer::Draining(Draining { seconds_left })).await;
    }

    /// The socket is gone. A picture that runs goes on: the player may be back in a moment.
    fn lost(&mut self) -> Option<Over> {
        self.socket = None;
        if !self.is_connected() {
            return Some(Over::new(self.parting, "The matchmaker closed the link."));
        }
        tracing::info!(player = %self.player, how = ?self.parting, "away");
        self.away = true;
        self.seat.away(self.parting);
        if self.role == Role::Player {
            self.shared.input.release_all(self.seat.link());
        }
        None
    }

    /// The player is back, with its peer connection: unless that never came about, all goes on.
    async fn resume(&mut self, socket: WebSocket, player: PlayerId) {
        if self.socket.is_some() {
            let why = "The session goes on over another connection.";
            self.say_disconnect(EndKind::Replaced, why).await;
        }
        if let Some(old) = self.socket.replace(socket) {
            close(old, 1000, "replaced").await;
        }
        tracing::info!(player = %self.player, back_as = %player, "back");
        self.player = player;
        self.heard = Instant::now();
        self.parting = Gone::Lost;
        self.away = false;
        let resumed = self.is_connected();
        if !resumed && let Some(dead) = self.peer.take() {
            dead.peer.close().await;
        }
        self.connect_by = Instant::now() + CONNECT_WITHIN;
        self.welcome(resumed).await;
    }

    async fn on_message(&mut self, message: Message) -> anyhow::Result<Option<Over>> {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => bail!("the matchmaker sent a binary message"),
            _ => return Ok(None),
        };
        match signalling::parse(&text)? {
            ToStreamer::Claim(_) => bail!("a second claim came on one link"),
            ToStreamer::PlayerConnected(_) if self.peer.is_some() => bail!("the player connected twice"),
            ToStreamer::PlayerConnected(_) => self.begin().await?,
            ToStreamer::Ping(ping) => self.say(&FromStreamer::Pong(ping)).await,
            ToStreamer::Goodbye(said) if said.for_good => {
                return Ok(Some(Over::new(Gone::ForGood, "The player has left.")));
            }
            ToStreamer::Goodbye(_) => self.parting = Gone::Closed,
            ToStreamer::LayerPreference(_) => {}
            ToStreamer::Answer(answer) => {
                let peer = self.peer.as_mut().context("an answer came before an offer")?;
                peer.peer.answer(answer.sdp).await?;
            }
            ToStreamer::IceCandidate(candidate) => {
                let peer = self
                    .peer
                    .as_mut()
                    .context("an ICE candidate came before an offer")?;
                // A page may name addresses that mean nothing here, such as `….local`; others follow.
                if let Err(error) = peer.peer.candidate(candidate.candidate).await {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "an ICE candidate of the page was passed over"
                    );
                }
            }
        }
        Ok(None)
    }

    /// The page is there: makes an offer.
    async fn begin(&mut self) -> anyhow::Result<()> {
        let with_audio = self.shared.media.audio().is_some();
        let shared = &self.shared;
        let tap = Tap::new(shared.owner.clone(), self.keyframes_for(), shared.metrics.clone());
        let (peer, mut events) = Peer::new(shared.stream, with_audio, &shared.media_ips, tap).await?;
        let (sdp, candidates) = match peer.offer(&mut events).await {
            Ok(offer) => offer,
            Err(error) => {
                peer.close().await;
                return Err(error);
            }
        };
        self.peer = Some(Connected {
            peer,
            events,
            video: None,
            audio: None,
            cursor: Cursor::default(),
        });
        self.say(&FromStreamer::Offer(Offer {
            player_id: self.player.clone(),
            sdp,
        }))
        .await;
        for candidate in candidates {
            self.candidate(candidate).await;
        }
        Ok(())
    }

    async fn candidate(&mut self, candidate: CandidateInit) {
        let candidate = IceCandidate {
            player_id: Some(self.player.to_string()),
            candidate,
        };
        self.say(&FromStreamer::IceCandidate(candidate)).await;
    }

    async fn on_peer(&mut self, happened: Happened) -> anyhow::Result<Option<Over>> {
        match happened {
            Happened::Event(None | Some(PeerEvent::Failed)) => {
                let why = "The connection to the page was lost.";
                return Ok(Some(Over::new(Gone::Lost, why)));
            }
            Happened::Event(Some(PeerEvent::ForeignChannel)) => {
                // Nobody would read what comes on it.
                self.count_bad();
                let why = "The page opened a data channel of its own.";
                return Ok(Some(Over::new(Gone::ForGood, why)));
            }
            Happened::Event(Some(PeerEvent::Candidate(candidate))) => self.candidate(candidate).await,
            Happened::Event(Some(PeerEvent::Gathered)) => {}
            Happened::Event(Some(PeerEvent::Connected)) => self.start_media(),
            Happened::Video(received) => self.send_video(received).await?,
            Happened::Audio(received) => self.send_audio(received).await?,
            Happened::Channel(event) => return self.on_channel(event).await,
        }
        Ok(None)
    }

    fn start_media(&mut self) {
        let Some(connected) = &mut self.peer else { return };
        if connected.video.is_none() {
            connected.video = Some(self.shared.media.video());
            connected.audio = self.shared.media.audio();
            self.shared.owner.keyframe(KeyframeFor::PlayerOrNewcomer);
        }
    }

    fn keyframes_for(&self) -> KeyframeFor {
        match self.role {
            Role::Player => KeyframeFor::PlayerOrNewcomer,
            Role::Viewer => KeyframeFor::Viewer,
        }
    }

    async fn send_video(&mut self, received: Result<Arc<AccessUnit>, RecvError>) -> anyhow::Result<()> {
        let keyframes_for = self.keyframes_for();
        let Some(connected) = &mut self.peer else {
            return Ok(());
        };
        let unit = match received {
            Ok(unit) => unit,
            Err(RecvError::Lagged(missed)) => {
                self.shared.metrics.frames_dropped.inc_by(missed);
                connected.cursor.gap();
                return Ok(());
            }
            Err(RecvError::Closed) => bail!("the encoder ended"),
        };
        match connected.cursor.next(unit.keyframe) {
            Frame::Send => return connected.peer.send_video(&unit).await,
            Frame::Skip => {}
            Frame::SkipAndAsk => self.shared.owner.keyframe(keyframes_for),
        }
        self.shared.metrics.frames_dropped.inc();
        Ok(())
    }

    async fn send_audio(&mut self, received: Result<Arc<AudioFrame>, RecvError>) -> anyhow::Result<()> {
        match (&mut self.peer, received) {
            (Some(connected), Ok(frame)) => connected.peer.send_audio(&frame).await,
            // Late sound is worth nothing; what follows is on time.
            _ => Ok(()),
        }
    }

    async fn on_channel(&mut self, event: Option<DataChannelEvent>) -> anyhow::Result<Option<Over>> {
        match event {
            Some(DataChannelEvent::OnOpen) => {
                for frame in data_channel::hello(&self.settings()) {
                    self.send_data(&frame).await;
                }
            }
            Some(DataChannelEvent::OnMessage(message)) => return Ok(self.on_frame(&message.data).await),
            Some(DataChannelEvent::OnClose) | None => {
                let why = "The page closed its data channel.";
                return Ok(Some(Over::new(self.parting_word().await, why)));
            }
            Some(_) => {}
        }
        Ok(None)
    }

    /// The page is gone. Whether for good it says by the other way, which may take a moment longer.
    async fn parting_word(&mut self) -> Gone {
        let word = async {
            while let Some(Ok(message)) = receive_message(&mut self.socket, true).await {
                if let Message::Text(text) = message
                    && let Ok(ToStreamer::Goodbye(said)) = signalling::parse(&text)
                {
                    return if said.for_good {
                        Gone::ForGood
                    } else {
                        Gone::Closed
                    };
                }
            }
            Gone::Closed
        };
        let word = tokio::time::timeout(PARTING_WORD, word).await;
        word.unwrap_or(Gone::Closed)
    }

    async fn on_frame(&mut self, frame: &[u8]) -> Option<Over> {
        match data_channel::parse(frame) {
            Ok(message) => {
                if self.role == Role::Player {
                    let events = &self.shared.metrics.input_events;
                    events.with_label_values(&[data_channel::kind(&message)]).inc();
                }
                self.obey(message).await;
                None
            }
            Err(error) => {
                self.count_bad();
                self.bad_frames += 1;
                tracing::debug!(player = %self.player, %error, "passed over");
                let why = || format!("Too many bad messages, the last: {error}.");
                (self.bad_frames >= MOST_BAD_FRAMES).then(|| Over::new(Gone::ForGood, why()))
            }
        }
    }

    fn count_bad(&self) {
        let bad = &self.shared.metrics.bad_messages;
        bad.with_label_values(&["data_channel"]).inc();
    }

    async fn obey(&mut self, message: FromPage) {
        match message {
            FromPage::IFrameRequest => self.shared.owner.keyframe(self.keyframes_for()),
            FromPage::RequestInitialSettings => {
                self.send_data(&data_channel::initial_settings(&self.settings()))
                    .await;
            }
            FromPage::RequestQualityControl => {
                for frame in data_channel::ownership(self.role == Role::Player) {
                    self.send_data(&frame).await;
                }
            }
            FromPage::LatencyTest(_) => self.send_data(&latency_answer()).await,
            FromPage::TestEcho(said) => {
                self.send_data(&data_channel::text(TextMessage::TestEcho, &said))
                    .await
            }
            // A viewer only looks.
            _ if self.role == Role::Viewer => {}
            FromPage::Command(json) => self.command(&json),
            FromPage::Ignored | FromPage::UiInteraction(_) => {}
            input => self.shared.input.play(self.seat.link(), input),
        }
    }

    /// Players steer the bitrate, up to what the streamer was started with.
    fn command(&self, json: &str) {
        let command: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        if let Some(bps) = command
            .get("WebRTC.MaxBitrate")
            .and_then(serde_json::Value::as_u64)
        {
            let kbps = u32::try_from(bps / 1000).unwrap_or(u32::MAX);
            self.shared.owner.bitrate(self.seat.link(), kbps);
        }
    }

    fn settings(&self) -> Settings {
        let max_bitrate = u64::from(self.shared.media.max_kbps()) * 1000;
        Settings {
            fps: self.shared.stream.fps(),
            min_bitrate: max_bitrate.min(100_000),
            max_bitrate,
        }
    }

    async fn send_data(&mut self, frame: &[u8]) {
        if let Some(connected) = &mut self.peer {
            connected.peer.send_data(frame).await;
        }
    }

    /// Whoever can't be told is lost: what comes next from its socket is its end.
    async fn say(&mut self, message: &FromStreamer) {
        if let Some(socket) = &mut self.socket
            && socket.send(frame(message)).await.is_err()
        {
            self.socket = None;
        }
    }

    async fn say_disconnect(&mut self, kind: EndKind, why: &str) {
        let disconnect = DisconnectPlayer {
            player_id: self.player.clone(),
            reason: Some(why.to_owned()),
            kind,
        };
        self.say(&FromStreamer::DisconnectPlayer(disconnect)).await;
    }

    async fn end(mut self, over: Over) {
        if self.role == Role::Player {
            self.shared.input.release_all(self.seat.link());
        }
        self.say_disconnect(over.kind, &over.why).await;
        self.seat.leave(over.gone);
        if let Some(connected) = self.peer.take() {
            connected.peer.close().await;
        }
        if let Some(socket) = self.socket {
            close(socket, 1000, &over.why).await;
        }
    }
}

/// The next message of the matchmaker, or none where the socket has ended; never, while the player is known to be away.
async fn receive_message(socket: &mut Option<WebSocket>, away: bool) -> Option<Result<Message, axum::Error>> {
    match socket {
        Some(socket) => socket.recv().await,
        None if away => std::future::pending().await,
        None => None,
    }
}

/// The next thing on the browser's side; never, while there is none.
async fn happened(peer: &mut Option<Connected>) -> Happened {
    let Some(connected) = peer else {
        return std::future::pending().await;
    };
    tokio::select! {
        // Signalling and input before media, so that neither waits behind a full picture.
        biased;
        event = connected.events.recv() => Happened::Event(event),
        event = connected.peer.channel.poll() => Happened::Channel(event),
        frame = receive(&mut connected.audio) => Happened::Audio(frame),
        unit = receive(&mut connected.video) => Happened::Video(unit),
    }
}

async fn receive<T: Clone>(from: &mut Option<broadcast::Receiver<T>>) -> Result<T, RecvError> {
    match from {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

fn latency_answer() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    data_channel::latency_answer(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), 0.0, 0.0)
}

fn frame(message: &FromStreamer) -> Message {
    // These types are structs of texts and numbers, which are always JSON.
    Message::Text(serde_json::to_string(message).unwrap_or_default().into())
}

async fn close(mut socket: WebSocket, code: u16, reason: &str) {
    // A close frame's reason takes 123 bytes (RFC 6455, section 5.5).
    let reason: String = reason.chars().filter(char::is_ascii).take(123).collect();
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    // The other side may be gone already.
    let _ = socket.send(Message::Close(Some(frame))).await;
}
