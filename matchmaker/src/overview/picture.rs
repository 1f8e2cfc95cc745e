//! What the overview shows: plain data, put together from all that is known. What is not known is absent: it is not 0.
//!
//! It names nodes, GPUs, pods and streamers. It names no player, no session (whose name lets others watch) and no address.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use penstock_core::gpu_node::{self, Condition, ConditionStatus, GpuNodeSpec, LoadBand};
use penstock_core::ids::{ApplicationName, GpuUuid, NodeName, PodUid, StreamerId};
use penstock_core::packing::Resources;
use penstock_core::units::EncoderUnits;
use penstock_core::wire::agent::{self, GpuStatus, SliceStatus};
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use penstock_core::wire::turn::TurnStatus;
use serde::Serialize;

use super::places::Heard;
use crate::events::Survey;

/// Everything at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Sums.
    pub totals: Totals,
    /// Those who wait, at this matchmaker.
    pub queue: Queue,
    /// Nodes with GPUs.
    pub nodes: Vec<Node>,
    /// Streamers whose GPU is not known.
    pub elsewhere: Vec<Slice>,
    /// TURN servers that were found; absent where none are looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_servers: Option<Vec<TurnServer>>,
    /// Who can't be heard, so that what they said last is shown, or nothing.
    pub silent: Vec<Source>,
}

/// Who says where streamers are, and what there is of GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The stand-alone agent.
    Agent,
    /// The API server, about pods.
    Pods,
    /// The API server, about GpuNodes.
    GpuNodes,
}

/// Sums over all that is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// GPUs, MIG instances and software encoders.
    pub gpus: usize,
    /// What all encoders offer; absent where some GPU's is not known, or there are no GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_units: Option<u32>,
    /// What slices hold of that.
    pub reserved_units: u32,
    /// How many streamers say how they stand.
    pub streamers: usize,
    /// How many of them take a player and have none.
    pub free: usize,
    /// Players on them, those who are away too.
    pub players: u32,
    /// How many of them are away, and may come back.
    pub away: u32,
    /// Viewers on them.
    pub viewers: u32,
}

/// How the queue stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// How many wait to play.
    pub waiting: usize,
    /// How long the one has waited who waits longest; absent where nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_wait_seconds: Option<u64>,
    /// How long somebody who comes now may expect to wait; absent while that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_wait_seconds: Option<u64>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name in the cluster; absent for the machine of the stand-alone agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// What is wrong with it, in words.
    pub problems: Vec<String>,
}

/// A GPU, MIG instance or software encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Its name.
    pub uuid: GpuUuid,
    /// What it is, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What its encoder offers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_units: Option<EncoderUnits>,
    /// What slices hold of that.
    pub reserved_units: u32,
    /// The load of its encoder, as it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_load: Option<Load>,
    /// Encoder sessions that are open, of whatever process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_sessions: Option<u32>,
    /// What is wrong with it, in words.
    pub problems: Vec<String>,
    /// What is taken of it.
    pub slices: Vec<Slice>,
}

/// A load in percent, as exactly as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// At least.
    pub from_percent: u8,
    /// At most.
    pub to_percent: u8,
}

/// A part of a GPU that is given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    /// The name of its pod, of the agent's slice, or else of its streamer.
    pub name: String,
    /// Encoder units.
    pub units: EncoderUnits,
    /// Percent of the SMs; absent where it has no share of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_percent: Option<u32>,
    /// Video memory in MiB; absent where it has no share of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_mib: Option<u64>,
    /// How it stands.
    pub state: State,
    /// What is to be said about it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its streamer, if one says how it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streamer: Option<Streamer>,
}

/// How a slice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It takes a player, and has none.
    Free,
    /// It has a player at least.
    Playing,
    /// It shows no picture yet.
    Starting,
    /// It ends, once its players leave.
    Draining,
    /// It is held, and no streamer in it says how it stands.
    Reserved,
}

/// What a streamer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Streamer {
    /// Its name.
    pub id: StreamerId,
    /// What it streams, where its operator named that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationName>,
    /// The size and rate, such as `1280x720@30`.
    pub stream: String,
    /// What that takes of an encoder.
    pub units: EncoderUnits,
    /// Players, those who are away too.
    pub players: u32,
    /// How many it takes.
    pub max_players: u32,
    /// How many players are away, and may come back.
    pub away: u32,
    /// Viewers.
    pub viewers: u32,
}

/// A TURN server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnServer {
    /// Whether it takes no new clients.
    pub draining: bool,
    /// Allocations alive.
    pub allocations: u64,
    /// How many there may be.
    pub max_allocations: u64,
    /// Bytes of payload that it relays in a second, both ways together.
    pub bytes_per_second: u64,
}

