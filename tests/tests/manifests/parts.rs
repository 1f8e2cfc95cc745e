//! That an overlay's parts agree with one another.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use penstock_core::names::{LABEL_STREAMER, LABEL_TURN, PORT_METRICS, PORT_SIGNALLING, RESOURCE_NVENC};
use serde_json::{Value, json};

use crate::overlay::{Overlay, Workload, read, root};

#[test]
fn a_cluster_takes_every_overlay() -> anyhow::Result<()> {
    let operator = root().join("tests/tests/manifests/prometheus-operator.yaml");
    for overlay in Overlay::all()? {
        let kube = overlay.applied(&[&operator])?;
        assert!(!kube.list("daemonsets").is_empty(), "{}", overlay.name);
    }
    Ok(())
}

#[test]
fn the_demo_asks_nothing_of_a_bare_cluster() -> anyhow::Result<()> {
    let demo = Overlay::render("overlays/demo")?;
    // Kinds that a cluster has from the start, and those that the demo itself defines.
    demo.applied(&[])?;
    for workload in demo.workloads() {
        let pod = workload.pod();
        let gpus = pod["nodeSelector"]["app.pixel/gpu"] == "true";
        assert!(gpus || pod["nodeSelector"].is_null(), "{}", workload.name);
        assert!(gpus || pod["runtimeClassName"].is_null(), "{}", workload.name);
    }
    Ok(())
}

/// An older cluster would refuse what it does not know, and a newer scheduler wait for ever for what an older cluster does
/// not have.
#[test]
fn kubernetes_1_30_has_all_that_the_overlays_ask_for() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        for object in &overlay.objects {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            let of_the_operator = version == "monitoring.coreos.com/v1";
            assert!(
                SERVED_SINCE_1_30.contains(&version) || of_the_operator,
                "{}: {version} {}",
                overlay.name,
                object["kind"]
            );
        }
        let Ok(scheduler) = overlay.workload("penstock-scheduler") else {
            continue;
        };
        let scheduler = scheduler.containers().remove(1);
        let version = scheduler
            .image()
            .strip_prefix("registry.k8s.io/kube-scheduler:v1.31.");
        assert!(version.is_some(), "{}", scheduler.image());
        // What it has had since 1.31, and newer ones have too.
        let path = |probe: &str| scheduler.object[probe]["httpGet"]["path"].clone();
        assert_eq!(path("startupProbe"), "/livez");
        assert_eq!(path("livenessProbe"), "/livez");
        assert_eq!(path("readinessProbe"), "/readyz");
    }
    Ok(())
}

const SERVED_SINCE_1_30: [&str; 6] = [
    "v1",
    "apps/v1",
    "apiextensions.k8s.io/v1",
    "autoscaling/v2",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
];

/// Two cores, of which kubeadm's own pods ask for one, or kind's. No file of the node's is needed but the kubelet's:
/// not every distribution has the others.
#[test]
fn the_demo_fits_a_small_node() -> anyhow::Result<()> {
    let demo = Overlay::render("overlays/demo")?;
    let mut millicores = 0;
    for workload in demo.workloads() {
        if !workload.pod()["nodeSelector"].is_null() {
            continue;
        }
        let replicas = workload.object["spec"]["replicas"].as_u64().unwrap_or(1);
        for container in workload.containers() {
            let cpu = &container.object["resources"]["requests"]["cpu"];
            let cpu = cpu
                .as_str()
                .and_then(|cpu| cpu.strip_suffix('m'))
                .context("in millicores")?;
            millicores += replicas * cpu.parse::<u64>()?;
        }
        for volume in list(&workload.pod()["volumes"]) {
            let path = volume["hostPath"]["path"].as_str().unwrap_or("/var/lib/kubelet/");
            assert!(path.starts_with("/var/lib/kubelet/"), "{}: {path}", workload.name);
        }
    }
    assert!((300..=800).contains(&millicores), "{millicores}m");
    Ok(())
}

