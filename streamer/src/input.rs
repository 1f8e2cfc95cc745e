//! Keyboard and mouse of a browser, played on an X display through its XTEST extension.
//!
//! A thread of its own talks to the X server, so that a server that hangs holds up nothing else; [`Watch`] tells of
//! that. Whatever a player left pressed is released when it goes; what other players of the session hold stays down.
//! With the last of them Caps Lock and Num Lock go back to what they were.

mod backlog;
mod keyboard;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::oneshot;
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, KEY_PRESS_EVENT, KEY_RELEASE_EVENT,
    KeyButMask, MOTION_NOTIFY_EVENT, Mapping,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

use crate::data_channel::{FromPage, Touch};
use crate::keys;
use crate::media::Quiet;
use crate::pointer::{Held, Normalized, Wheel, x_button};
use crate::session::LinkId;
use crate::typing::{ALT_GR, Stroke, Typist};
use backlog::{Backlog, Event, Hand};
use keyboard::Keyboard;

/// Where input goes to.
#[derive(Clone)]
pub(crate) struct Input {
    waiting: Option<Arc<Waiting>>,
}

/// Events for the thread.
#[derive(Default)]
struct Waiting {
    events: Mutex<Backlog>,
    more: Condvar,
}

/// Tells when the display takes no input any more.
pub(crate) struct Watch(Option<Signs>);

/// Signs of the thread's life.
struct Signs {
    ended: oneshot::Receiver<String>,
    answers: Arc<AtomicU64>,
}

impl Input {
    /// For sources that take no input.
    pub(crate) fn nowhere() -> (Self, Watch) {
        (Self { waiting: None }, Watch(None))
    }

    /// Connects to `display`.
    pub(crate) fn connect(display: &str) -> anyhow::Result<(Self, Watch)> {
        let (connection, screen) = x11rb::connect(Some(display))
            .with_context(|| format!("connecting to X display {display} for input"))?;
        let injector = Injector::new(connection, screen)
            .with_context(|| format!("asking X display {display} for its keyboard and XTEST"))?;
        let waiting = Arc::new(Waiting::default());
        let (say, ended) = oneshot::channel();
        let answers = Arc::new(AtomicU64::new(0));
        let (events, beats) = (Arc::clone(&waiting), Arc::clone(&answers));
        thread::Builder::new().name("input".to_owned()).spawn(move || {
            // Whoever listens may be gone with the process.
            let _ = say.send(injector.run(&events, &beats).to_string());
        })?;
        let waiting = Some(waiting);
        Ok((Self { waiting }, Watch(Some(Signs { ended, answers }))))
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
        let Some(waiting) = &self.waiting else { return };
        let taken = waiting
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
        waiting.more.notify_one();
        if !taken {
            tracing::warn!("the X server does not keep up: an input event was dropped");
        }
    }
}

impl Watch {
    /// Waits until the thread ends, or the X server answers no more. Says which.
    pub(crate) async fn failed(&mut self) -> String {
        let Some(signs) = &mut self.0 else {
            return std::future::pending().await;
        };
        let mut quiet = Quiet::default();
        loop {
            match tokio::time::timeout(Duration::from_secs(1), &mut signs.ended).await {
                Ok(Ok(error)) => return error,
                Ok(Err(_)) => return "its thread ended".to_owned(),
                Err(_) if quiet.second(true, signs.answers.load(Ordering::Relaxed)) => {
                    return "the X server answers no more: look at the process of Xvfb".to_owned();
                }
                Err(_) => {}
            }
        }
    }
}

impl Waiting {
    /// The next event; none where none comes for `long`.
    fn next(&self, long: Duration) -> Option<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = events.pop() {
            return Some(event);
        }
        let (mut events, _) = self
            .more
            .wait_timeout(events, long)
            .unwrap_or_else(PoisonError::into_inner);
        events.pop()
    }
}

/// How often the X server is asked whether it still answers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a key waits for its character, which the page sends in the same burst.
const SAME_BURST: Duration = Duration::from_millis(20);

struct Injector {
    x: RustConnection,
    root: u32,
    width: u32,
    height: u32,
    keyboard: Keyboard,
    /// Keys that lock, their modifiers, and which of these were set at first.
    locks: Vec<(u8, u16)>,
    locked_at_first: u16,
    typists: BTreeMap<LinkId, Typist>,
    /// Which key of the display a player's key holds down.
    down: BTreeMap<(LinkId, u8), u8>,
    keys: Held<LinkId>,
    buttons: Held<LinkId>,
    wheel: Wheel,
    /// When the X server last answered.
    asked: Instant,
}

