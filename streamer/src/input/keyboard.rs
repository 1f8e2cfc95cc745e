//! What the keys of the display's keyboard give, and keys that are lent a meaning.

use std::collections::HashMap;

/// What a key gives, alone and with Shift (X11 protocol, chapter 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    keycode: u8,
    shifted: bool,
    /// Caps Lock does to it what Shift does.
    letter: bool,
}

/// The keyboard's mapping.
#[derive(Debug)]
pub(super) struct Keyboard {
    places: HashMap<u32, Vec<Place>>,
    /// Keys without a meaning, and what meaning they were lent; whose turn is next.
    spare: Vec<(u8, u32)>,
    next_spare: usize,
}

impl Keyboard {
    /// From the X server's answer: `width` keysyms for each keycode from `first` on. What `old` has lent is still
    /// lent where the mapping has it.
    pub(super) fn new(first: u8, width: usize, keysyms: &[u32], old: Option<&Self>) -> Self {
        let mut keyboard = Self {
            places: HashMap::new(),
            spare: Vec::new(),
            next_spare: old.map_or(0, |old| old.next_spare),
        };
        for (keycode, keysyms) in (first..=u8::MAX).zip(keysyms.chunks(width.max(1))) {
            let lent = old.map_or(0, |old| old.lent_to(keycode));
            let is_lent = lent != 0 && keysyms.first() == Some(&lent);
            if is_lent || keysyms.iter().all(|keysym| *keysym == 0) {
                keyboard.spare.push((keycode, if is_lent { lent } else { 0 }));
                continue;
            }
            let plain = keysyms.first().copied().unwrap_or(0);
            let shifted = keysyms.get(1).copied().unwrap_or(0);
            let letter = is_letter(plain, shifted);
            keyboard.add(plain, keycode, false, letter);
            // A letter may be named alone: Shift then makes it a capital.
            keyboard.add(shifted, keycode, true, letter);
        }
        keyboard
    }

    fn add(&mut self, keysym: u32, keycode: u8, shifted: bool, letter: bool) {
        if keysym != 0 {
            let place = Place {
                keycode,
                shifted,
                letter,
            };
            self.places.entry(keysym).or_default().push(place);
        }
    }

    /// The key that gives this without Shift.
    pub(super) fn plain(&self, keysym: u32) -> Option<u8> {
        self.giving(keysym, false, false)
    }

    /// The key that gives this as Shift and Caps Lock are.
    pub(super) fn giving(&self, keysym: u32, shift: bool, caps_lock: bool) -> Option<u8> {
        let places = self.places.get(&keysym)?;
        let gives = |place: &&Place| place.shifted == (shift ^ (caps_lock && place.letter));
        places.iter().find(gives).map(|place| place.keycode)
    }

    /// The meaning that was lent to a key; 0 where none was.
    pub(super) fn lent_to(&self, keycode: u8) -> u32 {
        let found = self.spare.iter().find(|(spare, _)| *spare == keycode);
        found.map_or(0, |(_, lent)| *lent)
    }

    /// A key that gives exactly `keysym`, and whether it has yet to be given that meaning. Meanings are lent in turn,
    /// so that an application has time to learn of a change before the key changes again; a key that is down keeps
    /// its own.
    pub(super) fn lend(&mut self, keysym: u32, is_down: impl Fn(u8) -> bool) -> Option<(u8, bool)> {
        if let Some((keycode, _)) = self.spare.iter().find(|(_, lent)| *lent == keysym) {
            return Some((*keycode, false));
        }
        for _ in 0..self.spare.len() {
            let index = self.next_spare % self.spare.len();
            self.next_spare = index + 1;
            let (keycode, lent) = &mut self.spare[index];
            if !is_down(*keycode) {
                *lent = keysym;
                return Some((*keycode, true));
            }
        }
        None
    }
}

/// Latin-1's letters, whose keysyms are their characters.
fn is_letter(plain: u32, shifted: u32) -> bool {
    let letter = u8::try_from(plain)
        .ok()
        .map(char::from)
        .filter(|c| c.is_lowercase());
    letter.is_some_and(|c| c.to_uppercase().eq(char::from_u32(shifted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KP_END: u32 = 0xff9c;
    const KP_1: u32 = 0xffb1;

    /// w, 1, a comma, the number pad's 1, the key beside the left Shift, and two without a meaning.
    fn us() -> Keyboard {
        let keysyms = [
            u32::from('w'),
            u32::from('W'),
            u32::from('1'),
            u32::from('!'),
            u32::from(','),
            u32::from('<'),
            KP_END,
            KP_1,
            u32::from('<'),
            u32::from('>'),
            0,
            0,
            0,
            0,
        ];
        Keyboard::new(10, 2, &keysyms, None)
    }

    #[test]
    fn a_key_is_found_by_what_it_gives_as_shift_and_caps_lock_are() {
        let us = us();
        let giving = |c: char, shift, caps_lock| us.giving(u32::from(c), shift, caps_lock);
        assert_eq!(giving('w', false, false), Some(10));
        assert_eq!(giving('W', true, false), Some(10));
        assert_eq!(giving('W', false, false), None);
        assert_eq!(giving('W', false, true), Some(10));
        assert_eq!(giving('w', true, true), Some(10));
        assert_eq!(giving('w', false, true), None);
        assert_eq!(giving('!', true, false), Some(11));
        assert_eq!(giving('!', false, true), None);
        assert_eq!(giving('1', false, true), Some(11));
        assert_eq!(giving('ö', false, false), None);
    }

    #[test]
    fn what_only_shift_gives_is_no_key_of_its_own() {
        let us = us();
        assert_eq!(us.plain(u32::from('<')), Some(14));
        assert_eq!(us.plain(KP_END), Some(13));
        assert_eq!(us.plain(KP_1), None);
    }

    #[test]
    fn meanings_are_lent_in_turn_but_not_by_a_key_that_is_down() {
        let mut us = us();
        assert_eq!(us.lend(1, |_| false), Some((15, true)));
        assert_eq!(us.lend(1, |_| true), Some((15, false)));
        assert_eq!(us.lend(2, |_| false), Some((16, true)));
        assert_eq!(us.lend(3, |keycode| keycode == 15), Some((16, true)));
        assert_eq!(us.lend(4, |_| true), None);
        assert_eq!((us.lent_to(15), us.lent_to(16)), (1, 3));
    }

    #[test]
    fn a_mapping_read_again_knows_what_was_lent() {
        let mut us = us();
        us.lend(77, |_| false);
        let again = Keyboard::new(15, 2, &[77, 77, 0, 0], Some(&us));
        assert_eq!((again.plain(77), again.lent_to(15)), (None, 77));
        // Someone else has given it another meaning.
        let taken = Keyboard::new(15, 2, &[78, 78, 0, 0], Some(&us));
        assert_eq!((taken.plain(78), taken.lent_to(15)), (Some(15), 0));
    }
}
