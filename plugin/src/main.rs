//! penstock-plugin.

fn main() {}
