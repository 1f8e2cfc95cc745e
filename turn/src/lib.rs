//! A STUN and TURN server (RFC 8489, RFC 8656).
//!
//! ```text
//!  core      the protocol, sans I/O: bytes and clock readings in, commands out
//!  options   the command line, the environment
//!  addresses what clients are told, behind NATs
//!  shell     sockets, the loop that drives the core, metrics
//! ```

pub mod addresses;
pub mod core;
pub mod options;
pub mod shell;
