//! Headless Chromium over its DevTools protocol (chromedevtools.github.io/devtools-protocol).

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::eventually;

/// A browser with a fresh profile, ended when dropped.
pub struct Browser {
    _process: Child,
    _profile: TempDir,
    devtools: String,
    control: Page,
}

/// The window of every page, in pixels.
pub const WINDOW: (u32, u32) = (1280, 720);

impl Browser {
    /// Starts Chromium.
    ///
    /// # Errors
    /// Where it can't be started, or does not say where its DevTools are.
    pub async fn start() -> anyhow::Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new("chromium");
        command
            .args(FLAGS)
            .arg(format!("--window-size={},{}", WINDOW.0, WINDOW.1))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            // It leaves folders there, which go with the profile.
            .env("TMPDIR", profile.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = penstock_shell::children::guard(&mut command, rustix::process::Signal::KILL)
            .spawn()
            .context("starting chromium: is the package installed?")?;
        let errors = process.stderr.take().context("chromium has no standard error")?;
        let address = tokio::time::timeout(Duration::from_secs(30), devtools_address(errors))
            .await
            .context("waiting for chromium's DevTools")??;
        let control = Page::connect(&address).await?;
        let devtools = address.split("/devtools/").next().unwrap_or_default().to_owned();
        Ok(Self {
            _process: process,
            _profile: profile,
            devtools,
            control,
        })
    }

    /// Opens `url` in a new page with storage of its own, as a different person's browser has.
    ///
    /// # Errors
    /// Where Chromium refuses.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<Page> {
        let context = self
            .control
            .call("Target.createBrowserContext", json!({}))
            .await?;
        let target = json!({
            "url": "about:blank", "browserContextId": context["browserContextId"],
            "width": WINDOW.0, "height": WINDOW.1,
        });
        let target = self.control.call("Target.createTarget", target).await?;
        let id = target["targetId"].as_str().context("a target without an id")?;
        let mut page = Page::connect(&format!("{}/devtools/page/{id}", self.devtools)).await?;
        page.call("Page.enable", json!({})).await?;
        // Tests run scripts that a page's policy rightly forbids.
        page.call("Page.setBypassCSP", json!({ "enabled": true })).await?;
        let metrics =
            json!({ "width": WINDOW.0, "height": WINDOW.1, "deviceScaleFactor": 1, "mobile": false });
        page.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        page.call("Page.navigate", json!({ "url": url })).await?;
        Ok(page)
    }
}

/// One page.
pub struct Page {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_id: u64,
}

