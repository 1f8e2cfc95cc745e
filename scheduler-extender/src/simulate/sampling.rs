//! Which nodes a kube-scheduler looks at for one pod.
//!
//! With many nodes it stops once enough of them have passed its own filters, and begins the next time where it stopped:
//! `percentageOfNodesToScore` in <https://kubernetes.io/docs/concepts/scheduling-eviction/scheduler-perf-tuning/>.

/// How many nodes are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sampling {
    /// All of them: `percentageOfNodesToScore: 100`
    All,
    /// kube-scheduler's own choice: 50 % of 100 nodes, 5 % of 5,625 and more, but at least 100 nodes
    Adaptive,
}

/// Where the scheduler goes on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundRobin {
    next: usize,
}

impl Sampling {
    /// How many of `nodes` are enough.
    pub(crate) fn enough(self, nodes: usize) -> usize {
        if self == Self::All || nodes < FEWEST {
            return nodes;
        }
        let percent = 50_usize.saturating_sub(nodes / 125).max(5);
        (nodes * percent / 100).max(FEWEST)
    }
}

/// Below this many nodes, none is left out.
const FEWEST: usize = 100;

impl RoundRobin {
    /// The nodes, by their number, that pass the scheduler's own filters and that it goes on with.
    pub(crate) fn take(
        &mut self,
        sampling: Sampling,
        nodes: usize,
        passes: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let enough = sampling.enough(nodes);
        let mut found = Vec::with_capacity(enough);
        let mut seen = 0;
        while seen < nodes && found.len() < enough {
            let node = (self.next + seen) % nodes;
            if passes(node) {
                found.push(node);
            }
            seen += 1;
        }
        self.next = (self.next + seen) % nodes.max(1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_looks_at_fewer_of_many_nodes() {
        let enough = |nodes| Sampling::Adaptive.enough(nodes);
        assert_eq!(
            [50, 99, 100, 160, 1213, 5000, 10_000].map(enough),
            [50, 99, 100, 100, 497, 500, 500]
        );
        assert_eq!(Sampling::All.enough(5000), 5000);
    }

    #[test]
    fn it_goes_on_where_it_stopped() {
        let mut turns = RoundRobin::default();
        let first = turns.take(Sampling::Adaptive, 300, |node| node % 2 == 0);
        let second = turns.take(Sampling::Adaptive, 300, |_| true);
        assert_eq!((first.len(), first[0], first[143]), (144, 0, 286));
        assert_eq!((second[0], second.len()), (287, 144));
    }
}
