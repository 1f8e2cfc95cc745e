//! What one address may take of us: so many new ones a second, so many at once. IPv6 counts by /64, which is what one
//! customer has. Memory is bounded: where there are too many addresses to tell apart, the newcomers share one account.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one address may have; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerAddress {
    /// New ones a second, in the long run.
    pub per_second: u32,
    /// New ones in one go.
    pub burst: u32,
    /// At once.
    pub at_once: u32,
}

/// The most addresses told apart.
pub const MAX_ADDRESSES: usize = 65_536;

/// Why an address gets no more now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many new ones.
    #[error("too many new connections from this address in too short a time; try again in a moment")]
    TooFast,
    /// Too many at once.
    #[error("too many connections from this address at once; end some, or ask the operator for more")]
    TooMany,
}

/// Whose account something went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Account {
    Of(IpAddr),
    Shared,
}

#[derive(Debug, Clone)]
struct Balance {
    open: u32,
    left: f64,
    since: Instant,
}

#[derive(Debug)]
struct Addresses {
    rules: PerAddress,
    balances: HashMap<Account, Balance>,
    swept: Option<Instant>,
}

impl Addresses {
    fn enter(&mut self, now: Instant, address: IpAddr) -> Result<Account, Refused> {
        let rules = self.rules;
        let account = self.account(now, address);
        let balance = self.balances.entry(account).or_insert_with(|| Balance {
            open: 0,
            left: rules.burst.into(),
            since: now,
        });
        balance.fill(now, rules);
        if rules.at_once > 0 && balance.open >= rules.at_once {
            return Err(Refused::TooMany);
        }
        if rules.per_second > 0 {
            if balance.left < 1.0 {
                return Err(Refused::TooFast);
            }
            balance.left -= 1.0;
        }
        balance.open += 1;
        Ok(account)
    }

    fn leave(&mut self, account: Account) {
        if let Some(balance) = self.balances.get_mut(&account) {
            balance.open = balance.open.saturating_sub(1);
        }
    }

    /// As if it had not come: gives back what its coming took.
    fn forgive(&mut self, account: Account) {
        if let Some(balance) = self.balances.get_mut(&account) {
            balance.left = (balance.left + 1.0).min(self.rules.burst.into());
        }
    }

    fn account(&mut self, now: Instant, address: IpAddr) -> Account {
        let account = Account::Of(prefix(address));
        if self.balances.contains_key(&account) {
            return account;
        }
        let due = self.swept.is_none_or(|swept| now >= swept + SWEEP_EVERY);
        if self.balances.len() >= MAX_ADDRESSES && due {
            self.swept = Some(now);
            let rules = self.rules;
            self.balances
                .retain(|_, balance| !balance.is_forgettable(now, rules));
        }
        match self.balances.len() < MAX_ADDRESSES {
            true => account,
            false => Account::Shared,
        }
    }
}

impl Balance {
    fn fill(&mut self, now: Instant, rules: PerAddress) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.left = (self.left + passed * f64::from(rules.per_second)).min(rules.burst.into());
    }

    /// A new account would be no different.
    fn is_forgettable(&mut self, now: Instant, rules: PerAddress) -> bool {
        self.fill(now, rules);
        self.open == 0 && (rules.per_second == 0 || self.left >= rules.burst.into())
    }
}

/// What counts as one address: an IPv4 address, however it is written, or the /64 of an IPv6 address.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

/// A door that all of an address's connections go through.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<Addresses>>);

/// Someone is in, until this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    account: Account,
}

impl Gate {
    /// A gate with these rules.
    pub fn new(rules: PerAddress) -> Self {
        Self(Arc::new(Mutex::new(Addresses {
            rules,
            balances: HashMap::new(),
            swept: None,
        })))
    }

    /// Lets someone in.
    ///
    /// # Errors
    /// [`Refused`] where the address has had enough.
    pub fn enter(&self, now: Instant, address: IpAddr) -> Result<Pass, Refused> {
        let account = self.with(|addresses| addresses.enter(now, address))?;
        let gate = self.clone();
        Ok(Pass { gate, account })
    }

    /// The same, but waits while the address is refused and others of its are within: they may yet be forgiven.
    ///
    /// # Errors
    /// [`Refused`] where the address has had enough, whatever becomes of those within; or after `patience`.
    pub async fn enter_or_wait(&self, address: IpAddr, patience: Duration) -> Result<Pass, Refused> {
        let begin = Instant::now();
        loop {
            match self.enter(Instant::now(), address) {
                Err(_) if self.has_some(address) && begin.elapsed() < patience => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                entered => return entered,
            }
        }
    }

