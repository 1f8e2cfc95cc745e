//! What the kubelet has stored of its devices: `kubelet_internal_checkpoint`, in the directory of the plugins' sockets.
//!
//! Podresources leaves out what init containers were given that end, and after a restart of the kubelet the pods that it has
//! not come to yet; this file has them. It is the kubelet's own and no interface: its form has been the same since
//! Kubernetes 1.20, and where it can't be read we do with podresources alone. The kubelet writes it anew, and puts it in
//! place by a rename, whenever a container has all that it asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use penstock_core::device::{DeviceIds, Resource};
use penstock_core::ids::PodUid;
use serde::Deserialize;

use crate::assign::Stored;

/// Its name.
pub(crate) const FILE: &str = "kubelet_internal_checkpoint";

/// Why it can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// There is none (yet), or it is not ours to read.
    #[error("it can't be opened: {0}")]
    Io(#[from] io::Error),
    /// It has another form than we know.
    #[error("it has a form that is not known here: {0}")]
    Form(#[from] serde_json::Error),
}

/// What of our resources is stored in the file at `path`.
///
/// # Errors
/// Where there is no such file, or it has another form.
pub(crate) fn read(path: &Path) -> Result<Vec<Stored>, CheckpointError> {
    parse(&std::fs::read(path)?)
}

fn parse(text: &[u8]) -> Result<Vec<Stored>, CheckpointError> {
    let file: File<'_> = serde_json::from_slice(text)?;
    let mut reader = DeviceIds::default();
    let ours = |entry: Entry<'_>| {
        let ids = entry.devices_by_numa_node.into_values().flatten();
        Some(Stored {
            resource: Resource::from_name(&entry.resource.0)?,
            pod: PodUid::new(entry.pod_uid.0).ok()?,
            container: entry.container.0.into_owned(),
            ids: ids.filter_map(|id| reader.read(&id.0).ok()).collect(),
        })
    };
    let entries = file.data.entries.unwrap_or_default();
    Ok(entries.into_iter().filter_map(ours).collect())
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(rename = "Data", borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    /// `null` where nothing is held.
    #[serde(rename = "PodDeviceEntries", borrow)]
    entries: Option<Vec<Entry<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(rename = "PodUID", borrow)]
    pod_uid: Text<'a>,
    #[serde(rename = "ContainerName", borrow)]
    container: Text<'a>,
    #[serde(rename = "ResourceName", borrow)]
    resource: Text<'a>,
    #[serde(rename = "DeviceIDs", borrow)]
    devices_by_numa_node: BTreeMap<Text<'a>, Vec<Text<'a>>>,
}

/// As it stands in the file, unless there are escapes in it.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_found_by_pod_and_container() {
        let text = br#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"u-1","ContainerName":"shaders","ResourceName":"penstock.dev/nvenc",
             "DeviceIDs":{"-1":["GPU-a::0"],"1":["GPU-a::7"]},"AllocResp":"CgA="},
            {"PodUID":"u-2","ContainerName":"c","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["GPU-b"]},"AllocResp":""}],
            "RegisteredDevices":{"penstock.dev/nvenc":["GPU-a::0","GPU-a::1"]}},"Checksum":1}"#;
        let stored = parse(text).unwrap();
        let [stored] = &stored[..] else {
            panic!("{stored:?}")
        };
        assert_eq!(
            (stored.pod.as_str(), stored.container.as_str()),
            ("u-1", "shaders")
        );
        let ids: Vec<_> = stored.ids.iter().map(|id| id.to_string()).collect();
        assert_eq!(
            (stored.resource, ids),
            (
                Resource::Nvenc,
                vec!["GPU-a::0".to_owned(), "GPU-a::7".to_owned()]
            )
        );
    }

    #[test]
    fn nothing_held_is_no_fault_and_another_form_is() {
        let empty = br#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#;
        assert_eq!(parse(empty).unwrap(), []);
        let lists = br#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":["a"]}]}}"#;
        for other in [&b"{}"[..], b"", lists] {
            assert!(parse(other).is_err());
        }
    }
}
