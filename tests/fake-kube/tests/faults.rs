//! What a test can make the stand-in do, and what a real API server can't be asked for.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use fake_kube::{FakeKube, Fault};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

#[tokio::test]
async fn a_watcher_begins_anew_after_a_compaction() {
    let kube = FakeKube::start();
    kube.create(map("a"));
    let mut events = pin!(watcher(maps(kube.admin()), watcher::Config::default()));
    assert_eq!(list(&mut events).await, ["a"]);
    kube.unseen(|kube| {
        kube.delete("configmaps", Some("default"), "a");
        kube.create(map("b"));
        kube.compact();
    });
    let refused = loop {
        match events.next().await.unwrap() {
            Err(watcher::Error::WatchError(status)) => break status,
            Err(error) => panic!("{error}"),
            Ok(_) => {}
        }
    };
    assert_eq!((refused.code, &*refused.reason), (410, "Expired"));
    assert_eq!(list(&mut events).await, ["b"]);
}

#[tokio::test]
async fn a_watch_that_was_ended_goes_on_without_a_gap() {
    let kube = FakeKube::start();
    let mut events = pin!(watcher(maps(kube.admin()), watcher::Config::default()));
    assert_eq!(list(&mut events).await, [""; 0]);
    kube.unseen(|kube| {
        kube.create(map("a"));
        kube.delete("configmaps", Some("default"), "a");
    });
    let mut next = async || events.next().await.unwrap().unwrap();
    assert!(matches!(next().await, watcher::Event::Apply(map) if map.name_any() == "a"));
    assert!(matches!(next().await, watcher::Event::Delete(map) if map.name_any() == "a"));
    assert_eq!(kube.requests_to("list", "configmaps").len(), 1);
}

#[tokio::test]
async fn a_page_of_a_list_that_was_forgotten_is_gone() {
    let kube = FakeKube::start();
    kube.create(map("a"));
    kube.create(map("b"));
    let pages = ListParams::default().limit(1);
    let more = maps(kube.admin())
        .list(&pages)
        .await
        .unwrap()
        .metadata
        .continue_
        .unwrap();
    kube.compact();
    assert_eq!(
        code(maps(kube.admin()).list(&pages.continue_token(&more)).await),
        410
    );
}

#[tokio::test]
async fn bookmarks_come_to_those_who_want_them() {
    let kube = FakeKube::start();
    let watch = maps(kube.admin())
        .watch(&WatchParams::default().timeout(20), "0")
        .await
        .unwrap();
    kube.namespace("elsewhere");
    kube.send_bookmarks();
    let Some(Ok(WatchEvent::Bookmark(bookmark))) = pin!(watch).next().await else {
        panic!("no bookmark")
    };
    let newest = kube.get("namespaces", None, "elsewhere").unwrap();
    assert_eq!(
        newest["metadata"]["resourceVersion"],
        bookmark.metadata.resource_version
    );
}

#[tokio::test]
async fn it_goes_away_and_comes_back_with_all_that_it_knew() {
    let mut kube = FakeKube::start();
    kube.create(map("a"));
    let maps = maps(kube.admin());
    maps.get("a").await.unwrap();
    kube.stop();
    assert!(matches!(
        maps.get("a").await,
        Err(kube::Error::Service(_) | kube::Error::HyperError(_))
    ));
    kube.resume();
    maps.get("a").await.unwrap();
}

#[tokio::test]
async fn it_refuses_and_delays_on_demand() {
    let kube = FakeKube::start();
    kube.create(map("a"));
    let maps = maps(kube.admin());
    kube.fail(Fault::refuse(500).on("get", "configmaps").times(1));
    assert_eq!(code(maps.get("a").await), 500);
    maps.get("a").await.unwrap();
    kube.fail(Fault::refuse(503).on("get", "secrets"));
    maps.get("a").await.unwrap();

    kube.heal();
    kube.fail(Fault::delay(Duration::from_millis(200)).on("list", "*"));
    let asked = Instant::now();
    maps.list(&ListParams::default()).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(200));

    let log = kube.requests();
    let got: Vec<_> = log.iter().map(|r| (r.verb, r.code)).collect();
    assert_eq!(got, [("get", 500), ("get", 200), ("get", 200), ("list", 200)]);
    assert_eq!(log[0].path, "/api/v1/namespaces/default/configmaps/a");
    assert_eq!(log[0].user, "kubernetes-admin");
}

