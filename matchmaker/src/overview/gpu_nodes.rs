//! What each node says about its GPUs, from the API server. The account needs the verbs `list` and `watch` on
//! `gpunodes`.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client};
use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::NodeName;
use penstock_shell::gpu_node::GpuNode;
use penstock_shell::watches::{self, Change, Resume, Words};

use super::places::{Heard, Places};

type Nodes = BTreeMap<NodeName, GpuNodeSpec>;

/// Follows all of them, for ever.
pub async fn follow(client: Client, places: Places) {
    let words = Words {
        what: "GpuNodes, for the overview".to_owned(),
        needs: "the matchmaker needs their definition and the verbs list and watch on gpunodes",
    };
    let (api, config) = (Api::<GpuNode>::all(client), watcher::Config::default());
    // That what is known is not old any more is to be seen at once.
    let mut changes = pin!(watches::changes(api, config, Resume::WithAList, words));
    let mut nodes = Nodes::new();
    while let Some(change) = changes.next().await {
        match change {
            Change::All(all) => nodes = all.into_iter().filter_map(named).collect(),
            Change::Changed(node) => nodes.extend(named(node)),
            Change::Gone(node) => {
                named(node).and_then(|(name, _)| nodes.remove(&name));
            }
            Change::Silent => {
                places.nodes.send_modify(Heard::away);
                continue;
            }
        }
        places.nodes.send_replace(Heard::Now(nodes.clone()));
    }
}

fn named(node: GpuNode) -> Option<(NodeName, GpuNodeSpec)> {
    Some((node.node()?, node.spec.0))
}

#[cfg(test)]
mod tests;
