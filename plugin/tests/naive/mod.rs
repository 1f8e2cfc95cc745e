//! A small device plugin of two resources and two GPUs, which does right or makes one mistake. It keeps what it gave
//! in its own memory alone, so at a start it has to ask podresources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::kubelet::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use super::kubelet::device_plugin::registration_client::RegistrationClient;
use super::kubelet::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    Device, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use super::kubelet::pod_resources::ListPodResourcesRequest;
use super::kubelet::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use super::kubelet::{dial, until};

pub(crate) const RESOURCES: [&str; 2] = ["example.com/a", "example.com/b"];
pub(crate) const GPUS: [&str; 2] = ["GPU-0", "GPU-1"];
/// Of each resource, of each GPU.
pub(crate) const UNITS: usize = 12;

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// It takes the first resource's call for a pod's first one, always.
    OneOrder,
    /// It registers again and leaves its old streams open.
    OldStreamsGoOn,
    /// At a start it takes all for free, whatever pods hold.
    Forgets,
}

/// The plugin.
pub(crate) struct Naive {
    directory: PathBuf,
    shared: Arc<Shared>,
    serving: Mutex<Vec<Serving>>,
}

struct Shared {
    mistake: Option<Mistake>,
    ledger: Mutex<Ledger>,
}

struct Serving {
    servers: JoinSet<()>,
    closing: CancellationToken,
}

#[derive(Default)]
struct Ledger {
    /// Of each resource of each GPU, how much is given; what pods give back it never hears of.
    given: BTreeMap<(String, String), usize>,
    /// The resource and the GPU of the last call, until the pod's other one has come.
    half: Option<(String, String)>,
}

impl Naive {
    /// A plugin that is registered.
    pub(crate) async fn start(kubelet_dir: &Path, mistake: Option<Mistake>) -> Self {
        let mut ledger = Ledger::default();
        if mistake != Some(Mistake::Forgets) {
            ledger.read(kubelet_dir).await;
        }
        let plugin = Self {
            directory: kubelet_dir.join("device-plugins"),
            shared: Arc::new(Shared {
                mistake,
                ledger: Mutex::new(ledger),
            }),
            serving: Mutex::default(),
        };
        plugin.register().await;
        plugin
    }

    pub(crate) async fn register_again(&self) {
        if self.shared.mistake != Some(Mistake::OldStreamsGoOn) {
            self.close().await;
        }
        self.register().await;
    }

    pub(crate) async fn end(self) {
        self.close().await;
    }

    async fn close(&self) {
        let serving = std::mem::take(&mut *self.serving.lock().unwrap());
        for mut serving in serving {
            serving.closing.cancel();
            while serving.servers.join_next().await.is_some() {}
        }
    }

    async fn register(&self) {
        let closing = CancellationToken::new();
        let mut servers = JoinSet::new();
        for resource in RESOURCES {
            let path = self.directory.join(socket(resource));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(path).unwrap();
            let service = Service {
                resource,
                shared: Arc::clone(&self.shared),
                closing: closing.clone(),
            };
            let incoming = stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(connection, _)| connection);
                Some((accepted, listener))
            });
            let end = closing.clone().cancelled_owned();
            let serving = Server::builder().serve_with_incoming_shutdown(
                DevicePluginServer::new(service),
                incoming,
                end,
            );
            servers.spawn(async move { serving.await.unwrap() });
        }
        let kubelet = self.directory.join("kubelet.sock");
        until("there is a kubelet", || kubelet.exists()).await;
        let mut client = RegistrationClient::new(dial(kubelet).await.unwrap());
        for resource in RESOURCES {
            let request = RegisterRequest {
                version: "v1beta1".to_owned(),
                endpoint: socket(resource),
                resource_name: resource.to_owned(),
                options: None,
            };
            client.register(request).await.unwrap();
        }
        self.serving.lock().unwrap().push(Serving { servers, closing });
    }
}

