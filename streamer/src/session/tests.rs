use std::collections::BTreeMap;

use penstock_core::ids::PlayerId;
use penstock_core::wire::link::Back;
use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(30);

#[test]
fn a_free_streamer_takes_the_first_and_refuses_the_second() {
    let (mut session, now) = ready();
    assert_eq!(join(&mut session, now, 1, player("a", 0)), [granted(1)]);
    assert_eq!(session.state(), StreamerState::Busy);
    assert_eq!(
        join(&mut session, now, 2, player("b", 9)),
        [Decision::Refuse(LinkId(2), RefusedReason::Busy)]
    );
}

#[test]
fn nobody_is_taken_before_there_is_a_picture() {
    let mut session = Session::new(limits());
    let refused = [Decision::Refuse(LinkId(1), RefusedReason::Starting)];
    assert_eq!(join(&mut session, Instant::now(), 1, player("a", 0)), refused);
    assert_eq!(session.state(), StreamerState::Starting);
}

#[test]
fn of_the_bids_of_fifty_milliseconds_the_longest_waiting_wins() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    left(&mut session, now, 1);
    assert_eq!(join(&mut session, now, 2, player("b", 100)), []);
    assert_eq!(join(&mut session, now + BID_WINDOW / 2, 3, player("c", 700)), []);
    assert_eq!(session.poll_timeout(), Some(now + BID_WINDOW));
    assert_eq!(session.timeout(now + BID_WINDOW / 2), []);
    assert_eq!(
        session.timeout(now + BID_WINDOW),
        [granted(3), Decision::Refuse(LinkId(2), RefusedReason::Busy)]
    );
}

#[test]
fn a_bidder_that_goes_away_is_forgotten() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    left(&mut session, now, 1);
    join(&mut session, now, 2, player("b", 1));
    left(&mut session, now, 2);
    assert_eq!(session.timeout(now + BID_WINDOW), []);
    let late = now + 2 * BID_WINDOW;
    assert_eq!(join(&mut session, late, 3, player("c", 0)), [granted(3)]);
}

#[test]
fn viewers_come_with_the_sessions_name_and_go_with_its_player() {
    let (mut session, now) = ready();
    let none = [Decision::Refuse(LinkId(2), RefusedReason::NoSuchSession)];
    assert_eq!(join(&mut session, now, 2, viewer("a")), none);
    join(&mut session, now, 1, player("a", 0));
    assert_eq!(join(&mut session, now, 2, viewer("other")), none);
    assert_eq!(join(&mut session, now, 2, viewer("a")), [granted(2)]);
    assert_eq!((session.players(), session.viewers()), (1, 1));
    assert_eq!(
        left(&mut session, now, 1),
        [Decision::End(LinkId(2), EndKind::Over, "The player has left.")]
    );
    assert_eq!((session.players(), session.viewers()), (0, 0));
}

#[test]
fn an_operator_ends_the_session_that_is_named_and_no_other() {
    let (mut session, now) = ready();
    let name = |name: &str| SessionId::new(name).unwrap();
    assert_eq!(session.end(now, &name("a")), None);
    join(&mut session, now, 1, player("a", 0));
    join(&mut session, now, 2, viewer("a"));
    assert_eq!(session.end(now, &name("b")), None);
    let ended = |link| Decision::End(LinkId(link), EndKind::Stopped, "An operator ended the session.");
    assert_eq!(session.end(now, &name("a")), Some(vec![ended(1), ended(2)]));
    assert_eq!(session.state(), StreamerState::Free);
}

#[test]
fn there_are_only_so_many_viewers() {
    let (mut session, now) = ready();
    join(&mut session, now, 0, player("a", 0));
    for link in 1..=8 {
        assert_eq!(join(&mut session, now, link, viewer("a")), [granted(link)]);
    }
    let full = [Decision::Refuse(LinkId(9), RefusedReason::TooManyViewers)];
    assert_eq!(join(&mut session, now, 9, viewer("a")), full);
}

#[test]
fn an_exclusive_session_has_no_viewers() {
    let mut session = Session::new(Limits {
        viewers: None,
        ..limits()
    });
    session.set_ready(true);
    join(&mut session, Instant::now(), 1, player("a", 0));
    let no = [Decision::Refuse(LinkId(2), RefusedReason::Exclusive)];
    assert_eq!(join(&mut session, Instant::now(), 2, viewer("a")), no);
}

