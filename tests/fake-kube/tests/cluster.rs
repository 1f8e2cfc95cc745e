//! What the stand-in does as a real API server does: each of these runs against either (`make test-cluster`).

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

use std::pin::pin;
use std::time::Duration;

use fake_kube::story::{Cluster, from, names, refusal, story};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Event as CoreEvent, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

#[tokio::test]
async fn objects_are_made_changed_and_deleted() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        let made = maps.create(&create(), &map("a", "1")).await.unwrap();
        assert!(made.uid().is_some() && made.metadata.creation_timestamp.is_some());
        let again = refusal(maps.create(&create(), &map("a", "1")).await);
        assert_eq!(again, is(409, "AlreadyExists", "configmaps \"a\" already exists"));
        assert_eq!(refusal(maps.get("b").await), is(404, "NotFound", "configmaps \"b\" not found"));

        let same = maps.replace("a", &create(), &made).await.unwrap();
        assert_eq!(same.resource_version(), made.resource_version(), "what changes nothing is no write");
        let mut changed = made.clone();
        changed.data = Some([("key".to_owned(), "2".to_owned())].into());
        let newer = maps.replace("a", &create(), &changed).await.unwrap();
        assert_ne!(newer.resource_version(), made.resource_version());
        changed.data = Some([("key".to_owned(), "3".to_owned())].into());
        let stale = refusal(maps.replace("a", &create(), &changed).await);
        let words = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply \
                     your changes to the latest version and try again";
        assert_eq!(stale, is(409, "Conflict", words));

        let other = Preconditions { uid: Some("other".to_owned()), ..Preconditions::default() };
        let (code, ..) = refusal(maps.delete("a", &DeleteParams::default().preconditions(other)).await);
        assert_eq!(code, 409);
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        assert_eq!(refusal(maps.get("a").await).0, 404);
        let nowhere: Api<ConfigMap> = Api::namespaced(cluster.client(), "no-such-namespace");
        let refused = refusal(nowhere.create(&create(), &map("a", "1")).await);
        assert_eq!(refused, is(404, "NotFound", "namespaces \"no-such-namespace\" not found"));
    })
    .await;
}

#[tokio::test]
async fn lists_are_selected_and_paged() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        for (name, colour) in [("a", "red"), ("b", "red"), ("c", "green"), ("d", "blue")] {
            let mut map = map(name, "");
            map.labels_mut().extend([
                ("colour".to_owned(), colour.to_owned()),
                ("ours".to_owned(), String::new()),
            ]);
            maps.create(&create(), &map).await.unwrap();
        }
        let all = ListParams::default();
        for (labels, expected) in [
            ("colour=red", &["a", "b"][..]),
            ("ours,colour!=red", &["c", "d"]),
            ("colour in (green, blue)", &["c", "d"]),
            ("ours,colour notin (green,blue)", &["a", "b"]),
            ("ours,!colour", &[]),
        ] {
            let list = maps.list(&all.clone().labels(labels)).await.unwrap();
            assert_eq!(names(&list.items), expected, "{labels}");
        }
        let one = maps.list(&all.clone().fields("metadata.name=b")).await.unwrap();
        assert_eq!(names(&one.items), ["b"]);
        assert_eq!(refusal(maps.list(&all.clone().fields("data.key=1")).await).0, 400);

        let paged = all.labels("ours").limit(3);
        let first = maps.list(&paged).await.unwrap();
        assert_eq!(names(&first.items), ["a", "b", "c"]);
        let more = first.metadata.continue_.unwrap();
        let second = maps.list(&paged.continue_token(&more)).await.unwrap();
        assert_eq!(names(&second.items), ["d"]);
        assert_eq!(second.metadata.continue_.unwrap_or_default(), "");
    })
    .await;
}

