//! Names that users write: resources, annotations, labels and environment variables, each spelled once.

/// Resource: encoder units ([`crate::units::EncoderUnits`]).
pub const RESOURCE_NVENC: &str = "penstock.dev/nvenc";
/// Resource: percent of the GPU's SMs ([`crate::units::SmPercent`]).
pub const RESOURCE_MPS: &str = "penstock.dev/mps";
/// Resource: video memory in blocks of 256 MiB ([`crate::units::VramBlocks`]).
pub const RESOURCE_VRAM: &str = "penstock.dev/vram";

/// Annotation of a pod: the UUID of the GPU that the scheduler chose for it.
pub const ANNOTATION_GPU: &str = "penstock.dev/gpu";

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
