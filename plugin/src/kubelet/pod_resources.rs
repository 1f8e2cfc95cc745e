//! What containers hold, as the kubelet tells it: by its podresources interface, and in its checkpoint.
//!
//! ```text
//!   at start, every 10 s, and shortly after an allocation ──► List, checkpoint ──► Holdings ─┬─► held: what is ours
//!                                                                                            └─► foreign_gpus
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use penstock_core::device::{DeviceIds, Resource};
use penstock_core::ids::GpuUuid;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::checkpoint;
use super::proto::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use super::proto::pod_resources::{
    ContainerResources, DynamicResource, ListPodResourcesRequest, ListPodResourcesResponse,
};
use super::socket;
use crate::assign::{Held, Stored};

/// The devices of one resource, whoever offers it, that one container holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodDevices {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The container.
    pub(crate) container: String,
    /// The resource's name; of a DRA claim, its driver's.
    pub(crate) resource: String,
    /// The devices by the names that their plugin gave them; of a DRA claim, the names of its CDI devices.
    pub(crate) ids: Vec<String>,
}

/// All that the kubelet says of what containers hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// What podresources lists, of all plugins.
    pub(crate) listed: Vec<PodDevices>,
    /// What the checkpoint has of ours, where it can be read.
    pub(crate) stored: Option<Vec<Stored>>,
}

/// What is held of our resources. A device ID that is none of ours is left out.
pub(crate) fn held(holdings: &[PodDevices]) -> Vec<Held> {
    let mut reader = DeviceIds::default();
    let ours = |devices: &PodDevices| {
        Some(Held {
            namespace: devices.namespace.clone(),
            pod: devices.pod.clone(),
            container: devices.container.clone(),
            resource: Resource::from_name(&devices.resource)?,
            ids: devices.ids.iter().filter_map(|id| reader.read(id).ok()).collect(),
        })
    };
    holdings.iter().filter_map(ours).collect()
}

/// The GPUs that other plugins have handed out, each with the reason why it is not for us.
pub(crate) fn foreign_gpus(holdings: &[PodDevices]) -> BTreeMap<GpuUuid, String> {
    let mut foreign = BTreeMap::new();
    for devices in holdings {
        if Resource::from_name(&devices.resource).is_some() {
            continue;
        }
        for gpu in devices.ids.iter().filter_map(|id| gpu_named_in(id)) {
            foreign.entry(gpu).or_insert_with(|| why_foreign(devices));
        }
    }
    foreign
}

fn why_foreign(devices: &PodDevices) -> String {
    let PodDevices {
        namespace,
        pod,
        container,
        resource,
        ..
    } = devices;
    format!(
        "another device plugin has handed this GPU out, as {resource} to container {container} of pod \
         {namespace}/{pod}: end that pod, or opt the GPU out of one of the two plugins"
    )
}

/// The GPU or MIG instance that another plugin's device ID names: `GPU-…`, `GPU-…::3` (time slicing), `GPU-…-3`
/// or `vendor.com/gpu=GPU-…` (CDI).
fn gpu_named_in(id: &str) -> Option<GpuUuid> {
    let start = ["GPU-", "MIG-"].iter().find_map(|kind| id.find(kind))?;
    let uuid = id.get(start..start + GPU_UUID_LEN)?;
    let is_uuid = uuid[4..].chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_uuid.then(|| GpuUuid::new(uuid).ok()).flatten()
}

/// How to have podresources looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    /// Once the kubelet has had time to store what it was answered.
    pub(super) soon: Arc<Notify>,
    /// At once: a call waits for it.
    pub(super) now: Arc<Notify>,
}

/// Asks the kubelet, and publishes what it says.
pub(super) struct Looker {
    /// The kubelet's podresources socket.
    pub(super) socket: PathBuf,
    /// The kubelet's checkpoint.
    pub(super) checkpoint: PathBuf,
    /// When a look is asked for.
    pub(super) looks: Looks,
    /// Whether the kubelet knows us: when it begins to, a look is due.
    pub(super) registered: watch::Receiver<bool>,
    /// Where the answers go: every one, changed or not, since that it was said just now matters too.
    pub(super) holdings: watch::Sender<Arc<Holdings>>,
}

