//! Who has what of which GPU, to be told to others.

use std::collections::BTreeMap;

use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::Resources;

use super::usage::{Taken, taken};
use super::{Assigner, GpuOffer, Held};

/// The GPUs of this node, and who has what of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// All that are offered.
    pub(crate) gpus: Vec<GpuOffer>,
    /// What pods hold, by pod.
    pub(crate) slices: Vec<Slice>,
}

/// What one pod holds of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The pod's namespace; empty as long as it is not known whose the slice is.
    pub(crate) namespace: String,
    /// The pod's name; empty as well.
    pub(crate) pod: String,
    /// Which pod of that name, where pods are watched.
    pub(crate) uid: Option<PodUid>,
    /// The GPU.
    pub(crate) gpu: GpuUuid,
    /// How much of it. What an init container handed on counts once.
    pub(crate) amounts: Resources,
    /// How many clients of its MPS daemon are kept for the pod.
    pub(crate) mps_clients: u32,
}

impl Assigner {
    /// Who has what, as far as it is known. Pods that have ended have nothing.
    pub(crate) fn occupancy(&self) -> Occupancy {
        Occupancy {
            gpus: self.gpus.values().cloned().collect(),
            slices: self.slices(),
        }
    }

    fn slices(&self) -> Vec<Slice> {
        let open = self.under_way.as_held(&self.pods);
        let mut by_pod: BTreeMap<(&str, &str), Vec<&Held>> = BTreeMap::new();
        for held in self.usage.counted(&self.pods).chain(&open) {
            by_pod.entry((&held.namespace, &held.pod)).or_default().push(held);
        }
        by_pod
            .iter()
            .flat_map(|((namespace, pod), held)| self.slices_of(namespace, pod, held))
            .collect()
    }

    /// One slice; of pods that another version of this program has let be split, several.
    fn slices_of(&self, namespace: &str, pod: &str, held: &[&Held]) -> Vec<Slice> {
        let slice = |(gpu, taken): (GpuUuid, Taken)| Slice {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: self.pods.by_name(namespace, pod).map(|pod| pod.uid.clone()),
            gpu,
            amounts: taken.amounts,
            mps_clients: taken.mps_clients,
        };
        let taken = taken(&self.pods, held.iter().copied());
        taken.into_iter().map(slice).collect()
    }
}
