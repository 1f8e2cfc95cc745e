//! One browser's peer connection: video, sound, and the data channel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use rtc::ice::mdns::MulticastDnsMode;
use rtc::interceptor::Slot;
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_OPUS, MIME_TYPE_RTX};
use rtc::rtp;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpHeaderExtensionCapability, RTCRtpRtxParameters, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use webrtc::data_channel::DataChannel;
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
    RTCIceCandidateInit, RTCIceGatheringState, RTCPeerConnectionIceEvent, RTCPeerConnectionState, Registry,
    SettingEngineBuilder, configure_nack, configure_rtcp_reports, configure_twcc_sender_only,
};

use penstock_core::units::StreamSize;
use penstock_core::wire::signalling::CandidateInit;

use crate::candidates::Candidates;
use crate::media::{AccessUnit, AudioFrame};
use crate::tap::{PLAYOUT_DELAY_URI, Tap};

/// What happens on a peer connection.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// An address of ours, for the browser.
    Candidate(CandidateInit),
    /// All our addresses are known.
    Gathered,
    /// Media flows from now on.
    Connected,
    /// The browser can't be reached (any more).
    Failed,
    /// The page opened a data channel of its own.
    ForeignChannel,
}

/// A browser's end of a session.
pub(crate) struct Peer {
    connection: Box<dyn PeerConnection>,
    video: Track,
    audio: Option<Track>,
    candidates: Candidates,
    /// Carries input and the page's messages.
    pub(crate) channel: Arc<dyn DataChannel>,
}

impl Peer {
    /// Makes a peer connection that sends a stream of `size` from `media_ips`, with `tap` in its packet chain.
    pub(crate) async fn new(
        size: StreamSize,
        with_audio: bool,
        media_ips: &[IpAddr],
        tap: Tap,
    ) -> anyhow::Result<(Self, UnboundedReceiver<PeerEvent>)> {
        let (events, received) = unbounded_channel();
        let addresses: Vec<_> = media_ips.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        let connection = build(size, addresses, events, tap)
            .await
            .with_context(|| format!("opening media sockets on {media_ips:?}"))?;
        match fill(&connection, size, with_audio).await {
            Ok((video, audio, channel)) => {
                let peer = Self {
                    connection: Box::new(connection),
                    video,
                    audio,
                    candidates: Candidates::new(media_ips),
                    channel,
                };
                Ok((peer, received))
            }
            Err(error) => {
                // Its task and sockets outlive one that is only dropped.
                let _ = connection.close().await;
                Err(error)
            }
        }
    }

    /// The offer, which from then on is in force, and our addresses. The offer names the addresses too: a stock page
    /// that is told to use a relay passes over those that come by themselves.
    pub(crate) async fn offer(
        &self,
        events: &mut UnboundedReceiver<PeerEvent>,
    ) -> anyhow::Result<(String, Vec<CandidateInit>)> {
        let offer = self
            .connection
            .create_offer(None)
            .await
            .context("making an offer")?;
        self.connection
            .set_local_description(offer)
            .await
            .context("applying our offer")?;
        let mut candidates = Vec::new();
        let gather = async {
            // Nothing but addresses happens before the page has the offer.
            while let Some(PeerEvent::Candidate(candidate)) = events.recv().await {
                candidates.push(candidate);
            }
        };
        // Our own addresses are there at once; where one is late, the page gets it by itself.
        let _ = tokio::time::timeout(GATHER_WITHIN, gather).await;
        let offer = self
            .connection
            .local_description()
            .await
            .context("our offer is gone")?;
        Ok((offer.sdp, candidates))
    }

    /// Takes the browser's answer, but for addresses that are not to be tried.
    pub(crate) async fn answer(&mut self, sdp: String) -> anyhow::Result<()> {
        let answer = self.candidates.strip(sdp).context("reading the page's answer")?;
        self.connection
            .set_remote_description(answer)
            .await
            .context("applying the page's answer")
    }

