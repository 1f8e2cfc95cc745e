//! The device lists that the kubelet is shown, one per resource.

use std::sync::Arc;

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::GpuUuid;
use tokio::sync::watch;

use super::proto::device_plugin::{Device, ListAndWatchResponse};
use super::proto::{HEALTHY, UNHEALTHY};
use crate::assign::GpuOffer;

/// One resource's list. It is thousands of devices long when it crosses the socket, and looked at far more often than
/// that, so it is kept by GPU.
pub(super) type DeviceList = Arc<Vec<OfGpu>>;

/// One GPU's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfGpu {
    gpu: GpuUuid,
    devices: u32,
    healthy: bool,
}

/// The units of `resource` that `gpus` have.
fn list(gpus: &[GpuOffer], resource: Resource) -> Vec<OfGpu> {
    let of = |gpu: &GpuOffer| OfGpu {
        gpu: gpu.uuid.clone(),
        devices: resource.of(gpu.capacity),
        healthy: !gpu.unhealthy.contains_key(&resource),
    };
    gpus.iter().map(of).filter(|of| of.devices > 0).collect()
}

impl OfGpu {
    /// Each unit as a device. No topology is said: the kubelet would then take devices of one NUMA node before it asks
    /// which we prefer.
    fn each(&self) -> impl Iterator<Item = Device> {
        let health = if self.healthy { HEALTHY } else { UNHEALTHY };
        (0..self.devices).map(move |number| Device {
            id: DeviceId::new(self.gpu.clone(), number).to_string(),
            health: health.to_owned(),
            topology: None,
        })
    }
}

/// Where the lists are published.
#[derive(Debug)]
pub(super) struct Lists {
    senders: [(Resource, watch::Sender<DeviceList>); 3],
}

/// Where they are read.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    receivers: [(Resource, watch::Receiver<DeviceList>); 3],
}

/// Lists that are empty as yet.
pub(super) fn lists() -> (Lists, Listed) {
    let senders = Resource::ALL.map(|resource| (resource, watch::Sender::default()));
    let receivers = senders
        .each_ref()
        .map(|(resource, sender)| (*resource, sender.subscribe()));
    (Lists { senders }, Listed { receivers })
}

impl Lists {
    /// Publishes the lists of `gpus`; a list that has not changed wakes nobody.
    pub(super) fn publish(&self, gpus: &[GpuOffer]) {
        for (resource, sender) in &self.senders {
            let devices = list(gpus, *resource);
            sender.send_if_modified(|published| {
                let differs = **published != devices;
                if differs {
                    *published = Arc::new(devices);
                }
                differs
            });
        }
    }
}

impl Listed {
    /// Each resource with its list.
    pub(super) fn each(&self) -> [(Resource, watch::Receiver<DeviceList>); 3] {
        self.receivers.clone()
    }
}

/// A list as the kubelet is sent it.
pub(super) fn response(list: &DeviceList) -> ListAndWatchResponse {
    ListAndWatchResponse {
        devices: list.iter().flat_map(OfGpu::each).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_unit_of_each_gpu_is_a_device_and_health_is_per_resource() {
        let gpus = [offer("GPU-a", "the MPS daemon is dead"), offer("GPU-b", "")];
        let list = response(&Arc::new(list(&gpus, Resource::Mps))).devices;
        let shown: Vec<_> = list.iter().map(|d| (d.id.as_str(), d.health.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("GPU-a::0", "Unhealthy"),
                ("GPU-a::1", "Unhealthy"),
                ("GPU-b::0", "Healthy"),
                ("GPU-b::1", "Healthy")
            ]
        );
        assert!(super::list(&gpus, Resource::Vram).is_empty());
    }

    #[test]
    fn only_a_changed_list_is_sent() {
        let (lists, listed) = lists();
        let [_, (_, mut mps), (_, vram)] = listed.each();
        lists.publish(&[offer("GPU-a", "")]);
        assert_eq!(response(&mps.borrow_and_update()).devices.len(), 2);
        assert!(!vram.has_changed().unwrap());
        lists.publish(&[offer("GPU-a", "")]);
        assert!(!mps.has_changed().unwrap());
        lists.publish(&[offer("GPU-a", "gone")]);
        assert!(mps.has_changed().unwrap());
    }

    fn offer(uuid: &str, ill: &str) -> GpuOffer {
        let unhealthy = match ill {
            "" => BTreeMap::new(),
            ill => BTreeMap::from([(Resource::Mps, ill.to_owned())]),
        };
        GpuOffer {
            uuid: GpuUuid::new(uuid).unwrap(),
            capacity: Resource::Mps.amount(2),
            mps_clients: 48,
            unhealthy,
        }
    }
}
