//! What each node says about its GPUs, from the API server. The account needs the verbs `list` and `watch` on
//! `gpunodes`.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, CustomResource};
use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::NodeName;
use serde::{Deserialize, Serialize};

use super::places::{Heard, Places};
use crate::pods::{is_too_old, why_of_watch};

/// A GpuNode, to be read. Its definition is made by the plugin, which writes them.
#[derive(Debug, Clone, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes"
)]
#[kube(schema = "disabled")]
#[serde(transparent)]
pub struct GpuNodeContent(pub GpuNodeSpec);

type Nodes = BTreeMap<NodeName, GpuNodeSpec>;

/// Follows all of them, for ever.
pub async fn follow(client: Client, places: Places) {
    let mut following = Following {
        places,
        nodes: Nodes::new(),
        failures: 0,
    };
    // A watch that goes on after an error says nothing until something changes. So it is begun anew, with a list: that
    // what is known is not old any more is to be seen at once.
    loop {
        following.until_it_breaks(&client).await;
        tokio::time::sleep(delay(following.failures)).await;
    }
}

struct Following {
    places: Places,
    /// As they are; during a list, those of it so far.
    nodes: Nodes,
    failures: u32,
}

impl Following {
    async fn until_it_breaks(&mut self, client: &Client) {
        let api = Api::<GpuNode>::all(client.clone());
        let mut stream = pin!(watcher(api, watcher::Config::default()));
        while let Some(next) = stream.next().await {
            match next {
                Ok(event) => self.well(event),
                Err(error) if is_too_old(&error) => return,
                Err(error) => return self.ill(&error),
            }
        }
    }

    fn well(&mut self, event: watcher::Event<GpuNode>) {
        match event {
            // That a list begins says nothing yet: it is asked for only then.
            watcher::Event::Init => return self.nodes.clear(),
            watcher::Event::InitApply(node) => return self.apply(node),
            watcher::Event::InitDone => {}
            watcher::Event::Apply(node) => self.apply(node),
            watcher::Event::Delete(node) => {
                if let Some(name) = name(&node) {
                    self.nodes.remove(&name);
                }
            }
        }
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("watching GpuNodes again");
        }
        self.places.nodes.send_replace(Heard::Now(self.nodes.clone()));
    }

    fn apply(&mut self, node: GpuNode) {
        if let Some(name) = name(&node) {
            self.nodes.insert(name, node.spec.0);
        }
    }

    fn ill(&mut self, error: &watcher::Error) {
        self.places.nodes.send_modify(Heard::away);
        let why = why_of_watch(error);
        self.failures += 1;
        if self.failures > 1 {
            tracing::debug!("still watching GpuNodes: {why}");
        } else {
            tracing::warn!(
                "watching GpuNodes, for the overview: {why}; it is tried again, at least every 30 s (the matchmaker needs \
                 their definition and the verbs list and watch on gpunodes)"
            );
        }
    }
}

/// Waits grow up to half a minute.
fn delay(failures: u32) -> Duration {
    Duration::from_millis(500)
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(Duration::from_secs(30))
}

fn name(node: &GpuNode) -> Option<NodeName> {
    node.metadata.name.clone()?.parse().ok()
}

#[cfg(test)]
mod tests;
