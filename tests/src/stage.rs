//! The whole path on one machine, on ports of its own: TURN, agent, streamers, matchmaker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use penstock_core::wire::agent::{SliceState, SliceStatus};
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use tempfile::TempDir;

use crate::listener::Listener;
use crate::programs::{Program, free_tcp, free_udp, ready};
use crate::{browser, eventually};

/// Secret that the stage's matchmaker and TURN server share.
pub const SECRET: &str = "only for tests";

/// How a page reaches the TURN server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayOver {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS, with a certificate of the stage's own making.
    Tls,
}

impl RelayOver {
    /// As pages are told it.
    pub fn url(self, relay: SocketAddr) -> String {
        match self {
            Self::Udp => format!("turn:{relay}?transport=udp"),
            Self::Tcp => format!("turn:{relay}?transport=tcp"),
            Self::Tls => format!("turns:{relay}?transport=tcp"),
        }
    }
}

/// A running path; all of it ends when it is dropped, in the order of the fields.
pub struct Stage {
    matchmaker: Program,
    agent: Program,
    turn: Program,
    folder: TempDir,
    web: SocketAddr,
    turn_metrics: SocketAddr,
    relay_url: String,
}

impl Stage {
    /// Starts `slices` slices of three encoder units each, whose streamers get `streamer_args`.
    ///
    /// # Errors
    /// Where a program can't be started, or is not ready in time.
    pub async fn start(slices: u32, streamer_args: &[&str]) -> anyhow::Result<Self> {
        Self::start_relaying(RelayOver::Udp, slices, streamer_args).await
    }

    /// As [`Self::start`], with a TURN server that pages reach over `over`.
    ///
    /// # Errors
    /// As there.
    pub async fn start_relaying(
        over: RelayOver,
        slices: u32,
        streamer_args: &[&str],
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("agent.sock");
        let (web, turn_metrics, relay) = (free_tcp()?, free_tcp()?, free_udp()?);
        let turn = start_turn(relay, over, folder.path(), turn_metrics)?;
        let agent = start_agent(&socket, slices, streamer_args)?;
        let streamers = ["--agent", &*socket.to_string_lossy()];
        let matchmaker = start_matchmaker(web, streamers, &over.url(relay))?;
        let stage = Self {
            matchmaker,
            agent,
            turn,
            folder,
            web,
            turn_metrics,
            relay_url: over.url(relay),
        };
        stage.all_free(slices).await?;
        Ok(stage)
    }

    /// Kills the matchmaker without a word. Nobody listens at its address then.
    ///
    /// # Errors
    /// Where it can't be killed.
    pub async fn kill_matchmaker(&mut self) -> anyhow::Result<()> {
        self.matchmaker
            .child
            .kill()
            .await
            .context("killing the matchmaker")
    }

    /// Starts a matchmaker where the first one was.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn restart_matchmaker(&mut self) -> anyhow::Result<()> {
        self.matchmaker = self.another_matchmaker(self.web)?;
        Ok(())
    }

    /// Starts a matchmaker at `web`, for the same streamers.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn another_matchmaker(&self, web: SocketAddr) -> anyhow::Result<Program> {
        let socket = self.socket();
        let streamers = ["--agent", &*socket.to_string_lossy()];
        start_matchmaker(web, streamers, &self.relay_url)
    }

    /// The page's address with `query`.
    pub fn page(&self, query: &str) -> String {
        format!("http://{}/?{query}", self.web)
    }

    /// The signalling socket's address.
    pub fn signalling(&self) -> String {
        format!("ws://{}/signalling", self.web)
    }

    /// Where the matchmaker answers.
    pub fn web(&self) -> SocketAddr {
        self.web
    }

    /// Where the TURN server's metrics are.
    pub fn turn_metrics(&self) -> SocketAddr {
        self.turn_metrics
    }

    /// The process IDs of matchmaker, agent and TURN server.
    pub fn pids(&self) -> Vec<u32> {
        [&self.matchmaker, &self.agent, &self.turn]
            .iter()
            .filter_map(|program| program.child.id())
            .collect()
    }

    /// The agent's slices.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub async fn slices(&self) -> anyhow::Result<Vec<SliceStatus>> {
        let client = agent_client(&self.socket())?;
        Ok(client
            .get("http://agent/v1/slices")
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?)
    }

    /// Where the agent answers.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// The address of the only slice's streamer, once it runs.
    ///
    /// # Errors
    /// Where it does not within 20 s.
    pub async fn streamer(&self) -> anyhow::Result<SocketAddr> {
        eventually("a running streamer", Duration::from_secs(20), async || {
            let slices = self.slices().await?;
            Ok(slices
                .iter()
                .find(|s| s.state == SliceState::Running)
                .and_then(|slice| slice.address))
        })
        .await
    }

    async fn all_free(&self, slices: u32) -> anyhow::Result<()> {
        ready(&format!("http://{}/readyz", self.web)).await?;
        eventually("free streamers", Duration::from_secs(30), async || {
            let mut free = 0;
            for slice in self.slices().await.unwrap_or_default() {
                let Some(address) = slice.address else { continue };
                let status = status(address).await;
                free += u32::from(status.is_ok_and(|status| status.state == StreamerState::Free));
            }
            Ok((free == slices).then_some(()))
        })
        .await?;
        // The matchmaker hears of it a moment later.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }
}

