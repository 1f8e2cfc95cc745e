//! What pods use of a GPU, and who uses more of the encoder than it has.
//!
//! ```text
//!  what NVML says of processes ──► by_pod ──► PodLoad ──► encoder_use ──► Watch: over its slice, and for how long
//! ```
//!
//! What is not known is absent, it is not 0.

use std::collections::BTreeMap;

use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::units::EncoderUnits;

use crate::nvml::measures::{EncoderSession, Measures};

/// What one pod uses of one GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodLoad {
    /// Percent of the encoders' time.
    pub(crate) encoder_percent: Option<u32>,
    /// Percent of the SMs' time.
    pub(crate) sm_percent: Option<u32>,
    /// Bytes of memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Its encoder sessions; `None` where NVML can't tell of any.
    pub(crate) sessions: Option<Sessions>,
}

/// Encoder sessions, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    /// How many.
    pub(crate) count: u32,
    /// Frames per second of all.
    pub(crate) fps: u32,
    /// Pixels per second of all.
    pub(crate) pixel_rate: u64,
}

impl Sessions {
    /// The sum of `sessions`.
    pub(crate) fn of<'a>(sessions: impl IntoIterator<Item = &'a EncoderSession>) -> Self {
        sessions.into_iter().fold(Self::default(), Self::and)
    }

    fn and(self, session: &EncoderSession) -> Self {
        let pixels = u64::from(session.width) * u64::from(session.height);
        Self {
            count: self.count + 1,
            fps: self.fps.saturating_add(session.fps),
            pixel_rate: self.pixel_rate.saturating_add(pixels * u64::from(session.fps)),
        }
    }
}

impl PodLoad {
    /// How much of the encoder that is, where the GPU's encoders have `all` units: by their time where that is known,
    /// since it counts whatever preset and codec; else by the pixels.
    pub(crate) fn encoder_use(&self, all: EncoderUnits) -> Option<EncoderUnits> {
        let by_time = |percent: u32| EncoderUnits((u64::from(all.0) * u64::from(percent) / 100) as u32);
        let by_pixels = |sessions: Sessions| EncoderUnits::from_pixel_rate(sessions.pixel_rate);
        self.encoder_percent
            .map(by_time)
            .or_else(|| self.sessions.map(by_pixels))
    }
}

/// What each pod uses of a GPU. `pod_of` tells the pod of a process; one that is in none is left out.
pub(crate) fn by_pod(
    measures: &Measures,
    mut pod_of: impl FnMut(u32) -> Option<PodUid>,
) -> BTreeMap<PodUid, PodLoad> {
    let mut pods: BTreeMap<PodUid, PodLoad> = BTreeMap::new();
    for (pid, process) in &measures.processes {
        let Some(pod) = pod_of(*pid) else { continue };
        let load = pods.entry(pod).or_default();
        add(&mut load.encoder_percent, process.encoder_percent);
        add(&mut load.sm_percent, process.sm_percent);
        add(&mut load.memory_bytes, process.memory_bytes);
    }
    let Some(sessions) = &measures.sessions else {
        return pods;
    };
    for session in sessions {
        let Some(pod) = pod_of(session.pid) else { continue };
        let sum = &mut pods.entry(pod).or_default().sessions;
        *sum = Some(sum.unwrap_or_default().and(session));
    }
    // Sessions can be counted here, so a pod without any has none.
    for load in pods.values_mut() {
        load.sessions.get_or_insert_default();
    }
    pods
}

fn add<T: std::ops::Add<Output = T>>(sum: &mut Option<T>, more: Option<T>) {
    *sum = match (sum.take(), more) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
}

/// Sees who is over its slice for a while: a load of one moment is nobody's business.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// For how many measurements in a row.
    over: BTreeMap<(PodUid, GpuUuid), u32>,
}

/// What a pod has of a GPU's encoder, and what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncoderUse {
    /// The pod.
    pub(crate) pod: PodUid,
    /// The GPU.
    pub(crate) gpu: GpuUuid,
    /// What it uses.
    pub(crate) used: EncoderUnits,
    /// What it has.
    pub(crate) slice: EncoderUnits,
    /// What the GPU's encoders have in all.
    pub(crate) all: EncoderUnits,
}

