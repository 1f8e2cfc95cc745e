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
use microlp::{ComparisonOp, OptimizationDirection, Problem};

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
    let mut problem = Problem::new(OptimizationDirection::Maximize);
    let mut parts = Vec::new();
    for (d, demand) in demands.iter().enumerate() {
        let large_enough = |supply: &Supply| (0..4).all(|i| demand.of_each[i] <= supply.of_each[i]);
        for (s, _) in supplies
            .iter()
            .enumerate()
            .filter(|(_, supply)| large_enough(supply))
        {
            let part = problem.add_var(f64::from(demand.of_each[0]), (0.0, f64::INFINITY));
            parts.push((d, s, part));
        }
    }
    for (d, demand) in demands.iter().enumerate() {
        let of: Vec<_> = parts
            .iter()
            .filter(|part| part.0 == d)
            .map(|part| (part.2, 1.0))
            .collect();
        problem.add_constraint(of.as_slice(), ComparisonOp::Le, demand.pods as f64);
    }
    for (s, supply) in supplies.iter().enumerate() {
        let of = |amount: &dyn Fn(&Demand) -> f64| -> Vec<_> {
            let here = parts.iter().filter(|part| part.1 == s);
            here.map(|part| (part.2, amount(&demands[part.0]))).collect()
        };
        for i in 0..4 {
            let all = supply.gpus as f64 * f64::from(supply.of_each[i]);
            problem.add_constraint(
                of(&|demand| f64::from(demand.of_each[i])).as_slice(),
                ComparisonOp::Le,
                all,
            );
        }
        problem.add_constraint(of(&|_| 1.0).as_slice(), ComparisonOp::Le, supply.pods as f64);
    }
    let solved = problem
        .solve()
        .context("computing the bound of what could be served")?;
    let interrupted =
        |_| anyhow!("computing the bound of what could be served: the solver stopped without a solution");
    let solution = solved.into_solution().map_err(interrupted)?;
    Ok(solution.objective())
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
}
