//! Many devices, kept by GPU.

use penstock_core::device::DeviceId;
use penstock_core::ids::GpuUuid;

/// A set of one resource's devices. The kubelet names them by the thousand, and they are of few GPUs: each GPU's name is
/// kept once, beside the numbers of its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Devices(
    /// In order, and so are the numbers; no GPU is without.
    Vec<(GpuUuid, Vec<u32>)>,
);

impl Devices {
    /// The first `count` devices of `gpu`, by number, after those in `first`, which all are of it too.
    pub(super) fn fill_up(first: &Self, gpu: &GpuUuid, from: &Self, count: usize) -> Self {
        let missing = count.saturating_sub(first.len());
        let has = first.numbers(gpu);
        let rest = from.numbers(gpu).iter().filter(|n| has.binary_search(n).is_err());
        let numbers = has.iter().chain(rest.take(missing)).copied();
        numbers.map(|number| DeviceId::new(gpu.clone(), number)).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(_, numbers)| numbers.len()).sum()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of them are `gpu`'s.
    pub(crate) fn on(&self, gpu: &GpuUuid) -> usize {
        self.numbers(gpu).len()
    }

    /// The GPUs that they are of.
    pub(crate) fn gpus(&self) -> impl ExactSizeIterator<Item = &GpuUuid> {
        self.0.iter().map(|(gpu, _)| gpu)
    }

    /// The numbers of those that are `gpu`'s, in order.
    pub(crate) fn numbers(&self, gpu: &GpuUuid) -> &[u32] {
        let of_gpu = self.0.iter().find(|(other, _)| other == gpu);
        of_gpu.map_or(&[], |(_, numbers)| numbers)
    }

    /// The first of them.
    pub(crate) fn first(&self) -> Option<DeviceId> {
        self.iter().next()
    }

    /// Each of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = DeviceId> {
        self.0
            .iter()
            .flat_map(|(gpu, numbers)| numbers.iter().map(|n| DeviceId::new(gpu.clone(), *n)))
    }

    /// Whether `id` is among them.
    pub(crate) fn contains(&self, id: &DeviceId) -> bool {
        self.numbers(id.gpu()).binary_search(&id.number()).is_ok()
    }

    /// Whether all of `others` are among them.
    pub(crate) fn contain_all(&self, others: &Self) -> bool {
        others.0.iter().all(|(gpu, numbers)| {
            let ours = self.numbers(gpu);
            numbers.iter().all(|n| ours.binary_search(n).is_ok())
        })
    }

    /// Whether any of `others` is among them.
    pub(crate) fn contain_any(&self, others: &Self) -> bool {
        others.0.iter().any(|(gpu, numbers)| {
            let ours = self.numbers(gpu);
            numbers.iter().any(|n| ours.binary_search(n).is_ok())
        })
    }
}

impl FromIterator<DeviceId> for Devices {
    fn from_iter<I: IntoIterator<Item = DeviceId>>(ids: I) -> Self {
        let mut by_gpu: Vec<(GpuUuid, Vec<u32>)> = Vec::new();
        for id in ids {
            match by_gpu.iter_mut().find(|(gpu, _)| gpu == id.gpu()) {
                Some((_, numbers)) => numbers.push(id.number()),
                None => by_gpu.push((id.gpu().clone(), vec![id.number()])),
            }
        }
        for (_, numbers) in &mut by_gpu {
            numbers.sort_unstable();
            numbers.dedup();
            numbers.shrink_to_fit();
        }
        by_gpu.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self(by_gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_the_same_in_whatever_order_it_is_told() {
        let a = devices(&[("b", 2), ("a", 7), ("a", 1)]);
        assert_eq!(a, devices(&[("a", 1), ("b", 2), ("a", 7), ("a", 1)]));
        assert_eq!((a.len(), a.on(&gpu("a")), a.on(&gpu("c"))), (3, 2, 0));
        let shown: Vec<_> = a.iter().map(|id| id.to_string()).collect();
        assert_eq!(shown, ["a::1", "a::7", "b::2"]);
        assert_eq!(a.gpus().collect::<Vec<_>>(), [&gpu("a"), &gpu("b")]);
        assert!(!a.is_empty() && devices(&[]).is_empty() && devices(&[]).first().is_none());
    }

    #[test]
    fn sets_are_held_against_each_other() {
        let a = devices(&[("a", 1), ("a", 3), ("b", 1)]);
        for (others, all, any) in [
            (devices(&[("a", 1), ("b", 1)]), true, true),
            (devices(&[("a", 1), ("a", 2)]), false, true),
            (devices(&[("a", 2), ("c", 1)]), false, false),
            (devices(&[]), true, false),
        ] {
            assert_eq!((a.contain_all(&others), a.contain_any(&others)), (all, any));
        }
        assert!(a.contains(&DeviceId::new(gpu("a"), 3)) && !a.contains(&DeviceId::new(gpu("b"), 3)));
    }

    #[test]
    fn what_is_handed_on_is_filled_up_with_the_lowest_numbers() {
        let from = devices(&[("a", 5), ("a", 1), ("a", 9), ("b", 0), ("a", 2)]);
        let filled = Devices::fill_up(&devices(&[("a", 5)]), &gpu("a"), &from, 3);
        assert_eq!(filled, devices(&[("a", 1), ("a", 2), ("a", 5)]));
    }

    fn devices(ids: &[(&str, u32)]) -> Devices {
        ids.iter().map(|(uuid, n)| DeviceId::new(gpu(uuid), *n)).collect()
    }

    fn gpu(uuid: &str) -> GpuUuid {
        GpuUuid::new(uuid).unwrap()
    }
}
