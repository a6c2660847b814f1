//! `hearth pool test` against a server that sends what a real boot would.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Reply};
use crate::support::{Ran, hearth_at, project_page, run};

const GOOD_STEP: &str = r#"{"name":"clone_repo","status":"success","durationMs":1200,"timestamp":"2025-01-01T00:00:01.000Z",
    "metadata":{"repo":"acme/web"}}"#;
const BAD_STEP: &str = r#"{"name":"warm_pool_setup","status":"error","error":"exit code 7: boom","output":"one\ntwo\nboom\n",
    "durationMs":300,"timestamp":"2025-01-01T00:00:02.000Z"}"#;
const CACHED_STEP: &str = r#"{"name":"warm_pool_setup","status":"success","durationMs":0,"timestamp":"2025-01-01T00:00:02.000Z",
    "metadata":{"commands":[{"name":"npm","cached":true},{"name":"build"}]}}"#;

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
        if request.line.contains("/warm-pool/test") {
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
    assert!(fake.requests_of("POST")[0].line.ends_with("/warm-pool/test"));
}

#[test]
fn kept_results_can_be_left_out() {
    let ended = r#"{"kind":"ended","status":"ready","failureReason":null}"#.to_owned();
    let (ran, fake) = boot(vec![("ended", ended)], vec![detail("ready", &[])], &["--no-cache"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        fake.requests_of("POST")[0]
            .line
            .ends_with("/warm-pool/test?cache=false")
    );
}

fn script_step(repo: &str, script: &str, error: Option<&str>) -> String {
    let result = match error {
        Some(error) => format!(r#""status":"error","error":"{error}""#),
        None => r#""status":"success""#.to_owned(),
    };
    format!(
        r#"{{"name":"repo_setup",{result},"output":"x\n","durationMs":1000,"timestamp":"2025-01-01T00:00:02.000Z",
        "metadata":{{"repo":"{repo}","script":"{script}"}}}}"#
    )
}

