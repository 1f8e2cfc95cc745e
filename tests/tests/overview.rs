//! The overview in a real browser: it changes by itself, is readable on a phone, and is for operators alone. Pictures
//! of it are kept in target/pictures.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fake_kube::FakeKube;
use penstock_core::names::LABEL_STREAMER;
use penstock_core::wire::status::StreamerState;
use penstock_tests::browser::{Browser, Page};
use penstock_tests::eventually;
use penstock_tests::programs::{Program, free_tcp, ready};
use penstock_tests::stage::{Stage, TEST_SOURCE, plays, status};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

#[tokio::test]
async fn who_comes_and_goes_is_seen_within_two_seconds() -> anyhow::Result<()> {
    let mut stage = Stage::start(2, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut overview = open(&mut browser, &format!("http://{}/overview", stage.web())).await?;
    overview.until(&bar("free", 2), PATIENCE).await?;
    // A page that loaded anew would forget this.
    overview.eval("window.untouched = true").await?;
    says(&mut overview, "This machine").await?;
    says(&mut overview, "6 of 12 units reserved").await?;
    says(&mut overview, "Encoder load not measured").await?;
    overview.keep_picture("overview-standalone-free").await?;

    let mut first = browser.open(&stage.page("")).await?;
    plays(&mut first).await?;
    eventually("a busy streamer", PATIENCE, async || {
        Ok((busy(&stage).await? == 1).then_some(()))
    })
    .await?;
    overview.until(&bar("playing", 1), SOON).await?;
    let _second = browser.open(&stage.page("")).await?;
    eventually("two busy streamers", PATIENCE, async || {
        Ok((busy(&stage).await? == 2).then_some(()))
    })
    .await?;
    overview.until(&bar("playing", 2), SOON).await?;
    let mut third = browser.open(&stage.page("")).await?;
    third.until("penstock.state === 'waiting'", PATIENCE).await?;
    overview.until(&tile("Waiting", "1"), SOON).await?;
    overview.keep_picture("overview-standalone-full").await?;

    first.eval("document.getElementById('leave').click()").await?;
    third.until("penstock.state !== 'waiting'", PATIENCE).await?;
    overview.until(&tile("Waiting", "0"), SOON).await?;
    assert_eq!(overview.eval("window.untouched").await?, true);

    stage.kill_matchmaker().await?;
    overview.until(&link("stale"), SOON).await?;
    says(&mut overview, "Out of date").await?;
    let age = "+document.body.innerText.match(/Last heard (\\d+) s ago/)[1]";
    let before = overview.eval(age).await?;
    overview.until(&format!("{age} > {before}"), PATIENCE).await?;
    overview.keep_picture("overview-out-of-date").await?;
    stage.restart_matchmaker()?;
    overview.until(&link("live"), PATIENCE).await?;
    assert_eq!(overview.eval("window.untouched").await?, true);
    Ok(())
}

#[tokio::test]
async fn nodes_gpus_and_slices_are_drawn_and_fit_a_phone() -> anyhow::Result<()> {
    let kube = busy_cluster().await?;
    let (web, files) = (free_tcp()?, tempfile::tempdir()?);
    let config = files.path().join("kubeconfig");
    kube.kubeconfig(&config, Some(("penstock", "penstock-matchmaker")))?;
    let (listen, config) = (web.to_string(), config.to_string_lossy().into_owned());
    let _door = Program::start_with(
        "penstock-matchmaker",
        &[
            "--listen",
            &listen,
            "--pods",
            "--namespace",
            "penstock",
            "--page",
            PAGE,
        ],
        &[("KUBECONFIG", &config)],
    )?;
    ready(&format!("http://{web}/readyz")).await?;
    let mut browser = Browser::start().await?;
    let mut overview = open(&mut browser, &format!("http://{web}/overview")).await?;
    is_drawn(&mut overview).await?;
    says_more(&mut overview).await?;
    fits(&mut overview).await?;
    // What was opened stays open while the picture changes.
    kube.edit("gpunodes", None, "gpu-pool-l4-1", |node| {
        node["spec"]["gpus"][0]["measured"]["encoderLoadPercent"] = json!(90);
        node["spec"]["gpus"][0]["allocated"].as_array_mut().map(Vec::pop);
    });
    overview
        .until(
            "document.body.innerText.includes('Measured encoder load 90 to 100 %')",
            SOON,
        )
        .await?;
    says(&mut overview, "26 of 50 units reserved").await?;
    assert_eq!(
        overview.eval("document.querySelector('details').open").await?,
        true
    );
    kube.delete("gpunodes", None, "gpu-pool-t4-1");
    overview
        .until("document.querySelectorAll('.gpu').length === 2", SOON)
        .await?;
    Ok(())
}

#[tokio::test]
async fn only_an_operator_sees_it() -> anyhow::Result<()> {
    let (web, files) = (free_tcp()?, tempfile::tempdir()?);
    let users = files.path().join("users");
    std::fs::write(&users, USERS)?;
    let door = door(web, &users, "oscar")?;
    ready(&format!("http://{web}/readyz")).await?;
    let client = reqwest::Client::new();
    for path in ["overview", "overview.json", "overview/events"] {
        let url = format!("http://{web}/play/{path}");
        assert_eq!(client.get(&url).send().await?.status(), 401, "{path}");
        let ann = client.get(&url).basic_auth("ann", Some("north"));
        assert_eq!(ann.send().await?.status(), 403, "{path}");
        let oscar = client.get(&url).basic_auth("oscar", Some("south"));
        assert_eq!(oscar.send().await?.status(), 200, "{path}");
    }
    let mut browser = Browser::start().await?;
    let url = format!("http://oscar:south@{web}/play/overview");
    let mut overview = open(&mut browser, &url).await?;
    overview.until(&link("live"), PATIENCE).await?;
    says(&mut overview, "No GPU is known").await?;
    overview.keep_picture("overview-empty").await?;
    // Who is no operator any more is told so.
    door.end().await?;
    let _door = self::door(web, &users, "ann")?;
    overview.until(&link("denied"), PATIENCE).await?;
    says(&mut overview, "You may not see this (any more)").await
}

/// Two nodes with three GPUs, and streamers in all states.
async fn busy_cluster() -> anyhow::Result<FakeKube> {
    let kube = cluster();
    for (pod, state, players, viewers) in [
        ("chess-7d9f-a", "busy", 1, 2),
        ("chess-7d9f-b", "busy", 1, 0),
        ("chess-7d9f-c", "free", 0, 0),
        ("chess-7d9f-d", "starting", 0, 0),
        ("go-5c4b-e", "draining", 1, 0),
        ("go-5c4b-f", "free", 1, 1),
        ("lost-on-its-way", "free", 0, 0),
    ] {
        run_pod(&kube, pod, streamer(pod, state, players, viewers).await?);
    }
    gpu_node(
        &kube,
        "gpu-pool-t4-1",
        &[t4("GPU-t4", &[("chess-7d9f-a", 7), ("chess-7d9f-d", 7)])],
    );
    let first = l4(
        "GPU-l4-0",
        40,
        &[("chess-7d9f-b", 13), ("chess-7d9f-c", 13), ("go-5c4b-e", 7)],
    );
    let second = l4("GPU-l4-1", 0, &[("go-5c4b-f", 13), ("someone-else", 10)]);
    gpu_node(&kube, "gpu-pool-l4-1", &[first, second]);
    Ok(kube)
}

async fn is_drawn(overview: &mut Page) -> anyhow::Result<()> {
    for (state, count) in [
        ("playing", 3),
        ("free", 1),
        ("starting", 1),
        ("draining", 1),
        ("reserved", 1),
    ] {
        overview.until(&bar(state, count), PATIENCE).await?;
    }
    let cards = "[...document.querySelectorAll('.node h2')].map(title => title.textContent).join()";
    assert_eq!(
        overview.eval(cards).await?,
        "gpu-pool-l4-1,gpu-pool-t4-1,GPU not known"
    );
    for words in [
        "NVIDIA L4",
        "Tesla T4",
        "33 of 50 units reserved",
        "Measured encoder load 40 to 49 %",
        "lost-on-its-way",
        "nvenc: XID 47",
    ] {
        says(overview, words).await?;
    }
    // A slice is as wide as its share of the GPU, and the line as long as the load.
    let shares = "[...document.querySelectorAll('.gpu')].map(gpu => [...gpu.querySelectorAll('.slice, .load .from')]\
                  .map(part => part.style.width).join(' ')).join()";
    assert_eq!(
        overview.eval(shares).await?,
        "26% 26% 14% 40%,26% 20% 0%,28% 28% "
    );
    overview.keep_picture("overview-cluster").await
}

async fn says_more(overview: &mut Page) -> anyhow::Result<()> {
    // A slice can be looked at without a mouse's tip, and by those who see nothing.
    let told = "document.querySelector('.gpu .bar').getAttribute('aria-label')";
    assert_eq!(
        overview.eval(told).await?,
        "33 of 50 units reserved · 1 playing, 1 free, 1 draining"
    );
    overview
        .eval("document.querySelector('.slice[data-key=\"chess-7d9f-b\"]').click()")
        .await?;
    says(
        overview,
        "chess · 1280×720, 30 fps · 1 player · 13 encoder units · 26 % of the SMs · 5632 MiB",
    )
    .await
}

async fn fits(overview: &mut Page) -> anyhow::Result<()> {
    for (width, height) in [(360, 740), (320, 568)] {
        overview.resize(width, height).await?;
        let scrolls = "document.documentElement.scrollWidth > innerWidth || innerWidth > screen.width";
        assert_eq!(overview.eval(scrolls).await?, false, "at {width} pixels");
        overview.keep_picture(&format!("overview-phone-{width}")).await?;
    }
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    overview.call("Emulation.setEmulatedMedia", dark).await?;
    overview.keep_picture("overview-phone-dark").await?;
    overview.resize(1280, 720).await?;
    overview.keep_picture("overview-cluster-dark").await
}

/// With the page's own policy in force.
async fn open(browser: &mut Browser, url: &str) -> anyhow::Result<Page> {
    let mut page = browser.open("about:blank").await?;
    page.go_strictly(url).await?;
    Ok(page)
}

fn bar(state: &str, count: usize) -> String {
    format!("document.querySelectorAll('.bar [data-state={state}]').length === {count}")
}

fn tile(name: &str, value: &str) -> String {
    format!("document.querySelector('[data-key={name}] .value').textContent === '{value}'")
}

fn link(state: &str) -> String {
    format!("document.getElementById('link').dataset.state === '{state}'")
}

async fn says(page: &mut Page, words: &str) -> anyhow::Result<()> {
    let script = format!("document.body.innerText.includes({})", json!(words));
    page.until(&script, PATIENCE).await.map(drop)
}

async fn busy(stage: &Stage) -> anyhow::Result<usize> {
    let mut busy = 0;
    for address in stage.slices().await?.iter().filter_map(|slice| slice.address) {
        busy += usize::from(status(address).await?.state == StreamerState::Busy);
    }
    Ok(busy)
}

fn door(web: SocketAddr, users: &Path, operator: &str) -> anyhow::Result<Program> {
    let (listen, users) = (web.to_string(), users.to_string_lossy());
    // A streamer that is not there, so that no agent is looked for.
    let mut args = vec!["--listen", &listen, "--streamer", "127.0.0.1:1", "--page", PAGE];
    args.extend(["--path-prefix", "/play", "--auth", "basic", "--users", &users]);
    args.extend(["--operator", operator]);
    Program::start("penstock-matchmaker", &args)
}

/// A streamer that says this of itself and nothing else.
async fn streamer(name: &str, state: &str, players: u32, viewers: u32) -> anyhow::Result<SocketAddr> {
    let application = name.split('-').next();
    let status = json!({
        "streamerId": name, "state": state, "application": application, "players": players,
        "maxPlayers": if name.starts_with("go") { 2 } else { 1 }, "viewers": viewers, "units": 3,
        "stream": { "width": 1280, "height": 720, "fps": 30 },
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {status}\n\n");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                socket.write_all(answer.as_bytes()).await?;
                // Until whoever listens goes.
                while socket.read(&mut [0; 1024]).await? > 0 {}
                std::io::Result::Ok(())
            });
        }
    });
    Ok(address)
}

