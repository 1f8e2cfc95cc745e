//! Players who come back.

use penstock_core::wire::link::RefusedReason;
use penstock_core::wire::signalling::FromPlayer;
use penstock_core::wire::status::StreamerState;

use super::*;

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
    let refused = story.refused(link, RefusedReason::NoSuchSession);
    assert_eq!(texts(&refused, "ann"), ["queued 2/2"]);
    assert_eq!(claims(&story.streamer(2, StreamerState::Free)), ["bob"]);
}
