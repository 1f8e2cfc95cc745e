//! Arbitrary frames of a page's data channel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_streamer::data_channel::{kind, parse};

fuzz_target!(|frame: &[u8]| {
    if let Ok(message) = parse(frame) {
        assert!(!kind(&message).is_empty());
    }
});
