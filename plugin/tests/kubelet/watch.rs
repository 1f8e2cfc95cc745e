//! Dialling a plugin back, and watching its devices.

use std::sync::Arc;

use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::device_plugin::device_plugin_client::DevicePluginClient;
use super::device_plugin::{Empty, ListAndWatchResponse, RegisterRequest};
use super::{Shared, dial};

impl Shared {
    /// All that the kubelet does before it answers a registration: a plugin that does not serve yet is refused.
    pub(super) async fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<(), Status> {
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument("the version is not supported"));
        }
        let life = self.books().life();
        let refused = |error: String| Status::unknown(format!("failed to dial device plugin: {error}"));
        let socket = self.plugin_dir().join(&request.endpoint);
        let channel = dial(socket).await.map_err(|error| refused(error.to_string()))?;
        let mut client = DevicePluginClient::new(channel);
        let options = client.get_device_plugin_options(Empty {}).await?.into_inner();
        if !options.get_preferred_allocation_available {
            return Err(refused(
                "this stand-in is for plugins that have a preference".to_owned(),
            ));
        }
        let resource = request.resource_name;
        let watching = tokio::spawn(Arc::clone(self).watch(life, resource.clone(), client.clone()));
        let watching = watching.abort_handle();
        match self.books().register(life, &resource, client, watching) {
            true => Ok(()),
            false => Err(Status::unavailable("the kubelet has ended meanwhile")),
        }
    }

    async fn watch(self: Arc<Self>, life: u64, resource: String, mut client: DevicePluginClient<Channel>) {
        if let Ok(stream) = client.list_and_watch(Empty {}).await {
            self.follow(life, &resource, stream.into_inner()).await;
        }
        self.books().stream_ended(life, &resource);
    }

    async fn follow(&self, life: u64, resource: &str, mut stream: Streaming<ListAndWatchResponse>) {
        while let Ok(Some(list)) = stream.message().await {
            for device in &list.devices {
                assert!(device.id.len() <= 63, "{} is too long for a device ID", device.id);
                assert!(
                    device.topology.is_none(),
                    "NUMA nodes would come before our preference"
                );
            }
            self.books().listed(life, resource, list.devices);
        }
    }
}
