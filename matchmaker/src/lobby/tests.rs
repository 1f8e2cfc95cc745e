//! Stories of the lobby, with the clock in hand.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SessionId, StreamerId};
use penstock_core::wire::link::{
    Claimed, DisconnectPlayer, Draining, FromStreamer, Refused, RefusedReason, Role, ToStreamer,
};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::{
    Answer, CandidateInit, EndKind, FromPlayer, IceCandidate, Notice, Offer, Subscribe, ToPlayer,
};
use penstock_core::wire::status::{StreamerState, StreamerStatus};

use super::*;

#[test]
fn a_player_with_a_free_streamer_goes_through_the_whole_order() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let joined = story.join("ann");
    let link = dialled(&joined);
    assert!(
        texts(&joined, "ann").is_empty(),
        "nobody is told to wait who need not"
    );

    assert!(
        story.says("ann", FromPlayer::ListStreamers).is_empty(),
        "the list is held back"
    );
    assert_eq!(texts(&story.claimed(link, "s1"), "ann"), ["matched", "list s1"]);
    let told = told(&story.says("ann", subscribe("s1")));
    assert!(
        matches!(&told[..], [ToStreamer::PlayerConnected(p)] if p.player_id == id("ann") && p.data_channel && !p.sfu)
    );
    assert_eq!(texts(&story.offers(link), "ann"), ["offer for ann"]);
}

#[test]
fn whoever_waited_longest_is_first() {
    let mut story = Story::new();
    for name in ["zoe", "bob", "ann"] {
        story.join(name);
    }
    let free = story.streamer(1, StreamerState::Free);
    assert_eq!(claims(&free), ["zoe"]);
    story.claimed(dialled(&free), "s1");
    let next = story.streamer(2, StreamerState::Free);
    assert_eq!(claims(&next), ["bob"]);
}

#[test]
fn the_queue_hears_its_places() {
    let mut story = Story::new();
    assert_eq!(texts(&story.join("ann"), "ann"), ["queued 1/1"]);
    assert_eq!(texts(&story.join("bob"), "bob"), ["queued 2/2"]);
    assert!(
        story.tick(0).is_empty(),
        "not more often than a few times a second"
    );
    assert_eq!(texts(&story.tick(200), "ann"), ["queued 1/2"]);
    story.leave("ann");
    assert_eq!(texts(&story.tick(200), "bob"), ["queued 1/1"]);
}

#[test]
fn a_claim_says_how_long_its_player_waited() {
    let mut story = Story::new();
    story.join("ann");
    story.tick(1500);
    let commands = story.streamer(1, StreamerState::Free);
    let Some(Command::Dial { claim, .. }) = commands.iter().find(|c| matches!(c, Command::Dial { .. }))
    else {
        panic!("{commands:?}")
    };
    assert_eq!((claim.waited_ms, claim.role), (1500, Role::Player));
}

#[test]
fn a_refused_player_keeps_its_place() {
    let mut story = Story::new();
    let link = {
        story.join("ann");
        story.join("bob");
        dialled(&story.streamer(1, StreamerState::Free))
    };
    let refused = story.hear(
        link,
        FromStreamer::Refused(Refused {
            reason: RefusedReason::Busy,
        }),
    );
    assert!(
        claims(&refused).is_empty(),
        "a streamer that just said no is left alone"
    );
    assert_eq!(texts(&refused, "ann"), ["queued 1/2"]);
    assert_eq!(claims(&story.tick(1000)), ["ann"]);
}

#[test]
fn a_streamer_that_says_it_is_free_again_is_asked_at_once() {
    let mut story = Story::new();
    story.join("ann");
    let link = dialled(&story.streamer(1, StreamerState::Free));
    story.hear(
        link,
        FromStreamer::Refused(Refused {
            reason: RefusedReason::Starting,
        }),
    );
    assert_eq!(claims(&story.streamer(1, StreamerState::Free)), ["ann"]);
}

#[test]
fn the_next_plays_when_the_first_leaves() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.claimed(link, "s1");
    story.streamer(1, StreamerState::Busy);
    story.join("bob");
    assert!(story.leave("ann").contains(&Command::HangUp { link }));
    assert_eq!(claims(&story.streamer(1, StreamerState::Free)), ["bob"]);
}

