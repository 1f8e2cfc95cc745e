//! What is offered of each GPU, and what of it is not to be used now.
//!
//! ```text
//!  NVML's inventory ──┐
//!  its health ────────┼──► offers ──► GpuOffer per GPU that was opted in
//!  MPS daemons ───────┤
//!  settings ──────────┘
//! ```
//!
//! Encoder units come from the table of models, scaled by the video clock, less the headroom; from the settings
//! where they say otherwise. What is not known offers none.

use std::collections::BTreeMap;

use penstock_core::device::Resource;
use penstock_core::gpu_models::{self, Model};
use penstock_core::ids::GpuUuid;
use penstock_core::packing::Resources;
use penstock_core::units::{EncoderUnits, SmPercent, VRAM_BLOCK_BYTES, VramBlocks};

use crate::assign::GpuOffer;
use crate::mps::{Health, mps_client_limit};
use crate::nvml::health::Verdict;
use crate::nvml::inventory::{CudaVersion, Gpu, Inventory, Kind};
use crate::settings::{OptedIn, Settings};

/// All that is known of the GPUs of this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) inventory: Inventory,
    /// GPUs that were in it once and that the driver does not list any more.
    pub(crate) lost: Vec<Gpu>,
    pub(crate) health: BTreeMap<GpuUuid, Verdict>,
    pub(crate) daemons: BTreeMap<GpuUuid, Health>,
}

impl Known {
    /// Takes in the GPUs that the driver lists now. One that it does not list any more stays, as lost: pods run on it, and
    /// whoever counts GPUs must see it ill rather than never have been there. But a MIG instance whose GPU is listed was
    /// taken apart on purpose, as was a whole GPU that is divided now.
    pub(crate) fn found(&mut self, inventory: Inventory) {
        let before = self.inventory.usable().chain(&self.lost);
        let is_gone = |gpu: &&Gpu| inventory.physical().all(|listed| listed.uuid != *gpu.physical());
        self.lost = before.filter(is_gone).cloned().collect();
        self.inventory = inventory;
    }

    fn is_lost(&self, gpu: &Gpu) -> bool {
        self.lost.iter().any(|lost| lost.uuid == gpu.uuid)
    }
}

/// The GPUs that are offered, in NVML's order; those that are lost come last, and nothing of them can be used.
pub(crate) fn offered<'a>(known: &'a Known, opted_in: &'a OptedIn) -> impl Iterator<Item = &'a Gpu> {
    let gpus = known.inventory.usable().chain(&known.lost);
    gpus.filter(|gpu| opted_in.has(gpu))
}

/// What is offered of each.
pub(crate) fn offers(known: &Known, opted_in: &OptedIn, settings: &Settings) -> Vec<GpuOffer> {
    offered(known, opted_in)
        .map(|gpu| offer(known, gpu, settings))
        .collect()
}

/// What the encoders of a GPU have in all. What an administrator offers of them counts as all of them.
pub(crate) fn encoders(gpu: &Gpu, settings: &Settings) -> EncoderUnits {
    let wished = settings.wished(gpu, |o| o.nvenc);
    wished.map_or_else(|| encoder_units(gpu), EncoderUnits)
}

/// What one engine of a GPU has, and so its largest single stream, less the headroom; `None` where that is not known.
pub(crate) fn engine(gpu: &Gpu, settings: &Settings) -> Option<EncoderUnits> {
    if let Some(units) = settings.wished(gpu, |o| o.nvenc_engine) {
        return Some(EncoderUnits(units));
    }
    let units = Model::find(&gpu.model)?.engine_units(gpu.max_video_clock_mhz);
    Some(after_headroom(units, settings.headroom_percent)).filter(|units| units.0 > 0)
}

/// The encoder sessions that the driver allows at one time on all GPUs that it caps, where this is one of them.
pub(crate) fn session_limit(inventory: &Inventory, gpu: &Gpu, settings: &Settings) -> Option<u32> {
    let driver = inventory.driver_version.as_deref().unwrap_or_default();
    let limit = gpu_models::session_limit(&gpu.model, driver)?;
    Some(settings.encoder_sessions.unwrap_or(limit))
}

fn offer(known: &Known, gpu: &Gpu, settings: &Settings) -> GpuOffer {
    let wished = |of| settings.wished(gpu, of);
    let memory = gpu.memory_bytes.unwrap_or(0) / VRAM_BLOCK_BYTES;
    let by_table = after_headroom(encoder_units(gpu), settings.headroom_percent);
    let limit = mps_client_limit(known.inventory.cuda_version.map_or(0, CudaVersion::number));
    GpuOffer {
        uuid: gpu.uuid.clone(),
        capacity: Resources {
            nvenc: EncoderUnits(wished(|o| o.nvenc).unwrap_or(by_table.0)),
            mps: SmPercent(wished(|o| o.mps).unwrap_or(100)),
            vram: VramBlocks(wished(|o| o.vram).unwrap_or(u32::try_from(memory).unwrap_or(u32::MAX))),
        },
        mps_clients: wished(|o| o.mps_clients).unwrap_or(limit) / settings.clients_per_container(),
        unhealthy: unhealthy(known, gpu),
    }
}

