use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use tokio::net::{TcpListener, UdpSocket};
use webrtc::data_channel::DataChannelEvent;
use webrtc::peer_connection::RTCSessionDescription;

use super::*;
use crate::metrics::Metrics;
use crate::owner::OwnerHandle;
use crate::pace::KeyframeFor;

#[test]
fn the_level_follows_the_stream() {
    let level = |size: &str| h264_level(size.parse().unwrap());
    assert_eq!(level("720p30"), 31);
    assert_eq!(level("720p60"), 32);
    assert_eq!(level("1080p30"), 40);
    assert_eq!(level("1080p60"), 42);
    assert_eq!(level("2160p60"), 52);
    assert_eq!(level("8192x8192@240"), 62);
}

#[tokio::test]
async fn no_tcp_connection_is_made_for_a_page() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let passive = format!("candidate:1 1 tcp 1518280447 127.0.0.1 {port} typ host tcptype passive");
    let (mut peer, mut events) = peer().await;
    let page = Page::new().await;
    let answer = page.answer(&peer, &mut events).await;
    peer.answer(naming(&answer, &passive)).await.unwrap();
    for _ in 0..50 {
        let _ = peer.candidate(trickled(&passive)).await;
    }
    let accepted = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await;
    assert!(accepted.is_err(), "{accepted:?}");
    peer.close().await;
}

#[tokio::test]
async fn few_of_the_addresses_that_a_page_names_are_tried() {
    let sink = UdpSocket::bind(("0.0.0.0", 0)).await.unwrap();
    let port = sink.local_addr().unwrap().port();
    let candidate = |host: u32| format!("candidate:{host} 1 udp 2130706431 127.0.1.{host} {port} typ host");
    let (mut peer, mut events) = peer().await;
    let page = Page::new().await;
    let mut answer = page.answer(&peer, &mut events).await;
    // Where the page really is would end the search.
    answer = answer
        .lines()
        .filter(|line| !line.starts_with("a=candidate:"))
        .map(|line| format!("{line}\r\n"))
        .collect();
    for host in 1..=100 {
        answer = naming(&answer, &candidate(host));
    }
    page.connection.close().await.unwrap();
    peer.answer(answer).await.unwrap();
    for host in 101..=200 {
        let _ = peer.candidate(trickled(&candidate(host))).await;
    }
    let mut packets = 0;
    let end = Instant::now() + Duration::from_secs(1);
    let mut packet = [0; 2048];
    while let Ok(received) = tokio::time::timeout_at(end.into(), sink.recv_from(&mut packet)).await {
        received.unwrap();
        packets += 1;
    }
    // Fifty a second and address.
    assert!((20..=1_100).contains(&packets), "{packets} packets in a second");
    peer.close().await;
}

#[tokio::test]
async fn no_socket_for_multicast_dns_is_opened() {
    let (peer, _events) = peer().await;
    let mut own = HashSet::new();
    for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if let Ok(to) = std::fs::read_link(fd.path()) {
            own.insert(to.to_string_lossy().into_owned());
        }
    }
    let mut ours = 0;
    for table in ["/proc/self/net/udp", "/proc/self/net/udp6"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if own.contains(&format!("socket:[{}]", fields[9])) {
                ours += 1;
                assert!(!fields[1].ends_with(":14E9"), "{line}");
            }
        }
    }
    assert!(ours > 0, "the media socket is not seen");
    peer.close().await;
}

#[tokio::test]
async fn a_page_that_opens_a_data_channel_is_told_of() {
    let (peer, mut events, page) = connected().await;
    let _channel = page.connection.create_data_channel("mine", None).await.unwrap();
    let told = async {
        loop {
            match events.recv().await {
                Some(PeerEvent::ForeignChannel) => return,
                other => assert!(other.is_some()),
            }
        }
    };
    tokio::time::timeout(SOON, told).await.expect("nobody was told");
    peer.close().await;
}

#[tokio::test]
async fn what_a_page_leaves_unread_is_bounded() {
    let (peer, _events, page) = connected().await;
    let opened = async { while !matches!(peer.channel.poll().await, Some(DataChannelEvent::OnOpen)) {} };
    tokio::time::timeout(SOON, opened).await.expect("no data channel");
    let mut most = 0;
    for _ in 0..200 {
        peer.send_data(&[7; 60_000]).await;
        most = most.max(peer.channel.outstanding_bytes().await.unwrap());
    }
    assert!((1..=SEND_BUFFER_BYTES).contains(&most), "{most}");
    page.connection.close().await.unwrap();
    peer.close().await;
}

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SOON: Duration = Duration::from_secs(10);

async fn peer() -> (Peer, UnboundedReceiver<PeerEvent>) {
    let tap = Tap::new(
        OwnerHandle::nowhere(),
        KeyframeFor::Viewer,
        Metrics::new().unwrap(),
    );
    let size = "720p30".parse().unwrap();
    Peer::new(size, false, &[LOCALHOST.into()], tap).await.unwrap()
}

async fn connected() -> (Peer, UnboundedReceiver<PeerEvent>, Page) {
    let (mut peer, mut events) = peer().await;
    let page = Page::new().await;
    let answer = page.answer(&peer, &mut events).await;
    peer.answer(answer).await.unwrap();
    let connected = async { while !matches!(events.recv().await, Some(PeerEvent::Connected)) {} };
    tokio::time::timeout(SOON, connected)
        .await
        .expect("no connection");
    (peer, events, page)
}

/// What a browser would do.
struct Page {
    connection: Box<dyn PeerConnection>,
    gathered: tokio::sync::Mutex<UnboundedReceiver<PeerEvent>>,
}

impl Page {
    async fn new() -> Self {
        let (events, gathered) = unbounded_channel();
        let mut engine = MediaEngine::default();
        engine.register_default_codecs().unwrap();
        let settings = SettingEngineBuilder::new()
            .with_include_loopback_candidate(true)
            .with_multicast_dns_mode(MulticastDnsMode::Disabled)
            .build();
        let connection = PeerConnectionBuilder::new()
            .with_media_engine(engine)
            .with_setting_engine(settings)
            .with_handler(Arc::new(Handler(events)))
            .with_udp_addrs(vec![SocketAddr::new(LOCALHOST.into(), 0)])
            .build()
            .await
            .unwrap();
        Self {
            connection: Box::new(connection),
            gathered: tokio::sync::Mutex::new(gathered),
        }
    }

    async fn answer(&self, peer: &Peer, events: &mut UnboundedReceiver<PeerEvent>) -> String {
        let (offer, _) = peer.offer(events).await.unwrap();
        let offer = RTCSessionDescription::offer(offer).unwrap();
        self.connection.set_remote_description(offer).await.unwrap();
        let answer = self.connection.create_answer(None).await.unwrap();
        self.connection.set_local_description(answer).await.unwrap();
        let gather = async {
            let mut events = self.gathered.lock().await;
            while !matches!(events.recv().await, Some(PeerEvent::Gathered)) {}
        };
        tokio::time::timeout(SOON, gather).await.expect("no addresses");
        self.connection.local_description().await.unwrap().sdp
    }
}

/// `answer` with another candidate in its first description.
fn naming(answer: &str, candidate: &str) -> String {
    answer.replacen("a=mid:", &format!("a={candidate}\r\na=mid:"), 1)
}

fn trickled(candidate: &str) -> CandidateInit {
    CandidateInit {
        candidate: candidate.to_owned(),
        sdp_mid: Some("0".to_owned()),
        sdp_m_line_index: Some(0),
        username_fragment: None,
    }
}