#[test]
fn several_players_share_a_session_up_to_the_limit_and_it_ends_with_the_last() {
    let mut session = Session::new(Limits {
        players: 2,
        ..limits()
    });
    session.set_ready(true);
    let now = Instant::now();
    join(&mut session, now, 1, player("a", 0));
    assert_eq!((session.state(), session.players()), (StreamerState::Free, 1));
    assert_eq!(join(&mut session, now, 2, player("b", 0)), [granted(2)]);
    assert_eq!(session.state(), StreamerState::Busy);
    assert_eq!(session.session_id().map(SessionId::as_str), Some("a"));
    let full = [Decision::Refuse(LinkId(3), RefusedReason::Busy)];
    assert_eq!(join(&mut session, now, 3, player("c", 0)), full);
    left(&mut session, now, 1);
    assert_eq!(session.session_id().map(SessionId::as_str), Some("a"));
    left(&mut session, now, 2);
    assert_eq!(session.session_id(), None);
}

#[test]
fn draining_keeps_the_player_and_takes_nobody_new() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    session.drain();
    assert!(!session.is_drained());
    let refused = [Decision::Refuse(LinkId(2), RefusedReason::Draining)];
    assert_eq!(join(&mut session, now, 2, player("b", 0)), refused);
    left(&mut session, now, 1);
    assert!(session.is_drained());
}

#[test]
fn whoever_is_left_at_the_end_moves() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    session.drain();
    let moved = [Decision::End(LinkId(1), EndKind::Moves, "The streamer ends.")];
    assert_eq!(session.evict(), moved);
    assert!(session.is_drained());
}

#[test]
fn a_player_who_was_lost_comes_back_to_its_seat_and_nobody_else_gets_it() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    join(&mut session, now, 2, viewer("a"));
    assert_eq!(session.gone(now, LinkId(1), Gone::Lost, true), []);
    assert_eq!((session.players(), session.away(), session.viewers()), (1, 1, 1));
    let refused = [Decision::Refuse(LinkId(3), RefusedReason::Busy)];
    assert_eq!(join(&mut session, now, 3, player("b", 999)), refused);
    let almost = now + GRACE - Duration::from_millis(1);
    assert_eq!(session.timeout(almost), []);
    let back = Decision::Grant(LinkId(4), token(1));
    assert_eq!(join(&mut session, almost, 4, comes_back(1, false)), [back]);
    assert_eq!((session.players(), session.away()), (1, 0));
    assert_eq!(session.session_id().map(SessionId::as_str), Some("a"));
    assert_eq!(session.timeout(now + 2 * GRACE), []);
}

#[test]
fn a_seat_is_free_when_the_grace_is_over() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    session.gone(now, LinkId(1), Gone::Lost, false);
    assert_eq!(session.poll_timeout(), Some(now + GRACE));
    // What breaks next gives no more time.
    session.gone(now + GRACE / 2, LinkId(1), Gone::Lost, false);
    assert_eq!(session.poll_timeout(), Some(now + GRACE));
    let late = Decision::End(LinkId(1), EndKind::Over, "The player did not come back.");
    assert_eq!(session.timeout(now + GRACE), [late]);
    assert_eq!(session.state(), StreamerState::Free);
    let gone = [Decision::Refuse(LinkId(2), RefusedReason::NoSuchSession)];
    assert_eq!(join(&mut session, now + GRACE, 2, comes_back(1, true)), gone);
}

#[test]
fn one_who_closed_its_page_is_waited_for_less_and_one_who_left_not_at_all() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    session.gone(now, LinkId(1), Gone::Closed, true);
    assert_eq!(session.poll_timeout(), Some(now + RELOAD_GRACE));
    session.timeout(now + RELOAD_GRACE);
    let later = now + RELOAD_GRACE + BID_WINDOW;
    join(&mut session, later, 2, player("b", 0));
    session.gone(later, LinkId(2), Gone::ForGood, true);
    assert_eq!(session.state(), StreamerState::Free);
}

#[test]
fn nothing_is_kept_for_a_page_that_can_not_come_back() {
    let (mut session, now) = ready();
    let mut stock = player("a", 0);
    stock.may_return = false;
    join(&mut session, now, 1, stock);
    session.gone(now, LinkId(1), Gone::Lost, true);
    assert_eq!(session.state(), StreamerState::Free);
}