    /// Takes one of the browser's addresses, if it is to be tried.
    pub(crate) async fn candidate(&mut self, candidate: CandidateInit) -> anyhow::Result<()> {
        self.candidates.admit(&candidate.candidate)?;
        let init = RTCIceCandidateInit {
            candidate: candidate.candidate,
            sdp_mid: candidate.sdp_mid,
            sdp_mline_index: candidate.sdp_m_line_index,
            username_fragment: candidate.username_fragment,
            url: None,
        };
        self.connection
            .add_ice_candidate(init)
            .await
            .context("taking the page's ICE candidate")
    }

    /// Sends one picture.
    pub(crate) async fn send_video(&mut self, unit: &AccessUnit) -> anyhow::Result<()> {
        self.video.send(&unit.payloads, unit.timestamp).await
    }

    /// Sends 10 ms of sound.
    pub(crate) async fn send_audio(&mut self, frame: &AudioFrame) -> anyhow::Result<()> {
        match &mut self.audio {
            Some(track) => {
                track
                    .send(std::slice::from_ref(&frame.payload), frame.timestamp)
                    .await
            }
            None => Ok(()),
        }
    }

    /// Sends a frame on the data channel; one that does not fit is lost.
    pub(crate) async fn send_data(&self, frame: &[u8]) {
        if let Err(error) = self.channel.try_send(BytesMut::from(frame)).await {
            tracing::debug!(%error, "a data-channel frame was not sent");
        }
    }

    /// Ends the connection.
    pub(crate) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "closing a peer connection");
        }
    }
}

async fn fill(
    connection: &impl PeerConnection,
    size: StreamSize,
    with_audio: bool,
) -> anyhow::Result<(Track, Option<Track>, Arc<dyn DataChannel>)> {
    let video = Track::add(connection, video_track(size), VIDEO_PAYLOAD_TYPE).await?;
    let audio = match with_audio {
        true => Some(Track::add(connection, audio_track(), AUDIO_PAYLOAD_TYPE).await?),
        false => None,
    };
    let channel = connection
        .create_data_channel("penstock", None)
        .await
        .context("adding the data channel")?;
    Ok((video, audio, channel))
}

/// How long an offer waits for our addresses.
const GATHER_WITHIN: Duration = Duration::from_millis(300);

/// What a page may leave unread of the data channel. All that a page is told of itself takes a few kilobytes; the rest
/// is answers.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// One of our tracks on one peer connection, with the RTP state that belongs to it.
struct Track {
    track: Arc<TrackLocalStaticRTP>,
    payload_type: u8,
    ssrc: u32,
    sequence: u16,
}

impl Track {
    async fn add(
        connection: &impl PeerConnection,
        track: MediaStreamTrack,
        payload_type: u8,
    ) -> anyhow::Result<Self> {
        let ssrc = track.ssrcs().next().context("a track without an SSRC")?;
        let track = Arc::new(TrackLocalStaticRTP::new(track));
        let init = RTCRtpTransceiverInit {
            direction: RTCRtpTransceiverDirection::Sendonly,
            streams: vec![],
            send_encodings: vec![],
        };
        let local = Arc::clone(&track) as Arc<dyn TrackLocal>;
        connection
            .add_transceiver_from_track(local, Some(init))
            .await
            .context("adding a track")?;
        Ok(Self {
            track,
            payload_type,
            ssrc,
            sequence: rand::random(),
        })
    }

    async fn send(&mut self, payloads: &[Bytes], timestamp: u32) -> anyhow::Result<()> {
        let last = payloads.len().saturating_sub(1);
        for (i, payload) in payloads.iter().enumerate() {
            let packet = rtp::Packet {
                header: rtp::Header {
                    version: 2,
                    marker: i == last,
                    payload_type: self.payload_type,
                    sequence_number: self.sequence,
                    timestamp,
                    ssrc: self.ssrc,
                    ..Default::default()
                },
                payload: payload.clone(),
            };
            self.sequence = self.sequence.wrapping_add(1);
            self.track.write_rtp(packet).await.context("sending media")?;
        }
        Ok(())
    }
}

