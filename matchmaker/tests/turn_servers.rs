//! Real TURN servers in pods of a stand-in API server, and what a player is told of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]

mod support;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fake_kube::FakeKube;
use penstock_core::names::LABEL_TURN;
use penstock_core::turn_rest;
use penstock_core::wire::turn::TurnStatus;
use serde_json::{Value, json};
use support::{Matchmaker, StandIn, cluster, run_pod, until};
use tokio::process::{Child, Command};

#[tokio::test]
async fn a_matched_player_is_told_of_turn_servers_in_pods_the_least_loaded_first() {
    let kube = cluster();
    let streamer = StandIn::start("demo").await;
    run_pod(&kube, "demo", streamer.address);
    let args = ["--turn-pods", "--turn-secret", SECRET, "--turn-ttl", "1h"];
    let door = Matchmaker::on_cluster(&kube, &args).await;
    assert_eq!(ice_servers(&door).await, [] as [Value; 0]);

    // Ten places, of which one will be taken, and many.
    let mut small = Turn::start("198.51.100.1", &["--max-allocations", "10"]);
    let large = Turn::start("198.51.100.2", &[]);
    small.run_pod(&kube, "small");
    until("the first is told", async || urls(&door).await == [small.url()]).await;
    large.run_pod(&kube, "large");
    until("both are told", async || urls(&door).await.len() == 2).await;

    let servers = ice_servers(&door).await;
    let user = servers[0]["username"].as_str().unwrap();
    let (expiry, who) = user.split_once(':').unwrap();
    let lasts =
        Duration::from_secs(expiry.parse().unwrap()) - SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!((3500..=3600).contains(&lasts.as_secs()), "{lasts:?}");
    assert!(who.ends_with("@127.0.0.1"), "the streamer's address: {who}");
    assert_eq!(
        servers[0]["credential"],
        turn_rest::password(SECRET.as_bytes(), user)
    );

    let mut client = small.client();
    until("the small one has a client", async || {
        small.allocations().await > 0
    })
    .await;
    let idle_first = [large.url(), small.url()];
    until("the idle one comes first", async || {
        urls(&door).await == idle_first
    })
    .await;
    // While nothing else is known of it, one that was told counts as more loaded; then it says how it stands.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(urls(&door).await, idle_first);
    }

    // It still has a client, so it drains for a while.
    small.terminate();
    until("one that drains is not told", async || {
        urls(&door).await == [large.url()]
    })
    .await;
    assert!(small.child.try_wait().unwrap().is_none(), "it still runs");
    client.kill().await.unwrap();

    // Kubernetes says that a pod ends before its process does.
    kube.delete("pods", Some("penstock"), "large");
    until("one that ends is not told", async || urls(&door).await.is_empty()).await;
}

struct Turn {
    child: Child,
    external: &'static str,
    clients: SocketAddr,
    metrics: SocketAddr,
}

impl Turn {
    fn start(external: &'static str, args: &[&str]) -> Self {
        let clients = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_penstock-matchmaker")).with_file_name("penstock-turn");
        assert!(program.exists(), "run 'cargo build -p penstock-turn' first");
        let child = Command::new(program)
            .env_clear()
            .args([
                "--listen",
                &clients.to_string(),
                "--no-tcp",
                "--external-ip",
                external,
            ])
            .args(["--metrics-listen", &metrics.to_string(), "--auth-secret", SECRET])
            .args(["--allow-peer", "127.0.0.1/32"])
            .args(args)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            child,
            external,
            clients,
            metrics,
        }
    }

    fn url(&self) -> String {
        format!("turn:{}:{}?transport=udp", self.external, self.clients.port())
    }

    fn run_pod(&self, kube: &FakeKube, name: &str) {
        let port = json!({ "name": "metrics", "containerPort": self.metrics.port() });
        kube.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "penstock", "name": name, "labels": { LABEL_TURN: "true" } },
            "spec": { "nodeName": "node-1", "containers": [{ "name": "turn", "image": "x", "ports": [port] }] },
            "status": { "phase": "Running", "podIP": self.metrics.ip() },
        }));
    }

    /// Coturn's client, from Debian's package coturn, which has an allocation as long as it runs.
    fn client(&self) -> Child {
        Command::new("turnutils_uclient")
            .args([
                "-p",
                &self.clients.port().to_string(),
                "-u",
                "player",
                "-W",
                SECRET,
            ])
            .args(["-y", "-c", "-n", "100000", "-m", "1", "127.0.0.1"])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("turnutils_uclient is missing: run scripts/setup")
    }

    async fn allocations(&self) -> u64 {
        let answer = reqwest::get(format!("http://{}/status", self.metrics)).await;
        let status: TurnStatus = answer.unwrap().json().await.unwrap();
        status.allocations
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

/// What one who plays is told.
async fn ice_servers(door: &Matchmaker) -> Vec<Value> {
    let mut player = door.player("/signalling").await;
    player.say(json!({"type": "listStreamers"})).await;
    // The first is for those who wait, and void.
    player.next_of("config").await;
    let config = player.next_of("config").await;
    player.next_of("streamerList").await;
    player.leave().await;
    let options = &config["peerConnectionOptions"];
    options["iceServers"].as_array().unwrap().clone()
}

async fn urls(door: &Matchmaker) -> Vec<String> {
    let servers = ice_servers(door).await;
    let urls = servers
        .iter()
        .flat_map(|server| server["urls"].as_array().unwrap().clone());
    urls.map(|url| url.as_str().unwrap().to_owned()).collect()
}

const SECRET: &str = "north";
