//! What `hearth claim` says of a VM that is not quite what was asked for.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{Fake, Reply, Request};
use crate::support::{Ran, hearth_at, project_page, run};

const REPLY: &str = r#"{"id":"ins_1","instanceId":"vm_1","source":"fork","recipe":"r","ageMs":0,"waitMs":7,"repos":[
    {"repoFullName":"acme/app","branch":"topic","commit":"3a6e8df7801234","path":"/home/app"},
    {"repoFullName":"acme/lib","branch":"main","commit":"0b5061f8fd1234","path":"/home/lib","branchMissing":true,"behind":true,
     "why":"git said no"},
    {"repoFullName":"acme/own","branch":"(detached)","commit":"1111111111aaaa","path":"/home/own","gone":true,
     "cloned":{"branch":"main","commit":"2222222222aaaa"}}],
    "expiresAt":"2026-11-24T06:46:51.000Z","stale":true,"staleSince":"2026-11-24T05:00:00.000Z",
    "staleParts":["scripts","variables"],
    "agent":{"exec":"/e","files":"/f","terminal":"/t","ports":"/p"}}"#;

fn server() -> Fake {
    Fake::start(|request: &Request| match request.line.as_str() {
        line if line.starts_with("GET /api/v1/projects") => Reply::ok(&project_page()),
        _ => Reply::ok(REPLY),
    })
}

#[test]
fn a_claim_says_what_is_not_as_was_asked_for() {
    let fake = server();
    let ran = run(hearth_at(&fake.url, &["claim", "web", "--branch", "topic"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in [
        "set up by:    an older version of the set-up (since 2026-11-24T05:00:00Z); changed since: the scripts, the variables",
        "repositories: acme/app at /home/app (topic 3a6e8df780)",
        "              acme/lib at /home/lib (main 0b5061f8fd), branch missing, behind",
        "              acme/own at /home/own ((detached) 1111111111), not there any more, checked out by the set-up",
    ] {
        assert!(ran.stdout.lines().any(|shown| shown == line), "{line}\n{}", ran.stdout);
    }
    let warnings: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    assert_eq!(
        warnings,
        [
            "warning: set up by an older version of the set-up (since 2026-11-24T05:00:00Z); changed since: the scripts, the variables; \
             --strict waits for one that is set up by the new one",
            "warning: acme/lib: it has no branch `topic`: it is on `main`; it stays behind its branch, at 0b5061f8fd: git said no",
            "warning: acme/own: there is no repository at /home/own any more: the set-up moved or removed it",
        ]
    );
    // A script that wants the id alone is warned all the same, beside it.
    let ran = run(hearth_at(
        &fake.url,
        &["claim", "web", "--branch", "topic", "--id-only"],
    ));
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.matches("warning: ").count()),
        ("ins_1\n", 3)
    );
    let ran = run(hearth_at(&fake.url, &["--json", "claim", "web", "--branch", "topic"]));
    assert!(
        ran.stdout.contains("\"branchMissing\": true") && ran.stdout.contains("\"staleSince\""),
        "{}",
        ran.stdout
    );
    assert_eq!(ran.stderr, "");
}

/// The pool as the checked-in document shows it, with a boot that is at this command, and claims that wait.
fn waits_on(command: &str, claims: u64) -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    let document: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let path = "/api/v1/projects/{projectId}/warm-pool/explain";
    let mut pool = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"].clone();
    pool["summary"] = "0 of 1 ready, 1 being made".into();
    pool["waitingClaims"] = claims.into();
    let boot = &mut pool["instances"][0];
    boot["id"] = "wpi_9".into();
    boot["status"] = "provisioning".into();
    boot["atWork"] = json!({ "what": command, "message": format!("{command} has run for 5 s, last output now") });
    pool.to_string()
}

/// A claim that waits until the pool was looked at so often.
fn claim_after(looks: usize, args: &[&str], pool: impl Fn(usize) -> Reply + Send + Sync + 'static) -> (Ran, Fake) {
    let seen = (Mutex::new(0), Condvar::new());
    let fake = Fake::start(move |request: &Request| {
        let (count, changed) = &seen;
        if request.line.ends_with("/explain") {
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            return pool(*count);
        }
        if request.line.ends_with("/claim") {
            let limit = Duration::from_secs(30);
            drop(changed.wait_timeout_while(count.lock().unwrap(), limit, |count| *count < looks));
            return Reply::ok(REPLY);
        }
        Reply::ok(&project_page())
    });
    let ran = run(hearth_at(&fake.url, args));
    (ran, fake)
}