/// Hands on what happens; runs within the connection's own task, so it never waits.
struct Handler(UnboundedSender<PeerEvent>);

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        match event.candidate.to_json() {
            Ok(candidate) => self.tell(PeerEvent::Candidate(CandidateInit {
                candidate: candidate.candidate,
                // All media is bundled on the first description.
                sdp_mid: Some("0".to_owned()),
                sdp_m_line_index: Some(0),
                username_fragment: candidate.username_fragment,
            })),
            Err(error) => tracing::warn!(%error, "an ICE candidate of ours can't be written"),
        }
    }

    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.tell(PeerEvent::Gathered);
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        match state {
            RTCPeerConnectionState::Connected => self.tell(PeerEvent::Connected),
            RTCPeerConnectionState::Failed | RTCPeerConnectionState::Closed => self.tell(PeerEvent::Failed),
            _ => {}
        }
    }

    async fn on_data_channel(&self, _channel: Arc<dyn DataChannel>) {
        self.tell(PeerEvent::ForeignChannel);
    }
}

impl Handler {
    fn tell(&self, event: PeerEvent) {
        // The receiver goes away just before the connection does.
        let _ = self.0.send(event);
    }
}

/// How often each pair of addresses is tried until one works. A browser's own address, which it hides, is only learnt
/// from its first check, and then waits for our next one, and once more to be nominated. RFC 8445 (section 14.2)
/// allows 5 ms.
const ICE_CHECK_EVERY: Duration = Duration::from_millis(20);
/// After so many a pair is given up: 8 s, the time after which ICE fails as a whole.
const ICE_CHECKS: u16 = 400;

async fn build(
    size: StreamSize,
    addresses: Vec<SocketAddr>,
    events: UnboundedSender<PeerEvent>,
    tap: Tap,
) -> webrtc::error::Result<impl PeerConnection + use<>> {
    let mut engine = media_engine(size)?;
    let registry = configure_nack(Registry::new(), &mut engine);
    let registry = configure_rtcp_reports(registry);
    let registry = configure_twcc_sender_only(registry, &mut engine)?;
    let registry = registry.with(Slot::Pacer, tap);
    let settings = SettingEngineBuilder::new()
        // Nobody is asked where a page's `….local` name is (see `candidates.rs`), and a machine without a route for
        // multicast has no socket to ask with.
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_include_loopback_candidate(true)
        .with_ice_timeouts(
            Some(Duration::from_secs(4)),
            Some(Duration::from_secs(8)),
            Some(Duration::from_secs(2)),
        )
        .with_ice_connection_attempts(Some(ICE_CHECK_EVERY), Some(ICE_CHECKS))
        .with_host_acceptance_min_wait(Some(Duration::ZERO))
        .with_srflx_acceptance_min_wait(Some(Duration::ZERO))
        .with_prflx_acceptance_min_wait(Some(Duration::ZERO))
        // A direct path is preferred where there is one, and found within a round trip.
        .with_relay_acceptance_min_wait(Some(Duration::from_millis(100)))
        .build();
    PeerConnectionBuilder::new()
        .with_configuration(RTCConfigurationBuilder::new().build())
        .with_media_engine(engine)
        .with_setting_engine(settings)
        .with_interceptor_registry(registry)
        .with_handler(Arc::new(Handler(events)))
        .with_udp_addrs(addresses)
        .with_data_channel_send_buffer_limit(SEND_BUFFER_BYTES)
        .build()
        .await
}

/// Offers only what the slice encodes: the order of a longer list is not kept by stock pages.
fn media_engine(size: StreamSize) -> webrtc::error::Result<MediaEngine> {
    let mut engine = MediaEngine::default();
    for codec in [
        codec(h264(size), VIDEO_PAYLOAD_TYPE),
        codec(rtx_of(VIDEO_PAYLOAD_TYPE), VIDEO_PAYLOAD_TYPE + 1),
    ] {
        engine.register_codec(codec, RtpCodecKind::Video)?;
    }
    engine.register_codec(codec(opus(), AUDIO_PAYLOAD_TYPE), RtpCodecKind::Audio)?;
    engine.register_feedback(feedback("ccm", "fir"), RtpCodecKind::Video);
    let playout_delay = RTCRtpHeaderExtensionCapability {
        uri: PLAYOUT_DELAY_URI.to_owned(),
    };
    engine.register_header_extension(playout_delay, RtpCodecKind::Video, None)?;
    Ok(engine)
}

