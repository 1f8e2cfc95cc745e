//! Stories of the lobby, with the clock in hand. How they begin and what is seen of them is here.

mod playing;
mod queue;
mod returning;
mod viewers;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SessionId, StreamerId};
use penstock_core::wire::link::{Claimed, FromStreamer, Refused, RefusedReason, ToStreamer};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::{
    Answer, CandidateInit, EndKind, FromPlayer, IceCandidate, Notice, Offer, Ping, Subscribe, ToPlayer,
};
use penstock_core::wire::status::{StreamerState, StreamerStatus};

use super::types::fits_asked;
use super::*;

struct Story {
    lobby: Lobby,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        Self {
            lobby: Lobby::default(),
            now: Instant::now(),
        }
    }

    /// Ann asks for the first streamer.
    fn claiming() -> (Self, LinkId) {
        let mut story = Self::new();
        story.streamer(1, StreamerState::Free);
        let link = dialled(&story.join("ann"));
        (story, link)
    }

    /// Ann has the first streamer.
    fn matched() -> (Self, LinkId) {
        let (mut story, link) = Self::claiming();
        story.claimed(link, "s1");
        (story, link)
    }

    /// Ann has the first streamer, and her page has subscribed to it.
    fn playing() -> (Self, LinkId) {
        let (mut story, link) = Self::claiming();
        story.says("ann", FromPlayer::ListStreamers);
        story.claimed(link, "s1");
        story.says("ann", subscribe("s1"));
        (story, link)
    }

    fn handle(&mut self, input: Input) -> Vec<Command> {
        self.lobby.handle(self.now, input)
    }

    fn tick(&mut self, later_ms: u64) -> Vec<Command> {
        self.now += Duration::from_millis(later_ms);
        self.handle(Input::Tick)
    }

    fn join(&mut self, name: &str) -> Vec<Command> {
        let session = SessionId::new(format!("session-of-{name}")).unwrap();
        self.handle(Input::Joined {
            player: id(name),
            session,
            want: Want::Play(Wish::default()),
            back: Return::Later,
        })
    }

    /// Somebody comes who asks for this application.
    fn ask(&mut self, name: &str, application: &str) -> Vec<Command> {
        let session = SessionId::new(format!("session-of-{name}")).unwrap();
        self.handle(Input::Joined {
            player: id(name),
            session,
            want: Want::Play(Wish {
                application: application.parse().ok(),
                ..Wish::default()
            }),
            back: Return::Later,
        })
    }

    /// A free streamer of this application.
    fn streams(&mut self, number: u16, application: &str) -> Vec<Command> {
        let mut status = status(number, StreamerState::Free, None);
        status.application = application.parse().ok();
        self.handle(Input::Status {
            address: address(number),
            status,
        })
    }

    fn watch(&mut self, name: &str, session: &str) -> Vec<Command> {
        let want = Want::Watch(session.to_owned());
        let session = SessionId::new("unused").unwrap();
        self.handle(Input::Joined {
            player: id(name),
            session,
            want,
            back: Return::Later,
        })
    }

    fn leave(&mut self, name: &str) -> Vec<Command> {
        self.leave_by(name, Parting::Closed)
    }

    fn leave_by(&mut self, name: &str, parting: Parting) -> Vec<Command> {
        self.handle(Input::Left {
            player: id(name),
            parting,
        })
    }

    fn come_back(&mut self, name: &str, live: bool) -> Vec<Command> {
        let session = SessionId::new("unused").unwrap();
        self.handle(Input::Joined {
            player: id(name),
            session,
            want: Want::Play(Wish::default()),
            back: Return::Now { token: token(), live },
        })
    }

    /// A streamer that has the seat of [`token`].
    fn streamer_with_seat(&mut self, number: u16) -> Vec<Command> {
        let mut status = status(number, StreamerState::Busy, Some("show"));
        status.seats = vec![token().seat().clone()];
        self.handle(Input::Status {
            address: address(number),
            status,
        })
    }

    fn says(&mut self, name: &str, message: FromPlayer) -> Vec<Command> {
        self.handle(Input::Said {
            player: id(name),
            message,
        })
    }

    fn hear(&mut self, link: LinkId, message: FromStreamer) -> Vec<Command> {
        self.handle(Input::LinkSaid { link, message })
    }

    fn claimed(&mut self, link: LinkId, name: &str) -> Vec<Command> {
        self.claimed_as(link, name, false)
    }

    fn claimed_as(&mut self, link: LinkId, name: &str, resumed: bool) -> Vec<Command> {
        let claimed = Claimed {
            streamer_id: StreamerId::new(name).unwrap(),
            session_id: SessionId::new("show").unwrap(),
            return_token: Some(token()),
            resumed,
            shared: false,
        };
        self.hear(link, FromStreamer::Claimed(claimed))
    }

    fn refused(&mut self, link: LinkId, reason: RefusedReason) -> Vec<Command> {
        self.hear(link, FromStreamer::Refused(Refused { reason }))
    }

    fn offers(&mut self, link: LinkId) -> Vec<Command> {
        let offer = Offer {
            player_id: id("whoever"),
            sdp: "v=0".into(),
        };
        self.hear(link, FromStreamer::Offer(offer))
    }

    fn streamer(&mut self, number: u16, state: StreamerState) -> Vec<Command> {
        let status = status(number, state, None);
        self.handle(Input::Status {
            address: address(number),
            status,
        })
    }

    fn streamer_with(&mut self, number: u16, session: &str) -> Vec<Command> {
        let status = status(number, StreamerState::Busy, Some(session));
        self.handle(Input::Status {
            address: address(number),
            status,
        })
    }
}

