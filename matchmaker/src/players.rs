//! How many players came by one join link, or as one user. A link is for one player; without a limit whoever has one could
//! take every streamer.
//!
//! A player counts while its page is connected, and then for as long as a streamer keeps its seat: there the stream may
//! well go on. One that comes back with the token of its seat is the same player. Each replica counts for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use penstock_core::ids::SeatName;
use penstock_core::wire::returning::ReturnToken;

/// Who answers for a player.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Account {
    /// The join link of this name.
    Link(String),
    /// The user of this name.
    User(String),
}

/// The account has as many players as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// A link.
    #[error(
        "This link is in use. Whoever plays by it has to leave first; for another player ask for another link."
    )]
    Link,
    /// A user.
    #[error("You play as often at once as you may. End a session first, or ask the operator for more.")]
    User,
}

/// The players of this matchmaker. A clone shares them.
#[derive(Debug, Clone)]
pub struct Players {
    per_user: u32,
    held: Arc<Mutex<HashMap<Account, Vec<Held>>>>,
}

#[derive(Debug)]
struct Held {
    ticket: u64,
    connected: bool,
    token: Option<ReturnToken>,
}

/// A player counts, until this is dropped and no streamer keeps its seat.
#[derive(Debug)]
pub struct Ticket {
    players: Players,
    account: Account,
    number: u64,
}

impl Players {
    /// With so many for each user; 0 is no limit.
    pub fn new(per_user: u32) -> Self {
        let held = Arc::default();
        Self { per_user, held }
    }

    /// Lets a player in, who may have the token of a seat. `is_kept` says whether a streamer keeps a seat.
    ///
    /// # Errors
    /// [`Full`].
    pub fn enter(
        &self,
        account: &Account,
        token: Option<&ReturnToken>,
        is_kept: impl Fn(&SeatName) -> bool,
    ) -> Result<Ticket, Full> {
        self.with(|accounts| {
            let held = accounts.entry(account.clone()).or_default();
            // A token that is here is one that this account was given.
            let is_back = |held: &Held| token.is_some() && held.token.as_ref() == token;
            let counts = |held: &Held| {
                held.connected || held.token.as_ref().is_some_and(|token| is_kept(token.seat()))
            };
            held.retain(|held| !is_back(held) && counts(held));
            let (most, full) = match account {
                Account::Link(_) => (1, Full::Link),
                Account::User(_) => (self.per_user, Full::User),
            };
            if most > 0 && held.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
                return Err(full);
            }
            let number = rand::random();
            held.push(Held {
                ticket: number,
                connected: true,
                token: token.cloned(),
            });
            let (players, account) = (self.clone(), account.clone());
            Ok(Ticket {
                players,
                account,
                number,
            })
        })
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashMap<Account, Vec<Held>>) -> T) -> T {
        // A count that a panic left behind is at worst one too high.
        what(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ticket {
    /// The player has a streamer, and the token of its seat there if it may come back.
    pub fn matched(&self, token: Option<&ReturnToken>) {
        self.players.with(|accounts| {
            let held = accounts.get_mut(&self.account).into_iter().flatten();
            for held in held.filter(|held| held.ticket == self.number) {
                held.token = token.cloned();
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.players.with(|accounts| {
            let Some(held) = accounts.get_mut(&self.account) else {
                return;
            };
            held.retain_mut(|held| {
                held.connected &= held.ticket != self.number;
                held.connected || held.token.is_some()
            });
            if held.is_empty() {
                accounts.remove(&self.account);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Account {
        Account::Link("link".to_owned())
    }

    fn token(seat: &str) -> ReturnToken {
        ReturnToken::new(seat, "secret").unwrap()
    }

    #[test]
    fn a_link_is_for_one_player_at_a_time() {
        let players = Players::new(4);
        let first = players.enter(&link(), None, |_| false).unwrap();
        assert_eq!(players.enter(&link(), None, |_| false).unwrap_err(), Full::Link);
        let other = Account::Link("other".to_owned());
        assert!(players.enter(&other, None, |_| false).is_ok());
        drop(first);
        assert!(players.enter(&link(), None, |_| false).is_ok());
    }

    #[test]
    fn a_player_who_is_away_counts_while_its_seat_is_kept_and_may_come_back() {
        let players = Players::new(4);
        let away = players.enter(&link(), None, |_| false).unwrap();
        away.matched(Some(&token("s")));
        drop(away);
        assert_eq!(players.enter(&link(), None, |_| true).unwrap_err(), Full::Link);
        let forged = ReturnToken::new("s", "guess").unwrap();
        assert!(players.enter(&link(), Some(&forged), |_| true).is_err());
        let back = players.enter(&link(), Some(&token("s")), |_| true).unwrap();
        assert!(players.enter(&link(), None, |_| true).is_err());
        drop(back);
        assert!(
            players.enter(&link(), None, |_| false).is_ok(),
            "its seat is gone"
        );
    }

    /// Its old socket may not have been found dead yet; when it is, the new one still counts.
    #[test]
    fn a_player_who_is_back_early_is_no_second_one() {
        let players = Players::new(4);
        let old = players.enter(&link(), None, |_| false).unwrap();
        old.matched(Some(&token("s")));
        let _new = players.enter(&link(), Some(&token("s")), |_| true).unwrap();
        drop(old);
        assert!(players.enter(&link(), None, |_| false).is_err());
    }

    #[test]
    fn a_user_has_so_many_players_and_zero_is_no_limit() {
        let ann = Account::User("ann".to_owned());
        for (most, admitted) in [(2, 2), (0, 50)] {
            let players = Players::new(most);
            let tickets: Vec<_> = (0..50).map(|_| players.enter(&ann, None, |_| false)).collect();
            assert_eq!(tickets.iter().filter(|ticket| ticket.is_ok()).count(), admitted);
        }
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let players = Players::new(4);
        drop(players.enter(&link(), None, |_| false));
        assert!(players.with(|accounts| accounts.is_empty()));
    }
}
