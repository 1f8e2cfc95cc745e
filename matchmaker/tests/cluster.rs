//! The real program with streamers in pods: a stand-in API server, with the role of the manifests.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]

mod support;

use std::time::Duration;

use fake_kube::FakeKube;
use penstock_core::names::LABEL_STREAMER;
use serde_json::{Value, json};
use support::{Matchmaker, StandIn, cluster, costs, run_pod, until};

#[tokio::test]
async fn pods_come_and_go_and_nothing_is_restarted() {
    let kube = cluster();
    let door = Matchmaker::on_cluster(&kube, &[]).await;
    until("it is ready", async || {
        door.get("/readyz").await.0.contains("200")
    })
    .await;
    let streamer = StandIn::start("demo").await;
    run_pod(&kube, "demo", streamer.address);
    let player = door.playing().await;
    assert_eq!(states(&door).await, ["busy"]);

    // Not ours: no label, or no address yet.
    let stranger = StandIn::start("stranger").await;
    run_pod(&kube, "stranger", stranger.address);
    kube.edit("pods", Some("penstock"), "stranger", |pod| {
        pod["metadata"]["labels"] = json!({ "app": "other" });
    });
    pending_pod(&kube, "late");
    until("the stranger is gone", async || states(&door).await.len() == 1).await;

    let late = StandIn::start("late").await;
    kube.delete("pods", Some("penstock"), "late");
    run_pod(&kube, "late", late.address);
    until("the late one is there", async || states(&door).await.len() == 2).await;
    kube.delete("pods", Some("penstock"), "late");
    kube.finish("penstock", "late");
    until("it is gone again", async || states(&door).await.len() == 1).await;
    player.leave().await;
}

#[tokio::test]
async fn an_api_server_that_is_away_changes_nothing() {
    let mut kube = cluster();
    let streamers = [StandIn::start("one").await, StandIn::start("two").await];
    run_pod(&kube, "one", streamers[0].address);
    let door = Matchmaker::on_cluster(&kube, &[]).await;
    let mut first = door.playing().await;
    kube.stop();
    tokio::time::sleep(Duration::from_millis(500)).await;
    first.still_plays().await;
    first.leave().await;
    until("the streamer is free", async || states(&door).await == ["free"]).await;
    let second = door.playing().await;
    kube.resume();
    run_pod(&kube, "two", streamers[1].address);
    let third = door.playing().await;
    assert_eq!(states(&door).await, ["busy", "busy"]);
    second.leave().await;
    third.leave().await;
}

