//! `make bench-extender`: how long a question takes in a large, full cluster.
//!
//! 5,000 nodes with 8 GPUs each, 100,000 sessions, nine tenths of all encoder units taken. One client asks filter, then
//! prioritize with the nodes that passed, one pod after the other, over one connection.

use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use serde_json::{Value, json};

use crate::support::{Extender, cluster, described};

#[tokio::test]
#[ignore = "minutes, and a few GiB: make bench-extender"]
async fn bench() {
    let kube = cluster();
    let names: Vec<String> = (0..NODES).map(|node| format!("node-{node:04}")).collect();
    let (mut packed, mut sessions) = (0, 0);
    for name in &names {
        let (units, pods) = fill(&kube, name);
        (packed, sessions) = (packed + units, sessions + pods);
    }
    let full = f64::from(packed) / (NODES * GPUS * UNITS as usize) as f64;
    println!(
        "{NODES} nodes, {} GPUs, {sessions} sessions, {:.1} % of all encoder units taken",
        NODES * GPUS,
        full * 100.0
    );
    assert!(full > 0.9);

    let since = Instant::now();
    let extender = Extender::ready(&kube).await;
    println!("ready after {:.1} s", since.elapsed().as_secs_f64());
    // What the start took up in a hurry is given back, or not, by now.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let some = ask(&extender, &names, 500, 1000).await;
    let all = ask(&extender, &names, NODES, 300).await;
    let rss = extender.resident_kib() / 1024;
    println!(
        "500 nodes: p50 {:.2} ms, p99 {:.2} ms; all: p50 {:.2} ms, p99 {:.2} ms",
        some.ms(50),
        some.ms(99),
        all.ms(50),
        all.ms(99)
    );
    println!(
        "RESULT p99_ms_500={:.2} p99_ms_5000={:.2} pods_per_s={:.0} rss_mib={rss}",
        some.ms(99),
        all.ms(99),
        some.per_second(),
    );
}

/// Fills the GPUs of a node. Gives the encoder units and the sessions.
fn fill(kube: &FakeKube, node: &str) -> (u32, usize) {
    let mut all = (0, 0);
    let gpus: Vec<Value> = (0..GPUS)
        .map(|gpu| {
            let uuid = format!("GPU-{node}-{gpu}");
            let rest = rand(&uuid) % 22 + 3;
            let sizes = if gpu % 2 == 0 {
                vec![50, 50, rest]
            } else {
                vec![50, 50 + rest]
            };
            all = (all.0 + sizes.iter().sum::<u32>(), all.1 + sizes.len());
            let allocated = sizes
                .iter()
                .enumerate()
                .map(|(i, units)| session(kube, node, &uuid, i, *units));
            let allocated: Vec<_> = allocated.collect();
            let capacity = json!({ "nvenc": UNITS, "mps": 100, "vram": 92, "mpsClients": 48 });
            json!({ "uuid": uuid, "model": "NVIDIA L4", "capacity": capacity, "allocated": allocated })
        })
        .collect();
    kube.create(json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": node },
        "spec": { "summary": { "gpus": GPUS, "pods": all.1 }, "gpus": gpus },
    }));
    all
}

/// A pod that runs, as its GpuNode shows it.
fn session(kube: &FakeKube, node: &str, uuid: &str, i: usize, units: u32) -> Value {
    let (mps, vram) = (units / 4 + 1, units / 4 + 4);
    let mut pod = described(&format!("{}-{i}", uuid.to_lowercase()), limits(units, mps, vram));
    pod["spec"]["nodeName"] = json!(node);
    pod["metadata"]["annotations"] = json!({ "penstock.dev/gpu": uuid });
    let pod = kube.create(pod);
    json!({
        "namespace": "games", "pod": pod["metadata"]["name"], "podUid": pod["metadata"]["uid"],
        "nvenc": units, "mps": mps, "vram": vram, "mpsClients": 1,
    })
}

fn limits(nvenc: u32, mps: u32, vram: u32) -> Value {
    let text = |amount: u32| amount.to_string();
    json!({ "penstock.dev/nvenc": text(nvenc), "penstock.dev/mps": text(mps), "penstock.dev/vram": text(vram) })
}

struct Times(Vec<Duration>);

impl Times {
    fn ms(&self, percentile: usize) -> f64 {
        self.0[(self.0.len() * percentile).div_ceil(100) - 1].as_secs_f64() * 1e3
    }

    fn per_second(&self) -> f64 {
        self.0.len() as f64 / self.0.iter().sum::<Duration>().as_secs_f64()
    }
}

/// Asks about `count` of the nodes, others each time. Only the requests are timed, not what is made of the answers.
async fn ask(extender: &Extender, names: &[String], count: usize, pods: usize) -> Times {
    let client = reqwest::Client::new();
    let mut times = Vec::new();
    for n in 0..pods {
        let [nvenc, mps, vram] = SIZES[n % SIZES.len()];
        let mut pod = described(&format!("new-{n}"), limits(nvenc, mps, vram));
        pod["metadata"]["uid"] = json!(format!("new-{n}"));
        let first = n * 977 % names.len();
        let asked: Vec<_> = names.iter().cycle().skip(first).take(count).collect();
        let body = json!({ "Pod": pod, "Nodes": null, "NodeNames": asked }).to_string();
        let (filtered, first) = timed(&client, extender, "filter", body).await;
        let passed: Value = serde_json::from_slice(&filtered).unwrap();
        let body = json!({ "Pod": pod, "Nodes": null, "NodeNames": passed["NodeNames"] }).to_string();
        let (_, second) = timed(&client, extender, "prioritize", body).await;
        times.push(first + second);
    }
    times.sort();
    Times(times)
}

async fn timed(
    client: &reqwest::Client,
    extender: &Extender,
    verb: &str,
    body: String,
) -> (Vec<u8>, Duration) {
    let since = Instant::now();
    let response = client.post(extender.url(verb)).body(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let answer = response.bytes().await.unwrap();
    (answer.to_vec(), since.elapsed())
}

/// The same number for the same name, and of no pattern: FNV-1a.
fn rand(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    }) >> 8
}

const NODES: usize = 5000;
const GPUS: usize = 8;
/// Of an L4.
const UNITS: u32 = 124;
/// nvenc, mps, vram: streams from 720p30 to 1440p60.
const SIZES: [[u32; 3]; 4] = [[3, 2, 4], [7, 3, 5], [13, 4, 7], [23, 6, 9]];
