//! Who may be on this streamer. The streamer alone knows whether it is free, so this is where a claim is decided.
//!
//! ```text
//!            ready          claim             player leaves
//!  starting ───────► free ─────────► busy ────────────────► free, collecting bids for 50 ms
//!                     └───── drain ────┴──► draining: nobody new; over when the player leaves
//! ```
//!
//! Several matchmakers may want a streamer at the moment it becomes free. For [`BID_WINDOW`] it collects their
//! claims, then takes the player who has waited longest; so the order of a queue holds over all replicas.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SessionId};
use penstock_core::wire::link::{Claim, RefusedReason, Role};
use penstock_core::wire::status::StreamerState;

/// How long a streamer that has become free collects claims before it takes one.
pub const BID_WINDOW: Duration = Duration::from_millis(50);

/// One connection of a matchmaker; each carries one player.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What follows for a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The claim is granted.
    Grant(LinkId),
    /// The claim is refused.
    Refuse(LinkId, RefusedReason),
    /// A granted link has to end, for this reason in words.
    End(LinkId, &'static str),
}

/// All that is known of who is here.
#[derive(Debug)]
pub struct Session {
    ready: bool,
    draining: bool,
    max_viewers: u32,
    current: Option<Current>,
    bids: Vec<(LinkId, Claim)>,
    bids_until: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    session: SessionId,
    player: LinkId,
    viewers: BTreeMap<LinkId, PlayerId>,
}

impl Session {
    /// A streamer that shows nothing yet.
    pub fn new(max_viewers: u32) -> Self {
        Self {
            ready: false,
            draining: false,
            max_viewers,
            current: None,
            bids: Vec::new(),
            bids_until: None,
        }
    }

    /// The source shows a picture, or none any more. Who is here stays.
    pub fn set_ready(&mut self, ready: bool) -> Vec<Decision> {
        self.ready = ready;
        if ready {
            Vec::new()
        } else {
            self.refuse_bids(RefusedReason::Starting)
        }
    }

    /// Takes nobody new from now on.
    pub fn drain(&mut self) -> Vec<Decision> {
        self.draining = true;
        self.refuse_bids(RefusedReason::Draining)
    }

    /// Whether it drains, and nobody is left.
    pub fn is_drained(&self) -> bool {
        self.draining && self.current.is_none()
    }

    /// A claim has come in on `link`.
    pub fn claim(&mut self, now: Instant, link: LinkId, claim: Claim) -> Vec<Decision> {
        if let Some(reason) = self.refusal(&claim) {
            return vec![Decision::Refuse(link, reason)];
        }
        if let Some(current) = &mut self.current {
            current.viewers.insert(link, claim.player_id);
            return vec![Decision::Grant(link)];
        }
        if self.collects_bids(now) {
            self.bids.push((link, claim));
            return Vec::new();
        }
        vec![self.grant(link, claim)]
    }

    /// The link is gone, whatever it was.
    pub fn left(&mut self, now: Instant, link: LinkId) -> Vec<Decision> {
        self.bids.retain(|(bidder, _)| *bidder != link);
        let Some(current) = &mut self.current else {
            return Vec::new();
        };
        if current.player != link {
            current.viewers.remove(&link);
            return Vec::new();
        }
        let viewers = std::mem::take(&mut current.viewers);
        self.current = None;
        self.bids_until = Some(now + BID_WINDOW);
        viewers
            .into_keys()
            .map(|viewer| Decision::End(viewer, "the player has left"))
            .collect()
    }

    /// Ends the session of this name, if it is here: first its player, then all who watch.
    pub fn end(&self, session: &SessionId) -> Vec<Decision> {
        let Some(current) = self
            .current
            .as_ref()
            .filter(|current| current.session == *session)
        else {
            return Vec::new();
        };
        let viewers = current.viewers.keys().copied();
        [current.player]
            .into_iter()
            .chain(viewers)
            .map(|link| Decision::End(link, "an operator ended the session"))
            .collect()
    }

