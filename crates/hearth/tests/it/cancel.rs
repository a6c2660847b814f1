//! `hearth pool cancel`: which boot it ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Reply, Request};
use crate::support::{hearth_at, project_page, run};

const EXPLAIN: &str = "/api/v1/projects/{projectId}/warm-pool/explain";

/// The example of the explanation in the checked-in document.
fn explained() -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    document["paths"][EXPLAIN]["get"]["responses"]["200"]["content"]["application/json"]["example"].to_string()
}

fn list(ids: &[&str]) -> String {
    let item = |id: &&str| {
        format!(
            r#"{{"id":"{id}","instanceId":"vm-1","status":"provisioning","isTest":false,"failureReason":null,
            "provisionedAt":null,"createdAt":"2025-01-01T00:00:00.000Z"}}"#
        )
    };
    format!(
        r#"{{"items":[{}]}}"#,
        ids.iter().map(item).collect::<Vec<_>>().join(",")
    )
}

fn detail(id: &str) -> String {
    format!(
        r#"{{"id":"{id}","instanceId":"vm-1","status":"provisioning","isTest":false,
        "summary":{{"success":false,"totalDurationMs":1,"failedStep":null,"error":null,"completedSteps":0,"totalSteps":0}},
        "failureReason":null,"steps":[],"createdAt":"2025-01-01T00:00:00.000Z"}}"#
    )
}

fn usual(request: &Request) -> Reply {
    if request.line.contains("/explain") {
        return Reply::ok(&explained());
    }
    if request.line.starts_with("GET /api/v1/projects?") {
        return Reply::ok(&project_page());
    }
    Reply::not_found()
}

#[test]
fn the_boot_in_the_place_of_one_that_has_just_gone_is_ended() {
    let looks = AtomicUsize::new(0);
    let fake = Fake::start(move |request| {
        let line = request.line.as_str();
        if line.contains("/warm-pool/instances?") {
            // The set-up was changed: the first boot is gone, there is none for a moment, then the next one runs.
            return Reply::ok(&match looks.fetch_add(1, Ordering::SeqCst) {
                0 => list(&["wpi_old"]),
                1 => list(&[]),
                _ => list(&["wpi_new"]),
            });
        }
        if line.ends_with("/instances/wpi_new") {
            return match line.starts_with("DELETE ") {
                true => Reply::ok(r#"{"id":"wpi_new","status":"failed","cancelled":true}"#),
                false => Reply::ok(&detail("wpi_new")),
            };
        }
        usual(request)
    });
    let ran = run(hearth_at(&fake.url, &["pool", "cancel", "web"]));
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "cancelled wpi_new\n"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("hearth pool instance web wpi_new --log"),
        "{}",
        ran.stderr
    );
}

#[test]
fn when_nothing_is_made_it_says_how_the_pool_is() {
    let fake = Fake::start(|request| match request.line.contains("/warm-pool/instances?") {
        true => Reply::ok(&list(&[])),
        false => usual(request),
    });
    let ran = run(hearth_at(&fake.url, &["pool", "cancel", "web"]));
    assert_eq!(ran.code, 1);
    let told = [
        "error: nothing is being made",
        "the pool: the set-up fails since",
        "hearth pool instances web",
    ];
    assert!(told.iter().all(|part| ran.stderr.contains(part)), "{}", ran.stderr);
}

#[test]
fn an_id_that_is_gone_is_told_with_what_runs_instead() {
    let fake = Fake::start(usual);
    let id = format!("wpi_{}", "0".repeat(32));
    let ran = run(hearth_at(&fake.url, &["pool", "cancel", "web", &id]));
    assert_eq!(ran.code, 1);
    let told = [
        format!("web has no instance {id}: its set-up was changed meanwhile"),
        "without an id, `hearth pool cancel web` ends the boot that is under way".to_owned(),
    ];
    assert!(
        told.iter().all(|part| ran.stderr.contains(part.as_str())),
        "{}",
        ran.stderr
    );
}
