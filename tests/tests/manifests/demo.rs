//! What the demo's overlay describes, run on this machine: the programs with its arguments, variables, secrets and
//! accounts, at a stand-in for its API server that says its pods run. A browser plays the game through the TURN server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fake_kube::FakeKube;
use penstock_core::names::ANNOTATION_DELETION_COST;
use penstock_tests::browser::Browser;
use penstock_tests::eventually;
use penstock_tests::programs::{Program, free_tcp, ready};
use penstock_tests::stage::plays;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::overlay::{Container, Overlay, read, root};

#[tokio::test]
async fn a_player_plays_the_demos_game_through_its_relay() -> anyhow::Result<()> {
    let demo = Overlay::render("overlays/demo")?;
    let node = Node::new(&demo)?;
    let turn = node.run(
        "penstock-turn",
        "penstock-turn",
        &[("PENSTOCK_TURN_ALLOW_PEERS", "127.0.0.1/32")],
    )?;
    let streamer = node.run(
        "penstock-streamer",
        "penstock-streamer",
        &[("PENSTOCK_MEDIA_IP", "127.0.0.1")],
    )?;
    let page = root().join("player/dist").canonicalize()?;
    let front = [
        ("PENSTOCK_PAGE", &*page.to_string_lossy()),
        ("PENSTOCK_NAMESPACE", "penstock"),
    ];
    let matchmaker = node.run("penstock-matchmaker", "penstock-matchmaker", &front)?;
    for running in [&turn, &streamer, &matchmaker] {
        running.is_ready().await?;
    }
    let mut browser = Browser::start().await?;
    let port = matchmaker.ports[&8080];
    let mut page = browser
        .open(&format!("http://127.0.0.1:{port}/?ForceTURN=true"))
        .await?;
    plays(&mut page).await?;
    let servers = page
        .eval("penstock.peer().getConfiguration().iceServers[0].urls")
        .await?;
    assert_eq!(
        servers[0],
        format!("turn:127.0.0.1:{}?transport=udp", turn.ports[&3478])
    );
    let streamers = streamer.ports[&9000];
    let status = reqwest::get(format!("http://127.0.0.1:{streamers}/status"))
        .await?
        .text()
        .await?;
    assert!(status.contains("\"application\":\"kobo\""), "{status}");
    eventually("its pod is dear to delete", Duration::from_secs(20), async || {
        let pod = node.kube.get("pods", Some("penstock"), "penstock-streamer");
        let cost = pod.map(|pod| pod["metadata"]["annotations"][ANNOTATION_DELETION_COST].clone());
        Ok((cost == Some(json!("100"))).then_some(()))
    })
    .await?;
    let refused: Vec<_> = node
        .kube
        .requests()
        .into_iter()
        .filter(|request| request.code == 403)
        .collect();
    assert!(
        refused.is_empty(),
        "its account is allowed too little: {refused:?}"
    );
    Ok(())
}

/// A node of a cluster that has taken the demo.
struct Node<'a> {
    demo: &'a Overlay,
    kube: FakeKube,
    place: TempDir,
}

/// A pod.
struct Running {
    _program: Program,
    /// Where it listens on this machine, by what its manifest says.
    ports: BTreeMap<u64, u16>,
    ready: String,
}

impl<'a> Node<'a> {
    fn new(demo: &'a Overlay) -> anyhow::Result<Self> {
        let kube = demo.applied(&[])?;
        kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
        let place = tempfile::tempdir()?;
        Ok(Self { demo, kube, place })
    }

    /// Runs one pod of a workload, with ports of its own in place of those in the manifest.
    fn run(&self, workload: &str, program: &'static str, env: &[(&str, &str)]) -> anyhow::Result<Running> {
        let pod = self.demo.workload(workload)?;
        let [container] = &pod.containers()[..] else {
            anyhow::bail!("{workload} has several containers");
        };
        let mut ports = BTreeMap::new();
        for port in container
            .ports()
            .iter()
            .filter_map(|port| port["containerPort"].as_u64())
        {
            ports.insert(port, free_tcp()?.port());
        }
        let variables = variables(workload, container)?;
        let args = self.args(pod.pod(), container, &variables)?;
        let mut command = Command::new(container.program()?);
        command
            .args(args.iter().map(|arg| on_this_machine(arg, &ports)))
            .envs(&variables)
            .envs(env.iter().copied());
        if let Some(account) = pod.pod()["serviceAccountName"].as_str() {
            let config = self.place.path().join(format!("{workload}.kubeconfig"));
            self.kube.kubeconfig(&config, Some(("penstock", account)))?;
            command.env("KUBECONFIG", config);
        }
        self.announce(workload, pod.labels(), container, &ports);
        let probe = &container.object["readinessProbe"]["httpGet"];
        let at = pod.port_named(&probe["port"]).context("its probe's port")?;
        let path = probe["path"].as_str().unwrap_or_default();
        Ok(Running {
            ready: format!("http://127.0.0.1:{}{path}", ports[&at]),
            _program: Program::run(program, command)?,
            ports,
        })
    }