/// All that is known.
#[derive(Debug, Clone)]
pub struct Known {
    /// The lobby.
    pub survey: Survey,
    /// The agent's slices.
    pub slices: Heard<Vec<SliceStatus>>,
    /// The agent's GPUs.
    pub gpus: Vec<GpuStatus>,
    /// Where each pod's streamer listens.
    pub pods: Heard<BTreeMap<PodUid, SocketAddr>>,
    /// What each node says about its GPUs.
    pub nodes: Heard<BTreeMap<NodeName, GpuNodeSpec>>,
    /// TURN servers, where they are looked for.
    pub turn: Option<Vec<TurnStatus>>,
}

/// Puts it together.
pub fn overview(known: &Known) -> Overview {
    let streamers = known.survey.streamers.iter();
    let mut unplaced = Streamers(streamers.map(|(address, status)| (*address, status)).collect());
    let here = known.slices.last();
    let here = here.and_then(|slices| this_machine(slices, &known.gpus, &mut unplaced));
    let pods = known.pods.last();
    let nodes = known.nodes.last().into_iter().flatten();
    let nodes = nodes.map(|(name, spec)| node(name, spec, pods, &mut unplaced));
    let nodes: Vec<_> = here.into_iter().chain(nodes).collect();
    Overview {
        totals: totals(&nodes, &known.survey),
        queue: queue(&known.survey),
        elsewhere: unplaced.rest(),
        nodes,
        turn_servers: known.turn.as_deref().map(turn_servers),
        silent: silent(known),
    }
}

/// The streamers that are in no slice so far.
struct Streamers<'a>(BTreeMap<SocketAddr, &'a StreamerStatus>);

impl<'a> Streamers<'a> {
    fn take(&mut self, address: Option<SocketAddr>) -> Option<&'a StreamerStatus> {
        self.0.remove(&address?)
    }

    fn rest(self) -> Vec<Slice> {
        let slice = |status: &StreamerStatus| Slice {
            name: status.streamer_id.to_string(),
            units: status.units,
            sm_percent: None,
            vram_mib: None,
            state: state(status),
            note: None,
            streamer: Some(streamer(status)),
        };
        let mut rest: Vec<_> = self.0.into_values().map(slice).collect();
        rest.sort_by(|a, b| a.name.cmp(&b.name));
        rest
    }
}

fn this_machine(slices: &[SliceStatus], gpus: &[GpuStatus], streamers: &mut Streamers<'_>) -> Option<Node> {
    let mut on: BTreeMap<&GpuUuid, Vec<Slice>> = gpus.iter().map(|gpu| (&gpu.uuid, Vec::new())).collect();
    for slice in slices {
        on.entry(&slice.gpu)
            .or_default()
            .push(slice_of_agent(slice, streamers));
    }
    let gpu = |(uuid, slices): (&GpuUuid, Vec<Slice>)| {
        let offered = gpus.iter().find(|gpu| gpu.uuid == *uuid);
        let unhealthy = offered.into_iter().flat_map(|gpu| &gpu.unhealthy);
        Gpu {
            uuid: uuid.clone(),
            model: offered.map(|gpu| gpu.model.clone()),
            encoder_units: offered.map(|gpu| gpu.capacity.nvenc),
            reserved_units: reserved(&slices),
            encoder_load: None,
            encoder_sessions: None,
            problems: unhealthy.map(|(what, why)| format!("{what}: {why}")).collect(),
            slices,
        }
    };
    let gpus: Vec<_> = on.into_iter().map(gpu).collect();
    (!gpus.is_empty()).then_some(Node {
        name: None,
        gpus,
        problems: Vec::new(),
    })
}

fn slice_of_agent(slice: &SliceStatus, streamers: &mut Streamers<'_>) -> Slice {
    let status = streamers.take(slice.address);
    let process = match slice.state {
        agent::SliceState::Starting => State::Starting,
        agent::SliceState::Running => status.map_or(State::Reserved, state),
        agent::SliceState::BackingOff => State::Reserved,
        agent::SliceState::Stopping => State::Draining,
    };
    let ended = (slice.state == agent::SliceState::BackingOff).then(|| {
        let how = slice.last_exit.as_deref().unwrap_or("it is not known how");
        format!("Its streamer ended ({how}) and is started again.")
    });
    held(slice.id.to_string(), slice.demand, process, ended, status)
}

fn node(
    name: &NodeName,
    spec: &GpuNodeSpec,
    pods: Option<&BTreeMap<PodUid, SocketAddr>>,
    streamers: &mut Streamers<'_>,
) -> Node {
    let gpus = spec.gpus.iter().map(|gpu| gpu_of_node(gpu, pods, streamers));
    Node {
        name: Some(name.clone()),
        gpus: gpus.collect(),
        problems: spec.conditions.iter().filter_map(problem).collect(),
    }
}

/// What a condition says where it does not hold; all of ours are good while they do.
fn problem(condition: &Condition) -> Option<String> {
    let Condition {
        about,
        reason,
        message,
        ..
    } = condition;
    let why = if message.is_empty() { reason } else { message };
    (condition.status == ConditionStatus::False).then(|| format!("Not {about}: {why}"))
}

