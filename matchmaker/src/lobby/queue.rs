//! Those who wait to play: one order of arrival, and in it a line for each wish. Whatever is asked of everybody with one
//! wish is asked of the line once, however many stand in it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use penstock_core::ids::PlayerId;
use penstock_core::wire::status::StreamerStatus;

use super::turnover::Turnover;
use super::types::{Order, Wish};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// All, longest waiting first.
    order: BTreeMap<Order, (PlayerId, LineId)>,
    /// Some are empty: how fast they moved is remembered for a while.
    lines: BTreeMap<LineId, Line>,
    by_wish: HashMap<Wish, LineId>,
    last_line: LineId,
}

/// Those with one wish.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) wish: Wish,
    waiting: BTreeMap<Order, PlayerId>,
    /// How fast places that fit the wish have become free, whoever got them.
    turnover: Turnover,
}

/// A name of a line, never used twice.
pub(super) type LineId = u64;

/// Where somebody stands, among all whose wishes one streamer could meet: those in front may take what this one waits
/// for, and those who ask for something else never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// From 1.
    pub(super) position: usize,
    pub(super) waiting: usize,
    pub(super) line: LineId,
}

impl Queue {
    /// Puts somebody where their order says. Whoever is there already stays.
    pub(super) fn insert(&mut self, now: Instant, order: Order, player: PlayerId, wish: &Wish) {
        if self.order.contains_key(&order) {
            return;
        }
        let id = self.line_for(wish);
        if let Some(line) = self.lines.get_mut(&id) {
            line.pass(now);
            line.waiting.insert(order, player.clone());
            self.order.insert(order, (player, id));
        }
    }

    fn line_for(&mut self, wish: &Wish) -> LineId {
        if let Some(id) = self.by_wish.get(wish) {
            return *id;
        }
        self.last_line += 1;
        let line = Line {
            wish: wish.clone(),
            waiting: BTreeMap::new(),
            turnover: Turnover::default(),
        };
        self.lines.insert(self.last_line, line);
        self.by_wish.insert(wish.clone(), self.last_line);
        self.last_line
    }

    pub(super) fn remove(&mut self, now: Instant, order: Order) {
        let Some((_, id)) = self.order.remove(&order) else {
            return;
        };
        if let Some(line) = self.lines.get_mut(&id) {
            line.pass(now);
            line.waiting.remove(&order);
            self.forget(id);
        }
    }

    /// The one at `order`, if there still is one, got a place on `streamer`; `None` where what that is has been forgotten.
    pub(super) fn placed(&mut self, now: Instant, order: Order, streamer: Option<&StreamerStatus>) {
        let own = self.order.get(&order).map(|(_, line)| *line);
        for (id, line) in &mut self.lines {
            let fits = streamer.map_or(own == Some(*id), |streamer| line.wish.fits(streamer));
            if own.is_some() && fits {
                line.pass(now);
                line.turnover.placed(now);
            }
        }
    }

    /// Time has passed.
    pub(super) fn pass(&mut self, now: Instant) {
        self.lines.values_mut().for_each(|line| line.pass(now));
        let empty = self.lines.iter().filter(|(_, line)| line.waiting.is_empty());
        for id in empty.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget(id);
        }
    }

    /// Forgets a line in which nobody is, unless it is known how fast it moves.
    fn forget(&mut self, id: LineId) {
        let idle = |line: &&Line| line.waiting.is_empty() && !line.turnover.placed_lately();
        if let Some(line) = self.lines.get(&id).filter(idle) {
            self.by_wish.remove(&line.wish);
            self.lines.remove(&id);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All, longest waiting first.
    pub(super) fn players(&self) -> impl Iterator<Item = &PlayerId> {
        self.order.values().map(|(player, _)| player)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.values()
    }

    /// How long the one at this position of a line may expect to wait; `None` where too little is known.
    pub(super) fn expected_wait(&mut self, now: Instant, line: LineId, position: u32) -> Option<Duration> {
        let line = self.lines.get_mut(&line)?;
        line.pass(now);
        line.turnover.expected_wait(position)
    }

    /// Where the one at `order` stands.
    pub(super) fn standing(&self, order: Order) -> Option<Standing> {
        let (_, id) = self.order.get(&order)?;
        // Most are the last: they are counted from behind.
        Some(self.stands(*id, |_, line| {
            line.waiting.len() - line.waiting.range(order..).count()
        }))
    }

    fn stands(&self, id: LineId, before: impl Fn(LineId, &Line) -> usize) -> Standing {
        let (mut position, mut waiting) = (1, 0);
        if let Some(own) = self.lines.get(&id) {
            for (other, line) in self
                .lines
                .iter()
                .filter(|(_, line)| own.wish.overlaps(&line.wish))
            {
                position += before(*other, line);
                waiting += line.waiting.len();
            }
        }
        Standing {
            position,
            waiting,
            line: id,
        }
    }

    /// Who is told of their places now: those near the front, `near` in all, as many of each line; and of the others, in
    /// `turns`, those that come after `after`. Also up to where these are.
    pub(super) fn turn(&self, after: Order, near: usize, turns: usize) -> (Vec<(PlayerId, Standing)>, Order) {
        let occupied = self
            .lines
            .values()
            .filter(|line| !line.waiting.is_empty())
            .count();
        let near_each = (near / occupied.max(1)).max(1);
        let share = self.order.len().div_ceil(turns.max(1));
        let (mut near_left, mut share_left, mut up_to) = (near, share, after);
        let mut passed = BTreeMap::<LineId, usize>::new();
        let mut told = Vec::new();
        for (order, (player, line)) in &self.order {
            let before = passed.get(line).copied().unwrap_or(0);
            let is_near = near_left > 0 && before < near_each;
            let has_turn = *order > after && share_left > 0;
            if has_turn {
                share_left -= 1;
                up_to = *order;
            }
            if is_near {
                near_left -= 1;
            }
            if is_near || has_turn {
                let counted = |line, _: &Line| passed.get(&line).copied().unwrap_or(0);
                told.push((player.clone(), self.stands(*line, counted)));
            }
            *passed.entry(*line).or_default() += 1;
        }
        // At the end it begins anew.
        (told, if share_left == 0 { up_to } else { 0 })
    }
}

impl Line {
    /// Those in it, longest waiting first.
    pub(super) fn players(&self) -> impl Iterator<Item = (Order, &PlayerId)> {
        self.waiting.iter().map(|(order, player)| (*order, player))
    }

    fn pass(&mut self, now: Instant) {
        self.turnover.pass(now, !self.waiting.is_empty());
    }
}