    /// Its arguments, with variables put in, and with this machine's files for the container's.
    fn args(
        &self,
        pod: &Value,
        container: &Container,
        variables: &BTreeMap<String, String>,
    ) -> anyhow::Result<Vec<String>> {
        let files = self.files(pod, container)?;
        let game = root().join("scripts/game").canonicalize()?.display().to_string();
        let recipe = read("images/demo/Containerfile")?;
        let copied = recipe
            .lines()
            .find_map(|line| line.strip_prefix("COPY scripts/game /usr/local/bin/"));
        let in_image = copied.context("the demo's image has the game")?;
        let args = container.args().into_iter().map(|arg| {
            let arg = files
                .iter()
                .fold(arg, |arg, (there, here)| arg.replace(there, here));
            let arg = variables.iter().fold(arg, |arg, (name, value)| {
                arg.replace(&format!("$({name})"), value)
            });
            let arg = arg.replace(" /tmp", &format!(" {}", self.place.path().display()));
            arg.replace(in_image, &game)
        });
        Ok(args.collect())
    }

    /// Files of secrets, by their directories in the container: on this machine.
    fn files(&self, pod: &Value, container: &Container) -> anyhow::Result<Vec<(String, String)>> {
        let mut directories = Vec::new();
        for mount in container.object["volumeMounts"].as_array().into_iter().flatten() {
            let volumes = pod["volumes"].as_array().into_iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume["name"] == mount["name"]);
            let Some(secret) = volume.and_then(|volume| volume["secret"]["secretName"].as_str()) else {
                continue;
            };
            let directory = self.place.path().join(secret);
            std::fs::create_dir_all(&directory)?;
            let secret = self
                .kube
                .get("secrets", Some("penstock"), secret)
                .context("a secret is missing")?;
            for (key, value) in secret["data"].as_object().into_iter().flatten() {
                let value = BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?;
                std::fs::write(directory.join(key), value)?;
            }
            let there = mount["mountPath"].as_str().unwrap_or_default().to_owned();
            directories.push((there, directory.display().to_string()));
        }
        Ok(directories)
    }

    fn announce(&self, name: &str, labels: &Value, container: &Container, ports: &BTreeMap<u64, u16>) {
        let declared = container.ports().into_iter().map(|mut port| {
            let here = port["containerPort"].as_u64().and_then(|port| ports.get(&port));
            port["containerPort"] = json!(here);
            port
        });
        let containers = [json!({ "name": "it", "image": "x", "ports": declared.collect::<Vec<_>>() })];
        self.kube.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "penstock", "name": name, "labels": labels },
            "spec": { "nodeName": "node-1", "containers": containers },
            "status": { "phase": "Running", "podIP": "127.0.0.1" },
        }));
    }
}

impl Running {
    async fn is_ready(&self) -> anyhow::Result<()> {
        ready(&self.ready).await
    }
}

fn variables(pod: &str, container: &Container) -> anyhow::Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in container.env() {
        let from = &variable["valueFrom"];
        let value = match from["fieldRef"]["fieldPath"].as_str() {
            Some("status.hostIP") => "127.0.0.1".to_owned(),
            Some("metadata.name") => pod.to_owned(),
            Some(other) => anyhow::bail!("{other} is not known here"),
            // The demo's secrets have none of these.
            None if from["secretKeyRef"]["optional"] == true => continue,
            None => variable["value"]
                .as_str()
                .context("a variable has a value")?
                .to_owned(),
        };
        variables.insert(variable["name"].as_str().unwrap_or_default().to_owned(), value);
    }
    Ok(variables)
}

/// An argument with this machine's addresses, and its ports for those of the pod.
fn on_this_machine(arg: &str, ports: &BTreeMap<u64, u16>) -> String {
    let arg = arg.replace("0.0.0.0:", "127.0.0.1:");
    ports.iter().fold(arg, |arg, (there, here)| {
        match arg.strip_suffix(&format!(":{there}")) {
            Some(address) => format!("{address}:{here}"),
            None => arg,
        }
    })
}
