//! Chromium, driven as a person uses it: clicked, typed into, looked at. `chromedriver` drives it, which is asked by WebDriver's HTTP calls
//! (<https://www.w3.org/TR/webdriver2/>).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::client;
use crate::harness::{Server, pause};

/// How long a page may take to show something on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of windows: a screen, and a telephone.
pub const WIDE: (i64, i64) = (1280, 900);
pub const NARROW: (i64, i64) = (390, 844);

/// The key of an element's id in WebDriver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Enter, among WebDriver's names of keys.
const ENTER: &str = "\u{e007}";

/// A window.
pub struct Window {
    http: Client,
    /// Where the session's calls go.
    session: String,
    base: String,
    /// The program that drives the browser; both end with it.
    program: Child,
    _profile: tempfile::TempDir,
}

/// Where screenshots are put, for people to look at.
pub fn shots() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Starts `chromedriver`; the port that it listens on.
async fn start_driver() -> (Child, u16) {
    let mut program = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("chromedriver does not start: is Debian's package `chromium-driver` installed?");
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    // `ChromeDriver was started successfully on port 40123.`
    let port = loop {
        let line = lines.next_line().await.unwrap().expect("chromedriver says its port");
        if let Some((_, port)) = line.split_once("successfully on port ") {
            break port.trim_end_matches('.').parse().unwrap();
        }
    };
    // What it says later has nowhere to go, and must not stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (program, port)
}