#[tokio::test]
async fn a_watch_sees_what_comes_into_its_selection_and_leaves_it() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        maps.create(&create(), &map("a", "1")).await.unwrap();
        let since = maps
            .list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
            .unwrap();
        let selected = WatchParams::default().labels("watched=yes").timeout(2);
        let watch = maps.watch(&selected, &since).await.unwrap();
        for labels in [
            json!({ "watched": "yes" }),
            json!({ "more": "1" }),
            json!({ "watched": null }),
        ] {
            let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
            maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
        }
        maps.create(&create(), &map("b", "1")).await.unwrap();
        // The end of its time ends it.
        let seen: Vec<_> = watch.try_collect().await.unwrap();
        let said: Vec<_> = seen.iter().filter_map(in_words).collect();
        assert_eq!(said, ["added a", "modified a", "deleted a"]);
    })
    .await;
}

#[tokio::test]
async fn a_watcher_gets_a_list_and_then_changes() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        for name in ["a", "b"] {
            let mut map = map(name, "1");
            map.labels_mut().insert("ours".to_owned(), String::new());
            maps.create(&create(), &map).await.unwrap();
        }
        for (index, config) in [
            watcher::Config::default().page_size(1),
            watcher::Config::default().streaming_lists(),
        ]
        .into_iter()
        .enumerate()
        {
            let mut events = pin!(watcher(maps.clone(), config.labels("ours")).map(Result::unwrap));
            let mut listed = Vec::new();
            loop {
                match events.next().await.unwrap() {
                    watcher::Event::Init => {}
                    watcher::Event::InitApply(map) => listed.push(map.name_any()),
                    watcher::Event::InitDone => break,
                    _ => panic!("a change before the list's end"),
                }
            }
            assert_eq!(listed, ["a", "b"]);
            let patch = Patch::Merge(json!({ "data": { "key": format!("changed {index}") } }));
            maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
            let next = tokio::time::timeout(Duration::from_secs(10), events.next())
                .await
                .unwrap();
            assert!(matches!(next, Some(watcher::Event::Apply(map)) if map.name_any() == "a"));
        }
    })
    .await;
}

#[tokio::test]
async fn metadata_can_be_had_alone() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        let made = maps.create(&create(), &map("a", "1")).await.unwrap();
        let metadata = maps.get_metadata("a").await.unwrap();
        assert_eq!(metadata.types.unwrap().kind, "PartialObjectMetadata");
        assert_eq!(metadata.metadata.uid, made.uid());
        let list = maps
            .list_metadata(&ListParams::default().fields("metadata.name=a"))
            .await
            .unwrap();
        assert_eq!(names(&list.items), ["a"]);
        let since = list.metadata.resource_version.unwrap();
        let watch = maps
            .watch_metadata(&WatchParams::default().timeout(10), &since)
            .await
            .unwrap();
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        let next = pin!(watch).try_next().await.unwrap().unwrap();
        assert!(matches!(next, WatchEvent::Deleted(object) if object.metadata.uid == made.uid()));
    })
    .await;
}

#[tokio::test]
async fn patches_merge_and_a_stale_one_is_refused() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        let made = maps.create(&create(), &map("a", "1")).await.unwrap();
        let params = PatchParams::default();
        let merge = Patch::Merge(json!({ "data": { "other": "2", "key": null } }));
        let merged = maps.patch("a", &params, &merge).await.unwrap();
        assert_eq!(json!(merged.data), json!({ "other": "2" }));

        let based =
            json!({ "metadata": { "resourceVersion": made.resource_version() }, "data": { "other": "3" } });
        let (code, reason, _) = refusal(maps.patch("a", &params, &Patch::Merge(based)).await);
        assert_eq!((code, &*reason), (409, "Conflict"));

        let operation = |from: &str| -> json_patch::Patch {
            from_ops(json!([
                { "op": "test", "path": "/data/other", "value": from },
                { "op": "replace", "path": "/data/other", "value": "4" },
            ]))
        };
        let wrong = maps
            .patch("a", &params, &Patch::<Value>::Json(operation("3")))
            .await;
        assert_eq!(refusal(wrong).0, 422);
        let right = maps
            .patch("a", &params, &Patch::<Value>::Json(operation("2")))
            .await
            .unwrap();
        assert_eq!(json!(right.data), json!({ "other": "4" }));
        assert_eq!(refusal(maps.patch("b", &params, &merge).await).0, 404);
    })
    .await;
}

