//! The extender itself at the stand-in for Kubernetes.

#![expect(clippy::unwrap_used, reason = "here a panic is a failed test")]

mod bench;
mod bodies;
mod manifests;
mod serving;
mod support;
