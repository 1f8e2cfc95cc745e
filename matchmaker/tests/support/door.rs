//! The real program, and the agent that it follows.

use std::net::SocketAddr;
use std::process::{ExitStatus, Output, Stdio};

use axum::Router;
use axum::routing::get;
use fake_kube::FakeKube;
use penstock_core::wire::agent::SliceStatus;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpStream, UnixListener};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{PATIENCE, Player, StandIn};

pub(crate) const KUBECONFIG: &str = "kubeconfig";

/// A stand-in agent.
pub(crate) struct Agent {
    slices: watch::Sender<Vec<SliceStatus>>,
}

pub(crate) struct Matchmaker {
    pub(crate) agent: Agent,
    child: Child,
    address: SocketAddr,
    _files: TempDir,
}

impl Matchmaker {
    /// With an agent that has these streamers, all of which the program knows on return.
    pub(crate) async fn start(streamers: &[&StandIn], args: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let agent = Agent::serve(&files);
        agent.list(streamers);
        let door = Self::spawn(files, agent, args).await;
        let known = async {
            while door.status().await["streamers"].as_array().unwrap().len() < streamers.len() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, known)
            .await
            .expect("the program should find its streamers");
        door
    }

    /// Under a path.
    pub(crate) async fn start_at(prefix: &str, streamers: &[&StandIn], args: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let agent = Agent::serve(&files);
        agent.list(streamers);
        let door = Self::spawn(files, agent, args).await;
        let known = async {
            let path = format!("{prefix}/status");
            while door.ask("GET", &path, &[], "").await.body.matches("free").count() < streamers.len() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, known)
            .await
            .expect("the program should find its streamers");
        door
    }

    /// With locks on its doors, so that its streamers are known by what its metrics say.
    pub(crate) async fn start_guarded(streamers: &[&StandIn], args: &[String]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let agent = Agent::serve(&files);
        agent.list(streamers);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let door = Self::spawn(files, agent, &args).await;
        if args.contains(&"--tls-cert") {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            return door;
        }
        let free = format!(
            "penstock_matchmaker_streamers{{state=\"free\"}} {}",
            streamers.len()
        );
        let known = async {
            while !door.get("/metrics").await.1.contains(&free) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, known)
            .await
            .expect("the program should find its streamers");
        door
    }

    /// With an agent's socket that nobody listens on.
    pub(crate) async fn start_alone() -> Self {
        let files = tempfile::tempdir().unwrap();
        let slices = watch::Sender::new(Vec::new());
        Self::spawn(files, Agent { slices }, &[]).await
    }

    /// With streamers in the pods of a cluster, and no agent.
    pub(crate) async fn on_cluster(kube: &FakeKube, args: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let account = Some(("penstock", "penstock-matchmaker"));
        kube.kubeconfig(&files.path().join(KUBECONFIG), account).unwrap();
        Self::in_namespace(files, "penstock", args).await
    }

    /// The same in a namespace of the cluster that the file [`KUBECONFIG`] among `files` names.
    pub(crate) async fn in_namespace(files: TempDir, namespace: &str, args: &[&str]) -> Self {
        let args = [&["--pods", "--namespace", namespace], args].concat();
        let slices = watch::Sender::new(Vec::new());
        Self::spawn(files, Agent { slices }, &args).await
    }

    async fn spawn(files: TempDir, agent: Agent, args: &[&str]) -> Self {
        let page = files.path().join("page");
        std::fs::create_dir_all(page.join("assets")).unwrap();
        std::fs::write(page.join("index.html"), "<p>the page</p>").unwrap();
        std::fs::write(page.join("assets/player.js"), "1").unwrap();
        let mut command = program();
        let kubeconfig = files.path().join(KUBECONFIG);
        if kubeconfig.exists() {
            command.env("KUBECONFIG", kubeconfig);
        } else {
            command.arg("--agent").arg(files.path().join("agent.sock"));
        }
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--page")
            .arg(&page)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let address = listening(&mut child).await;
        Self {
            agent,
            child,
            address,
            _files: files,
        }
    }

    pub(crate) async fn player(&self, path: &str) -> Player {
        Player::connect(self.address, path).await
    }

    /// A player that has its offer.
    pub(crate) async fn playing(&self) -> Player {
        let mut player = self.player("/signalling").await;
        player.say(json!({"type": "listStreamers"})).await;
        let list = player.next_of("streamerList").await;
        player
            .say(json!({"type": "subscribe", "streamerId": list["ids"][0]}))
            .await;
        player.next_of("iceCandidate").await;
        player
    }

    /// Head and body.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .expect("no answer")
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    /// Any request, with these headers; those that every one needs are added.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        ask_over(stream, method, path, headers, body).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await.1).unwrap()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.get("/metrics").await.1
    }

    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Without a word.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("it should end")
            .unwrap()
    }
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        Some(lines.find(|(key, _)| key.eq_ignore_ascii_case(name))?.1)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) async fn ask_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| *name == "host") {
        request += "host: 127.0.0.1\r\n";
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("no answer")
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = (head.to_owned(), body.to_owned());
    Answer { status, head, body }
}

impl Agent {
    fn serve(files: &TempDir) -> Self {
        let slices = watch::Sender::new(Vec::new());
        let socket = UnixListener::bind(files.path().join("agent.sock")).unwrap();
        let values = slices.subscribe();
        let app = Router::new().route(
            "/v1/events",
            get(async move || penstock_shell::events::sse(values.clone())),
        );
        tokio::spawn(async move { axum::serve(socket, app).await.unwrap() });
        Self { slices }
    }

    pub(crate) fn list(&self, streamers: &[&StandIn]) {
        let slices = streamers.iter().map(|streamer| {
            let slice = json!({
                "id": streamer.name, "gpu": "CPU-0", "demand": {}, "state": "running", "restarts": 0,
                "address": streamer.address,
            });
            serde_json::from_value(slice).unwrap()
        });
        self.slices.send_replace(slices.collect());
    }
}

/// Runs the program until it ends.
pub(crate) async fn run(args: &[&str]) -> Output {
    timeout(PATIENCE, program().args(args).output())
        .await
        .expect("it should end")
        .unwrap()
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-matchmaker"));
    command.env_clear().kill_on_drop(true);
    command
}

/// Reads the log up to the address, and passes the rest on.
async fn listening(child: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("no log")
            .unwrap();
        let line = line.expect("the program ended");
        let event: Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = event["fields"]["address"]
            .as_str()
            .filter(|_| line.contains("serving players"))
        {
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    eprintln!("{line}")
                }
            });
            return address.parse().unwrap();
        }
    }
}
