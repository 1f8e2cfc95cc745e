//! One page's WebSocket. Messages are read here, and come to the desk as types; what is too long, too much or not
//! text ends the socket here, and nobody else notices.
//!
//! | close code | why |
//! |---|---|
//! | 1003 | a binary frame |
//! | 1008 | too many messages in too short a time, or too many that were wrong; its link or its user has no more players |
//! | 1009 | a message longer than `MAX_MESSAGE_BYTES` |
//! | 1011 | the streamer ended the player |
//! | 1012 | the matchmaker ends; stock pages connect again, which they never do after 1001 |
//! | 1013 | the page takes its messages too slowly: try again later |

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use penstock_core::ids::{PlayerId, SeatName, SessionId};
use penstock_core::wire::signalling::{Failure, FromPlayer, Notice, ToPlayer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::events::{Event, OUTBOX, ToPage};
use crate::ice::Ice;
use crate::limits::Allowance;
use crate::lobby::{Input, Parting, Return, Want};
use crate::metrics::Metrics;
use crate::players::{Account, Full, Players, Ticket};
use crate::problem::Reason;

/// A page that just connected.
pub struct Page {
    /// What it came for.
    pub want: Want,
    /// Whether it comes back.
    pub back: Return,
    /// Whom it counts for, if it plays.
    pub account: Option<Account>,
    /// The players that count.
    pub players: Players,
    /// Where the desk is.
    pub events: mpsc::Sender<Event>,
    /// What to tell it of ICE servers.
    pub ice: Ice,
    /// The metrics.
    pub metrics: Metrics,
    /// Cancelled when the program ends.
    pub stop: CancellationToken,
}

/// Why a socket ends.
#[derive(Debug)]
enum End {
    /// The page closed it.
    Closed,
    /// It broke.
    Lost,
    /// We close it.
    Close(u16, String),
}

impl End {
    /// What it means for the player's place. Only a page that misbehaves is sent away for good.
    fn parting(&self) -> Parting {
        match self {
            Self::Closed => Parting::Closed,
            Self::Lost | Self::Close(1011 | RESTART | 1013, _) => Parting::Lost,
            Self::Close(..) => Parting::ForGood,
        }
    }
}

impl Page {
    /// Serves the page until its socket ends.
    pub async fn serve(self, mut socket: WebSocket) {
        let Ok(player) = PlayerId::new(random_name()) else {
            return;
        };
        let Ok(session) = SessionId::new(random_name()) else {
            return;
        };
        let config = ToPlayer::Config(self.ice.first_config(&player));
        if send(&mut socket, &config).await.is_err() {
            return;
        }
        let ticket = match self.ticket().await {
            Ok(ticket) => ticket,
            Err(full) => return self.turn_away(socket, full).await,
        };
        let (page, outbox) = mpsc::channel(OUTBOX);
        let joined = Event::Joined {
            player: player.clone(),
            session,
            want: self.want.clone(),
            back: self.back.clone(),
            page,
        };
        if self.events.send(joined).await.is_err() {
            return;
        }
        tracing::debug!(%player, "a page connected");
        let end = self.carry(&mut socket, &player, outbox, ticket.as_ref()).await;
        tracing::debug!(%player, ?end, "a page's socket ends");
        // Before the goodbye, which may take a while: a streamer is freed by it.
        let parting = end.parting();
        let left = Input::Left { player, parting };
        let _ = self.events.send(Event::Input(left)).await;
        if let End::Close(code, reason) = end {
            close(socket, code, &reason).await;
        }
    }

    /// What counts this player. A page that was closed and is opened anew is waited for: its seat is kept for a moment.
    async fn ticket(&self) -> Result<Option<Ticket>, Full> {
        let Some(account) = &self.account else {
            return Ok(None);
        };
        let token = match &self.back {
            Return::Now { token, .. } => Some(token),
            Return::Never | Return::Later => None,
        };
        let since = Instant::now();
        loop {
            let seats = self.seats().await;
            let entered = self.players.enter(account, token, |seat| seats.contains(seat));
            match entered {
                Ok(ticket) => return Ok(Some(ticket)),
                Err(full) if since.elapsed() > WAIT_FOR_A_SEAT || self.stop.is_cancelled() => {
                    return Err(full);
                }
                Err(_) => tokio::time::sleep(LOOK_FOR_A_SEAT).await,
            }
        }
    }

    /// The seats that streamers keep.
    async fn seats(&self) -> BTreeSet<SeatName> {
        let (answer, survey) = oneshot::channel();
        // Where nobody answers the program ends.
        let _ = self.events.send(Event::Survey(answer)).await;
        let streamers = survey.await.map(|survey| survey.streamers).unwrap_or_default();
        streamers
            .into_iter()
            .flat_map(|(_, status)| status.seats)
            .collect()
    }

    /// Pages show why, and don't come back by themselves.
    async fn turn_away(&self, mut socket: WebSocket, full: Full) {
        self.metrics.refused(Reason::Players);
        let message = full.to_string();
        let failed = ToPlayer::SubscribeFailed(Failure {
            message: message.clone(),
        });
        if send(&mut socket, &failed).await.is_ok() {
            close(socket, 1008, &message).await;
        }
    }

    async fn carry(
        &self,
        socket: &mut WebSocket,
        player: &PlayerId,
        mut outbox: mpsc::Receiver<ToPage>,
        ticket: Option<&Ticket>,
    ) -> End {
        let mut allowance = Allowance::new(Instant::now());
        let mut pings = pings();
        let mut heard = Instant::now();
        loop {
            let step = tokio::select! {
                () = self.stop.cancelled() => Err(End::Close(RESTART, "The matchmaker ends.".to_owned())),
                message = outbox.recv() => {
                    note_match(ticket, message.as_ref());
                    deliver(socket, message).await
                }
                frame = socket.recv() => {
                    heard = Instant::now();
                    self.take(socket, player, &mut allowance, frame).await
                }
                _ = pings.tick() => ping(socket, heard).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn take(
        &self,
        socket: &mut WebSocket,
        player: &PlayerId,
        allowance: &mut Allowance,
        frame: Option<Result<Message, axum::Error>>,
    ) -> Result<(), End> {
        let frame = match frame {
            None => return Err(End::Lost),
            Some(Ok(Message::Close(_))) => return Err(End::Closed),
            Some(Err(error)) => return Err(self.unreadable(&error)),
            Some(Ok(frame)) => frame,
        };
        if !allowance.take(Instant::now()) {
            self.metrics.refused(Reason::Messages);
            let why = "Too many messages in too short a time.";
            return Err(End::Close(1008, why.to_owned()));
        }
        let text = match frame {
            Message::Text(text) => text,
            Message::Binary(_) => {
                self.metrics.bad_message();
                return Err(End::Close(1003, "Signalling is text, not binary.".to_owned()));
            }
            _ => return Ok(()),
        };
        match FromPlayer::parse(&text) {
            Ok(message) => {
                let input = Input::Said {
                    player: player.clone(),
                    message,
                };
                let sent = self.events.send(Event::Input(input)).await;
                sent.map_err(|_| End::Close(RESTART, "The matchmaker ends.".to_owned()))
            }
            Err(error) => self.malformed(socket, allowance, &error.to_string()).await,
        }
    }

    /// A mistake is answered with what is wrong; too many of them end the socket.
    async fn malformed(
        &self,
        socket: &mut WebSocket,
        allowance: &mut Allowance,
        why: &str,
    ) -> Result<(), End> {
        self.metrics.bad_message();
        let error = ToPlayer::Error(Failure {
            message: why.to_owned(),
        });
        send(socket, &error).await?;
        if allowance.forgive() {
            return Ok(());
        }
        Err(End::Close(
            1008,
            "Too many messages could not be read.".to_owned(),
        ))
    }

    fn unreadable(&self, error: &axum::Error) -> End {
        use tokio_tungstenite::tungstenite::Error as WsError;
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<WsError>());
        match cause {
            Some(WsError::Capacity(_)) => {
                self.metrics.bad_message();
                End::Close(1009, "A message was too long.".to_owned())
            }
            Some(WsError::Utf8(_)) => {
                self.metrics.bad_message();
                End::Close(1007, "A message was not UTF-8.".to_owned())
            }
            _ => End::Lost,
        }
    }
}

fn note_match(ticket: Option<&Ticket>, message: Option<&ToPage>) {
    if let (Some(ticket), Some(ToPage::Message(message))) = (ticket, message)
        && let ToPlayer::Matchmaker(Notice::Matched { return_token, .. }) = &**message
    {
        ticket.matched(return_token.as_ref());
    }
}

async fn deliver(socket: &mut WebSocket, message: Option<ToPage>) -> Result<(), End> {
    match message {
        Some(ToPage::Message(message)) => send(socket, &message).await,
        Some(ToPage::Close { code, reason }) => Err(End::Close(code, reason)),
        None => Err(End::Close(
            1013,
            "The page takes its messages too slowly.".to_owned(),
        )),
    }
}

async fn ping(socket: &mut WebSocket, heard: Instant) -> Result<(), End> {
    if heard.elapsed() > SILENCE {
        return Err(End::Lost);
    }
    write(socket, Message::Ping(Vec::new().into())).await
}

async fn send(socket: &mut WebSocket, message: &ToPlayer) -> Result<(), End> {
    // These types always are JSON: text keys, and no map with other ones.
    let Ok(text) = serde_json::to_string(message) else {
        return Ok(());
    };
    write(socket, Message::text(text)).await
}

async fn write(socket: &mut WebSocket, message: Message) -> Result<(), End> {
    match timeout(SEND_TIMEOUT, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Lost),
    }
}

/// Says why, and stays a moment: if the connection ended with bytes of the page unread, the page would see a reset
/// in place of the reason.
async fn close(mut socket: WebSocket, code: u16, reason: &str) {
    let reason = shorten(reason).into();
    if write(&mut socket, Message::Close(Some(CloseFrame { code, reason })))
        .await
        .is_err()
    {
        return;
    }
    let read_on = async { while let Some(Ok(_)) = socket.recv().await {} };
    let _ = timeout(LINGER, read_on).await;
    if code == 1009 {
        // The rest of the long message is in the way of the page's own goodbye.
        tokio::time::sleep(LINGER).await;
    }
}

/// A close frame takes 123 bytes of reason (RFC 6455, section 5.5).
fn shorten(reason: &str) -> String {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

fn pings() -> Interval {
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    pings
}

/// 128 random bits, safe in a URL: a session's name in a link is what allows to watch it.
pub(crate) fn random_name() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>())
}

/// "Service restart": another replica, or the next process, is there to connect to.
const RESTART: u16 = 1012;
const PING_EVERY: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(40);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const LINGER: Duration = Duration::from_millis(500);
/// Streamers keep the seat of a page that closed its socket for five seconds.
const WAIT_FOR_A_SEAT: Duration = Duration::from_secs(7);
const LOOK_FOR_A_SEAT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let long = "é".repeat(100);
        assert_eq!(shorten(&long), "é".repeat(61));
    }

    #[test]
    fn names_are_unlike_and_fit_into_a_link() {
        let name = random_name();
        assert_eq!(name.len(), 22);
        assert_ne!(name, random_name());
        assert!(SessionId::new(name).is_ok());
    }
}