#[test]
fn one_whose_streamer_dies_comes_first_and_is_told_the_new_name() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.says("ann", FromPlayer::ListStreamers);
    story.claimed(link, "s1");
    story.says("ann", subscribe("s1"));
    story.join("bob");

    let lost = story.handle(Input::LinkClosed { link });
    assert_eq!(texts(&lost, "ann"), ["moves", "queued 1/2"]);
    story.handle(Input::StreamerLost { address: address(1) });
    let next = story.streamer(2, StreamerState::Free);
    assert_eq!(claims(&next), ["ann"]);
    let matched = story.claimed(dialled(&next), "s2");
    assert_eq!(texts(&matched, "ann"), ["matched", "changed to s2", "list s2"]);
}

#[test]
fn what_an_old_link_still_says_reaches_nobody() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let old = dialled(&story.join("ann"));
    story.tick(5000);
    assert!(story.claimed(old, "s1").is_empty());
    assert!(story.handle(Input::LinkClosed { link: old }).is_empty());
}

#[test]
fn a_streamer_that_never_answers_is_given_up() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    let late = story.tick(5000);
    assert!(late.contains(&Command::HangUp { link }) && late.contains(&Command::Count(Outcome::Failed)));
    let later = story.streamer(2, StreamerState::Free);
    assert_eq!(claims(&later), ["ann"]);
}

#[test]
fn a_page_that_never_subscribes_gets_its_offer_all_the_same() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.claimed(link, "s1");
    assert!(told(&story.tick(1999)).is_empty());
    assert_eq!(told(&story.tick(1)).len(), 1);
    assert_eq!(texts(&story.offers(link), "ann"), ["offer for ann"]);
    assert!(told(&story.tick(9000)).is_empty(), "once");
}

#[test]
fn messages_out_of_order_are_answered_with_what_is_wrong() {
    let mut story = Story::new();
    story.join("ann");
    assert_eq!(texts(&story.says("ann", answer()), "ann"), ["error: answer"]);
    assert_eq!(
        texts(&story.says("ann", candidate()), "ann"),
        ["error: iceCandidate"]
    );
    assert_eq!(
        texts(&story.says("ann", subscribe("s1")), "ann"),
        ["subscribe failed"]
    );
    let link = dialled(&story.streamer(1, StreamerState::Free));
    story.claimed(link, "s1");
    assert_eq!(
        texts(&story.says("ann", subscribe("other")), "ann"),
        ["subscribe failed"]
    );
    assert_eq!(told(&story.says("ann", subscribe("s1"))).len(), 1);
    assert_eq!(
        texts(&story.says("ann", subscribe("s1")), "ann"),
        ["error: subscribe"]
    );
    assert_eq!(texts(&story.says("ann", answer()), "ann"), ["error: answer"]);
}

#[test]
fn whose_message_it_is_is_never_what_the_page_says() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.claimed(link, "s1");
    story.says("ann", subscribe("s1"));
    story.offers(link);
    let sent = told(&story.says("ann", answer()));
    assert!(matches!(&sent[..], [ToStreamer::Answer(a)] if a.player_id.as_deref() == Some("ann")));
    let sent = told(&story.says("ann", candidate()));
    assert!(matches!(&sent[..], [ToStreamer::IceCandidate(c)] if c.player_id.as_deref() == Some("ann")));
}

#[test]
fn a_player_whom_the_streamer_ends_is_told_why_and_closed() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.claimed(link, "s1");
    let end = DisconnectPlayer {
        player_id: id("ann"),
        reason: Some("idle".into()),
        kind: EndKind::Over,
    };
    let commands = story.hear(link, FromStreamer::DisconnectPlayer(end));
    assert_eq!(texts(&commands, "ann"), ["ended"]);
    assert!(
        commands
            .iter()
            .any(|c| matches!(c, Command::Close { code: 1011, reason, .. } if reason == "idle"))
    );
    assert!(commands.contains(&Command::HangUp { link }));
}

#[test]
fn who_unsubscribes_frees_the_streamer_and_may_come_back() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.claimed(link, "s1");
    story.join("bob");
    let commands = story.says("ann", FromPlayer::Unsubscribe);
    assert!(commands.contains(&Command::HangUp { link }));
    assert_eq!(claims(&commands), ["bob"]);
    assert_eq!(goodbyes(&commands), [true], "its seat is kept for nobody");
    assert_eq!(
        texts(&story.says("ann", FromPlayer::ListStreamers), "ann"),
        ["queued 2/2"]
    );
}

