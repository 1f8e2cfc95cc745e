//! The manifests as kustomize renders them, whole overlays at a time: that a cluster takes them, that the programs know
//! what is written in them, that their parts agree, and that what the demo's overlay describes plays. What the agent and
//! the scheduler need of theirs is shown in plugin/tests and scheduler-extender/tests.

mod demo;
mod images;
mod overlay;
mod parts;
mod programs;
