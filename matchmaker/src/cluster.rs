//! The options for a cluster, and how it is reached.

use anyhow::Context as _;
use kube::Client;

use crate::pods::Wanted;

/// What the matchmaker does with a Kubernetes cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Finds streamers among the pods with these labels, by default penstock.dev/streamer=true. Each is asked at its
    /// port `signalling`, or 9000. The cluster is the one that this runs in, or KUBECONFIG's
    #[arg(long, env = "PENSTOCK_PODS", value_name = "SELECTOR", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = STREAMERS)]
    pub pods: Option<String>,
    /// Finds TURN servers among the pods with these labels, by default app.pixel/turn=true. Each is asked for /status
    /// at its port `metrics`, or 9641
    #[arg(long, env = "PENSTOCK_TURN_PODS", value_name = "SELECTOR", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = TURN_SERVERS, requires = "secret")]
    pub turn_pods: Option<String>,
    /// The namespace of these pods [default: the one that this runs in, or of KUBECONFIG's context]
    #[arg(long, env = "PENSTOCK_NAMESPACE")]
    pub namespace: Option<String>,
    /// The Lease in that namespace whose holder, one of all matchmakers, writes on pods what it costs to delete them
    #[arg(
        long,
        env = "PENSTOCK_LEASE",
        value_name = "NAME",
        default_value = "penstock-matchmaker"
    )]
    pub lease: String,
    /// How many pods may be written on in any second, all together: no fewer than get a first player in one
    #[arg(long, env = "PENSTOCK_POD_WRITES", value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub pod_writes_per_second: u32,
}

/// A cluster that is reached.
#[derive(Clone)]
pub struct Cluster {
    /// How.
    pub client: Client,
    /// Where our pods are.
    pub namespace: String,
}

impl ClusterArgs {
    /// The cluster, where any option needs one.
    ///
    /// # Errors
    /// Where there is none, or its configuration can't be read.
    pub async fn connect(&self) -> anyhow::Result<Option<Cluster>> {
        if self.pods.is_none() && self.turn_pods.is_none() {
            return Ok(None);
        }
        let config = kube::Config::infer().await.context(
            "looking for a cluster: --pods and --turn-pods work in a pod of one, or with KUBECONFIG naming one",
        )?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Some(Cluster::new(config, namespace)?))
    }
}

impl Cluster {
    /// The cluster of `config`.
    ///
    /// # Errors
    /// Where the configuration makes no sense.
    pub fn new(mut config: kube::Config, namespace: String) -> anyhow::Result<Self> {
        // The client would send a write again without saying so, which counts against how many there may be. Whoever
        // asks has a back-off of its own.
        config.default_retry = false;
        let client = Client::try_from(config).context("preparing to talk to the API server")?;
        Ok(Self { client, namespace })
    }

    /// Pods of ours by a label selector.
    pub fn pods(&self, selector: &str) -> Wanted {
        Wanted {
            namespace: self.namespace.clone(),
            selector: selector.to_owned(),
        }
    }
}

const STREAMERS: &str = "penstock.dev/streamer=true";
const TURN_SERVERS: &str = "app.pixel/turn=true";

#[cfg(test)]
mod tests {
    use penstock_core::names::{LABEL_STREAMER, LABEL_TURN};

    use super::*;

    #[test]
    fn the_default_selectors_are_our_labels() {
        assert_eq!(STREAMERS, format!("{LABEL_STREAMER}=true"));
        assert_eq!(TURN_SERVERS, format!("{LABEL_TURN}=true"));
    }
}