#[test]
fn a_claim_that_waits_says_what_it_waits_for_and_each_change() {
    let (ran, _fake) = claim_after(4, &["claim", "web", "--wait", "60"], |look| {
        Reply::ok(&match look {
            1 | 2 => waits_on("npm ci", 3),
            _ => waits_on("make", 1),
        })
    });
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("waiting")).collect();
    let [first, second] = lines.as_slice() else {
        panic!("{}", ran.stderr);
    };
    assert!(
        first.starts_with(
            "waiting for a VM of web: 0 of 1 ready, 1 being made; wpi_9: npm ci has run for 5 s, last output now; 2 other claims \
             in the queue with it (for "
        ),
        "{first}"
    );
    assert!(
        second.starts_with(
            "waiting for a VM of web: 0 of 1 ready, 1 being made; wpi_9: make has run for 5 s, last output now (for "
        ),
        "{second}"
    );
}

#[test]
fn a_claim_that_has_its_vm_says_what_is_done_in_it_and_not_what_other_vms_do() {
    let with_a_claimed_one = |claims: u64, since_ms: u64| {
        let mut pool: Value = serde_json::from_str(&waits_on("npm ci", claims)).unwrap();
        pool["summary"] =
            "2 of 2 ready, 1 being made, 0 of the target recipe; the others are replaced one by one".into();
        pool["status"]["ready"] = 2.into();
        let mut claimed = pool["instances"][0].clone();
        claimed["id"] = "wpi_8".into();
        claimed["status"] = "claimed".into();
        claimed["atWork"] = Value::Null;
        claimed["sinceMs"] = since_ms.into();
        pool["instances"].as_array_mut().unwrap().push(claimed);
        Reply::ok(&pool.to_string())
    };
    let said = |args: &[&str], claims: u64, since_ms: u64| {
        let (ran, _fake) = claim_after(2, args, move |_| with_a_claimed_one(claims, since_ms));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stderr.lines().next().unwrap_or_default().to_owned()
    };
    let own = "your VM wpi_8 is there: its checkouts are brought up to date, and updateAfterCheckout runs where the set-up has it (for ";
    // Strict claims of others may wait meanwhile.
    for claims in [0, 2] {
        let line = said(&["claim", "web"], claims, 5);
        assert!(line.starts_with(own), "{line}");
    }
    // It was claimed before this one began, or this one is strict and stands in the queue.
    let day = 24 * 3600 * 1000;
    for (args, claims, since_ms) in [
        (&["claim", "web"][..], 0, day),
        (&["claim", "web", "--strict"][..], 1, 5),
    ] {
        let line = said(args, claims, since_ms);
        let queue =
            "waiting for a VM of web: 2 of 2 ready, 1 being made, 0 of the target recipe; wpi_9: npm ci has run for";
        assert!(line.starts_with(queue), "{line}");
    }
}

#[test]
fn without_a_terminal_the_lines_of_a_claim_that_waits_are_short() {
    let long = "x".repeat(400);
    let (ran, _fake) = claim_after(2, &["claim", "web"], move |_| Reply::ok(&waits_on(&long, 1)));
    let line = ran.stderr.lines().next().unwrap();
    assert!(line.contains("x… (for ") && line.chars().count() < 200, "{line}");
}

#[test]
fn a_token_that_may_only_claim_is_told_that_it_waits_and_looks_once() {
    let (ran, fake) = claim_after(1, &["claim", "web", "--wait", "60"], |_| {
        Reply::json(
            403,
            r#"{"error":{"code":"forbidden","message":"lacks the scope project:read"}}"#,
        )
    });
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stderr.contains("project:read"), "{}", ran.stderr);
    assert_eq!(
        fake.requests()
            .iter()
            .filter(|it| it.line.ends_with("/explain"))
            .count(),
        1
    );
    let (ran, fake) = claim_after(0, &["--json", "claim", "web", "--wait", "60"], |_| Reply::not_found());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        fake.requests()
            .iter()
            .filter(|it| it.line.ends_with("/explain"))
            .count(),
        0
    );
}
