//! `hearth project create` and `set`, and tokens: what goes over the wire for each option.

use crate::fake::{Fake, Reply};
use crate::support::{PROJECT, hearth_at, project_page, run};

fn server() -> Fake {
    Fake::start(|request| {
        if request.line.starts_with("GET /api/v1/projects?") {
            return Reply::ok(&project_page());
        }
        if request.line.ends_with("/tokens") {
            return Reply::ok(
                r#"{"id":"tok_1","name":"ci","owner":"ada","tenant":"default","scopes":["claim"],"projectId":"prj_1",
                "createdAt":"2025-01-01T00:00:00.000Z","lastUsedAt":null,"expiresAt":null,"token":"hearth_secret"}"#,
            );
        }
        Reply::ok(PROJECT)
    })
}

fn body_of(args: &[&str], method: &str) -> String {
    let fake = server();
    let ran = run(hearth_at(&fake.url, args));
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    fake.requests_of(method).remove(0).body
}

#[test]
fn a_project_can_have_a_limit_from_the_start() {
    assert_eq!(
        body_of(&["project", "create", "web", "--max-vms", "0"], "POST"),
        r#"{"name":"web","repos":[],"maxVms":0}"#
    );
}

#[test]
fn each_field_can_be_changed_alone_and_cleared_where_that_makes_sense() {
    for (args, body) in [
        (&["--max-vms", "7"][..], r#"{"maxVms":7}"#),
        (&["--no-max-vms"], r#"{"maxVms":null}"#),
        (
            &["--name", "shop", "--size", "large"],
            r#"{"name":"shop","vmSize":"large"}"#,
        ),
        (
            &["--no-description", "--no-image", "--no-setup"],
            r#"{"description":null,"image":null,"projectSetup":null}"#,
        ),
        (&["--no-repos"], r#"{"repos":[]}"#),
        (
            &["--repo", "acme/web@dev", "--setup", "a: true"],
            r#"{"repos":[{"repoFullName":"acme/web","branch":"dev"}],"projectSetup":[{"name":"a","command":"true"}]}"#,
        ),
    ] {
        assert_eq!(
            body_of(
                &[&["project", "set", "web"], args].concat(),
                "PATCH /api/v1/projects/prj_1"
            ),
            body
        );
    }
}

#[test]
fn a_token_has_scopes_an_owner_a_project_and_an_end() {
    let body: serde_json::Value = serde_json::from_str(&body_of(
        &[
            "token",
            "create",
            "ci",
            "--scope",
            "claim,project:read",
            "--owner",
            "ada",
            "--project",
            "web",
            "--expires",
            "2030-01-31T12:00:00Z",
        ],
        "POST",
    ))
    .unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "name": "ci", "scopes": ["claim", "project:read"], "owner": "ada", "projectId": "prj_1",
            "expiresAt": "2030-01-31T12:00:00Z",
        })
    );
}

#[test]
fn a_token_may_end_after_a_span() {
    let body = body_of(
        &["token", "create", "ci", "--scope", "claim", "--expires", "30 days"],
        "POST",
    );
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let ends: jiff::Timestamp = body["expiresAt"].as_str().unwrap().parse().unwrap();
    let hours = ends.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((719..=720).contains(&hours), "{hours}");
}