/// A MIG instance has the encoders of its profile, and where NVML does not tell, none.
fn encoder_units(gpu: &Gpu) -> EncoderUnits {
    let Some(model) = Model::find(&gpu.model) else {
        return EncoderUnits(0);
    };
    match &gpu.kind {
        Kind::Mig(instance) => {
            let engine = model.engine_units(gpu.max_video_clock_mhz).0;
            EncoderUnits(engine * instance.encoders.unwrap_or(0).min(model.engines))
        }
        Kind::Whole | Kind::Divided => model.encoder_units(gpu.max_video_clock_mhz),
    }
}

fn after_headroom(units: EncoderUnits, percent: u32) -> EncoderUnits {
    let left = u64::from(units.0) * u64::from(100 - percent.min(100)) / 100;
    EncoderUnits(u32::try_from(left).unwrap_or(u32::MAX))
}

fn unhealthy(known: &Known, gpu: &Gpu) -> BTreeMap<Resource, String> {
    let mut verdict = known.health.get(&gpu.uuid).cloned().unwrap_or_default();
    if known.is_lost(gpu) {
        // The next look at its health may tell more.
        verdict.gpu.get_or_insert_with(|| NOT_LISTED.to_owned());
    }
    let daemon = match known.daemons.get(&gpu.uuid) {
        Some(Health::Alive) => None,
        Some(Health::Dead(cause)) => Some(cause.to_string()),
        None => Some(NOT_LOOKED_AT.to_owned()),
    };
    let nvenc = verdict.gpu.clone().or(verdict.encoder);
    let mps = verdict.gpu.clone().or(daemon);
    let reasons = [
        (Resource::Nvenc, nvenc),
        (Resource::Mps, mps),
        (Resource::Vram, verdict.gpu),
    ];
    reasons
        .into_iter()
        .filter_map(|(resource, reason)| Some((resource, reason?)))
        .collect()
}

const NOT_LISTED: &str = "the driver does not list it any more";