/// What a streamer says of itself.
///
/// # Errors
/// Where it does not answer.
pub async fn status(address: SocketAddr) -> anyhow::Result<StreamerStatus> {
    Ok(reqwest::get(format!("http://{address}/status"))
        .await?
        .json()
        .await?)
}

/// Arguments for a streamer that shows the test picture to browsers of this machine.
pub const TEST_SOURCE: [&str; 4] = ["--source", "test", "--media-ip", "127.0.0.1"];

/// Frames decoded by a page so far.
///
/// # Errors
/// Where the page has no statistics.
pub async fn frames_decoded(page: &mut browser::Page) -> anyhow::Result<u64> {
    let script = "penstock.stats().then(all => all.find(s => s.type === 'inbound-rtp' && s.kind === 'video')\
                  ?.framesDecoded ?? 0)";
    page.eval(script).await?.as_u64().context("no frames are counted")
}

/// One slice with an application that says in `folder/display`, once for each start, which display it is on, then does
/// nothing; and a window on that display. Its streamer gets `more`.
///
/// # Errors
/// As [`Stage::start`], or where there is no display in time.
pub async fn x11_stage(folder: &Path, more: &[&str]) -> anyhow::Result<(Stage, Listener)> {
    let says = folder.join("display");
    let app = format!("echo \"$DISPLAY\" >> {}; exec sleep 1000", says.display());
    let args = ["--source", "x11", "--app", &app, "--media-ip", "127.0.0.1"];
    let stage = Stage::start(1, &[&args, more].concat()).await?;
    let display = eventually("the application's display", Duration::from_secs(10), async || {
        let says = std::fs::read_to_string(&says).unwrap_or_default();
        Ok(says.strip_suffix('\n').map(str::to_owned))
    })
    .await?;
    Ok((stage, Listener::open(&display)?))
}

/// Waits until a page plays.
///
/// # Errors
/// Where it does not within 20 s.
pub async fn plays(page: &mut browser::Page) -> anyhow::Result<()> {
    page.until("penstock.state === 'playing'", Duration::from_secs(20))
        .await?;
    eventually("decoded frames", Duration::from_secs(10), async || {
        Ok((frames_decoded(page).await.unwrap_or(0) > 0).then_some(()))
    })
    .await
}

/// Starts a TURN server for clients and peers of this machine, which clients reach in the way `over`. What it reads lies
/// in `folder`.
///
/// # Errors
/// Where it can't be started.
pub fn start_turn(
    relay: SocketAddr,
    over: RelayOver,
    folder: &Path,
    metrics: SocketAddr,
) -> anyhow::Result<Program> {
    let (relay, metrics) = (relay.to_string(), metrics.to_string());
    let [certificate, key] =
        ["cert.pem", "key.pem"].map(|name| folder.join(name).to_string_lossy().into_owned());
    let mut args = vec![
        "--listen",
        &relay,
        "--metrics-listen",
        &metrics,
        "--auth-secret",
        SECRET,
        "--allow-peer",
        "127.0.0.1/32",
    ];
    if over == RelayOver::Tls {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        args.extend(["--no-tcp", "--listen-tls", &relay]);
        args.extend(["--tls-cert", &certificate, "--tls-key", &key]);
    }
    Program::start("penstock-turn", &args)
}

fn start_agent(socket: &Path, slices: u32, streamer_args: &[&str]) -> anyhow::Result<Program> {
    let slices = slices.to_string();
    let socket = socket.to_string_lossy();
    let mut args = vec![
        "standalone",
        "--socket",
        &socket,
        "--units",
        "12",
        "--slices",
        &slices,
        "--slice-units",
        "3",
        "--",
    ];
    args.extend(streamer_args);
    Program::start("penstock-plugin", &args)
}

/// Starts a matchmaker at `web`, told by the option `streamers` where its streamers are, with the TURN server at the
/// URL `relay`.
///
/// # Errors
/// Where it can't be started.
pub fn start_matchmaker(web: SocketAddr, streamers: [&str; 2], relay: &str) -> anyhow::Result<Program> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../player/dist");
    let web = web.to_string();
    Program::start(
        "penstock-matchmaker",
        &[
            "--listen",
            &web,
            streamers[0],
            streamers[1],
            "--page",
            &page.to_string_lossy(),
            "--turn-url",
            relay,
            "--turn-secret",
            SECRET,
        ],
    )
}

fn agent_client(socket: &Path) -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .unix_socket(socket)
        .build()
        .context("a client for the agent's socket")
}
