//! Which command of which step failed is said wherever a person reads it; the documented reason stays as it is documented.

use hearth_drivers::fake::{ExecRule, FakeOptions, Special};
use hearth_guest::ExecEnd;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, git_repo};

async fn server_on_which(rule: ExecRule) -> Server {
    let fake = FakeOptions {
        rules: vec![rule],
        ..FakeOptions::default()
    };
    Server::fake(fake).await.0
}

/// The record of a failed test boot, and what Hearth's own path says why.
async fn failed(server: &Server, project: &str, body: Value) -> (Value, String) {
    let record = server.test_boot(SOON, project, body).await;
    assert_eq!(record["status"], "failed", "{record:#}");
    let id = record["id"].as_str().unwrap();
    let view = server.get(&format!("/instances/{id}")).await;
    let failure = view["failure"].as_str().unwrap().to_owned();
    (record, failure)
}

#[tokio::test]
async fn a_failing_command_is_named_by_the_record_the_pool_and_a_claim() {
    let server = server_on_which(ExecRule::fails("npm ci", 1, "one\nno rule for s3cret\n")).await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "KEY", "value": "s3cret" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let commands = json!([{ "name": "fine", "command": "true" }, { "name": "npm s3cret", "command": "npm ci" }]);
    let (record, failure) = failed(&server, &project, json!({ "setupCommands": commands })).await;
    assert_eq!(record["failureReason"], "exit code 1: one\nno rule for ***");
    let named = "the command `npm ***` ended with exit code 1: one\nno rule for ***";
    assert_eq!(failure, format!("warm_pool_setup: {named}"));
    let step = record["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(step["metadata"]["failure"], named, "{step}");

    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    let open = |it: &Value| {
        let mut all = it["conditions"].as_array().unwrap().iter();
        let open = all.any(|one| one["type"] == "BreakerOpen" && one["status"] == true);
        // A pass has seen it, too.
        open && it["decisions"][0]["action"] == "wait"
    };
    let explained = server.until(SOON, &format!("{pool}/explain"), open).await;
    let short = "(warm_pool_setup: the command `npm ***` ended with exit code 1: one; no rule for ***)";
    assert!(
        explained["summary"].as_str().unwrap().contains(short),
        "{}",
        explained["summary"]
    );
    let mut conditions = explained["conditions"].as_array().unwrap().iter();
    let breaker = conditions.find(|it| it["type"] == "BreakerOpen").unwrap()["message"].as_str();
    assert!(breaker.unwrap().contains(short), "{breaker:?}");
    assert_eq!(explained["status"], server.get(&pool).await["status"]);

    // A claim says the same, and when the next try is: minutes from now.
    let claim = server.request(Method::POST, &format!("{pool}/claim"));
    let response = claim.json(&json!({})).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((200..=400).contains(&seconds), "{seconds}");
    let refused: Value = response.json().await.unwrap();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(short) && message.contains("it is tried again at 2") && message.contains("hearth pool retry"),
        "{message}"
    );
}

#[tokio::test]
async fn a_claim_whose_own_vm_failed_names_the_command() {
    let server = server_on_which(ExecRule::fails("npm ci", 1, "no rule\n")).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let commands = json!([{ "name": "npm", "command": "npm ci" }]);
    server.patch(&pool, json!({ "setupCommands": commands })).await;
    let body = json!({ "waitMs": 20_000 });
    let (status, refused) = server.call(Method::POST, &format!("{pool}/claim"), body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.ends_with("warm_pool_setup: the command `npm` ended with exit code 1: no rule"),
        "{message}"
    );
}

#[tokio::test]
async fn hooks_scripts_and_clones_are_named_with_their_repository() {
    let server = server_on_which(ExecRule::fails("broken", 2, "no rule\n")).await;
    let repo = |name: &str, hook: &str| {
        let settings = json!({ "hooks": { "setup": [hook] } }).to_string();
        let url = git_repo(server.folder.path(), name, &[(".hearth/settings.json", &settings)]);
        json!({ "repoFullName": format!("acme/{name}"), "branch": "main", "url": url })
    };
    let project_of = async |name: &str, hook: &str, change: Value| {
        let (mut app, mut lib) = (repo(&format!("{name}-app"), "fine"), repo(&format!("{name}-lib"), hook));
        for (key, value) in change.as_object().into_iter().flatten() {
            lib[key] = value.clone();
        }
        app["branch"] = json!("main");
        server.project(json!({ "name": name, "repos": [app, lib] })).await
    };

    let hooks = project_of("hooks", "make broken", json!({})).await;
    let (record, failure) = failed(&server, &hooks, json!({})).await;
    assert_eq!(record["failureReason"], "exit code 2: no rule");
    assert_eq!(
        failure,
        "init_repo: the hook `make broken` of acme/hooks-lib ended with exit code 2: no rule"
    );

    let scripts = project_of("scripts", "fine", json!({})).await;
    let of = |name: &str, initialize: Value| {
        json!({ "repository": format!("acme/scripts-{name}"), "branch": "main", "commands": [],
            "scripts": { "initialize": initialize, "updateAfterCheckout": null, "startup": null } })
    };
    let repositories = json!([of("app", json!("fine")), of("lib", json!("broken"))]);
    server
        .patch(&format!("{scripts}/setup"), json!({ "repositories": repositories }))
        .await;
    let (record, failure) = failed(&server, &scripts, json!({})).await;
    assert_eq!(record["failureReason"], "exit code 2: no rule");
    assert_eq!(
        failure,
        "repo_setup: the script initialize of acme/scripts-lib ended with exit code 2: no rule"
    );

    let clones = project_of("clones", "fine", json!({ "branch": "nowhere" })).await;
    let (_, failure) = failed(&server, &clones, json!({})).await;
    assert!(
        failure.starts_with("clone_repo: acme/clones-lib has no branch `nowhere`"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_command_that_was_killed_or_took_too_long_is_named_too() {
    let killed = ExecEnd::Exited {
        code: None,
        signal: Some(9),
        duration_ms: 1,
        log: None,
        out_of_memory: None,
    };
    for (end, says) in [
        (killed, "warm_pool_setup: the command `it` was ended by signal 9"),
        (
            ExecEnd::TimedOut {
                duration_ms: 1,
                code: None,
                signal: None,
            },
            "warm_pool_setup: the command `it` timed out after ",
        ),
        (
            ExecEnd::NotStarted {
                reason: "no such folder".to_owned(),
                code: None,
            },
            "warm_pool_setup: the command `it` could not be started: no such folder",
        ),
    ] {
        let server = server_on_which(ExecRule::does("run-it", Special::End(end))).await;
        let project = server.project(bare_project()).await;
        let commands = json!([{ "name": "it", "command": "run-it" }]);
        let (_, failure) = failed(&server, &project, json!({ "setupCommands": commands })).await;
        assert!(failure.starts_with(says), "{failure}");
        server.stop().await;
    }
}
