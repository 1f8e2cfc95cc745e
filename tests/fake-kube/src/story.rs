//! A cluster to tell stories with: the stand-in, or a real one where `PENSTOCK_TEST_KUBECONFIG` names its
//! kubeconfig. `KUBECONFIG` alone changes nothing: nobody's cluster is touched by accident.

#![expect(clippy::unwrap_used, reason = "this is for tests: a panic is their verdict")]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::FakeKube;

/// A cluster, and a namespace in it for one story.
pub struct Cluster {
    /// The namespace.
    pub namespace: String,
    kubeconfig: Kubeconfig,
    config: Config,
    /// Kept running until all is cleaned up.
    fake: Option<Arc<FakeKube>>,
}

/// Tells a story in a namespace of its own, which goes afterwards, however the story ends.
///
/// # Panics
/// Where the story does, or the cluster does not take what it needs.
pub async fn story<F>(tell: impl FnOnce(Cluster) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let cluster = Cluster::new().await;
    let (client, name) = (cluster.client(), cluster.namespace.clone());
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces
        .create(
            &PostParams::default(),
            &from(json!({ "metadata": { "name": name } })),
        )
        .await
        .unwrap();
    cluster.until_default_account().await;
    let _running = cluster.fake.clone();
    let outcome = tokio::spawn(tell(cluster)).await;
    let _ = definitions
        .delete(&format!("probes.{name}.example.com"), &DeleteParams::default())
        .await;
    namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    if let Err(failed) = outcome {
        std::panic::resume_unwind(failed.into_panic());
    }
}

impl Cluster {
    async fn new() -> Self {
        let namespace = format!("penstock-test-{:08x}", rand::random::<u32>());
        let (kubeconfig, fake) = match std::env::var_os("PENSTOCK_TEST_KUBECONFIG") {
            Some(file) => (Kubeconfig::read_from(Path::new(&file)).unwrap(), None),
            None => {
                let fake = FakeKube::start();
                let directory = tempfile::tempdir().unwrap();
                let file = directory.path().join("kubeconfig");
                fake.kubeconfig(&file, None).unwrap();
                (Kubeconfig::read_from(file).unwrap(), Some(fake))
            }
        };
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options)
            .await
            .unwrap();
        Self {
            namespace,
            kubeconfig,
            config,
            fake: fake.map(Arc::new),
        }
    }

    /// The administrator's client.
    ///
    /// # Panics
    /// Where the kubeconfig makes no sense.
    pub fn client(&self) -> Client {
        Client::try_from(self.config.clone()).unwrap()
    }

    /// The objects of a kind in the story's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client(), &self.namespace)
    }

    /// A client of a new service account that may do what `rules` say in the namespace.
    ///
    /// # Panics
    /// Where there is one of that name.
    pub async fn account(&self, name: &str, rules: Value) -> Client {
        let mut config = self.config.clone();
        config.auth_info = self.new_account(name, rules).await;
        Client::try_from(config).unwrap()
    }

    /// The same account for a program: writes its kubeconfig to `file`.
    ///
    /// # Panics
    /// Where there is one of that name, or the file can't be written.
    pub async fn account_file(&self, name: &str, rules: Value, file: &Path) {
        let mut kubeconfig = self.kubeconfig.clone();
        let auth_info = Some(self.new_account(name, rules).await);
        // Under the name of whoever is used else.
        for user in &mut kubeconfig.auth_infos {
            user.auth_info.clone_from(&auth_info);
        }
        std::fs::write(file, serde_yaml_ng::to_string(&kubeconfig).unwrap()).unwrap();
    }

    async fn new_account(&self, name: &str, rules: Value) -> AuthInfo {
        let create = PostParams::default();
        let metadata = json!({ "name": name });
        let accounts = self.api::<ServiceAccount>();
        accounts
            .create(&create, &from(json!({ "metadata": metadata })))
            .await
            .unwrap();
        let role = from(json!({ "metadata": metadata, "rules": rules }));
        self.api::<Role>().create(&create, &role).await.unwrap();
        let binding = from(json!({
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": self.namespace }],
        }));
        self.api::<RoleBinding>().create(&create, &binding).await.unwrap();
        let request: TokenRequest = from(json!({ "spec": { "audiences": [] } }));
        let answer = accounts
            .create_subresource::<_, TokenRequest>("token", name, &create, &request)
            .await;
        let token = answer.unwrap().status.unwrap().token;
        if self.fake.is_none() {
            // A real server takes a moment to see new roles.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        AuthInfo {
            token: Some(token.into()),
            ..AuthInfo::default()
        }
    }

    /// Defines a kind `Probe` of this story's own, with a status of its own.
    ///
    /// # Panics
    /// Where that is refused.
    pub async fn probes(&self) -> Api<DynamicObject> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
        let group = format!("{}.example.com", self.namespace);
        let definition = from(json!({
            "metadata": { "name": format!("probes.{group}") },
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": { "kind": "Probe", "plural": "probes", "singular": "probe" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "subresources": { "status": {} }, "schema": { "openAPIV3Schema": schema() },
                }],
            },
        }));
        definitions
            .create(&PostParams::default(), &definition)
            .await
            .unwrap();
        let name = format!("probes.{group}");
        self.until_established(&definitions, &name).await;
        Api::namespaced_with(self.client(), &self.namespace, &self.probe_kind())
    }

    /// What [`Self::probes`] defines.
    pub fn probe_kind(&self) -> ApiResource {
        let group = format!("{}.example.com", self.namespace);
        ApiResource {
            api_version: format!("{group}/v1"),
            group,
            version: "v1".to_owned(),
            kind: "Probe".to_owned(),
            plural: "probes".to_owned(),
        }
    }

    async fn until_established(&self, definitions: &Api<CustomResourceDefinition>, name: &str) {
        for _ in 0..100 {
            let definition = definitions.get(name).await.unwrap();
            let conditions = definition
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            if conditions
                .iter()
                .any(|c| c.type_ == "Established" && c.status == "True")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} was not established within 10 s");
    }

    /// A controller of a real cluster makes it, and pods are refused before that.
    async fn until_default_account(&self) {
        for _ in 0..100 {
            if self.fake.is_some() || self.api::<ServiceAccount>().get("default").await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!(
            "namespace {} got no default service account within 10 s",
            self.namespace
        );
    }
}

fn schema() -> Value {
    json!({
        "type": "object", "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object", "required": ["units"],
                "properties": {
                    "units": { "type": "integer", "minimum": 0, "maximum": 100 },
                    "model": { "type": "string", "enum": ["a", "b"], "default": "a" },
                    "uuid": { "type": "string", "pattern": "^GPU-[0-9]+$" },
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "phase": { "type": "string" },
                    "conditions": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object", "required": ["type"],
                            "properties": { "type": { "type": "string" }, "status": { "type": "string" } },
                        },
                    },
                },
            },
        },
    })
}

/// A typed object from JSON.
///
/// # Panics
/// Where it is none.
pub fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Code, reason and message of a refusal.
///
/// # Panics
/// Where nothing was refused.
pub fn refusal<T>(outcome: kube::Result<T>) -> (u16, String, String) {
    match outcome {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        Err(error) => panic!("no refusal: {error}"),
        Ok(_) => panic!("nothing was refused"),
    }
}

/// The names of objects.
pub fn names<K: kube::ResourceExt>(objects: &[K]) -> Vec<String> {
    objects.iter().map(|object| object.name_any()).collect()
}