    /// Whether somebody of that address is within.
    fn has_some(&self, address: IpAddr) -> bool {
        self.with(|addresses| {
            let account = addresses.account(Instant::now(), address);
            let balance = addresses.balances.get(&account);
            balance.is_some_and(|balance| balance.open > 0)
        })
    }

    fn with<T>(&self, what: impl FnOnce(&mut Addresses) -> T) -> T {
        // A count that a panic left behind is at worst one too high.
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pass {
    /// Leaves as if it had never come.
    pub fn forgive(self) {
        self.gate.with(|addresses| addresses.forgive(self.account));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.with(|addresses| addresses.leave(self.account));
    }
}

/// How often someone who waits tries again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: PerAddress = PerAddress {
        per_second: 2,
        burst: 5,
        at_once: 3,
    };

    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        let (gate, start) = (Gate::new(RULES), Instant::now());
        let enter = |now, address: &str| gate.enter(now, address.parse().unwrap());
        let three: Vec<_> = (0..3).map(|_| enter(start, "192.0.2.1").unwrap()).collect();
        assert_eq!(enter(start, "192.0.2.1").unwrap_err(), Refused::TooMany);
        assert_eq!(enter(start, "::ffff:192.0.2.1").unwrap_err(), Refused::TooMany);
        assert!(enter(start, "192.0.2.2").is_ok());
        drop(three);
        for _ in 0..2 {
            drop(enter(start, "192.0.2.1").unwrap());
        }
        assert_eq!(enter(start, "192.0.2.1").unwrap_err(), Refused::TooFast);
        let later = start + Duration::from_millis(500);
        drop(enter(later, "192.0.2.1").unwrap());
        assert_eq!(enter(later, "192.0.2.1").unwrap_err(), Refused::TooFast);
    }

    #[test]
    fn who_is_forgiven_has_spent_nothing() {
        let (gate, start) = (Gate::new(RULES), Instant::now());
        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..100 {
            gate.enter(start, address).unwrap().forgive();
        }
    }

    #[tokio::test]
    async fn who_comes_with_many_waits_for_those_before() {
        let gate = Gate::new(RULES);
        let address = IpAddr::from([192, 0, 2, 1]);
        let patience = Duration::from_secs(5);
        let come = |gate: Gate, good: bool| async move {
            let pass = gate.enter_or_wait(address, patience).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if good {
                pass.forgive();
            }
            Ok::<_, Refused>(())
        };
        let good = futures_util::future::join_all((0..30).map(|_| come(gate.clone(), true))).await;
        assert!(good.iter().all(Result::is_ok), "{good:?}");
        let bad = futures_util::future::join_all((0..30).map(|_| come(gate.clone(), false))).await;
        let failed = bad.iter().filter(|result| result.is_ok()).count();
        // Those in one go, and those that time allows.
        assert!((5..=10).contains(&failed), "{failed}");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (gate, start) = (Gate::new(RULES), Instant::now());
        let enter = |address: &str| gate.enter(start, address.parse().unwrap());
        let _three = [
            enter("2001:db8::1"),
            enter("2001:db8::ffff:1"),
            enter("2001:db8:0:0:8::"),
        ];
        assert_eq!(enter("2001:db8::2").unwrap_err(), Refused::TooMany);
        assert!(enter("2001:db8:0:1::2").is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let rules = PerAddress {
            per_second: 0,
            burst: 0,
            at_once: 0,
        };
        let (gate, start) = (Gate::new(rules), Instant::now());
        let passes: Vec<_> = (0..1000)
            .map(|_| gate.enter(start, [192, 0, 2, 1].into()))
            .collect();
        assert!(passes.iter().all(Result::is_ok));
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_memory_and_is_forgotten() {
        let (gate, start) = (Gate::new(RULES), Instant::now());
        let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let flood = u32::try_from(MAX_ADDRESSES).unwrap() + 1000;
        let entered = (0..flood)
            .filter(|number| gate.enter(start, address(*number)).is_ok())
            .count();
        // Those beyond share one account, and its burst.
        assert_eq!(entered, MAX_ADDRESSES + 5);
        let count = |gate: &Gate| gate.with(|addresses| addresses.balances.len());
        assert_eq!(count(&gate), MAX_ADDRESSES + 1);
        let later = start + Duration::from_secs(10);
        assert!(gate.enter(later, address(flood)).is_ok());
        assert_eq!(count(&gate), 1);
    }
}
