//! What a node says about its GPUs in the cluster: the content of the custom resource `GpuNode`.
//!
//! ```text
//!   plugin ──► GpuNode ──► scheduler-extender   where is room
//!                     └──► kubectl, dashboards  a line of summary per node
//! ```
//!
//! All of it is under `spec`, and there is no status subresource: the plugin alone writes it, as facts about a
//! node that nobody asks for otherwise. Kubernetes' own `CSINode` and `ResourceSlice` do the same. So one
//! server-side apply creates the object and says everything, where a status would take two requests, and leave
//! an object without content in between.
//!
//! These are plain types: whoever talks to the API server adds the glue of its client library. With the feature
//! `schema` they describe themselves, for the definition of the custom resource.

use serde::{Deserialize, Serialize};

use crate::ids::{GpuUuid, PodUid};
use crate::packing::Resources;
use crate::units::{EncoderUnits, SmPercent, VramBlocks};

/// The API group of our custom resources.
pub const API_GROUP: &str = "penstock.dev";
/// The version of [`GpuNodeSpec`].
pub const API_VERSION: &str = "v1alpha1";

/// The [`Condition`] that says whether the node's kubelet knows the plugin. While it does not, it refuses every pod that
/// asks for a slice, for good.
pub const REGISTERED: &str = "Registered";

/// What one node has, gives and measures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {
    /// The rest in one line, for people.
    pub summary: Summary,
    /// The GPUs and MIG instances that Penstock handles on this node.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// The state of the node's GPUs as a whole.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What `kubectl get gpunodes` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many GPUs there are.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub gpus: u32,
    /// The models, each once.
    #[serde(default)]
    pub models: String,
    /// Encoder units that are free, of all: `37/130`. They are summed over the GPUs; no pod can take from two.
    #[serde(default)]
    pub encoder: String,
    /// How many pods hold a slice.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub pods: u32,
    /// Encoder sessions that are open, where they can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub sessions: Option<u32>,
    /// How many GPUs are healthy in all respects, of all: `2/2`.
    #[serde(default)]
    pub healthy: String,
}

/// One GPU or MIG instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Its name: `GPU-...`, `MIG-...`, or `CPU-...` for the node's software encoder.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::id"))]
    pub uuid: GpuUuid,
    /// What NVML calls its model.
    pub model: String,
    /// All that it offers.
    pub capacity: Capacity,
    /// Encoder units of one of its engines, where that is known: no single stream can have more, however large its
    /// slice is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub encoder_engine_units: Option<EncoderUnits>,
    /// Who holds what of it.
    #[serde(default)]
    pub allocated: Vec<Allocation>,
    /// What was measured last.
    #[serde(default)]
    pub measured: Measured,
    /// Most encoder sessions that the driver allows at one time, where it caps them: over all GeForce GPUs of the node
    /// together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub encoder_session_limit: Option<u32>,
    /// Which of its resources can be used.
    #[serde(default)]
    pub health: Health,
}

/// All that a GPU offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Capacity {
    /// Encoder units, of 10 megapixels per second each.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub nvenc: EncoderUnits,
    /// Percent of the SMs.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub mps: SmPercent,
    /// Video memory in blocks of 256 MiB.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub vram: VramBlocks,
    /// Containers with `mps` that its MPS daemon serves at one time: its clients, over those that a container is.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub mps_clients: u32,
}

/// A slice: what one pod holds of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Which pod of that name.
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::id"))]
    pub pod_uid: PodUid,
    /// Encoder units.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub nvenc: EncoderUnits,
    /// Percent of the SMs.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub mps: SmPercent,
    /// Video memory in blocks of 256 MiB.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub vram: VramBlocks,
    /// Containers with `mps` that it runs at one time.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub mps_clients: u32,
}

