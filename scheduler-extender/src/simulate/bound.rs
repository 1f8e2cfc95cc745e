//! The most encoder units that could be served, by a linear programme.
//!
//! ```text
//!   pods of demand d on pool p: x[d,p] ≥ 0, where one GPU of p is large enough for d
//!   Σp x[d,p] ≤ pods of d          no more than there are
//!   Σd amount(d) x[d,p] ≤ all of p each resource, summed over the pool's GPUs; the number of pods too
//!   maximise Σ units(d) x[d,p]
//! ```
//!
//! GPUs of a pool are poured together and pods may be cut in pieces, so no placement can serve more.

use anyhow::{Context as _, anyhow};
use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};

/// Equal pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// What each asks for; encoder units first.
    pub(crate) of_each: [u32; 4],
    /// How many there are.
    pub(crate) pods: u64,
}

/// Equal GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Supply {
    /// How many there are.
    pub(crate) gpus: usize,
    /// What each has, as in [`Demand`].
    pub(crate) of_each: [u32; 4],
    /// Pods that all their nodes take together.
    pub(crate) pods: u64,
}

/// The most units.
///
/// # Errors
/// What the solver says.
pub(crate) fn most_units(demands: &[Demand], supplies: &[Supply]) -> anyhow::Result<f64> {
    let mut programme = Programme::new(demands, supplies, |demand| f64::from(demand.of_each[0]));
    for (d, demand) in demands.iter().enumerate() {
        let of = programme.parts_of(d);
        let pods = demand.pods as f64;
        programme.problem.add_constraint(of, ComparisonOp::Le, pods);
    }
    programme.solve()
}

/// The most units where none of the demands is preferred: of each the same part is served. A scheduler that refuses
/// nothing that fits can't choose whom to serve, as [`most_units`] may. It may come out a little above this all the same,
/// since it is not all alike what happens not to fit.
///
/// # Errors
/// What the solver says.
pub(crate) fn most_units_without_choice(demands: &[Demand], supplies: &[Supply]) -> anyhow::Result<f64> {
    let mut programme = Programme::new(demands, supplies, |_| 0.0);
    let units = |demand: &Demand| f64::from(demand.of_each[0]) * demand.pods as f64;
    let all = demands.iter().map(units).sum();
    let served = programme.problem.add_var(all, (0.0, 1.0));
    for (d, demand) in demands.iter().enumerate() {
        let mut of = programme.parts_of(d);
        of.push((served, -(demand.pods as f64)));
        programme.problem.add_constraint(of, ComparisonOp::Eq, 0.0);
    }
    programme.solve()
}

/// What pods take of pools, whatever is wanted of them.
struct Programme {
    problem: Problem,
    /// Which demand, which supply, how many pods.
    parts: Vec<(usize, usize, Variable)>,
}

impl Programme {
    /// No more is taken than there is. Each pod of a demand is worth that much.
    fn new(demands: &[Demand], supplies: &[Supply], worth: impl Fn(&Demand) -> f64) -> Self {
        let mut problem = Problem::new(OptimizationDirection::Maximize);
        let mut parts = Vec::new();
        for (d, demand) in demands.iter().enumerate() {
            let large_enough = |supply: &Supply| (0..4).all(|i| demand.of_each[i] <= supply.of_each[i]);
            for (s, _) in supplies
                .iter()
                .enumerate()
                .filter(|(_, supply)| large_enough(supply))
            {
                let part = problem.add_var(worth(demand), (0.0, f64::INFINITY));
                parts.push((d, s, part));
            }
        }
        for (s, supply) in supplies.iter().enumerate() {
            let of = |amount: &dyn Fn(&Demand) -> f64| -> Vec<_> {
                let here = parts.iter().filter(|part| part.1 == s);
                here.map(|part| (part.2, amount(&demands[part.0]))).collect()
            };
            for i in 0..4 {
                let all = supply.gpus as f64 * f64::from(supply.of_each[i]);
                let amounts = of(&|demand| f64::from(demand.of_each[i]));
                problem.add_constraint(amounts, ComparisonOp::Le, all);
            }
            problem.add_constraint(of(&|_| 1.0), ComparisonOp::Le, supply.pods as f64);
        }
        Self { problem, parts }
    }

    fn parts_of(&self, demand: usize) -> Vec<(Variable, f64)> {
        let of = self.parts.iter().filter(|part| part.0 == demand);
        of.map(|part| (part.2, 1.0)).collect()
    }

    fn solve(self) -> anyhow::Result<f64> {
        let doing = "computing the bound of what could be served";
        let solved = self.problem.solve().context(doing)?;
        let interrupted = |_| anyhow!("{doing}: the solver stopped without a solution");
        Ok(solved.into_solution().map_err(interrupted)?.objective())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_go_where_they_leave_most_for_others() {
        // Either GPU alone could take either pod; both fit only if the hungry one is on the second.
        let demands = [
            Demand {
                of_each: [10, 80, 0, 1],
                pods: 1,
            },
            Demand {
                of_each: [40, 10, 0, 1],
                pods: 2,
            },
        ];
        let supplies = [
            Supply {
                gpus: 1,
                of_each: [80, 20, 0, 48],
                pods: 110,
            },
            Supply {
                gpus: 1,
                of_each: [10, 100, 0, 48],
                pods: 110,
            },
        ];
        let most = most_units(&demands, &supplies).unwrap();
        assert!((most - 90.0).abs() < 1e-6, "{most}");
    }

    #[test]
    fn no_more_pods_are_served_than_nodes_take() {
        let demands = [Demand {
            of_each: [1, 0, 0, 0],
            pods: 500,
        }];
        let supplies = [Supply {
            gpus: 8,
            of_each: [100, 100, 64, 48],
            pods: 110,
        }];
        assert!((most_units(&demands, &supplies).unwrap() - 110.0).abs() < 1e-6);
    }

    #[test]
    fn what_no_gpu_is_large_enough_for_is_not_served() {
        let demands = [Demand {
            of_each: [50, 0, 0, 0],
            pods: 1,
        }];
        let supplies = [Supply {
            gpus: 2,
            of_each: [30, 100, 64, 48],
            pods: 110,
        }];
        assert!(most_units(&demands, &supplies).unwrap().abs() < 1e-6);
    }

    #[test]
    fn without_a_choice_each_demand_is_served_in_part() {
        // SMs are short: the bound serves all of those that take few for their units, and half of the others.
        let demand = |mps| Demand {
            of_each: [10, mps, 0, 1],
            pods: 10,
        };
        let supply = Supply {
            gpus: 1,
            of_each: [200, 100, 64, 48],
            pods: 110,
        };
        let (few, many) = (demand(2), demand(16));
        let most = most_units(&[few, many], &[supply]).unwrap();
        assert!((most - 150.0).abs() < 1e-6, "{most}");
        // Of 180 % of the SMs asked for there are 100.
        let alike = most_units_without_choice(&[few, many], &[supply]).unwrap();
        assert!((alike - 200.0 / 1.8).abs() < 1e-6, "{alike}");
        // Where all find a place, both say so.
        let alike = most_units_without_choice(&[few], &[supply]).unwrap();
        assert!((alike - 100.0).abs() < 1e-6, "{alike}");
    }
}
