//! The manifests: that each is one, that the extender takes what is written in them, that their parts agree, and that
//! its role is what it needs.

use fake_kube::FakeKube;
use penstock_core::names::{RESOURCE_MPS, RESOURCE_NVENC, RESOURCE_VRAM};
use serde_json::{Value, json};

use crate::support::{Extender, cluster, eventually, free_port, gpu_node, nvenc, pod};

const RESOURCES: [&str; 3] = [RESOURCE_NVENC, RESOURCE_MPS, RESOURCE_VRAM];

#[test]
fn the_scheduler_is_told_of_the_extender_that_is_beside_it() {
    let kube = cluster();
    let config = scheduler_config(&kube);
    let [extender] = &config["extenders"].as_array().unwrap()[..] else {
        panic!("{config}")
    };
    let listen = argument(&kube, "--listen=");
    assert!(
        listen.starts_with("127.0.0.1:"),
        "whoever reaches it can bind pods: {listen}"
    );
    assert_eq!(extender["urlPrefix"], format!("http://{listen}"));
    assert_eq!(extender["nodeCacheCapable"], true);
    assert_eq!(extender["ignorable"], false);
    let managed = extender["managedResources"].as_array().unwrap();
    let names: Vec<_> = managed
        .iter()
        .map(|resource| resource["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, RESOURCES);
    // Else the scheduler's preemption would find nothing short, and propose nobody.
    assert!(
        managed
            .iter()
            .all(|resource| resource["ignoredByScheduler"] == false)
    );
    assert_eq!(config["percentageOfNodesToScore"], 100);
    let leader = &config["leaderElection"];
    let lease = kube
        .get(
            "roles",
            leader["resourceNamespace"].as_str(),
            "penstock-scheduler-leader",
        )
        .unwrap();
    assert_eq!(
        lease["rules"][1]["resourceNames"],
        json!([leader["resourceName"]])
    );
    let container = &template(&kube)["containers"][0];
    let file = format!(
        "--config={}/scheduler.yaml",
        container["volumeMounts"][0]["mountPath"].as_str().unwrap()
    );
    assert_eq!(container["command"][1], file);
}

#[test]
fn pods_that_ask_for_ours_get_the_scheduler_that_there_is() {
    let kube = cluster();
    let policy = &kube.list("mutatingadmissionpolicies")[0];
    let binding = &kube.list("mutatingadmissionpolicybindings")[0];
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    let sets = policy["spec"]["mutations"][0]["applyConfiguration"]["expression"]
        .as_str()
        .unwrap();
    let name = scheduler_config(&kube)["profiles"][0]["schedulerName"].clone();
    assert_eq!(
        sets,
        format!(
            "Object{{spec: Object.spec{{schedulerName: '{}'}}}}",
            name.as_str().unwrap()
        )
    );
    let asks = policy["spec"]["matchConditions"][1]["expression"]
        .as_str()
        .unwrap();
    // Once among limits, once among requests.
    RESOURCES
        .iter()
        .for_each(|name| assert_eq!(asks.matches(&format!("'{name}'")).count(), 2, "{asks}"));
}

#[test]
fn privileges_are_few() {
    let kube = cluster();
    let spec = template(&kube);
    let containers = [&spec["containers"], &spec["initContainers"]].map(|list| list.as_array().unwrap());
    for container in containers.into_iter().flatten() {
        let context = &container["securityContext"];
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(spec[field], Value::Null);
    }
    let account = spec["serviceAccountName"].as_str().unwrap();
    assert!(kube.get("serviceaccounts", Some("penstock"), account).is_some());
}

#[tokio::test]
async fn the_extender_starts_as_the_manifests_have_it() {
    let kube = cluster();
    let container = template(&kube)["initContainers"][0].clone();
    let [scheduler, operators] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let declared = container["ports"][0]["containerPort"].to_string();
    assert_eq!(
        argument(&kube, "--metrics-listen="),
        format!("0.0.0.0:{declared}")
    );
    let replace = |arg: String| match arg.split_once('=') {
        Some(("--listen", _)) => format!("--listen={scheduler}"),
        Some(("--metrics-listen", _)) => format!("--metrics-listen={operators}"),
        _ => arg,
    };
    let args: Vec<_> = args(&kube).into_iter().map(replace).collect();
    let extender = Extender::start_with(&kube, &args, &scheduler, &operators);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        eventually(&format!("it answers at {path}"), async || {
            extender.look(path).await.0 == 200
        })
        .await;
    }
    // Every verb of the scheduler's configuration is one: a body that is none is refused, not the path.
    let config = scheduler_config(&kube);
    for verb in ["filterVerb", "prioritizeVerb", "bindVerb", "preemptVerb"] {
        let verb = config["extenders"][0][verb].as_str().unwrap();
        assert_eq!(extender.post(verb, "{}").await.0, 422, "{verb}");
    }
}

#[tokio::test]
async fn its_role_is_enough_for_all_it_does() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(13));
    let extender = Extender::ready(&kube).await;
    assert_eq!(extender.bind(&quake, "node-1").await, "");
    assert_eq!(
        kube.requests()
            .iter()
            .filter(|request| request.code == 403)
            .count(),
        0
    );
}

/// Each verb of each rule is taken away in turn, and each time something is refused.
#[tokio::test]
async fn its_role_is_no_more_than_it_needs() {
    let role = cluster().get("clusterroles", None, ROLE).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let each = rules.iter().enumerate().flat_map(|(rule, content)| {
        assert_eq!(
            content["resources"].as_array().unwrap().len(),
            1,
            "one resource each, so that each verb counts"
        );
        (0..content["verbs"].as_array().unwrap().len()).map(move |verb| (rule, verb))
    });
    for (rule, verb) in each.collect::<Vec<_>>() {
        let kube = cluster();
        kube.create(gpu_node("node-1", 1, &[]));
        let quake = pod(&kube, "quake", nvenc(13));
        kube.edit("clusterroles", None, ROLE, |role| {
            role["rules"][rule]["verbs"].as_array_mut().unwrap().remove(verb);
        });
        let what = format!("{} {}", rules[rule]["verbs"][verb], rules[rule]["resources"][0]);
        let refused = || kube.requests().iter().any(|request| request.code == 403);
        let extender = Extender::start(&kube);
        eventually(&format!("without {what} something is refused"), async || {
            if extender.look("/readyz").await.0 == 200 && rules[rule]["resources"][0] == "pods/binding" {
                let _ = extender.bind(&quake, "node-1").await;
            }
            refused()
        })
        .await;
    }
}

fn template(kube: &FakeKube) -> Value {
    kube.get("deployments", Some("penstock"), "penstock-scheduler")
        .unwrap()["spec"]["template"]["spec"]
        .clone()
}

fn args(kube: &FakeKube) -> Vec<String> {
    serde_json::from_value(template(kube)["initContainers"][0]["args"].clone()).unwrap()
}

fn argument(kube: &FakeKube, name: &str) -> String {
    args(kube)
        .iter()
        .find_map(|arg| arg.strip_prefix(name))
        .unwrap()
        .to_owned()
}

fn scheduler_config(kube: &FakeKube) -> Value {
    let map = kube
        .get("configmaps", Some("penstock"), "penstock-scheduler")
        .unwrap();
    serde_yaml_ng::from_str(map["data"]["scheduler.yaml"].as_str().unwrap()).unwrap()
}

const ROLE: &str = "penstock-scheduler-extender";
