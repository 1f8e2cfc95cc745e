//! Clients with allocations, their peers, and others who send arbitrary bytes, at a held clock.
#![no_main]

#[path = "../conversation.rs"]
mod conversation;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = conversation::hold(bytes);
});
