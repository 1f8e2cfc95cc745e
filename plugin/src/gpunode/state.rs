//! What the agent knows about its node, and what of it is to be published.

use std::collections::BTreeMap;

use penstock_core::gpu_node::{Condition, ConditionStatus, Gpu, GpuNodeSpec, LoadBand, Measured};
use penstock_core::ids::GpuUuid;

/// All that the agent knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NodeState {
    /// The GPUs with capacity, allocations and health. Their `measured` is not looked at.
    pub(crate) gpus: Vec<Gpu>,
    /// What was measured last. What is not known is absent.
    pub(crate) readings: BTreeMap<GpuUuid, Reading>,
    /// Statements beyond [`HEALTHY`], which is made from the health of the GPUs.
    pub(crate) conditions: Vec<Observed>,
}

/// A measurement of one GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Encoder load in percent.
    pub(crate) encoder_percent: Option<u8>,
    /// Encoder sessions that are open.
    pub(crate) encoder_sessions: Option<u32>,
}

/// A statement about the node, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    /// What it is about, in one word.
    pub(crate) about: String,
    /// Whether it holds.
    pub(crate) status: ConditionStatus,
    /// Why, in one word.
    pub(crate) reason: String,
    /// Why, in words.
    pub(crate) message: String,
}

/// What does not change by itself: everything but measurements. Every change of it is worth a write.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    gpus: Vec<Gpu>,
    conditions: Vec<Condition>,
}

/// What was measured, by GPU, in the form that it is published in.
pub(super) type Readings = BTreeMap<GpuUuid, Measured>;

impl Facts {
    /// The facts in `state`, in an order that does not depend on how it was put together. A condition of the same
    /// status as in `before` keeps its time; others have changed `at`.
    pub(super) fn of(state: &NodeState, before: &Self, at: &str) -> Self {
        let mut gpus = state.gpus.clone();
        gpus.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        for gpu in &mut gpus {
            gpu.measured = Measured::default();
            gpu.allocated.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
        }
        let conditions = std::iter::once(healthy(&gpus))
            .chain(state.conditions.iter().cloned())
            .map(|observed| observed.since(&before.conditions, at))
            .collect();
        Self { gpus, conditions }
    }

    /// Facts and measurements together.
    pub(super) fn with(&self, readings: &Readings) -> GpuNodeSpec {
        let mut gpus = self.gpus.clone();
        for gpu in &mut gpus {
            gpu.measured = readings.get(&gpu.uuid).copied().unwrap_or_default();
        }
        GpuNodeSpec::new(gpus, self.conditions.clone())
    }
}

impl Observed {
    fn since(self, before: &[Condition], at: &str) -> Condition {
        let same = |c: &&Condition| c.about == self.about && c.status == self.status;
        let since = before.iter().find(same).map(|c| c.last_transition_time.clone());
        Condition {
            about: self.about,
            status: self.status,
            reason: self.reason,
            message: self.message,
            last_transition_time: since.unwrap_or_else(|| at.to_owned()),
        }
    }
}

/// What to publish of `state`, where `shown` is what is published.
pub(super) fn readings(state: &NodeState, shown: &Readings) -> Readings {
    let each = state.gpus.iter().filter_map(|gpu| {
        let reading = state.readings.get(&gpu.uuid)?;
        let before = shown.get(&gpu.uuid).and_then(|m| m.encoder_load_percent);
        Some((gpu.uuid.clone(), reading.after(before)))
    });
    each.filter(|(_, measured)| *measured != Measured::default())
        .collect()
}

impl Reading {
    fn after(self, before: Option<LoadBand>) -> Measured {
        let band = |percent| before.map_or_else(|| LoadBand::of(percent), |band| band.follow(percent));
        Measured {
            encoder_load_percent: self.encoder_percent.map(band),
            encoder_sessions: self.encoder_sessions,
        }
    }
}

/// The condition that every node has.
pub(crate) const HEALTHY: &str = "Healthy";

fn healthy(gpus: &[Gpu]) -> Observed {
    let problems: Vec<_> = gpus
        .iter()
        .flat_map(|gpu| {
            gpu.health
                .problems()
                .into_iter()
                .map(|p| format!("{} {p}", gpu.uuid))
        })
        .collect();
    let (status, reason) = match (gpus.is_empty(), problems.is_empty()) {
        (true, _) => (ConditionStatus::Unknown, "NoGpu"),
        (_, true) => (ConditionStatus::True, "AllHealthy"),
        (_, false) => (ConditionStatus::False, "Unhealthy"),
    };
    Observed {
        about: HEALTHY.to_owned(),
        status,
        reason: reason.to_owned(),
        message: problems.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use penstock_core::gpu_node::ResourceHealth;

    use super::super::tests::support::{gpu, state, uuid};
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_as_long_as_its_status() {
        let mut state = state(&[gpu(0), gpu(1)]);
        let first = Facts::of(&state, &Facts::default(), "1");
        let same = Facts::of(&state, &first, "2");
        assert_eq!(same, first);
        state.gpus[1].health.nvenc = Some(ResourceHealth::unhealthy("XID 47"));
        let ill = Facts::of(&state, &same, "3");
        let [condition] = &ill.conditions[..] else {
            panic!("{ill:?}")
        };
        assert_eq!(condition.status, ConditionStatus::False);
        assert_eq!(condition.last_transition_time, "3");
        assert_eq!(condition.message, "GPU-1 nvenc: XID 47");
    }

    #[test]
    fn an_order_is_no_change() {
        let straight = Facts::of(&state(&[gpu(0), gpu(1)]), &Facts::default(), "1");
        let reversed = Facts::of(&state(&[gpu(1), gpu(0)]), &straight, "2");
        assert_eq!(straight, reversed);
    }

    #[test]
    fn a_reading_of_a_gpu_that_is_gone_is_not_published() {
        let mut state = state(&[gpu(0)]);
        let reading = Reading {
            encoder_percent: Some(47),
            encoder_sessions: None,
        };
        state.readings = BTreeMap::from([(uuid(0), reading), (uuid(7), reading)]);
        let shown = readings(&state, &Readings::new());
        assert_eq!(shown.keys().collect::<Vec<_>>(), [&uuid(0)]);
        assert_eq!(shown[&uuid(0)].encoder_load_percent, Some(LoadBand::of(40)));
    }
}
