//! A stand-in for `libnvidia-ml.so.1` (NVML): GPUs that exist only in a file.
//!
//! ```text
//!  a test ──writes──► state (JSON) ◄──reads at every call── libfake_nvml.so ◄──loads── the program under test
//! ```
//!
//! The state is the file that the environment variable `FAKE_NVML_STATE` names, else `fake-nvml.json` beside
//! the library. Each [`Stage`] has a copy of the library in a directory of its own, so several fit into one
//! process.
//!
//! Functions behave as NVIDIA's NVML API reference documents them: what a GPU can't do is
//! `NVML_ERROR_NOT_SUPPORTED`, a lost GPU answers every call with `NVML_ERROR_GPU_IS_LOST`, a list without
//! room is `NVML_ERROR_INSUFFICIENT_SIZE` with its length, process utilisation without samples is
//! `NVML_ERROR_NOT_FOUND`.

// A C library is made of raw pointers.
#![allow(unsafe_code)]

mod abi;
mod exports;
mod stage;
mod state;
mod world;

pub use stage::Stage;
pub use state::{EncoderSession, Event, Gpu, MigDevice, Process, Sample, State};
