//! Which frames a peer gets, when the encoder is asked for a keyframe, and which bitrate it is set to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::session::LinkId;

/// The least time between two keyframes. Requests in between are answered by one keyframe at its end: each keyframe
/// costs many times a usual frame, and everybody gets it.
pub const KEYFRAME_INTERVAL: Duration = Duration::from_millis(250);
/// The least time from any keyframe to one that is for a viewer who watches already: one on a bad line must not spoil
/// the player's picture.
pub const VIEWER_KEYFRAME_INTERVAL: Duration = Duration::from_secs(3);

/// Who a keyframe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyframeFor {
    /// A player, or a viewer who has seen no picture yet.
    PlayerOrNewcomer,
    /// A viewer who watches.
    Viewer,
}

impl KeyframeFor {
    fn interval(self) -> Duration {
        match self {
            Self::PlayerOrNewcomer => KEYFRAME_INTERVAL,
            Self::Viewer => VIEWER_KEYFRAME_INTERVAL,
        }
    }
}

/// Merges keyframe requests.
#[derive(Debug, Default)]
pub struct KeyframeGate {
    last: Option<Instant>,
    due: Option<Instant>,
}

impl KeyframeGate {
    /// Somebody needs a keyframe. `true` where the encoder is to be asked now; otherwise [`Self::poll_timeout`]
    /// says when.
    pub fn request(&mut self, now: Instant, who: KeyframeFor) -> bool {
        match self.last.map(|last| last + who.interval()) {
            Some(earliest) if now < earliest => {
                self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
                false
            }
            _ => {
                self.fire(now);
                true
            }
        }
    }

    /// When a merged request is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// `true` where the encoder is to be asked now.
    pub fn timeout(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.fire(now);
        }
        due
    }

    fn fire(&mut self, now: Instant) {
        self.last = Some(now);
        self.due = None;
    }
}

/// The video bitrates that players wish for. All see one encode, so that the least holds.
#[derive(Debug, Default)]
pub struct BitrateWishes(BTreeMap<LinkId, u32>);

impl BitrateWishes {
    /// The player of `link` wishes for `kbps`, instead of what it wished for before. What holds now.
    pub fn wish(&mut self, link: LinkId, kbps: u32) -> u32 {
        self.0.insert(link, kbps);
        self.least()
    }

    /// `link` has ended. What holds now, if it had a wish.
    pub fn gone(&mut self, link: LinkId) -> Option<u32> {
        self.0.remove(&link).map(|_| self.least())
    }

    /// Without wishes there is no limit but the encoder's.
    fn least(&self) -> u32 {
        self.0.values().min().copied().unwrap_or(u32::MAX)
    }
}

/// What may be sent again to a peer that reports losses: half as much as is sent anew, and so many bytes at once. On a
/// line that is too slow, more would only add to what is lost.
#[derive(Debug)]
pub struct ResendBudget(usize);

/// Some pictures' worth.
const RESEND_BURST_BYTES: usize = 512 * 1024;

impl Default for ResendBudget {
    fn default() -> Self {
        Self(RESEND_BURST_BYTES)
    }
}

impl ResendBudget {
    /// So many bytes were sent for the first time.
    pub fn sent(&mut self, bytes: usize) {
        self.0 = (self.0 + bytes / 2).min(RESEND_BURST_BYTES);
    }

    /// Whether so many bytes may be sent again; if so, they count as sent.
    pub fn take(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// What a peer does with the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Send it.
    Send,
    /// Throw it away: it builds on one that the peer has not got.
    Skip,
    /// Throw it away, and ask for a keyframe.
    SkipAndAsk,
}

/// A peer's place in the stream: it starts at a keyframe, and after a gap waits for the next one.
#[derive(Debug, Default)]
pub struct Cursor {
    in_step: bool,
    asked: bool,
}

impl Cursor {
    /// Frames were lost before the next one.
    pub fn gap(&mut self) {
        self.in_step = false;
        self.asked = false;
    }

