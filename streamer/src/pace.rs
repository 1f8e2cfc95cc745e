//! Which frames a peer gets, and when the encoder is asked for a keyframe.

use std::time::{Duration, Instant};

/// The least time between two keyframes that viewers ask for. Requests in between are answered by one keyframe at
/// its end: each keyframe costs many times a usual frame, and all viewers get it.
pub const KEYFRAME_INTERVAL: Duration = Duration::from_millis(250);

/// Merges keyframe requests.
#[derive(Debug, Default)]
pub struct KeyframeGate {
    last: Option<Instant>,
    due: Option<Instant>,
}

impl KeyframeGate {
    /// Somebody needs a keyframe. `true` where the encoder is to be asked now; otherwise [`Self::poll_timeout`]
    /// says when.
    pub fn request(&mut self, now: Instant) -> bool {
        match self.last.map(|last| last + KEYFRAME_INTERVAL) {
            Some(earliest) if now < earliest => {
                self.due = Some(earliest);
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
        let now: Vec<_> = (0..10).map(|i| gate.request(at(i * 10))).collect();
        assert_eq!(now.iter().filter(|asked| **asked).count(), 1);
        assert!(!gate.timeout(at(249)));
        assert_eq!(gate.poll_timeout(), Some(at(250)));
        assert!(gate.timeout(at(250)));
        assert!(!gate.timeout(at(251)));
        assert!(gate.request(at(501)));
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
