//! What every Penstock program's shell shares.
//!
//! ```text
//!  logging    LogArgs::init          one line per event, text or JSON
//!  shutdown   until_told_to_end()    SIGTERM, SIGINT
//!  ops        router(registry, …)    /metrics, /healthz, /readyz
//!  events     sse(watch)             a value as server-sent events, now and on every change
//!  children   Child, Reaper          processes that never outlive us
//!  open_files raise_limit()          as many as the system allows
//!  api_errors of(error)              what Kubernetes' API server has against it (feature `kube`)
//!  tls        load(cert, key)        the certificate that clients see
//! ```

#[cfg(feature = "kube")]
pub mod api_errors;
pub mod children;
pub mod events;
pub mod logging;
pub mod open_files;
pub mod ops;
pub mod shutdown;
pub mod tls;
