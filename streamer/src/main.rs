//! penstock-streamer.

fn main() {}
