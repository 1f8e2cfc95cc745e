//! What may happen on a node, at random.

use proptest::collection::vec;
use proptest::prelude::*;

use penstock_core::device::Resource;
use penstock_core::pod_demand::ContainerKind;

/// What is offered of each GPU, and of how many.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    /// How many containers with `mps` each GPU takes, one number per GPU.
    pub(super) mps_clients: Vec<u32>,
    pub(super) steps: Vec<Step>,
    /// For what the kubelet leaves to chance.
    pub(super) seed: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Bind(Batch),
    /// A pod ends, of those that there are; the plugin hears of it as the API server tells, or only by podresources.
    End(usize),
    /// Resources of a GPU fall ill or are well again.
    Health(Health),
    RestartPlugin,
    RestartKubelet,
    /// The plugin reads podresources.
    List,
}

/// A container: its kind, encoder units, percent of the SMs, blocks of video memory.
pub(super) type Ask = (ContainerKind, u32, u32, u32);

/// Pods that are bound together.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) pods: Vec<(Vec<Ask>, By)>,
    /// Whether the kubelet admits them in the order of their binding.
    pub(super) in_order: bool,
    /// Whether the plugin hears of them as late as can be.
    pub(super) late: bool,
    /// What happens before the kubelet's nth call from the beginning of the batch.
    pub(super) meanwhile: Vec<(usize, Disturbance)>,
}

/// Who bound a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The penstock scheduler: to a GPU that has room, and never so that two pods that are under way could be
    /// confused, unless both go to one GPU.
    Penstock,
    /// The default scheduler, which knows of no GPUs.
    Default,
    /// Somebody who has written down a GPU without looking.
    Blindly(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Disturbance {
    RestartPlugin,
    RestartKubelet,
    Health(Health),
    List,
    End(usize),
    /// A pod that is under way is deleted. The kubelet goes on with it.
    Delete(usize),
    /// A pod that has not been begun fails for another reason.
    Reject(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Health {
    pub(super) gpu: usize,
    /// One resource, or all.
    pub(super) resource: Option<Resource>,
    pub(super) ill: bool,
}

pub(super) const GPUS: usize = 3;

pub(super) fn schedules() -> impl Strategy<Value = Schedule> {
    let clients = prop_oneof![3 => Just(48u32), 1 => 1..4u32];
    (vec(clients, GPUS), vec(step(), 1..14), any::<u64>()).prop_map(|(mps_clients, steps, seed)| Schedule {
        mps_clients,
        steps,
        seed,
    })
}

/// Without the extender, restarts and illness.
pub(super) fn calm_schedules() -> impl Strategy<Value = Schedule> {
    schedules().prop_map(|mut schedule| {
        schedule
            .steps
            .retain(|step| matches!(step, Step::Bind(_) | Step::End(_) | Step::List));
        for step in &mut schedule.steps {
            if let Step::Bind(batch) = step {
                batch.pods.iter_mut().for_each(|(_, by)| *by = By::Default);
                batch.in_order = true;
                batch.meanwhile.retain(|(_, disturbance)| disturbance.is_calm());
            }
        }
        schedule
    })
}

impl Disturbance {
    fn is_calm(self) -> bool {
        !matches!(self, Self::RestartPlugin | Self::RestartKubelet | Self::Health(_))
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => batch().prop_map(Step::Bind),
        5 => (0..20usize).prop_map(Step::End),
        2 => health().prop_map(Step::Health),
        1 => Just(Step::RestartPlugin),
        1 => Just(Step::RestartKubelet),
        2 => Just(Step::List),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    let by = prop_oneof![
        2 => vec(Just(By::Penstock), 3),
        2 => vec(Just(By::Default), 3),
        1 => vec(any_by(), 3),
    ];
    let pods = (vec(containers(), 1..4), by).prop_map(|(pods, by)| pods.into_iter().zip(by).collect());
    let meanwhile = prop_oneof![2 => Just(Vec::new()), 1 => vec((0..12usize, disturbance()), 1..4)];
    (pods, any::<bool>(), any::<bool>(), meanwhile).prop_map(
        |(pods, in_order, late, meanwhile): (Vec<(Vec<Ask>, By)>, _, _, _)| Batch {
            in_order: in_order || pods.iter().any(|(_, by)| *by != By::Penstock),
            pods,
            late,
            meanwhile,
        },
    )
}

fn any_by() -> impl Strategy<Value = By> {
    prop_oneof![
        Just(By::Penstock),
        Just(By::Default),
        (0..GPUS).prop_map(By::Blindly)
    ]
}

/// Few amounts, so that pods are often alike in part.
fn containers() -> impl Strategy<Value = Vec<Ask>> {
    let kind = prop_oneof![
        1 => Just(ContainerKind::Init), 1 => Just(ContainerKind::Sidecar), 4 => Just(ContainerKind::App)
    ];
    vec((kind, 0..3u32, 0..3u32, 0..2u32), 1..4).prop_map(|mut asks| {
        asks.sort_by_key(|(kind, ..)| *kind == ContainerKind::App);
        asks
    })
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        2 => Just(Disturbance::RestartPlugin),
        2 => Just(Disturbance::RestartKubelet),
        2 => health().prop_map(Disturbance::Health),
        1 => Just(Disturbance::List),
        2 => (0..20usize).prop_map(Disturbance::End),
        1 => (0..3usize).prop_map(Disturbance::Delete),
        1 => (0..3usize).prop_map(Disturbance::Reject),
    ]
}

fn health() -> impl Strategy<Value = Health> {
    let resource = proptest::option::of((0..3usize).prop_map(|i| Resource::ALL[i]));
    (0..GPUS, resource, any::<bool>()).prop_map(|(gpu, resource, ill)| Health { gpu, resource, ill })
}
