//! Keyboard and mouse of a browser, played on an X display through its XTEST extension.
//!
//! A thread of its own talks to the X server, so that a server that hangs holds up nothing else. Whatever a player
//! left pressed is released when it goes; what other players of the session hold stays down.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use anyhow::Context as _;
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, KEY_PRESS_EVENT, KEY_RELEASE_EVENT,
    MOTION_NOTIFY_EVENT,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

use crate::data_channel::{FromPage, Touch};
use crate::keys;
use crate::pointer::{Held, Normalized, Wheel, x_button};
use crate::session::LinkId;

/// Events that may wait for a slow X server; more are dropped.
const BACKLOG: usize = 1024;

/// Where input goes to.
#[derive(Clone)]
pub(crate) struct Input {
    events: Option<SyncSender<Event>>,
}

/// Whose hand, and what it does.
struct Event(LinkId, Hand);

enum Hand {
    Does(FromPage),
    LetsGo,
}

impl Input {
    /// For sources that take no input.
    pub(crate) fn nowhere() -> Self {
        Self { events: None }
    }

    /// Connects to `display`.
    pub(crate) fn connect(display: &str) -> anyhow::Result<Self> {
        let (connection, screen) = x11rb::connect(Some(display))
            .with_context(|| format!("connecting to X display {display} for input"))?;
        let injector = Injector::new(connection, screen)
            .with_context(|| format!("asking X display {display} for its keyboard and XTEST"))?;
        let (events, received) = sync_channel(BACKLOG);
        thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || injector.run(&received))?;
        Ok(Self { events: Some(events) })
    }

    /// Plays an event of a link's player.
    pub(crate) fn play(&self, link: LinkId, message: FromPage) {
        self.send(Event(link, Hand::Does(message)));
    }

    /// Releases all keys and buttons that a link's player holds.
    pub(crate) fn release_all(&self, link: LinkId) {
        self.send(Event(link, Hand::LetsGo));
    }

    fn send(&self, event: Event) {
        if let Some(events) = &self.events
            && let Err(TrySendError::Full(_)) = events.try_send(event)
        {
            tracing::warn!("the X server does not keep up: an input event was dropped");
        }
    }
}

struct Injector {
    x: RustConnection,
    root: u32,
    width: u32,
    height: u32,
    keyboard: Keyboard,
    keys: Held<LinkId>,
    buttons: Held<LinkId>,
    wheel: Wheel,
    typed_by_key: bool,
}

type XResult = Result<(), x11rb::errors::ReplyOrIdError>;

impl Injector {
    fn new(x: RustConnection, screen: usize) -> anyhow::Result<Self> {
        let setup = &x.setup().roots[screen];
        let (root, width, height) = (
            setup.root,
            setup.width_in_pixels.into(),
            setup.height_in_pixels.into(),
        );
        x.xtest_get_version(2, 2)?.reply()?;
        let keyboard = Keyboard::read(&x)?;
        Ok(Self {
            x,
            root,
            width,
            height,
            keyboard,
            keys: Held::default(),
            buttons: Held::default(),
            wheel: Wheel::default(),
            typed_by_key: false,
        })
    }

    fn run(mut self, events: &Receiver<Event>) {
        while let Ok(event) = events.recv() {
            if let Err(error) = self.handle(event).and_then(|()| Ok(self.x.flush()?)) {
                tracing::warn!(%error, "the X server takes no input any more");
                return;
            }
        }
    }

    fn handle(&mut self, Event(link, hand): Event) -> XResult {
        match hand {
            Hand::Does(message) => self.page(link, message),
            Hand::LetsGo => self.release_all(link),
        }
    }

    fn page(&mut self, link: LinkId, message: FromPage) -> XResult {
        match message {
            FromPage::KeyDown { code, .. } => self.key_down(link, code),
            FromPage::KeyUp { code } => self.key_up(link, code),
            FromPage::KeyPress { unit } if !self.typed_by_key => {
                char::from_u32(u32::from(unit)).map_or(Ok(()), |c| self.type_char(c))
            }
            FromPage::TextboxEntry(text) => text.chars().try_for_each(|c| self.type_char(c)),
            FromPage::MouseMove { at, .. } => self.move_to(at),
            FromPage::MouseDown { button, at } => {
                self.move_to(at).and_then(|()| self.button_down(link, button))
            }
            FromPage::MouseUp { button, at } => self.move_to(at).and_then(|()| self.button_up(link, button)),
            FromPage::MouseWheel { delta, at } => self.move_to(at).and_then(|()| self.turn(delta)),
            FromPage::TouchStart(touches) => self.touch(link, &touches, Some(true)),
            FromPage::TouchMove(touches) => self.touch(link, &touches, None),
            FromPage::TouchEnd(touches) => self.touch(link, &touches, Some(false)),
            _ => Ok(()),
        }
    }

    /// A key that the display's keyboard has goes down as it is; the character that follows for it is then typed
    /// already.
    fn key_down(&mut self, link: LinkId, code: u8) -> XResult {
        let keycode = keys::keysym(code).and_then(|keysym| self.keyboard.keycode(keysym));
        self.typed_by_key = keycode.is_some();
        let Some(keycode) = keycode else { return Ok(()) };
        // Again and again while it is held: applications see that it repeats.
        self.keys.press(link, keycode);
        self.fake(KEY_PRESS_EVENT, keycode)
    }