impl Page {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None);
        let (socket, _) = connect_async_with_config(address, Some(config), true)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        Ok(Self { socket, next_id: 0 })
    }

    /// Calls a DevTools method and gives its result.
    ///
    /// # Errors
    /// Where the browser answers with an error, or goes away.
    pub async fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let request = json!({ "id": id, "method": method, "params": params }).to_string();
        self.socket.send(Message::text(request)).await?;
        let answered = async {
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message? else { continue };
                let answer: Value = serde_json::from_str(&text)?;
                if answer["id"] == id {
                    return match answer.get("error") {
                        Some(error) => Err(anyhow!("{method}: {error}")),
                        None => Ok(answer["result"].clone()),
                    };
                }
            }
            bail!("the browser went away during {method}")
        };
        tokio::time::timeout(Duration::from_secs(30), answered)
            .await
            .with_context(|| method.to_owned())?
    }

    /// Evaluates JavaScript, waits for it if it is a promise, and gives its value.
    ///
    /// # Errors
    /// Where it throws.
    pub async fn eval(&mut self, script: &str) -> anyhow::Result<Value> {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", params).await?;
        match result.get("exceptionDetails") {
            Some(thrown) => bail!("{script}: {thrown}"),
            None => Ok(result["result"]["value"].clone()),
        }
    }

    /// Evaluates `script` until it is truthy, and gives that value.
    ///
    /// # Errors
    /// Where it is not within `within`. What throws counts as "not yet".
    pub async fn until(&mut self, script: &str, within: Duration) -> anyhow::Result<Value> {
        let truthy =
            |value: &Value| !matches!(value, Value::Null | Value::Bool(false)) && value != 0 && value != "";
        eventually(script, within, async || {
            Ok(self.eval(script).await.ok().filter(truthy))
        })
        .await
    }

    /// Presses and releases a key: its `code`, `key`, legacy key code, and text if it gives any.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn press(
        &mut self,
        code: &str,
        key: &str,
        key_code: u32,
        text: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut down = json!({
            "type": if text.is_some() { "keyDown" } else { "rawKeyDown" },
            "code": code, "key": key, "windowsVirtualKeyCode": key_code,
        });
        if let Some(text) = text {
            down["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", down).await?;
        let up = json!({ "type": "keyUp", "code": code, "key": key, "windowsVirtualKeyCode": key_code });
        self.call("Input.dispatchKeyEvent", up).await?;
        Ok(())
    }

    /// Sends one mouse event: `mouseMoved`, `mousePressed` or `mouseReleased` with `button`, at a pixel.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn mouse(&mut self, kind: &str, x: f64, y: f64, button: &str) -> anyhow::Result<()> {
        let clicks = u8::from(kind != "mouseMoved");
        let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": clicks });
        self.call("Input.dispatchMouseEvent", event).await?;
        Ok(())
    }

    /// A picture of the page, as PNG.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn screenshot(&mut self) -> anyhow::Result<Vec<u8>> {
        let shot = self
            .call("Page.captureScreenshot", json!({ "format": "png" }))
            .await?;
        let data = shot["data"].as_str().context("a screenshot without data")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
    }

    /// Keeps a picture of all of the page, as `target/pictures/NAME.png`, for people to look at.
    ///
    /// # Errors
    /// Where the browser refuses, or the picture can't be written.
    pub async fn keep_picture(&mut self, name: &str) -> anyhow::Result<()> {
        // They would take their width from a page that is laid out as high as it is for the picture.
        self.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }))
            .await?;
        let size = self.call("Page.getLayoutMetrics", json!({})).await?["cssContentSize"].clone();
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let shot = self.call("Page.captureScreenshot", params).await?;
        let data = shot["data"].as_str().context("a screenshot without data")?;
        let exe = std::env::current_exe()?;
        // target/debug/deps/TEST
        let target = exe.ancestors().nth(3).context("the test has no target folder")?;
        let folder = target.join("pictures");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.png"));
        let doing = || format!("writing {}", file.display());
        std::fs::write(&file, base64::engine::general_purpose::STANDARD.decode(data)?).with_context(doing)
    }

    /// Gives it another size, in pixels, as a phone's or a wide screen's.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn resize(&mut self, width: u32, height: u32) -> anyhow::Result<()> {
        let mobile = width < 600;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", metrics)
            .await
            .map(drop)
    }

    /// Goes to `url`, where the page's own policy holds: [`Browser::open`] lifts it.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn go_strictly(&mut self, url: &str) -> anyhow::Result<()> {
        self.call("Page.setBypassCSP", json!({ "enabled": false }))
            .await?;
        self.call("Page.navigate", json!({ "url": url })).await.map(drop)
    }

    /// Loads the page again.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn reload(&mut self) -> anyhow::Result<()> {
        self.call("Page.reload", json!({})).await.map(drop)
    }

    /// Closes the page, as a person who leaves.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.call("Page.close", json!({})).await.map(drop)
    }
}

async fn devtools_address(
    errors: impl tokio::io::AsyncRead + Unpin + Send + 'static,
) -> anyhow::Result<String> {
    let mut lines = BufReader::new(errors).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, address)) = line.split_once("DevTools listening on ") {
            let address = address.trim().to_owned();
            // Chromium must not block on a full pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
    }
    bail!("chromium ended at once")
}

const FLAGS: [&str; 16] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // Certificates are of the tests' own making.
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
];
