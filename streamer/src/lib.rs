//! One streamer: captures and encodes one application, and sends it to a player and any viewers.
//!
//! ```text
//!  source ─► encoder ─► access units ──┬─► peer of the player   ◄─┐
//!  (media)                             └─► peer of a viewer …     │ WebRTC
//!     ▲                                                           ▼
//!  display ◄── input ◄── data channel ◄──────────────────────── browser
//!
//!  pure      session        who may be here: claims, bids, draining
//!            data_channel   frames of the Pixel Streaming data channel
//!            keys, typing, pointer  the browser's keys and coordinates as X knows them
//!            pace           which frames a viewer gets; when a keyframe is asked for; which bitrate holds
//!            candidates     which addresses of a page are tried
//!  shell     media, display, input, peer, link, web, owner
//! ```

pub mod calibrate;
mod candidates;
pub mod config;
pub mod data_channel;
mod display;
mod input;
pub mod keys;
mod link;
pub mod media;
mod metrics;
mod owner;
pub mod pace;
mod peer;
pub mod pointer;
pub mod session;
mod tap;
pub mod typing;
mod web;

pub use web::run;