type XError = x11rb::errors::ReplyOrIdError;
type XResult = Result<(), XError>;

impl Injector {
    fn new(x: RustConnection, screen: usize) -> anyhow::Result<Self> {
        let setup = &x.setup().roots[screen];
        let (root, width, height) = (
            setup.root,
            setup.width_in_pixels.into(),
            setup.height_in_pixels.into(),
        );
        x.xtest_get_version(2, 2)?.reply()?;
        let keyboard = read_keyboard(&x, None)?;
        let locks = locks(&x, &keyboard)?;
        let mut injector = Self {
            x,
            root,
            width,
            height,
            keyboard,
            locks,
            locked_at_first: 0,
            typists: BTreeMap::new(),
            down: BTreeMap::new(),
            keys: Held::default(),
            buttons: Held::default(),
            wheel: Wheel::default(),
            asked: Instant::now(),
        };
        injector.locked_at_first = injector.modifiers()?;
        Ok(injector)
    }

    /// Runs for as long as the X server takes input. Gives the error that ended that.
    fn run(mut self, waiting: &Waiting, answers: &AtomicU64) -> XError {
        loop {
            if let Err(error) = self.turn_once(waiting) {
                return error;
            }
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn turn_once(&mut self, waiting: &Waiting) -> XResult {
        let in_burst = self.typists.values().any(Typist::waits);
        let event = waiting.next(if in_burst { SAME_BURST } else { ASK_EVERY });
        self.hear()?;
        match event {
            Some(Event(link, Hand::Does(message))) => self.page(link, message)?,
            Some(Event(link, Hand::LetsGo)) => self.release_all(link)?,
            None if in_burst => self.settle_all()?,
            None => {}
        }
        // An X server that hangs still takes what fits into its socket.
        if self.asked.elapsed() >= ASK_EVERY {
            self.modifiers()?;
            self.asked = Instant::now();
        }
        Ok(self.x.flush()?)
    }

    /// Takes note of another mapping of the keyboard.
    fn hear(&mut self) -> XResult {
        let mut changed = false;
        while let Some(event) = self.x.poll_for_event()? {
            if let x11rb::protocol::Event::MappingNotify(mapping) = event {
                let lent = mapping.count == 1 && self.keyboard.lent_to(mapping.first_keycode) != 0;
                changed |= mapping.request != Mapping::POINTER && !lent;
            }
        }
        if changed {
            self.keyboard = read_keyboard(&self.x, Some(&self.keyboard))?;
            self.locks = locks(&self.x, &self.keyboard)?;
        }
        Ok(())
    }

    fn page(&mut self, link: LinkId, message: FromPage) -> XResult {
        let typist = self.typists.entry(link).or_default();
        let strokes = match &message {
            FromPage::KeyDown { code, .. } => typist.down(*code),
            FromPage::KeyUp { code } => typist.up(*code),
            FromPage::KeyPress { unit } => {
                char::from_u32(u32::from(*unit)).map_or_else(Vec::new, |c| typist.press(c))
            }
            _ => typist.settle(),
        };
        self.strike(link, strokes)?;
        match message {
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

    fn settle_all(&mut self) -> XResult {
        let links: Vec<_> = self.typists.keys().copied().collect();
        links.into_iter().try_for_each(|link| {
            let strokes = self.typists.entry(link).or_default().settle();
            self.strike(link, strokes)
        })
    }

    fn strike(&mut self, link: LinkId, strokes: Vec<Stroke>) -> XResult {
        strokes.into_iter().try_for_each(|stroke| match stroke {
            Stroke::Key(code) => {
                let keycode = self.key_of(code)?;
                self.key_down(link, code, keycode)
            }
            Stroke::Character(code, c) => {
                let keycode = self.key_giving(c)?;
                self.key_down(link, code, keycode)
            }
            Stroke::AltGr(c) => self.without_alt_gr(link, c),
            Stroke::Typed(c) => self.type_char(c),
            Stroke::Up(code) => self.key_up(link, code),
        })
    }

    /// The display's key for this one of the page; one that is lent its meaning where it has it with Shift only, as
    /// the number pad's digits.
    fn key_of(&mut self, code: u8) -> Result<Option<u8>, XError> {
        let Some(keysym) = keys::keysym(code) else {
            return Ok(None);
        };
        match self.keyboard.plain(keysym) {
            Some(keycode) => Ok(Some(keycode)),
            None => self.lent(keysym),
        }
    }

    /// The display's key that gives this character as its modifiers are.
    fn key_giving(&mut self, c: char) -> Result<Option<u8>, XError> {
        let Some(keysym) = keys::keysym_of_char(c) else {
            return Ok(None);
        };
        let modifiers = self.modifiers()?;
        let has = |modifier: KeyButMask| modifiers & u16::from(modifier) != 0;
        let found = self
            .keyboard
            .giving(keysym, has(KeyButMask::SHIFT), has(KeyButMask::LOCK));
        match found {
            Some(keycode) => Ok(Some(keycode)),
            None => self.lent(keysym),
        }
    }

    /// A spare key that gives this.
    fn lent(&mut self, keysym: u32) -> Result<Option<u8>, XError> {
        let Some((keycode, is_new)) = self.keyboard.lend(keysym, |keycode| self.keys.is_down(keycode)) else {
            return Ok(None);
        };
        if is_new {
            // Both levels alike: whether Shift is held makes no difference.
            self.x
                .change_keyboard_mapping(1, keycode, 2, &[keysym, keysym])?
                .check()?;
        }
        Ok(Some(keycode))
    }

    fn key_down(&mut self, link: LinkId, code: u8, keycode: Option<u8>) -> XResult {
        let Some(keycode) = keycode else { return Ok(()) };
        let before = self.down.insert((link, code), keycode);
        if let Some(other) = before.filter(|before| *before != keycode) {
            self.let_go(link, other)?;
        }
        // Again and again while it is held: applications see that it repeats.
        self.keys.press(link, keycode);
        self.fake(KEY_PRESS_EVENT, keycode)
    }

    fn key_up(&mut self, link: LinkId, code: u8) -> XResult {
        match self.down.remove(&(link, code)) {
            Some(keycode) => self.let_go(link, keycode),
            None => Ok(()),
        }
    }

    fn let_go(&mut self, link: LinkId, keycode: u8) -> XResult {
        match self.keys.release(&link, keycode) {
            true => self.fake(KEY_RELEASE_EVENT, keycode),
            false => Ok(()),
        }
    }

    /// Types a character.
    fn type_char(&mut self, c: char) -> XResult {
        match self.key_giving(c)? {
            Some(keycode) => self.tap(keycode),
            None => Ok(()),
        }
    }

    /// Types a character while the keys of AltGr are up.
    fn without_alt_gr(&mut self, link: LinkId, c: char) -> XResult {
        let held = ALT_GR
            .iter()
            .filter_map(|code| self.down.get(&(link, *code)).copied());
        let held: Vec<_> = held.collect();
        held.iter()
            .try_for_each(|keycode| self.fake(KEY_RELEASE_EVENT, *keycode))?;
        self.type_char(c)?;
        held.iter()
            .try_for_each(|keycode| self.fake(KEY_PRESS_EVENT, *keycode))
    }

    fn tap(&self, keycode: u8) -> XResult {
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
        self.typists.remove(&link);
        self.down.retain(|(holder, _), _| *holder != link);
        for keycode in self.keys.release_all(&link) {
            self.fake(KEY_RELEASE_EVENT, keycode)?;
        }
        for button in self.buttons.release_all(&link) {
            self.fake(BUTTON_RELEASE_EVENT, button)?;
        }
        match self.typists.is_empty() {
            true => self.reset_locks(),
            false => Ok(()),
        }
    }

    /// The next player finds the locks as the first one did.
    fn reset_locks(&self) -> XResult {
        let changed = self.modifiers()? ^ self.locked_at_first;
        let keys = self.locks.iter().filter(|(_, modifier)| changed & modifier != 0);
        keys.map(|(keycode, _)| *keycode)
            .try_for_each(|keycode| self.tap(keycode))
    }

    /// Modifiers as they are now, locks among them.
    fn modifiers(&self) -> Result<u16, XError> {
        Ok(self.x.query_pointer(self.root)?.reply()?.mask.into())
    }

    fn fake(&self, event: u8, detail: u8) -> XResult {
        self.x.xtest_fake_input(event, detail, 0, self.root, 0, 0, 0)?;
        Ok(())
    }
}

fn read_keyboard(x: &RustConnection, old: Option<&Keyboard>) -> Result<Keyboard, XError> {
    let (first, last) = (x.setup().min_keycode, x.setup().max_keycode);
    let mapping = x.get_keyboard_mapping(first, last - first + 1)?.reply()?;
    let width = mapping.keysyms_per_keycode.into();
    Ok(Keyboard::new(first, width, &mapping.keysyms, old))
}

/// The keys of Caps Lock and Num Lock, each with the bit of its modifier.
fn locks(x: &RustConnection, keyboard: &Keyboard) -> Result<Vec<(u8, u16)>, XError> {
    const CAPS_LOCK: u32 = 0xffe5;
    const NUM_LOCK: u32 = 0xff7f;
    let reply = x.get_modifier_mapping()?.reply()?;
    let width = usize::from(reply.keycodes_per_modifier()).max(1);
    let with_modifier = |keycode: u8| {
        let modifiers = reply.keycodes.chunks(width);
        let found = modifiers.zip(0..8).find(|(keys, _)| keys.contains(&keycode));
        found.map(|(_, bit)| (keycode, 1 << bit))
    };
    let keys = [CAPS_LOCK, NUM_LOCK].into_iter();
    Ok(keys
        .filter_map(|keysym| keyboard.plain(keysym).and_then(with_modifier))
        .collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use x11rb::protocol::xproto::{CreateWindowAux, EventMask, InputFocus, WindowClass};

    use super::*;
    use crate::display::Display;

    const ANN: LinkId = LinkId(1);
    const BOB: LinkId = LinkId(2);

    /// A display, its input, and a client of its own that looks at it.
    struct Stage {
        display: Display,
        input: Input,
        watch: Watch,
        x: RustConnection,
    }

    impl Stage {
        async fn open() -> Self {
            let args = ["penstock-streamer", "--source", "x11", "--stream", "320x240@30"];
            let cli = crate::config::Cli::parse_from(args);
            let display = Display::open(&cli.stream).await.unwrap();
            let (input, watch) = Input::connect(&display.name).unwrap();
            let (x, _) = x11rb::connect(Some(&display.name)).unwrap();
            Self {
                display,
                input,
                watch,
                x,
            }
        }

        fn down(&self, link: LinkId, code: u8) {
            self.input.play(link, FromPage::KeyDown { code, repeat: false });
        }

        fn press(&self, link: LinkId, c: char) {
            let unit = c as u16;
            self.input.play(link, FromPage::KeyPress { unit });
        }

        fn up(&self, link: LinkId, code: u8) {
            self.input.play(link, FromPage::KeyUp { code });
        }

        fn root(&self) -> u32 {
            self.x.setup().roots[0].root
        }

        fn modifiers(&self) -> u16 {
            self.x
                .query_pointer(self.root())
                .unwrap()
                .reply()
                .unwrap()
                .mask
                .into()
        }

        /// What the keys that are down give, alone and with Shift.
        fn held(&self) -> Vec<(u32, u32)> {
            let keys = self.x.query_keymap().unwrap().reply().unwrap().keys;
            let down = (8..=255u8).filter(|key| keys[usize::from(key / 8)] & (1 << (key % 8)) != 0);
            down.map(|key| {
                let keysyms = self
                    .x
                    .get_keyboard_mapping(key, 1)
                    .unwrap()
                    .reply()
                    .unwrap()
                    .keysyms;
                (keysyms[0], keysyms[1])
            })
            .collect()
        }

        async fn until<T: PartialEq + std::fmt::Debug>(&self, wanted: T, what: impl Fn(&Self) -> T) {
            for _ in 0..200 {
                if what(self) == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(what(self), wanted);
        }
    }

    fn sym(c: char) -> u32 {
        u32::from(c)
    }

    #[tokio::test]
    async fn the_number_pad_and_the_key_beside_shift_give_what_is_on_them() {
        let stage = Stage::open().await;
        stage.down(ANN, 97);
        stage.press(ANN, '1');
        stage.until(vec![(0xffb1, 0xffb1)], Stage::held).await;
        stage.up(ANN, 97);
        stage.until(vec![], Stage::held).await;
        // No character follows where Ctrl is held.
        stage.down(ANN, 17);
        stage.down(ANN, 226);
        stage.until(2, |stage| stage.held().len()).await;
        assert!(stage.held().iter().any(|(plain, _)| *plain == sym('<')));
        stage.display.close().await;
    }

    #[tokio::test]
    async fn keys_give_the_characters_of_the_players_own_keyboard_and_stay_down() {
        let stage = Stage::open().await;
        stage.down(ANN, 192);
        stage.press(ANN, 'ö');
        stage.until(vec![(sym('ö'), sym('ö'))], Stage::held).await;
        stage.up(ANN, 192);
        stage.down(ANN, 87);
        stage.press(ANN, 'w');
        stage.until(vec![(sym('w'), sym('W'))], Stage::held).await;
        stage.up(ANN, 87);
        // Shift and 7: the slash is on a key of its own here, but Shift would make a question mark of it.
        stage.down(ANN, 16);
        stage.down(ANN, 55);
        stage.press(ANN, '/');
        stage
            .until(true, |stage| stage.held().contains(&(sym('/'), sym('/'))))
            .await;
        stage.up(ANN, 55);
        stage.up(ANN, 16);
        stage.until(vec![], Stage::held).await;
        stage.display.close().await;
    }

    #[tokio::test]
    async fn what_alt_gr_gives_comes_without_ctrl_and_alt_which_then_are_down_again() {
        let stage = Stage::open().await;
        let window = stage.x.generate_id().unwrap();
        let attributes = CreateWindowAux::new()
            .event_mask(EventMask::KEY_PRESS)
            .override_redirect(1);
        let class = WindowClass::INPUT_OUTPUT;
        let made = stage
            .x
            .create_window(0, window, stage.root(), 0, 0, 9, 9, 0, class, 0, &attributes);
        made.unwrap().check().unwrap();
        stage.x.map_window(window).unwrap().check().unwrap();
        let focus = stage
            .x
            .set_input_focus(InputFocus::POINTER_ROOT, window, x11rb::CURRENT_TIME);
        focus.unwrap().check().unwrap();
        for code in [17, 255, 81] {
            stage.down(ANN, code);
        }
        stage.press(ANN, '@');
        let typed = loop {
            if let x11rb::protocol::Event::KeyPress(key) = stage.x.wait_for_event().unwrap() {
                let keysyms = stage
                    .x
                    .get_keyboard_mapping(key.detail, 1)
                    .unwrap()
                    .reply()
                    .unwrap()
                    .keysyms;
                if keysyms[0] == sym('@') {
                    break key;
                }
                assert_ne!(keysyms[0], sym('q'));
            }
        };
        let shortcut = u16::from(KeyButMask::CONTROL) | u16::from(KeyButMask::MOD1);
        assert_eq!(u16::from(typed.state) & shortcut, 0);
        stage.until(shortcut, |stage| stage.modifiers() & shortcut).await;
        stage.display.close().await;
    }

    #[tokio::test]
    async fn a_letter_whose_character_does_not_come_goes_down_as_itself() {
        let stage = Stage::open().await;
        stage.down(ANN, 87);
        stage.until(vec![(sym('w'), sym('W'))], Stage::held).await;
        stage.display.close().await;
    }

    #[tokio::test]
    async fn locks_are_reset_when_the_last_player_goes() {
        let stage = Stage::open().await;
        let at_first = stage.modifiers();
        for code in [20, 144] {
            stage.down(ANN, code);
            stage.up(ANN, code);
        }
        stage.down(BOB, 13);
        stage.up(BOB, 13);
        stage
            .until(2, |stage| (stage.modifiers() ^ at_first).count_ones())
            .await;
        stage.input.release_all(BOB);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_ne!(stage.modifiers(), at_first, "Ann is still here");
        stage.input.release_all(ANN);
        stage.until(at_first, Stage::modifiers).await;
        stage.display.close().await;
    }

    #[tokio::test]
    async fn another_mapping_of_the_keyboard_is_followed() {
        let stage = Stage::open().await;
        stage.down(ANN, 65);
        stage.press(ANN, 'a');
        stage.until(1, |stage| stage.held().len()).await;
        stage.up(ANN, 65);
        stage.until(0, |stage| stage.held().len()).await;
        // Keycode 38 is that of the letter A, as every PC's keyboard has it.
        let other = [sym('q'), sym('Q')];
        stage
            .x
            .change_keyboard_mapping(1, 38, 2, &other)
            .unwrap()
            .check()
            .unwrap();
        stage.down(ANN, 65);
        stage.press(ANN, 'a');
        stage.until(vec![(sym('a'), sym('a'))], Stage::held).await;
        stage.display.close().await;
    }

    #[tokio::test]
    async fn an_x_server_that_ends_or_answers_no_more_is_told() {
        let mut stage = Stage::open().await;
        let server = rustix::process::Pid::from_raw(stage.display.server_pid().unwrap() as i32).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
        let patience = Duration::from_secs(20);
        let said = tokio::time::timeout(patience, stage.watch.failed())
            .await
            .unwrap();
        assert!(said.contains("answers no more"), "{said}");
        rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
        tokio::time::timeout(patience, stage.watch.failed())
            .await
            .unwrap();
        stage.display.close().await;
    }
}