/// What was measured on a GPU. What is not known is absent: it is not 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Measured {
    /// Encoder load in percent, as the lower edge of a band of 10: 40 says 40 to 49, and 90 says 90 to 100.
    /// Written with a hysteresis of 3 points, at most every 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::band"))]
    pub encoder_load_percent: Option<LoadBand>,
    /// Encoder sessions that are open, of whatever process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "schema::count"))]
    pub encoder_sessions: Option<u32>,
}

/// A measured load in bands of 10 percent, so that a value that trembles is not written over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub struct LoadBand(u8);

/// Which resources of a GPU can be used. A resource that the GPU doesn't have is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// The encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvenc: Option<ResourceHealth>,
    /// The SMs, and the MPS daemon that shares them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mps: Option<ResourceHealth>,
    /// Video memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram: Option<ResourceHealth>,
}

/// Whether one resource of a GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ResourceHealth {
    /// Whether it is given to new pods.
    pub healthy: bool,
    /// Why not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One statement about the node, in the form of Kubernetes' own conditions (`metav1.Condition`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about: `Healthy`, for example.
    #[serde(rename = "type")]
    pub about: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, in words.
    #[serde(default)]
    pub message: String,
    /// Since when the status is what it is, by RFC 3339. A plugin that starts anew counts from its start.
    pub last_transition_time: String,
}

/// Whether a [`Condition`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows; also what a status reads as that a later version brings.
    #[serde(other)]
    Unknown,
}

impl GpuNodeSpec {
    /// Whether the kubelet is said not to know the plugin. Where nothing is said it is not: an older plugin did not.
    pub fn is_unregistered(&self) -> bool {
        let says_no = |c: &Condition| c.about == REGISTERED && c.status == ConditionStatus::False;
        self.conditions.iter().any(says_no)
    }

    /// The content over `gpus`, with its summary.
    pub fn new(gpus: Vec<Gpu>, conditions: Vec<Condition>) -> Self {
        Self {
            summary: Summary::of(&gpus),
            gpus,
            conditions,
        }
    }
}

impl Summary {
    /// Sums up.
    pub fn of(gpus: &[Gpu]) -> Self {
        let units = |of: fn(&Gpu) -> u32| gpus.iter().map(|gpu| u64::from(of(gpu))).sum::<u64>();
        let free = units(|gpu| gpu.free().nvenc.0);
        let all = units(|gpu| gpu.capacity.nvenc.0);
        let healthy = gpus.iter().filter(|gpu| gpu.health.problems().is_empty()).count();
        let sessions = gpus.iter().filter_map(|gpu| gpu.measured.encoder_sessions);
        let pods = gpus.iter().flat_map(|gpu| &gpu.allocated).map(|a| &a.pod_uid);
        Self {
            gpus: count(gpus.len()),
            models: models(gpus),
            encoder: format!("{free}/{all}"),
            pods: count(pods.collect::<std::collections::BTreeSet<_>>().len()),
            sessions: sessions.reduce(u32::saturating_add),
            healthy: format!("{healthy}/{}", gpus.len()),
        }
    }
}

