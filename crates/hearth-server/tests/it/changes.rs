//! What a running server takes over, and how it shows that its loop works.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{SOON, Server, options, pause};

#[tokio::test]
async fn limits_pace_and_secret_change_while_the_server_runs() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.max_vms = 1;
    let control = options.control.clone();
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    assert!(control.change(options.changeable()).is_err(), "there is no server yet");
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let project = server.project(json!({ "name": "demo" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 3 })).await;
    server.until_full(SOON, &project, 1).await;
    let hook = || async {
        let request = server
            .request(Method::POST, "/hooks/git")
            .header("x-gitlab-token", "a new secret of webhooks")
            .header("x-gitlab-event", "System Hook")
            .json(&json!({}));
        request.send().await.unwrap().status()
    };
    assert_eq!(hook().await, StatusCode::FORBIDDEN, "webhooks are off");

    let mut changed = server.options.changeable();
    changed.max_vms = 10;
    changed.webhook_secret = hearth_server::WebhookSecret::new("a new secret of webhooks");
    control.change(changed.clone()).unwrap();
    // A wake came with it.
    server.until_full(SOON, &project, 3).await;
    let explained = server.get(&format!("{pool}/explain")).await;
    assert_eq!(explained["host"]["maxVms"], 10, "{explained:#}");
    assert_eq!(hook().await, StatusCode::OK);

    changed.requests_per_second = 1;
    control.change(changed).unwrap();
    let deadline = Instant::now() + SOON;
    while server.request(Method::GET, "/projects").send().await.unwrap().status() != StatusCode::TOO_MANY_REQUESTS {
        assert!(Instant::now() < deadline, "the new pace never held");
    }
}

#[tokio::test]
async fn pulse_stops_with_a_loop_that_hangs() {
    const LIMIT: Duration = Duration::from_secs(2);
    for (delay, works) in [(Duration::ZERO, true), (Duration::from_secs(3600), false)] {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut options = options(folder.path());
        options.tick = Duration::from_millis(20);
        let pulse = options.control.pulse();
        // The loop asks the driver, which does not answer for long.
        let fake = FakeOptions {
            call_delay: delay..=delay,
            ..FakeOptions::default()
        };
        let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, fake));
        let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < LIMIT || (pulse.age() < LIMIT) != works {
            assert!(began.elapsed() < SOON, "age {:?}, works: {works}", pulse.age());
            // The API answers all the same: who only asks whether the port answers finds nothing wrong.
            assert_eq!(server.get("/healthz").await["status"], "ok");
            pause().await;
        }
    }
}
