//! The GPUs of the stand-alone agent. Its events tell of slices alone, so it is asked.

use std::time::Duration;

use penstock_core::wire::agent::GpuStatus;
use reqwest::Client;

use super::places::Places;

/// Asks for ever. An agent that does not answer is complained of by who follows its slices.
pub async fn follow_gpus(agent: Client, places: Places) {
    loop {
        match ask(&agent).await {
            Ok(gpus) => {
                places.gpus.send_replace(gpus);
            }
            Err(error) => tracing::debug!(%error, "asking the agent for its GPUs"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(agent: &Client) -> Result<Vec<GpuStatus>, reqwest::Error> {
    // The host part is for the protocol's sake only: the connection goes over the socket.
    let request = agent.get("http://agent/v1/gpus").timeout(WITHIN);
    request.send().await?.error_for_status()?.json().await
}

/// GPUs change only when one breaks or is repaired.
const EVERY: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(3);
