//! What `hearth claim` says of a VM that is not quite what was asked for.

use crate::fake::{Fake, Reply, Request};
use crate::support::{hearth_at, project_page, run};

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