#[test]
fn the_streamer_hears_how_its_player_has_gone() {
    for (parting, said) in [
        (Parting::ForGood, &[true][..]),
        (Parting::Closed, &[false]),
        (Parting::Lost, &[]),
    ] {
        let mut story = Story::new();
        story.streamer(1, StreamerState::Free);
        let link = dialled(&story.join("ann"));
        story.claimed(link, "s1");
        let commands = story.leave_by("ann", parting);
        assert_eq!(goodbyes(&commands), said);
        assert_eq!(commands.last(), Some(&Command::HangUp { link }), "{parting:?}");
    }
}

#[test]
fn who_comes_back_goes_to_its_seat_past_free_streamers_and_all_who_wait() {
    let mut story = Story::new();
    story.join("bob");
    story.streamer_with_seat(2);
    let commands = story.come_back("ann", false);
    let Some(Command::Dial {
        link,
        address: to,
        claim,
    }) = commands.first()
    else {
        panic!("{commands:?}")
    };
    let back = claim.back.as_ref().expect("it says that it comes back");
    assert_eq!((*to, &back.token, back.live), (address(2), &token(), false));
    story.says("ann", FromPlayer::ListStreamers);
    assert_eq!(texts(&story.claimed(*link, "s2"), "ann"), ["matched", "list s2"]);
}

#[test]
fn a_page_that_only_lost_its_socket_gets_no_list_and_no_offer() {
    let mut story = Story::new();
    story.streamer_with_seat(1);
    let link = dialled(&story.come_back("ann", true));
    assert_eq!(texts(&story.claimed_as(link, "s1", true), "ann"), ["resumed"]);
    assert!(told(&story.tick(9000)).is_empty());
    assert_eq!(
        told(&story.says("ann", candidate())).len(),
        1,
        "what it says is passed on"
    );
    // If its streamer dies now, the library must be told of the new one as ever.
    story.handle(Input::LinkClosed { link });
    let next = story.streamer(2, StreamerState::Free);
    let matched = story.claimed(dialled(&next), "s2");
    assert_eq!(texts(&matched, "ann"), ["matched", "changed to s2", "list s2"]);
}

#[test]
fn who_comes_back_waits_a_moment_for_its_own_streamer_then_takes_any() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    assert!(story.come_back("ann", false).is_empty(), "not the first free one");
    assert!(claims(&story.tick(1999)).is_empty());
    assert_eq!(claims(&story.tick(1)), ["ann"]);
}

#[test]
fn who_comes_back_too_late_queues_as_everyone() {
    let mut story = Story::new();
    story.join("bob");
    story.streamer_with_seat(1);
    let link = dialled(&story.come_back("ann", true));
    let refused = story.hear(
        link,
        FromStreamer::Refused(Refused {
            reason: RefusedReason::NoSuchSession,
        }),
    );
    assert_eq!(texts(&refused, "ann"), ["queued 2/2"]);
    assert_eq!(claims(&story.streamer(2, StreamerState::Free)), ["bob"]);
}

#[test]
fn a_player_of_a_streamer_that_ends_is_told_and_moves_before_all_who_wait() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    let link = dialled(&story.join("ann"));
    story.says("ann", FromPlayer::ListStreamers);
    story.claimed(link, "s1");
    story.says("ann", subscribe("s1"));
    story.join("bob");
    let draining = FromStreamer::Draining(Draining { seconds_left: 60 });
    assert_eq!(texts(&story.hear(link, draining), "ann"), ["draining in 60 s"]);
    let end = DisconnectPlayer {
        player_id: id("ann"),
        reason: Some("The streamer ends.".into()),
        kind: EndKind::Moves,
    };
    let moved = story.hear(link, FromStreamer::DisconnectPlayer(end));
    assert_eq!(texts(&moved, "ann"), ["moves", "queued 1/2"]);
    assert!(!moved.iter().any(|c| matches!(c, Command::Close { .. })));
    assert_eq!(claims(&story.streamer(2, StreamerState::Free)), ["ann"]);
}

#[test]
fn a_streamer_for_several_is_filled_before_the_next_begins() {
    let mut story = Story::new();
    let several = |story: &mut Story, number: u16, players: u32| {
        let mut status = status(number, StreamerState::Free, None);
        (status.max_players, status.players) = (3, players);
        story.handle(Input::Status {
            address: address(number),
            status,
        })
    };
    several(&mut story, 1, 0);
    several(&mut story, 2, 1);
    let mut places = Vec::new();
    for name in ["ann", "bob", "cat"] {
        let commands = story.join(name);
        places.extend(commands.iter().filter_map(|command| match command {
            Command::Dial { address, .. } => Some(*address),
            _ => None,
        }));
    }
    // The second streamer has one player and one of ours asks for a place there, and both may be the same.
    assert_eq!(places, [address(2), address(2), address(1)]);
}

