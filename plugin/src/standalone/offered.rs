//! What the agent offers: this machine's GPUs as they come, go and fall ill, or its CPU.
//!
//! ```text
//!   --units N ───────────────────────────────────────────────────► the CPU
//!   --gpus … ────────────────────────────────────────────────────► those GPUs
//!   neither ──► does NVML show a GPU with an encoder? ── yes ────► all GPUs
//!                                                     └─ no ─────► the CPU, and the log says why
//! ```

use std::future::pending;
use std::path::Path;

use anyhow::Context as _;
use penstock_core::metrics::PLUGIN_XIDS;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::task::JoinSet;

use super::agent::Offer;
use super::{Capacity, software_offer};
use crate::assign::GpuOffer;
use crate::gpus::{Followed, Gpus};
use crate::mps::Layout;
use crate::nvml::inventory::Inventory;
use crate::nvml::{in_full, open};
use crate::offers::{Known, NOT_LOOKED_AT, offers};
use crate::settings::{GpuArgs, OptedIn, Settings};

/// What is offered.
pub(super) enum Offered {
    /// The CPU, which never changes.
    Software(Offer),
    /// GPUs, and what follows them as long as this lives.
    Gpus {
        followed: Followed,
        _follows: JoinSet<()>,
    },
}

impl Offered {
    /// Finds out, waiting for NVML where GPUs were named and it is not there.
    ///
    /// # Errors
    /// Where the configuration can't be read, or the CPU not be measured.
    pub(super) async fn find(
        gpus: &GpuArgs,
        capacity: &Capacity,
        mps: Layout,
        streamer: &Path,
        registry: &Registry,
    ) -> anyhow::Result<Self> {
        let cpu = async || {
            software_offer(capacity, &gpus.config()?, Some(streamer), None)
                .await
                .map(Self::Software)
        };
        if capacity.units.is_some() {
            return cpu().await;
        }
        let settings = gpus.settings()?;
        let opted_in = match &gpus.gpus {
            Some(opted_in) => opted_in.clone(),
            None => match encoders(gpus, &settings) {
                Ok(()) => OptedIn::All,
                Err(why) => {
                    tracing::info!("offering this machine's CPU, and no GPU: {why}");
                    return cpu().await;
                }
            },
        };
        let xids = IntCounterVec::new(Opts::new(PLUGIN_XIDS.name, PLUGIN_XIDS.help), &["gpu", "xid"])?;
        registry.register(Box::new(xids.clone()))?;
        let library = gpus.nvml.nvml_library.clone();
        let (follower, mut followed) = Gpus::follow(library, opted_in, settings, mps, xids)?;
        let mut follows = JoinSet::new();
        follows.spawn(async move {
            let _ = follower.run(false).await;
        });
        let all_looked_at = |offers: &Option<Vec<GpuOffer>>| {
            let waits = |offer: &GpuOffer| offer.unhealthy.values().any(|why| why == NOT_LOOKED_AT);
            let offers = offers.as_deref().unwrap_or_default();
            !offers.is_empty() && !offers.iter().any(waits)
        };
        tracing::info!("waiting for the driver to show the GPUs that were opted in");
        let looked = followed.offers.wait_for(all_looked_at).await;
        looked.context("waiting for GPUs")?;
        Ok(Self::Gpus {
            followed,
            _follows: follows,
        })
    }

    /// What is offered now.
    pub(super) fn now(&mut self) -> Vec<Offer> {
        let followed = match self {
            Self::Software(offer) => return vec![offer.clone()],
            Self::Gpus { followed, .. } => followed,
        };
        let described = followed.described.borrow();
        let offers = followed.offers.borrow_and_update();
        let offer = |gpu: &GpuOffer| {
            let description = described.get(&gpu.uuid);
            Offer {
                uuid: gpu.uuid.clone(),
                model: description.map(|d| d.model.clone()).unwrap_or_default(),
                capacity: gpu.capacity,
                engine: description.and_then(|d| d.engine),
                mps_clients: gpu.mps_clients.try_into().unwrap_or(usize::MAX),
                unhealthy: gpu.unhealthy.clone(),
            }
        };
        offers.iter().flatten().map(offer).collect()
    }

    /// Waits for a change.
    pub(super) async fn changed(&mut self) {
        if let Self::Gpus { followed, .. } = self
            && followed.offers.changed().await.is_ok()
        {
            return;
        }
        // Nothing changes any more.
        pending().await
    }
}

/// Whether NVML shows a GPU with an encoder; why not, in words.
fn encoders(gpus: &GpuArgs, settings: &Settings) -> Result<(), String> {
    let nvml = open(gpus.nvml.nvml_library.as_deref()).map_err(|error| in_full(&error))?;
    let known = Known {
        inventory: Inventory::read(&nvml).map_err(|error| in_full(&error))?,
        ..Known::default()
    };
    let offers = offers(&known, &OptedIn::All, settings);
    if offers.iter().any(|offer| offer.capacity.nvenc.0 > 0) {
        return Ok(());
    }
    let models: Vec<_> = known.inventory.usable().map(|gpu| gpu.model.as_str()).collect();
    Err(match models.as_slice() {
        [] => "NVML shows none that can be used".to_owned(),
        models => format!(
            "of {} no encoder is known (--config tells of one, --gpus all offers the rest of them)",
            models.join(", ")
        ),
    })
}
