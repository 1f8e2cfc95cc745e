//! The X display and the application on it, as children of the streamer.
//!
//! ```text
//!  streamer ──┬─ Xvfb                 dies: the streamer fails, and its supervisor starts it anew
//!             └─ sh -c 'application'  dies: started again, the stream goes on
//! ```
//!
//! What the application leaves behind becomes a child of the streamer, which reaps it when it ends.
//!
//! No other user of this machine may look at the display or type on it: the server begins with a secret that only we
//! know, by which we let in our own user, and nobody else.
//!
//! The server takes the next display number that is free, or the one that it was told: an application in another
//! container of the pod must find it again after this process was killed. Either way it uses no lock file, and takes the
//! place of a socket behind which nobody is any more.
//!
//! There is no window manager. A small caretaker gives each new window the whole screen, or its middle where its
//! size is fixed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_core::units::StreamSize;
use penstock_shell::children;
use rustix::process::Signal;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use x11rb::connection::Connection as _;
use x11rb::properties::WmSizeHints;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{
    ChangeWindowAttributesAux, ConfigureWindowAux, ConnectionExt as _, EventMask, Family, HostMode,
    InputFocus, Window,
};
use x11rb::rust_connection::{DefaultStream, RustConnection};

use crate::config::StreamArgs;
use crate::metrics::Metrics;

/// An X display, ours or another's.
pub(crate) struct Display {
    /// Such as `:1`.
    pub(crate) name: String,
    server: Option<Child>,
}

impl Display {
    /// Attaches to the display that `args` names, or starts an X server of the stream's size.
    pub(crate) async fn open(args: &StreamArgs) -> anyhow::Result<Self> {
        if let Some(name) = &args.display {
            return Ok(Self {
                name: name.clone(),
                server: None,
            });
        }
        let secret: [u8; 16] = rand::random();
        let cookie = cookie_file(secret).context("making a file for the X server's secret")?;
        let (name, server) = start_server(args, cookie.path()).await?;
        let_own_user_in(&name, secret).with_context(|| format!("letting this user use X display {name}"))?;
        let caretaker = Caretaker::new(&name, args.stream)?;
        std::thread::Builder::new()
            .name("caretaker".to_owned())
            .spawn(move || caretaker.run())?;
        Ok(Self {
            name,
            server: Some(server),
        })
    }

    /// Waits until the X server ends by itself; for ever where it is another's.
    pub(crate) async fn ended(&mut self) -> String {
        match &mut self.server {
            Some(server) => match server.wait().await {
                Ok(status) => format!("the X server ended with {status}"),
                Err(error) => format!("the X server can't be waited for: {error}"),
            },
            None => std::future::pending().await,
        }
    }

    /// Ends the X server, if it is ours.
    pub(crate) async fn close(mut self) {
        if let Some(server) = &mut self.server
            && let Err(error) = children::end(server, Duration::from_secs(2)).await
        {
            tracing::warn!(%error, "ending the X server");
        }
    }

    /// The X server's process, if it is ours.
    pub(crate) fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().and_then(Child::id)
    }
}

/// Starts Xvfb on the display number that was told, or a free one, and has it say which when it is there
/// (`-displayfd`). Whoever has the secret in `cookie` may use it; the file is read when the first of them connects.
async fn start_server(args: &StreamArgs, cookie: &Path) -> anyhow::Result<(String, Child)> {
    let screen = format!("{}x{}x24", args.stream.width(), args.stream.height());
    let mut command = Command::new("Xvfb");
    let told = args.serve_display.map(|display| display.to_string());
    command.args(&told).args([
        "-displayfd",
        "1",
        "-screen",
        "0",
        &screen,
        "-nolisten",
        "tcp",
        "-noreset",
        "-auth",
    ]);
    command.arg(cookie);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut server = children::guard(&mut command, Signal::KILL)
        .spawn()
        .context("starting Xvfb: is the package xvfb installed?")?;
    let said = server.stdout.take().context("Xvfb has no output")?;
    let mut lines = BufReader::new(said).lines();
    let number = tokio::time::timeout(Duration::from_secs(10), lines.next_line())
        .await
        .context("waiting for Xvfb to say its display number: it said nothing for 10 s")?
        .context("reading Xvfb's display number")?;
    match number {
        Some(number) if number.parse::<u32>().is_ok() => Ok((format!(":{number}"), server)),
        _ => {
            let told = told.map(|display| format!("{display} ")).unwrap_or_default();
            bail!("Xvfb ended at once: try 'Xvfb {told}-displayfd 1 -screen 0 {screen}' to see why")
        }
    }
}

