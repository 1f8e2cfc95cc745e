//! Arbitrary signalling frames of a page, and of a matchmaker to a streamer. What is understood must be understood
//! again once it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_core::wire::link::ToStreamer;
use penstock_core::wire::signalling::{FromPlayer, parse};

fuzz_target!(|frame: &str| {
    if let Ok(message) = FromPlayer::parse(frame)
        && message != FromPlayer::Unknown
    {
        let again = serde_json::to_string(&message).expect("what was read can be written");
        assert_eq!(FromPlayer::parse(&again), Ok(message));
    }
    if let Ok(message) = parse::<ToStreamer>(frame) {
        let again = serde_json::to_string(&message).expect("what was read can be written");
        assert_eq!(parse::<ToStreamer>(&again), Ok(message));
    }
});
