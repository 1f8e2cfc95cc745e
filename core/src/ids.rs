//! Identifiers. Each is a type of its own, checked where it comes in, so that a GPU's name can't be taken for
//! a slice's and none can carry a line break into a log, a path or a header. A clone shares its text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: it takes 1 to {max} characters out of letters, digits and -_.:")]
pub struct BadId {
    kind: &'static str,
    text: String,
    max: usize,
}

/// The longest identifier, in characters: what a Kubernetes label value, and so a device ID, may have.
pub const MAX_ID_LEN: usize = 63;

/// The longest name of a node, in characters: what a DNS name, and so a Kubernetes object's, may have.
pub const MAX_NODE_NAME_LEN: usize = 253;

fn check(kind: &'static str, max: usize, text: &str) -> Result<(), BadId> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if (1..=max).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(());
    }
    let text = text.chars().take(max + 1).collect();
    Err(BadId { kind, text, max })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        id!($(#[$doc])* $name, $kind, MAX_ID_LEN);
    };
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest one, in characters.
            pub const MAX_LEN: usize = $max;

            /// Takes 1 to [`Self::MAX_LEN`] characters out of letters, digits, `-`, `_`, `.` and `:`.
            ///
            /// # Errors
            /// [`BadId`] for anything else.
            pub fn new(text: impl Into<String>) -> Result<Self, BadId> {
                let text = text.into();
                check($kind, Self::MAX_LEN, &text)?;
                Ok(Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

id!(
    /// A GPU or MIG instance by the name NVML gives it (`GPU-…`, `MIG-…`), or `CPU-…` for a node's software
    /// encoder.
    GpuUuid,
    "GPU UUID"
);
id!(
    /// A slice: part of one GPU, held by one pod or, stand-alone, by one streamer process.
    SliceId,
    "slice name"
);
id!(
    /// A streamer as browsers see it in `streamerList`. It names no address.
    StreamerId,
    "streamer name"
);
id!(
    /// An application that is streamed, as its operator names it: what a player may ask for.
    ApplicationName,
    "name of an application"
);
id!(
    /// A session: one player, or one group of viewers, on one running application.
    SessionId,
    "session name"
);
id!(
    /// One browser page's connection to a streamer.
    PlayerId,
    "player name"
);
id!(
    /// A place that a player or viewer holds on a streamer. The first half of its [`ReturnToken`], and no secret.
    SeatName,
    "seat name"
);
id!(
    /// A pod, as the API server tells it from all others, earlier ones of the same name too.
    PodUid,
    "pod UID"
);
id!(
    /// A node of the cluster. It can stand in a field selector and in a path.
    NodeName,
    "node name",
    MAX_NODE_NAME_LEN
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_takes_what_kubernetes_takes() {
        let mig = "MIG-5c89852c-d268-5e9a-8e7c-0a1b2c3d4e5f";
        assert_eq!(GpuUuid::new(mig).unwrap().as_str(), mig);
        assert!(SliceId::new("a".repeat(63)).is_ok());
    }

    #[test]
    fn an_identifier_refuses_what_could_be_mistaken() {
        for bad in ["", "a b", "a\nb", "../etc", "é", &"a".repeat(64)] {
            let error = SliceId::new(bad).unwrap_err().to_string();
            assert!(error.contains("slice name"), "{error}");
        }
        assert!(serde_json::from_str::<SessionId>("\"a/b\"").is_err());
        assert!(NodeName::new("a,spec.nodeName!=a").is_err());
    }

    #[test]
    fn a_node_may_have_a_long_name() {
        assert!(NodeName::new("a".repeat(253)).is_ok());
        let error = NodeName::new("a".repeat(254)).unwrap_err().to_string();
        assert!(error.contains("1 to 253"), "{error}");
    }
}