fn socket(resource: &str) -> String {
    format!("{}.sock", resource.replace('/', "-"))
}

fn gpu_of(id: &str) -> &str {
    id.split_once("::").unwrap().0
}

impl Ledger {
    /// What pods hold, as podresources says.
    async fn read(&mut self, kubelet_dir: &Path) {
        let channel = dial(kubelet_dir.join("pod-resources/kubelet.sock"))
            .await
            .unwrap();
        let list = PodResourcesListerClient::new(channel)
            .list(ListPodResourcesRequest {})
            .await
            .unwrap();
        let pods = list.into_inner().pod_resources.into_iter();
        for devices in pods
            .flat_map(|pod| pod.containers)
            .flat_map(|container| container.devices)
        {
            for id in &devices.device_ids {
                self.give(&devices.resource_name, gpu_of(id), 1);
            }
        }
    }

    fn give(&mut self, resource: &str, gpu: &str, count: usize) {
        *self
            .given
            .entry((resource.to_owned(), gpu.to_owned()))
            .or_default() += count;
    }

    /// The GPU that has given least of any resource.
    fn emptiest(&self) -> String {
        let most = |gpu: &&str| {
            let given = |resource: &str| self.given.get(&(resource.to_owned(), (*gpu).to_owned()));
            RESOURCES
                .iter()
                .filter_map(|resource| given(resource))
                .max()
                .copied()
        };
        (*GPUS.iter().min_by_key(|gpu| most(gpu)).unwrap()).to_owned()
    }

    fn choose(&mut self, resource: &str, mistake: Option<Mistake>) -> String {
        let begins = match (mistake, &self.half) {
            (Some(Mistake::OneOrder), _) => resource == RESOURCES[0],
            (_, Some((other, _))) => other == resource,
            (_, None) => true,
        };
        match &self.half {
            Some((_, gpu)) if !begins => gpu.clone(),
            _ => self.emptiest(),
        }
    }

    fn note(&mut self, resource: &str, gpu: &str, count: usize, mistake: Option<Mistake>) {
        self.give(resource, gpu, count);
        let ends = self.half.as_ref().is_some_and(|(other, _)| other != resource);
        match mistake {
            Some(Mistake::OneOrder) if resource != RESOURCES[0] => {}
            Some(Mistake::OneOrder) => self.half = Some((resource.to_owned(), gpu.to_owned())),
            _ if ends => self.half = None,
            _ => self.half = Some((resource.to_owned(), gpu.to_owned())),
        }
    }
}

struct Service {
    resource: &'static str,
    shared: Arc<Shared>,
    closing: CancellationToken,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {
            pre_start_required: false,
            get_preferred_allocation_available: true,
        }))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device = |gpu: &str, n: usize| Device {
            id: format!("{gpu}::{n}"),
            health: "Healthy".to_owned(),
            topology: None,
        };
        let devices = GPUS
            .iter()
            .flat_map(|gpu| (0..UNITS).map(|n| device(gpu, n)))
            .collect();
        let list = stream::iter([Ok(ListAndWatchResponse { devices })]).chain(stream::pending());
        Ok(Response::new(
            list.take_until(self.closing.clone().cancelled_owned()).boxed(),
        ))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let request = request.into_inner().container_requests.remove(0);
        let gpu = self
            .shared
            .ledger
            .lock()
            .unwrap()
            .choose(self.resource, self.shared.mistake);
        let mut device_ids = request.available_device_ids;
        device_ids.retain(|id| gpu_of(id) == gpu);
        device_ids.truncate(usize::try_from(request.allocation_size).unwrap());
        let container_responses = vec![ContainerPreferredAllocationResponse { device_ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).device_ids;
        let mut ledger = self.shared.ledger.lock().unwrap();
        ledger.note(self.resource, gpu_of(&ids[0]), ids.len(), self.shared.mistake);
        Ok(Response::new(AllocateResponse {
            container_responses: vec![ContainerAllocateResponse::default()],
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
