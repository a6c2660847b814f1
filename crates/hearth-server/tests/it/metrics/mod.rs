//! Metrics as a scraper reads them, and what Prometheus itself says of them and of the alerts.

mod alerts;
mod prometheus;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{SOON, Server, bare_project, options, pause};

/// An address that nobody listens on at this moment.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A server whose metrics are open at the address.
async fn server(fake: FakeOptions) -> (Server, FakeDriver, SocketAddr) {
    let driver = FakeDriver::new(1, fake);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.provision_concurrency = 4;
    let address = free_address();
    options.metrics_listen = Some(address);
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    (server, driver, address)
}

async fn read(address: SocketAddr) -> String {
    let reply = reqwest::get(format!("http://{address}/metrics")).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(
        reply.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    reply.text().await.unwrap()
}

/// Series and their values.
fn series(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

/// Reads until a series has a value.
async fn until(address: SocketAddr, name: &str, value: f64) -> String {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let text = read(address).await;
        let is_so = series(&text)
            .get(name)
            .is_some_and(|now| (now - value).abs() < f64::EPSILON);
        if is_so {
            return text;
        }
        assert!(std::time::Instant::now() < deadline, "{name} is not {value}:\n{text}");
        pause().await;
    }
}

#[tokio::test]
async fn figures_follow_what_happens_and_hold_no_secret_and_a_hostile_name_breaks_nothing() {
    const SECRET: &str = "s3cr3t-value-of-this-test";
    let (server, driver, address) = server(FakeOptions {
        rules: vec![ExecRule::fails("die", 3, SECRET)],
        ..FakeOptions::default()
    })
    .await;
    let name = "a\"b\\c{d=\"e\"} <script>";
    let hostile = server.project(json!({ "name": name, "repos": [] })).await;
    let variables = json!({ "variables": [{ "name": "S", "value": SECRET }] });
    server
        .put(&format!("{hostile}/environment-variables/shared"), variables)
        .await;
    let commands = json!({ "setupCommands": [{ "name": "die", "command": format!("die {SECRET}") }] });
    server.test_boot(SOON, &hostile, commands).await;
    let (project, pool) = server.full_pool(2).await;
    let id = project.trim_start_matches("/projects/");
    let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    server.until_full(SOON, &project, 2).await;
    let warm = format!("hearth_claims_total{{outcome=\"success\",project=\"{id}\",tier=\"ready\"}}");
    until(address, &warm, 1.0).await;
    let (status, _) = server
        .call(
            Method::POST,
            &format!("{hostile}/warm-pool/claim"),
            json!({ "miss": "require" }),
        )
        .await;
    assert_ne!(status, StatusCode::OK);
    assert!(driver.crash(&crate::guests::vm(&claim)));
    let ended = format!("hearth_claimed_vms_ended_total{{project=\"{id}\"}}");
    let text = until(address, &ended, 1.0).await;
    let all = series(&text);
    for (name, value) in [
        (format!("hearth_pool_target{{project=\"{id}\"}}"), 2.0),
        (
            format!("hearth_pool_instances{{project=\"{id}\",state=\"ready\"}}"),
            2.0,
        ),
        (
            format!("hearth_pool_instances{{project=\"{id}\",state=\"claimed\"}}"),
            1.0,
        ),
        (
            format!("hearth_claim_duration_seconds_count{{project=\"{id}\",tier=\"ready\"}}"),
            1.0,
        ),
        (
            format!("hearth_claim_misses_total{{cause=\"drained\",project=\"{id}\"}}"),
            0.0,
        ),
        (
            "hearth_claim_phase_duration_seconds_count{phase=\"take\"}".to_owned(),
            1.0,
        ),
        ("hearth_host_vms_limit".to_owned(), 500.0),
        ("hearth_orphans_found_total".to_owned(), 0.0),
        ("hearth_leases_expiring".to_owned(), 0.0),
    ] {
        assert_eq!(all.get(name.as_str()), Some(&value), "{name}\n{text}");
    }
    let refused = hostile.trim_start_matches("/projects/");
    let refused = all
        .keys()
        .find(|name| name.starts_with("hearth_claims_total") && name.contains(refused) && name.contains("none"));
    assert!(refused.is_some(), "{text}");
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains(r#"name="a\"b\\c{d=\"e\"} <script>""#), "{text}");
    // What dashboard and alerts ask for is there.
    for file in ["grafana/hearth.json", "prometheus/alerts.yml"] {
        let shipped = std::fs::read_to_string(prometheus::deployed(file)).unwrap();
        for word in shipped.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let name = ["_bucket", "_count"]
                .iter()
                .fold(word, |name, end| name.trim_end_matches(end));
            let is_metric = name.starts_with("hearth_") && name != "hearth_";
            assert!(
                !is_metric || text.contains(&format!("# TYPE {name} ")),
                "{file}: {name}"
            );
        }
    }
    let per_step = "hearth_preparation_duration_seconds_count{outcome=";
    assert!(all.keys().any(|name| name.starts_with(per_step)), "{text}");
}

#[tokio::test]
async fn metrics_where_the_api_is_are_for_the_hosts_admin_alone() {
    let (server, _driver) = Server::fake(FakeOptions::default()).await;
    server.project(bare_project()).await;
    let client = reqwest::Client::new();
    let url = format!("http://{}/metrics", server.address);
    let reply = client.get(&url).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    for (body, status) in [
        (
            json!({ "name": "r", "scopes": ["project:read"] }),
            StatusCode::FORBIDDEN,
        ),
        (
            json!({ "name": "f", "scopes": ["admin"], "tenant": "acme" }),
            StatusCode::FORBIDDEN,
        ),
        (json!({ "name": "a", "scopes": ["admin"] }), StatusCode::OK),
    ] {
        let token = server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
        let reply = client.get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(reply.status(), status);
    }
}
