//! Those who only watch.

use penstock_core::wire::link::Role;
use penstock_core::wire::signalling::FromPlayer;
use penstock_core::wire::status::StreamerState;

use super::*;

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
