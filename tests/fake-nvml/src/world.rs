//! The state as callers meet it: who is initialised, which handle is which device, who waits for events.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::abi::{
    EVENT_DOUBLE_BIT_ECC, EVENT_XID, Failure, GPU_IS_LOST, Handle, INVALID_ARGUMENT, NOT_SUPPORTED,
    UNINITIALIZED, UNKNOWN,
};
use crate::state::{Event, Gpu, MigDevice, State};

/// A call's outcome.
pub(crate) type Answer<T = ()> = Result<T, Failure>;

/// The file beside the library.
pub(crate) const STATE_FILE: &str = "fake-nvml.json";

/// What the library remembers between calls.
#[derive(Default)]
struct Memory {
    /// `nvmlInit_v2` less `nvmlShutdown`.
    users: u32,
    /// A device's handle is 16 × (1 + its place here).
    devices: Vec<String>,
    sets: BTreeMap<Handle, EventSet>,
    next_set: Handle,
}

#[derive(Default)]
struct EventSet {
    /// By GPU, the event types, and the events that were there before.
    registered: BTreeMap<String, (u64, usize)>,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    users: 0,
    devices: Vec::new(),
    sets: BTreeMap::new(),
    next_set: 16,
});

fn memory() -> MutexGuard<'static, Memory> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn init() -> Answer {
    match read()?.init_error {
        0 => memory().users += 1,
        error => return Err(Failure(error)),
    }
    Ok(())
}

pub(crate) fn shutdown() -> Answer {
    let mut memory = memory();
    memory.users = memory.users.checked_sub(1).ok_or(UNINITIALIZED)?;
    if memory.users == 0 {
        memory.sets.clear();
    }
    Ok(())
}

/// The machine, for who has initialised the library.
pub(crate) fn machine() -> Answer<State> {
    if memory().users == 0 {
        return Err(UNINITIALIZED);
    }
    read()
}

pub(crate) fn handle_of(uuid: &str) -> Handle {
    let devices = &mut memory().devices;
    let place = devices.iter().position(|known| known == uuid).unwrap_or_else(|| {
        devices.push(uuid.to_owned());
        devices.len() - 1
    });
    (place + 1) * 16
}

/// A device as its handle finds it.
pub(crate) enum Device {
    Gpu(Box<Gpu>),
    Mig(Box<Gpu>, MigDevice),
}

impl Device {
    /// The physical GPU; what is asked of it can't be asked of a MIG instance.
    pub(crate) fn gpu(self) -> Answer<Gpu> {
        match self {
            Device::Gpu(gpu) => Ok(*gpu),
            Device::Mig(..) => Err(NOT_SUPPORTED),
        }
    }

    /// The MIG instance.
    pub(crate) fn mig(self) -> Answer<MigDevice> {
        match self {
            Device::Gpu(_) => Err(NOT_SUPPORTED),
            Device::Mig(_, mig) => Ok(mig),
        }
    }
}

pub(crate) fn device(handle: Handle) -> Answer<Device> {
    let state = machine()?;
    let place = (handle / 16).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    let uuid = memory().devices.get(place).cloned().ok_or(INVALID_ARGUMENT)?;
    find(state, &uuid).ok_or(GPU_IS_LOST)?
}

/// The device of that name: `None` where there is none, an error where its GPU is lost.
pub(crate) fn find(state: State, uuid: &str) -> Option<Answer<Device>> {
    state.gpus.into_iter().find_map(|gpu| {
        let mig = gpu.instances().iter().find(|mig| mig.uuid == uuid).cloned();
        if gpu.uuid != uuid && mig.is_none() {
            return None;
        }
        if gpu.lost {
            return Some(Err(GPU_IS_LOST));
        }
        Some(Ok(match mig {
            Some(mig) => Device::Mig(Box::new(gpu), mig),
            None => Device::Gpu(Box::new(gpu)),
        }))
    })
}

impl Gpu {
    pub(crate) fn instances(&self) -> &[MigDevice] {
        match self.mig {
            Some(true) => &self.mig_devices,
            _ => &[],
        }
    }
}

impl Event {
    pub(crate) fn kind(&self) -> u64 {
        self.xid.map_or(EVENT_DOUBLE_BIT_ECC, |_| EVENT_XID)
    }
}

pub(crate) fn create_set() -> Handle {
    let mut memory = memory();
    let set = memory.next_set;
    memory.next_set += 16;
    memory.sets.insert(set, EventSet::default());
    set
}

pub(crate) fn free_set(set: Handle) -> Answer {
    memory().sets.remove(&set).map(drop).ok_or(INVALID_ARGUMENT)
}

pub(crate) fn register(set: Handle, gpu: String, kinds: u64) -> Answer {
    let seen = machine()?.events.len();
    let mut memory = memory();
    let set = memory.sets.get_mut(&set).ok_or(INVALID_ARGUMENT)?;
    set.registered.insert(gpu, (kinds, seen));
    Ok(())
}

/// The next event of a set, where one has come.
pub(crate) fn next_event(set: Handle) -> Answer<Option<Event>> {
    let events = machine()?.events;
    let mut memory = memory();
    let set = memory.sets.get_mut(&set).ok_or(INVALID_ARGUMENT)?;
    for (nth, event) in events.into_iter().enumerate() {
        if let Some((kinds, seen)) = set.registered.get_mut(&event.gpu)
            && *seen <= nth
            && *kinds & event.kind() != 0
        {
            *seen = nth + 1;
            return Ok(Some(event));
        }
    }
    Ok(None)
}

fn read() -> Answer<State> {
    let path = state_path().ok_or(UNKNOWN)?;
    let text = std::fs::read(&path).map_err(|error| complain(&path, &error))?;
    serde_json::from_slice(&text).map_err(|error| complain(&path, &error))
}

fn complain(path: &Path, error: &dyn std::error::Error) -> Failure {
    eprintln!("libfake_nvml.so: reading {}: {error}", path.display());
    UNKNOWN
}

fn state_path() -> Option<PathBuf> {
    match std::env::var_os("FAKE_NVML_STATE") {
        Some(path) => Some(path.into()),
        None => Some(library_path()?.with_file_name(STATE_FILE)),
    }
}

/// `Dl_info` of dladdr(3).
#[repr(C)]
struct DlInfo {
    file: *const c_char,
    base: *mut c_void,
    symbol: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

/// Where this very copy of the library was loaded from.
fn library_path() -> Option<PathBuf> {
    let mut info = DlInfo {
        file: std::ptr::null(),
        base: std::ptr::null_mut(),
        symbol: std::ptr::null(),
        address: std::ptr::null_mut(),
    };
    // SAFETY: the address is that of a static of this library, and `info` is as dladdr(3) describes it.
    let found = unsafe { dladdr((&raw const MEMORY).cast(), &raw mut info) };
    if found == 0 || info.file.is_null() {
        return None;
    }
    // SAFETY: after success the name is a C string that lives as long as the library is loaded, as this code
    // is.
    let name = unsafe { CStr::from_ptr(info.file) };
    Some(PathBuf::from(name.to_str().ok()?))
}
