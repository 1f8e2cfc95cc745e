//! Types and decisions that every Penstock program shares.
//!
//! ```text
//!  ids, names      what things are called
//!  units           encoder units, SM percent, video memory, stream sizes
//!  deletion_cost   what a pod with players costs to delete, and when that is written
//!  device          resources and device IDs as the kubelet knows them
//!  gpu_models      what the encoders of GPUs can do
//!  packing         which GPU a demand goes to: a ledger and best fit
//!  pod_demand      what all containers of a pod take together
//!  quantity        Kubernetes' quantities
//!  gpu_node        what a node says about its GPUs in the cluster
//!  turn_rest       short-lived TURN credentials, made and checked
//!  wire            what crosses between our programs, and to the browser
//!  metrics         the names of all metrics
//! ```
//!
//! Nothing here does I/O, waits, or looks at a clock: time and randomness are arguments. `clippy.toml`
//! beside this crate's manifest holds that.

pub mod deletion_cost;
pub mod device;
pub mod gpu_models;
pub mod gpu_node;
pub mod ids;
pub mod metrics;
pub mod names;
pub mod packing;
pub mod pod_demand;
pub mod quantity;
pub mod turn_rest;
pub mod units;
pub mod wire;