fn cluster() -> FakeKube {
    let kube = FakeKube::start();
    kube.namespace("penstock");
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    kube.apply_manifests(&manifests.join("crd/gpunodes.yaml"));
    kube.apply_manifests(&manifests.join("base/matchmaker/rbac.yaml"));
    kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
    kube
}

fn run_pod(kube: &FakeKube, name: &str, address: SocketAddr) {
    let port = json!({ "name": "signalling", "containerPort": address.port() });
    kube.create(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "penstock", "name": name, "labels": { LABEL_STREAMER: "true" } },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "streamer", "image": "x", "ports": [port] }] },
        "status": { "phase": "Running", "podIP": address.ip() },
    }));
}

fn gpu_node(kube: &FakeKube, name: &str, gpus: &[Value]) {
    let uid = |pod: &str| match kube.get("pods", Some("penstock"), pod) {
        Some(pod) => pod["metadata"]["uid"].clone(),
        None => json!("of-nobody"),
    };
    let mut gpus = gpus.to_vec();
    for allocation in gpus.iter_mut().filter_map(|gpu| gpu["allocated"].as_array_mut()) {
        for held in allocation {
            held["podUid"] = uid(held["pod"].as_str().unwrap_or_default());
        }
    }
    kube.create(json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": name },
        "spec": { "summary": { "gpus": gpus.len(), "pods": 1 }, "gpus": gpus },
    }));
}

