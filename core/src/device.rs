//! The resources that a pod may ask for, and the names of their parts.
//!
//! The kubelet hands out devices by ID. Ours are `<GPU uuid>::<n>`, so that whoever reads the kubelet's podresources
//! API sees which GPU a container is on.

use std::fmt;
use std::str::FromStr;

use crate::ids::{GpuUuid, MAX_ID_LEN};
use crate::names::{RESOURCE_MPS, RESOURCE_NVENC, RESOURCE_VRAM};
use crate::packing::Resources;
use crate::units::{EncoderUnits, SmPercent, VramBlocks};

/// One of the three resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Encoder units.
    Nvenc,
    /// Percent of the SMs.
    Mps,
    /// Video memory in blocks.
    Vram,
}

impl Resource {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Nvenc, Self::Mps, Self::Vram];

    /// Its name in a pod specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvenc => RESOURCE_NVENC,
            Self::Mps => RESOURCE_MPS,
            Self::Vram => RESOURCE_VRAM,
        }
    }

    /// The last part of its name, as it is in our own APIs: `nvenc`.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Nvenc => "nvenc",
            Self::Mps => "mps",
            Self::Vram => "vram",
        }
    }

    /// The resource of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }

    /// Its part of `amounts`.
    pub fn of(self, amounts: Resources) -> u32 {
        match self {
            Self::Nvenc => amounts.nvenc.0,
            Self::Mps => amounts.mps.0,
            Self::Vram => amounts.vram.0,
        }
    }

    /// That much of it, and nothing of the others.
    pub fn amount(self, amount: u32) -> Resources {
        match self {
            Self::Nvenc => Resources {
                nvenc: EncoderUnits(amount),
                ..Resources::NONE
            },
            Self::Mps => Resources {
                mps: SmPercent(amount),
                ..Resources::NONE
            },
            Self::Vram => Resources {
                vram: VramBlocks(amount),
                ..Resources::NONE
            },
        }
    }
}

/// One unit of one resource of one GPU, as the kubelet knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    gpu: GpuUuid,
    number: u32,
}

/// Why a text is no [`DeviceId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device ID of ours: they read <GPU uuid>::<number>")]
pub struct BadDeviceId(String);

impl DeviceId {
    /// The `number`th unit of `gpu`.
    pub fn new(gpu: GpuUuid, number: u32) -> Self {
        Self { gpu, number }
    }

    /// The GPU.
    pub fn gpu(&self) -> &GpuUuid {
        &self.gpu
    }

    /// Which of its units.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.gpu, self.number)
    }
}

impl FromStr for DeviceId {
    type Err = BadDeviceId;

    fn from_str(text: &str) -> Result<Self, BadDeviceId> {
        DeviceIds::default().read(text)
    }
}

/// Reads many device IDs. The kubelet lists them by the thousand, and they are of few GPUs: each GPU's name is read and
/// kept once.
#[derive(Debug, Clone, Default)]
pub struct DeviceIds {
    gpus: Vec<GpuUuid>,
}

impl DeviceIds {
    /// Reads one.
    ///
    /// # Errors
    /// [`BadDeviceId`] for a text that is none.
    pub fn read(&mut self, text: &str) -> Result<DeviceId, BadDeviceId> {
        let mut parts = || {
            let (gpu, number) = text.rsplit_once("::")?;
            Some(DeviceId::new(self.gpu(gpu)?, number.parse().ok()?))
        };
        // The kubelet takes 63 characters; that is room for a UUID of 40 and any number of units.
        parts()
            .filter(|_| text.len() <= MAX_ID_LEN)
            .ok_or_else(|| BadDeviceId(text.to_owned()))
    }

    fn gpu(&mut self, name: &str) -> Option<GpuUuid> {
        if let Some(known) = self.gpus.iter().find(|gpu| gpu.as_str() == name) {
            return Some(known.clone());
        }
        let gpu: GpuUuid = name.parse().ok()?;
        self.gpus.push(gpu.clone());
        Some(gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_names_its_gpu() {
        let gpu = GpuUuid::new("GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76").unwrap();
        let id = DeviceId::new(gpu.clone(), 123);
        assert_eq!(id.to_string(), "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76::123");
        assert_eq!(id.to_string().parse::<DeviceId>().unwrap().gpu(), &gpu);
        for bad in ["", "GPU-1", "GPU-1::", "GPU-1::x", "::1", "GPU 1::1"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_one_gpu_share_its_name() {
        let mut ids = DeviceIds::default();
        let [a, other, again] = ["GPU-a::1", "GPU-b::1", "GPU-a::2"].map(|text| ids.read(text).unwrap());
        assert_eq!(
            [a.to_string(), other.to_string(), again.to_string()],
            ["GPU-a::1", "GPU-b::1", "GPU-a::2"]
        );
        let place = |id: &DeviceId| id.gpu().as_str().as_ptr();
        assert_eq!(place(&a), place(&again));
        assert!(ids.read("GPU-a").is_err());
    }

    #[test]
    fn a_resource_is_found_by_its_name() {
        for resource in Resource::ALL {
            assert_eq!(Resource::from_name(resource.name()), Some(resource));
            assert_eq!(resource.of(resource.amount(7)), 7);
            assert_eq!(resource.name(), format!("penstock.dev/{}", resource.short_name()));
        }
        assert_eq!(Resource::from_name("nvidia.com/gpu"), None);
    }
}