impl Watch {
    /// Takes the newest measurement of all pods and gives those that have been over their slice [`FOR_LONG`] times in
    /// a row and still are.
    pub(crate) fn take(&mut self, uses: &[EncoderUse]) -> Vec<EncoderUse> {
        let before = std::mem::take(&mut self.over);
        for one in uses.iter().filter(|one| one.is_over()) {
            let key = (one.pod.clone(), one.gpu.clone());
            let times = before.get(&key).map_or(1, |times| times + 1);
            self.over.insert(key, times);
        }
        let for_long = |one: &&EncoderUse| {
            let times = self.over.get(&(one.pod.clone(), one.gpu.clone()));
            times.is_some_and(|times| *times >= FOR_LONG)
        };
        uses.iter().filter(for_long).cloned().collect()
    }
}

impl EncoderUse {
    /// By more than a tenth, and by more than NVML's own roughness: it counts whole percents of the GPU.
    fn is_over(&self) -> bool {
        let tolerance = self.slice.0.div_ceil(10).max(self.all.0.div_ceil(50));
        self.used.0 > self.slice.0.saturating_add(tolerance)
    }
}

/// At a measurement every 5 s, 15 s.
const FOR_LONG: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvml::measures::{Codec, ProcessLoad};

    #[test]
    fn a_pods_processes_are_summed_and_those_of_no_pod_left_out() {
        let load = |memory, encoder| ProcessLoad {
            memory_bytes: memory,
            encoder_percent: encoder,
            sm_percent: None,
        };
        let measures = Measures {
            processes: BTreeMap::from([
                (1, load(Some(100), Some(5))),
                (2, load(Some(10), None)),
                (3, load(None, Some(90))),
            ]),
            sessions: Some(vec![session(1, 1280, 720, 30), session(2, 1920, 1080, 60)]),
            ..nothing()
        };
        let pods = by_pod(&measures, |pid| (pid < 3).then(|| pod("a")));
        assert_eq!(pods.len(), 1);
        let a = &pods[&pod("a")];
        assert_eq!(
            (a.memory_bytes, a.encoder_percent, a.sm_percent),
            (Some(110), Some(5), None)
        );
        let sessions = a.sessions.unwrap();
        assert_eq!((sessions.count, sessions.fps), (2, 90));
        assert_eq!(sessions.pixel_rate, 1280 * 720 * 30 + 1920 * 1080 * 60);
    }

    #[test]
    fn what_nvml_cannot_tell_is_absent_and_none_is_0() {
        let process = |sessions| Measures {
            processes: BTreeMap::from([(1, ProcessLoad::default())]),
            sessions,
            ..nothing()
        };
        let of = |sessions| by_pod(&process(sessions), |_| Some(pod("a")))[&pod("a")].clone();
        assert_eq!(of(None), PodLoad::default());
        assert_eq!(of(Some(Vec::new())).sessions, Some(Sessions::default()));
        assert_eq!(PodLoad::default().encoder_use(EncoderUnits(100)), None);
    }

    #[test]
    fn time_of_the_encoder_goes_before_pixels() {
        let sessions = Some(Sessions::of(&[session(1, 1920, 1080, 60)]));
        let by_pixels = PodLoad {
            sessions,
            ..PodLoad::default()
        };
        assert_eq!(by_pixels.encoder_use(EncoderUnits(270)), Some(EncoderUnits(12)));
        let by_time = PodLoad {
            encoder_percent: Some(20),
            ..by_pixels
        };
        assert_eq!(by_time.encoder_use(EncoderUnits(270)), Some(EncoderUnits(54)));
    }

    #[test]
    fn over_a_slice_is_who_stays_over_it() {
        let uses = |used| {
            vec![EncoderUse {
                pod: pod("a"),
                gpu: "GPU-1".parse().unwrap(),
                used: EncoderUnits(used),
                slice: EncoderUnits(13),
                all: EncoderUnits(124),
            }]
        };
        let mut watch = Watch::default();
        // 13, a tenth, and 2 % of 124 are 16.
        let said = [20, 20, 16, 20, 20, 17, 20, 3].map(|used| watch.take(&uses(used)).len());
        assert_eq!(said, [0, 0, 0, 0, 0, 1, 1, 0]);
        assert!(watch.over.is_empty());
    }

    fn nothing() -> Measures {
        Measures {
            gpu: "GPU-1".parse().unwrap(),
            encoder_percent: None,
            sm_percent: None,
            memory_used_bytes: None,
            sessions: None,
            processes: BTreeMap::new(),
        }
    }

    fn session(pid: u32, width: u32, height: u32, fps: u32) -> EncoderSession {
        EncoderSession {
            pid,
            codec: Codec::H264,
            width,
            height,
            fps,
            latency_us: 1000,
        }
    }

    fn pod(uid: &str) -> PodUid {
        PodUid::new(uid).unwrap()
    }
}
