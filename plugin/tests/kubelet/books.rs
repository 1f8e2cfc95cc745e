//! What the kubelet keeps: plugins, devices, and which pods hold which.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tonic::transport::Channel;

use super::device_plugin::Device;
use super::device_plugin::device_plugin_client::DevicePluginClient;

/// What a plugin did or was asked, and when.
#[derive(Debug, Clone)]
pub(crate) struct Happened {
    pub(crate) at: Instant,
    pub(crate) event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Registered(String),
    StreamEnded(String),
    Preferred { resource: String, size: usize },
    Allocate { resource: String, ids: Vec<String> },
}

/// How long plugins took to answer, call by call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Took {
    pub(crate) preferred: Vec<Duration>,
    pub(crate) allocate: Vec<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) events: Vec<Happened>,
    pub(super) took: Took,
    plugins: BTreeMap<String, Plugin>,
    /// Per resource, each device and whether it is healthy.
    devices: BTreeMap<String, BTreeMap<String, bool>>,
    /// Per pod (`namespace/name`), what its containers hold. Survives a restart, as the real one's checkpoint does.
    pods: BTreeMap<String, Vec<Holding>>,
    /// What plugins did that a pod or a node would suffer from.
    faults: Vec<String>,
    /// Which life of the kubelet this is: what an earlier one's tasks still have to say counts no more.
    life: u64,
}

#[derive(Debug)]
struct Plugin {
    client: DevicePluginClient<Channel>,
    watching: AbortHandle,
}

#[derive(Debug, Clone)]
pub(super) struct Holding {
    pub(super) pod_uid: String,
    pub(super) container: String,
    pub(super) resource: String,
    pub(super) ids: Vec<String>,
    /// Whether an init container has it that ends.
    pub(super) init: bool,
}

impl Books {
    pub(super) fn begin(&mut self) {
        self.life += 1;
    }

    pub(super) fn stop(&mut self) {
        self.life += 1;
        self.devices.clear();
        for plugin in std::mem::take(&mut self.plugins).into_values() {
            plugin.watching.abort();
        }
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn note(&mut self, event: Event) {
        let at = Instant::now();
        self.events.push(Happened { at, event });
    }

    /// Knows a plugin from now on, unless the kubelet that it asked has ended. An earlier one of that resource is forgotten,
    /// but its stream goes on.
    pub(super) fn register(
        &mut self,
        life: u64,
        resource: &str,
        client: DevicePluginClient<Channel>,
        watching: AbortHandle,
    ) -> bool {
        if life != self.life {
            watching.abort();
            return false;
        }
        self.note(Event::Registered(resource.to_owned()));
        if self.plugins.contains_key(resource) {
            self.faults.push(format!(
                "{resource} was registered again while its old stream went on"
            ));
        }
        self.plugins
            .insert(resource.to_owned(), Plugin { client, watching });
        true
    }

    pub(super) fn listed(&mut self, life: u64, resource: &str, devices: Vec<Device>) {
        if life == self.life {
            let devices = devices.into_iter().map(|d| (d.id, d.health == "Healthy"));
            self.devices.insert(resource.to_owned(), devices.collect());
        }
    }

    /// A stream has ended. The kubelet knows plugins by resource only: whichever is known now goes with it, were it
    /// another one's stream that ended.
    pub(super) fn stream_ended(&mut self, life: u64, resource: &str) {
        if life != self.life {
            return;
        }
        self.note(Event::StreamEnded(resource.to_owned()));
        if let Some(plugin) = self.plugins.remove(resource) {
            plugin.watching.abort();
        }
        for healthy in self.devices.entry(resource.to_owned()).or_default().values_mut() {
            *healthy = false;
        }
    }

    pub(super) fn plugin(&self, resource: &str) -> Result<DevicePluginClient<Channel>, String> {
        let plugin = self.plugins.get(resource);
        plugin
            .map(|plugin| plugin.client.clone())
            .ok_or_else(|| format!("cannot allocate unregistered device {resource}"))
    }

    pub(super) fn healthy(&self, resource: &str) -> BTreeSet<String> {
        let devices = self.devices.get(resource).into_iter().flatten();
        devices
            .filter(|(_, healthy)| **healthy)
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub(super) fn in_use(&self, resource: &str) -> BTreeSet<String> {
        let holdings = self.pods.values().flatten();
        let ids = holdings
            .filter(|held| held.resource == resource)
            .flat_map(|held| &held.ids);
        ids.cloned().collect()
    }

    pub(super) fn hand_out<'a>(
        &mut self,
        (pod, uid): (&str, &str),
        (container, init): (&str, bool),
        resource: &str,
        ids: impl IntoIterator<Item = &'a str>,
    ) {
        let ids: Vec<_> = ids.into_iter().map(str::to_owned).collect();
        self.faults.extend(self.given_twice(pod, resource, &ids));
        let holdings = self.pods.entry(pod.to_owned()).or_default();
        holdings.push(Holding {
            pod_uid: uid.to_owned(),
            container: container.to_owned(),
            resource: resource.to_owned(),
            ids,
            init,
        });
        let gpus: BTreeSet<_> = holdings
            .iter()
            .flat_map(|held| &held.ids)
            .map(|id| gpu_of(id))
            .collect();
        if gpus.len() > 1 {
            self.faults.push(format!("{pod} is on several GPUs: {gpus:?}"));
        }
    }

    fn given_twice(&self, pod: &str, resource: &str, ids: &[String]) -> Option<String> {
        let others = self.pods.iter().filter(|(other, _)| *other != pod);
        let twice = others
            .flat_map(|(other, held)| held.iter().map(move |held| (other, held)))
            .find(|(_, held)| held.resource == resource && held.ids.iter().any(|id| ids.contains(id)));
        twice.map(|(other, _)| format!("{pod} was given {resource} that {other} has"))
    }

    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    pub(super) fn remove(&mut self, pod: &str) {
        self.pods.remove(pod);
    }

    pub(super) fn pods(&self) -> &BTreeMap<String, Vec<Holding>> {
        &self.pods
    }
}

/// The GPU that a device is of: `<GPU>::<number>`.
fn gpu_of(id: &str) -> &str {
    id.split_once("::").map_or(id, |(gpu, _)| gpu)
}
