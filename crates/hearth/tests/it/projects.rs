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

/// A server with this many claimed VMs and as many projects of the one name.
fn server_with(claimed: usize, named: usize) -> Fake {
    let item = r#"{"id":"ins_1","instanceId":"vm_1","status":"claimed","isTest":false,"failureReason":null,
        "provisionedAt":null,"createdAt":"2025-01-01T00:00:00.000Z"}"#;
    let instances = format!(r#"{{"items":[{}]}}"#, vec![item; claimed].join(","));
    let projects = format!(
        r#"{{"items":[{}],"nextCursor":null,"hasMore":false}}"#,
        vec![PROJECT; named].join(",")
    );
    Fake::start(move |request| {
        if request.line.contains("/warm-pool/instances?") {
            return Reply::ok(&instances);
        }
        if request.line.starts_with("GET /api/v1/projects?") {
            return Reply::ok(&projects);
        }
        if request.line.starts_with("DELETE") {
            return Reply::ok(r#"{"deleted":true,"id":"prj_1"}"#);
        }
        Reply::ok(PROJECT)
    })
}

#[test]
fn a_project_with_claimed_vms_is_deleted_only_when_that_is_said() {
    let fake = server_with(2, 1);
    let ran = run(hearth_at(&fake.url, &["project", "delete", "web"]));
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("destroys 2 claimed VMs") && ran.stderr.contains("--yes"),
        "{}",
        ran.stderr
    );
    assert!(fake.requests_of("DELETE").is_empty());
    let ran = run(hearth_at(&fake.url, &["project", "delete", "web", "--yes"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let idle = server_with(0, 1);
    let ran = run(hearth_at(&idle.url, &["project", "delete", "web"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn the_address_may_end_as_the_documents_show_it() {
    let fake = server();
    for end in ["/api/v1", "/api/v1/", "/"] {
        let ran = run(hearth_at(&format!("{}{end}", fake.url), &["project", "show", "web"]));
        assert_eq!(ran.code, 0, "{end}: {}", ran.stderr);
    }
}

#[test]
fn of_several_ids_the_one_that_is_not_known_is_named() {
    let fake = Fake::start(|request| {
        if request.line.contains("/ins_1/") {
            return Reply::ok(r#"{"id":"ins_1","released":true}"#);
        }
        Reply::not_found()
    });
    let ran = run(hearth_at(&fake.url, &["release", "ins_1", "ins_2"]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("error: ins_2: there is no such"), "{}", ran.stderr);
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

#[test]
fn a_project_is_shown_with_where_its_repositories_come_from_and_the_size_of_its_vms() {
    let view = r#"{"id":"prj_1","name":"web","description":null,"taskCode":"WEB","repos":[
        {"repoFullName":"acme/web","branch":"main","url":"https://h/acme/web.git","lfs":false,"submodules":true}],
        "image":null,"projectSetup":null,"vmSize":"large","maxVms":4,"gitIdentity":{"name":"Bot","email":"b@example.org"},
        "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;
    let fake = Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/view") => Reply::ok(view),
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        _ => Reply::not_found(),
    });
    let ran = run(hearth_at(&fake.url, &["project", "show", "web"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in [
        "acme/web@main from https://h/acme/web.git, without what Git LFS keeps\n",
        "VM size:      large\n",
        "most VMs:     4\n",
        "Bot <b@example.org>",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    // A server that has no such view shows what it has.
    let old = Fake::start(|request| match request.line.as_str() {
        line if line.ends_with("/view") => Reply::not_found(),
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        _ => Reply::ok(PROJECT),
    });
    let ran = run(hearth_at(&old.url, &["project", "show", "web"]));
    assert!(ran.code == 0 && ran.stdout.contains("acme/web@main"), "{ran:?}");
}