/// What it would measure on a node where everything starts at once may be too little for any.
#[test]
fn the_demos_node_offers_a_slice_to_each_streamer() -> anyhow::Result<()> {
    let demo = Overlay::render("overlays/demo")?;
    let plugin = demo.workload("penstock-plugin-software")?.containers().remove(0);
    let offered: u64 = plugin.argument("--units").context("--units")?.parse()?;
    let streamer = demo.workload("penstock-streamer")?;
    let replicas = streamer.object["spec"]["replicas"].as_u64().context("replicas")?;
    let asks = &streamer.containers()[0].object["resources"]["limits"][RESOURCE_NVENC];
    let asks: u64 = asks.as_str().context("encoder units")?.parse()?;
    assert!(
        offered >= replicas * asks,
        "{offered} for {replicas} times {asks}"
    );
    Ok(())
}

/// Where all slices are taken, a new streamer waits for an old one to end.
#[test]
fn streamers_are_replaced_without_a_slice_to_spare() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        let Ok(streamer) = overlay.workload("penstock-streamer") else {
            continue;
        };
        assert_eq!(
            streamer.object["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
            0
        );
        // Encoders may take all of a node's CPU, and a restart ends the session.
        let streamer = streamer.containers().remove(0);
        for probe in ["livenessProbe", "readinessProbe"] {
            let patience = streamer.object[probe]["timeoutSeconds"].as_u64();
            assert!(patience >= Some(5), "{probe}");
        }
    }
    Ok(())
}

#[test]
fn every_file_belongs_to_a_kustomization() -> anyhow::Result<()> {
    let mut seen = 0;
    for file in files(&root().join("manifests"))? {
        let directory = file.parent().context("a file lies in a directory")?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name == "kustomization.yaml" {
            continue;
        }
        let list = std::fs::read_to_string(directory.join("kustomization.yaml"))
            .with_context(|| format!("{} has no kustomization", directory.display()))?;
        let named = |line: &str| line.split_whitespace().last() == Some(&*name);
        assert!(list.lines().any(named), "nothing names {}", file.display());
        seen += 1;
    }
    assert!(seen > 15, "only {seen} manifests");
    Ok(())
}

#[test]
fn pods_are_found_where_they_are_looked_for() -> anyhow::Result<()> {
    for overlay in Overlay::all()?
        .iter()
        .filter(|overlay| overlay.name != "overlays/software")
    {
        let found_by = |label: &str| {
            overlay
                .workloads()
                .find(|workload| workload.labels()[label] == "true")
        };
        let streamer = found_by(LABEL_STREAMER).context("nobody has the streamers' label")?;
        assert_eq!(streamer.port_named(&json!(PORT_SIGNALLING)), Some(9000));
        let turn = found_by(LABEL_TURN).context("nobody has the TURN servers' label")?;
        assert_eq!(turn.port_named(&json!(PORT_METRICS)), Some(9641));
        let limits = &streamer.containers()[0].object["resources"]["limits"];
        assert!(limits[RESOURCE_NVENC].is_string(), "{limits}");
        assert_eq!(streamer.pod()["schedulerName"], scheduler_name(overlay)?);
    }
    Ok(())
}

#[test]
fn what_selects_pods_selects_some_and_its_ports_are_theirs() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            assert!(workload.is_selected_by(&workload.object["spec"]["selector"]));
        }
        for service in overlay.of_kind("Service") {
            let selector = json!({ "matchLabels": service["spec"]["selector"] });
            let ports = list(&service["spec"]["ports"]).map(|port| &port["targetPort"]);
            check(&overlay, service, &selector, ports.collect())?;
        }
        for monitor in overlay.of_kind("PodMonitor") {
            let ports = list(&monitor["spec"]["podMetricsEndpoints"]).map(|endpoint| &endpoint["port"]);
            check(&overlay, monitor, &monitor["spec"]["selector"], ports.collect())?;
        }
        for budget in overlay.of_kind("PodDisruptionBudget") {
            check(&overlay, budget, &budget["spec"]["selector"], vec![])?;
        }
        for scaler in overlay.of_kind("HorizontalPodAutoscaler") {
            let target = overlay.workload(scaler["spec"]["scaleTargetRef"]["name"].as_str().unwrap_or(""))?;
            let replicas = &target.object["spec"]["replicas"];
            assert!(replicas.is_null(), "two say how many there are");
        }
    }
    Ok(())
}

fn check(overlay: &Overlay, who: &Value, selector: &Value, ports: Vec<&Value>) -> anyhow::Result<()> {
    let name = format!("{}: {} {}", overlay.name, who["kind"], who["metadata"]["name"]);
    let selected: Vec<_> = overlay
        .workloads()
        .filter(|workload| workload.is_selected_by(selector))
        .collect();
    ensure!(!selected.is_empty(), "{name} selects nobody");
    for workload in selected {
        for port in &ports {
            let found = workload.port_named(port);
            ensure!(found.is_some(), "{name}: {} has no port {port}", workload.name);
        }
    }
    Ok(())
}

