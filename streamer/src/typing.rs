//! What the page's key messages mean on a keyboard that need not be the player's.
//!
//! ```text
//!  KeyDown of a character key ─► waits ─┬─ KeyPress follows ──► the key of that character, down until KeyUp
//!                                       └─ none does ─► a letter or digit: that key; else a dead key: nothing
//!  with Ctrl, Alt or Meta ─────────────────────────► the key itself: a shortcut
//!  with Ctrl and Alt (AltGr on Windows) ─► waits ─┬─ KeyPress follows ─► its character, without Ctrl and Alt
//!                                                 └─ none does ────────► the key itself
//! ```
//!
//! A key code says which key it was on the player's own keyboard: 192 is a backtick in the US and ö in Germany. What
//! the key gave comes with the `keypress` event, which a browser sends in the same burst; so the key waits for that.

use std::collections::BTreeSet;

/// What to do on the display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// The key of this code goes down, whatever it gives.
    Key(u8),
    /// The key of this code goes down as one that gives this character.
    Character(u8, char),
    /// This character is typed, without the Ctrl and Alt that are held: they are AltGr.
    AltGr(char),
    /// This character is typed.
    Typed(char),
    /// The key of this code goes up.
    Up(u8),
}

/// The keyboard of one player.
#[derive(Debug, Default)]
pub struct Typist {
    modifiers: BTreeSet<u8>,
    /// A character key whose character may follow.
    waits: Option<u8>,
    /// Whether the characters that follow are those of a key that went down as itself.
    typed_by_key: bool,
}

impl Typist {
    /// A key went down, or repeats.
    pub fn down(&mut self, code: u8) -> Vec<Stroke> {
        let mut strokes = self.settle();
        if CONTROL.contains(&code) || ALT.contains(&code) || META.contains(&code) || SHIFT.contains(&code) {
            self.modifiers.insert(code);
        }
        if is_character(code) && !self.is_shortcut() {
            self.waits = Some(code);
        } else {
            self.typed_by_key = crate::keys::keysym(code).is_some();
            strokes.push(Stroke::Key(code));
        }
        strokes
    }

    /// A key gave this character.
    pub fn press(&mut self, c: char) -> Vec<Stroke> {
        match self.waits.take() {
            Some(code) if c.is_control() => {
                self.typed_by_key = true;
                vec![Stroke::Key(code)]
            }
            Some(code) => {
                // A dead key gives two where it can't be combined.
                self.typed_by_key = false;
                match self.has_alt_gr() {
                    true => vec![Stroke::AltGr(c)],
                    false => vec![Stroke::Character(code, c)],
                }
            }
            None if self.typed_by_key => Vec::new(),
            None => vec![Stroke::Typed(c)],
        }
    }

    /// A key went up.
    pub fn up(&mut self, code: u8) -> Vec<Stroke> {
        let mut strokes = self.settle();
        self.modifiers.remove(&code);
        strokes.push(Stroke::Up(code));
        strokes
    }

    /// Whether a key waits for its character.
    pub fn waits(&self) -> bool {
        self.waits.is_some()
    }

    /// No character follows.
    pub fn settle(&mut self) -> Vec<Stroke> {
        let Some(code) = self.waits.take() else {
            return Vec::new();
        };
        // Letters and digits are dead on no common keyboard, but for digits with Shift.
        let plain = match code {
            b'0'..=b'9' => !self.holds(&SHIFT),
            b'A'..=b'Z' | b' ' => true,
            _ => false,
        };
        self.typed_by_key = plain || self.has_alt_gr();
        match self.typed_by_key {
            true => vec![Stroke::Key(code)],
            false => Vec::new(),
        }
    }

    fn is_shortcut(&self) -> bool {
        self.holds(&META) || self.holds(&CONTROL) != self.holds(&ALT)
    }

    fn has_alt_gr(&self) -> bool {
        self.holds(&CONTROL) && self.holds(&ALT)
    }

    fn holds(&self, which: &[u8]) -> bool {
        which.iter().any(|code| self.modifiers.contains(code))
    }
}

const SHIFT: [u8; 2] = [16, 253];
const CONTROL: [u8; 2] = [17, 254];
const ALT: [u8; 2] = [18, 255];
const META: [u8; 2] = [91, 92];

/// The modifiers that AltGr is made of.
pub const ALT_GR: [u8; 4] = [17, 254, 18, 255];

/// Whether some keyboard has a character on the key of this code; 160 to 176 are Firefox's.
fn is_character(code: u8) -> bool {
    matches!(code, b' ' | b'0'..=b'9' | b'A'..=b'Z')
        || matches!(code, 58..=64 | 160..=165 | 169..=171 | 173 | 176 | 186..=194 | 219..=223 | 226)
}

