//! Stories of the policy with a held clock, and of the whole publisher against a stand-in for the API server.

pub(crate) mod cluster;
mod policy;
mod publisher;
pub(super) mod support;
