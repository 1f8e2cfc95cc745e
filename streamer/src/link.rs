//! One player or viewer: the matchmaker's WebSocket on one side, the browser's peer connection on the other.
//!
//! ```text
//!  claim ─► claimed ─► playerConnected ─► offer ─► answer, candidates ─► connected: media flows
//!    └────► refused, closed                              any end ─► the seat is given back
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use penstock_core::ids::{PlayerId, StreamerId};
use penstock_core::units::StreamSize;
use penstock_core::wire::link::{Claim, Claimed, DisconnectPlayer, FromStreamer, Refused, Role, ToStreamer};
use penstock_core::wire::signalling::{self, CandidateInit, IceCandidate, Offer};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use webrtc::data_channel::DataChannelEvent;

use crate::data_channel::{self, FromPage, Settings, TextMessage};
use crate::input::Input;
use crate::media::{AccessUnit, AudioFrame, Media};
use crate::metrics::Metrics;
use crate::owner::{OwnerHandle, Seat};
use crate::pace::{Cursor, Frame};
use crate::peer::{Peer, PeerEvent};
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
}

/// From the connection to the claim.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);
/// From the claim to media that flows; a player that never comes must not hold a streamer.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
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
        Ok(seat) => seat,
        Err(reason) => {
            let refused = FromStreamer::Refused(Refused { reason });
            // The matchmaker may be gone already.
            let _ = socket.send(frame(&refused)).await;
            return close(socket, 1000, "the claim was refused").await;
        }
    };
    tracing::info!(%player, ?role, "joined");
    let mut link = Link::new(socket, shared, seat, player.clone(), role);
    let why = match link.run().await {
        Ok(why) => why,
        Err(error) => format!("{error:#}"),
    };
    tracing::info!(%player, ?role, why, "left");
    link.end(&why).await;
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
    socket: WebSocket,
    shared: Arc<Shared>,
    seat: Seat,
    player: PlayerId,
    role: Role,
    connect_by: Instant,
    bad_frames: u32,
    peer: Option<Connected>,
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
    Ended(&'static str),
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
        let connect_by = Instant::now() + CONNECT_WITHIN;
        Self {
            socket,
            shared,
            seat,
            player,
            role,
            connect_by,
            bad_frames: 0,
            peer: None,
        }
    }

    /// Runs to the link's end, and says why it ended.
    async fn run(&mut self) -> anyhow::Result<String> {
        self.say(&FromStreamer::Claimed(Claimed {
            streamer_id: self.shared.name.clone(),
        }))
        .await?;
        loop {
            let over = match self.next().await {
                Next::Socket(None) => Some("the matchmaker closed the link".to_owned()),
                Next::Socket(Some(message)) => {
                    let message = message.context("reading from the matchmaker")?;
                    self.on_message(message).await?
                }
                Next::Ended(reason) => Some(reason.to_owned()),
                Next::Late => Some("the page did not connect within 30 s".to_owned()),
                Next::Peer(happened) => self.on_peer(happened).await?,
            };
            if let Some(why) = over {
                return Ok(why);
            }
        }
    }

    async fn next(&mut self) -> Next {
        let late = self.peer.as_ref().is_none_or(|peer| peer.video.is_none());
        tokio::select! {
            message = self.socket.recv() => Next::Socket(message),
            reason = &mut self.seat.ended => Next::Ended(reason.unwrap_or("the streamer ends")),
            () = tokio::time::sleep_until(self.connect_by), if late => Next::Late,
            happened = happened(&mut self.peer) => Next::Peer(happened),
        }
    }

    async fn on_message(&mut self, message: Message) -> anyhow::Result<Option<String>> {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return Ok(Some("the matchmaker closed the link".to_owned())),
            Message::Binary(_) => bail!("the matchmaker sent a binary message"),
            Message::Ping(_) | Message::Pong(_) => return Ok(None),
        };
        match signalling::parse(&text)? {
            ToStreamer::Claim(_) => bail!("a second claim came on one link"),
            ToStreamer::PlayerConnected(_) if self.peer.is_some() => bail!("the player connected twice"),
            ToStreamer::PlayerConnected(_) => self.begin().await?,
            ToStreamer::Ping(ping) => self.say(&FromStreamer::Pong(ping)).await?,
            ToStreamer::LayerPreference(_) => {}
            ToStreamer::Answer(answer) => {
                let peer = self.peer.as_ref().context("an answer came before an offer")?;
                peer.peer.answer(answer.sdp).await?;
            }
            ToStreamer::IceCandidate(candidate) => {
                let peer = self
                    .peer
                    .as_ref()
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
        let tap = Tap::new(shared.owner.clone(), shared.metrics.clone());
        let (peer, mut events) = Peer::new(shared.stream, with_audio, &shared.media_ips, tap).await?;
        let (sdp, candidates) = peer.offer(&mut events).await?;
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
        .await?;
        for candidate in candidates {
            self.candidate(candidate).await?;
        }
        Ok(())
    }

    async fn candidate(&mut self, candidate: CandidateInit) -> anyhow::Result<()> {
        let candidate = IceCandidate {
            player_id: Some(self.player.to_string()),
            candidate,
        };
        self.say(&FromStreamer::IceCandidate(candidate)).await
    }

    async fn on_peer(&mut self, happened: Happened) -> anyhow::Result<Option<String>> {
        match happened {
            Happened::Event(None | Some(PeerEvent::Failed)) => {
                return Ok(Some("the connection to the page was lost".to_owned()));
            }
            Happened::Event(Some(PeerEvent::Candidate(candidate))) => self.candidate(candidate).await?,
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
            self.shared.owner.keyframe();
        }
    }

    async fn send_video(&mut self, received: Result<Arc<AccessUnit>, RecvError>) -> anyhow::Result<()> {
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
            Frame::SkipAndAsk => self.shared.owner.keyframe(),
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

    async fn on_channel(&mut self, event: Option<DataChannelEvent>) -> anyhow::Result<Option<String>> {
        match event {
            Some(DataChannelEvent::OnOpen) => {
                for frame in data_channel::hello(&self.settings()) {
                    self.send_data(&frame).await;
                }
            }
            Some(DataChannelEvent::OnMessage(message)) => return Ok(self.on_frame(&message.data).await),
            Some(DataChannelEvent::OnClose) | None => {
                return Ok(Some("the page closed its data channel".to_owned()));
            }
            Some(_) => {}
        }
        Ok(None)
    }

    async fn on_frame(&mut self, frame: &[u8]) -> Option<String> {
        match data_channel::parse(frame) {
            Ok(message) => {
                self.shared
                    .metrics
                    .input_events
                    .with_label_values(&[data_channel::kind(&message)])
                    .inc();
                self.obey(message).await;
                None
            }
            Err(error) => {
                self.shared
                    .metrics
                    .bad_messages
                    .with_label_values(&["data_channel"])
                    .inc();
                self.bad_frames += 1;
                tracing::debug!(player = %self.player, %error, "passed over");
                (self.bad_frames >= MOST_BAD_FRAMES)
                    .then(|| format!("too many bad messages, the last: {error}"))
            }
        }
    }

    async fn obey(&mut self, message: FromPage) {
        match message {
            FromPage::IFrameRequest => self.shared.owner.keyframe(),
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
            input => self.shared.input.play(input),
        }
    }

    /// The player steers the bitrate, up to what the streamer was started with.
    fn command(&self, json: &str) {
        let command: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        if let Some(bps) = command
            .get("WebRTC.MaxBitrate")
            .and_then(serde_json::Value::as_u64)
        {
            self.shared
                .media
                .set_bitrate_kbps(u32::try_from(bps / 1000).unwrap_or(u32::MAX));
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

    async fn say(&mut self, message: &FromStreamer) -> anyhow::Result<()> {
        self.socket
            .send(frame(message))
            .await
            .context("writing to the matchmaker")
    }

    async fn end(mut self, why: &str) {
        if self.role == Role::Player {
            self.shared.input.release_all();
            self.shared.media.set_bitrate_kbps(self.shared.media.max_kbps());
        }
        let player_id = self.player.clone();
        let disconnect = DisconnectPlayer {
            player_id,
            reason: Some(why.to_owned()),
        };
        // The matchmaker may be what ended it.
        let _ = self.say(&FromStreamer::DisconnectPlayer(disconnect)).await;
        if let Some(connected) = self.peer.take() {
            connected.peer.close().await;
        }
        close(self.socket, 1000, why).await;
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