#[test]
fn a_player_whose_picture_still_runs_goes_on_over_a_new_socket() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    session.gone(now, LinkId(1), Gone::Lost, false);
    let resumed = Decision::HandOver {
        from: LinkId(2),
        to: LinkId(1),
    };
    assert_eq!(join(&mut session, now, 2, comes_back(1, true)), [resumed]);
    assert_eq!(session.away(), 0);
    // The link that only brought the socket ends.
    assert_eq!(session.gone(now, LinkId(2), Gone::ForGood, true), []);
    assert_eq!(session.players(), 1);
}

#[test]
fn a_page_that_begins_anew_takes_the_place_of_the_old_one() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    let decisions = join(&mut session, now, 2, comes_back(1, false));
    let replaced = Decision::End(
        LinkId(1),
        EndKind::Replaced,
        "The session goes on in another window.",
    );
    assert_eq!(decisions, [replaced, Decision::Grant(LinkId(2), token(1))]);
    assert_eq!(session.gone(now, LinkId(1), Gone::ForGood, true), []);
    assert_eq!(session.players(), 1);
}

#[test]
fn the_name_of_a_seat_or_a_viewers_token_opens_no_players_seat() {
    let (mut session, now) = ready();
    join(&mut session, now, 1, player("a", 0));
    join(&mut session, now, 2, viewer("a"));
    let refused = |link| [Decision::Refuse(LinkId(link), RefusedReason::NoSuchSession)];
    let mut guess = comes_back(1, true);
    let back = guess.back.as_mut().unwrap();
    back.token = ReturnToken::new(token(1).seat().as_str(), "guess").unwrap();
    assert_eq!(join(&mut session, now, 3, guess), refused(3));
    assert_eq!(join(&mut session, now, 4, comes_back(2, true)), refused(4));
}

#[derive(Debug, Clone)]
enum Step {
    Claim {
        link: u64,
        waited: u64,
        viewer: bool,
        may_return: bool,
    },
    Back {
        link: u64,
        seat: u64,
        live: bool,
    },
    Gone {
        link: u64,
        how: Gone,
        ended: bool,
    },
    Wait {
        ms: u64,
    },
    Drain,
    Ready(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![Just(Gone::ForGood), Just(Gone::Closed), Just(Gone::Lost)];
    let step = prop_oneof![
        6 => (0..20u64, 0..5u64, any::<bool>(), any::<bool>()).prop_map(|(link, waited, viewer, may_return)| {
            Step::Claim { link, waited, viewer, may_return }
        }),
        3 => (0..20u64, 0..20u64, any::<bool>()).prop_map(|(link, seat, live)| Step::Back { link, seat, live }),
        4 => (0..20u64, how, any::<bool>()).prop_map(|(link, how, ended)| Step::Gone { link, how, ended }),
        3 => (0..80u64).prop_map(|ms| Step::Wait { ms }),
        1 => (1000..31_000u64).prop_map(|ms| Step::Wait { ms }),
        1 => any::<bool>().prop_map(Step::Ready),
        1 => Just(Step::Drain),
    ];
    proptest::collection::vec(step, 0..80)
}

/// What a reader of the decisions knows: who still waits for an answer, and who sits where.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<u64, Role>,
    inside: BTreeMap<u64, Role>,
    /// Whose link has ended, and whose seat may still be kept.
    ended: usize,
}

impl Model {
    fn hear(&mut self, decisions: Vec<Decision>) -> Result<(), TestCaseError> {
        for decision in decisions {
            match decision {
                Decision::Grant(LinkId(link), _) => {
                    let role = self.waiting.remove(&link);
                    prop_assert!(role.is_some(), "{link} asked for nothing");
                    self.inside.extend(role.map(|role| (link, role)));
                }
                Decision::Refuse(LinkId(link), _) => {
                    prop_assert!(self.waiting.remove(&link).is_some());
                }
                Decision::HandOver { from, to } => {
                    let role = self.waiting.remove(&from.0);
                    prop_assert_eq!(self.inside.get(&to.0).copied(), role);
                    prop_assert!(role.is_some());
                }
                Decision::End(LinkId(link), ..) => {
                    prop_assert!(self.inside.remove(&link).is_some(), "{link} was not here");
                }
            }
        }
        Ok(())
    }

