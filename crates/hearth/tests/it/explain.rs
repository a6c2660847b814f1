//! What `pool explain`, `pool status`, `pool retry` and `claim explain` print, from the examples of the published document.

use serde_json::Value;

use crate::fake::{Fake, Reply, Request};
use crate::support::{hearth, hearth_at, local_server, private, project_page, run};

const PROJECT_PAGE_LINE: &str = "GET /api/v1/projects?";

/// The example of a reply in the checked-in document.
fn example(path: &str, method: &str) -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    let document: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let reply = &document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["example"];
    assert!(reply.is_object(), "{method} {path} has no example");
    reply.to_string()
}

const EXPLAIN: &str = "/api/v1/projects/{projectId}/warm-pool/explain";

fn route(request: &Request) -> Reply {
    let pool = "/api/v1/projects/{projectId}/warm-pool";
    let line = request.line.as_str();
    match line {
        _ if line.starts_with(PROJECT_PAGE_LINE) => Reply::ok(&project_page()),
        "GET /api/v1/projects/prj_1/warm-pool" => Reply::ok(&example(pool, "get")),
        "GET /api/v1/projects/prj_1/warm-pool/explain" => Reply::ok(&example(&format!("{pool}/explain"), "get")),
        "POST /api/v1/projects/prj_1/warm-pool/retry" => Reply::ok(&example(&format!("{pool}/retry"), "post")),
        "GET /api/v1/instances/ins_1/claim" => Reply::ok(&example("/api/v1/instances/{id}/claim", "get")),
        _ => Reply::not_found(),
    }
}

/// What it prints.
fn prints(args: &[&str]) -> String {
    let fake = Fake::start(route);
    let ran = run(hearth_at(&fake.url, args));
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    ran.stdout
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[test]
fn the_summary_comes_first_and_decisions_only_when_asked_for() {
    let text = prints(&["pool", "explain", "web"]);
    assert!(text.starts_with("the set-up fails since the push of 1a2b3c4"), "{text}");
    says(
        &text,
        &[
            "BreakerOpen",
            "target recipe:",
            "(1 commit behind)",
            "kept until",
            "0 of 1 set-ups, 0 of 4 forks",
        ],
    );
    assert!(!text.contains("Decided"), "{text}");
    let text = prints(&["pool", "explain", "web", "--decisions"]);
    says(
        &text,
        &["Decided", "wait", "1 of 1, 0 being made", "failed 3 times in a row"],
    );
    let status = prints(&["pool", "status", "web"]);
    assert!(status.starts_with("the set-up fails since"), "{status}");
    says(&status, &["  BreakerOpen: after 3 failures", "now:", "target:"]);
    assert!(!status.contains("  Full:"), "{status}");
}

#[test]
fn a_retry_is_said_and_a_claim_is_explained_with_its_milliseconds() {
    says(&prints(&["pool", "retry", "web"]), &["it is tried again", "2 ready"]);
    let text = prints(&["claim", "explain", "ins_1"]);
    says(&text, &["why:", "3 ready", "resume", "0.84 ms", "total", "3.64 ms"]);
    let json: Value = serde_json::from_str(&prints(&["claim", "explain", "ins_1", "--json"])).unwrap();
    assert_eq!(json["handOver"]["totalMs"], 3.64);
}

#[test]
fn a_project_that_is_called_explain_can_still_be_claimed_from() {
    let fake = Fake::start(route);
    let ran = run(hearth_at(&fake.url, &["claim", "--task", "T", "--", "explain"]));
    assert!(ran.stderr.contains("explain"), "{}", ran.stderr);
    assert_eq!(fake.requests_of(PROJECT_PAGE_LINE).len(), 1, "it looked for a project");
    let ran = run(hearth(&["claim", "explain"]));
    assert_eq!(ran.code, 2);
    says(&ran.stderr, &["<INSTANCE>"]);
    let ran = run(hearth(&["claim"]));
    assert_eq!(ran.code, 2);
    says(&ran.stderr, &["<PROJECT>"]);
    says(
        &run(hearth(&["claim", "--help"])).stdout,
        &["explain", "`hearth claim -- explain`"],
    );
}

#[test]
fn every_hint_of_a_chosen_server_carries_the_choice() {
    const REFUSED: &str = "no VM is ready: the pool is disabled (`enabled: false`); `hearth pool set web --enabled`, or see `hearth doctor`";
    let fake = Fake::start(|request| match request.line.as_str() {
        line if line.ends_with("/claim") && line.starts_with("POST") => {
            let error = serde_json::json!({ "error": { "code": "conflict", "message": REFUSED } });
            Reply::json(409, &error.to_string())
        }
        line if line.ends_with("/explain") => Reply::ok(&example(EXPLAIN, "get").replace(
            "after 3 failures",
            "`miss: require` after 3 failures (`hearth serve --max-vms`)",
        )),
        "GET /api/v1/tokens" => Reply::ok(r#"{"items":[]}"#),
        _ => route(request),
    });
    let folder = tempfile::tempdir().unwrap();
    let _server = local_server(private(folder.path()), 7, &fake.url);
    let data = folder.path().join("data-7").to_str().unwrap().to_owned();
    for args in [
        &["pool", "explain", "web", "--decisions"][..],
        &["pool", "status", "web"],
        &["claim", "web"],
        &["claim", "nowhere"],
        &["token", "revoke", "nobody"],
        &["claim", "web", "--json"],
    ] {
        let mut command = hearth(&[args, &["--data-dir", &data]].concat());
        command.env("HEARTH_RUNTIME_DIR", folder.path());
        let ran = run(command);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        let joined = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let commands: Vec<&str> = joined
            .split("hearth ")
            .skip(1)
            .filter(|rest| !rest.contains("Hearth"))
            .collect();
        assert!(!commands.is_empty() || args[1] == "nowhere", "{args:?}: {said}");
        for command in commands {
            let chosen = command.starts_with(&format!("--data-dir {data} "));
            assert!(chosen, "{args:?}: `hearth {command}`\n{said}");
        }
    }
}

#[test]
fn tables_are_no_wider_than_a_page_and_ids_stay_whole() {
    let text = prints(&["pool", "explain", "web", "--decisions"]);
    // Sentences stand before the tables.
    let (_, tables) = text.split_once("\n\n").unwrap();
    let wide: Vec<&str> = tables.lines().filter(|line| line.chars().count() > 120).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    let shown: Value = serde_json::from_str(&example(EXPLAIN, "get")).unwrap();
    for instance in shown["instances"].as_array().unwrap() {
        assert!(tables.contains(instance["id"].as_str().unwrap()), "{tables}");
    }
}