/// Why `mps` is not to be used of a GPU that has just been found.
pub(crate) const NOT_LOOKED_AT: &str = "its MPS daemon was not looked at yet";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_offers_what_the_table_says_less_the_headroom() {
        let known = known("Tesla T4");
        let settings = Settings::parse("headroomPercent: 10").unwrap();
        let offer = offers(&known, &OptedIn::All, &settings).remove(0);
        assert_eq!(offer.capacity, amounts(111, 100, 60));
        assert_eq!(offer.mps_clients, 48);
        assert!(offer.unhealthy.is_empty());
    }

    #[test]
    fn a_gpu_without_encoder_or_of_an_unknown_model_offers_no_nvenc_until_configured() {
        let nvenc = |model: &str, settings: &str| {
            let settings = Settings::parse(settings).unwrap();
            offers(&known(model), &OptedIn::All, &settings)[0]
                .capacity
                .nvenc
                .0
        };
        assert_eq!(nvenc("NVIDIA H200", ""), 0);
        assert_eq!(nvenc("NVIDIA Something New", ""), 0);
        assert_eq!(
            nvenc(
                "NVIDIA Something New",
                "models: { NVIDIA Something New: { nvenc: 70 } }"
            ),
            70
        );
        let both = "{ models: { Tesla T4: { nvenc: 70 } }, gpus: { GPU-1: { nvenc: 50 } } }";
        assert_eq!(
            nvenc("Tesla T4", both),
            50,
            "a GPU's own setting goes before its model's"
        );
    }

    #[test]
    fn a_mig_instance_has_the_encoders_of_its_profile_and_unknown_is_none() {
        let mut known = known("NVIDIA RTX PRO 6000 Blackwell Server Edition");
        let mig = |encoders| {
            Kind::Mig(crate::nvml::inventory::MigInstance {
                parent: "GPU-0".parse().unwrap(),
                index: 0,
                profile: None,
                gpu_instance: None,
                compute_instance: None,
                encoders,
            })
        };
        for (encoders, units) in [(Some(1), 148), (Some(2), 296), (None, 0)] {
            known.inventory.gpus[0].kind = mig(encoders);
            let offer = offers(
                &known,
                &OptedIn::Only(vec!["GPU-0".parse().unwrap()]),
                &Settings::default(),
            );
            assert_eq!(offer[0].capacity.nvenc.0, units);
        }
    }

    #[test]
    fn one_stream_has_one_engine_at_most_whatever_a_gpu_has_in_all() {
        let engine = |model: &str, settings: &str| {
            let known = known(model);
            super::engine(&known.inventory.gpus[0], &Settings::parse(settings).unwrap()).map(|units| units.0)
        };
        // 1950 MHz of the 2415 that the table's figures were taken at.
        assert_eq!(engine("NVIDIA L4", ""), Some(109));
        assert_eq!(engine("NVIDIA L4", "headroomPercent: 10"), Some(98));
        assert_eq!(
            engine("NVIDIA L4", "models: { NVIDIA L4: { nvencEngine: 120 } }"),
            Some(120)
        );
        assert_eq!(engine("NVIDIA H200", ""), None);
        let by_hand = "models: { NVIDIA Something New: { nvenc: 70 } }";
        assert_eq!(
            engine("NVIDIA Something New", by_hand),
            None,
            "unknown is no limit"
        );
    }

    #[test]
    fn sessions_are_capped_where_the_driver_caps_them_and_an_administrator_may_know_better() {
        let limit = |model: &str, settings: &str| {
            let mut known = known(model);
            known.inventory.driver_version = Some("580.95.05".to_owned());
            let gpu = &known.inventory.gpus[0];
            session_limit(&known.inventory, gpu, &Settings::parse(settings).unwrap())
        };
        assert_eq!(limit("NVIDIA GeForce RTX 4090", ""), Some(8));
        assert_eq!(limit("NVIDIA GeForce RTX 4090", "encoderSessions: 12"), Some(12));
        assert_eq!(limit("NVIDIA L4", "encoderSessions: 12"), None);
    }

    #[test]
    fn only_what_was_opted_in_is_offered() {
        let only = OptedIn::Only(vec!["GPU-2".parse().unwrap()]);
        assert!(offers(&known("Tesla T4"), &only, &Settings::default()).is_empty());
    }

    #[test]
    fn what_is_ill_says_why_and_leaves_the_rest() {
        let mut known = known("Tesla T4");
        let uuid = known.inventory.gpus[0].uuid.clone();
        let ill = |known: &Known| {
            offers(known, &OptedIn::All, &Settings::default())[0]
                .unhealthy
                .clone()
        };
        let encoder = Verdict {
            gpu: None,
            encoder: Some("XID 47".to_owned()),
        };
        known.health.insert(uuid.clone(), encoder);
        assert_eq!(
            ill(&known),
            BTreeMap::from([(Resource::Nvenc, "XID 47".to_owned())])
        );
        known.health.insert(
            uuid.clone(),
            Verdict {
                gpu: Some("it is lost".to_owned()),
                encoder: None,
            },
        );
        assert_eq!(ill(&known).len(), 3);
        known.health.clear();
        known.daemons.clear();
        assert_eq!(ill(&known).into_keys().collect::<Vec<_>>(), [Resource::Mps]);
    }

    #[test]
    fn a_gpu_that_the_driver_lists_no_more_is_offered_as_ill_until_it_is_back() {
        let mut known = known("Tesla T4");
        let listed = known.inventory.clone();
        let settings = Settings::default();
        let healthy = offers(&known, &OptedIn::All, &settings);
        for _ in 0..2 {
            known.found(Inventory::default());
            let lost = offers(&known, &OptedIn::All, &settings);
            assert_eq!(lost[0].capacity, healthy[0].capacity);
            assert_eq!(lost[0].unhealthy.len(), 3);
        }
        known.found(listed.clone());
        assert_eq!(offers(&known, &OptedIn::All, &settings), healthy);
        let mut divided = listed;
        divided.gpus[0].kind = Kind::Divided;
        known.found(divided);
        assert_eq!(
            offers(&known, &OptedIn::All, &settings),
            [],
            "it was divided on purpose"
        );
    }

    #[test]
    fn where_a_container_is_several_clients_a_gpu_takes_fewer_of_them() {
        let clients = |settings: &str| {
            let settings = Settings::parse(settings).unwrap();
            offers(&known("Tesla T4"), &OptedIn::All, &settings)[0].mps_clients
        };
        assert_eq!(clients("mpsClientsPerContainer: 5"), 9, "48 in all");
        let fewer = "{ mpsClientsPerContainer: 2, gpus: { GPU-1: { mpsClients: 7 } } }";
        assert_eq!(clients(fewer), 3);
    }

    fn known(model: &str) -> Known {
        let gpu = Gpu {
            uuid: "GPU-1".parse().unwrap(),
            index: 0,
            minor: Some(0),
            model: model.to_owned(),
            memory_bytes: Some(15 << 30),
            max_video_clock_mhz: Some(1950),
            compute_mode: None,
            kind: Kind::Whole,
        };
        let inventory = Inventory {
            gpus: vec![gpu],
            ..Inventory::default()
        };
        let daemons = BTreeMap::from([("GPU-1".parse().unwrap(), Health::Alive)]);
        Known {
            inventory,
            lost: Vec::new(),
            health: BTreeMap::new(),
            daemons,
        }
    }

    fn amounts(nvenc: u32, mps: u32, vram: u32) -> Resources {
        Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        }
    }
}
