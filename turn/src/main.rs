//! penstock-turn.

fn main() {}