impl Drop for Window {
    /// The browser ends with its window, when a test fails too.
    fn drop(&mut self) {
        let group = self.program.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Window {
    pub async fn open(server: &Server) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (program, port) = start_driver().await;
        let arguments = [
            "--headless=new",
            // Root may run the tests, and Chromium's sandbox wants another user.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let mut window = Self {
            http: client(),
            session: format!("http://127.0.0.1:{port}/session"),
            // By this name, which browsers trust as they trust https.
            base: format!("http://localhost:{}", server.address.port()),
            program,
            _profile: profile,
        };
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let made = window.call(Method::POST, "", wanted).await;
        let made = made.expect("Chromium does not start: is Debian's package `chromium` installed?");
        window.session = format!("{}/{}", window.session, made["sessionId"].as_str().unwrap());
        window.resize(WIDE).await;
        window
    }

    /// A call of the session; its `value`, or what went wrong.
    async fn call(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::POST {
            request.json(&body)
        } else {
            request
        };
        let answer = request.send().await.unwrap();
        let is_done = answer.status().is_success();
        let mut answer: Value = answer.json().await.unwrap();
        let value = answer["value"].take();
        if is_done {
            Ok(value)
        } else {
            Err(value["message"].to_string())
        }
    }

    /// The same, of one that must be done.
    async fn post(&self, path: &str, body: Value) -> Value {
        let done = self.call(Method::POST, path, body).await;
        done.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub async fn close(self) {
        self.call(Method::DELETE, "", Value::Null).await.unwrap();
    }

    /// A command of Chromium's own protocol (<https://chromedevtools.github.io/devtools-protocol/>).
    async fn tell(&self, method: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": method, "params": parameters }))
            .await
    }

    pub async fn resize(&self, (width, height): (i64, i64)) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.tell("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// `light` or `dark`.
    pub async fn colours(&self, scheme: &str) {
        let wants = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.tell("Emulation.setEmulatedMedia", wants).await;
    }

    pub async fn go(&self, path: &str) {
        self.post("/url", json!({ "url": format!("{}{path}", self.base) }))
            .await;
    }

    /// Runs a script in the page.
    pub async fn run(&self, script: &str) {
        self.post("/execute/sync", json!({ "script": script, "args": [] }))
            .await;
    }

    /// What an expression is in the page, or what its promise becomes; `null` where the page is just being left.
    pub async fn ask(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return ({expression})"), "args": [] });
        self.call(Method::POST, "/execute/sync", script)
            .await
            .unwrap_or_default()
    }

    /// What the browser complained of since it was asked last.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({ "type": "browser" })).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["message"].to_string()).collect()
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&self, script: &str) {
        self.until_within(script, PATIENCE).await;
    }

    /// The same with a patience of its own.
    pub async fn until_within(&self, script: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.ask(script).await != json!(true) {
            if Instant::now() > deadline {
                self.shot("failed").await;
                panic!(
                    "{script} was never true at {:?}:\n{}",
                    self.path().await,
                    self.text().await
                );
            }
            pause().await;
        }
    }

    /// Waits until the page shows this text.
    pub async fn sees(&self, text: &str) {
        self.until(&format!(
            "document.body !== null && document.body.innerText.includes({})",
            json!(text)
        ))
        .await;
    }

    /// Waits until the window is at a path that begins so.
    pub async fn is_at(&self, path: &str) {
        let script = format!(
            "location.pathname.startsWith({}) && document.readyState === 'complete'",
            json!(path)
        );
        self.until(&script).await;
    }

    pub async fn path(&self) -> String {
        self.ask("location.pathname + location.search")
            .await
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub async fn text(&self) -> String {
        self.ask("document.body.innerText")
            .await
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Clicks the first button or link that is shown and has this text.
    pub async fn click(&self, text: &str) {
        let found = format!(
            "[...document.querySelectorAll('button, a, summary')].find(one => one.innerText.trim().startsWith({}) && one.offsetParent)",
            json!(text)
        );
        self.until(&format!("{found} !== undefined")).await;
        self.ask(&format!("({found}.click(), true)")).await;
    }

    /// Does this with what a selector finds first.
    async fn with(&self, selector: &str, action: &str, body: Value) {
        let found = self
            .post("/element", json!({ "using": "css selector", "value": selector }))
            .await;
        let id = found[ELEMENT].as_str().unwrap();
        self.post(&format!("/element/{id}/{action}"), body).await;
    }

    /// Clicks a box, as a person does.
    pub async fn tick(&self, selector: &str) {
        self.with(selector, "click", json!({})).await;
    }

    /// Types into a field, in place of what stands there.
    pub async fn fill(&self, selector: &str, text: &str) {
        self.ask(&format!("document.querySelector({}).value = ''", json!(selector)))
            .await;
        self.with(selector, "value", json!({ "text": text })).await;
    }

    /// Types on something that has the focus then, and presses Enter.
    pub async fn type_keys(&self, selector: &str, text: &str) {
        self.ask(&format!("document.querySelector({}).focus()", json!(selector)))
            .await;
        let stroke = |key: String| {
            [
                json!({ "type": "keyDown", "value": key }),
                json!({ "type": "keyUp", "value": key }),
            ]
        };
        let keys = text.chars().map(String::from).chain([ENTER.to_owned()]);
        let strokes: Vec<Value> = keys.flat_map(stroke).collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": strokes }]);
        self.post("/actions", json!({ "actions": actions })).await;
    }

    /// A picture of the whole page.
    pub async fn shot(&self, name: &str) {
        let picture = self
            .tell("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))
            .await;
        let picture = BASE64.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(shots().join(format!("{name}.png")), picture).unwrap();
    }

    /// Pictures of the page as it is shown to different people.
    pub async fn shots(&self, name: &str) {
        for (kind, scheme, size) in [
            ("light", "light", WIDE),
            ("dark", "dark", WIDE),
            ("narrow", "light", NARROW),
        ] {
            self.colours(scheme).await;
            self.resize(size).await;
            // Before the picture: for that the window is made as large as the page.
            self.until(&format!("window.innerWidth === {}", size.0)).await;
            let width = self.ask("document.documentElement.scrollWidth").await;
            assert!(
                width.as_i64() <= Some(size.0),
                "{name} is {width} wide in a {kind} window of {}",
                size.0
            );
            self.shot(&format!("{name}-{kind}")).await;
        }
        self.colours("light").await;
        self.resize(WIDE).await;
    }

    /// What an address shows in a window of its own.
    pub async fn source_of(&self, url: &str) -> String {
        let here = self.call(Method::GET, "/window", Value::Null).await.unwrap();
        let other = self.post("/window/new", json!({ "type": "tab" })).await;
        self.post("/window", json!({ "handle": other["handle"] })).await;
        self.post("/url", json!({ "url": url })).await;
        let source = self.call(Method::GET, "/source", Value::Null).await.unwrap();
        self.call(Method::DELETE, "/window", Value::Null).await.unwrap();
        self.post("/window", json!({ "handle": here })).await;
        source.as_str().unwrap().to_owned()
    }
}
