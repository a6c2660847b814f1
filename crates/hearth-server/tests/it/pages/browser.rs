//! Chromium, driven as a person uses it: clicked, typed into, looked at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chromiumoxide::browser::{Browser, BrowserConfig};
use chromiumoxide::cdp::browser_protocol::emulation::{MediaFeature, SetDeviceMetricsOverrideParams};
use chromiumoxide::page::{Page, ScreenshotParams};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{Server, pause};

/// How long a page may take to show something on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of windows: a screen, and a telephone.
pub const WIDE: (i64, i64) = (1280, 900);
pub const NARROW: (i64, i64) = (390, 844);

/// A window.
pub struct Window {
    browser: Browser,
    events: JoinHandle<()>,
    pub page: Page,
    base: String,
    _profile: tempfile::TempDir,
}

/// Where screenshots are put, for people to look at.
pub fn shots() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Window {
    pub async fn open(server: &Server) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let config = BrowserConfig::builder()
            .new_headless_mode()
            // Root may run the tests, and Chromium's sandbox wants another user.
            .no_sandbox()
            .user_data_dir(profile.path())
            .viewport(None)
            .launch_timeout(PATIENCE)
            .request_timeout(PATIENCE)
            .args(["disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"])
            .build()
            .unwrap();
        let launched = Browser::launch(config).await;
        let (browser, mut handler) =
            launched.expect("Chromium does not start: is Debian's package `chromium` installed?");
        let events = tokio::spawn(async move { while handler.next().await.is_some() {} });
        let page = browser.new_page("about:blank").await.unwrap();
        // By this name, which browsers trust as they trust https.
        let base = format!("http://localhost:{}", server.address.port());
        let window = Self {
            browser,
            events,
            page,
            base,
            _profile: profile,
        };
        window.resize(WIDE).await;
        window
    }

    pub async fn close(mut self) {
        self.browser.close().await.unwrap();
        self.browser.wait().await.unwrap();
        self.events.abort();
    }

    pub async fn resize(&self, (width, height): (i64, i64)) {
        let size = SetDeviceMetricsOverrideParams::new(width, height, 1.0, false);
        self.page.execute(size).await.unwrap();
    }

    /// `light` or `dark`.
    pub async fn colours(&self, scheme: &str) {
        let wants = MediaFeature::new("prefers-color-scheme", scheme);
        self.page.emulate_media_features(vec![wants]).await.unwrap();
    }

    pub async fn go(&self, path: &str) {
        self.page.goto(format!("{}{path}", self.base)).await.unwrap();
    }

    /// What an expression is in the page.
    pub async fn ask(&self, script: &str) -> Value {
        let answer = self.page.evaluate(script).await;
        answer.map_or(Value::Null, |answer| answer.value().cloned().unwrap_or(Value::Null))
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

    /// Clicks a box, as a person does.
    pub async fn tick(&self, selector: &str) {
        let found = self.page.find_element(selector).await.unwrap();
        found.click().await.unwrap();
    }

    /// Types into a field, in place of what stands there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self
            .page
            .find_element(selector)
            .await
            .unwrap_or_else(|error| panic!("{selector}: {error}"));
        self.ask(&format!("document.querySelector({}).value = ''", json!(selector)))
            .await;
        field.focus().await.unwrap();
        field.type_str(text).await.unwrap();
    }

    /// Types where the focus is, and presses Enter.
    pub async fn type_keys(&self, selector: &str, text: &str) {
        let field = self.page.find_element(selector).await.unwrap();
        field.focus().await.unwrap();
        field.type_str(text).await.unwrap();
        field.press_key("Enter").await.unwrap();
    }

    /// A picture of the whole page.
    pub async fn shot(&self, name: &str) {
        let whole = ScreenshotParams::builder().full_page(true).build();
        let picture = self.page.screenshot(whole).await.unwrap();
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

    /// Another window of the same browser.
    pub async fn new_window(&self, url: &str) -> Page {
        self.browser.new_page(url).await.unwrap()
    }
}