    fn here(&self, role: Role) -> u32 {
        self.inside.values().filter(|r| **r == role).count() as u32
    }
}

proptest! {
    /// Whatever happens: never more players than the limit, every claim is answered exactly once or withdrawn,
    /// no answer goes to a link that is not waiting for one, and nobody stays away for longer than the grace.
    #[test]
    fn every_claim_gets_one_answer(players in 1..3u32, steps in steps()) {
        let mut session = Session::new(Limits { players, viewers: Some(3), return_grace: GRACE });
        session.set_ready(true);
        let mut now = Instant::now();
        let mut model = Model::default();
        for step in steps {
            let decisions = match step {
                Step::Claim { link, .. } | Step::Back { link, .. }
                    if model.waiting.contains_key(&link) || model.inside.contains_key(&link) => vec![],
                Step::Claim { link, waited, viewer: watches, may_return } => {
                    let mut claim = if watches { viewer("a") } else { player("a", waited) };
                    claim.may_return = may_return;
                    model.waiting.insert(link, claim.role);
                    session.claim(now, LinkId(link), claim, token(link))
                }
                Step::Back { link, seat, live } => {
                    model.waiting.insert(link, Role::Player);
                    session.claim(now, LinkId(link), comes_back(seat, live), token(link))
                }
                // A link whose seat is kept without it has ended for the model too; one that only lost its
                // socket is told when its time is over.
                Step::Gone { link, how, ended } => {
                    model.waiting.remove(&link);
                    let decisions = session.gone(now, LinkId(link), how, ended);
                    let told = decisions.iter().any(|d| matches!(d, Decision::End(LinkId(l), ..) if *l == link));
                    if ended && !told {
                        model.ended += usize::from(model.inside.remove(&link).is_some());
                    }
                    decisions
                }
                Step::Wait { ms } => {
                    now += Duration::from_millis(ms);
                    session.timeout(now)
                }
                Step::Drain => session.drain(),
                Step::Ready(ready) => session.set_ready(ready),
            };
            model.hear(decisions)?;
            prop_assert!(session.players() <= players, "{} players", session.players());
            let unseated = session.players() + session.viewers()
                - model.here(Role::Player) - model.here(Role::Viewer);
            prop_assert!(unseated as usize <= model.ended);
            prop_assert!(session.players() > 0 || session.viewers() == 0);
            prop_assert!(session.poll_timeout().is_none_or(|due| due <= now + GRACE));
        }
        now += BID_WINDOW;
        let left = session.timeout(now);
        model.hear(left)?;
        prop_assert!(model.waiting.is_empty());
        let over = session.timeout(now + GRACE);
        model.hear(over)?;
        prop_assert_eq!(session.away(), 0);
        prop_assert_eq!((session.players(), session.viewers()), (model.here(Role::Player), model.here(Role::Viewer)));
    }
}

fn limits() -> Limits {
    Limits {
        players: 1,
        viewers: Some(8),
        return_grace: GRACE,
    }
}

fn ready() -> (Session, Instant) {
    let mut session = Session::new(limits());
    session.set_ready(true);
    (session, Instant::now())
}

fn join(session: &mut Session, now: Instant, link: u64, claim: Claim) -> Vec<Decision> {
    session.claim(now, LinkId(link), claim, token(link))
}

fn left(session: &mut Session, now: Instant, link: u64) -> Vec<Decision> {
    session.gone(now, LinkId(link), Gone::ForGood, true)
}

fn granted(link: u64) -> Decision {
    Decision::Grant(LinkId(link), token(link))
}

fn token(link: u64) -> ReturnToken {
    ReturnToken::new(&format!("seat-{link}"), &format!("secret-{link}")).unwrap()
}

fn player(session: &str, waited_ms: u64) -> Claim {
    claim(session, Role::Player, waited_ms)
}

fn viewer(session: &str) -> Claim {
    claim(session, Role::Viewer, 0)
}

fn comes_back(seat: u64, live: bool) -> Claim {
    let token = token(seat);
    let back = Some(Back { token, live });
    Claim {
        back,
        ..player("whatever", 0)
    }
}

fn claim(session: &str, role: Role, waited_ms: u64) -> Claim {
    Claim {
        player_id: PlayerId::new("p").unwrap(),
        session_id: SessionId::new(session).unwrap(),
        role,
        waited_ms,
        back: None,
        may_return: true,
    }
}