fn token() -> ReturnToken {
    ReturnToken::new("seat", "secret").unwrap()
}

pub(in crate::lobby) fn id(name: &str) -> PlayerId {
    PlayerId::new(name).unwrap()
}

pub(in crate::lobby) fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], number))
}

pub(in crate::lobby) fn status(number: u16, state: StreamerState, session: Option<&str>) -> StreamerStatus {
    let mut text = serde_json::json!({
        "streamerId": format!("s{number}"), "state": state, "players": 0, "viewers": 0,
        "stream": {"width": 1280, "height": 720, "fps": 30}, "units": 3,
    });
    if let Some(session) = session {
        text["sessionId"] = session.into();
    }
    serde_json::from_value(text).unwrap()
}

fn subscribe(name: &str) -> FromPlayer {
    FromPlayer::Subscribe(Subscribe {
        streamer_id: name.into(),
    })
}

fn answer() -> FromPlayer {
    FromPlayer::Answer(Answer {
        player_id: Some("someone-else".into()),
        sdp: "v=0".into(),
        min_bitrate_bps: None,
        max_bitrate_bps: None,
    })
}

fn candidate() -> FromPlayer {
    FromPlayer::IceCandidate(IceCandidate {
        player_id: Some("someone-else".into()),
        candidate: CandidateInit {
            candidate: String::new(),
            sdp_mid: None,
            sdp_m_line_index: None,
            username_fragment: None,
        },
    })
}

fn dialled(commands: &[Command]) -> LinkId {
    let links: Vec<_> = commands
        .iter()
        .filter_map(|command| match command {
            Command::Dial { link, .. } => Some(*link),
            _ => None,
        })
        .collect();
    assert_eq!(links.len(), 1, "{commands:?}");
    links[0]
}

fn claims(commands: &[Command]) -> Vec<&str> {
    let claims = commands.iter().filter_map(|command| match command {
        Command::Dial { claim, .. } => Some(claim.player_id.as_str()),
        _ => None,
    });
    claims.collect()
}

fn told(commands: &[Command]) -> Vec<ToStreamer> {
    let told = commands.iter().filter_map(|command| match command {
        Command::Tell { message, .. } => Some(message.clone()),
        _ => None,
    });
    told.collect()
}

/// Whether each goodbye is for good.
fn goodbyes(commands: &[Command]) -> Vec<bool> {
    let said = told(commands).into_iter().filter_map(|message| match message {
        ToStreamer::Goodbye(goodbye) => Some(goodbye.for_good),
        _ => None,
    });
    said.collect()
}

/// What a player is sent, in a few words each.
fn texts(commands: &[Command], name: &str) -> Vec<String> {
    let sent = commands.iter().filter_map(|command| match command {
        Command::Send { player, message } if *player == id(name) => Some(in_words(message)),
        _ => None,
    });
    sent.collect()
}

fn in_words(message: &ToPlayer) -> String {
    match message {
        ToPlayer::Matchmaker(Notice::Queued {
            position,
            waiting,
            expected_wait_seconds,
            nothing_fits,
        }) => {
            let expected = expected_wait_seconds.map(|expected| format!(", {expected} s"));
            let nothing = if *nothing_fits { ", nothing fits" } else { "" };
            format!(
                "queued {position}/{waiting}{}{nothing}",
                expected.unwrap_or_default()
            )
        }
        ToPlayer::Matchmaker(Notice::Matched { resumed: true, .. }) => "resumed".into(),
        ToPlayer::Matchmaker(Notice::Matched { .. }) => "matched".into(),
        ToPlayer::Matchmaker(Notice::Draining { seconds_left }) => format!("draining in {seconds_left} s"),
        ToPlayer::Matchmaker(Notice::Ended {
            kind: EndKind::Moves, ..
        }) => "moves".into(),
        ToPlayer::Matchmaker(Notice::Ended { .. }) => "ended".into(),
        ToPlayer::StreamerList(list) => format!("list {}", list.ids[0]),
        ToPlayer::StreamerIdChanged(changed) => format!("changed to {}", changed.new_id),
        ToPlayer::SubscribeFailed(_) => "subscribe failed".into(),
        ToPlayer::Offer(offer) => format!("offer for {}", offer.player_id),
        ToPlayer::Error(error) => {
            let kind = error.message.split(':').next().unwrap_or_default();
            format!("error: {kind}")
        }
        other => format!("{other:?}"),
    }
}