#[cfg(test)]
mod tests {
    use super::Stroke::{AltGr, Character, Key, Typed, Up};
    use super::*;

    /// What a page sends.
    enum Sent {
        D(u8),
        P(char),
        U(u8),
        Pause,
    }
    use Sent::{D, P, Pause, U};

    fn play(sent: &[Sent]) -> Vec<Stroke> {
        let mut typist = Typist::default();
        let strokes = sent.iter().flat_map(|sent| match sent {
            D(code) => typist.down(*code),
            P(c) => typist.press(*c),
            U(code) => typist.up(*code),
            Pause => typist.settle(),
        });
        strokes.collect()
    }

    #[test]
    fn a_us_keyboard_presses_its_keys() {
        assert_eq!(play(&[D(87), P('w'), U(87)]), [Character(87, 'w'), Up(87)]);
        // Held, as in a game.
        assert_eq!(
            play(&[D(87), P('w'), D(87), P('w'), D(65), P('a'), U(87)]),
            [Character(87, 'w'), Character(87, 'w'), Character(65, 'a'), Up(87)]
        );
        assert_eq!(
            play(&[D(16), D(49), P('!'), U(49), U(16)]),
            [Key(16), Character(49, '!'), Up(49), Up(16)]
        );
        assert_eq!(play(&[D(13), P('\r'), U(13)]), [Key(13), Up(13)]);
        assert_eq!(play(&[D(8), P('\u{8}'), U(8)]), [Key(8), Up(8)]);
        // The number pad's keys are not those of the row above.
        assert_eq!(play(&[D(97), P('1'), U(97)]), [Key(97), Up(97)]);
    }

    #[test]
    fn shortcuts_are_the_keys_themselves() {
        assert_eq!(
            play(&[D(17), D(67), U(67), U(17)]),
            [Key(17), Key(67), Up(67), Up(17)]
        );
        assert_eq!(play(&[D(18), D(70), P('f')]), [Key(18), Key(70)]);
        assert_eq!(play(&[D(91), D(192)]), [Key(91), Key(192)]);
        assert_eq!(play(&[D(17), D(18), D(84), Pause]), [Key(17), Key(18), Key(84)]);
        // Released again, they are none.
        assert_eq!(
            play(&[D(17), U(17), D(67), P('c')]),
            [Key(17), Up(17), Character(67, 'c')]
        );
    }

    #[test]
    fn a_german_keyboard_types_what_it_says() {
        assert_eq!(play(&[D(192), P('ö'), U(192)]), [Character(192, 'ö'), Up(192)]);
        assert_eq!(play(&[D(90), P('z'), U(90)]), [Character(90, 'z'), Up(90)]);
        assert_eq!(play(&[D(226), P('<'), U(226)]), [Character(226, '<'), Up(226)]);
        assert_eq!(play(&[D(16), D(55), P('/')]), [Key(16), Character(55, '/')]);
    }

    #[test]
    fn alt_gr_is_no_shortcut() {
        // Windows sends Ctrl with it, Linux a code of its own.
        assert_eq!(
            play(&[D(17), D(255), D(81), P('@'), U(81)]),
            [Key(17), Key(255), AltGr('@'), Up(81)]
        );
        assert_eq!(play(&[D(225), D(81), P('@')]), [Key(225), Character(81, '@')]);
    }

    #[test]
    fn a_dead_key_gives_what_it_is_combined_to() {
        assert_eq!(
            play(&[D(220), U(220), D(69), P('ê'), U(69)]),
            [Up(220), Character(69, 'ê'), Up(69)]
        );
        // ^ and x can't be combined, and come one after the other.
        assert_eq!(
            play(&[D(220), U(220), D(88), P('^'), P('x'), U(88)]),
            [Up(220), Character(88, '^'), Typed('x'), Up(88)]
        );
        assert_eq!(play(&[D(220), Pause, D(32), P('^')]), [Character(32, '^')]);
    }

    #[test]
    fn a_key_whose_character_is_late_or_never_comes_goes_down_once() {
        assert_eq!(play(&[D(87), Pause, P('w'), U(87)]), [Key(87), Up(87)]);
        assert_eq!(play(&[D(87), D(65), P('a')]), [Key(87), Character(65, 'a')]);
        assert_eq!(play(&[D(192), Pause, P('ö')]), [Typed('ö')]);
        // A key that nobody knows still gives its character.
        assert_eq!(play(&[D(234), P('æ')]), [Key(234), Typed('æ')]);
    }
}
