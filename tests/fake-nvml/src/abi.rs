//! NVML's C types, as far as the stand-in fills them in: NVML API reference, "Device Structs".
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_uint, c_ulonglong};

/// `nvmlMemory_v2_t`, bytes.
#[repr(C)]
pub(crate) struct Memory {
    pub(crate) version: c_uint,
    pub(crate) total: c_ulonglong,
    pub(crate) reserved: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

/// `nvmlUtilization_t`, percent.
#[repr(C)]
pub(crate) struct Utilization {
    pub(crate) gpu: c_uint,
    pub(crate) memory: c_uint,
}

/// `nvmlEncoderSessionInfo_t`.
#[repr(C)]
pub(crate) struct EncoderSessionInfo {
    pub(crate) session_id: c_uint,
    pub(crate) pid: c_uint,
    pub(crate) vgpu_instance: c_uint,
    pub(crate) codec: c_uint,
    pub(crate) width: c_uint,
    pub(crate) height: c_uint,
    pub(crate) average_fps: c_uint,
    pub(crate) average_latency: c_uint,
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
pub(crate) struct ProcessUtilizationSample {
    pub(crate) pid: c_uint,
    pub(crate) timestamp: c_ulonglong,
    pub(crate) sm: c_uint,
    pub(crate) memory: c_uint,
    pub(crate) encoder: c_uint,
    pub(crate) decoder: c_uint,
}

/// `nvmlProcessInfo_t`.
#[repr(C)]
pub(crate) struct ProcessInfo {
    pub(crate) pid: c_uint,
    pub(crate) used_gpu_memory: c_ulonglong,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

/// `nvmlDeviceAttributes_t`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) multiprocessors: c_uint,
    pub(crate) copy_engines: c_uint,
    pub(crate) decoders: c_uint,
    pub(crate) encoders: c_uint,
    pub(crate) jpeg_engines: c_uint,
    pub(crate) optical_flow_engines: c_uint,
    pub(crate) gpu_slices: c_uint,
    pub(crate) compute_slices: c_uint,
    pub(crate) memory_mib: c_ulonglong,
}

/// `nvmlFieldValue_t`, with the union as its widest member.
#[repr(C)]
pub(crate) struct FieldValue {
    pub(crate) field: c_uint,
    pub(crate) scope: c_uint,
    pub(crate) timestamp: i64,
    pub(crate) latency_us: i64,
    pub(crate) value_type: c_uint,
    pub(crate) result: c_uint,
    pub(crate) value: u64,
}

/// `nvmlEventData_t`.
#[repr(C)]
pub(crate) struct EventData {
    pub(crate) device: Handle,
    pub(crate) event_type: c_ulonglong,
    pub(crate) event_data: c_ulonglong,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

/// A device or an event set: a number that callers take for a pointer.
pub(crate) type Handle = usize;
/// A caller's text buffer.
pub(crate) type Text = *mut c_char;

/// Why a call fails: `nvmlReturn_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) c_uint);

pub(crate) const UNINITIALIZED: Failure = Failure(1);
pub(crate) const INVALID_ARGUMENT: Failure = Failure(2);
pub(crate) const NOT_SUPPORTED: Failure = Failure(3);
pub(crate) const NOT_FOUND: Failure = Failure(6);
pub(crate) const INSUFFICIENT_SIZE: Failure = Failure(7);
pub(crate) const TIMEOUT: Failure = Failure(10);
pub(crate) const GPU_IS_LOST: Failure = Failure(15);
pub(crate) const ARGUMENT_VERSION_MISMATCH: Failure = Failure(25);
pub(crate) const UNKNOWN: Failure = Failure(999);

pub(crate) const EVENT_DOUBLE_BIT_ECC: c_ulonglong = 2;
pub(crate) const EVENT_XID: c_ulonglong = 8;
pub(crate) const CLOCK_VIDEO: c_uint = 3;
pub(crate) const FIELD_RECOVERY_ACTION: c_uint = 230;
pub(crate) const VALUE_UNSIGNED_INT: c_uint = 1;
pub(crate) const ERROR_UNCORRECTED: c_uint = 1;
pub(crate) const COUNTER_VOLATILE: c_uint = 0;
/// "No MIG instance", "memory not known".
pub(crate) const NO_INSTANCE: c_uint = c_uint::MAX;
pub(crate) const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;
