//! The command line of `serve`.

use std::net::SocketAddr;

use clap::Args;

use crate::index::Settings;

/// Answer a kube-scheduler: filter, prioritize, bind and preempt for pods that ask for slices
///
/// It watches pods, GpuNodes and PodDisruptionBudgets through the API server of its service account, or of KUBECONFIG.
/// The scheduler's configuration needs nodeCacheCapable: true and our three resources under managedResources; see
/// manifests/base/scheduler.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen for the scheduler (HTTP): whoever reaches it can bind pods, so keep it on loopback
    #[arg(
        long,
        env = "PENSTOCK_EXTENDER_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9104"
    )]
    pub(crate) listen: SocketAddr,
    /// Where to show /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "PENSTOCK_EXTENDER_METRICS_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9103"
    )]
    pub(crate) metrics_listen: SocketAddr,
    /// From this measured encoder load on, a GPU takes nothing new. It is published in bands of 10, so 85 is as 90
    #[arg(long, env = "PENSTOCK_EXTENDER_LOAD_LIMIT", value_name = "PERCENT", default_value_t = Settings::default().encoder_load_limit)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    encoder_load_limit: u8,
}

impl ServeArgs {
    /// What the index is made with.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            encoder_load_limit: self.encoder_load_limit,
        }
    }
}