impl Looker {
    /// Looks until `told_to_end`.
    pub(super) async fn run(self, told_to_end: CancellationToken) {
        told_to_end.run_until_cancelled(self.look_for_ever()).await;
    }

    async fn look_for_ever(mut self) {
        let (mut said, mut said_of_checkpoint) = (false, false);
        loop {
            let looked = match self.look().await {
                Ok(listed) => {
                    let stored = self.stored(&mut said_of_checkpoint);
                    Ok(Holdings { listed, stored })
                }
                Err(error) => Err(error),
            };
            self.tell(looked, &mut said);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Ok(()) = self.registered.changed() => {}
                // The kubelet stores what it has just been answered, and calls for the pod's next resource.
                () = self.looks.soon.notified() => {
                    let settled = tokio::time::sleep(SETTLE);
                    let _ = futures_util::future::select(std::pin::pin!(settled), std::pin::pin!(self.looks.now.notified())).await;
                }
                () = self.looks.now.notified() => {}
            }
        }
    }

    async fn look(&self) -> anyhow::Result<Vec<PodDevices>> {
        let path = self.socket.display();
        let doing = || format!("asking the kubelet at {path} which pod holds which device");
        let channel = socket::connect(&self.socket).await.with_context(doing)?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = client
            .list(ListPodResourcesRequest {})
            .await
            .with_context(doing)?;
        Ok(flatten(answer.into_inner()))
    }

    /// What is in the checkpoint: a file of some hundred KiB at most, of the page cache. Says once that it can't be read.
    fn stored(&self, said: &mut bool) -> Option<Vec<Stored>> {
        match checkpoint::read(&self.checkpoint) {
            Ok(stored) => Some(stored),
            // A kubelet that has given nothing to anybody yet has written none.
            Err(error) => {
                if !std::mem::replace(said, true) {
                    let path = self.checkpoint.display();
                    tracing::debug!(
                        "reading the kubelet's checkpoint {path}: {error}. Until it can be read, what init containers hold is not known after a restart"
                    );
                }
                None
            }
        }
    }

    /// Says once what is wrong, and once that it is over. Where there is no kubelet at all, others say so.
    fn tell(&self, looked: anyhow::Result<Holdings>, said: &mut bool) {
        match looked {
            Ok(holdings) => {
                self.holdings.send_replace(Arc::new(holdings));
                if std::mem::take(said) {
                    tracing::info!("the kubelet says again which pod holds which device");
                }
            }
            Err(error) if *self.registered.borrow() && !*said => {
                *said = true;
                tracing::warn!(
                    "{error:#}; until it answers, what pods hold is known from earlier answers only, and \
                     allocations can't be checked (is pod-resources/ of --kubelet-dir mounted?)"
                );
            }
            Err(error) => tracing::debug!("{error:#}"),
        }
    }
}

/// One entry per container and resource: the kubelet may say each device on its own.
fn flatten(answer: ListPodResourcesResponse) -> Vec<PodDevices> {
    let mut holdings = Vec::new();
    for pod in answer.pod_resources {
        for container in pod.containers {
            let name = container.name.clone();
            holdings.extend(
                by_resource(container)
                    .into_iter()
                    .map(|(resource, ids)| PodDevices {
                        namespace: pod.namespace.clone(),
                        pod: pod.name.clone(),
                        container: name.clone(),
                        resource,
                        ids,
                    }),
            );
        }
    }
    holdings
}

fn by_resource(container: ContainerResources) -> BTreeMap<String, Vec<String>> {
    let mut resources: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for devices in container.devices {
        let ids = resources.entry(devices.resource_name).or_default();
        ids.extend(devices.device_ids);
    }
    for (driver, device) in container.dynamic_resources.into_iter().flat_map(claimed) {
        resources.entry(driver).or_default().push(device);
    }
    resources
}

