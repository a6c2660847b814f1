//! `hearth instance` and `hearth run`: what is in a VM, and its commands by name.

use crate::fake::{Fake, Reply};
use crate::support::{PROJECT, hearth_at, run};

const VIEW: &str = r#"{"id":"wpi_1","instanceId":"vm-1","projectId":"prj_1","status":"claimed","isTest":false,"recipe":"r1","failure":null,"rebootedAt":null,"unresponsive":null,"leaseWarningMinutes":10,"paused":false,"pausedToDisk":false,"pausedBecause":null,"vmEndedAt":null,"vmEndedBecause":null,
    "repos":[{"repoFullName":"acme/web","branch":"main","commit":"0123456789abcdef","path":"/home/web"}],
    "commands":[
        {"name":"test","command":"npm test","repoFullName":"acme/web","path":"/home/web"},
        {"name":"lint","command":"npm run lint","repoFullName":"acme/web","path":"/home/web"},
        {"name":"test","command":"cargo test\ncargo doc","repoFullName":"acme/api","path":"/home/api"}],
    "settings":[{"repoFullName":"acme/web","file":".hearth/settings.json","settings":{"hooks":{
        "terminals":[{"name":"dev","command":"npm run \u001b[31mdev","readonly":true}],
        "previews":[{"name":"app","port":3000}]}}}],
    "expiresAt":"2030-01-01T00:00:00.000Z"}"#;

const EMPTY: &str = r#"{"id":"wpi_1","instanceId":"vm-1","projectId":"prj_1","status":"ready","isTest":true,"recipe":"r1",
    "repos":[],"commands":[],"settings":[],"expiresAt":null}"#;

const EXIT_3: &str = r#"{"exitCode":3,"signal":null,"durationMs":5,"error":null}"#;

fn server(view: &'static str) -> Fake {
    Fake::start(move |request| {
        if request.line.ends_with("/exec") {
            return Reply::events(&[("stdout", "aGkK"), ("exit", EXIT_3)]);
        }
        Reply::ok(view)
    })
}

