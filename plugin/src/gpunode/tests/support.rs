//! GPUs and states to tell stories with.

use penstock_core::gpu_node::{Allocation, Capacity, Gpu, Health, Measured};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};

use super::super::{NodeState, Reading};

pub(crate) fn uuid(n: u32) -> GpuUuid {
    GpuUuid::new(format!("GPU-{n}")).unwrap()
}

/// GPU `n`, which is free.
pub(crate) fn gpu(n: u32) -> Gpu {
    Gpu {
        uuid: uuid(n),
        model: "NVIDIA L4".to_owned(),
        capacity: Capacity {
            nvenc: EncoderUnits(240),
            mps: SmPercent(100),
            vram: VramBlocks(92),
            mps_clients: 48,
        },
        encoder_engine_units: None,
        allocated: Vec::new(),
        measured: Measured::default(),
        encoder_session_limit: None,
        health: Health::default(),
    }
}

pub(crate) fn state(gpus: &[Gpu]) -> NodeState {
    NodeState {
        gpus: gpus.to_vec(),
        ..NodeState::default()
    }
}

/// One GPU that `units` are taken of.
pub(crate) fn taken(units: u32) -> NodeState {
    let mut gpu = gpu(0);
    gpu.allocated.push(Allocation {
        namespace: "games".to_owned(),
        pod: "quake-0".to_owned(),
        pod_uid: PodUid::new("8a1c").unwrap(),
        nvenc: EncoderUnits(units),
        mps: SmPercent(0),
        vram: VramBlocks(0),
        mps_clients: 0,
    });
    state(&[gpu])
}

/// The same with a measured encoder load.
pub(crate) fn loaded(units: u32, percent: u8) -> NodeState {
    let mut state = taken(units);
    let reading = Reading {
        encoder_percent: Some(percent),
        encoder_sessions: Some(1),
    };
    state.readings.insert(uuid(0), reading);
    state
}