    /// When [`Self::timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.bids_until.filter(|_| !self.bids.is_empty())
    }

    /// Takes the bid of the player who has waited longest; the earlier bid where two waited alike.
    pub fn timeout(&mut self, now: Instant) -> Vec<Decision> {
        if self.bids_until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.bids_until = None;
        let oldest = (0..self.bids.len())
            .rev()
            .max_by_key(|&i| self.bids[i].1.waited_ms);
        let Some(oldest) = oldest else { return Vec::new() };
        let (link, claim) = self.bids.remove(oldest);
        let mut decisions = vec![self.grant(link, claim)];
        decisions.extend(self.refuse_bids(RefusedReason::Busy));
        decisions
    }

    /// Whether it can take a player.
    pub fn state(&self) -> StreamerState {
        match (self.draining, &self.current, self.ready) {
            (true, _, _) => StreamerState::Draining,
            (false, Some(_), _) => StreamerState::Busy,
            (false, None, true) => StreamerState::Free,
            (false, None, false) => StreamerState::Starting,
        }
    }

    /// The session that goes on.
    pub fn session_id(&self) -> Option<&SessionId> {
        self.current.as_ref().map(|current| &current.session)
    }

    /// Players here: 0 or 1.
    pub fn players(&self) -> u32 {
        u32::from(self.current.is_some())
    }

    /// Viewers here.
    pub fn viewers(&self) -> u32 {
        self.current
            .as_ref()
            .map_or(0, |current| current.viewers.len() as u32)
    }

    fn collects_bids(&self, now: Instant) -> bool {
        // Bids whose time is up but that were not decided yet go before a newcomer.
        !self.bids.is_empty() || self.bids_until.is_some_and(|until| now < until)
    }

    fn refusal(&self, claim: &Claim) -> Option<RefusedReason> {
        if self.draining {
            return Some(RefusedReason::Draining);
        }
        match (&self.current, claim.role) {
            (None, Role::Viewer) => Some(RefusedReason::NoSuchSession),
            (Some(current), Role::Viewer) if current.session != claim.session_id => {
                Some(RefusedReason::NoSuchSession)
            }
            (Some(_), Role::Viewer) if self.viewers() >= self.max_viewers => {
                Some(RefusedReason::TooManyViewers)
            }
            (Some(_), Role::Viewer) => None,
            (Some(_), Role::Player) => Some(RefusedReason::Busy),
            (None, Role::Player) if !self.ready => Some(RefusedReason::Starting),
            (None, Role::Player) => None,
        }
    }

    fn grant(&mut self, link: LinkId, claim: Claim) -> Decision {
        self.current = Some(Current {
            session: claim.session_id,
            player: link,
            viewers: BTreeMap::new(),
        });
        Decision::Grant(link)
    }

    fn refuse_bids(&mut self, reason: RefusedReason) -> Vec<Decision> {
        self.bids
            .drain(..)
            .map(|(link, _)| Decision::Refuse(link, reason))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_free_streamer_takes_the_first_and_refuses_the_second() {
        let (mut session, now) = ready();
        assert_eq!(
            session.claim(now, LinkId(1), player("a", 0)),
            [Decision::Grant(LinkId(1))]
        );
        assert_eq!(session.state(), StreamerState::Busy);
        assert_eq!(
            session.claim(now, LinkId(2), player("b", 9)),
            [Decision::Refuse(LinkId(2), RefusedReason::Busy)]
        );
    }

    #[test]
    fn nobody_is_taken_before_there_is_a_picture() {
        let mut session = Session::new(8);
        let refused = [Decision::Refuse(LinkId(1), RefusedReason::Starting)];
        assert_eq!(session.claim(Instant::now(), LinkId(1), player("a", 0)), refused);
        assert_eq!(session.state(), StreamerState::Starting);
    }

    #[test]
    fn of_the_bids_of_fifty_milliseconds_the_longest_waiting_wins() {
        let (mut session, now) = ready();
        session.claim(now, LinkId(1), player("a", 0));
        session.left(now, LinkId(1));
        assert_eq!(session.claim(now, LinkId(2), player("b", 100)), []);
        assert_eq!(
            session.claim(now + BID_WINDOW / 2, LinkId(3), player("c", 700)),
            []
        );
        assert_eq!(session.poll_timeout(), Some(now + BID_WINDOW));
        assert_eq!(session.timeout(now + BID_WINDOW / 2), []);
        assert_eq!(
            session.timeout(now + BID_WINDOW),
            [
                Decision::Grant(LinkId(3)),
                Decision::Refuse(LinkId(2), RefusedReason::Busy)
            ]
        );
    }

    #[test]
    fn a_bidder_that_goes_away_is_forgotten() {
        let (mut session, now) = ready();
        session.claim(now, LinkId(1), player("a", 0));
        session.left(now, LinkId(1));
        session.claim(now, LinkId(2), player("b", 1));
        session.left(now, LinkId(2));
        assert_eq!(session.timeout(now + BID_WINDOW), []);
        let late = now + 2 * BID_WINDOW;
        assert_eq!(
            session.claim(late, LinkId(3), player("c", 0)),
            [Decision::Grant(LinkId(3))]
        );
    }

    #[test]
    fn viewers_come_with_the_sessions_name_and_go_with_its_player() {
        let (mut session, now) = ready();
        let none = [Decision::Refuse(LinkId(2), RefusedReason::NoSuchSession)];
        assert_eq!(session.claim(now, LinkId(2), viewer("a")), none);
        session.claim(now, LinkId(1), player("a", 0));
        assert_eq!(session.claim(now, LinkId(2), viewer("other")), none);
        assert_eq!(
            session.claim(now, LinkId(2), viewer("a")),
            [Decision::Grant(LinkId(2))]
        );
        assert_eq!((session.players(), session.viewers()), (1, 1));
        assert_eq!(
            session.left(now, LinkId(1)),
            [Decision::End(LinkId(2), "the player has left")]
        );
        assert_eq!((session.players(), session.viewers()), (0, 0));
    }

    #[test]
    fn an_operator_ends_the_session_that_is_named_and_no_other() {
        let (mut session, now) = ready();
        let name = |name: &str| SessionId::new(name).unwrap();
        assert_eq!(session.end(&name("a")), []);
        session.claim(now, LinkId(1), player("a", 0));
        session.claim(now, LinkId(2), viewer("a"));
        assert_eq!(session.end(&name("b")), []);
        let why = "an operator ended the session";
        let both = [Decision::End(LinkId(1), why), Decision::End(LinkId(2), why)];
        assert_eq!(session.end(&name("a")), both);
        session.left(now, LinkId(2));
        session.left(now, LinkId(1));
        assert_eq!(session.state(), StreamerState::Free);
    }

    #[test]
    fn there_are_only_so_many_viewers() {
        let (mut session, now) = ready();
        session.claim(now, LinkId(0), player("a", 0));
        for link in 1..=8 {
            assert_eq!(
                session.claim(now, LinkId(link), viewer("a")),
                [Decision::Grant(LinkId(link))]
            );
        }
        let full = [Decision::Refuse(LinkId(9), RefusedReason::TooManyViewers)];
        assert_eq!(session.claim(now, LinkId(9), viewer("a")), full);
    }

    #[test]
    fn draining_keeps_the_player_and_takes_nobody_new() {
        let (mut session, now) = ready();
        session.claim(now, LinkId(1), player("a", 0));
        session.drain();
        assert!(!session.is_drained());
        let refused = [Decision::Refuse(LinkId(2), RefusedReason::Draining)];
        assert_eq!(session.claim(now, LinkId(2), player("b", 0)), refused);
        session.left(now, LinkId(1));
        assert!(session.is_drained());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim { link: u64, waited: u64, viewer: bool },
        Leave { link: u64 },
        Wait { ms: u64 },
        Drain,
        Ready(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..20u64, 0..5u64, any::<bool>())
                .prop_map(|(link, waited, viewer)| Step::Claim { link, waited, viewer }),
            4 => (0..20u64).prop_map(|link| Step::Leave { link }),
            3 => (0..80u64).prop_map(|ms| Step::Wait { ms }),
            1 => any::<bool>().prop_map(Step::Ready),
            1 => Just(Step::Drain),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        /// Whatever happens: at most one player, every claim is answered exactly once or withdrawn, and no answer
        /// goes to a link that is not waiting for one.
        #[test]
        fn every_claim_gets_one_answer(steps in steps()) {
            let mut session = Session::new(3);
            session.set_ready(true);
            let mut now = Instant::now();
            let mut waiting = std::collections::BTreeSet::new();
            let mut inside = std::collections::BTreeMap::new();
            for step in steps {
                let decisions = match step {
                    Step::Claim { link, .. } if waiting.contains(&link) || inside.contains_key(&link) => vec![],
                    Step::Claim { link, waited, viewer: watches } => {
                        waiting.insert(link);
                        let claim = if watches { viewer("a") } else { player("a", waited) };
                        inside.insert(link, claim.role);
                        session.claim(now, LinkId(link), claim)
                    }
                    Step::Leave { link } => {
                        waiting.remove(&link);
                        inside.remove(&link);
                        session.left(now, LinkId(link))
                    }
                    Step::Wait { ms } => {
                        now += Duration::from_millis(ms);
                        session.timeout(now)
                    }
                    Step::Drain => session.drain(),
                    Step::Ready(ready) => session.set_ready(ready),
                };
                for decision in decisions {
                    match decision {
                        Decision::Grant(LinkId(link)) => prop_assert!(waiting.remove(&link)),
                        Decision::Refuse(LinkId(link), _) => {
                            prop_assert!(waiting.remove(&link));
                            inside.remove(&link);
                        }
                        Decision::End(LinkId(link), _) => {
                            prop_assert!(!waiting.contains(&link));
                            prop_assert_eq!(inside.remove(&link), Some(Role::Viewer));
                        }
                    }
                }
                let here = |role| {
                    inside.iter().filter(|(link, r)| **r == role && !waiting.contains(link)).count() as u32
                };
                prop_assert_eq!(here(Role::Player), session.players());
                prop_assert_eq!(here(Role::Viewer), session.viewers());
            }
            now += BID_WINDOW;
            let answered = session.timeout(now).len();
            prop_assert_eq!(answered, waiting.len());
        }
    }

    fn ready() -> (Session, Instant) {
        let mut session = Session::new(8);
        session.set_ready(true);
        (session, Instant::now())
    }

    fn player(session: &str, waited_ms: u64) -> Claim {
        claim(session, Role::Player, waited_ms)
    }

    fn viewer(session: &str) -> Claim {
        claim(session, Role::Viewer, 0)
    }

    fn claim(session: &str, role: Role, waited_ms: u64) -> Claim {
        Claim {
            player_id: PlayerId::new("p").unwrap(),
            session_id: SessionId::new(session).unwrap(),
            role,
            waited_ms,
        }
    }
}
