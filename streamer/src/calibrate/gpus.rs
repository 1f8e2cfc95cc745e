//! The NVIDIA GPUs that the driver names under `/proc`, where containers see theirs too.

use std::path::Path;

/// The UUIDs that were `told`, or those of all GPUs that the driver names.
pub(super) fn chosen(told: &[String]) -> Vec<String> {
    match told {
        [] => named_in(Path::new("/proc/driver/nvidia/gpus")),
        told => told.to_vec(),
    }
}

/// Each GPU has a directory with a file `information`. Without a driver there are none.
fn named_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut uuids: Vec<_> = entries
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("information")).ok())
        .filter_map(|information| uuid(&information))
        .collect();
    uuids.sort();
    uuids
}

fn uuid(information: &str) -> Option<String> {
    let value = information
        .lines()
        .find_map(|line| line.strip_prefix("GPU UUID:"))?;
    // The driver says question marks until it has been used once.
    let uuid = value.trim();
    (!uuid.contains('?') && !uuid.is_empty()).then(|| uuid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_named_by_the_driver() {
        let proc = tempfile::tempdir().unwrap();
        for (bus, uuid) in [
            ("0000:81:00.0", "GPU-b"),
            ("0000:01:00.0", "GPU-a"),
            ("0000:02:00.0", "GPU-????"),
        ] {
            let gpu = proc.path().join(bus);
            std::fs::create_dir(&gpu).unwrap();
            let text = format!(
                "Model: \t\t NVIDIA L4\nIRQ:   \t\t 120\nGPU UUID: \t {uuid}\nVideo BIOS: \t 95.04\n"
            );
            std::fs::write(gpu.join("information"), text).unwrap();
        }
        assert_eq!(named_in(proc.path()), ["GPU-a", "GPU-b"]);
        assert!(named_in(Path::new("/nowhere")).is_empty());
        assert_eq!(chosen(&["MIG-1".to_owned()]), ["MIG-1"]);
    }
}