const VIDEO_PAYLOAD_TYPE: u8 = 102;
const AUDIO_PAYLOAD_TYPE: u8 = 111;

fn codec(rtp_codec: RTCRtpCodec, payload_type: u8) -> RTCRtpCodecParameters {
    RTCRtpCodecParameters {
        rtp_codec,
        payload_type,
    }
}

/// Constrained Baseline of the level that `size` needs, packets of several NAL units allowed (RFC 6184).
fn h264(size: StreamSize) -> RTCRtpCodec {
    let level = h264_level(size);
    RTCRtpCodec {
        mime_type: MIME_TYPE_H264.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: format!(
            "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e0{level:02x}"
        ),
        rtcp_feedback: vec![],
    }
}

/// The lowest H.264 level, times ten, that takes a stream (H.264, table A-1: macroblocks a second and a frame).
fn h264_level(size: StreamSize) -> u8 {
    let frame = u64::from(size.width().div_ceil(16)) * u64::from(size.height().div_ceil(16));
    let rate = frame * u64::from(size.fps());
    LEVELS
        .iter()
        .find(|(_, most_rate, most_frame)| rate <= *most_rate && frame <= *most_frame)
        .map_or(62, |l| l.0)
}

const LEVELS: [(u8, u64, u64); 8] = [
    (31, 108_000, 3_600),
    (32, 216_000, 5_120),
    (40, 245_760, 8_192),
    (42, 522_240, 8_704),
    (50, 589_824, 22_080),
    (51, 983_040, 36_864),
    (52, 2_073_600, 36_864),
    (60, 4_177_920, 139_264),
];

/// Retransmissions in a stream of their own (RFC 4588).
fn rtx_of(payload_type: u8) -> RTCRtpCodec {
    RTCRtpCodec {
        mime_type: MIME_TYPE_RTX.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: format!("apt={payload_type}"),
        rtcp_feedback: vec![],
    }
}

fn opus() -> RTCRtpCodec {
    RTCRtpCodec {
        mime_type: MIME_TYPE_OPUS.to_owned(),
        clock_rate: 48_000,
        channels: 2,
        sdp_fmtp_line: "minptime=10;useinbandfec=1;stereo=1".to_owned(),
        rtcp_feedback: vec![],
    }
}

fn feedback(typ: &str, parameter: &str) -> RTCPFeedback {
    RTCPFeedback {
        typ: typ.to_owned(),
        parameter: parameter.to_owned(),
    }
}

/// Sound is in a media stream of its own: in one with the picture, lip-sync would hold the picture back.
fn audio_track() -> MediaStreamTrack {
    track("penstock-sound", RtpCodecKind::Audio, opus(), None)
}

fn video_track(size: StreamSize) -> MediaStreamTrack {
    let retransmissions = RTCRtpRtxParameters { ssrc: rand::random() };
    track(
        "penstock-picture",
        RtpCodecKind::Video,
        h264(size),
        Some(retransmissions),
    )
}

fn track(
    name: &str,
    kind: RtpCodecKind,
    codec: RTCRtpCodec,
    rtx: Option<RTCRtpRtxParameters>,
) -> MediaStreamTrack {
    let coding = RTCRtpCodingParameters {
        ssrc: Some(rand::random()),
        rtx,
        ..Default::default()
    };
    let encoding = RTCRtpEncodingParameters {
        rtp_coding_parameters: coding,
        codec,
        ..Default::default()
    };
    MediaStreamTrack::new(
        name.to_owned(),
        name.to_owned(),
        name.to_owned(),
        kind,
        vec![encoding],
    )
}

#[cfg(test)]
mod tests;
