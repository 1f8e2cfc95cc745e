//! What the kubelet serves.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::thread;

use futures_util::stream;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::Shared;
use super::books::Holding;
use super::device_plugin::registration_server::{Registration, RegistrationServer};
use super::device_plugin::{Empty, RegisterRequest};
use super::pod_resources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use super::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};

/// The servers; dropped, they end.
pub(super) struct Servers(JoinSet<()>);

impl Servers {
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let mut servers = Self(JoinSet::new());
        servers.serve_registration(shared);
        let listener = listen_by_std(shared.directory.join("pod-resources/kubelet.sock"));
        let service = PodResourcesListerServer::new(Facade(Arc::clone(shared)));
        let serving = async move {
            let incoming = connections(UnixListener::from_std(listener).unwrap());
            Server::builder()
                .serve_with_incoming(service, incoming)
                .await
                .unwrap();
        };
        servers.0.spawn_on(serving, &BESIDE);
        servers
    }

    pub(super) fn serve_registration(&mut self, shared: &Arc<Shared>) {
        let listener = listen(shared.plugin_dir().join("kubelet.sock"));
        let service = RegistrationServer::new(Facade(Arc::clone(shared)));
        self.0.spawn(async move {
            let incoming = connections(listener);
            Server::builder()
                .serve_with_incoming(service, incoming)
                .await
                .unwrap();
        });
    }
}

/// What the kubelet stores of devices, among the plugins' sockets.
pub(super) const CHECKPOINT: &str = "kubelet_internal_checkpoint";

struct Facade(Arc<Shared>);

#[tonic::async_trait]
impl Registration for Facade {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.register(request.into_inner()).await?;
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Facade {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pod_resources = self.0.pod_resources();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for by any test"))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let asked = request.into_inner();
        let found = self.0.pod_resources().into_iter();
        let found = { found }.find(|pod| pod.name == asked.pod_name && pod.namespace == asked.pod_namespace);
        let found = found.ok_or_else(|| Status::not_found("pod not found"))?;
        Ok(Response::new(GetPodResourcesResponse {
            pod_resources: Some(found),
        }))
    }
}

impl Shared {
    /// Stores what all containers hold, those of init containers too. The checksum is over Go's own print of it; nobody
    /// but the kubelet can tell whether it is right.
    pub(super) fn write_checkpoint(&self) {
        let held = { self.books() }
            .pods()
            .values()
            .flatten()
            .cloned()
            .collect::<Vec<_>>();
        let entry = |held: &Holding| {
            json!({
                "PodUID": held.pod_uid, "ContainerName": held.container, "ResourceName": held.resource,
                "DeviceIDs": { "-1": held.ids }, "AllocResp": "CgA=",
            })
        };
        let entries: Vec<_> = held.iter().map(entry).collect();
        let file = json!({ "Data": { "PodDeviceEntries": entries, "RegisteredDevices": {} }, "Checksum": 1 });
        let path = self.plugin_dir().join(CHECKPOINT);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, file.to_string()).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// Each device ID is an entry of its own. Init containers that end are left out.
    fn pod_resources(&self) -> Vec<PodResources> {
        let books = self.books();
        let pods = books.pods().iter().map(|(pod, holdings)| {
            let (namespace, name) = pod.split_once('/').unwrap();
            let mut containers: Vec<ContainerResources> = Vec::new();
            for held in holdings.iter().filter(|held| !held.init) {
                let known = containers
                    .iter()
                    .position(|container| container.name == held.container);
                let at = known.unwrap_or(containers.len());
                if known.is_none() {
                    containers.push(ContainerResources {
                        name: held.container.clone(),
                        ..ContainerResources::default()
                    });
                }
                containers[at]
                    .devices
                    .extend(held.ids.iter().map(|id| ContainerDevices {
                        resource_name: held.resource.clone(),
                        device_ids: vec![id.clone()],
                        topology: None,
                    }));
            }
            PodResources {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                containers,
            }
        });
        pods.collect()
    }
}

/// What tells of pods is on a thread of its own: calls of plugins, which are timed, don't wait for it in a kubelet.
static BESIDE: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

fn listen(path: PathBuf) -> UnixListener {
    let listener = listen_by_std(path);
    UnixListener::from_std(listener).unwrap()
}

fn listen_by_std(path: PathBuf) -> std::os::unix::net::UnixListener {
    if path.exists() {
        std::fs::remove_file(&path).unwrap();
    }
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn connections(
    listener: UnixListener,
) -> impl futures_util::Stream<Item = std::io::Result<tokio::net::UnixStream>> {
    stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        Some((accepted, listener))
    })
}
