//! `hearth pool test` against a server that sends what a real boot would.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Reply};
use crate::support::{Ran, hearth_at, project_page, run};

const GOOD_STEP: &str = r#"{"name":"clone_repo","status":"success","durationMs":1200,"timestamp":"2025-01-01T00:00:01.000Z",
    "metadata":{"repo":"acme/web"}}"#;
const BAD_STEP: &str = r#"{"name":"warm_pool_setup","status":"error","error":"exit code 7: boom","output":"one\ntwo\nboom\n",
    "durationMs":300,"timestamp":"2025-01-01T00:00:02.000Z"}"#;

fn detail(status: &str, steps: &[&str]) -> String {
    let failed = status == "failed";
    let (step, error) = if failed {
        (r#""warm_pool_setup""#, r#""exit code 7: boom""#)
    } else {
        ("null", "null")
    };
    format!(
        r#"{{"id":"wpi_1","instanceId":"vm-1","status":"{status}","isTest":true,
        "summary":{{"success":{},"totalDurationMs":1500,"failedStep":{step},"error":{error},"completedSteps":1,"totalSteps":2}},
        "failureReason":{error},"steps":[{}],"createdAt":"2025-01-01T00:00:00.000Z"}}"#,
        status == "ready",
        steps.join(",")
    )
}

/// One line, as the data of an event must be.
fn event(step: &str) -> String {
    format!(r#"{{"kind":"stepEnded","step":{}}}"#, step.replace('\n', ""))
}

/// Runs a test boot whose stream holds these events, and whose record goes through these states.
fn boot(events: Vec<(&'static str, String)>, records: Vec<String>, more: &[&str]) -> (Ran, Fake) {
    let looks = AtomicUsize::new(0);
    let fake = Fake::start(move |request| {
        if request.line.ends_with("/warm-pool/test") {
            return Reply::ok(r#"{"id":"wpi_1"}"#);
        }
        if request.line.ends_with("/follow") {
            let events: Vec<(&str, &str)> = events.iter().map(|(name, data)| (*name, data.as_str())).collect();
            return Reply::events(&events);
        }
        if request.line.contains("/instances/wpi_1") {
            let look = looks.fetch_add(1, Ordering::SeqCst).min(records.len() - 1);
            return Reply::ok(&records[look]);
        }
        Reply::ok(&project_page())
    });
    let ran = run(hearth_at(&fake.url, &[&["pool", "test", "web"], more].concat()));
    (ran, fake)
}

#[test]
fn a_good_boot_is_followed_and_ends_with_a_table() {
    let events = vec![
        (
            "stepStarted",
            r#"{"kind":"stepStarted","name":"clone_repo","subject":"acme/web"}"#.to_owned(),
        ),
        ("output", r#"{"kind":"output","text":"half a "}"#.to_owned()),
        (
            "output",
            r#"{"kind":"output","text":"line\n\u001b[31mred\u001b[0m\n"}"#.to_owned(),
        ),
        ("newerThanThisClient", r#"{"kind":"newerThanThisClient"}"#.to_owned()),
        ("stepEnded", event(GOOD_STEP)),
        (
            "ended",
            r#"{"kind":"ended","status":"ready","failureReason":null}"#.to_owned(),
        ),
    ];
    let (ran, fake) = boot(events, vec![detail("ready", &[GOOD_STEP])], &["--command", "a: true"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for text in [
        "start  clone_repo acme/web",
        "| half a line\n",
        "| red\n",
        "ok     clone_repo acme/web  1.2 s",
    ] {
        assert!(ran.stderr.contains(text), "{text} is missing in:\n{}", ran.stderr);
    }
    assert!(
        ran.stdout.contains("clone_repo") && ran.stdout.contains("1.2 s"),
        "{}",
        ran.stdout
    );
    let sent = &fake.requests_of("POST")[0].body;
    assert_eq!(sent, r#"{"setupCommands":[{"name":"a","command":"true"}]}"#);
}

#[test]
fn a_failed_boot_says_what_failed_and_what_to_do_next() {
    let events = vec![
        ("stepEnded", event(GOOD_STEP)),
        ("stepEnded", event(BAD_STEP)),
        (
            "ended",
            r#"{"kind":"ended","status":"failed","failureReason":"exit code 7: boom"}"#.to_owned(),
        ),
    ];
    let (ran, _fake) = boot(events, vec![detail("failed", &[GOOD_STEP, BAD_STEP])], &[]);
    assert_eq!(ran.code, 1);
    for text in [
        "FAILED: warm_pool_setup: exit code 7: boom",
        "  | two\n  | boom",
        "hearth exec wpi_1 -- <command>",
        "hearth pool instance web wpi_1 --log",
        "hearth pool set web --command",
        "hearth pool test web",
    ] {
        assert!(ran.stderr.contains(text), "{text} is missing in:\n{}", ran.stderr);
    }
}

#[test]
fn when_the_stream_breaks_the_record_is_asked_instead_and_no_step_is_shown_twice() {
    let events = vec![("stepEnded", event(GOOD_STEP))];
    let records = vec![
        detail("provisioning", &[GOOD_STEP]),
        detail("failed", &[GOOD_STEP, BAD_STEP]),
    ];
    let (ran, _fake) = boot(events, records, &["--json"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("asking every second instead"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("ok     clone_repo").count(), 1, "{}", ran.stderr);
    assert_eq!(
        ran.stderr.matches("FAILED warm_pool_setup").count(),
        1,
        "{}",
        ran.stderr
    );
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["status"], "failed");
}
