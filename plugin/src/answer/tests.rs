use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use proptest::prelude::*;

use super::*;
use crate::cdi::QualifiedName;

#[test]
fn a_streamer_that_encodes_and_computes_is_told_all_of_it() {
    let told = answer(&Case::of(13, 20, 8).grant());
    let env: Vec<_> = told.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        env,
        [
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=20",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=2048M",
            "CUDA_MPS_PIPE_DIRECTORY=/run/penstock/mps/pipe",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics,video",
            "NVIDIA_VISIBLE_DEVICES=GPU-a",
            "PENSTOCK_GPU=GPU-a",
            "PENSTOCK_NVENC_UNITS=13",
            "PENSTOCK_SLICE=game-7",
            "PENSTOCK_VRAM_BYTES=2147483648",
        ]
    );
    let mounts: Vec<_> = told.mounts.iter().map(shown).collect();
    assert_eq!(
        mounts,
        [
            "/run/penstock/mps/GPU-a/pipe at /run/penstock/mps/pipe",
            "/run/penstock/mps/shm at /dev/shm"
        ]
    );
    assert_eq!(told.cdi_devices, Vec::<String>::new());
}

#[test]
fn what_is_not_asked_for_is_not_limited() {
    let told = answer(&Case::of(0, 0, 8).grant());
    assert_eq!(
        names(&told),
        [
            "NVIDIA_DRIVER_CAPABILITIES",
            "NVIDIA_VISIBLE_DEVICES",
            "PENSTOCK_GPU",
            "PENSTOCK_SLICE",
            "PENSTOCK_VRAM_BYTES"
        ]
    );
    assert_eq!(told.mounts, []);
}

#[test]
fn an_application_beside_an_encoding_streamer_finds_the_same_libraries() {
    let mut case = Case::of(0, 20, 0);
    case.pod_encodes = true;
    let told = answer(&case.grant());
    assert_eq!(
        told.env["NVIDIA_DRIVER_CAPABILITIES"],
        "compute,utility,graphics,video"
    );
    assert_eq!(told.env.get("PENSTOCK_NVENC_UNITS"), None);
}

#[test]
fn one_stream_is_told_of_one_engine_where_the_slice_has_more() {
    let stream = |units, engine: Option<u32>| {
        let mut case = Case::of(units, 0, 0);
        case.engine = engine.map(EncoderUnits);
        answer(&case.grant())
            .env
            .get("PENSTOCK_NVENC_STREAM_UNITS")
            .cloned()
    };
    assert_eq!(stream(100, Some(65)).as_deref(), Some("65"));
    assert_eq!(stream(13, Some(65)).as_deref(), Some("13"));
    assert_eq!(stream(0, Some(65)), None);
    assert_eq!(stream(100, None), None, "what is not known is no limit");
}

#[test]
fn a_process_without_a_container_sees_its_gpu_by_cudas_own_variable() {
    let told = environment(&Case::of(13, 20, 8).grant());
    let told: Vec<_> = told.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        told,
        [
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=20",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=2048M",
            "CUDA_MPS_PIPE_DIRECTORY=/run/penstock/mps/GPU-a/pipe",
            "CUDA_VISIBLE_DEVICES=GPU-a",
            "PENSTOCK_GPU=GPU-a",
            "PENSTOCK_NVENC_UNITS=13",
            "PENSTOCK_SLICE=game-7",
            "PENSTOCK_VRAM_BYTES=2147483648",
        ]
    );
    let told = environment(&Case::of(0, 20, 0).grant());
    assert_eq!(told["PENSTOCK_NVENC_UNITS"], "0", "no units are not any number");
    let mut software = Case::of(3, 0, 0);
    software.gpu = GpuUuid::new("CPU-4711").unwrap();
    assert_eq!(
        environment(&software.grant()).into_keys().collect::<Vec<_>>(),
        ["PENSTOCK_GPU", "PENSTOCK_NVENC_UNITS", "PENSTOCK_SLICE"]
    );
}

#[test]
fn with_cdi_the_runtime_is_told_to_add_no_gpu_of_its_own() {
    let mut case = Case::of(13, 0, 0);
    case.injection = Injection::Cdi(QualifiedName::gpu("GPU-a"));
    let told = answer(&case.grant());
    assert_eq!(told.env["NVIDIA_VISIBLE_DEVICES"], "void");
    assert_eq!(told.cdi_devices, ["nvidia.com/gpu=GPU-a"]);
}