#[test]
fn the_expected_wait_follows_how_fast_places_became_free() {
    let mut story = Story::new();
    for name in ["a1", "a2", "a3", "a4", "a5"] {
        story.join(name);
    }
    for number in 1..=3 {
        story.tick(20_000);
        let link = dialled(&story.streamer(number, StreamerState::Free));
        story.claimed(link, "s");
        story.streamer(number, StreamerState::Busy);
    }
    assert_eq!(texts(&story.tick(200), "a5"), ["queued 2/2, 50 s"]);
    assert_eq!(texts(&story.leave("a4"), "a5"), Vec::<String>::new());
    assert_eq!(texts(&story.tick(200), "a5"), ["queued 1/1, 30 s"]);
}

#[test]
fn a_viewer_goes_to_the_streamer_that_has_the_session() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    story.streamer_with(2, "show");
    let commands = story.watch("vic", "show");
    let Some(Command::Dial {
        link,
        address: to,
        claim,
    }) = commands.first()
    else {
        panic!("{commands:?}")
    };
    assert_eq!(
        (*to, claim.role, claim.session_id.as_str()),
        (address(2), Role::Viewer, "show")
    );
    assert_eq!(texts(&story.claimed(*link, "s2"), "vic"), ["matched"]);
}

#[test]
fn a_viewer_without_a_session_is_told_after_a_moment() {
    let mut story = Story::new();
    story.streamer(1, StreamerState::Free);
    assert!(story.watch("vic", "nothing").is_empty());
    assert_eq!(texts(&story.tick(3000), "vic"), ["subscribe failed"]);
    assert!(story.says("vic", FromPlayer::ListStreamers).is_empty());
    story.streamer_with(2, "nothing");
    assert_eq!(story.lobby.links.len(), 1, "asking again tries again");
}

#[test]
fn viewers_never_hold_a_streamer() {
    let mut story = Story::new();
    story.streamer_with(1, "show");
    story.watch("vic", "show");
    story.watch("una", "show");
    assert_eq!(
        (
            story.lobby.links.len(),
            story.lobby.holders.len(),
            story.lobby.queue.len()
        ),
        (2, 0, 0)
    );
}

#[test]
fn who_asks_for_what_is_not_free_holds_up_nobody_who_asks_for_something_else() {
    let mut story = Story::new();
    let ask = |name: &str, application: &str| Input::Joined {
        player: id(name),
        session: SessionId::new(name).unwrap(),
        want: Want::Play(Wish {
            application: application.parse().ok(),
            ..Wish::default()
        }),
        back: Return::Later,
    };
    story.handle(ask("ann", "go"));
    story.handle(ask("bob", "chess"));
    story.handle(ask("eve", ""));
    let streams = |number, application: &str| {
        let mut status = status(number, StreamerState::Free, None);
        status.application = application.parse().ok();
        Input::Status {
            address: address(number),
            status,
        }
    };
    let dialled = |commands: Vec<Command>| {
        let claims = commands.into_iter().filter_map(|command| match command {
            Command::Dial { address, claim, .. } => Some((claim.player_id.to_string(), address.port())),
            _ => None,
        });
        claims.collect::<Vec<_>>()
    };
    assert_eq!(dialled(story.handle(streams(1, "ludo"))), [("eve".to_owned(), 1)]);
    assert_eq!(
        dialled(story.handle(streams(2, "chess"))),
        [("bob".to_owned(), 2)]
    );
    assert_eq!(dialled(story.handle(streams(3, ""))), []);
    assert_eq!(dialled(story.handle(streams(4, "go"))), [("ann".to_owned(), 4)]);
}

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

pub(super) fn id(name: &str) -> PlayerId {
    PlayerId::new(name).unwrap()
}

pub(super) fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], number))
}

pub(super) fn status(number: u16, state: StreamerState, session: Option<&str>) -> StreamerStatus {
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
        }) => match expected_wait_seconds {
            Some(expected) => format!("queued {position}/{waiting}, {expected} s"),
            None => format!("queued {position}/{waiting}"),
        },
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
