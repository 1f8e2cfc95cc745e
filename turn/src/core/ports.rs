//! Relay ports: a range, drawn from at random so that nobody can guess the next one (RFC 8656, section 7.2).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rand::{Rng, RngExt as _};

/// A range of ports, at least one, never port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a range of ports: give FIRST-LAST with 1 <= FIRST <= LAST <= 65535, such as 49152-65535"
)]
pub struct BadPortRange(String);

impl PortRange {
    /// How many ports there are in it.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = BadPortRange;

    fn from_str(text: &str) -> Result<Self, BadPortRange> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first >= 1 && first <= last).then_some(Self { first, last })
        };
        parse().ok_or_else(|| BadPortRange(text.to_owned()))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Which ports will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// Every port.
    Any,
    /// Even ones (EVEN-PORT, RFC 8656, section 18.6).
    Even,
    /// Even ones whose neighbour is free too; the neighbour is taken along.
    EvenPair,
}

/// Which ports of a range are taken.
#[derive(Debug)]
pub struct PortPool {
    range: PortRange,
    taken: Vec<bool>,
    taken_count: usize,
}

impl PortPool {
    /// All of `range`, free.
    pub fn new(range: PortRange) -> Self {
        Self {
            range,
            taken: vec![false; range.count()],
            taken_count: 0,
        }
    }

    /// Takes a free port of that parity; `None` where all are taken.
    pub fn take(&mut self, parity: Parity, rng: &mut impl Rng) -> Option<u16> {
        if self.taken_count == self.taken.len() {
            return None;
        }
        let drawn = rng.random_range(self.range.ports());
        let after = drawn..=self.range.last;
        let mut ports = after.chain(self.range.ports());
        let port = ports.find(|port| self.fits(*port, parity))?;
        self.mark(port);
        if parity == Parity::EvenPair {
            self.mark(port + 1);
        }
        Some(port)
    }

    fn fits(&self, port: u16, parity: Parity) -> bool {
        let free = |port: u16| !self.taken[self.index(port)];
        let even = port.is_multiple_of(2);
        match parity {
            Parity::Any => free(port),
            Parity::Even => even && free(port),
            Parity::EvenPair => even && port < self.range.last && free(port) && free(port + 1),
        }
    }

    fn mark(&mut self, port: u16) {
        let index = self.index(port);
        self.taken[index] = true;
        self.taken_count += 1;
    }

    /// Gives a port back.
    pub fn give_back(&mut self, port: u16) {
        let index = self.index(port);
        self.taken_count -= usize::from(std::mem::take(&mut self.taken[index]));
    }

    /// How many are taken.
    pub fn taken_count(&self) -> usize {
        self.taken_count
    }

    fn index(&self, port: u16) -> usize {
        usize::from(port - self.range.first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn every_port_is_given_once_and_can_come_back() {
        let mut pool = PortPool::new("40000-40009".parse().unwrap());
        let mut rng = StdRng::seed_from_u64(1);
        let taken: BTreeSet<_> = (0..10)
            .map(|_| pool.take(Parity::Any, &mut rng).unwrap())
            .collect();
        assert_eq!(taken, (40_000..=40_009).collect());
        assert_eq!(pool.take(Parity::Any, &mut rng), None);
        pool.give_back(40_004);
        assert_eq!(pool.take(Parity::Any, &mut rng), Some(40_004));
        assert_eq!(pool.taken_count(), 10);
    }

    #[test]
    fn an_even_port_is_even() {
        let mut pool = PortPool::new("40001-40005".parse().unwrap());
        let mut rng = StdRng::seed_from_u64(1);
        let mut taken = [(); 2].map(|()| pool.take(Parity::Even, &mut rng).unwrap());
        taken.sort_unstable();
        assert_eq!(taken, [40_002, 40_004]);
        assert_eq!(pool.take(Parity::Even, &mut rng), None);
    }

    #[test]
    fn a_pair_is_an_even_port_and_the_next() {
        let mut pool = PortPool::new("40001-40004".parse().unwrap());
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(pool.take(Parity::EvenPair, &mut rng), Some(40_002));
        assert_eq!(pool.taken_count(), 2);
        assert_eq!(
            pool.take(Parity::EvenPair, &mut rng),
            None,
            "40005 is out of range"
        );
        pool.give_back(40_003);
        assert_eq!(
            pool.take(Parity::EvenPair, &mut rng),
            None,
            "40002 is still taken"
        );
    }

    #[test]
    fn ports_come_in_no_order() {
        let mut pool = PortPool::new("49152-65535".parse().unwrap());
        let mut rng = StdRng::seed_from_u64(1);
        let drawn: Vec<_> = (0..20)
            .map(|_| pool.take(Parity::Any, &mut rng).unwrap())
            .collect();
        assert!(!drawn.is_sorted());
        assert!(drawn.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1));
    }

    #[test]
    fn a_range_that_holds_no_port_is_refused() {
        for bad in ["", "5", "10-5", "0-10", "1-65536", "a-b"] {
            let error = bad.parse::<PortRange>().unwrap_err().to_string();
            assert!(error.contains("49152-65535"), "{error}");
        }
        assert_eq!("7-7".parse::<PortRange>().unwrap().count(), 1);
    }
}
