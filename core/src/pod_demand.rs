//! What all containers of a pod take together, counted as Kubernetes counts.
//!
//! ```text
//!   init containers, in order        then          at once
//!   ┌──────┐                                       ┌─────┐ ┌─────┐
//!   │ init │                                       │ app │ │ app │
//!   └──────┘┌───────────────────────────────────────────────────┐
//!           │ sidecar (an init container that goes on)           │
//!           └───────────────────────────────────────────────────┘
//!           ┌──────┐
//!           │ init │   runs beside the sidecars started before it
//!           └──────┘
//! ```
//!
//! A pod takes the most that runs at one time, of each resource by itself. See "Resource sharing within
//! containers" in <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/> and
//! <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/>.

use serde::{Deserialize, Serialize};

use crate::packing::Resources;
use crate::units::{EncoderUnits, SmPercent, VramBlocks};

/// When a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: once started, it runs as long as the pod does.
    Sidecar,
    /// Starts when all init containers are through.
    App,
}

/// What a pod takes of one GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PodDemand {
    /// The three resources.
    pub resources: Resources,
    /// The most containers with `mps` that run at one time. Each is one or several clients of an MPS daemon.
    pub mps_containers: u32,
}

/// Counts the containers of a pod, given in Kubernetes' order: init containers and sidecars as they are listed.
/// (Where app containers stand does not matter.) A sum that no number can hold becomes the largest number, which
/// fits on no GPU.
pub fn pod_demand(containers: impl IntoIterator<Item = (ContainerKind, Resources)>) -> PodDemand {
    let mut sidecars = NOTHING;
    let mut starting = NOTHING;
    let mut apps = NOTHING;
    for (kind, demand) in containers {
        let amounts = amounts(demand);
        match kind {
            ContainerKind::Init => starting = most(starting, sum(sidecars, amounts)),
            ContainerKind::Sidecar => sidecars = sum(sidecars, amounts),
            ContainerKind::App => apps = sum(apps, amounts),
        }
    }
    demand(most(starting, sum(sidecars, apps)))
}

/// Encoder units, SM percent, video memory, containers with `mps`.
type Amounts = [u32; 4];

const NOTHING: Amounts = [0; 4];

fn amounts(demand: Resources) -> Amounts {
    let mps = demand.mps.0;
    [demand.nvenc.0, mps, demand.vram.0, u32::from(mps > 0)]
}

fn demand([nvenc, mps, vram, mps_containers]: Amounts) -> PodDemand {
    PodDemand {
        resources: Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        },
        mps_containers,
    }
}

fn sum(a: Amounts, b: Amounts) -> Amounts {
    std::array::from_fn(|i| a[i].saturating_add(b[i]))
}

fn most(a: Amounts, b: Amounts) -> Amounts {
    std::array::from_fn(|i| a[i].max(b[i]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ContainerKind::{App, Init, Sidecar};
    use super::*;

    /// A story, containers by their encoder units, and what the pod takes.
    type Row = (&'static str, &'static [(ContainerKind, u32)], u32);

    const TABLE: &[Row] = &[
        ("nothing", &[], 0),
        ("one application", &[(App, 13)], 13),
        ("applications add up", &[(App, 13), (App, 7)], 20),
        (
            "init containers run one after the other",
            &[(Init, 5), (Init, 3)],
            5,
        ),
        (
            "a small init container costs nothing",
            &[(Init, 5), (App, 13)],
            13,
        ),
        ("a large one counts", &[(Init, 20), (App, 13)], 20),
        (
            "a sidecar adds to the application",
            &[(Sidecar, 3), (App, 13)],
            16,
        ),
        (
            "and to init containers after it",
            &[(Sidecar, 3), (Init, 15), (App, 13)],
            18,
        ),
        (
            "but not to those before it",
            &[(Init, 15), (Sidecar, 3), (App, 11)],
            15,
        ),
        (
            "sidecars start in order",
            &[(Sidecar, 1), (Init, 9), (Sidecar, 2), (Init, 9), (App, 1)],
            12,
        ),
        ("too much is the most", &[(App, u32::MAX), (App, 1)], u32::MAX),
    ];

    #[test]
    fn a_pod_takes_what_kubernetes_counts() {
        for (story, containers, expected) in TABLE {
            let asks = containers.iter().map(|&(kind, units)| (kind, nvenc(units)));
            assert_eq!(pod_demand(asks).resources, nvenc(*expected), "{story}");
        }
    }

    #[test]
    fn each_resource_is_counted_by_itself() {
        let init = resources(20, 0, 1);
        let app = resources(13, 30, 4);
        let demand = pod_demand([(Init, init), (App, app), (App, nvenc(1))]);
        assert_eq!(demand.resources, resources(20, 30, 4));
        assert_eq!(demand.mps_containers, 1);
    }

    fn containers() -> impl Strategy<Value = Vec<(ContainerKind, Resources)>> {
        let kind = prop_oneof![Just(Init), Just(Sidecar), Just(App)];
        let asks = (0..40u32, 0..3u32, 0..9u32).prop_map(|(n, m, v)| resources(n, m, v));
        proptest::collection::vec((kind, asks), 0..10)
    }

    proptest! {
        /// The model starts and ends containers in the order that a kubelet does, and looks at every moment.
        #[test]
        fn a_pod_takes_the_most_that_runs_at_one_time(pod in containers()) {
            let moments = moments(&pod);
            let peak = |amount: fn(&Resources) -> u32| {
                moments.iter().map(|running| running.iter().map(amount).sum::<u32>()).max().unwrap_or(0)
            };
            let demand = pod_demand(pod);
            prop_assert_eq!(demand.resources.nvenc.0, peak(|r| r.nvenc.0));
            prop_assert_eq!(demand.resources.mps.0, peak(|r| r.mps.0));
            prop_assert_eq!(demand.resources.vram.0, peak(|r| r.vram.0));
            prop_assert_eq!(demand.mps_containers, peak(|r| u32::from(r.mps.0 > 0)));
        }
    }

    /// Who runs, at every moment of a pod's start.
    fn moments(pod: &[(ContainerKind, Resources)]) -> Vec<Vec<Resources>> {
        let mut running = Vec::new();
        let mut moments = Vec::new();
        for (kind, demand) in pod.iter().filter(|(kind, _)| *kind != App) {
            running.push(*demand);
            moments.push(running.clone());
            if *kind == Init {
                running.pop();
            }
        }
        for (_, demand) in pod.iter().filter(|(kind, _)| *kind == App) {
            running.push(*demand);
            moments.push(running.clone());
        }
        moments
    }

    fn resources(nvenc: u32, mps: u32, vram: u32) -> Resources {
        Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        }
    }

    fn nvenc(units: u32) -> Resources {
        resources(units, 0, 0)
    }
}
