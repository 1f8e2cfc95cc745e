//! Who may do what, by the roles and bindings that are in the store.

use serde_json::Value;

use crate::status::{Failure, Subject};
use crate::store::Store;
use crate::verbs;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum User {
    /// The test itself, which may do everything.
    Admin,
    Account {
        namespace: String,
        name: String,
    },
}

impl User {
    /// # Errors
    /// Where the token is nobody's: that of an account that is not there, for one.
    pub(crate) fn of(store: &Store, authorization: Option<&str>) -> Result<Self, Failure> {
        let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
        let token = token.ok_or_else(Failure::unauthorized)?;
        if token == ADMIN_TOKEN {
            return Ok(Self::Admin);
        }
        let (namespace, name) = verbs::whose(token).ok_or_else(Failure::unauthorized)?;
        let is_it = |account: &Value| {
            let metadata = &account["metadata"];
            metadata["namespace"] == *namespace && metadata["name"] == *name
        };
        match store.all("", "serviceaccounts").any(is_it) {
            true => Ok(Self::Account { namespace, name }),
            false => Err(Failure::unauthorized()),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Admin => "kubernetes-admin".to_owned(),
            Self::Account { namespace, name } => format!("system:serviceaccount:{namespace}:{name}"),
        }
    }

    fn is_meant_by(&self, subject: &Value) -> bool {
        let Self::Account { namespace, name } = self else {
            return false;
        };
        let text = |field: &str| subject[field].as_str().unwrap_or_default();
        match text("kind") {
            "ServiceAccount" => text("name") == name && text("namespace") == namespace,
            "User" => text("name") == self.name(),
            "Group" => {
                let own = format!("system:serviceaccounts:{namespace}");
                [&*own, "system:serviceaccounts", "system:authenticated"].contains(&text("name"))
            }
            _ => false,
        }
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deed<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    /// Empty where the request names nothing: a list, or a POST.
    pub(crate) name: &'a str,
}

impl Deed<'_> {
    fn resource(&self) -> String {
        match self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.plural),
            None => self.plural.to_owned(),
        }
    }

    fn is_granted_by(&self, rule: &Value) -> bool {
        let lists = |field: &str, wanted: &[&str]| {
            let list = rule[field].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .filter_map(Value::as_str)
                .any(|entry| wanted.contains(&entry))
        };
        let any_of_it = self.subresource.map(|subresource| format!("*/{subresource}"));
        let resource = self.resource();
        let names = rule["resourceNames"]
            .as_array()
            .is_some_and(|names| !names.is_empty());
        lists("verbs", &["*", self.verb])
            && lists("apiGroups", &["*", self.group])
            && lists(
                "resources",
                &["*", &resource, any_of_it.as_deref().unwrap_or("*")],
            )
            && (!names || lists("resourceNames", &[self.name]))
    }

    /// # Errors
    /// Where no role that is bound to `user` grants it.
    pub(crate) fn check(&self, store: &Store, user: &User) -> Result<(), Failure> {
        if *user == User::Admin
            || self
                .granting_roles(store, user)
                .any(|rule| self.is_granted_by(rule))
        {
            return Ok(());
        }
        let place = match self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let why = format!(
            "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            user.name(),
            self.verb,
            self.resource(),
            self.group
        );
        let subject = Subject {
            group: self.group,
            plural: self.plural,
            name: self.name,
        };
        Err(Failure::forbidden(subject, &why))
    }

    /// The rules of all roles that are bound to `user` here.
    fn granting_roles<'a>(&self, store: &'a Store, user: &User) -> impl Iterator<Item = &'a Value> {
        let everywhere = store.all(GROUP, "clusterrolebindings");
        let here = store.all(GROUP, "rolebindings").filter(|binding| {
            self.namespace
                .is_some_and(|namespace| binding["metadata"]["namespace"] == namespace)
        });
        let is_for_user = |binding: &&Value| {
            let subjects = binding["subjects"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            subjects.iter().any(|subject| user.is_meant_by(subject))
        };
        let bindings: Vec<_> = everywhere.chain(here).filter(is_for_user).collect();
        bindings.into_iter().flat_map(|binding| rules(store, binding))
    }
}

fn rules<'a>(store: &'a Store, binding: &'a Value) -> impl Iterator<Item = &'a Value> {
    let role = &binding["roleRef"];
    let (plural, namespace) = match role["kind"].as_str() {
        Some("Role") => ("roles", binding["metadata"]["namespace"].as_str()),
        _ => ("clusterroles", None),
    };
    let is_it = move |candidate: &&Value| {
        candidate["metadata"]["name"] == role["name"]
            && candidate["metadata"]["namespace"].as_str() == namespace
    };
    store
        .all(GROUP, plural)
        .filter(is_it)
        .flat_map(|role| role["rules"].as_array().into_iter().flatten())
}

const GROUP: &str = "rbac.authorization.k8s.io";
/// What admits the test itself.
pub(crate) const ADMIN_TOKEN: &str = "admin";