/// Every replica's metrics are scraped, and autoscaling asks for what the rules record, of the job that they have.
#[test]
fn what_is_scaled_by_is_recorded() -> anyhow::Result<()> {
    let overlay = Overlay::render("overlays/gpu")?;
    for workload in overlay.workloads().filter(|workload| !workload.ours().is_empty()) {
        let mut monitors = overlay.of_kind("PodMonitor");
        let is_scraped = monitors.any(|monitor| workload.is_selected_by(&monitor["spec"]["selector"]));
        assert!(is_scraped, "nobody asks {} for metrics", workload.name);
    }
    let scaler = overlay
        .of_kind("HorizontalPodAutoscaler")
        .next()
        .context("an autoscaler")?;
    let metric = &scaler["spec"]["metrics"][0]["external"]["metric"];
    let rules = overlay.of_kind("PrometheusRule").next().context("rules")?;
    let mut recorded = list(&rules["spec"]["groups"][0]["rules"]);
    assert!(recorded.any(|rule| rule["record"] == metric["name"]), "{metric}");
    let matchmaker = overlay.workload("penstock-matchmaker")?;
    let monitor = overlay
        .of_kind("PodMonitor")
        .find(|monitor| matchmaker.is_selected_by(&monitor["spec"]["selector"]))
        .context("the matchmaker's monitor")?;
    let job = &matchmaker.labels()[monitor["spec"]["jobLabel"].as_str().unwrap_or_default()];
    assert_eq!(metric["selector"]["matchLabels"]["job"], *job);
    Ok(())
}

#[test]
fn whatever_pods_refer_to_is_there() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            let account = workload.pod()["serviceAccountName"].as_str();
            let named = account.into_iter().map(|name| ("ServiceAccount", name));
            let maps = list(&workload.pod()["volumes"])
                .filter_map(|volume| Some(("ConfigMap", volume["configMap"]["name"].as_str()?)));
            for (kind, name) in named.chain(maps) {
                assert!(overlay.has(kind, name), "{}: {kind} {name}", overlay.name);
            }
        }
    }
    Ok(())
}

/// The demo brings its secrets; of the others the guide tells how to make them, key by key.
#[test]
fn secrets_are_there_or_told_to_be_made() -> anyhow::Result<()> {
    let guide = read("docs/install.md")?;
    let mut seen = BTreeSet::new();
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            for (secret, key) in secrets(&workload) {
                if overlay.name == "overlays/demo" {
                    assert!(overlay.has("Secret", &secret), "{secret}");
                    continue;
                }
                let mut lines = guide.lines();
                let made = lines.find(|line| line.contains(&format!("create secret generic {secret} ")));
                let made = made.with_context(|| format!("nothing makes {secret}"))?;
                let mut words = made.split_whitespace();
                let has = words.any(|word| {
                    word == format!("--from-file={key}")
                        || word.starts_with(&format!("--from-literal={key}="))
                });
                assert!(has, "{secret} is made without {key}");
                seen.insert((secret, key));
            }
        }
    }
    let names: Vec<_> = seen.iter().map(|(_, key)| &**key).collect();
    assert_eq!(names, ["signing-key", "users", "secret"]);
    Ok(())
}

/// Secrets and their keys that a workload can't do without.
fn secrets(workload: &Workload<'_>) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for container in workload.containers() {
        for variable in container.env() {
            let from = &variable["valueFrom"]["secretKeyRef"];
            if !from.is_null() && from["optional"] != true {
                found.push((text(&from["name"]), text(&from["key"])));
            }
        }
        for volume in list(&workload.pod()["volumes"]).filter(|volume| volume["secret"].is_object()) {
            let mounts = list(&container.object["volumeMounts"]);
            for mount in mounts.filter(|mount| mount["name"] == volume["name"]) {
                let within = format!("={}/", text(&mount["mountPath"]));
                let args = container.args();
                let files = args.iter().filter_map(|arg| Some(arg.split_once(&within)?.1));
                found.extend(files.map(|file| (text(&volume["secret"]["secretName"]), file.to_owned())));
            }
        }
    }
    found
}

