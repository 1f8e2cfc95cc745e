//! From a free streamer to the end of a session.

use penstock_core::wire::link::{DisconnectPlayer, Draining, FromStreamer, ToStreamer};
use penstock_core::wire::signalling::{EndKind, FromPlayer};
use penstock_core::wire::status::StreamerState;

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
fn the_next_plays_when_the_first_leaves() {
    let (mut story, link) = Story::matched();
    story.streamer(1, StreamerState::Busy);
    story.join("bob");
    assert!(story.leave("ann").contains(&Command::HangUp { link }));
    assert_eq!(claims(&story.streamer(1, StreamerState::Free)), ["bob"]);
}

#[test]
fn one_whose_streamer_dies_comes_first_and_is_told_the_new_name() {
    let (mut story, link) = Story::playing();
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
    let (mut story, old) = Story::claiming();
    story.tick(5000);
    assert!(story.claimed(old, "s1").is_empty());
    assert!(story.handle(Input::LinkClosed { link: old }).is_empty());
}

#[test]
fn a_streamer_that_never_answers_is_given_up() {
    let (mut story, link) = Story::claiming();
    let late = story.tick(5000);
    assert!(late.contains(&Command::HangUp { link }) && late.contains(&Command::Count(Outcome::Failed)));
    let later = story.streamer(2, StreamerState::Free);
    assert_eq!(claims(&later), ["ann"]);
}

#[test]
fn a_page_that_never_subscribes_gets_its_offer_all_the_same() {
    let (mut story, link) = Story::matched();
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
    let (mut story, link) = Story::playing();
    story.offers(link);
    let sent = told(&story.says("ann", answer()));
    assert!(matches!(&sent[..], [ToStreamer::Answer(a)] if a.player_id.as_deref() == Some("ann")));
    let sent = told(&story.says("ann", candidate()));
    assert!(matches!(&sent[..], [ToStreamer::IceCandidate(c)] if c.player_id.as_deref() == Some("ann")));
}

#[test]
fn a_player_whom_the_streamer_ends_is_told_why_and_closed() {
    let (mut story, link) = Story::matched();
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
    let (mut story, link) = Story::matched();
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
        let (mut story, link) = Story::matched();
        let commands = story.leave_by("ann", parting);
        assert_eq!(goodbyes(&commands), said);
        assert_eq!(commands.last(), Some(&Command::HangUp { link }), "{parting:?}");
    }
}

#[test]
fn a_player_of_a_streamer_that_ends_is_told_and_moves_before_all_who_wait() {
    let (mut story, link) = Story::playing();
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

/// To a TURN server credentials that name no peer are good for all.
#[test]
fn a_streamer_that_is_not_heard_any_more_when_it_says_yes_is_the_only_one_to_reach() {
    let mut story = Story::new();
    let mut free = status(1, StreamerState::Free, None);
    free.media_addresses = vec![[10, 0, 3, 9].into()];
    let (address, status) = (address(1), free);
    story.handle(Input::Status { address, status });
    let link = dialled(&story.join("ann"));
    story.handle(Input::StreamerLost { address });
    let configure = Command::Configure {
        player: id("ann"),
        peers: vec![[10, 0, 3, 9].into()],
    };
    assert!(story.claimed(link, "s1").contains(&configure));
}
