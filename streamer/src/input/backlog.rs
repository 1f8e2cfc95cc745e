//! What waits for a slow X server: moves are merged, and releases are never dropped, or a key would stay down.

use std::collections::VecDeque;

use crate::data_channel::FromPage;
use crate::session::LinkId;

/// Whose hand, and what it does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event(pub(super) LinkId, pub(super) Hand);

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hand {
    Does(FromPage),
    LetsGo,
}

/// Events that may wait; of more, only releases are kept.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<Event>);

/// What goes up.
#[derive(PartialEq)]
enum Release {
    Key(u8),
    Button(u8),
    Finger,
    All,
}

impl Backlog {
    /// Whether the event was taken.
    pub(super) fn push(&mut self, event: Event) -> bool {
        if let (Some(last), true) = (self.0.back_mut(), is_move(&event))
            && last.0 == event.0
            && is_move(last)
        {
            *last = event;
            return true;
        }
        if self.0.len() < MOST {
            self.0.push_back(event);
            return true;
        }
        let Some(release) = release(&event) else {
            return false;
        };
        // Beyond the most there are only releases: each is needed once, so this has an end.
        let mut beyond = self.0.iter().skip(MOST);
        let is_there =
            beyond.any(|there| there.0 == event.0 && self::release(there).as_ref() == Some(&release));
        if !is_there {
            self.0.push_back(event);
        }
        true
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.0.pop_front()
    }
}

fn is_move(event: &Event) -> bool {
    matches!(event.1, Hand::Does(FromPage::MouseMove { .. }))
}

fn release(event: &Event) -> Option<Release> {
    match &event.1 {
        Hand::LetsGo => Some(Release::All),
        Hand::Does(FromPage::KeyUp { code }) => Some(Release::Key(*code)),
        Hand::Does(FromPage::MouseUp { button, .. }) => Some(Release::Button(*button)),
        Hand::Does(FromPage::TouchEnd(_)) => Some(Release::Finger),
        Hand::Does(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pointer::Normalized;

    const ANN: LinkId = LinkId(1);
    const BOB: LinkId = LinkId(2);

    fn down(code: u8) -> Hand {
        Hand::Does(FromPage::KeyDown { code, repeat: false })
    }

    fn up(code: u8) -> Hand {
        Hand::Does(FromPage::KeyUp { code })
    }

    fn to(x: u16) -> Hand {
        let (at, delta) = (Normalized { x, y: 0 }, (0, 0));
        Hand::Does(FromPage::MouseMove { at, delta })
    }

    #[test]
    fn releases_are_kept_however_many_wait() {
        let mut backlog = Backlog::default();
        for _ in 0..MOST {
            assert!(backlog.push(Event(ANN, down(87))));
        }
        assert!(!backlog.push(Event(ANN, down(65))));
        for _ in 0..3 {
            assert!(backlog.push(Event(ANN, up(87))));
            assert!(backlog.push(Event(BOB, up(87))));
            assert!(backlog.push(Event(ANN, Hand::LetsGo)));
        }
        let waiting: Vec<_> = std::iter::from_fn(|| backlog.pop()).skip(MOST).collect();
        let wanted = [Event(ANN, up(87)), Event(BOB, up(87)), Event(ANN, Hand::LetsGo)];
        assert_eq!(waiting, wanted);
    }

    #[test]
    fn moves_of_one_hand_that_follow_one_another_are_one() {
        let mut backlog = Backlog::default();
        for event in [
            Event(ANN, to(1)),
            Event(ANN, to(2)),
            Event(BOB, to(3)),
            Event(ANN, up(1)),
            Event(ANN, to(4)),
        ] {
            assert!(backlog.push(event));
        }
        let waiting: Vec<_> = std::iter::from_fn(|| backlog.pop()).collect();
        let wanted = [
            Event(ANN, to(2)),
            Event(BOB, to(3)),
            Event(ANN, up(1)),
            Event(ANN, to(4)),
        ];
        assert_eq!(waiting, wanted);
    }
}