#[test]
fn what_is_inside_is_shown() {
    let fake = server(VIEW);
    let ran = run(hearth_at(&fake.url, &["instance", "wpi_1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "id:           wpi_1
VM:           vm-1
project:      prj_1
status:       claimed
kind:         claimed from the pool
recipe:       r1
yours until:  2030-01-01T00:00:00Z (`hearth claim extend wpi_1` renews it)
repositories: acme/web at /home/web (main 0123456789)
commands:     test (acme/web): npm test
              lint (acme/web): npm run lint
              test (acme/api): cargo test; cargo doc
terminals:    dev (acme/web, read only): npm run dev
previews:     app (acme/web): port 3000
settings:     .hearth/settings.json of acme/web
"
    );
    assert_eq!(fake.requests()[0].line, "GET /api/v1/instances/wpi_1");
    let ran = run(hearth_at(&fake.url, &["instance", "wpi_1", "--json"]));
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed, serde_json::from_str::<serde_json::Value>(VIEW).unwrap());
}

#[test]
fn an_instance_with_nothing_inside_can_be_shown_too() {
    let fake = server(EMPTY);
    let ran = run(hearth_at(&fake.url, &["instance", "wpi_1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("it is never handed out") && ran.stdout.contains("commands:     -"));
    let gone = Fake::start(|_| Reply::not_found());
    assert_eq!(run(hearth_at(&gone.url, &["instance", "wpi_1"])).code, 1);
}

#[test]
fn a_command_runs_by_name_where_it_belongs_and_its_exit_code_is_ours() {
    let fake = server(VIEW);
    let lint = ["run", "wpi_1", "lint", "--timeout", "9", "--env", "A=b", "--no-stdin"];
    let ran = run(hearth_at(&fake.url, &lint));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(ran.stdout, "hi\n");
    assert_eq!(ran.stderr, "");
    let exec = fake.requests_of("POST").remove(0);
    assert_eq!(exec.line, "POST /api/v1/instances/wpi_1/exec");
    assert_eq!(
        exec.body,
        r#"{"command":"npm run lint","cwd":"/home/web","env":{"A":"b"},"timeoutSeconds":9}"#
    );
}

#[test]
fn without_a_name_the_commands_are_listed() {
    let fake = server(VIEW);
    let ran = run(hearth_at(&fake.url, &["run", "wpi_1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 3, "{}", ran.stdout);
    let ran = run(hearth_at(&fake.url, &["run", "wpi_1", "--repo", "acme/api", "--json"]));
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["items"].as_array().unwrap().len(), 1);
    assert_eq!(printed["items"][0]["path"], "/home/api");
    let none = run(hearth_at(&server(EMPTY).url, &["run", "wpi_1"]));
    assert_eq!(none.code, 0);
    assert!(none.stdout.contains("hearth setup save"), "{}", none.stdout);
    assert!(fake.requests_of("POST").is_empty());
}

#[test]
fn the_same_name_in_two_repositories_needs_the_repository() {
    let fake = server(VIEW);
    let ran = run(hearth_at(&fake.url, &["run", "wpi_1", "test"]));
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.stderr,
        "error: several repositories have a command `test`
  test (acme/web): npm test
  test (acme/api): cargo test; cargo doc
hint: say whose with --repo
"
    );
    assert!(fake.requests_of("POST").is_empty());
    let ran = run(hearth_at(&fake.url, &["run", "wpi_1", "test", "--repo", "acme/api"]));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        fake.requests_of("POST")[0].body,
        r#"{"command":"cargo test\ncargo doc","cwd":"/home/api"}"#
    );
}

#[test]
fn an_unknown_name_says_which_there_are() {
    let fake = server(VIEW);
    for (args, text) in [
        (&["run", "wpi_1", "deploy"][..], "no command `deploy` in this instance"),
        (
            &["run", "wpi_1", "lint", "--repo", "acme/api"],
            "no command `lint` of acme/api in this instance",
        ),
    ] {
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(
            ran.stderr.contains(text) && ran.stderr.contains("lint (acme/web): npm run lint"),
            "{}",
            ran.stderr
        );
    }
    let none = run(hearth_at(&server(EMPTY).url, &["run", "wpi_1", "test"]));
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains("there are none at all"), "{}", none.stderr);
    assert!(fake.requests_of("POST").is_empty());
}

#[test]
fn an_unknown_instance_is_not_taken_for_the_commands_failure() {
    let fake = Fake::start(|_| Reply::not_found());
    assert_eq!(run(hearth_at(&fake.url, &["run", "wpi_1", "test"])).code, 125);
    assert_eq!(run(hearth_at(&fake.url, &["run", "wpi_1"])).code, 1);
}

#[test]
fn a_vm_that_is_older_than_its_set_up_is_said_to_be_when_it_lacks_a_command() {
    let setup = r#"{"source":"setup","legacyHooks":{"status":"none","repositories":[],"checkComplete":true},
        "setup":{"vmSize":"small","repositories":[{"repository":"acme/web","branch":"main",
        "scripts":{"initialize":null,"updateAfterCheckout":null,"startup":null},
        "commands":[{"name":"deploy","command":"./deploy"}]}]}}"#;
    for view in [VIEW, EMPTY] {
        let fake = Fake::start(move |request| match request.line.as_str() {
            line if line.ends_with("/setup") => Reply::ok(setup),
            line if line.ends_with("/projects/prj_1") => Reply::ok(PROJECT),
            _ => Reply::ok(view),
        });
        let ran = run(hearth_at(&fake.url, &["run", "wpi_1", "deploy"]));
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        for part in [
            "older than the project's set-up",
            "it has `deploy` now",
            "hearth claim web --strict",
        ] {
            assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
        }
        // An instance that is not claimed has no lease to show.
        let ran = run(hearth_at(&fake.url, &["run", "wpi_1", "nowhere"]));
        assert!(
            ran.stderr.contains("hearth setup save web") && !ran.stderr.contains("older than"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_vm_that_hangs_or_restarted_is_said_to_and_no_retry_is_advised() {
    const WHY: &str = "the VM does not answer since 2026-11-29T06:00:00Z: its guest hangs; nothing brings its work back by itself: \
        release it with `hearth release wpi_1` and claim another one";
    let claim = r#"{"id":"wpi_1","projectId":"prj_1","projectName":"web","taskId":"T1","owner":"ada",
        "claimedAt":"2025-01-01T00:00:00.000Z","expiresAt":"2999-01-01T00:00:00.000Z",
        "unresponsive":{"since":"2025-01-01T00:00:00.000Z","reason":"its guest hangs"},"rebootedAt":"2025-01-01T00:00:00.000Z"}"#;
    let view = EMPTY.replace(
        r#""expiresAt":null"#,
        r#""expiresAt":null,"unresponsive":{"since":"2025-01-01T00:00:00.000Z","reason":"its guest hangs"},
        "rebootedAt":"2025-01-01T00:00:00.000Z""#,
    );
    let fake = Fake::with_look_ups(move |request| {
        if request.line.ends_with("/exec") {
            let body = serde_json::json!({ "error": { "code": "unavailable", "message": WHY } });
            return Reply::json(503, &body.to_string()).with("content-type: application/json\r\nretry-after: 2\r\n");
        }
        match request.line.as_str() {
            "GET /api/v1/claims" => Reply::ok(&format!(r#"{{"items":[{claim}]}}"#)),
            line if line.contains("/find/") => Reply::not_found(),
            _ => Reply::ok(&view),
        }
    });
    for args in [&["claims"][..], &["instance", "wpi_1"]] {
        let shown = run(hearth_at(&fake.url, args)).stdout;
        let words: Vec<&str> = shown.split_whitespace().collect();
        for part in ["does not answer since", "its guest hangs", "restarted"] {
            let wanted: Vec<&str> = part.split(' ').collect();
            let found = wanted.iter().all(|word| words.iter().any(|shown| shown.contains(word)));
            assert!(found, "{part}: {shown}");
        }
    }
    let ran = run(hearth_at(&fake.url, &["exec", "wpi_1", "-n", "--", "true"]));
    assert_eq!(ran.code, 125, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("hearth release wpi_1") && !ran.stderr.contains("try again"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_claimed_vm_that_has_ended_is_said_to_have_with_why() {
    let fake = Fake::start(|_| {
        Reply::ok(
            r#"{"items":[{"id":"wpi_1","projectId":"prj_1","projectName":"web","taskId":"T1","owner":"ada",
            "claimedAt":"2025-01-01T00:00:00.000Z","expiresAt":"2999-01-01T00:00:00.000Z","unresponsive":null,"rebootedAt":null,
            "vmEndedAt":"2025-01-01T00:00:00.000Z","vmEndedBecause":"its guest turned it off"}]}"#,
        )
    });
    let shown = run(hearth_at(&fake.url, &["claims"])).stdout;
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("its guest turned it off; release it"), "{shown}");
    assert!(!shown.contains("answers"), "{shown}");
}