/// Events of two repositories' scripts at the same time.
pub(crate) fn two_at_once() -> Vec<(&'static str, String)> {
    let started = |repo: &str| format!(r#"{{"kind":"stepStarted","name":"repo_setup","subject":"{repo}"}}"#);
    let output = |repo: &str, text: &str| format!(r#"{{"kind":"output","subject":"{repo}","text":"{text}"}}"#);
    vec![
        ("stepStarted", started("acme/a")),
        ("output", output("acme/a", r"alone\n")),
        ("stepStarted", started("acme/b")),
        ("output", output("acme/a", "half a ")),
        ("output", output("acme/b", r"of b\nno end")),
        ("output", output("acme/a", r"line of a\n")),
        ("stepEnded", event(&script_step("acme/b", "initialize", None))),
        ("output", output("acme/a", r"alone again\n")),
        ("stepEnded", event(&script_step("acme/a", "initialize", None))),
    ]
}

#[test]
fn scripts_that_run_at_the_same_time_are_told_apart() {
    let mut events = two_at_once();
    events.push((
        "ended",
        r#"{"kind":"ended","status":"ready","failureReason":null}"#.to_owned(),
    ));
    let steps = [
        script_step("acme/b", "initialize", None),
        script_step("acme/a", "initialize", None),
    ];
    let (ran, _fake) = boot(events, vec![detail("ready", &[&steps[0], &steps[1]])], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (picture, _) = ran.stderr.split_once("ready after").unwrap();
    assert_eq!(
        picture,
        "test boot wpi_1 of web
start  repo_setup acme/a
       | alone
start  repo_setup acme/b
       acme/b | of b
       acme/a | half a line of a
       acme/b | no end
ok     repo_setup acme/b (initialize)  1.0 s
       | alone again
ok     repo_setup acme/a (initialize)  1.0 s
"
    );
    assert!(ran.stdout.contains("acme/a (initialize)"), "{}", ran.stdout);
}

#[test]
fn a_script_that_another_ones_failure_ended_is_said_to_have_stopped() {
    let started = |repo: &str| format!(r#"{{"kind":"stepStarted","name":"repo_setup","subject":"{repo}"}}"#);
    let failed = script_step("acme/b", "startup", Some("exit code 7: boom"));
    let lost = script_step("acme/c", "startup", None);
    let events = vec![
        ("stepStarted", started("acme/a")),
        ("stepStarted", started("acme/b")),
        ("stepStarted", started("acme/c")),
        ("stepEnded", event(&failed)),
        (
            "ended",
            r#"{"kind":"ended","status":"failed","failureReason":"exit code 7: boom"}"#.to_owned(),
        ),
    ];
    let record = detail("failed", &[&lost, &failed]).replace("warm_pool_setup", "repo_setup");
    let (ran, _fake) = boot(events, vec![record], &[]);
    assert_eq!(ran.code, 1);
    for text in [
        "FAILED repo_setup acme/b (startup)  1.0 s\n",
        // The news of its end was lost, its entry was not.
        "ok     repo_setup acme/c (startup)  1.0 s\n",
        "stop   repo_setup acme/a\n",
        "FAILED: repo_setup acme/b (startup): exit code 7: boom",
        "hearth setup edit web",
    ] {
        assert!(ran.stderr.contains(text), "{text} is missing in:\n{}", ran.stderr);
    }
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
        // Of these its last line stands in the sentence.
        "its last lines:\n  | one\n  | two\nwhat to do next",
        "hearth shell wpi_1",
        "hearth pool instance web wpi_1 --log",
        "fix it:                                    hearth pool edit web\n",
        "hearth pool test web",
    ] {
        assert!(ran.stderr.contains(text), "{text} is missing in:\n{}", ran.stderr);
    }
}

#[test]
fn what_a_failed_command_printed_is_shown_once() {
    let text = |text: &str| format!(r#"{{"kind":"output","subject":null,"text":"{text}"}}"#);
    let events = vec![
        (
            "stepStarted",
            r#"{"kind":"stepStarted","name":"warm_pool_setup","subject":null}"#.to_owned(),
        ),
        ("output", text("one\\ntwo\\nboom\\n")),
        ("stepEnded", event(BAD_STEP)),
        (
            "ended",
            r#"{"kind":"ended","status":"failed","failureReason":"exit code 7: boom"}"#.to_owned(),
        ),
    ];
    let (ran, _fake) = boot(events, vec![detail("failed", &[BAD_STEP])], &[]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr.matches("| two").count(), 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains("its last lines"), "{}", ran.stderr);
}

#[test]
fn what_comes_from_a_checkpoint_is_said_to() {
    let whole = GOOD_STEP.replace(r#""metadata":{"#, r#""metadata":{"cached":true,"#);
    let events = vec![
        ("stepEnded", event(&whole)),
        ("stepEnded", event(CACHED_STEP)),
        (
            "ended",
            r#"{"kind":"ended","status":"ready","failureReason":null}"#.to_owned(),
        ),
    ];
    let (ran, _fake) = boot(events, vec![detail("ready", &[&whole, CACHED_STEP])], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for line in [
        "ok     clone_repo acme/web  1.2 s  from a checkpoint",
        "ok     warm_pool_setup npm, build  0 ms  npm from a checkpoint",
    ] {
        assert!(ran.stderr.lines().any(|shown| shown == line), "{line}\n{}", ran.stderr);
    }
    assert!(ran.stdout.contains("ok, from a checkpoint"), "{}", ran.stdout);
}

#[test]
fn repository_that_cannot_be_fetched_has_a_command_that_changes_its_address() {
    let step = GOOD_STEP.replace("success", "error");
    let record = detail("failed", &[&step]).replace("warm_pool_setup", "clone_repo");
    let view = r#"{"id":"prj_1","name":"web","description":null,"taskCode":"WEB","repos":[
        {"repoFullName":"acme/web","branch":"main","url":"file:///srv/git/wbe","lfs":true,"submodules":true},
        {"repoFullName":"acme/lib","branch":"dev","url":"https://h/acme/lib.git","lfs":true,"submodules":true}],
        "image":null,"projectSetup":null,"vmSize":"medium","maxVms":null,"gitIdentity":null,
        "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;
    let fake = Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/warm-pool/test") => Reply::ok(r#"{"id":"wpi_1"}"#),
        line if line.ends_with("/view") => Reply::ok(view),
        line if line.ends_with("/branches") => Reply::ok(r#"{"items":[]}"#),
        line if line.contains("/warm-pool/instances/wpi_1") => Reply::ok(&record),
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        line if line.ends_with("/exec") => Reply::json(
            409,
            r#"{"error":{"code":"conflict","message":"this instance is not claimed"}}"#,
        ),
        _ => Reply::not_found(),
    });
    let ran = run(hearth_at(&fake.url, &["pool", "test", "web"]));
    assert_eq!(ran.code, 1);
    for part in [
        "acme/web is fetched from file:///srv/git/wbe: is that right, and can the host reach it?",
        "hearth project set web --repo 'acme/web@main=URL' --repo 'acme/lib@dev=https://h/acme/lib.git'",
        "cannot be looked into: an admin's token may, this one may look only into VMs that it claimed",
    ] {
        assert!(ran.stderr.contains(part), "{part} is missing in:\n{}", ran.stderr);
    }
}

#[test]
fn server_that_does_not_answer_is_said_once_and_so_is_that_it_answers_again() {
    let looks = AtomicUsize::new(0);
    let fake = Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/warm-pool/test") => Reply::ok(r#"{"id":"wpi_1"}"#),
        line if line.ends_with("/follow") => Reply::events(&[("stepEnded", &event(GOOD_STEP))]),
        line if line.contains("/instances/wpi_1") => match looks.fetch_add(1, Ordering::SeqCst) {
            0..8 => Reply::json(
                503,
                r#"{"error":{"code":"unavailable","message":"it is being started"}}"#,
            ),
            8 => Reply::ok(&detail("provisioning", &[])),
            _ => Reply::ok(&detail("ready", &[GOOD_STEP])),
        },
        _ => Reply::ok(&project_page()),
    });
    let ran = run(hearth_at(&fake.url, &["pool", "test", "web"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for (part, times) in [
        ("the server does not answer; asking again for 1 min", 1),
        ("the server answers again", 1),
        (
            "continues from what was frozen of it, or starts again where nothing was",
            1,
        ),
        ("has run for", 0),
    ] {
        assert_eq!(ran.stderr.matches(part).count(), times, "{part}\n{}", ran.stderr);
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

/// Tries commands in a pool that is enabled or not; the fake's boot ends so.
fn try_commands(enabled: bool, good: bool, more: &[&str]) -> (Ran, Fake) {
    let fake = Fake::start(move |request| {
        let line = request.line.as_str();
        let config = format!(
            r#"{{"enabled":{enabled},"targetSize":1,"maxAgeMinutes":60,"branch":null,"setupCommands":null,
            "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}}"#
        );
        let status = r#""status":{"ready":1,"provisioning":0,"failed":0}"#;
        match line.split(' ').next() {
            Some("POST") => Reply::ok(r#"{"id":"wpi_1"}"#),
            Some("PATCH") => Reply::ok(&format!(r#"{{"config":{config},{status}}}"#)),
            _ if line.ends_with("/warm-pool") => Reply::ok(&format!(
                r#"{{"allowed":true,"config":{config},{status},"metadata":null}}"#
            )),
            _ if line.ends_with("/follow") => Reply::not_found(),
            _ if line.contains("/instances/wpi_1") => Reply::ok(&match good {
                true => detail("ready", &[GOOD_STEP]),
                false => detail("failed", &[GOOD_STEP, BAD_STEP]),
            }),
            _ => Reply::ok(&project_page()),
        }
    });
    let args = [&["pool", "test", "web", "--command", "a: true"], more].concat();
    let ran = run(hearth_at(&fake.url, &args));
    (ran, fake)
}

#[test]
fn what_becomes_of_given_commands_is_said() {
    let (ran, fake) = try_commands(true, false, &[]);
    assert_eq!((ran.code, fake.requests_of("PATCH ").len()), (1, 0), "{}", ran.stderr);
    for text in [
        "the given commands are saved to the pool, which is enabled and builds them beside this test",
        "hearth pool set web --disabled",
        "the given commands stay saved: VMs of the set-up before keep serving",
    ] {
        assert!(ran.stderr.contains(text), "{text} is missing in:\n{}", ran.stderr);
    }
    let (ran, _fake) = try_commands(false, true, &[]);
    assert!(
        ran.stderr.contains("the given commands are saved to the pool\n"),
        "{}",
        ran.stderr
    );
    let (ran, _fake) = try_commands(true, true, &["--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn a_vm_that_the_set_up_ended_is_not_offered_to_look_into() {
    let events = [
        event(BAD_STEP),
        r#"{"kind":"ended","status":"failed","failureReason":"exit code 7: boom"}"#.to_owned(),
    ];
    let fake = Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/warm-pool/test") => Reply::ok(r#"{"id":"wpi_1"}"#),
        line if line.ends_with("/follow") => Reply::events(&[("stepEnded", &events[0]), ("ended", &events[1])]),
        line if line.ends_with("/exec") => Reply::json(
            503,
            r#"{"error":{"code":"unavailable","message":"the VM has ended: its process on the host is gone"}}"#,
        ),
        line if line.contains("/warm-pool/instances/wpi_1") => Reply::ok(&detail("failed", &[BAD_STEP])),
        line if line.ends_with("/instances/wpi_1") => Reply::not_found(),
        _ => Reply::ok(&project_page()),
    });
    let ran = run(hearth_at(&fake.url, &["pool", "test", "web"]));
    assert_eq!(ran.code, 1);
    assert!(
        !ran.stderr.contains("hearth shell")
            && ran.stderr.contains("cannot be looked into: ")
            && ran.stderr.contains("the VM has ended"),
        "{}",
        ran.stderr
    );
}

#[test]
fn boot_that_a_restart_interrupted_says_so_where_it_is_shown() {
    let step = |metadata: &str| {
        format!(
            r#"{{"name":"create_vm","status":"success","durationMs":5,"timestamp":"2025-01-01T00:00:05.000Z","metadata":{metadata}}}"#
        )
    };
    for (metadata, told) in [
        (
            r#"{"from":"checkpoint","interruptedAt":"2025-01-01T00:00:03.250Z"}"#,
            Some("it continues after the last stage that was frozen"),
        ),
        (
            r#"{"from":"image","interruptedAt":"2025-01-01T00:00:03.250Z"}"#,
            Some("nothing of it was frozen yet, so it starts again"),
        ),
        (r#"{"from":"image"}"#, None),
    ] {
        let record = detail("ready", &[&step(metadata)]);
        let fake = Fake::start(move |request| {
            if request.line.contains("/instances/wpi_1") {
                return Reply::ok(&record);
            }
            Reply::ok(&project_page())
        });
        let ran = run(hearth_at(&fake.url, &["pool", "instance", "web", "wpi_1"]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let begins = "interrupted: the server was restarted during this boot (found at 2025-01-01T00:00:03Z): ";
        let line = ran.stdout.lines().find_map(|line| line.strip_prefix(begins));
        match told {
            Some(told) => assert!(line.is_some_and(|line| line.starts_with(told)), "{}", ran.stdout),
            None => assert!(!ran.stdout.contains("restarted"), "{}", ran.stdout),
        }
    }
}
