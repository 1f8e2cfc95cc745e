//! The calls that nvml-wrapper does not offer, or in which it loses something. The only `unsafe` of this
//! room.
//!
//! - Encoder sessions: the wrapper refuses the whole list where one session's codec is newer than itself
//!   (AV1).
//! - Events: the wrapper drops the MIG instance, and frees the whole set where one GPU can't be registered.
//! - MIG instances: the wrapper has no call for their IDs and attributes.
#![allow(unsafe_code)]

use std::ptr;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlDeviceAttributes_t, nvmlEncoderSessionInfo_t, nvmlEventData_t, nvmlEventSet_t,
    nvmlEventTypeDoubleBitEccError, nvmlEventTypeXidCriticalError,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
};

/// One encoder session, its codec as NVML's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// The process that encodes.
    pub(super) pid: u32,
    /// `nvmlEncoderType_t`: 0 H.264, 1 HEVC, 2 AV1.
    pub(super) codec: u32,
    /// Pixels across.
    pub(super) width: u32,
    /// Pixels down.
    pub(super) height: u32,
    /// Frames per second, a moving average.
    pub(super) fps: u32,
    /// Microseconds per frame, a moving average.
    pub(super) latency_us: u32,
}

/// All encoder sessions of a GPU (`nvmlDeviceGetEncoderSessions`).
///
/// # Errors
/// `NotSupported` where this GPU has no list of sessions; whatever NVML says otherwise.
pub(super) fn encoder_sessions(nvml: &Nvml, device: &Device<'_>) -> Result<Vec<Session>, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetEncoderSessions.as_ref())?;
    let mut room = FIRST_ROOM;
    loop {
        let mut count = room;
        let mut sessions = vec![NO_SESSION; room as usize];
        // SAFETY: the handle is of this NVML, which `device` borrows; the array has room for `count`
        // sessions.
        let code = unsafe { call(device.handle(), &raw mut count, sessions.as_mut_ptr()) };
        // Sessions come and go between two calls, so a full list is asked for again with some to spare.
        if code == nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE && room < MOST_ROOM {
            room = count.max(room).saturating_add(SPARE).min(MOST_ROOM);
            continue;
        }
        nvml_try(code)?;
        sessions.truncate(count as usize);
        return Ok(sessions.into_iter().map(Session::from).collect());
    }
}

/// The GPU instance and the compute instance of a MIG device.
///
/// # Errors
/// `NotSupported` where it is no MIG device.
pub(super) fn mig_ids(nvml: &Nvml, mig: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let gpu_instance = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute_instance = nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let (mut gpu, mut compute) = (0, 0);
    // SAFETY: the handle is of this NVML, and each result has a place of its own.
    unsafe {
        nvml_try(gpu_instance(mig.handle(), &raw mut gpu))?;
        nvml_try(compute_instance(mig.handle(), &raw mut compute))?;
    }
    Ok((gpu, compute))
}

/// The encoder engines that a MIG device's profile has (`nvmlDeviceGetAttributes_v2`).
///
/// # Errors
/// `NotSupported` where it is no MIG device.
pub(super) fn mig_encoders(nvml: &Nvml, mig: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetAttributes_v2.as_ref())?;
    let mut attributes = NO_ATTRIBUTES;
    // SAFETY: the handle is of this NVML, and the structure is the one that this function fills.
    nvml_try(unsafe { call(mig.handle(), &raw mut attributes) })?;
    Ok(attributes.sharedEncoderCount)
}

/// What an event set tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    /// The physical GPU.
    pub(super) device: DeviceKey,
    /// The XID; `None` for a double-bit ECC error. Where several came at once, NVML gives the last one for
    /// all.
    pub(super) xid: Option<u64>,
    /// The MIG GPU instance, where only that is concerned.
    pub(super) gpu_instance: Option<u32>,
}

/// A device's handle, to be compared only: the GPU that an event names may be lost, and then can't be asked
/// who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeviceKey(usize);

impl DeviceKey {
    /// The key of a device.
    pub(super) fn of(device: &Device<'_>) -> Self {
        // SAFETY: the handle is not used but for its number.
        Self::from(unsafe { device.handle() })
    }
}

impl From<nvmlDevice_t> for DeviceKey {
    fn from(handle: nvmlDevice_t) -> Self {
        Self(handle as usize)
    }
}

