//! What a container gets, in plain types, and as the kubelet takes it.

use std::collections::BTreeMap;

use super::Answers;
use super::proto::device_plugin::{CdiDevice, ContainerAllocateResponse, Mount};
use crate::answer::{self, Answer, answer};
use crate::cdi::{self, Inject, Injection, Wanted};
use crate::gpus::Described;
use crate::mps::Layout;

/// What a container gets with its devices. Where two of our resources answer for one container, both must say the
/// same of what they both say: of two values for one variable the kubelet takes either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerAnswer {
    /// Its environment.
    pub(crate) envs: BTreeMap<String, String>,
    /// Directories and files of the host.
    pub(crate) mounts: Vec<HostMount>,
    /// Names of CDI devices, as `vendor.com/class=name`. The kubelet takes them from 1.29 on (1.28 behind the
    /// feature gate `DevicePluginCDIDevices`), and drops them unseen before.
    pub(crate) cdi_devices: Vec<String>,
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

/// What containers are told.
pub(super) fn answers(inject: Inject, described: Described, layout: Layout) -> Answers {
    let mut specs = cdi::Kept::new(&cdi::DIRECTORIES);
    Box::new(move |grant| {
        let gpu = described.borrow().get(&grant.gpu).cloned();
        let wanted = gpu.as_ref().and_then(|gpu| gpu.wanted.as_ref());
        let injection = wanted.map_or(Injection::Environment, |wanted| {
            injection(inject, &mut specs, wanted)
        });
        ContainerAnswer::from(answer(&answer::Grant {
            gpu: &grant.gpu,
            demand: grant.container,
            engine: gpu.and_then(|gpu| gpu.engine),
            pod_encodes: grant.pod_has_nvenc,
            slice: None,
            injection: &injection,
            mps: &layout,
        }))
    })
}

fn injection(inject: Inject, specs: &mut cdi::Kept, wanted: &Wanted) -> Injection {
    if inject == Inject::Env {
        return Injection::Environment;
    }
    cdi::choose(inject, specs.now(), wanted).unwrap_or_else(|not_found| {
        tracing::error!(
            "{not_found}; the variable NVIDIA_VISIBLE_DEVICES is used instead (see penstock-plugin doctor)"
        );
        Injection::Environment
    })
}

impl From<Answer> for ContainerAnswer {
    fn from(answer: Answer) -> Self {
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let mount = |mount: answer::Mount| HostMount {
            container_path: text(mount.container_path),
            host_path: text(mount.host_path),
            read_only: false,
        };
        Self {
            envs: answer
                .env
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            mounts: answer.mounts.into_iter().map(mount).collect(),
            cdi_devices: answer.cdi_devices,
        }
    }
}

impl From<ContainerAnswer> for ContainerAllocateResponse {
    fn from(answer: ContainerAnswer) -> Self {
        Self {
            envs: answer.envs,
            mounts: answer.mounts.into_iter().map(Mount::from).collect(),
            cdi_devices: answer
                .cdi_devices
                .into_iter()
                .map(|name| CdiDevice { name })
                .collect(),
            ..Self::default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_an_answer_reaches_the_kubelet() {
        let answer = ContainerAnswer {
            envs: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            mounts: vec![HostMount {
                container_path: "/in".to_owned(),
                host_path: "/out".to_owned(),
                read_only: true,
            }],
            cdi_devices: vec!["nvidia.com/gpu=GPU-1".to_owned()],
        };
        let sent = ContainerAllocateResponse::from(answer);
        assert_eq!(sent.envs["A"], "1");
        assert_eq!(sent.cdi_devices[0].name, "nvidia.com/gpu=GPU-1");
        let mount = &sent.mounts[0];
        assert_eq!(
            (&*mount.container_path, &*mount.host_path, mount.read_only),
            ("/in", "/out", true)
        );
    }
}
