//! What a record says of a set-up command that did not work: plain, and with what to do about it.

use hearth_drivers::fake::{ExecRule, FakeOptions};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project};

/// The record of a test boot whose one command ends so.
async fn failed_by(rule: ExecRule, command: &str) -> Value {
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![rule],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let body = json!({ "setupCommands": [{ "name": "it", "command": command }] });
    server.test_boot(SOON, &project, body).await
}

fn reason(record: &Value) -> &str {
    record["failureReason"].as_str().unwrap()
}

#[tokio::test]
async fn of_a_progress_bar_the_reason_has_the_last_state_and_the_log_has_everything() {
    let bar: String = (1..=100).map(|percent| format!("\rdownload {percent:3}%")).collect();
    let printed = format!("\u{1b}[1mget\u{1b}[0m\n{bar}\u{1b}[31merror\u{1b}[0m: no such package\n");
    let record = failed_by(ExecRule::fails("fetch", 1, &printed), "fetch").await;
    assert_eq!(
        reason(&record),
        "exit code 1: get\ndownload 100%\nerror: no such package"
    );
    assert_eq!(record["summary"]["error"], record["failureReason"]);
    let step = record["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&step["error"], &step["output"]),
        (&record["failureReason"], &json!(printed))
    );
}