/// With no library in between, which would wait and ask again.
#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let kube = FakeKube::start();
    kube.fail(Fault::too_many_requests(7));
    let head = raw(&kube, "GET /api/v1/nodes HTTP/1.1\r\nAuthorization: Bearer admin")
        .await
        .to_lowercase();
    assert!(
        head.starts_with("http/1.1 429 ") && head.contains("retry-after: 7\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn nobody_gets_in_without_a_token() {
    let kube = FakeKube::start();
    for (token, code) in [
        ("", 401),
        ("Authorization: Bearer x\r\n", 401),
        ("Authorization: Bearer admin\r\n", 200),
    ] {
        let head = raw(&kube, &format!("GET /version HTTP/1.1\r\n{}", token.trim_end())).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
    }
    let stranger: Api<Node> = Api::all(kube.client("default", "not-there"));
    assert_eq!(code(stranger.list(&ListParams::default()).await), 401);
}

#[tokio::test]
async fn a_kubeconfig_leads_here() {
    let kube = FakeKube::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "reader", "namespace": "default" } });
    kube.create(account);
    kube.kubeconfig(&file, Some(("default", "reader"))).unwrap();
    let kubeconfig = kube::config::Kubeconfig::read_from(&file).unwrap();
    let client = Client::try_from(kubeconfig).unwrap();
    assert_eq!(code(maps(client).list(&ListParams::default()).await), 403);
    assert_eq!(kube.requests()[0].user, "system:serviceaccount:default:reader");
}

#[tokio::test]
async fn a_strict_client_hears_of_unknown_fields() {
    let kube = FakeKube::start();
    let body = r#"{"metadata":{"name":"a"},"dada":{}}"#;
    for (query, expected) in [("?fieldValidation=Strict", 400), ("", 201)] {
        let head = format!(
            "POST /api/v1/namespaces/default/configmaps{query} HTTP/1.1\r\nAuthorization: Bearer admin"
        );
        let answer = exchange(&kube, &head, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
        assert_eq!(
            answer.contains("strict decoding error: unknown field \\\"dada\\\""),
            expected == 400,
            "{answer}"
        );
    }
}

#[test]
fn a_schema_that_is_not_understood_is_refused() {
    let kube = FakeKube::start();
    let rule = json!([{ "rule": "self.units > 0" }]);
    let schema = json!({ "type": "object", "x-kubernetes-validations": rule });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "probes.example.com" },
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": { "kind": "Probe", "plural": "probes" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    });
    let refused = catch_unwind(AssertUnwindSafe(|| kube.create(definition))).unwrap_err();
    let words = refused.downcast_ref::<String>().unwrap();
    assert!(words.contains("x-kubernetes-validations"), "{words}");
}

#[test]
fn a_manifest_with_a_slip_of_the_pen_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("kustomization.yaml", "resources: [pod.yaml]\n");
    write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: c, image: i, imagePulPolicy: Always}\n",
    );
    assert_eq!(
        refusal_of(directory.path()),
        "\"Pod\" \"a\" has fields that nobody knows: spec.containers[0].imagePulPolicy"
    );
    write("kustomization.yaml", "resources: [pod.yaml]\nnamePrefix: x-\n");
    assert!(refusal_of(directory.path()).contains("`namePrefix`, which is not supported here"));
    std::fs::create_dir(directory.path().join("inner")).unwrap();
    write("inner/kustomization.yaml", "resources: [../pod.yaml]\n");
    assert!(refusal_of(&directory.path().join("inner")).contains("outside its directory"));
}

fn refusal_of(manifests: &Path) -> String {
    let kube = FakeKube::start();
    let refused = catch_unwind(AssertUnwindSafe(|| kube.apply_manifests(manifests))).unwrap_err();
    refused.downcast_ref::<String>().unwrap().clone()
}

async fn list(
    events: &mut (impl futures_util::Stream<Item = Result<watcher::Event<ConfigMap>, watcher::Error>> + Unpin),
) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(20), events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            watcher::Event::InitApply(map) => names.push(map.name_any()),
            watcher::Event::InitDone => return names,
            _ => {}
        }
    }
}

/// The answer to a request without body.
async fn raw(kube: &FakeKube, head: &str) -> String {
    exchange(kube, head, "").await
}

async fn exchange(kube: &FakeKube, head: &str, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let address = kube.url().replace("http://", "");
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let length = body.len();
    let request =
        format!("{head}\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "default" } })
}

fn code<T>(outcome: kube::Result<T>) -> u16 {
    outcome.err().map_or(200, |error| status(&error))
}

fn status(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        error => panic!("no answer: {error}"),
    }
}
