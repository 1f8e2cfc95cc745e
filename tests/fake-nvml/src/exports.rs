//! The functions by the names under which programs look them up.
#![allow(non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::time::{Duration, Instant};

use crate::abi::*;
use crate::state::{Gpu, Process};
use crate::world::{self, Answer, Device};

/// Functions of C: what their body says becomes an `nvmlReturn_t`.
macro_rules! nvml {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $type),*) -> c_uint {
                let body = || -> Answer { $body };
                body().map_or_else(|failure| failure.0, |()| 0)
            }
        )*
    };
}

nvml! {
    fn nvmlInit_v2() { world::init() }
    fn nvmlInitWithFlags(_flags: c_uint) { world::init() }
    fn nvmlShutdown() { world::shutdown() }

    fn nvmlSystemGetDriverVersion(text: Text, room: c_uint) {
        put_text(text, room, &world::machine()?.driver_version)
    }
    fn nvmlSystemGetNVMLVersion(text: Text, room: c_uint) {
        put_text(text, room, &format!("13.{}", world::machine()?.driver_version))
    }
    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) { put(version, world::machine()?.cuda_version) }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) { put(count, length(&world::machine()?.gpus)) }
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut Handle) {
        let state = world::machine()?;
        let gpu = state.gpus.get(index as usize).ok_or(INVALID_ARGUMENT)?;
        if gpu.lost {
            return Err(GPU_IS_LOST);
        }
        put(device, world::handle_of(&gpu.uuid))
    }
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut Handle) {
        let uuid = text(uuid)?;
        world::find(world::machine()?, &uuid).ok_or(NOT_FOUND)??;
        put(device, world::handle_of(&uuid))
    }
    fn nvmlDeviceGetUUID(device: Handle, to: Text, room: c_uint) {
        match world::device(device)? {
            Device::Gpu(gpu) => put_text(to, room, &gpu.uuid),
            Device::Mig(_, mig) => put_text(to, room, &mig.uuid),
        }
    }
    fn nvmlDeviceGetName(device: Handle, to: Text, room: c_uint) {
        match world::device(device)? {
            Device::Gpu(gpu) => put_text(to, room, &gpu.name),
            Device::Mig(_, mig) => put_text(to, room, &mig.name),
        }
    }
    fn nvmlDeviceGetIndex(device: Handle, index: *mut c_uint) {
        let gpu = world::device(device)?.gpu()?;
        let place = world::machine()?.gpus.iter().position(|other| other.uuid == gpu.uuid);
        put(index, place.and_then(|place| c_uint::try_from(place).ok()).ok_or(NOT_FOUND)?)
    }
    fn nvmlDeviceGetMinorNumber(device: Handle, minor: *mut c_uint) {
        put(minor, world::device(device)?.gpu()?.minor)
    }
    fn nvmlDeviceGetComputeMode(device: Handle, mode: *mut c_uint) {
        put(mode, world::device(device)?.gpu()?.compute_mode)
    }
    fn nvmlDeviceGetMaxClockInfo(device: Handle, clock: c_uint, mhz: *mut c_uint) {
        let gpu = world::device(device)?.gpu()?;
        put(mhz, gpu.max_video_clock.filter(|_| clock == CLOCK_VIDEO).ok_or(NOT_SUPPORTED)?)
    }
    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: *mut Memory) {
        let (total, used) = match world::device(device)? {
            Device::Gpu(gpu) => (gpu.memory_total, gpu.memory_used),
            Device::Mig(_, mig) => (mig.memory_total, mig.memory_used),
        };
        fill(memory, |memory| {
            if memory.version as usize != size_of::<Memory>() | 2 << 24 {
                return Err(ARGUMENT_VERSION_MISMATCH);
            }
            (memory.total, memory.reserved, memory.used) = (total, 0, used);
            memory.free = total.saturating_sub(used);
            Ok(())
        })
    }
    fn nvmlDeviceGetTotalEccErrors(device: Handle, error: c_uint, counter: c_uint, count: *mut c_ulonglong) {
        let errors = world::device(device)?.gpu()?.ecc_uncorrected.ok_or(NOT_SUPPORTED)?;
        let asked_for = (error, counter) == (ERROR_UNCORRECTED, COUNTER_VOLATILE);
        put(count, if asked_for { errors } else { 0 })
    }
    fn nvmlDeviceGetFieldValues(device: Handle, count: c_int, values: *mut FieldValue) {
        let action = world::device(device)?.gpu()?.recovery_action;
        for nth in 0..usize::try_from(count).map_err(|_| INVALID_ARGUMENT)? {
            fill(values.wrapping_add(nth), |value| {
                let known = action.filter(|_| value.field == FIELD_RECOVERY_ACTION);
                value.result = if known.is_some() { 0 } else { NOT_SUPPORTED.0 };
                (value.value_type, value.value) = (VALUE_UNSIGNED_INT, known.unwrap_or_default().into());
                Ok(())
            })?;
        }
        Ok(())
    }

    fn nvmlDeviceGetMigMode(device: Handle, current: *mut c_uint, pending: *mut c_uint) {
        let on = world::device(device)?.gpu()?.mig.ok_or(NOT_SUPPORTED)?;
        put(current, on.into())?;
        put(pending, on.into())
    }
    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: *mut c_uint) {
        let capable = world::device(device)?.gpu()?.mig.is_some();
        put(count, if capable { MAX_MIG_DEVICES } else { 0 })
    }
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: c_uint, mig: *mut Handle) {
        let gpu = world::device(device)?.gpu()?;
        put(mig, world::handle_of(&gpu.instances().get(index as usize).ok_or(NOT_FOUND)?.uuid))
    }
    fn nvmlDeviceIsMigDeviceHandle(device: Handle, is: *mut c_uint) {
        put(is, matches!(world::device(device)?, Device::Mig(..)).into())
    }
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: Handle, parent: *mut Handle) {
        match world::device(device)? {
            Device::Gpu(_) => Err(INVALID_ARGUMENT),
            Device::Mig(gpu, _) => put(parent, world::handle_of(&gpu.uuid)),
        }
    }
    fn nvmlDeviceGetGpuInstanceId(device: Handle, id: *mut c_uint) {
        put(id, world::device(device)?.mig()?.gpu_instance)
    }
    fn nvmlDeviceGetComputeInstanceId(device: Handle, id: *mut c_uint) {
        put(id, world::device(device)?.mig()?.compute_instance)
    }
    fn nvmlDeviceGetAttributes_v2(device: Handle, attributes: *mut Attributes) {
        let mig = world::device(device)?.mig()?;
        let encoders = mig.encoders.ok_or(NOT_SUPPORTED)?;
        put(attributes, Attributes { encoders, memory_mib: mig.memory_total >> 20, ..Attributes::default() })
    }

    fn nvmlDeviceGetEncoderUtilization(device: Handle, percent: *mut c_uint, period_us: *mut c_uint) {
        put(percent, world::device(device)?.gpu()?.encoder_utilization.ok_or(NOT_SUPPORTED)?)?;
        put(period_us, 167_000)
    }
    fn nvmlDeviceGetUtilizationRates(device: Handle, rates: *mut Utilization) {
        let gpu = world::device(device)?.gpu()?.sm_utilization.ok_or(NOT_SUPPORTED)?;
        put(rates, Utilization { gpu, memory: 0 })
    }
    fn nvmlDeviceGetEncoderSessions(device: Handle, count: *mut c_uint, sessions: *mut EncoderSessionInfo) {
        let all = world::device(device)?.gpu()?.encoder_sessions.ok_or(NOT_SUPPORTED)?;
        if sessions.is_null() {
            return put(count, length(&all));
        }
        put_list(count, sessions, all.into_iter().map(|session| EncoderSessionInfo {
            session_id: session.id,
            pid: session.pid,
            vgpu_instance: 0,
            codec: session.codec,
            width: session.width,
            height: session.height,
            average_fps: session.fps,
            average_latency: session.latency_us,
        }).collect())
    }
    fn nvmlDeviceGetProcessUtilization(
        device: Handle, samples: *mut ProcessUtilizationSample, count: *mut c_uint, since: c_ulonglong,
    ) {
        let all = world::device(device)?.gpu()?.samples.ok_or(NOT_SUPPORTED)?;
        let newer: Vec<_> = all.into_iter().filter(|sample| sample.timestamp > since).collect();
        if newer.is_empty() {
            return Err(NOT_FOUND);
        }
        put_list(count, samples, newer.into_iter().map(|sample| ProcessUtilizationSample {
            pid: sample.pid,
            timestamp: sample.timestamp,
            sm: sample.sm,
            memory: 0,
            encoder: sample.encoder,
            decoder: 0,
        }).collect())
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle, count: *mut c_uint, processes: *mut ProcessInfo,
    ) {
        put_processes(device, count, processes, |process| process.compute)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: Handle, count: *mut c_uint, processes: *mut ProcessInfo,
    ) {
        put_processes(device, count, processes, |process| process.graphics)
    }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
        device: Handle, count: *mut c_uint, processes: *mut ProcessInfo,
    ) {
        put_processes(device, count, processes, |process| process.mps)
    }

    fn nvmlDeviceGetSupportedEventTypes(device: Handle, kinds: *mut c_ulonglong) {
        let gpu = world::device(device)?.gpu()?;
        put(kinds, if gpu.has_events { EVENT_XID | EVENT_DOUBLE_BIT_ECC } else { 0 })
    }
    fn nvmlEventSetCreate(set: *mut Handle) {
        world::machine()?;
        put(set, world::create_set())
    }
    fn nvmlEventSetFree(set: Handle) { world::free_set(set) }
    fn nvmlDeviceRegisterEvents(device: Handle, kinds: c_ulonglong, set: Handle) {
        let gpu: Gpu = world::device(device)?.gpu()?;
        if !gpu.has_events {
            return Err(NOT_SUPPORTED);
        }
        world::register(set, gpu.uuid, kinds)
    }
    fn nvmlEventSetWait_v2(set: Handle, data: *mut EventData, timeout_ms: c_uint) {
        let end = Instant::now() + Duration::from_millis(timeout_ms.into());
        loop {
            if let Some(event) = world::next_event(set)? {
                return put(data, EventData {
                    device: world::handle_of(&event.gpu),
                    event_type: event.kind(),
                    event_data: event.xid.unwrap_or_default(),
                    gpu_instance: event.gpu_instance.unwrap_or(NO_INSTANCE),
                    compute_instance: NO_INSTANCE,
                });
            }
            if Instant::now() >= end {
                return Err(TIMEOUT);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_uint) -> *const c_char {
    let text = match Failure(code) {
        Failure(0) => c"Success",
        UNINITIALIZED => c"Uninitialized",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        GPU_IS_LOST => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

fn put_processes(
    device: Handle,
    count: *mut c_uint,
    to: *mut ProcessInfo,
    listed: fn(&Process) -> bool,
) -> Answer {
    let (processes, gpu_instance, compute_instance) = match world::device(device)? {
        Device::Gpu(gpu) => (gpu.processes.ok_or(NOT_SUPPORTED)?, NO_INSTANCE, NO_INSTANCE),
        Device::Mig(_, mig) => (mig.processes, mig.gpu_instance, mig.compute_instance),
    };
    let infos = processes.into_iter().filter(listed).map(|process| ProcessInfo {
        pid: process.pid,
        used_gpu_memory: process.memory.unwrap_or(NOT_AVAILABLE),
        gpu_instance,
        compute_instance,
    });
    put_list(count, to, infos.collect())
}

/// Fills the caller's array, or says how long it must be.
fn put_list<T>(count: *mut c_uint, to: *mut T, list: Vec<T>) -> Answer {
    let mut room = 0;
    fill(count, |count| {
        room = std::mem::replace(count, length(&list));
        Ok(())
    })?;
    if list.is_empty() {
        return Ok(());
    }
    if to.is_null() || room < length(&list) {
        return Err(INSUFFICIENT_SIZE);
    }
    for (nth, item) in list.into_iter().enumerate() {
        put(to.wrapping_add(nth), item)?;
    }
    Ok(())
}

fn length<T>(list: &[T]) -> c_uint {
    c_uint::try_from(list.len()).unwrap_or(c_uint::MAX)
}

fn put_text(to: Text, room: c_uint, text: &str) -> Answer {
    if text.len() >= room as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (nth, byte) in text.bytes().chain([0]).enumerate() {
        put(to.wrapping_add(nth), byte as c_char)?;
    }
    Ok(())
}

fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's callers promise that what they point to can be written; only NULL is refused, as NVML
    // does.
    unsafe { to.write(value) };
    Ok(())
}

fn fill<T>(at: *mut T, change: impl FnOnce(&mut T) -> Answer) -> Answer {
    // SAFETY: as for `put`, and the caller has initialised what it passes to be read.
    let place = unsafe { at.as_mut() };
    change(place.ok_or(INVALID_ARGUMENT)?)
}

fn text(from: *const c_char) -> Answer<String> {
    if from.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's callers pass strings that end with a NUL.
    let text = unsafe { CStr::from_ptr(from) };
    Ok(text.to_string_lossy().into_owned())
}

const MAX_MIG_DEVICES: c_uint = 7;
const LOOK_EVERY: Duration = Duration::from_millis(10);