/// A file that only our user can read.
fn cookie_file(secret: [u8; 16]) -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(&cookie_record(secret))?;
    Ok(file)
}

/// One record of Xau's file, for any address and display (Xau(3): family, address, display, name and data, each with
/// its length before it, big-endian).
fn cookie_record(secret: [u8; 16]) -> Vec<u8> {
    const ANY: [u8; 2] = [0xff, 0xff];
    let mut record = ANY.to_vec();
    for field in [&b""[..], b"", COOKIE_NAME, &secret] {
        record.extend((field.len() as u16).to_be_bytes());
        record.extend(field);
    }
    record
}

const COOKIE_NAME: &[u8] = b"MIT-MAGIC-COOKIE-1";

/// From here on our user needs no secret: Xlib would look for it in our environment, where it can't be put safely. The
/// kernel tells the server whose process connects (`localuser`, Xsecurity(7)).
fn let_own_user_in(display: &str, secret: [u8; 16]) -> anyhow::Result<()> {
    let parsed = x11rb::reexports::x11rb_protocol::parse_display::parse_display(Some(display))?;
    let address = parsed.connect_instruction().next().context("it has no address")?;
    let (stream, _) = DefaultStream::connect(&address)?;
    let x =
        RustConnection::connect_to_stream_with_auth_info(stream, 0, COOKIE_NAME.to_vec(), secret.to_vec())?;
    let user = format!("localuser\0#{}", rustix::process::geteuid().as_raw());
    x.change_hosts(HostMode::INSERT, Family::SERVER_INTERPRETED, user.as_bytes())?
        .check()?;
    Ok(())
}

/// Starts `command` on `display` and starts it again whenever it ends. Dropping the future kills it; what it left
/// behind is then the caller's to sweep. Meanwhile the application's shell is among `ours`.
pub(crate) async fn keep_running(
    command: &str,
    display: &str,
    ours: &Ours,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let mut app = start_app(command, display)?;
        ours.app.set(app.id());
        let status = app.wait().await.context("waiting for the application")?;
        ours.app.set(None);
        let left_behind = children::sweep(&ours.pids()).await;
        pause = if started.elapsed() > RUNS_WELL {
            FIRST_PAUSE
        } else {
            pause
        };
        tracing::warn!(command, %status, left_behind, ?pause, "the application ended, and is started again");
        metrics.app_restarts.inc();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The children that this process waits for by itself; all others were adopted.
pub(crate) struct Ours {
    server: Option<u32>,
    app: Cell<Option<u32>>,
}

impl Ours {
    /// With an X server that is ours, but no application yet.
    pub(crate) fn new(server: Option<u32>) -> Self {
        Self {
            server,
            app: Cell::new(None),
        }
    }

    fn pids(&self) -> BTreeSet<u32> {
        self.server.into_iter().chain(self.app.get()).collect()
    }
}

/// Reaps what this process adopted, as it ends: an application may leave orphans for as long as it runs. All on one
/// thread, so that a child of ours is among `ours` before it can be seen here.
pub(crate) async fn reap_orphans(ours: &Ours) -> anyhow::Result<()> {
    let mut ended = signal(SignalKind::child()).context("listening for SIGCHLD")?;
    loop {
        children::reap_adopted(&ours.pids());
        // Signals that come together are one; and an application that ends many a second is not to cost a search
        // through all processes for each.
        tokio::time::sleep(REAP_PAUSE).await;
        ended.recv().await;
    }
}

/// The shortest time between two searches for orphans.
const REAP_PAUSE: Duration = Duration::from_millis(500);

/// Pauses before the application is started again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An application that ran for this long is taken to run well.
const RUNS_WELL: Duration = Duration::from_secs(30);

fn start_app(command: &str, display: &str) -> anyhow::Result<Child> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("DISPLAY", display)
        .env_remove("WAYLAND_DISPLAY");
    // Its output belongs in the log beside ours, not into anything that reads our standard output.
    shell.stdin(Stdio::null()).stdout(std::io::stderr());
    children::guard(&mut shell, Signal::KILL)
        .spawn()
        .with_context(|| format!("starting the application {command:?}"))
}

