//! What a container gets, in plain types, and as the kubelet takes it.

use std::collections::BTreeMap;

use penstock_core::names::ENV_GPU;

use super::proto::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use crate::assign::Grant;

/// What a container gets with its devices. Where two of our resources answer for one container, both must say the
/// same of what they both say: of two values for one variable the kubelet takes either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerAnswer {
    /// Its environment.
    pub(crate) envs: BTreeMap<String, String>,
    /// Directories and files of the host.
    pub(crate) mounts: Vec<HostMount>,
    /// Device nodes of the host.
    pub(crate) devices: Vec<HostDevice>,
    /// Names of CDI devices, as `vendor.com/class=name`. The kubelet takes them from 1.29 on (1.28 behind the
    /// feature gate `DevicePluginCDIDevices`), and drops them unseen before.
    pub(crate) cdi_devices: Vec<String>,
    /// Annotations for the container runtime.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A path of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMount {
    /// Where the container sees it.
    pub(crate) container_path: String,
    /// Where it is.
    pub(crate) host_path: String,
    /// Whether the container may only read.
    pub(crate) read_only: bool,
}

/// A device node of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Where the container sees it.
    pub(crate) container_path: String,
    /// Where it is.
    pub(crate) host_path: String,
    /// Some of `r`, `w` and `m`.
    pub(crate) permissions: String,
}

/// The GPU's name for the container, and for the NVIDIA container runtime where it is one of theirs.
pub(crate) fn names_the_gpu(grant: &Grant) -> ContainerAnswer {
    let gpu = grant.gpu.to_string();
    let mut envs = BTreeMap::new();
    if !gpu.starts_with("CPU-") {
        envs.insert(ENV_NVIDIA_VISIBLE_DEVICES.to_owned(), gpu.clone());
    }
    envs.insert(ENV_GPU.to_owned(), gpu);
    ContainerAnswer {
        envs,
        ..ContainerAnswer::default()
    }
}

impl From<ContainerAnswer> for ContainerAllocateResponse {
    fn from(answer: ContainerAnswer) -> Self {
        Self {
            envs: answer.envs,
            mounts: answer.mounts.into_iter().map(Mount::from).collect(),
            devices: answer.devices.into_iter().map(DeviceSpec::from).collect(),
            annotations: answer.annotations,
            cdi_devices: answer
                .cdi_devices
                .into_iter()
                .map(|name| CdiDevice { name })
                .collect(),
        }
    }
}

impl From<HostMount> for Mount {
    fn from(mount: HostMount) -> Self {
        let HostMount {
            container_path,
            host_path,
            read_only,
        } = mount;
        Self {
            container_path,
            host_path,
            read_only,
        }
    }
}

impl From<HostDevice> for DeviceSpec {
    fn from(device: HostDevice) -> Self {
        let HostDevice {
            container_path,
            host_path,
            permissions,
        } = device;
        Self {
            container_path,
            host_path,
            permissions,
        }
    }
}

const ENV_NVIDIA_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

#[cfg(test)]
mod tests {
    use penstock_core::packing::Resources;

    use super::*;

    #[test]
    fn a_software_gpu_has_no_nvidia_environment() {
        let names = |gpu: &str| {
            let grant = Grant {
                gpu: gpu.parse().unwrap(),
                pod: None,
                container: Resources::NONE,
                pod_has_nvenc: true,
            };
            names_the_gpu(&grant).envs.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names("GPU-1"), ["NVIDIA_VISIBLE_DEVICES", "PENSTOCK_GPU"]);
        assert_eq!(names("CPU-1"), ["PENSTOCK_GPU"]);
    }

    #[test]
    fn all_of_an_answer_reaches_the_kubelet() {
        let answer = ContainerAnswer {
            envs: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            mounts: vec![HostMount {
                container_path: "/in".to_owned(),
                host_path: "/out".to_owned(),
                read_only: true,
            }],
            devices: vec![HostDevice {
                container_path: "/dev/in".to_owned(),
                host_path: "/dev/out".to_owned(),
                permissions: "rw".to_owned(),
            }],
            cdi_devices: vec!["nvidia.com/gpu=GPU-1".to_owned()],
            annotations: BTreeMap::from([("b".to_owned(), "2".to_owned())]),
        };
        let sent = ContainerAllocateResponse::from(answer);
        assert_eq!(sent.envs["A"], "1");
        assert_eq!(sent.annotations["b"], "2");
        assert_eq!(sent.cdi_devices[0].name, "nvidia.com/gpu=GPU-1");
        let mount = &sent.mounts[0];
        assert_eq!(
            (&*mount.container_path, &*mount.host_path, mount.read_only),
            ("/in", "/out", true)
        );
        let device = &sent.devices[0];
        assert_eq!((&*device.host_path, &*device.permissions), ("/dev/out", "rw"));
    }
}
