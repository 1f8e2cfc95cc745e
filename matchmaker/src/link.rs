//! One WebSocket to a streamer, for one player: `penstock_core::wire::link` as bytes.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use penstock_core::wire::link::{Claim, FromStreamer, ToStreamer};
use penstock_core::wire::signalling::{MAX_MESSAGE_BYTES, parse};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::events::Event;
use crate::lobby::{Input, LinkId};

/// A link to open.
#[derive(Debug)]
pub struct Dial {
    /// Its name.
    pub link: LinkId,
    /// Where the streamer listens.
    pub address: SocketAddr,
    /// The first message.
    pub claim: Claim,
}

type Socket = WebSocketStream<TcpStream>;

impl Dial {
    /// Opens the link, and carries messages both ways until either side ends it. Then says that it is closed.
    pub async fn run(self, outbox: mpsc::Receiver<ToStreamer>, events: mpsc::Sender<Event>) {
        let (link, address) = (self.link, self.address);
        let ended = match timeout(DIAL_TIMEOUT, connect(address)).await {
            Ok(Ok(socket)) => self.carry(socket, outbox, &events).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LinkError::Silent(DIAL_TIMEOUT)),
        };
        if let Err(error) = ended {
            tracing::warn!(%address, link = link.0, %error, "the link to a streamer failed");
        }
        // Only at the program's end is there nobody to tell.
        let _ = events.send(Event::Input(Input::LinkClosed { link })).await;
    }

    async fn carry(
        self,
        mut socket: Socket,
        mut outbox: mpsc::Receiver<ToStreamer>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), LinkError> {
        send(&mut socket, &ToStreamer::Claim(self.claim)).await?;
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = outbox.recv() => match message {
                    Some(message) => send(&mut socket, &message).await?,
                    None => {
                        hang_up(socket).await;
                        return Ok(());
                    }
                },
                frame = socket.next() => {
                    heard = Instant::now();
                    match frame.transpose()? {
                        None | Some(Message::Close(_)) => return Ok(()),
                        Some(Message::Text(text)) => {
                            let message: FromStreamer = parse(&text)?;
                            let input = Input::LinkSaid { link: self.link, message };
                            events.send(Event::Input(input)).await.map_err(|_| LinkError::Ending)?;
                        }
                        Some(_) => {}
                    }
                }
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(LinkError::Silent(SILENCE));
                    }
                    flush(&mut socket, Message::Ping(Vec::new().into())).await?;
                }
            }
        }
    }
}

async fn connect(address: SocketAddr) -> Result<Socket, LinkError> {
    let stream = TcpStream::connect(address).await.map_err(WsError::Io)?;
    stream.set_nodelay(true).map_err(WsError::Io)?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .read_buffer_size(READ_BUFFER_BYTES);
    let request = format!("ws://{address}/session");
    let (socket, _) = client_async_with_config(request, stream, Some(limits)).await?;
    Ok(socket)
}

async fn send(socket: &mut Socket, message: &ToStreamer) -> Result<(), LinkError> {
    let text = serde_json::to_string(message)?;
    flush(socket, Message::text(text)).await
}

async fn flush(socket: &mut Socket, message: Message) -> Result<(), LinkError> {
    let sent = timeout(SEND_TIMEOUT, socket.send(message)).await;
    Ok(sent.map_err(|_| LinkError::Silent(SEND_TIMEOUT))??)
}

/// Closes politely, so that the streamer knows at once that its player is gone. How it takes that no longer matters.
async fn hang_up(mut socket: Socket) {
    let close = async {
        let _ = socket.close(None).await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(CLOSE_TIMEOUT, close).await;
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("its WebSocket: {0}")]
    Socket(#[from] WsError),
    #[error("a message from it: {0}")]
    Message(#[from] penstock_core::wire::signalling::BadMessage),
    #[error("a message to it: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the matchmaker ends")]
    Ending,
}

/// An offer fits into two of them; by default there would be 128 KiB for each link.
const READ_BUFFER_BYTES: usize = 4 << 10;
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const PING_EVERY: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(40);
