//! Objects from YAML files, and from kustomizations as far as this repository uses them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize as _;
use serde_json::Value;

/// The objects that a path stands for: those of a file; of a directory's kustomization with all that it refers to;
/// or, where it has none, of all its YAML files.
///
/// # Errors
/// Where something can't be read, or a kustomization uses what is not supported here.
pub fn objects(path: &Path) -> anyhow::Result<Vec<Value>> {
    let kustomization = path.join("kustomization.yaml");
    if path.is_file() {
        documents(path)
    } else if kustomization.is_file() {
        resolve(path, &kustomization)
    } else {
        let entries =
            fs::read_dir(path).with_context(|| format!("reading the directory {}", path.display()))?;
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        all(files)
    }
}

fn resolve(directory: &Path, kustomization: &Path) -> anyhow::Result<Vec<Value>> {
    let [list] = &documents(kustomization)?[..] else {
        bail!("{} is not one document", kustomization.display());
    };
    let mut found = Vec::new();
    for (field, value) in list.as_object().into_iter().flatten() {
        match &**field {
            "apiVersion" | "kind" => {}
            "resources" | "components" => {
                let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                found.extend(all(names.map(|name| directory.join(name)))?);
            }
            other => bail!(
                "{} has `{other}`, which is not supported here",
                kustomization.display()
            ),
        }
    }
    Ok(found)
}

fn all(paths: impl IntoIterator<Item = PathBuf>) -> anyhow::Result<Vec<Value>> {
    let each: Vec<Vec<Value>> = paths
        .into_iter()
        .map(|path| objects(&path))
        .collect::<Result<_, _>>()?;
    Ok(each.into_iter().flatten().collect())
}

fn documents(file: &Path) -> anyhow::Result<Vec<Value>> {
    let doing = || format!("reading {}", file.display());
    let text = fs::read_to_string(file).with_context(doing)?;
    let documents: Result<Vec<Value>, _> = serde_yaml_ng::Deserializer::from_str(&text)
        .map(Value::deserialize)
        .collect();
    let mut documents = documents.with_context(doing)?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}