/// The driver and CDI name of each device that a claim holds.
fn claimed(claim: DynamicResource) -> impl Iterator<Item = (String, String)> {
    claim.claim_resources.into_iter().flat_map(|claimed| {
        let driver = claimed.driver_name;
        let devices = claimed.cdi_devices.into_iter();
        devices.map(move |device| (driver.clone(), device.name))
    })
}

const LOOK_EVERY: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_millis(200);
/// Room for some 100,000 devices.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// `GPU-` or `MIG-`, and a UUID.
const GPU_UUID_LEN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::proto::pod_resources::{CdiDevice, ClaimResource, ContainerDevices, PodResources};

    #[test]
    fn devices_that_come_one_by_one_are_put_together() {
        let answer = pod("a", vec![ours(0), ours(1), device("nvidia.com/gpu", GPU)]);
        let holdings = flatten(answer);
        assert_eq!(holdings.len(), 2);
        let held = held(&holdings);
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].resource, held[0].ids.len()), (Resource::Nvenc, 2));
        assert_eq!(
            (&*held[0].namespace, &*held[0].pod, &*held[0].container),
            ("games", "a", "app")
        );
    }

    #[test]
    fn another_plugins_gpu_is_known_however_it_writes_it() {
        let ids = [
            GPU.to_owned(),
            format!("{GPU}::3"),
            format!("{GPU}-3"),
            format!("nvidia.com/gpu={GPU}"),
        ];
        for id in ids {
            let foreign = foreign_gpus(&flatten(pod("b", vec![device("nvidia.com/gpu", &id)])));
            let why = &foreign[&GpuUuid::new(GPU).unwrap()];
            assert!(why.contains("nvidia.com/gpu") && why.contains("games/b"), "{why}");
        }
        for id in [
            "0",
            "GPU-",
            "GPU-0",
            "nvidia0",
            "GPU-zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz",
            "MIG-é",
        ] {
            let foreign = foreign_gpus(&flatten(pod("b", vec![device("nvidia.com/gpu", id)])));
            assert_eq!(foreign, BTreeMap::new(), "{id}");
        }
    }

    #[test]
    fn our_own_are_not_foreign() {
        assert_eq!(foreign_gpus(&flatten(pod("a", vec![ours(0)]))), BTreeMap::new());
    }

    #[test]
    fn a_claim_that_names_a_gpu_is_foreign() {
        let claimed = ClaimResource {
            cdi_devices: vec![CdiDevice {
                name: format!("k8s.gpu.nvidia.com/device={GPU}"),
            }],
            driver_name: "gpu.nvidia.com".to_owned(),
            ..ClaimResource::default()
        };
        let mut answer = pod("c", Vec::new());
        answer.pod_resources[0].containers[0].dynamic_resources = vec![DynamicResource {
            claim_resources: vec![claimed],
            ..DynamicResource::default()
        }];
        assert!(
            foreign_gpus(&flatten(answer))
                .values()
                .all(|why| why.contains("gpu.nvidia.com"))
        );
    }

    fn pod(name: &str, devices: Vec<ContainerDevices>) -> ListPodResourcesResponse {
        let container = ContainerResources {
            name: "app".to_owned(),
            devices,
            ..ContainerResources::default()
        };
        let pod = PodResources {
            name: name.to_owned(),
            namespace: "games".to_owned(),
            containers: vec![container],
        };
        ListPodResourcesResponse {
            pod_resources: vec![pod],
        }
    }

    fn ours(number: u32) -> ContainerDevices {
        device("penstock.dev/nvenc", &format!("{GPU}::{number}"))
    }

    fn device(resource: &str, id: &str) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.to_owned(),
            device_ids: vec![id.to_owned()],
            topology: None,
        }
    }

    const GPU: &str = "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76";
}
