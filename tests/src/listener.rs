//! An X client that reports the input it gets.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::Context as _;
use x11rb::connection::Connection as _;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{ConnectionExt as _, CreateWindowAux, EventMask, InputFocus, WindowClass};
use x11rb::rust_connection::RustConnection;

/// What the client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A key went down: its keysym, by the keyboard's mapping and the state of Shift.
    Key(u32),
    /// A button went down, where.
    Press(u8, i16, i16),
    /// A button went up, where.
    Release(u8, i16, i16),
}

/// A full-screen window of an X client of its own.
pub struct Listener {
    heard: Receiver<Heard>,
}

impl Listener {
    /// Opens the window on `display`, in front and with the keyboard.
    ///
    /// # Errors
    /// Where the display can't be reached.
    pub fn open(display: &str) -> anyhow::Result<Self> {
        let (x, screen) =
            x11rb::connect(Some(display)).with_context(|| format!("connecting to {display}"))?;
        open_window(&x, screen)?;
        let (say, heard) = channel();
        std::thread::spawn(move || {
            while let Ok(event) = x.wait_for_event() {
                let heard = match event {
                    Event::KeyPress(key) => {
                        Heard::Key(keysym(&x, key.detail, u16::from(key.state)).unwrap_or(0))
                    }
                    Event::ButtonPress(b) => Heard::Press(b.detail, b.root_x, b.root_y),
                    Event::ButtonRelease(b) => Heard::Release(b.detail, b.root_x, b.root_y),
                    _ => continue,
                };
                if say.send(heard).is_err() {
                    return;
                }
            }
        });
        Ok(Self { heard })
    }

    /// The next event.
    ///
    /// # Errors
    /// Where none comes within 5 s.
    pub fn next(&self) -> anyhow::Result<Heard> {
        self.heard
            .recv_timeout(Duration::from_secs(5))
            .context("waiting for input on the display")
    }

    /// Forgets what was heard so far.
    pub fn forget(&self) {
        while self.heard.try_recv().is_ok() {}
    }
}

fn open_window(x: &RustConnection, screen: usize) -> anyhow::Result<()> {
    let screen = &x.setup().roots[screen];
    let window = x.generate_id()?;
    let events = EventMask::KEY_PRESS | EventMask::BUTTON_PRESS | EventMask::BUTTON_RELEASE;
    let attributes = CreateWindowAux::new().event_mask(events).override_redirect(1);
    let (width, height) = (screen.width_in_pixels, screen.height_in_pixels);
    let class = WindowClass::INPUT_OUTPUT;
    x.create_window(
        0,
        window,
        screen.root,
        0,
        0,
        width,
        height,
        0,
        class,
        0,
        &attributes,
    )?;
    x.map_window(window)?;
    // Its answer says that the window is there.
    x.get_input_focus()?.reply()?;
    x.set_input_focus(InputFocus::POINTER_ROOT, window, x11rb::CURRENT_TIME)?
        .check()?;
    Ok(())
}

/// The keysym of a key: the second level where Shift is held (X11 protocol, chapter 5).
fn keysym(x: &RustConnection, keycode: u8, state: u16) -> anyhow::Result<u32> {
    let mapping = x.get_keyboard_mapping(keycode, 1)?.reply()?;
    let level = usize::from(state & 1);
    let keysym = mapping.keysyms.get(level).copied().filter(|keysym| *keysym != 0);
    Ok(keysym.or_else(|| mapping.keysyms.first().copied()).unwrap_or(0))
}
