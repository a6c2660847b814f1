//! Chromium, driven as a person uses it: clicked, typed into, looked at.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use thirtyfour::cdp::Cdp;
use thirtyfour::common::capabilities::chromium::ChromiumLikeCapabilities as _;
use thirtyfour::prelude::*;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::harness::{Server, pause};

/// How long a page may take to show something on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of windows: a screen, and a telephone.
pub const WIDE: (i64, i64) = (1280, 900);
pub const NARROW: (i64, i64) = (390, 844);

/// A window.
pub struct Window {
    driver: WebDriver,
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
        .kill_on_drop(true)
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

impl Window {
    pub async fn open(server: &Server) -> Self {
        crate::harness::install_tls();
        let profile = tempfile::tempdir().unwrap();
        let (program, port) = start_driver().await;
        let mut wanted = DesiredCapabilities::chrome();
        for argument in [
            "--headless=new",
            // Root may run the tests, and Chromium's sandbox wants another user.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            &format!("--user-data-dir={}", profile.path().display()),
        ] {
            wanted.add_arg(argument).unwrap();
        }
        wanted.set("goog:loggingPrefs", json!({ "browser": "ALL" })).unwrap();
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await;
        let driver = driver.expect("Chromium does not start: is Debian's package `chromium` installed?");
        // By this name, which browsers trust as they trust https.
        let base = format!("http://localhost:{}", server.address.port());
        let window = Self {
            driver,
            base,
            program,
            _profile: profile,
        };
        window.resize(WIDE).await;
        window
    }

    pub async fn close(mut self) {
        self.driver.quit().await.unwrap();
        self.program.kill().await.unwrap();
    }

    /// A command of Chromium's own protocol (<https://chromedevtools.github.io/devtools-protocol/>).
    async fn tell(&self, method: &str, parameters: Value) -> Value {
        let cdp: Cdp = self.driver.cdp();
        cdp.send_raw(method, parameters).await.unwrap()
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
        self.driver.goto(format!("{}{path}", self.base)).await.unwrap();
    }

    /// Runs a script in the page.
    pub async fn run(&self, script: &str) {
        self.driver.execute(script, Vec::new()).await.unwrap();
    }

    /// What an expression is in the page, or what its promise becomes; `null` where the page is just being left.
    pub async fn ask(&self, expression: &str) -> Value {
        let answer = self.driver.execute(format!("return ({expression})"), Vec::new()).await;
        answer.map_or(Value::Null, |answer| answer.json().clone())
    }

    /// What the browser complained of since it was asked last.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.driver.get_log("browser").await.unwrap();
        entries.into_iter().map(|entry| entry.message).collect()
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

    /// What a selector finds first.
    async fn find(&self, selector: &str) -> WebElement {
        let found = self.driver.find(By::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    /// Clicks a box, as a person does.
    pub async fn tick(&self, selector: &str) {
        self.find(selector).await.click().await.unwrap();
    }

    /// Types into a field, in place of what stands there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.find(selector).await;
        self.ask(&format!("document.querySelector({}).value = ''", json!(selector)))
            .await;
        field.send_keys(text).await.unwrap();
    }

    /// Types on something that has the focus then, and presses Enter.
    pub async fn type_keys(&self, selector: &str, text: &str) {
        self.ask(&format!("document.querySelector({}).focus()", json!(selector)))
            .await;
        let keys = self.driver.action_chain().send_keys(text + Key::Enter);
        keys.perform().await.unwrap();
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
        let here = self.driver.window().await.unwrap();
        let other = self.driver.new_tab().await.unwrap();
        self.driver.switch_to_window(other).await.unwrap();
        self.driver.goto(url).await.unwrap();
        let source = self.driver.source().await.unwrap();
        self.driver.close_window().await.unwrap();
        self.driver.switch_to_window(here).await.unwrap();
        source
    }
}
