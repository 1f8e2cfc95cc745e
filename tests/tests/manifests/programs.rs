//! That the programs know what the manifests tell them, and listen where the manifests say.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::overlay::{Container, Overlay, read, root};

#[test]
fn the_programs_know_every_flag_and_variable() -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    let patched = patched_by_the_guide()?;
    patched.applied(&[])?;
    for overlay in Overlay::all()?.into_iter().chain([patched]) {
        for workload in overlay.workloads() {
            for container in workload.ours() {
                let known = Known::of(&container)?;
                let name = format!("{}: {}", overlay.name, workload.name);
                for arg in container.args().iter().filter(|arg| arg.starts_with('-')) {
                    let flag = arg.split('=').next().unwrap_or_default();
                    assert!(known.flags.contains(flag), "{name}: {flag}");
                    seen.insert(flag.to_owned());
                }
                for variable in container.env() {
                    let variable = variable["name"]
                        .as_str()
                        .context("a variable has a name")?
                        .to_owned();
                    let is_used = || {
                        container
                            .args()
                            .iter()
                            .any(|arg| arg.contains(&format!("$({variable})")))
                    };
                    assert!(
                        known.variables.contains(&variable) || OTHERS.contains(&&*variable) || is_used(),
                        "{name}: {variable}"
                    );
                }
                // What is put into arguments is there.
                for arg in container.args() {
                    let Some((_, rest)) = arg.split_once("$(") else {
                        continue;
                    };
                    let variable = rest.split(')').next().unwrap_or_default();
                    assert!(
                        container.env().iter().any(|other| other["name"] == variable),
                        "{name}: {arg}"
                    );
                }
            }
        }
    }
    assert!(seen.len() > 15, "only {seen:?}");
    Ok(())
}

/// The base with the patches that the guide shows.
fn patched_by_the_guide() -> anyhow::Result<Overlay> {
    let guide = read("docs/install.md")?;
    // From where a relative path leads to the manifests, as kustomize wants it.
    let beside = root().join("target");
    std::fs::create_dir_all(&beside)?;
    let place = tempfile::tempdir_in(beside)?;
    let mut patches = Vec::new();
    for block in guide.split("```yaml\n# A patch of the ").skip(1) {
        let (head, rest) = block.split_once('\n').context("a patch")?;
        let (kind, name) = head.split_once(' ').context("of what")?;
        let (body, _) = rest.split_once("```").context("its end")?;
        let target =
            format!("apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: penstock}}\n");
        let file = format!("{}-{name}.yaml", patches.len());
        std::fs::write(place.path().join(&file), target + body)?;
        patches.push(format!("- path: {file}\n"));
    }
    ensure!(patches.len() == 3, "{patches:?}");
    let list = format!(
        "resources: [../../manifests/base]\npatches:\n{}",
        patches.concat()
    );
    std::fs::write(place.path().join("kustomization.yaml"), list)?;
    let patched = Overlay::render_at("the guide's patches", place.path())?;
    let streamer = patched.workload("penstock-streamer")?;
    ensure!(
        streamer.containers().len() == 2,
        "the application's container is there"
    );
    Ok(patched)
}

#[test]
fn the_ports_are_those_that_the_programs_listen_at() -> anyhow::Result<()> {
    for overlay in Overlay::all()? {
        for workload in overlay.workloads() {
            for container in workload.containers() {
                let name = format!("{}: {}", overlay.name, workload.name);
                let ports = container.ports();
                let named = |port: &Value| ports.iter().any(|other| other["name"] == *port);
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let Some(probe) = container.object.get(probe) else {
                        continue;
                    };
                    assert!(named(&probe["httpGet"]["port"]), "{name}: {probe}");
                }
                for port in &ports {
                    let port = port["name"].as_str().unwrap_or_default();
                    assert!((1..=15).contains(&port.len()), "{name}: {port}");
                }
                if container.image().starts_with("penstock-") {
                    let declared: BTreeSet<_> = ports
                        .iter()
                        .filter_map(|port| port["containerPort"].as_u64())
                        .collect();
                    assert_eq!(declared, listens(&container)?, "{name}");
                }
            }
        }
    }
    Ok(())
}

/// Where others than its own pod reach it.
fn listens(container: &Container) -> anyhow::Result<BTreeSet<u64>> {
    let args = container.args();
    let addresses = args.iter().filter_map(|arg| {
        let (flag, address) = arg.split_once('=')?;
        (flag.ends_with("listen") && !address.starts_with("127.")).then_some(address)
    });
    let port = |address: &str| {
        let (_, port) = address.rsplit_once(':').context("an address has a port")?;
        Ok(port.parse()?)
    };
    addresses.map(port).collect()
}

/// What a program's help names.
struct Known {
    flags: BTreeSet<String>,
    variables: BTreeSet<String>,
}

impl Known {
    fn of(container: &Container) -> anyhow::Result<Self> {
        let mut command = Command::new(container.program()?);
        // A subcommand, where it has one.
        command.args(container.args().first().filter(|arg| !arg.starts_with('-')));
        let help = command.arg("--help").output().context("asking for help")?;
        let help = String::from_utf8(help.stdout)?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let words: Vec<_> = help.split(|c| !is_part(c)).collect();
        let flags = words.iter().filter(|word| word.starts_with("--"));
        let variables = help
            .split("[env: ")
            .skip(1)
            .filter_map(|rest| rest.split(['=', ']']).next());
        Ok(Self {
            flags: flags.map(|&flag| flag.to_owned()).collect(),
            variables: variables.map(str::to_owned).collect(),
        })
    }
}

/// Variables that others read: NVIDIA's container runtime, GStreamer.
const OTHERS: [&str; 3] = ["NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HOME"];
