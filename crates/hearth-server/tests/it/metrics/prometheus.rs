//! A real Prometheus scrapes a real server: nothing is wrong while nothing is wrong, and each fault raises its alert.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hearth_drivers::fake::{ExecRule, FakeOptions};
use serde_json::{Value, json};

use super::{free_address, read, server};
use crate::harness::{SOON, bare_project, pause};

/// Prometheus takes a moment to start, and two scrapes to see a change.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program of Prometheus, where `cargo xtask test` has put it.
pub(super) fn program(name: &str) -> PathBuf {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/prometheus/usr/bin");
    let folder = std::env::var_os("HEARTH_PROMETHEUS").map_or_else(|| PathBuf::from(unpacked), PathBuf::from);
    folder.join(name)
}

/// A file below `deploy/`.
pub(super) fn deployed(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).join(name)
}

/// Runs promtool; what it printed, and whether it was content.
pub(super) fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    use std::io::Write as _;
    let mut child = Command::new(program("promtool"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (done.status.success(), said.concat())
}

/// A Prometheus that runs until it is dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// With the shipped rules, but that no alert waits before it is raised.
    fn start(scraped: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = std::fs::read_to_string(deployed("prometheus/alerts.yml")).unwrap();
        let rules: String = rules
            .lines()
            .map(|line| match line.trim_start().starts_with("for: ") {
                true => "        for: 3s\n".to_owned(),
                false => format!("{line}\n"),
            })
            .collect();
        std::fs::write(folder.path().join("alerts.yml"), rules).unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{ "job_name": "hearth", "static_configs": [{ "targets": [scraped.to_string()] }] }],
        });
        // JSON is YAML, too.
        std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        let address = free_address();
        let child = Command::new(program("prometheus"))
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let reply = reqwest::get(format!("http://{}/api/v1/{path}", self.address))
            .await
            .ok()?;
        reply.json().await.ok()
    }

    /// The alerts that are raised.
    async fn firing(&self) -> BTreeSet<String> {
        let alerts = self.get("alerts").await.unwrap_or_default();
        let alerts = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            // The disk of the machine that runs this may be nearly full; that this alert is right, the rules' own tests say.
            .filter(|name| name != "HearthDiskFull")
            .collect()
    }

    async fn until_firing(&self, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let firing = self.firing().await;
            if firing == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "raised: {firing:?}, wanted: {wanted:?}");
            pause().await;
        }
    }

    /// How many samples of a query there are.
    async fn value(&self, query: &str) -> Option<f64> {
        let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let reply = self.get(&format!("query?query={query}")).await?;
        reply["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    async fn until_value(&self, query: &str, is: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.value(query).await;
            if value.is_some_and(&is) {
                return;
            }
            assert!(Instant::now() < deadline, "{query} is {value:?}");
            pause().await;
        }
    }
}

#[tokio::test]
#[ignore = "needs Prometheus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn promtool_finds_nothing_wrong_with_the_metrics_of_a_server_that_works() {
    let (server, _driver, address) = server(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    server.until_full(SOON, &project, 1).await;
    let text = read(address).await;
    let (content, said) = promtool(&["check", "metrics"], &text);
    assert!(content && said.is_empty(), "{said}\n{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Prometheus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_real_prometheus_raises_what_is_wrong_with_a_real_server_and_nothing_else() {
    let (server, driver, address) = server(FakeOptions {
        rules: vec![ExecRule::fails("die", 3, "no")],
        ..FakeOptions::default()
    })
    .await;
    let (project, pool) = server.full_pool(1).await;
    let prometheus = Prometheus::start(address);
    prometheus.until_value("up{job=\"hearth\"}", |up| up > 0.0).await;
    prometheus
        .until_value("hearth_pool_instances{state=\"ready\"}", |ready| ready > 0.0)
        .await;
    // Some evaluations more: nothing is wrong.
    prometheus
        .until_value("count_over_time(hearth_pool_target[1m])", |count| count > 8.0)
        .await;
    prometheus.until_firing(&[]).await;

    let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    server.until_full(SOON, &project, 1).await;
    assert!(driver.crash(&crate::guests::vm(&claim)));
    prometheus.until_firing(&["HearthClaimedVmEnded"]).await;

    let failing = server.project(bare_project()).await;
    let commands = json!([{ "name": "die", "command": "die" }]);
    let enable = json!({ "enabled": true, "targetSize": 1, "setupCommands": commands });
    server.patch(&format!("{failing}/warm-pool"), enable).await;
    let broken = [
        "HearthBreakerOpen",
        "HearthClaimedVmEnded",
        "HearthNoTemplate",
        "HearthPoolBelowTarget",
    ];
    prometheus.until_firing(&broken).await;

    // Repaired: what is about the pool ends.
    server
        .patch(&format!("{failing}/warm-pool"), json!({ "setupCommands": [] }))
        .await;
    prometheus.until_firing(&["HearthClaimedVmEnded"]).await;

    drop(server.stop().await);
    prometheus.until_firing(&["HearthClaimedVmEnded", "HearthDown"]).await;
}