fn gpu_of_node(
    gpu: &gpu_node::Gpu,
    pods: Option<&BTreeMap<PodUid, SocketAddr>>,
    streamers: &mut Streamers<'_>,
) -> Gpu {
    let mut allocated: Vec<_> = gpu.allocated.iter().collect();
    allocated.sort_by_key(|held| (&held.namespace, &held.pod, &held.pod_uid));
    let slice = |allocation: &gpu_node::Allocation| {
        let address = pods.and_then(|pods| pods.get(&allocation.pod_uid));
        let status = streamers.take(address.copied());
        let process = status.map_or(State::Reserved, state);
        held(
            allocation.pod.clone(),
            allocation.resources(),
            process,
            None,
            status,
        )
    };
    let slices: Vec<_> = allocated.into_iter().map(slice).collect();
    Gpu {
        uuid: gpu.uuid.clone(),
        model: Some(gpu.model.clone()),
        encoder_units: Some(gpu.capacity.nvenc),
        reserved_units: reserved(&slices),
        encoder_load: gpu.measured.encoder_load_percent.map(load),
        encoder_sessions: gpu.measured.encoder_sessions,
        problems: gpu.health.problems(),
        slices,
    }
}

fn held(
    name: String,
    demand: Resources,
    state: State,
    note: Option<String>,
    status: Option<&StreamerStatus>,
) -> Slice {
    let vram_mib = demand.vram.bytes() >> 20;
    Slice {
        name,
        units: demand.nvenc,
        sm_percent: (demand.mps.0 > 0).then_some(demand.mps.0),
        vram_mib: (vram_mib > 0).then_some(vram_mib),
        state,
        note,
        streamer: status.map(streamer),
    }
}

fn reserved(slices: &[Slice]) -> u32 {
    slices
        .iter()
        .fold(0, |sum, slice| slice.units.0.saturating_add(sum))
}

fn load(band: LoadBand) -> Load {
    Load {
        from_percent: band.percent(),
        to_percent: band.highest_percent(),
    }
}

fn state(status: &StreamerStatus) -> State {
    match status.state {
        StreamerState::Starting => State::Starting,
        StreamerState::Draining => State::Draining,
        StreamerState::Busy => State::Playing,
        StreamerState::Free if status.players > 0 => State::Playing,
        StreamerState::Free => State::Free,
    }
}

fn streamer(status: &StreamerStatus) -> Streamer {
    Streamer {
        id: status.streamer_id.clone(),
        application: status.application.clone(),
        stream: status.stream.to_string(),
        units: status.units,
        players: status.players,
        max_players: status.max_players,
        away: status.away,
        viewers: status.viewers,
    }
}

fn totals(nodes: &[Node], survey: &Survey) -> Totals {
    let gpus = || nodes.iter().flat_map(|node| &node.gpus);
    let streamers = || survey.streamers.iter().map(|(_, status)| status);
    let sum = |of: fn(&StreamerStatus) -> u32| streamers().map(of).fold(0, u32::saturating_add);
    let offered: Option<u32> = gpus()
        .map(|gpu| Some(gpu.encoder_units?.0))
        .try_fold(0_u32, |sum, units| Some(sum.saturating_add(units?)));
    Totals {
        gpus: gpus().count(),
        encoder_units: offered.filter(|_| gpus().next().is_some()),
        reserved_units: gpus().map(|gpu| gpu.reserved_units).fold(0, u32::saturating_add),
        streamers: survey.streamers.len(),
        free: streamers().filter(|status| state(status) == State::Free).count(),
        players: sum(|status| status.players),
        away: sum(|status| status.away),
        viewers: sum(|status| status.viewers),
    }
}

fn queue(survey: &Survey) -> Queue {
    let queue = survey.queue;
    Queue {
        waiting: queue.waiting,
        longest_wait_seconds: queue.longest_wait.map(|wait| wait.as_secs()),
        expected_wait_seconds: queue.expected_wait_seconds,
    }
}

/// Fullest first: they have no name to go by but their address, which is not told.
fn turn_servers(all: &[TurnStatus]) -> Vec<TurnServer> {
    let mut servers: Vec<_> = all
        .iter()
        .map(|status| TurnServer {
            draining: status.draining,
            allocations: status.allocations,
            max_allocations: status.max_allocations,
            bytes_per_second: status.bytes_per_second,
        })
        .collect();
    servers.sort_by_key(|server| std::cmp::Reverse((server.allocations, server.bytes_per_second)));
    servers
}

fn silent(known: &Known) -> Vec<Source> {
    let silent = [
        (Source::Agent, known.slices.is_silent()),
        (Source::Pods, known.pods.is_silent()),
        (Source::GpuNodes, known.nodes.is_silent()),
    ];
    let silent = silent.into_iter().filter(|(_, silent)| *silent);
    silent.map(|(source, _)| source).collect()
}

#[cfg(test)]
mod tests;
