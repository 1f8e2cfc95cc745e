//! Who waits, who comes next, and what they hear of it.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_core::ids::SessionId;
use penstock_core::wire::link::{RefusedReason, Role};
use penstock_core::wire::signalling::{Notice, ToPlayer};
use penstock_core::wire::status::StreamerState;

use super::*;

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

/// A message to everybody whenever anybody comes or goes would cost more than all else.
#[test]
fn a_long_queue_hears_its_places_in_turns() {
    let mut story = Story::new();
    let (most, mut places) = (5_000, BTreeMap::new());
    for n in 1..=most {
        let name = format!("p{n}");
        assert_eq!(
            texts(&story.join(&name), &name),
            [format!("queued {n}/{n}")],
            "at once"
        );
    }
    let mut hear = |commands: &[Command]| {
        for command in commands {
            let Command::Send {
                player,
                message:
                    ToPlayer::Matchmaker(Notice::Queued {
                        position, waiting, ..
                    }),
            } = command
            else {
                continue;
            };
            places.insert(player.clone(), (*position, *waiting));
        }
        commands.len()
    };
    hear(&story.tick(200));
    story.leave("p1");
    let steps = POSITIONS_OF_ALL_EVERY.as_millis() / POSITIONS_EVERY.as_millis();
    let share = usize::try_from(most / steps).unwrap();
    for step in 0..=steps + 1 {
        let told = hear(&story.tick(200));
        assert!(told <= share + NEAR_THE_FRONT, "{told} messages");
        if step == 0 {
            assert!(told >= NEAR_THE_FRONT, "those in front hear of it at once");
        }
    }
    let waiting = u32::try_from(most - 1).unwrap();
    for n in 2..=most {
        let place = u32::try_from(n - 1).unwrap();
        assert_eq!(places[&id(&format!("p{n}"))], (place, waiting));
    }
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
    let (mut story, link) = Story::claiming();
    story.join("bob");
    let refused = story.refused(link, RefusedReason::Busy);
    assert!(
        claims(&refused).is_empty(),
        "a streamer that just said no is left alone"
    );
    assert_eq!(texts(&refused, "ann"), ["queued 1/2"]);
    assert_eq!(claims(&story.tick(1000)), ["ann"]);
}

#[test]
fn a_streamer_that_says_it_is_free_again_is_asked_at_once() {
    let (mut story, link) = Story::claiming();
    story.refused(link, RefusedReason::Starting);
    assert_eq!(claims(&story.streamer(1, StreamerState::Free)), ["ann"]);
}