fn l4(uuid: &str, load: u32, pods: &[(&str, u32)]) -> Value {
    json!({
        "uuid": uuid, "model": "NVIDIA L4", "capacity": { "nvenc": 50, "mps": 100, "vram": 90 },
        "allocated": allocated(pods), "measured": { "encoderLoadPercent": load, "encoderSessions": pods.len() },
    })
}

/// One whose encoder is broken, and whose load nobody knows.
fn t4(uuid: &str, pods: &[(&str, u32)]) -> Value {
    json!({
        "uuid": uuid, "model": "Tesla T4", "capacity": { "nvenc": 25, "mps": 100, "vram": 60 },
        "allocated": allocated(pods), "health": { "nvenc": { "healthy": false, "reason": "XID 47" } },
    })
}

fn allocated(pods: &[(&str, u32)]) -> Vec<Value> {
    let held = |(pod, units): &(&str, u32)| {
        json!({
            "namespace": "penstock", "pod": pod, "nvenc": units, "mps": 2 * units, "vram": 22,
        })
    };
    pods.iter().map(held).collect()
}

/// The users file: `north` and `south`, as `htpasswd -nbB -C 4` hashes them.
const USERS: &str = "\
ann:$2y$04$abcdefghijklmnopqrstuu/BF5x45nWA2IFt0RPxaNJR1iCCMwFPO
oscar:$2y$04$abcdefghijklmnopqrstuuqtICzFzLh0LVKzy9UDbOdIoMOCshIvy
";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../player/dist");
const PATIENCE: Duration = Duration::from_secs(20);
/// The goal.
const SOON: Duration = Duration::from_secs(2);