    /// What to do with the next frame.
    pub fn next(&mut self, keyframe: bool) -> Frame {
        self.in_step |= keyframe;
        match (self.in_step, self.asked) {
            (true, _) => {
                self.asked = false;
                Frame::Send
            }
            (false, true) => Frame::Skip,
            (false, false) => {
                self.asked = true;
                Frame::SkipAndAsk
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_requests_within_the_interval_make_two_keyframes() {
        let mut gate = KeyframeGate::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let now: Vec<_> = (0..10)
            .map(|i| gate.request(at(i * 10), KeyframeFor::PlayerOrNewcomer))
            .collect();
        assert_eq!(now.iter().filter(|asked| **asked).count(), 1);
        assert!(!gate.timeout(at(249)));
        assert_eq!(gate.poll_timeout(), Some(at(250)));
        assert!(gate.timeout(at(250)));
        assert!(!gate.timeout(at(251)));
        assert!(gate.request(at(501), KeyframeFor::PlayerOrNewcomer));
    }

    #[test]
    fn a_viewer_on_a_bad_line_gets_a_keyframe_in_three_seconds_and_a_player_at_once() {
        let mut gate = KeyframeGate::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(gate.request(at(0), KeyframeFor::PlayerOrNewcomer));
        let mut keyframes = vec![];
        for ms in (10..10_000).step_by(10) {
            if gate.timeout(at(ms)) || gate.request(at(ms), KeyframeFor::Viewer) {
                keyframes.push(ms);
            }
        }
        assert_eq!(keyframes, [3_000, 6_000, 9_000]);
        assert_eq!(gate.poll_timeout(), Some(at(12_000)));

        assert!(gate.request(at(10_000), KeyframeFor::PlayerOrNewcomer));
        assert_eq!(gate.poll_timeout(), None, "the viewer has that one, too");
        assert!(!gate.request(at(10_010), KeyframeFor::Viewer));
        assert!(!gate.request(at(10_020), KeyframeFor::PlayerOrNewcomer));
        assert!(!gate.request(at(10_030), KeyframeFor::Viewer));
        assert_eq!(
            gate.poll_timeout(),
            Some(at(10_250)),
            "a player does not wait for a viewer"
        );
    }

    #[test]
    fn half_of_what_is_sent_may_be_sent_again() {
        let mut budget = ResendBudget::default();
        let burst = (0..10_000).filter(|_| budget.take(1_000)).count();
        assert_eq!(burst, RESEND_BURST_BYTES / 1_000);
        let mut again = 0;
        for _ in 0..1_000 {
            budget.sent(1_000);
            again += usize::from(budget.take(1_000));
        }
        assert_eq!(again, 500);
        for _ in 0..10_000 {
            budget.sent(1_000);
        }
        assert_eq!((0..10_000).filter(|_| budget.take(1_000)).count(), burst);
    }

    #[test]
    fn the_least_bitrate_that_a_player_wishes_for_holds_until_its_link_ends() {
        let mut wishes = BitrateWishes::default();
        let [first, reloaded, other] = [1, 2, 3].map(LinkId);
        assert_eq!(wishes.wish(first, 2_000), 2_000);
        assert_eq!(
            wishes.wish(other, 3_000),
            2_000,
            "one may not raise it for another"
        );
        assert_eq!(wishes.wish(reloaded, 1_000), 1_000);
        assert_eq!(
            wishes.gone(first),
            Some(1_000),
            "an old link's end changes nothing"
        );
        assert_eq!(wishes.gone(first), None);
        assert_eq!(wishes.wish(reloaded, 4_000), 3_000);
        assert_eq!(wishes.gone(other), Some(4_000));
        assert_eq!(wishes.gone(reloaded), Some(u32::MAX));
    }

    #[test]
    fn a_peer_begins_at_a_keyframe_and_asks_once() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.next(false), Frame::SkipAndAsk);
        assert_eq!(cursor.next(false), Frame::Skip);
        assert_eq!(cursor.next(true), Frame::Send);
        assert_eq!(cursor.next(false), Frame::Send);
    }

    #[test]
    fn after_a_gap_nothing_is_sent_before_the_next_keyframe() {
        let mut cursor = Cursor::default();
        cursor.next(true);
        cursor.gap();
        assert_eq!(cursor.next(false), Frame::SkipAndAsk);
        cursor.gap();
        assert_eq!(cursor.next(true), Frame::Send);
    }
}
