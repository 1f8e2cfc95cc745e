//! Promises: how many join links to play are out that nobody has come with yet. A link holds no streamer, which only a
//! player's claim does; but no more links are given than there are free streamers for them, by what this matchmaker
//! knows. So a link may still lead into the queue: when a player without one came first, or another matchmaker gave one
//! at the same time. A promise ends when its player comes, or with its link.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_core::wire::status::{StreamerState, StreamerStatus};

use crate::events::Survey;
use crate::lobby::Wish;

/// The promises of this matchmaker.
#[derive(Debug, Default)]
pub(super) struct Promises {
    by_link: BTreeMap<String, Promise>,
}

#[derive(Debug)]
struct Promise {
    wish: Wish,
    expires_unix: Duration,
}

/// There is nothing to promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All that fit have a player, or are promised.
    Taken,
    /// No streamer here is like that, free or not.
    NothingFits,
}

impl Promises {
    /// Promises that somebody with the link `id` and this wish finds a free streamer, if there is one to spare.
    ///
    /// # Errors
    /// [`Full`] where there is none.
    pub(super) fn promise(
        &mut self,
        survey: &Survey,
        id: &str,
        wish: &Wish,
        now_unix: Duration,
        expires_unix: Duration,
    ) -> Result<(), Full> {
        self.by_link.retain(|_, promise| promise.expires_unix > now_unix);
        let streamers = || survey.streamers.iter().map(|(_, status)| status);
        if !streamers().any(|status| wish.fits(status)) {
            return Err(Full::NothingFits);
        }
        let free: Vec<_> = streamers()
            .filter(|status| status.state == StreamerState::Free)
            .collect();
        let promised = self.by_link.values().map(|promise| &promise.wish);
        let earlier = survey.waiting.iter().chain(promised);
        if !has_one_to_spare(&free, earlier, wish) {
            return Err(Full::Taken);
        }
        let wish = wish.clone();
        self.by_link.insert(id.to_owned(), Promise { wish, expires_unix });
        Ok(())
    }

    /// The player with that link has come, and counts like any other from now on.
    pub(super) fn keep(&mut self, id: &str) {
        self.by_link.remove(id);
    }
}

/// Whether `wish` can be met after as many as possible of the `earlier` ones: a bipartite matching, grown by augmenting
/// paths, so that somebody who takes any streamer doesn't stand on the only one that would do for somebody else.
fn has_one_to_spare<'a>(
    free: &[&StreamerStatus],
    earlier: impl Iterator<Item = &'a Wish>,
    wish: &'a Wish,
) -> bool {
    let mut matching = Matching {
        free,
        wishes: Vec::new(),
        taken_by: vec![None; free.len()],
    };
    for wish in earlier {
        // With every streamer taken nobody else finds one, and nobody who has one loses it.
        if matching.is_full() {
            return false;
        }
        matching.add(wish);
    }
    matching.add(wish)
}

struct Matching<'a> {
    free: &'a [&'a StreamerStatus],
    wishes: Vec<&'a Wish>,
    /// Whose wish each streamer meets.
    taken_by: Vec<Option<usize>>,
}

impl<'a> Matching<'a> {
    fn is_full(&self) -> bool {
        self.taken_by.iter().all(Option::is_some)
    }

    fn add(&mut self, wish: &'a Wish) -> bool {
        self.wishes.push(wish);
        let mut tried = vec![false; self.free.len()];
        self.place(self.wishes.len() - 1, &mut tried)
    }

    /// Finds a streamer for a wish, if need be by finding another one for whoever has it. It goes as deep as there are
    /// streamers to try, each once.
    fn place(&mut self, wish: usize, tried: &mut [bool]) -> bool {
        for at in 0..self.free.len() {
            if tried[at] || !self.wishes[wish].fits(self.free[at]) {
                continue;
            }
            tried[at] = true;
            if self.taken_by[at].is_none_or(|other| self.place(other, tried)) {
                self.taken_by[at] = Some(wish);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const LATER: Duration = Duration::from_secs(1060);

    #[test]
    fn as_many_are_promised_as_are_free() {
        let (mut promises, survey) = (
            Promises::default(),
            survey(&["free chess", "free chess", "busy chess"], &[]),
        );
        let any = wish("");
        assert_eq!(promises.promise(&survey, "1", &any, NOW, LATER), Ok(()));
        assert_eq!(promises.promise(&survey, "2", &any, NOW, LATER), Ok(()));
        assert_eq!(promises.promise(&survey, "3", &any, NOW, LATER), Err(Full::Taken));
        promises.keep("1");
        assert_eq!(promises.promise(&survey, "3", &any, NOW, LATER), Ok(()));
        assert_eq!(promises.promise(&survey, "4", &any, NOW, LATER), Err(Full::Taken));
        // All of them ran out.
        assert_eq!(promises.promise(&survey, "4", &any, LATER, LATER + NOW), Ok(()));
        assert_eq!(promises.by_link.len(), 1);
    }

    #[test]
    fn those_who_wait_come_first() {
        let mut promises = Promises::default();
        let survey = survey(&["free chess"], &[""]);
        assert_eq!(
            promises.promise(&survey, "1", &wish(""), NOW, LATER),
            Err(Full::Taken)
        );
    }

    #[test]
    fn who_waits_for_something_else_is_in_nobodys_way() {
        let mut promises = Promises::default();
        let survey = survey(&["free chess", "busy go"], &["go", "go", "go"]);
        assert_eq!(promises.promise(&survey, "1", &wish("chess"), NOW, LATER), Ok(()));
        assert_eq!(
            promises.promise(&survey, "2", &wish("go"), NOW, LATER),
            Err(Full::Taken)
        );
        assert_eq!(
            promises.promise(&survey, "2", &wish("ludo"), NOW, LATER),
            Err(Full::NothingFits)
        );
    }

    #[test]
    fn whoever_takes_anything_makes_room() {
        let survey = survey(&["free chess", "free go"], &[]);
        for order in [["", "chess", "go"], ["", "go", "chess"]] {
            let mut promises = Promises::default();
            let outcomes = order.map(|name| promises.promise(&survey, name, &wish(name), NOW, LATER));
            assert_eq!(outcomes, [Ok(()), Ok(()), Err(Full::Taken)]);
        }
    }

    fn wish(application: &str) -> Wish {
        Wish {
            application: application.parse().ok(),
            ..Wish::default()
        }
    }

    fn survey(streamers: &[&str], waiting: &[&str]) -> Survey {
        let status = |text: &&str| {
            let (state, application) = text.split_once(' ').unwrap();
            let status = json!({
                "streamerId": "s", "state": state, "application": application, "players": 0, "viewers": 0, "units": 3,
                "stream": {"width": 1280, "height": 720, "fps": 30},
            });
            (
                ([127, 0, 0, 1], 1).into(),
                serde_json::from_value(status).unwrap(),
            )
        };
        Survey {
            streamers: streamers.iter().map(status).collect(),
            waiting: waiting.iter().map(|name| wish(name)).collect(),
        }
    }
}