#[tokio::test]
async fn two_managers_share_an_object() {
    story(async |cluster| {
        let maps = cluster.api::<ConfigMap>();
        let apply = async |manager: &str, force: bool, data: Value| {
            let mut params = PatchParams::apply(manager);
            params.force = force;
            let patch = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data });
            maps.patch("shared", &params, &Patch::Apply(patch)).await
        };
        apply("one", false, json!({ "a": "1", "b": "1" })).await.unwrap();
        let both = apply("two", false, json!({ "b": "1", "c": "2" })).await.unwrap();
        assert_eq!(json!(both.data), json!({ "a": "1", "b": "1", "c": "2" }));
        let same = apply("two", false, json!({ "b": "1", "c": "2" })).await.unwrap();
        assert_eq!(
            same.resource_version(),
            both.resource_version(),
            "what changes nothing is no write"
        );

        let refused = refusal(apply("two", false, json!({ "a": "2", "b": "1", "c": "2" })).await);
        let words = "Apply failed with 1 conflict: conflict with \"one\": .data.a";
        assert_eq!(refused, is(409, "Conflict", words));
        apply("two", true, json!({ "a": "2", "c": "2" })).await.unwrap();
        // Both had b, and the first still has it; the second has taken a.
        let rest = apply("one", false, json!({})).await.unwrap();
        assert_eq!(json!(rest.data), json!({ "a": "2", "c": "2" }));
        let owners = rest.managed_fields();
        let two = owners
            .iter()
            .find(|entry| entry.manager.as_deref() == Some("two"))
            .unwrap();
        assert_eq!(
            json!(two.fields_v1),
            json!({ "f:data": { "f:a": {}, "f:c": {} } })
        );

        let nobody = PatchParams::default();
        let patch = Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap" }));
        let (code, _, words) = refusal(
            maps.patch(
                "shared",
                &PatchParams {
                    force: true,
                    ..nobody
                },
                &patch,
            )
            .await,
        );
        assert_eq!(code, 422);
        assert!(
            words.contains("fieldManager: Required value: is required for apply patch"),
            "{words}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_definition_brings_a_kind_and_its_schema() {
    story(async |cluster| {
        let kind = cluster.probe_kind();
        let unknown: Api<DynamicObject> = Api::namespaced_with(cluster.client(), &cluster.namespace, &kind);
        let (code, _, words) = refusal(unknown.get("a").await);
        assert_eq!((code, &*words), (404, "404 page not found"));

        let probes = cluster.probes().await;
        let probe = |spec: Value| from_probe(&cluster, json!({ "metadata": { "name": "a" }, "spec": spec }));
        let refused = [
            (json!({}), "spec.units: Required value"),
            (
                json!({ "units": "7" }),
                "spec.units in body must be of type integer: \"string\"",
            ),
            (
                json!({ "units": -1 }),
                "spec.units in body should be greater than or equal to 0",
            ),
            (
                json!({ "units": 101 }),
                "spec.units in body should be less than or equal to 100",
            ),
            (
                json!({ "units": 7, "model": "c" }),
                "spec.model: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (
                json!({ "units": 7, "uuid": "x" }),
                "spec.uuid in body should match '^GPU-[0-9]+$'",
            ),
        ];
        for (spec, fault) in refused {
            let (code, reason, words) = refusal(probes.create(&create(), &probe(spec)).await);
            assert_eq!((code, &*reason), (422, "Invalid"), "{words}");
            let whole = format!("Probe.{}.example.com \"a\" is invalid: ", cluster.namespace);
            assert!(words.starts_with(&whole) && words.contains(fault), "{words}");
        }
        let mut first = probe(json!({ "units": 7, "unheard": "of" }));
        first.data["status"] = json!({ "phase": "Early" });
        let made = probes.create(&create(), &first).await.unwrap();
        assert_eq!(
            made.data,
            json!({ "spec": { "units": 7, "model": "a" } }),
            "pruned, filled in, without status"
        );
        assert_eq!(made.metadata.generation, Some(1));
    })
    .await;
}

#[tokio::test]
async fn a_status_has_a_path_of_its_own() {
    story(async |cluster| {
        let probes = cluster.probes().await;
        let probe = |content: Value| from_probe(&cluster, content);
        let spec = probe(json!({ "metadata": { "name": "a" }, "spec": { "units": 7 } }));
        let made = probes.create(&create(), &spec).await.unwrap();

        let merge = Patch::Merge(json!({ "spec": { "units": 8 }, "status": { "phase": "Late" } }));
        let main = probes.patch("a", &PatchParams::default(), &merge).await.unwrap();
        assert_eq!(main.data["status"], Value::Null);
        assert_eq!(
            (&main.data["spec"]["units"], main.metadata.generation),
            (&json!(8), Some(2))
        );
        let merge = Patch::Merge(json!({ "spec": { "units": 9 }, "status": { "phase": "Late" } }));
        let status = probes
            .patch_status("a", &PatchParams::default(), &merge)
            .await
            .unwrap();
        assert_eq!(
            (&status.data["spec"]["units"], &status.data["status"]["phase"]),
            (&json!(8), &json!("Late"))
        );
        assert_eq!(status.metadata.generation, Some(2));

        // Elements of a list with a key belong to whoever applied them.
        for (manager, about) in [("one", "Ready"), ("two", "Healthy")] {
            let mut config = probe(json!({ "metadata": { "name": "a" } }));
            config.data["status"] = json!({ "conditions": [{ "type": about, "status": "True" }] });
            let params = PatchParams::apply(manager);
            probes
                .patch_status("a", &params, &Patch::Apply(&config))
                .await
                .unwrap();
        }
        let both = probes.get_status("a").await.unwrap();
        let about: Vec<_> = both.data["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["type"])
            .collect();
        assert_eq!(about, ["Ready", "Healthy"]);

        let strategic = Patch::Strategic(json!({ "spec": { "units": 1 } }));
        let (code, reason, _) = refusal(probes.patch("a", &PatchParams::default(), &strategic).await);
        assert_eq!((code, &*reason), (415, "UnsupportedMediaType"));
        let mut unversioned = made.clone();
        unversioned.metadata.resource_version = None;
        let (code, _, words) = refusal(probes.replace("a", &create(), &unversioned).await);
        assert_eq!(code, 422);
        assert!(
            words.contains("metadata.resourceVersion: Invalid value"),
            "{words}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_binding_gives_a_pod_its_node_and_its_annotations() {
    story(async |cluster| {
        let pods = cluster.api::<Pod>();
        let mut new: Pod = from(pod("a"));
        new.annotations_mut().insert("kept".to_owned(), "yes".to_owned());
        let made = pods.create(&create(), &new).await.unwrap();
        assert_eq!(made.status.unwrap().phase.unwrap(), "Pending");
        let unbound = ListParams::default().fields("spec.nodeName=");
        assert_eq!(names(&pods.list(&unbound).await.unwrap().items), ["a"]);

        let bind = async |node: &str| {
            let binding: Binding = from(json!({
                "metadata": { "name": "a", "annotations": { "penstock.dev/gpu": "GPU-7" } },
                "target": { "apiVersion": "v1", "kind": "Node", "name": node },
            }));
            pods.create_subresource::<_, Value>("binding", "a", &create(), &binding).await
        };
        assert_eq!(bind("no-such-node").await.unwrap()["status"], "Success");
        let bound = pods.get("a").await.unwrap();
        assert_eq!(bound.annotations()["penstock.dev/gpu"], "GPU-7");
        assert_eq!(bound.annotations()["kept"], "yes");
        assert_eq!(bound.spec.as_ref().unwrap().node_name.as_deref(), Some("no-such-node"));
        let (code, reason, words) = refusal(bind("another-node").await);
        assert_eq!((code, &*reason), (409, "Conflict"));
        let already = "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"no-such-node\"";
        assert_eq!(words, already);

        let moved = Patch::Merge(json!({ "spec": { "nodeName": "another-node" } }));
        let (code, _, words) = refusal(pods.patch("a", &PatchParams::default(), &moved).await);
        assert_eq!(code, 422);
        assert!(words.contains("spec: Forbidden: pod updates may not change fields other than"), "{words}");

        let strategic = Patch::Strategic(json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } }));
        let conditions = pods.patch_status("a", &PatchParams::default(), &strategic).await.unwrap();
        let mut about: Vec<_> = conditions.status.unwrap().conditions.unwrap().into_iter().map(|c| c.type_).collect();
        about.sort();
        assert_eq!(about, ["PodScheduled", "Ready"]);

        let deleted = pods.delete("a", &DeleteParams::default().grace_period(60)).await.unwrap().left().unwrap();
        assert!(deleted.metadata.deletion_timestamp.is_some(), "it has time to end");
        assert_eq!(pods.get("a").await.unwrap().metadata.deletion_grace_period_seconds, Some(60));
        pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
        assert_eq!(refusal(pods.get("a").await).0, 404);
    })
    .await;
}

#[tokio::test]
async fn of_two_who_take_a_lease_one_gets_it() {
    story(async |cluster| {
        let leases = cluster.api::<Lease>();
        let lease = |holder: &str| -> Lease {
            from(json!({
                "metadata": { "name": "writer" },
                "spec": {
                    "holderIdentity": holder, "leaseDurationSeconds": 15,
                    "renewTime": "2026-01-01T00:00:00.123456Z", "leaseTransitions": 0,
                },
            }))
        };
        let free = leases.create(&create(), &lease("")).await.unwrap();
        let take = async |holder: &str| {
            let mut taken = lease(holder);
            taken.metadata.resource_version = free.resource_version();
            leases.replace("writer", &create(), &taken).await
        };
        let (first, second) = tokio::join!(take("one"), take("two"));
        let (winner, loser) = match first {
            Ok(winner) => (winner, second),
            first => (second.unwrap(), first),
        };
        assert_eq!(refusal(loser).0, 409);
        let held = leases.get("writer").await.unwrap();
        assert_eq!(held.spec, winner.spec);
        let mut endless = lease("one");
        endless.metadata.resource_version = held.resource_version();
        endless.spec.as_mut().unwrap().lease_duration_seconds = Some(0);
        assert_eq!(
            refusal(leases.replace("writer", &create(), &endless).await).0,
            422
        );
    })
    .await;
}

#[tokio::test]
async fn an_event_is_the_same_in_both_groups() {
    story(async |cluster| {
        let regarding = |namespace: &str| {
            json!({ "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": "a", "uid": "8a1c" })
        };
        let event = |about: Value| -> Event {
            from(json!({
                "metadata": { "name": "a.1" }, "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": about,
                "reason": "EncoderOverSlice", "note": "too much", "type": "Warning", "action": "Measure",
                "reportingController": "penstock.dev/plugin", "reportingInstance": "node-1",
            }))
        };
        let events = cluster.api::<Event>();
        let elsewhere = events.create(&create(), &event(regarding("elsewhere"))).await;
        assert_eq!(refusal(elsewhere).0, 422);
        let mut silent = event(regarding(&cluster.namespace));
        silent.action = None;
        assert_eq!(refusal(events.create(&create(), &silent).await).0, 422);
        events.create(&create(), &event(regarding(&cluster.namespace))).await.unwrap();
        let core = cluster.api::<CoreEvent>().get("a.1").await.unwrap();
        assert_eq!(core.message.as_deref(), Some("too much"));
        assert_eq!(core.involved_object.uid.as_deref(), Some("8a1c"));
        assert_eq!(core.reporting_component.as_deref(), Some("penstock.dev/plugin"));
    })
    .await;
}

#[tokio::test]
async fn an_account_may_do_what_its_role_says() {
    story(async |cluster| {
        let rules = json!([
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "create"] },
            { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get", "patch"] },
            { "apiGroups": [""], "resources": ["pods/binding"], "verbs": ["create"] },
        ]);
        let client = cluster.account("limited", rules).await;
        let user = format!("system:serviceaccount:{}:limited", cluster.namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), &cluster.namespace);
        pods.create(&create(), &from(pod("a"))).await.unwrap();
        assert_eq!(names(&pods.list(&ListParams::default()).await.unwrap().items), ["a"]);
        let words = format!(
            "pods \"a\" is forbidden: User \"{user}\" cannot get resource \"pods\" in API group \"\" in the namespace \
             \"{}\"",
            cluster.namespace
        );
        assert_eq!(refusal(pods.get("a").await), is(403, "Forbidden", &words));
        let everywhere: Api<Pod> = Api::all(client.clone());
        let words = format!(
            "pods is forbidden: User \"{user}\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        );
        assert_eq!(refusal(everywhere.list(&ListParams::default()).await), is(403, "Forbidden", &words));
        let binding = json!({ "metadata": { "name": "a" }, "target": { "kind": "Node", "name": "node-1" } });
        pods.create_subresource::<_, Value>("binding", "a", &create(), &binding).await.unwrap();

        let maps: Api<ConfigMap> = Api::namespaced(client, &cluster.namespace);
        assert_eq!(refusal(maps.get("mine").await).0, 404);
        assert_eq!(refusal(maps.get("other").await).0, 403);
        // An apply that finds nothing creates, and that is not granted.
        let patch = Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap" }));
        let (code, _, words) = refusal(maps.patch("mine", &PatchParams::apply("test"), &patch).await);
        assert_eq!(code, 403);
        assert!(words.contains("cannot create resource \"configmaps\""), "{words}");
        cluster.api::<ConfigMap>().create(&create(), &map("mine", "1")).await.unwrap();
        maps.patch("mine", &PatchParams::apply("test"), &patch).await.unwrap();
    })
    .await;
}

fn create() -> PostParams {
    PostParams::default()
}

fn is(code: u16, reason: &str, message: &str) -> (u16, String, String) {
    (code, reason.to_owned(), message.to_owned())
}

fn map(name: &str, value: &str) -> ConfigMap {
    from(json!({ "metadata": { "name": name }, "data": { "key": value } }))
}

/// A pod that no scheduler takes.
fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "schedulerName": "nobody", "containers": [{ "name": "game", "image": "busybox:1" }] },
    })
}

fn from_probe(cluster: &Cluster, content: Value) -> DynamicObject {
    let kind = cluster.probe_kind();
    let mut content = content;
    content["apiVersion"] = json!(kind.api_version);
    content["kind"] = json!(kind.kind);
    from(content)
}

fn from_ops(operations: Value) -> json_patch::Patch {
    from(operations)
}

fn in_words(event: &WatchEvent<ConfigMap>) -> Option<String> {
    match event {
        WatchEvent::Added(map) => Some(format!("added {}", map.name_any())),
        WatchEvent::Modified(map) => Some(format!("modified {}", map.name_any())),
        WatchEvent::Deleted(map) => Some(format!("deleted {}", map.name_any())),
        WatchEvent::Bookmark(_) => None,
        WatchEvent::Error(status) => Some(status.message.clone()),
    }
}
