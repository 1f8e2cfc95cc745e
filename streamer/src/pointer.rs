//! Pointer state: the browser's coordinates, buttons and wheel as X knows them.

use std::collections::{BTreeMap, BTreeSet};

/// Browser coordinates: 65,536ths of the picture's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normalized {
    /// Across.
    pub x: u16,
    /// Down.
    pub y: u16,
}

impl Normalized {
    /// What the page sends for "outside of the picture".
    pub const OUTSIDE: Self = Self {
        x: u16::MAX,
        y: u16::MAX,
    };

    /// The pixel of a `width` by `height` picture; `None` where it is outside.
    pub fn to_pixel(self, width: u32, height: u32) -> Option<(u32, u32)> {
        let pixel = |n: u16, side: u32| {
            let rounded = (u64::from(n) * u64::from(side) + 32_768) / 65_536;
            // Rounding up at the far edge must not leave the picture.
            (rounded as u32).min(side.saturating_sub(1))
        };
        (self != Self::OUTSIDE).then(|| (pixel(self.x, width), pixel(self.y, height)))
    }
}

/// The X button of a browser's button number (UI Events, `MouseEvent.button`): 0 left, 1 middle, 2 right, 3 back,
/// 4 forward. X has the wheel on 4 to 7.
pub fn x_button(browser: u8) -> Option<u8> {
    match browser {
        0..=2 => Some(browser + 1),
        3 => Some(8),
        4 => Some(9),
        _ => None,
    }
}

/// Which keys or buttons are down, and by whose hands, so that an odd release is dropped, and none stays down when its
/// player leaves: what another holds too stays down, and so does what only others hold.
#[derive(Debug)]
pub struct Held<H>(BTreeMap<u8, BTreeSet<H>>);

impl<H> Default for Held<H> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<H: Ord> Held<H> {
    /// A press: `true` where it was up.
    pub fn press(&mut self, hand: H, what: u8) -> bool {
        let hands = self.0.entry(what).or_default();
        let was_up = hands.is_empty();
        hands.insert(hand);
        was_up
    }

    /// Whether any hand holds it down.
    pub fn is_down(&self, what: u8) -> bool {
        self.0.contains_key(&what)
    }

    /// A release: `true` where it is up then, and was down.
    pub fn release(&mut self, hand: &H, what: u8) -> bool {
        let Some(hands) = self.0.get_mut(&what) else {
            return false;
        };
        let goes_up = hands.remove(hand) && hands.is_empty();
        if hands.is_empty() {
            self.0.remove(&what);
        }
        goes_up
    }

    /// This hand lets go of all that it holds. Gives what is up then.
    pub fn release_all(&mut self, hand: &H) -> Vec<u8> {
        let down: Vec<_> = self.0.keys().copied().collect();
        down.into_iter()
            .filter(|what| self.release(hand, *what))
            .collect()
    }
}

/// Turns wheel deltas, 120 a notch, into clicks of X's buttons 4 (up) and 5 (down).
#[derive(Debug, Default)]
pub struct Wheel(i32);

impl Wheel {
    const NOTCH: i32 = 120;
    /// More clicks than this at once are no wheel.
    const MOST: u32 = 20;

    /// The button to click and how often. Part of a notch is kept for the next time.
    pub fn turn(&mut self, delta: i16) -> (u8, u32) {
        let delta = i32::from(delta);
        if delta.signum() * self.0.signum() < 0 {
            self.0 = 0;
        }
        self.0 += delta;
        let clicks = self.0 / Self::NOTCH;
        self.0 %= Self::NOTCH;
        (
            if clicks > 0 { 4 } else { 5 },
            clicks.unsigned_abs().min(Self::MOST),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_pixel_comes_back_within_one(x in 0..1280u32, y in 0..720u32) {
            // As the page does it: x / width * 65536, cut off.
            let sent = Normalized { x: (x * 65_536 / 1280) as u16, y: (y * 65_536 / 720) as u16 };
            let (back_x, back_y) = sent.to_pixel(1280, 720).unwrap();
            prop_assert!(back_x.abs_diff(x) <= 1 && back_y.abs_diff(y) <= 1);
        }

        #[test]
        fn no_coordinate_leaves_the_picture(x: u16, y: u16, width in 1..9000u32, height in 1..9000u32) {
            if let Some((x, y)) = (Normalized { x, y }).to_pixel(width, height) {
                prop_assert!(x < width && y < height);
            }
        }
    }

    #[test]
    fn outside_is_nowhere() {
        assert_eq!(Normalized::OUTSIDE.to_pixel(1280, 720), None);
    }

    #[test]
    fn a_release_without_a_press_is_dropped() {
        let mut held = Held::default();
        assert!(!held.release(&"ann", 1));
        assert!(held.press("ann", 1));
        assert!(!held.press("ann", 1));
        assert!(held.press("ann", 3));
        assert!(held.release(&"ann", 1));
        assert_eq!(held.release_all(&"ann"), [3]);
        assert!(held.release_all(&"ann").is_empty());
    }

    #[test]
    fn of_several_players_each_lets_go_of_its_own() {
        let mut held = Held::default();
        for (player, what) in [("ann", 1), ("ann", 2), ("bob", 2), ("bob", 3)] {
            held.press(player, what);
        }
        assert!(!held.release(&"ann", 3), "it is not hers");
        assert_eq!(held.release_all(&"ann"), [1], "Bob holds the second too");
        assert!(held.release(&"bob", 2));
        assert_eq!(held.release_all(&"bob"), [3]);
    }

    #[test]
    fn a_wheel_of_small_steps_clicks_once_a_notch() {
        let mut wheel = Wheel::default();
        assert_eq!(wheel.turn(120), (4, 1));
        let clicks: u32 = (0..8).map(|_| wheel.turn(-30).1).sum();
        assert_eq!(clicks, 2);
        assert_eq!(wheel.turn(100).1, 0);
        assert_eq!(wheel.turn(-100).1, 0);
        assert_eq!(wheel.turn(i16::MIN).1, 20);
    }
}