/// A set of GPUs whose XIDs and double-bit ECC errors can be waited for.
#[derive(Debug)]
pub(super) struct EventSet<'nvml> {
    nvml: &'nvml Nvml,
    set: nvmlEventSet_t,
}

impl<'nvml> EventSet<'nvml> {
    /// An empty set.
    ///
    /// # Errors
    /// What NVML says.
    pub(super) fn new(nvml: &'nvml Nvml) -> Result<Self, NvmlError> {
        let call = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref())?;
        let mut set = ptr::null_mut();
        // SAFETY: the result has a place to go to.
        nvml_try(unsafe { call(&raw mut set) })?;
        Ok(Self { nvml, set })
    }

    /// Adds a physical GPU.
    ///
    /// # Errors
    /// `NotSupported` where it tells of no events; the set then still serves the others.
    pub(super) fn add(&self, device: &Device<'_>) -> Result<(), NvmlError> {
        let supported = nvml_sym(self.nvml.lib().nvmlDeviceGetSupportedEventTypes.as_ref())?;
        let register = nvml_sym(self.nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
        let mut kinds = 0;
        // SAFETY: handle and set are of this NVML, and the result has a place to go to.
        unsafe {
            nvml_try(supported(device.handle(), &raw mut kinds))?;
            match kinds & u64::from(WANTED) {
                0 => Err(NvmlError::NotSupported),
                wanted => nvml_try(register(device.handle(), wanted, self.set)),
            }
        }
    }

    /// Blocks until an event comes, for `timeout_ms` at most.
    ///
    /// # Errors
    /// `GpuLost` and whatever else NVML says; that no event came is `Ok(None)`.
    pub(super) fn wait(&self, timeout_ms: u32) -> Result<Option<Event>, NvmlError> {
        let call = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
        let mut data = NO_EVENT;
        // SAFETY: the set is of this NVML and lives, and the structure is the one that this function fills.
        match nvml_try(unsafe { call(self.set, &raw mut data, timeout_ms) }) {
            Ok(()) => Ok(Some(Event::from(data))),
            Err(NvmlError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for EventSet<'_> {
    fn drop(&mut self) {
        if let Ok(free) = nvml_sym(self.nvml.lib().nvmlEventSetFree.as_ref()) {
            // SAFETY: the set is of this NVML, and this is the only place that frees it.
            unsafe { free(self.set) };
        }
    }
}

impl From<nvmlEventData_t> for Event {
    fn from(data: nvmlEventData_t) -> Self {
        let is_xid = data.eventType & u64::from(nvmlEventTypeXidCriticalError) != 0;
        Self {
            device: data.device.into(),
            xid: is_xid.then_some(data.eventData),
            gpu_instance: Some(data.gpuInstanceId).filter(|id| *id != NO_INSTANCE),
        }
    }
}

impl From<nvmlEncoderSessionInfo_t> for Session {
    fn from(raw: nvmlEncoderSessionInfo_t) -> Self {
        Self {
            pid: raw.pid,
            codec: raw.codecType,
            width: raw.hResolution,
            height: raw.vResolution,
            fps: raw.averageFps,
            latency_us: raw.averageLatency,
        }
    }
}

const WANTED: u32 = nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError;
/// NVML's "not a MIG instance".
const NO_INSTANCE: u32 = u32::MAX;
const FIRST_ROOM: u32 = 32;
const SPARE: u32 = 8;
/// Far more sessions than a GPU has.
const MOST_ROOM: u32 = 4_096;

const NO_SESSION: nvmlEncoderSessionInfo_t = nvmlEncoderSessionInfo_t {
    sessionId: 0,
    pid: 0,
    vgpuInstance: 0,
    codecType: 0,
    hResolution: 0,
    vResolution: 0,
    averageFps: 0,
    averageLatency: 0,
};
const NO_ATTRIBUTES: nvmlDeviceAttributes_t = nvmlDeviceAttributes_t {
    multiprocessorCount: 0,
    sharedCopyEngineCount: 0,
    sharedDecoderCount: 0,
    sharedEncoderCount: 0,
    sharedJpegCount: 0,
    sharedOfaCount: 0,
    gpuInstanceSliceCount: 0,
    computeInstanceSliceCount: 0,
    memorySizeMB: 0,
};
const NO_EVENT: nvmlEventData_t = nvmlEventData_t {
    device: ptr::null_mut(),
    eventType: 0,
    eventData: 0,
    gpuInstanceId: NO_INSTANCE,
    computeInstanceId: NO_INSTANCE,
};
