//! What containers hold, as the kubelet tells it: by its podresources interface, and in its checkpoint.
//!
//! ```text
//!   at start, every 10 s, and shortly after an allocation ──► List, checkpoint ──► Holdings
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
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse,
};
use super::socket;
use crate::assign::{Held, Stored};

/// All that the kubelet says of what containers hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// What podresources lists of ours.
    pub(crate) listed: Vec<Held>,
    /// The GPUs that other plugins have handed out.
    pub(crate) foreign: Foreign,
    /// What the checkpoint has of ours, where it can be read.
    pub(crate) stored: Option<Vec<Stored>>,
}

/// GPUs that are others', each with the reason why it is not for us.
pub(crate) type Foreign = BTreeMap<GpuUuid, String>;

/// A container, and whose.
#[derive(Debug, Clone, Copy)]
struct Holder<'a> {
    namespace: &'a str,
    pod: &'a str,
    container: &'a str,
}

/// What is held of our resources, and which GPUs are others'. A device ID of our resources that is none of ours is left
/// out.
fn read(answer: &ListPodResourcesResponse) -> (Vec<Held>, Foreign) {
    let (mut ours, mut foreign) = (Vec::new(), Foreign::new());
    let mut reader = DeviceIds::default();
    for pod in &answer.pod_resources {
        for container in &pod.containers {
            let holder = Holder {
                namespace: &pod.namespace,
                pod: &pod.name,
                container: &container.name,
            };
            for resource in Resource::ALL {
                ours.extend(held(holder, resource, &container.devices, &mut reader));
            }
            for (resource, id) in others(container) {
                if let Some(gpu) = gpu_named_in(id) {
                    foreign.entry(gpu).or_insert_with(|| holder.why_foreign(resource));
                }
            }
        }
    }
    (ours, foreign)
}

/// One resource of one container, where it holds any: the kubelet may say each device on its own.
fn held(
    holder: Holder<'_>,
    resource: Resource,
    devices: &[ContainerDevices],
    reader: &mut DeviceIds,
) -> Option<Held> {
    let of_it = devices.iter().filter(|of| of.resource_name == resource.name());
    of_it.clone().next()?;
    let ids = of_it.flat_map(|of| &of.device_ids);
    Some(Held {
        namespace: holder.namespace.to_owned(),
        pod: holder.pod.to_owned(),
        container: holder.container.to_owned(),
        resource,
        ids: ids.filter_map(|id| reader.read(id).ok()).collect(),
    })
}

/// What a container holds of other plugins and DRA drivers: the resource's or the driver's name, and the device's, which
/// of a claim is its CDI name.
fn others(container: &ContainerResources) -> impl Iterator<Item = (&str, &str)> {
    let is_theirs = |of: &&ContainerDevices| Resource::from_name(&of.resource_name).is_none();
    let devices = container.devices.iter().filter(is_theirs).flat_map(|of| {
        let ids = of.device_ids.iter();
        ids.map(|id| (of.resource_name.as_str(), id.as_str()))
    });
    let claims = container.dynamic_resources.iter();
    let claimed = { claims }
        .flat_map(|claim| &claim.claim_resources)
        .flat_map(|of| {
            let names = of.cdi_devices.iter();
            names.map(|device| (of.driver_name.as_str(), device.name.as_str()))
        });
    devices.chain(claimed)
}

impl Holder<'_> {
    fn why_foreign(self, resource: &str) -> String {
        let Self {
            namespace,
            pod,
            container,
        } = self;
        format!(
            "another device plugin has handed this GPU out, as {resource} to container {container} of pod \
             {namespace}/{pod}: end that pod, or opt the GPU out of one of the two plugins"
        )
    }
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
                Ok((listed, foreign)) => Ok(Holdings {
                    listed,
                    foreign,
                    stored: self.stored(&mut said_of_checkpoint),
                }),
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

    async fn look(&self) -> anyhow::Result<(Vec<Held>, Foreign)> {
        let path = self.socket.display();
        let doing = || format!("asking the kubelet at {path} which pod holds which device");
        let channel = socket::connect(&self.socket).await.with_context(doing)?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = client
            .list(ListPodResourcesRequest {})
            .await
            .with_context(doing)?;
        // Calls of the kubelet may have come meanwhile.
        tokio::task::yield_now().await;
        Ok(read(&answer.into_inner()))
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

const LOOK_EVERY: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_millis(200);
/// Room for some 100,000 devices.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// `GPU-` or `MIG-`, and a UUID.
const GPU_UUID_LEN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::proto::pod_resources::{CdiDevice, ClaimResource, DynamicResource, PodResources};

    #[test]
    fn devices_that_come_one_by_one_are_put_together() {
        let answer = pod("a", vec![ours(0), ours(1), device("nvidia.com/gpu", GPU)]);
        let (held, foreign) = read(&answer);
        assert_eq!((held.len(), foreign.len()), (1, 1));
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
            let foreign = foreign(&pod("b", vec![device("nvidia.com/gpu", &id)]));
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
            let foreign = foreign(&pod("b", vec![device("nvidia.com/gpu", id)]));
            assert_eq!(foreign, Foreign::new(), "{id}");
        }
    }

    #[test]
    fn our_own_are_not_foreign() {
        assert_eq!(foreign(&pod("a", vec![ours(0)])), Foreign::new());
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
        let foreign = foreign(&answer);
        assert!(
            foreign[&GpuUuid::new(GPU).unwrap()].contains("as gpu.nvidia.com to container app"),
            "{foreign:?}"
        );
    }

    fn foreign(answer: &ListPodResourcesResponse) -> Foreign {
        read(answer).1
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
