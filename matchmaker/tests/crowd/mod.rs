//! A crowd of scripted players, and streamers that decide as the real ones do; both note what they see.

mod person;
mod streamer;

pub(crate) use person::{Doing, Person, Seen};
pub(crate) use streamer::{Decider, Ledger};