#[test]
fn the_longest_wait_is_time_without_a_streamer() {
    let (mut story, link) = Story::playing();
    assert_eq!(story.lobby.queue(story.now), QueueView::default());
    story.now += Duration::from_secs(600);
    story.join("bob");
    story.now += Duration::from_secs(7);
    let waits = |story: &Story| {
        let queue = story.lobby.queue(story.now);
        (queue.waiting, queue.longest_wait.map(|wait| wait.as_secs()))
    };
    assert_eq!(waits(&story), (1, Some(7)));
    // Ann comes before Bob now, but has only begun to wait.
    story.handle(Input::LinkClosed { link });
    assert_eq!(waits(&story), (2, Some(7)));
    story.now += Duration::from_secs(1);
    story.handle(Input::Left {
        player: id("bob"),
        parting: Parting::ForGood,
    });
    assert_eq!(waits(&story), (1, Some(1)));
    assert_eq!(story.lobby.queue(story.now).expected_wait_seconds, None);
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

/// Pings are most of what a queue says.
#[test]
fn a_long_queue_is_not_tried_on_what_is_free_whenever_somebody_speaks() {
    let mut story = Story::new();
    for number in 1..=50 {
        story.streams(number, "go");
    }
    for n in 0..600 {
        story.ask(&format!("p{n}"), "chess");
    }
    let before = fits_asked();
    for n in 0..600 {
        let time = serde_json::Number::from(n);
        story.says(&format!("p{n}"), FromPlayer::Ping(Ping { time }));
    }
    assert_eq!(fits_asked() - before, 0, "a ping changes nothing");
    let before = fits_asked();
    story.streams(51, "go");
    story.tick(10);
    assert!(
        fits_asked() - before <= 2 * 51,
        "the line is compared, and not all who stand in it: {}",
        fits_asked() - before
    );
    // It is not that nothing is ever matched.
    assert_eq!(claims(&story.streams(52, "chess")), ["p0"]);
}

#[test]
fn places_are_counted_among_those_who_ask_for_the_same() {
    let mut story = Story::new();
    for n in 1..400 {
        story.ask(&format!("g{n}"), "go");
    }
    assert_eq!(texts(&story.ask("ann", "chess"), "ann"), ["queued 1/1"]);
    assert_eq!(
        texts(&story.ask("eve", ""), "eve"),
        ["queued 401/401"],
        "whoever takes anything comes after all"
    );
    assert_eq!(texts(&story.ask("bob", "chess"), "bob"), ["queued 3/3"]);
    story.leave("eve");
    let told = story.tick(200);
    assert_eq!(
        texts(&told, "bob"),
        ["queued 2/2"],
        "though many stand before him"
    );
    assert_eq!(texts(&told, "ann"), ["queued 1/2"]);
}

#[test]
fn the_expected_wait_is_that_of_what_is_asked_for() {
    let mut story = Story::new();
    for n in 1..=4 {
        story.ask(&format!("g{n}"), "go");
    }
    story.ask("ann", "chess");
    for number in 1..=3 {
        story.tick(20_000);
        let link = dialled(&story.streams(number, "go"));
        story.claimed(link, "s");
        story.streamer(number, StreamerState::Busy);
    }
    story.streamer(9, StreamerState::Busy);
    let asked = story.ask("bob", "go");
    assert_eq!(texts(&asked, "bob"), ["queued 2/2, 50 s"]);
    let asked = story.ask("eve", "chess");
    assert_eq!(texts(&asked, "eve"), ["queued 2/2"], "chess did not move");
}

#[test]
fn who_asks_for_what_nobody_streams_hears_so_and_goes_on_waiting() {
    let mut story = Story::new();
    story.streams(1, "go");
    assert_eq!(texts(&story.ask("ann", "chess"), "ann"), ["queued 1/1"]);
    let wait = NOTHING_FITS_AFTER.as_millis().try_into().unwrap();
    assert_eq!(texts(&story.tick(wait), "ann"), ["queued 1/1, nothing fits"]);
    let mut busy = status(2, StreamerState::Busy, None);
    busy.application = "chess".parse().ok();
    story.handle(Input::Status {
        address: address(2),
        status: busy,
    });
    assert_eq!(texts(&story.tick(200), "ann"), ["queued 1/1"]);
    assert_eq!(claims(&story.streams(2, "chess")), ["ann"]);
}

#[test]
fn the_waits_that_are_counted_are_those_for_a_free_streamer() {
    let waits = |commands: &[Command]| -> Vec<_> {
        let counted = commands.iter().filter_map(|command| match command {
            Command::Count(Outcome::Claimed(waited)) => Some(waited.map(|waited| waited.as_secs())),
            _ => None,
        });
        counted.collect()
    };
    let mut story = Story::new();
    story.join("ann");
    story.tick(2000);
    let first = dialled(&story.streamer(1, StreamerState::Free));
    assert_eq!(waits(&story.claimed(first, "s1")), [Some(2)]);
    // She plays, and loses her streamer; another becomes free a second later.
    story.tick(600_000);
    story.streamer(1, StreamerState::Starting);
    story.handle(Input::LinkClosed { link: first });
    story.tick(1000);
    let second = dialled(&story.streamer(2, StreamerState::Free));
    assert_eq!(waits(&story.claimed(second, "s2")), [Some(1)]);
    story.streamer_with(2, "show");
    let watches = dialled(&story.watch("vic", "show"));
    assert_eq!(waits(&story.claimed(watches, "s2")), [None]);
    story.streamer_with_seat(3);
    let returns = dialled(&story.come_back("bob", false));
    assert_eq!(waits(&story.claimed_as(returns, "s3", true)), [None]);
}