#[test]
fn the_guide_names_every_label_that_nodes_need() -> anyhow::Result<()> {
    let guide = read("docs/install.md")?;
    let mut seen = 0;
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            for (name, value) in workload.pod()["nodeSelector"].as_object().into_iter().flatten() {
                let label = format!("{name}={}", value.as_str().unwrap_or_default());
                assert!(guide.contains(&label), "{}: {label}", workload.name);
                seen += 1;
            }
        }
    }
    assert!(seen > 5, "only {seen}");
    Ok(())
}

#[test]
fn privileges_are_few_and_every_volume_is_used() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            let (name, pod) = (workload.name, workload.pod());
            assert_eq!(pod["hostNetwork"] == true, name == "penstock-turn", "{name}");
            assert_eq!(
                pod["hostPID"] == true,
                ["penstock-plugin", "penstock-mps"].contains(&name),
                "{name}"
            );
            assert!(pod["hostIPC"].is_null(), "{name}");
            // The kubelet's and MPS's directories are root's.
            let root = ["penstock-plugin", "penstock-plugin-software", "penstock-mps"].contains(&name);
            let mut mounted = BTreeSet::new();
            for container in workload.containers() {
                let context = &container.object["securityContext"];
                assert_eq!(context["runAsNonRoot"] == true, !root, "{name}");
                assert_eq!(context["privileged"], Value::Null, "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
                assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
                mounted
                    .extend(list(&container.object["volumeMounts"]).map(|mount| mount["name"].to_string()));
            }
            let volumes: BTreeSet<_> = list(&pod["volumes"])
                .map(|volume| volume["name"].to_string())
                .collect();
            assert_eq!(volumes, mounted, "{name}");
            // Services of the namespace would become variables, among them such as the programs read: TURN_PORT.
            assert_eq!(pod["enableServiceLinks"], false, "{name}");
            // Whoever is not told of the API server has no business there.
            let told = pod["automountServiceAccountToken"] != false;
            assert_eq!(told, pod["serviceAccountName"].is_string(), "{name}");
        }
    }
    Ok(())
}

/// A pod that is told to end is killed when its grace period is over: later than what runs in it gives up.
#[test]
fn pods_outlast_the_grace_of_what_runs_in_them() -> anyhow::Result<()> {
    let mut seen = 0;
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            let pod = workload.pod()["terminationGracePeriodSeconds"]
                .as_u64()
                .unwrap_or(30);
            for container in workload.ours() {
                let own = container
                    .argument("--grace")
                    .or(container.variable("PENSTOCK_TURN_GRACE"));
                let Some(own) = own else { continue };
                assert!(
                    own.parse::<u64>()? + 5 <= pod,
                    "{}: {}",
                    overlay.name,
                    workload.name
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "only {seen} have a grace");
    Ok(())
}

/// What the extender packs, no plugin of the scheduler spreads.
#[test]
fn the_scheduler_spreads_nothing() -> anyhow::Result<()> {
    let overlay = Overlay::render("base")?;
    let config = scheduler_config(&overlay)?;
    let profile = &config["profiles"][0];
    let disabled: Vec<_> = list(&profile["plugins"]["score"]["disabled"])
        .map(|plugin| &plugin["name"])
        .collect();
    assert_eq!(disabled, ["NodeResourcesFit", "NodeResourcesBalancedAllocation"]);
    let mut configured = list(&profile["pluginConfig"]);
    let spread = configured
        .find(|plugin| plugin["name"] == "PodTopologySpread")
        .context("its arguments")?;
    assert_eq!(
        spread["args"],
        json!({ "defaultingType": "List", "defaultConstraints": [] })
    );
    Ok(())
}

fn scheduler_name(overlay: &Overlay) -> anyhow::Result<Value> {
    Ok(scheduler_config(overlay)?["profiles"][0]["schedulerName"].clone())
}

fn scheduler_config(overlay: &Overlay) -> anyhow::Result<Value> {
    let map = overlay
        .of_kind("ConfigMap")
        .find(|map| map["metadata"]["name"] == "penstock-scheduler");
    let text = map
        .and_then(|map| map["data"]["scheduler.yaml"].as_str())
        .context("the scheduler's configuration")?;
    Ok(serde_yaml_ng::from_str(text)?)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}
