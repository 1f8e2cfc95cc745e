//! What crosses between our programs, and to the browser.
//!
//! ```text
//!  browser ◄── signalling ──► matchmaker ◄── link ──► streamer
//!                                 ▲ └──── status ────────┘
//!                                 ├── agent ── penstock-plugin standalone
//!                                 └── turn ── penstock-turn
//! ```

pub mod agent;
pub mod link;
pub mod returning;
pub mod signalling;
pub mod status;
pub mod turn;
