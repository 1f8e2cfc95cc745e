//! What every Penstock program's shell shares.
//!
//! ```text
//!  logging    LogArgs::init          one line per event, text or JSON
//!  shutdown   until_told_to_end()    SIGTERM, SIGINT
//!  ops        router(registry, …)    /metrics, /healthz, /readyz
//!  events     sse(watch)             a value as server-sent events, now and on every change
//!  children   Child, Reaper          processes that never outlive us
//!  open_files raise_limit()          as many as the system allows
//!  tls        load(cert, key)        the certificate that clients see
//!  secrets    read(file, what, …)    a secret in a file
//!
//!  of programs that talk to Kubernetes (feature `kube`):
//!  watches    changes(api, …)        all objects, then each change, whatever happens in between
//!  gpu_node   GpuNode                what a node says about its GPUs
//!  api_errors of(error)              what the API server has against a request, in words
//! ```

#[cfg(feature = "kube")]
pub mod api_errors;
pub mod children;
pub mod events;
#[cfg(feature = "kube")]
pub mod gpu_node;
pub mod logging;
pub mod open_files;
pub mod ops;
pub mod secrets;
pub mod shutdown;
pub mod tls;
#[cfg(feature = "kube")]
pub mod watches;
