//! penstock-matchmaker.

fn main() {}
