//! A place with a socket and a stand-in streamer, and an agent in it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use penstock_shell::events::SseReader;
use reqwest::{Client, Method, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// Long enough for a busy machine; what takes this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of its own: every process started for it is known by that path on its command line.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("streamer.py");
        // Linked, not written: a program that is open for writing can't be run, and a test running beside this
        // one may have inherited the open file for an instant.
        let original = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in.py");
        std::os::unix::fs::symlink(original, &program).unwrap();
        let environment = Vec::new();
        Self {
            directory,
            environment,
        }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
        command
            .args(args)
            .env("PENSTOCK_AGENT_SOCKET", self.socket())
            .env(
                "PENSTOCK_AGENT_STREAMER",
                self.directory.path().join("streamer.py"),
            )
            // A GPU of this very machine would change what is offered.
            .env("PENSTOCK_NVML_LIBRARY", "/nowhere/libnvidia-ml.so.1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs the program to its end, and gives all that it said.
    pub(crate) async fn run(&self, args: &[&str]) -> (ExitStatus, String) {
        let running = self.command(args).output();
        let output = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status, said.into_owned())
    }

    /// The streamers of this place that live, and what they started.
    pub(crate) fn streamers(&self) -> Vec<i32> {
        let program = self.directory.path().join("streamer.py");
        processes(&[program.to_str().unwrap()])
    }

    /// The directory that is this place.
    pub(crate) fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn lingering(&self) -> Vec<i32> {
        let program = self.directory.path().join("streamer.py");
        processes(&[program.to_str().unwrap(), "--linger"])
    }
}

pub(crate) struct Agent {
    pub(crate) place: Place,
    process: Child,
    client: Client,
}

impl Agent {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_in(Place::new(), args).await
    }

    pub(crate) async fn start_in(place: Place, args: &[&str]) -> Self {
        let args: Vec<_> = ["standalone"].iter().chain(args).copied().collect();
        let process = place.command(&args).stderr(Stdio::piped()).spawn().unwrap();
        let client = Client::builder()
            .no_proxy()
            .unix_socket(place.socket())
            .build()
            .unwrap();
        let agent = Self {
            place,
            process,
            client,
        };
        eventually_async("the agent answers", async || {
            agent.request(Method::GET, "/healthz").await.ok()
        })
        .await;
        let mode = agent.place.socket().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        agent
    }

    async fn request(&self, method: Method, path: &str) -> reqwest::Result<Response> {
        let url = format!("http://agent{path}");
        self.client.request(method, url).timeout(PATIENCE).send().await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.request(Method::GET, path).await.unwrap();
        response.json().await.unwrap()
    }

    pub(crate) fn stop_reading_its_log(&mut self) {
        drop(self.process.stderr.take());
    }

    /// What the agent has logged, once `words` are in it.
    pub(crate) async fn said_until(&mut self, words: &str) -> String {
        let stderr = self.process.stderr.as_mut().unwrap();
        let mut said = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&said).contains(words) {
                assert_ne!(stderr.read_buf(&mut said).await.unwrap(), 0, "its log ended");
            }
            // The rest of the line.
            while !said.ends_with(b"\n") {
                stderr.read_buf(&mut said).await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap();
        String::from_utf8(said).unwrap()
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let response = self.request(Method::GET, path).await.unwrap();
        response.text().await.unwrap()
    }

    pub(crate) async fn post(&self, spec: Value) -> (StatusCode, Value) {
        self.post_text(spec.to_string()).await
    }

    pub(crate) async fn post_text(&self, body: String) -> (StatusCode, Value) {
        let request = self.client.post("http://agent/v1/slices").body(body);
        let response = request.timeout(PATIENCE).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Kills the agent, whatever becomes of its streamers.
    pub(crate) async fn killed(mut self) -> Place {
        self.process.kill().await.unwrap();
        self.place
    }

    pub(crate) async fn delete(&self, id: &str) -> StatusCode {
        let path = format!("/v1/slices/{id}");
        self.request(Method::DELETE, &path).await.unwrap().status()
    }

    pub(crate) async fn events(&self) -> Events {
        Events {
            response: self.client.get("http://agent/v1/events").send().await.unwrap(),
            reader: SseReader::default(),
            come: Vec::new(),
        }
    }

    /// The slice, once it is running.
    pub(crate) async fn running(&self, id: &str) -> Value {
        self.slice_when(id, |slice| slice["state"] == "running").await
    }

    pub(crate) async fn slice_when(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually_async("the slice gets there", async || {
            let slice = self.get(&format!("/v1/slices/{id}")).await;
            wanted(&slice).then_some(slice)
        })
        .await
    }

    pub(crate) async fn said_by_streamer(&self, slice: &Value) -> Value {
        let url = format!("http://{}/", slice["address"].as_str().unwrap());
        let client = Client::builder().no_proxy().build().unwrap();
        client.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Ends the agent by `signal`, and sees to it that no process of its place stays.
    pub(crate) async fn ends_and_leaves_nothing(mut self, signal: Signal) -> Place {
        kill(&Value::from(self.process.id().unwrap()), signal);
        let status = tokio::time::timeout(PATIENCE, self.process.wait())
            .await
            .unwrap()
            .unwrap();
        if signal == Signal::KILL {
            // The kernel told the streamers; they need a moment to heed it.
            eventually("no streamer is left", || {
                self.place.streamers().is_empty().then_some(())
            })
            .await;
        } else {
            assert!(status.success(), "{status}");
            assert_eq!(self.place.streamers(), Vec::<i32>::new());
        }
        self.place
    }
}

/// The agent's server-sent events.
pub(crate) struct Events {
    response: Response,
    reader: SseReader,
    come: Vec<String>,
}

impl Events {
    pub(crate) async fn next(&mut self) -> Value {
        while self.come.is_empty() {
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            let bytes = chunk.unwrap().unwrap().expect("the events ended");
            self.come = self.reader.push(&bytes).unwrap();
        }
        serde_json::from_str(&self.come.remove(0)).unwrap()
    }

    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) {
        while !wanted(&self.next().await) {}
    }
}

pub(crate) fn kill(pid: &Value, signal: Signal) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Looks until there is what is looked for.
pub(crate) async fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    eventually_async(what, async || look()).await
}

pub(crate) async fn eventually_async<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// The living processes with all of `words` on their command line.
fn processes(words: &[&str]) -> Vec<i32> {
    let wanted: BTreeSet<_> = words.iter().copied().collect();
    let is_ours = |pid: &i32| {
        // A dead process that nobody has waited for has an empty command line.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let found: BTreeSet<_> = line.split('\0').collect();
        wanted.is_subset(&found)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(is_ours)
        .collect()
}
