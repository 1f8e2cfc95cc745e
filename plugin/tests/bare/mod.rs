//! A device plugin that thinks nothing: what a call costs that only crosses the socket.

#![allow(clippy::unwrap_used)] // Here a panic is a benchmark that failed.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream};
use tokio::net::UnixListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::kubelet::device_plugin::device_plugin_client::DevicePluginClient;
use super::kubelet::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use super::kubelet::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use super::kubelet::{Took, dial, until};

/// How long such a plugin takes for `calls` of each kind: to choose 13 out of `ids`, and to give them.
pub(crate) async fn took(directory: &Path, ids: &[String], calls: usize) -> Took {
    let socket = directory.join("bare.sock");
    let path = socket.clone();
    // It ends with this program.
    thread::spawn(move || serve(path));
    until("it serves", || socket.exists()).await;
    let mut client = DevicePluginClient::new(dial(socket).await.unwrap());
    let mut took = Took::default();
    for _ in 0..calls {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: ids.to_vec(),
                must_include_device_ids: Vec::new(),
                allocation_size: 13,
            }],
        };
        let asked = Instant::now();
        let answer = client.get_preferred_allocation(request).await.unwrap();
        took.preferred.push(asked.elapsed());
        let device_ids = answer.into_inner().container_responses.remove(0).device_ids;
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { device_ids }],
        };
        let asked = Instant::now();
        client.allocate(request).await.unwrap();
        took.allocate.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took
}

fn serve(socket: PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let incoming = stream::unfold(UnixListener::bind(socket).unwrap(), async |listener| {
            let accepted = listener.accept().await.map(|(connection, _)| connection);
            Some((accepted, listener))
        });
        let service = DevicePluginServer::new(Bare);
        Server::builder()
            .serve_with_incoming(service, incoming)
            .await
            .unwrap();
    });
}

struct Bare;

#[tonic::async_trait]
impl DevicePlugin for Bare {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let request = request.into_inner().container_requests.remove(0);
        let mut device_ids = request.available_device_ids;
        device_ids.truncate(usize::try_from(request.allocation_size).unwrap());
        let container_responses = vec![ContainerPreferredAllocationResponse { device_ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, _: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
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
