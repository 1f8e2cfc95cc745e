//! Names that users write: resources, annotations, labels and environment variables, each spelled once.

/// Resource: encoder units ([`crate::units::EncoderUnits`]).
pub const RESOURCE_NVENC: &str = "penstock.dev/nvenc";
/// Resource: percent of the GPU's SMs ([`crate::units::SmPercent`]).
pub const RESOURCE_MPS: &str = "penstock.dev/mps";
/// Resource: video memory in blocks of 256 MiB ([`crate::units::VramBlocks`]).
pub const RESOURCE_VRAM: &str = "penstock.dev/vram";

/// Annotation of a pod: the UUID of the GPU that the scheduler chose for it.
pub const ANNOTATION_GPU: &str = "penstock.dev/gpu";

/// Label of a pod with a streamer in it: the matchmaker finds it by that.
pub const LABEL_STREAMER: &str = "penstock.dev/streamer";
/// Label of a pod with a TURN server in it, and of the nodes for those.
pub const LABEL_TURN: &str = "app.pixel/turn";
/// Container port on which a streamer serves the matchmaker.
pub const PORT_SIGNALLING: &str = "signalling";
/// Container port on which a program serves `/metrics`, `/healthz` and `/readyz`.
pub const PORT_METRICS: &str = "metrics";

/// Annotation of a pod, Kubernetes' own: what it costs to delete it, beside the others of its ReplicaSet.
pub const ANNOTATION_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Annotation of a pod, the cluster autoscaler's: whether its node may be drained for being little used.
pub const ANNOTATION_SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Annotation of a pod: which values of the two above the matchmaker has set.
pub const ANNOTATION_SET: &str = "penstock.dev/set-by-matchmaker";

/// Environment of a slice: the encoder units that its streamer keeps to.
pub const ENV_NVENC_UNITS: &str = "PENSTOCK_NVENC_UNITS";
/// Environment of a slice: the encoder units of its largest single stream, where that is known. A stream runs on one
/// encoder engine, and a slice may have more than one of those.
pub const ENV_NVENC_STREAM_UNITS: &str = "PENSTOCK_NVENC_STREAM_UNITS";
/// Environment of a slice: its video memory in bytes.
pub const ENV_VRAM_BYTES: &str = "PENSTOCK_VRAM_BYTES";
/// Environment of a slice: the UUID of the GPU that it is on.
pub const ENV_GPU: &str = "PENSTOCK_GPU";
/// Environment of a slice: its name, which its streamer takes for its own.
pub const ENV_SLICE: &str = "PENSTOCK_SLICE";