fn models(gpus: &[Gpu]) -> String {
    let mut models: Vec<_> = gpus.iter().map(|gpu| gpu.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    models.join(", ")
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Gpu {
    /// What no pod holds. Where more is allocated than there is (a capacity that was lowered), none of it is free.
    pub fn free(&self) -> Capacity {
        self.allocated.iter().fold(self.capacity, |left, taken| Capacity {
            nvenc: EncoderUnits(left.nvenc.0.saturating_sub(taken.nvenc.0)),
            mps: SmPercent(left.mps.0.saturating_sub(taken.mps.0)),
            vram: VramBlocks(left.vram.0.saturating_sub(taken.vram.0)),
            mps_clients: left.mps_clients.saturating_sub(taken.mps_clients),
        })
    }
}

impl Capacity {
    /// The three resources of it.
    pub fn resources(self) -> Resources {
        Resources {
            nvenc: self.nvenc,
            mps: self.mps,
            vram: self.vram,
        }
    }
}

impl Allocation {
    /// The three resources of it.
    pub fn resources(&self) -> Resources {
        Resources {
            nvenc: self.nvenc,
            mps: self.mps,
            vram: self.vram,
        }
    }
}

impl Health {
    /// What can't be used, and why: `nvenc: XID 47`.
    pub fn problems(&self) -> Vec<String> {
        [("nvenc", &self.nvenc), ("mps", &self.mps), ("vram", &self.vram)]
            .into_iter()
            .filter_map(|(name, health)| Some((name, health.as_ref()?)))
            .filter(|(_, health)| !health.healthy)
            .map(|(name, health)| {
                let reason = health.reason.as_deref().unwrap_or("no reason is known");
                format!("{name}: {reason}")
            })
            .collect()
    }
}

impl ResourceHealth {
    /// It can be used.
    pub const HEALTHY: Self = Self {
        healthy: true,
        reason: None,
    };

    /// It can't be used, for a reason given in words.
    pub fn unhealthy(reason: impl Into<String>) -> Self {
        Self {
            healthy: false,
            reason: Some(reason.into()),
        }
    }
}

impl LoadBand {
    /// How far beyond an edge of its band a load must be to leave it, in percent points.
    pub const HYSTERESIS: u8 = 3;

    /// The band that `percent` is in.
    pub fn of(percent: u8) -> Self {
        Self(percent.min(TOP_BAND) / BAND * BAND)
    }

    /// The band to show after this one, now that `percent` is measured: this one as long as the load is inside it
    /// or less than [`Self::HYSTERESIS`] points away.
    #[must_use]
    pub fn follow(self, percent: u8) -> Self {
        let below = percent.saturating_add(Self::HYSTERESIS) < self.0;
        let above = self.0 < TOP_BAND && percent >= self.0 + BAND + Self::HYSTERESIS;
        if below || above { Self::of(percent) } else { self }
    }

    /// The lower edge, in percent.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// The highest load of it, in percent.
    pub fn highest_percent(self) -> u8 {
        if self.0 == TOP_BAND {
            100
        } else {
            self.0 + BAND - 1
        }
    }
}

impl From<u8> for LoadBand {
    fn from(percent: u8) -> Self {
        Self::of(percent)
    }
}

impl From<LoadBand> for u8 {
    fn from(band: LoadBand) -> Self {
        band.0
    }
}

const BAND: u8 = 10;
/// The highest band takes 100 % too: a band of its own would be out of reach for the hysteresis.
const TOP_BAND: u8 = 90;

/// Schemas that keep an API server from storing what could not be read back. None names a `format`: API servers
/// warn about those that they don't know, unsigned integers among them.
#[cfg(feature = "schema")]
mod schema {
    use schemars::{Schema, SchemaGenerator, json_schema};

    pub(super) fn count(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
    }

    pub(super) fn band(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": super::TOP_BAND, "multipleOf": super::BAND })
    }

    pub(super) fn id(_: &mut SchemaGenerator) -> Schema {
        let pattern = format!("^[A-Za-z0-9_.:-]{{1,{}}}$", crate::ids::MAX_ID_LEN);
        json_schema!({ "type": "string", "pattern": pattern })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_says_it_in_one_line() {
        let mut second = gpu("GPU-1", 50);
        second.health.nvenc = Some(ResourceHealth::unhealthy("XID 47"));
        let mut first = gpu("GPU-0", 50);
        first.allocated = vec![slice("a", 13), slice("b", 7)];
        first.measured.encoder_sessions = Some(2);
        let summary = GpuNodeSpec::new(vec![first, second], Vec::new()).summary;
        let expected = Summary {
            gpus: 2,
            models: "NVIDIA L4".to_owned(),
            encoder: "80/100".to_owned(),
            pods: 2,
            sessions: Some(2),
            healthy: "1/2".to_owned(),
        };
        assert_eq!(summary, expected);
    }

    #[test]
    fn sessions_that_nobody_counted_are_not_none() {
        assert_eq!(Summary::of(&[gpu("GPU-0", 50)]).sessions, None);
    }

    #[test]
    fn what_was_promised_beyond_the_capacity_is_not_free() {
        let mut gpu = gpu("GPU-0", 10);
        gpu.allocated = vec![slice("a", 7), slice("b", 7)];
        assert_eq!(gpu.free().nvenc, EncoderUnits(0));
    }

    #[test]
    fn a_problem_names_its_resource_and_reason() {
        let mut health = Health::default();
        assert!(health.problems().is_empty());
        health.mps = Some(ResourceHealth::unhealthy("the MPS daemon does not answer"));
        health.vram = Some(ResourceHealth::HEALTHY);
        assert_eq!(health.problems(), ["mps: the MPS daemon does not answer"]);
    }

    #[test]
    fn content_is_written_in_kubernetes_words() {
        let mut gpu = gpu("GPU-0", 10);
        gpu.allocated = vec![slice("a", 7)];
        gpu.measured.encoder_load_percent = Some(LoadBand::of(47));
        gpu.encoder_engine_units = Some(EncoderUnits(5));
        let written = serde_json::to_value(&gpu).unwrap();
        assert_eq!(written["encoderEngineUnits"], 5);
        assert_eq!(written["measured"], json!({ "encoderLoadPercent": 40 }));
        assert_eq!(written["allocated"][0]["podUid"], "uid-a");
        assert_eq!(serde_json::from_value::<Gpu>(written).unwrap(), gpu);
    }

    #[test]
    fn a_later_version_can_be_read() {
        let text =
            json!({ "type": "X", "status": "Perhaps", "reason": "New", "lastTransitionTime": "", "more": 1 });
        let condition: Condition = serde_json::from_value(text).unwrap();
        assert_eq!(condition.status, ConditionStatus::Unknown);
    }

    #[test]
    fn a_trembling_load_stays_in_its_band() {
        let band = LoadBand::of(39);
        let shown = |percent: u8| band.follow(percent).percent();
        assert_eq!(
            [38, 41, 42, 43, 29, 27, 26].map(shown),
            [30, 30, 30, 40, 30, 30, 20]
        );
    }

    #[test]
    fn the_outer_bands_can_be_reached() {
        assert_eq!(LoadBand::of(10).follow(0).percent(), 0);
        assert_eq!(LoadBand::of(80).follow(100).percent(), 90);
        assert_eq!(LoadBand::of(u8::MAX).follow(100).percent(), 90);
    }

    proptest! {
        #[test]
        fn a_band_is_at_most_the_hysteresis_away(start in 0..=100u8, then in 0..=100u8) {
            let shown = LoadBand::of(start).follow(then);
            let low = shown.percent().saturating_sub(LoadBand::HYSTERESIS);
            let high = shown.highest_percent().saturating_add(LoadBand::HYSTERESIS).min(100);
            prop_assert!((low..=high).contains(&then), "{then} shown as {shown:?}");
            prop_assert_eq!(shown.follow(then), shown);
        }
    }

    fn gpu(uuid: &str, units: u32) -> Gpu {
        Gpu {
            uuid: GpuUuid::new(uuid).unwrap(),
            model: "NVIDIA L4".to_owned(),
            capacity: Capacity {
                nvenc: EncoderUnits(units),
                ..Capacity::default()
            },
            encoder_engine_units: None,
            allocated: Vec::new(),
            measured: Measured::default(),
            encoder_session_limit: None,
            health: Health::default(),
        }
    }

    fn slice(pod: &str, units: u32) -> Allocation {
        Allocation {
            namespace: "games".to_owned(),
            pod: pod.to_owned(),
            pod_uid: PodUid::new(format!("uid-{pod}")).unwrap(),
            nvenc: EncoderUnits(units),
            mps: SmPercent(0),
            vram: VramBlocks(0),
            mps_clients: 0,
        }
    }
}