#[test]
fn a_software_slice_has_nothing_of_nvidia() {
    let mut case = Case::of(3, 10, 1);
    case.gpu = GpuUuid::new("CPU-4711").unwrap();
    let told = answer(&case.grant());
    assert_eq!(
        names(&told),
        [
            "PENSTOCK_GPU",
            "PENSTOCK_NVENC_UNITS",
            "PENSTOCK_SLICE",
            "PENSTOCK_VRAM_BYTES"
        ]
    );
    assert_eq!((told.mounts, told.cdi_devices), (vec![], vec![]));
}

proptest! {
    /// Whatever is asked for, in whatever order, whether the container's demand is known as a whole or only the
    /// resource of the call: no answer of a container contradicts another, and all of its pod agree on what the
    /// libraries depend on.
    #[test]
    fn merged_answers_of_one_pod_never_conflict(
        containers in prop::collection::vec((case(), any::<[bool; 3]>()), 1..4),
        cdi: bool,
    ) {
        let pod_encodes = containers.iter().any(|(case, _)| case.demand.nvenc.0 > 0);
        let mut capabilities = Vec::new();
        for (mut case, known) in containers {
            case.pod_encodes = pod_encodes;
            if cdi {
                case.injection = Injection::Cdi(QualifiedName::gpu("0"));
            }
            let whole = answer(&case.grant());
            let mut merged = Answer::default();
            for (part, known) in parts(case.demand).into_iter().zip(known) {
                let demand = if known { case.demand } else { part };
                merge(&mut merged, answer(&Grant { demand, ..case.grant() }))?;
            }
            if known.iter().any(|known| *known) {
                merge(&mut merged, whole.clone())?;
                prop_assert_eq!(&merged, &whole);
            }
            capabilities.extend(merged.env.remove("NVIDIA_DRIVER_CAPABILITIES"));
        }
        capabilities.dedup();
        prop_assert_eq!(capabilities.len(), 1);
    }
}

/// As the kubelet merges, but that a conflict is an error.
fn merge(into: &mut Answer, from: Answer) -> Result<(), TestCaseError> {
    for (name, value) in from.env {
        let known = into.env.entry(name).or_insert_with(|| value.clone());
        prop_assert_eq!(&*known, &value, "{}", name);
    }
    for mount in from.mounts {
        let same = |known: &&Mount| known.container_path == mount.container_path;
        match into.mounts.iter().find(same) {
            Some(known) => prop_assert_eq!(known, &mount),
            None => into.mounts.push(mount),
        }
    }
    into.cdi_devices.extend(from.cdi_devices);
    into.cdi_devices.dedup();
    Ok(())
}

/// The demand of each call: one resource of it.
fn parts(demand: Resources) -> [Resources; 3] {
    let Resources { nvenc, mps, vram } = demand;
    let none = Resources::NONE;
    [
        Resources { nvenc, ..none },
        Resources { mps, ..none },
        Resources { vram, ..none },
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let amounts = (0u32..60, 0u32..=100, 0u32..300);
    (amounts, prop::option::of(1u32..60)).prop_map(|((nvenc, mps, vram), engine)| Case {
        engine: engine.map(EncoderUnits),
        ..Case::of(nvenc, mps, vram)
    })
}

#[derive(Debug)]
struct Case {
    gpu: GpuUuid,
    demand: Resources,
    engine: Option<EncoderUnits>,
    pod_encodes: bool,
    slice: SliceId,
    injection: Injection,
    mps: Layout,
}

impl Case {
    fn of(nvenc: u32, mps: u32, vram: u32) -> Self {
        let demand = Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        };
        Self {
            gpu: GpuUuid::new("GPU-a").unwrap(),
            demand,
            engine: None,
            pod_encodes: nvenc > 0,
            slice: SliceId::new("game-7").unwrap(),
            injection: Injection::Environment,
            mps: Layout::new("/run/penstock/mps"),
        }
    }

    fn grant(&self) -> Grant<'_> {
        Grant {
            gpu: &self.gpu,
            demand: self.demand,
            engine: self.engine,
            pod_encodes: self.pod_encodes,
            slice: Some(&self.slice),
            injection: &self.injection,
            mps: &self.mps,
        }
    }
}

fn names(answer: &Answer) -> Vec<&str> {
    answer.env.keys().copied().collect()
}

fn shown(mount: &Mount) -> String {
    format!(
        "{} at {}",
        mount.host_path.display(),
        mount.container_path.display()
    )
}