#[tokio::test]
async fn a_watch_whose_place_is_too_old_lists_anew() {
    let kube = cluster();
    let streamers = [StandIn::start("one").await, StandIn::start("two").await];
    run_pod(&kube, "one", streamers[0].address);
    let door = Matchmaker::on_cluster(&kube, &[]).await;
    until("the first is known", async || states(&door).await == ["free"]).await;
    kube.unseen(|kube| {
        kube.delete("pods", Some("penstock"), "one");
        kube.finish("penstock", "one");
        run_pod(kube, "two", streamers[1].address);
        kube.compact();
    });
    until("the other is known instead", async || {
        let status = door.status().await;
        let known = &status["streamers"];
        known.as_array().unwrap().len() == 1 && known[0]["streamerId"] == "two"
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_ends_keeps_its_player_and_takes_nobody() {
    let kube = cluster();
    let streamer = StandIn::start("demo").await;
    run_pod(&kube, "demo", streamer.address);
    let door = Matchmaker::on_cluster(&kube, &[]).await;
    let mut player = door.playing().await;
    // Its node's kubelet has not said so yet, and the streamer does not know.
    kube.delete("pods", Some("penstock"), "demo");
    until("it drains", async || states(&door).await == ["draining"]).await;
    player.still_plays().await;
    player.leave().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(states(&door).await, ["draining"]);
    let mut next = door.player("/signalling").await;
    next.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
    kube.finish("penstock", "demo");
    until("it is gone", async || states(&door).await.is_empty()).await;
}

#[tokio::test]
async fn a_pod_with_a_player_is_dear_and_stays_so_for_the_next_matchmaker() {
    let kube = cluster();
    let streamers = [StandIn::start("one").await, StandIn::start("two").await];
    run_pod(&kube, "one", streamers[0].address);
    run_pod(&kube, "two", streamers[1].address);
    let mut door = Matchmaker::on_cluster(&kube, &[]).await;
    kube.until("both cost nothing", |kube| costs(kube) == ["0", "0"])
        .await;
    let player = door.playing().await;
    kube.until("one is dear", |kube| {
        costs(kube).iter().filter(|cost| *cost == "100").count() == 1
    })
    .await;
    let before = costs(&kube);
    player.leave().await;
    door.terminate();
    assert!(door.ended().await.success());
    let lease = kube.get("leases", Some("penstock"), "penstock-matchmaker");
    assert_eq!(lease.unwrap()["spec"]["holderIdentity"], Value::Null);
    assert_eq!(costs(&kube), before);
    let _door = Matchmaker::on_cluster(&kube, &[]).await;
    kube.until("the player's pod is cheap again", |kube| {
        costs(kube) == ["0", "0"]
    })
    .await;
}

/// Ingresses hear of its end later than it does.
#[tokio::test]
async fn told_to_end_it_serves_until_nobody_is_sent_to_it() {
    let kube = cluster();
    let mut door = Matchmaker::on_cluster(&kube, &[]).await;
    until("it is ready", async || {
        door.get("/readyz").await.0.contains("200")
    })
    .await;
    door.terminate();
    until("it is not ready", async || {
        let (head, why) = door.get("/readyz").await;
        head.contains("503") && why.contains("told to end")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(door.get("/").await.0.contains("200"), "pages are served still");
    let mut late = door.player("/signalling").await;
    assert_eq!(late.closed().await, Some(1012));
    assert!(door.ended().await.success());
}

#[tokio::test]
async fn what_an_autoscaler_asks_is_true_at_all_times() {
    let streamers = [StandIn::start("one").await, StandIn::start("two").await];
    let door = Matchmaker::start(&[&streamers[0], &streamers[1]], &[]).await;
    assert_eq!(demand(&door).await, [0, 0, 2, 2, 0], "nobody is there");
    let one = door.playing().await;
    assert_eq!(demand(&door).await, [1, 0, 1, 2, 50], "one plays");
    let two = door.playing().await;
    let mut three = door.player("/signalling").await;
    let queued = json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1});
    three.notice(queued).await;
    assert_eq!(demand(&door).await, [3, 1, 0, 2, 150], "two play, and one waits");
    two.leave().await;
    three.say(json!({"type": "listStreamers"})).await;
    three.next_of("streamerList").await;
    assert_eq!(demand(&door).await[..2], [2, 0]);
    until("both are taken", async || {
        demand(&door).await == [2, 0, 0, 2, 100]
    })
    .await;

    streamers[0].die();
    until("one is gone, and its player waits", async || {
        demand(&door).await == [2, 1, 0, 1, 200]
    })
    .await;
    streamers[1].die();
    until("both are gone, and who waits counts all the same", async || {
        demand(&door).await == [2, 2, 0, 0, 200]
    })
    .await;
    one.leave().await;
    three.leave().await;
    until("all have left", async || demand(&door).await == [0, 0, 0, 0, 0]).await;
    let back = StandIn::start("three").await;
    door.agent.list(&[&back]);
    until("a new one is there", async || {
        demand(&door).await == [0, 0, 1, 1, 0]
    })
    .await;
}

/// Players, queue, free and all streamers, and the ratio in percent.
async fn demand(door: &Matchmaker) -> [u32; 5] {
    let metrics = door.metrics().await;
    let names = [
        "player_socket_connections",
        "player_queue_count",
        "streamer_available_count",
        "streamer_connections",
        "streamer_demand_ratio",
    ];
    let value = |name: &str| {
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&format!("matchmaker_{name} ")));
        value
            .unwrap_or_else(|| panic!("no {name}"))
            .parse::<f64>()
            .unwrap()
    };
    let [players, queue, free, all, ratio] = names.map(value);
    [players, queue, free, all, ratio * 100.0].map(|number| number.round() as u32)
}

fn pending_pod(kube: &FakeKube, name: &str) {
    kube.create(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "penstock", "name": name, "labels": { LABEL_STREAMER: "true" } },
        "spec": { "containers": [{ "name": "streamer", "image": "x" }] },
        "status": { "phase": "Pending" },
    }));
}

async fn states(door: &Matchmaker) -> Vec<String> {
    let status = door.status().await;
    let streamers = status["streamers"].as_array().unwrap().iter();
    streamers
        .map(|streamer| streamer["state"].as_str().unwrap().to_owned())
        .collect()
}
