//! The plugin's configuration file, in which the capacity is written.
//!
//! Only `software.nvenc` and each measured GPU's `gpus.<UUID>.nvenc` are set; all else in the file stays, but for
//! comments, which YAML's libraries do not keep.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_yaml_ng::{Mapping, Value};
use tempfile::NamedTempFile;

use super::report::{Measurement, references};

/// The name that stands for standard output.
pub(super) const STDOUT: &str = "-";

/// Writes the capacity into `file`, which may be there already. It is replaced at once, so that who reads it meanwhile
/// sees the old or the new.
pub(super) fn write(file: &Path, measured: &[Measurement], headroom: Option<u32>) -> anyhow::Result<()> {
    let doing = || format!("writing the capacity into {}", file.display());
    // A link is kept, and what it points to replaced.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let old = match std::fs::read_to_string(&file) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(doing),
    };
    let new = merged(&old, measured, headroom).with_context(doing)?;
    replace(&file, &new).with_context(doing)?;
    if old.contains('#') {
        eprintln!("Comments that were in {} are gone", file.display());
    }
    eprintln!("Written to {}", file.display());
    Ok(())
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let mode = std::fs::metadata(file).map_or(0o644, |old| old.permissions().mode());
    let folder = match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("/"),
    };
    let mut new = NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// The file's text with the capacity in it. `headroom` is kept off; where it is not told, half of the CPU, which
/// captures and runs applications too, and of a GPU what the file says.
pub(super) fn merged(old: &str, measured: &[Measurement], headroom: Option<u32>) -> anyhow::Result<String> {
    let mut file = match serde_yaml_ng::from_str(old).context("reading what it has, as YAML")? {
        Value::Null => Mapping::new(),
        Value::Mapping(mapping) => mapping,
        _ => bail!("it is no configuration of penstock-plugin: that is a YAML mapping"),
    };
    let references = references(measured);
    if references.is_empty() {
        bail!(
            "capacity is counted by H.264 with preset p3 (x264: superfast), which was not measured: leave \
             --encoder and --preset out"
        );
    }
    for reference in references {
        let (place, headroom) = match &reference.gpu {
            None => (
                child(&mut file, "software")?,
                headroom.unwrap_or(SOFTWARE_HEADROOM),
            ),
            Some(gpu) => {
                let by_file = file.get("headroomPercent").and_then(Value::as_u64);
                let by_file = u32::try_from(by_file.unwrap_or(0)).unwrap_or(100);
                (
                    child(child(&mut file, "gpus")?, gpu)?,
                    headroom.unwrap_or(by_file),
                )
            }
        };
        let units = reference.units(headroom).0;
        if units == 0 {
            bail!(
                "{} manages {} megapixels per second, which less {headroom} % headroom is not one encoder unit (10 \
                 megapixels per second): lower --headroom",
                reference.encoder,
                reference.megapixels_per_second
            );
        }
        place.insert("nvenc".into(), units.into());
    }
    Ok(serde_yaml_ng::to_string(&file)?)
}

/// The mapping under `key`, made where there is none.
fn child<'a>(of: &'a mut Mapping, key: &str) -> anyhow::Result<&'a mut Mapping> {
    let value = of.entry(key.into()).or_insert(Value::Null);
    if value.is_null() {
        *value = Mapping::new().into();
    }
    value
        .as_mapping_mut()
        .with_context(|| format!("its {key} is no mapping"))
}

/// As `penstock-plugin --headroom` has it.
const SOFTWARE_HEADROOM: u32 = 50;

#[cfg(test)]
mod tests {
    use super::super::report::example;
    use super::*;

    #[test]
    fn what_is_in_the_file_stays() {
        let old = "# by hand\nheadroomPercent: 10\nmodels:\n  NVIDIA L4: { nvenc: 200 }\n\
                   gpus:\n  GPU-1: { nvenc: 5, mps: 80 }\n  GPU-2: { vram: 8 }\n";
        let new = merged(old, &measured(), None).unwrap();
        assert_eq!(
            new,
            "headroomPercent: 10\nmodels:\n  NVIDIA L4:\n    nvenc: 200\n\
             gpus:\n  GPU-1:\n    nvenc: 121\n    mps: 80\n  GPU-2:\n    vram: 8\n\
             software:\n  nvenc: 15\n"
        );
        assert_eq!(merged(&new, &measured(), None).unwrap(), new);
    }

    #[test]
    fn headroom_that_was_told_holds_for_all() {
        let new = merged("", &measured(), Some(0)).unwrap();
        assert_eq!(new, "software:\n  nvenc: 31\ngpus:\n  GPU-1:\n    nvenc: 135\n");
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("plugin.yaml"), folder.path().join("link"));
        write(&file, &measured(), None).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, &measured(), Some(0)).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("nvenc: 31"));
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert!(link.is_symlink());
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            2,
            "nothing is left behind"
        );
    }

    #[test]
    fn what_can_not_be_kept_is_refused_and_left_alone() {
        for (old, why) in [
            ("- 1", "mapping"),
            ("gpus: 3", "gpus"),
            ("a: [", "YAML"),
            ("software: x", "software"),
        ] {
            let error = merged(old, &measured(), None).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{old}: {error:#}");
        }
        let other = [example(None, "H.264", "ultrafast", 150.0)];
        assert!(
            merged("", &other, None)
                .unwrap_err()
                .to_string()
                .contains("superfast")
        );
        let slow = [example(None, "H.264", "superfast", 1.0)];
        assert!(
            merged("", &slow, None)
                .unwrap_err()
                .to_string()
                .contains("--headroom")
        );
    }

    fn measured() -> Vec<Measurement> {
        vec![
            example(None, "H.264", "superfast", 150.0),
            example(Some("GPU-1"), "H.264", "p1", 910.0),
            example(Some("GPU-1"), "H.264", "p3", 652.0),
        ]
    }
}
