//! Arbitrary streams, cut into messages; and arbitrary messages, read.
#![no_main]

#[path = "../framing.rs"]
mod framing;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| framing::check(bytes));
