//! `hearth fork` and `hearth checkpoint`: what is asked, and what is shown.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run};

const CLAIM: &str = r#"{"id":"wpi_2","instanceId":"vm-2","source":"fork","recipe":"r","ageMs":0,"waitMs":5,"repos":[],
    "expiresAt":"2030-01-01T00:00:00.000Z","agent":{"exec":"e","files":"f","terminal":"t","ports":"p"}}"#;
const MADE: &str = r#"{"projectId":"prj_1","name":"before","note":"fine","instanceId":"wpi_1","owner":"ada","bytes":1048576,
    "createdAt":"2026-11-24T05:00:00.000Z"}"#;

fn server() -> Fake {
    Fake::start(|request| match request.line.as_str() {
        line if line.contains("/fork") => Reply::ok(&format!(
            r#"{{"parent":"wpi_1","pausedMs":240,"items":[{{"taskId":"T1-1","claim":{CLAIM}}},{{"taskId":null,"claim":{CLAIM}}}]}}"#
        )),
        line if line.contains("/restore") => Reply::ok(CLAIM),
        line if line.starts_with("POST") && line.contains("/checkpoint") => Reply::ok(MADE),
        line if line.starts_with("DELETE") => Reply::ok(r#"{"deleted":true,"name":"before"}"#),
        line if line.contains("/checkpoints") => Reply::ok(&format!(r#"{{"items":[{MADE}]}}"#)),
        line if line.contains("/warm-pool/claim") => Reply::ok(CLAIM),
        _ => Reply::ok(&project_page()),
    })
}

#[test]
fn fork_asks_for_copies_and_lists_them() {
    let fake = server();
    let ran = run(hearth_at(
        &fake.url,
        &["fork", "wpi_1", "-n", "2", "--task", "T1", "--ttl", "60"],
    ));
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in ["wpi_2", "vm-2", "T1-1", "forked wpi_1, which was stopped for 240 ms"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let request = fake.requests().pop().unwrap();
    assert_eq!(request.line, "POST /api/v1/instances/wpi_1/fork");
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({ "count": 2, "taskId": "T1", "ttlMinutes": 60 })
    );
    let ran = run(hearth_at(&fake.url, &["fork", "wpi_1", "--id-only"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "wpi_2\nwpi_2\n"), "{ran:?}");
    for bad in [
        &["fork", "wpi_1", "-n", "0"][..],
        &["fork", "wpi_1", "-n", "65"],
        &["fork"],
    ] {
        assert_eq!(run(hearth_at(&fake.url, bad)).code, 2);
    }
}

#[test]
fn checkpoints_are_made_listed_restored_and_deleted() {
    let fake = server();
    for (args, request, said) in [
        (
            &["checkpoint", "create", "wpi_1", "before", "--note", "fine"][..],
            "POST /instances/wpi_1/checkpoint",
            "made before of wpi_1: 1.0 MiB",
        ),
        (&["checkpoint", "list", "web"], "GET /checkpoints", "before"),
        (
            &["checkpoint", "restore", "wpi_1", "before"],
            "POST /instances/wpi_1/restore",
            "wpi_2 continues from before, as vm-2",
        ),
        (
            &["checkpoint", "delete", "web", "before"],
            "DELETE /checkpoints/before",
            "deleted before",
        ),
    ] {
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
        let (method, path) = request.split_once(' ').unwrap();
        let line = fake.requests().pop().unwrap().line;
        assert!(line.starts_with(method) && line.ends_with(path), "{line}");
    }
}

#[test]
fn a_claim_from_a_checkpoint_names_it_and_takes_nothing_else_of_a_pool() {
    let fake = server();
    let ran = run(hearth_at(
        &fake.url,
        &["claim", "web", "--checkpoint", "before", "--id-only"],
    ));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "wpi_2\n"), "{ran:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.requests().pop().unwrap().body).unwrap();
    assert_eq!(body, serde_json::json!({ "checkpoint": "before" }));
    let ran = run(hearth_at(
        &fake.url,
        &["claim", "web", "--checkpoint", "before", "--strict"],
    ));
    assert_eq!(ran.code, 2, "{ran:?}");
}
