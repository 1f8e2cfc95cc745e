//! A STUN and TURN server (RFC 8489, RFC 8656).
//!
//! ```text
//!  core      the protocol, sans I/O: bytes and clock readings in, commands out
//!  options   the command line, the environment
//!  config_file  the file, and the variables of another container
//!  addresses what clients are told, behind NATs
//!  open_files how many relays and connections there is room for
//!  shell     sockets, the loop that drives the core, metrics
//! ```

pub mod addresses;
pub mod config_file;
pub mod core;
pub mod open_files;
pub mod options;
pub mod shell;