    fn key_up(&mut self, link: LinkId, code: u8) -> XResult {
        let keycode = keys::keysym(code).and_then(|keysym| self.keyboard.keycode(keysym));
        match keycode.filter(|keycode| self.keys.release(&link, *keycode)) {
            Some(keycode) => self.fake(KEY_RELEASE_EVENT, keycode),
            None => Ok(()),
        }
    }

    /// Types a character that no key of the display's keyboard gives: through a spare key that is given that meaning.
    fn type_char(&mut self, c: char) -> XResult {
        let Some(keysym) = keys::keysym_of_char(c) else {
            return Ok(());
        };
        let Some(keycode) = self.keyboard.spare_for(&self.x, keysym)? else {
            return Ok(());
        };
        self.fake(KEY_PRESS_EVENT, keycode)?;
        self.fake(KEY_RELEASE_EVENT, keycode)
    }

    fn move_to(&mut self, at: Normalized) -> XResult {
        let Some((x, y)) = at.to_pixel(self.width, self.height) else {
            return Ok(());
        };
        // A screen's sides fit i16 (X11 protocol).
        self.x
            .xtest_fake_input(MOTION_NOTIFY_EVENT, 0, 0, self.root, x as i16, y as i16, 0)?;
        Ok(())
    }

    fn button_down(&mut self, link: LinkId, button: u8) -> XResult {
        match x_button(button).filter(|button| self.buttons.press(link, *button)) {
            Some(button) => self.fake(BUTTON_PRESS_EVENT, button),
            None => Ok(()),
        }
    }

    fn button_up(&mut self, link: LinkId, button: u8) -> XResult {
        match x_button(button).filter(|button| self.buttons.release(&link, *button)) {
            Some(button) => self.fake(BUTTON_RELEASE_EVENT, button),
            None => Ok(()),
        }
    }

    fn turn(&mut self, delta: i16) -> XResult {
        let (button, clicks) = self.wheel.turn(delta);
        (0..clicks).try_for_each(|_| {
            self.fake(BUTTON_PRESS_EVENT, button)?;
            self.fake(BUTTON_RELEASE_EVENT, button)
        })
    }

    /// The first finger is the left button.
    fn touch(&mut self, link: LinkId, touches: &[Touch], down: Option<bool>) -> XResult {
        let Some(touch) = touches.iter().find(|touch| touch.finger == 0) else {
            return Ok(());
        };
        self.move_to(touch.at)?;
        match down {
            Some(true) => self.button_down(link, 0),
            Some(false) => self.button_up(link, 0),
            None => Ok(()),
        }
    }

    fn release_all(&mut self, link: LinkId) -> XResult {
        for keycode in self.keys.release_all(&link) {
            self.fake(KEY_RELEASE_EVENT, keycode)?;
        }
        for button in self.buttons.release_all(&link) {
            self.fake(BUTTON_RELEASE_EVENT, button)?;
        }
        Ok(())
    }

    fn fake(&self, event: u8, detail: u8) -> XResult {
        self.x.xtest_fake_input(event, detail, 0, self.root, 0, 0, 0)?;
        Ok(())
    }
}

/// What the display's keys mean.
struct Keyboard {
    by_keysym: HashMap<u32, u8>,
    /// Keys without a meaning, and what meaning they were lent, oldest first.
    spare: Vec<(u8, u32)>,
    next_spare: usize,
}

impl Keyboard {
    fn read(x: &RustConnection) -> anyhow::Result<Self> {
        let (first, last) = (x.setup().min_keycode, x.setup().max_keycode);
        let mapping = x.get_keyboard_mapping(first, last - first + 1)?.reply()?;
        let width = usize::from(mapping.keysyms_per_keycode).max(1);
        let mut keyboard = Self {
            by_keysym: HashMap::new(),
            spare: Vec::new(),
            next_spare: 0,
        };
        for (keycode, keysyms) in (first..=last).zip(mapping.keysyms.chunks(width)) {
            if keysyms.iter().all(|keysym| *keysym == 0) {
                keyboard.spare.push((keycode, 0));
            }
            for keysym in keysyms.iter().filter(|keysym| **keysym != 0) {
                keyboard.by_keysym.entry(*keysym).or_insert(keycode);
            }
        }
        Ok(keyboard)
    }

    fn keycode(&self, keysym: u32) -> Option<u8> {
        self.by_keysym.get(&keysym).copied()
    }

    /// A key that gives exactly `keysym`. Meanings are lent in turn, so that an application has time to learn of a
    /// change before the key changes again.
    fn spare_for(
        &mut self,
        x: &RustConnection,
        keysym: u32,
    ) -> Result<Option<u8>, x11rb::errors::ReplyOrIdError> {
        if let Some((keycode, _)) = self.spare.iter().find(|(_, lent)| *lent == keysym) {
            return Ok(Some(*keycode));
        }
        if self.spare.is_empty() {
            return Ok(None);
        }
        let index = self.next_spare % self.spare.len();
        self.next_spare += 1;
        let (keycode, lent) = &mut self.spare[index];
        *lent = keysym;
        // Both levels alike: whether Shift is held makes no difference.
        x.change_keyboard_mapping(1, *keycode, 2, &[keysym, keysym])?
            .check()?;
        Ok(Some(*keycode))
    }
}
