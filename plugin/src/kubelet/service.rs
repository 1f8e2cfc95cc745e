//! What the kubelet calls: one service per resource, which asks the owner task and puts its words into gRPC.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use penstock_core::device::{DeviceIds, Resource};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::devices::{self, DeviceList};
use super::owner::{Call, Question};
use super::proto::device_plugin::device_plugin_server::DevicePlugin;
use super::proto::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use crate::assign::Devices;

/// One resource, for the time of one registration.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// The resource.
    pub(super) resource: Resource,
    /// Its devices.
    pub(super) devices: watch::Receiver<DeviceList>,
    /// Asks the owner.
    pub(super) calls: mpsc::Sender<Call>,
    /// Counts the streams on which the kubelet watches the devices.
    pub(super) watchers: watch::Sender<usize>,
    /// Counts the calls that have no answer yet.
    pub(super) unanswered: watch::Sender<usize>,
    /// Ends the streams and the calls that wait.
    pub(super) closing: CancellationToken,
}

/// What the kubelet is told of us.
pub(super) fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: false,
        get_preferred_allocation_available: true,
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut devices = self.devices.clone();
        devices.mark_changed();
        let watching = Counted::begin(&self.watchers);
        let lists = stream::unfold((devices, watching), async |(mut devices, watching)| {
            devices.changed().await.ok()?;
            let list = devices::response(&devices.borrow_and_update());
            Some((Ok(list), (devices, watching)))
        });
        let until_closing = lists.take_until(self.closing.clone().cancelled_owned());
        Ok(Response::new(until_closing.boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let mut container_responses = Vec::new();
        for request in request.into_inner().container_requests {
            container_responses.push(self.preferred(request).await?);
        }
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for request in request.into_inner().container_requests {
            container_responses.push(self.allocated(request).await?);
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

impl Service {
    async fn preferred(
        &self,
        request: ContainerPreferredAllocationRequest,
    ) -> Result<ContainerPreferredAllocationResponse, Status> {
        let size = usize::try_from(request.allocation_size)
            .map_err(|_| Status::invalid_argument("the size of an allocation can't be negative"))?;
        let available = parse(&request.available_device_ids)?;
        let must_include = parse(&request.must_include_device_ids)?;
        let preferred = self
            .ask(|answer| Question::Preferred {
                available,
                must_include,
                size,
                answer,
            })
            .await?;
        // What is missing of a list the kubelet fills up at random, maybe from another GPU.
        if preferred.len() != size {
            let found = preferred.len();
            return Err(Status::internal(format!(
                "a bug: {found} devices were preferred where {size} were asked for"
            )));
        }
        let device_ids = preferred.iter().map(|id| id.to_string()).collect();
        Ok(ContainerPreferredAllocationResponse { device_ids })
    }

    async fn allocated(
        &self,
        request: ContainerAllocateRequest,
    ) -> Result<ContainerAllocateResponse, Status> {
        let ids = parse(&request.device_ids)?;
        let answer = self.ask(|answer| Question::Allocate { ids, answer }).await?;
        Ok(answer.into())
    }

    /// Asks the owner, and waits for its answer for as long as it takes.
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Question,
    ) -> Result<T, Status> {
        let _unanswered = Counted::begin(&self.unanswered);
        let (answer, answered) = oneshot::channel();
        let call = Call {
            resource: self.resource,
            question: question(answer),
        };
        let ending = || Status::unavailable("the Penstock plugin of this node is ending or being restarted");
        self.calls.send(call).await.map_err(|_| ending())?;
        let answer = self.closing.run_until_cancelled(answered).await;
        answer
            .ok_or_else(ending)?
            .map_err(|_| ending())?
            .map_err(Status::failed_precondition)
    }
}

fn parse(ids: &[String]) -> Result<Devices, Status> {
    let mut reader = DeviceIds::default();
    let parsed = ids.iter().map(|id| reader.read(id));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Counts a stream or a call for as long as it lives.
#[derive(Debug)]
struct Counted(watch::Sender<usize>);

impl Counted {
    fn begin(counter: &watch::Sender<usize>) -> Self {
        counter.send_modify(|count| *count += 1);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Counted by `begin`, and dropped once.
        self.0.send_modify(|count| *count -= 1);
    }
}
