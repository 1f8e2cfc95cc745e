//! The real program over loopback: by hand, and against coturn's tools (Debian package `coturn`).
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests have sockets and clocks of their own"
)]

#[path = "../common/mod.rs"]
mod common;
mod drain;
mod flood;
mod memory;
mod reload;
mod server;
mod start;
mod status;
mod streams;
mod tools;