/// Gives windows their place on a screen that has no window manager.
struct Caretaker {
    x: RustConnection,
    root: Window,
    size: StreamSize,
}

type XResult = Result<(), x11rb::errors::ReplyError>;

impl Caretaker {
    fn new(display: &str, size: StreamSize) -> anyhow::Result<Self> {
        let (x, screen) =
            x11rb::connect(Some(display)).with_context(|| format!("connecting to X display {display}"))?;
        let root = x.setup().roots[screen].root;
        let mask = ChangeWindowAttributesAux::new().event_mask(EventMask::SUBSTRUCTURE_NOTIFY);
        x.change_window_attributes(root, &mask)?.check()?;
        Ok(Self { x, root, size })
    }

    /// Runs until the X server ends.
    fn run(self) {
        while let Ok(event) = self.x.wait_for_event() {
            if let Event::MapNotify(map) = event
                && !map.override_redirect
                && map.event == self.root
                && let Err(error) = self.place(map.window)
            {
                // Windows may go at any time.
                tracing::debug!(%error, "a window could not be placed");
            }
        }
    }

    fn place(&self, window: Window) -> XResult {
        let (width, height) = (self.size.width(), self.size.height());
        let place = match self.fixed_size(window)? {
            Some((w, h)) => ConfigureWindowAux::new()
                .x(width.saturating_sub(w) as i32 / 2)
                .y(height.saturating_sub(h) as i32 / 2),
            None => ConfigureWindowAux::new().x(0).y(0).width(width).height(height),
        };
        self.x.configure_window(window, &place.border_width(0))?.check()?;
        self.x
            .set_input_focus(InputFocus::POINTER_ROOT, window, x11rb::CURRENT_TIME)?
            .check()
    }

    /// The size of a window that must not be resized: a dialogue, or one whose hints leave no choice (ICCCM,
    /// section 4.1.2.3).
    fn fixed_size(&self, window: Window) -> Result<Option<(u32, u32)>, x11rb::errors::ReplyError> {
        let hints = WmSizeHints::get_normal_hints(&self.x, window)?.reply()?;
        let fixed = hints.is_some_and(|hints| hints.min_size.is_some() && hints.min_size == hints.max_size);
        let transient = x11rb::protocol::xproto::AtomEnum::WM_TRANSIENT_FOR;
        let dialogue = self
            .x
            .get_property(false, window, transient, x11rb::NONE, 0, 1)?
            .reply()?;
        if !fixed && dialogue.value_len == 0 {
            return Ok(None);
        }
        let geometry = self.x.get_geometry(window)?.reply()?;
        Ok(Some((geometry.width.into(), geometry.height.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_written_as_xau_reads_it() {
        let record = cookie_record([7; 16]);
        assert_eq!(record[..8], [0xff, 0xff, 0, 0, 0, 0, 0, 18]);
        assert_eq!(&record[8..26], b"MIT-MAGIC-COOKIE-1");
        assert_eq!(record[26..28], [0, 16]);
        assert_eq!(record[28..], [7; 16]);
    }
}
