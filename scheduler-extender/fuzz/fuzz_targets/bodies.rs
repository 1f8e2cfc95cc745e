//! Arbitrary bodies for each verb, and the answers to them from an index with one node. The program has no library, so
//! its modules are taken in here.
#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub)] // What only the program needs.

#[path = "../../src/index/mod.rs"]
mod index;
#[path = "../../src/objects.rs"]
mod objects;
#[path = "../../src/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use penstock_core::gpu_node::{Capacity, Gpu, GpuNodeSpec, Health, Measured};
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};

fuzz_target!(|body: &[u8]| {
    let mut index = index::Index::new(index::Settings::default());
    if let Ok(node) = "node1".parse() {
        index.apply_gpu_node(&node, &spec());
    }
    if let Ok(mut args) = wire::read::<wire::ExtenderArgs>(body)
        && let (Ok(names), Ok(Some(pod))) = (args.names(), args.pod.read())
    {
        let verdicts = index.filter(&pod, &names);
        let scores = index.prioritize(&pod, &names);
        write(&wire::ExtenderFilterResult::of(names.clone(), &verdicts));
        write(&wire::priorities(names, scores));
        index.apply_pod(pod);
    }
    if let Ok(mut args) = wire::read::<wire::ExtenderPreemptionArgs>(body)
        && let (Ok(proposed), Ok(Some(pod))) = (args.proposed(), args.pod.read())
    {
        write(&wire::ExtenderPreemptionResult::from(
            index.preempt(&pod, &proposed),
        ));
    }
    if let Ok(args) = wire::read::<wire::ExtenderBindingArgs>(body) {
        let _ = index.choose_gpu(&args.pod_uid, &args.node);
    }
});

fn write(answer: &impl serde::Serialize) {
    assert!(serde_json::to_vec(answer).is_ok(), "an answer that is no JSON");
}

fn spec() -> GpuNodeSpec {
    let gpu = Gpu {
        uuid: "GPU-1".parse().expect("a GPU's name"),
        model: String::new(),
        capacity: Capacity {
            nvenc: EncoderUnits(124),
            mps: SmPercent(100),
            vram: VramBlocks(64),
            mps_clients: 48,
        },
        encoder_engine_units: None,
        allocated: Vec::new(),
        measured: Measured::default(),
        encoder_session_limit: None,
        health: Health::default(),
    };
    GpuNodeSpec::new(vec![gpu], Vec::new())
}
