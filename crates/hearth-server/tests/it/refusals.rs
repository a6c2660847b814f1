//! What a claim is told that gets no VM.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server};

/// The refusal of a claim.
async fn refusal(server: &Server, pool: &str, claim: Value) -> String {
    let (status, reply) = server.call(Method::POST, &format!("{pool}/claim"), claim).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    reply["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn strict_claim_is_told_that_only_older_ones_are_ready_and_what_the_newest_set_up_is_at() {
    let hangs = ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("npm ci", "")
    };
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![hangs],
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(2).await;
    let slow = json!({ "setupCommands": [{ "name": "install", "command": "npm ci" }] });
    server.patch(&pool, slow).await;
    let explained = format!("{pool}/explain");
    let runs = |it: &Value| it["conditions"].to_string().contains("install has run for");
    server.until(SOON, &explained, runs).await;
    let message = refusal(
        &server,
        &pool,
        json!({ "strict": true, "miss": "require", "waitMs": 1000 }),
    )
    .await;
    for part in [
        "2 VMs are ready, none of the newest set-up, and the claim is strict",
        "of the newest set-up: install has run for",
        "ask again, or wait longer than 1 s",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = refusal(&server, &pool, json!({ "strict": true, "miss": "require" })).await;
    assert!(message.ends_with("ask again, or claim with a wait"), "{message}");
}

#[tokio::test]
async fn claim_is_told_which_vms_did_not_answer() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let ready = server.get(&format!("{pool}/instances?status=ready")).await;
    driver.answer_late(Duration::from_secs(60));
    let message = refusal(&server, &pool, json!({ "miss": "require" })).await;
    assert!(
        message.contains("2 VMs that the claim took could not be used: "),
        "{message}"
    );
    for vm in ready["items"].as_array().unwrap() {
        assert!(message.contains(vm["id"].as_str().unwrap()), "{message}");
    }
    assert!(
        message.contains("did not answer in time") && message.contains("a host that has too much to do"),
        "{message}"
    );
}
