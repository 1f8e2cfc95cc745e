//! The browser's key codes as X keysyms (X11 protocol, appendix A; `keysymdef.h`).
//!
//! A page sends the legacy `KeyboardEvent.keyCode`, with 253 to 255 for the right Shift, Ctrl and Alt. Those of character
//! keys are read here as on a US keyboard, which `typing.rs` asks for only where no character tells more. Codes that name
//! no key we know give `None`; their text, if any, comes as a character of its own.

/// The keysym of the key, unshifted.
pub fn keysym(code: u8) -> Option<u32> {
    match code {
        b'0'..=b'9' => Some(u32::from(code)),
        b'A'..=b'Z' => Some(u32::from(code) + 0x20),
        // F1 to F24
        112..=135 => Some(0xffbe + u32::from(code) - 112),
        // The number pad's digits
        96..=105 => Some(0xffb0 + u32::from(code) - 96),
        _ => OTHERS
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, keysym)| *keysym),
    }
}

/// The keysym of a character: Latin-1 as it is, the rest in X's Unicode range (X11 protocol, appendix A).
pub fn keysym_of_char(c: char) -> Option<u32> {
    match u32::from(c) {
        0x0a | 0x0d => Some(0xff0d),
        0x09 => Some(0xff09),
        0x08 => Some(0xff08),
        0x00..=0x1f | 0x7f..=0x9f => None,
        latin @ 0x20..=0xff => Some(latin),
        unicode => Some(0x0100_0000 + unicode),
    }
}

const OTHERS: [(u8, u32); 50] = [
    (8, 0xff08),   // BackSpace
    (9, 0xff09),   // Tab
    (12, 0xff0b),  // Clear
    (13, 0xff0d),  // Return
    (16, 0xffe1),  // Shift, left
    (17, 0xffe3),  // Control, left
    (18, 0xffe9),  // Alt, left
    (19, 0xff13),  // Pause
    (20, 0xffe5),  // Caps Lock
    (27, 0xff1b),  // Escape
    (32, 0x0020),  // space
    (33, 0xff55),  // Page Up
    (34, 0xff56),  // Page Down
    (35, 0xff57),  // End
    (36, 0xff50),  // Home
    (37, 0xff51),  // Left
    (38, 0xff52),  // Up
    (39, 0xff53),  // Right
    (40, 0xff54),  // Down
    (44, 0xff61),  // Print
    (45, 0xff63),  // Insert
    (46, 0xffff),  // Delete
    (91, 0xffeb),  // Super, left
    (92, 0xffec),  // Super, right
    (93, 0xff67),  // Menu
    (106, 0xffaa), // number pad *
    (107, 0xffab), // number pad +
    (109, 0xffad), // number pad -
    (110, 0xffae), // number pad .
    (111, 0xffaf), // number pad /
    (144, 0xff7f), // Num Lock
    (145, 0xff14), // Scroll Lock
    (59, 0x003b),  // ;  (as Firefox numbers it)
    (61, 0x003d),  // =
    (173, 0x002d), // -
    (186, 0x003b), // ;
    (187, 0x003d), // =
    (188, 0x002c), // ,
    (189, 0x002d), // -
    (190, 0x002e), // .
    (191, 0x002f), // /
    (192, 0x0060), // `
    (219, 0x005b), // [
    (220, 0x005c), // \
    (221, 0x005d), // ]
    (222, 0x0027), // '
    (226, 0x003c), // < beside the left Shift of an ISO keyboard
    (253, 0xffe2), // Shift, right
    (254, 0xffe4), // Control, right
    (255, 0xffea), // Alt, right
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_x_names_them() {
        assert_eq!(keysym(65), Some(u32::from('a')));
        assert_eq!(keysym(112), Some(0xffbe));
        assert_eq!(keysym(96), Some(0xffb0));
        assert_eq!(keysym(253), Some(0xffe2));
        assert_eq!(keysym(0), None);
        assert_eq!(keysym(229), None);
    }

    #[test]
    fn characters_beyond_latin_1_are_unicode_keysyms() {
        assert_eq!(keysym_of_char('é'), Some(0xe9));
        assert_eq!(keysym_of_char('€'), Some(0x0100_20ac));
        assert_eq!(keysym_of_char('\u{1}'), None);
    }

    #[test]
    fn no_code_is_listed_twice() {
        for (i, (code, _)) in OTHERS.iter().enumerate() {
            assert!(OTHERS[i + 1..].iter().all(|(other, _)| other != code), "{code}");
        }
    }
}
