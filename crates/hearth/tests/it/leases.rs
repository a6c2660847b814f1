//! What the command line says of leases that end soon, of VMs that Hearth has paused, and of a project's settings for both.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use jiff::{SignedDuration, Timestamp};
use nix::pty::openpty;
use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, run};

fn claims(change: &[(&str, Value)]) -> String {
    let mut item = json!({
        "id": "wpi_1", "projectId": "prj_1", "projectName": "web", "taskId": "T1", "owner": "ada",
        "claimedAt": "2026-11-24T05:00:00.000Z", "expiresAt": in_seconds(290), "leaseWarningMinutes": 10,
        "leaseEndsSoon": false, "unresponsive": null, "paused": false, "pausedToDisk": false, "pausedBecause": null,
        "rebootedAt": null, "vmEndedAt": null, "vmEndedBecause": null
    });
    for (name, value) in change {
        item[name] = value.clone();
    }
    json!({ "items": [item] }).to_string()
}

fn in_seconds(seconds: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string()
}

fn view(expires_at: &str) -> String {
    json!({
        "id": "wpi_1", "instanceId": "vm_1", "projectId": "prj_1", "status": "claimed", "isTest": false, "recipe": "r",
        "repos": [], "commands": [], "settings": [], "failure": null, "expiresAt": expires_at, "leaseWarningMinutes": 10,
        "unresponsive": null, "paused": false, "pausedToDisk": false, "pausedBecause": null, "rebootedAt": null,
        "vmEndedAt": null, "vmEndedBecause": null
    })
    .to_string()
}

#[test]
fn pause_to_the_disk_is_asked_for_and_said() {
    let fake = Fake::start(|request| match request.line.as_str() {
        line if line.contains("/pause") => Reply::ok(r#"{"id":"wpi_1","paused":true,"toDisk":true}"#),
        _ => Reply::ok(r#"{"items":[]}"#),
    });
    let ran = run(hearth_at(&fake.url, &["pause", "wpi_1", "--to-disk"]));
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "paused wpi_1 to the disk: the next command in it resumes it\n"),
        "{ran:?}"
    );
    let requests = fake.requests();
    let line = &requests.last().unwrap().line;
    assert_eq!(line, "POST /api/v1/instances/wpi_1/pause?force=false&toDisk=true");
}

#[test]
fn list_of_claims_marks_a_lease_that_ends_soon_and_says_why_a_vm_is_paused() {
    let items = claims(&[
        ("leaseEndsSoon", json!(true)),
        ("paused", json!(true)),
        ("pausedToDisk", json!(true)),
        ("pausedBecause", json!("nobody used it for 30 minutes")),
    ]);
    let fake = Fake::start(move |_| Reply::ok(&items));
    let ran = run(hearth_at(&fake.url, &["claims"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    for text in [
        "ends soon",
        "paused to the disk (nobody used it for 30",
        "minutes): the next command resumes it",
    ] {
        assert!(ran.stdout.contains(text), "{text}\n{}", ran.stdout);
    }
    assert!(ran.stderr.contains("claim extend wpi_1 --by 120"), "{}", ran.stderr);
    let quiet = claims(&[]);
    let fake = Fake::start(move |_| Reply::ok(&quiet));
    let ran = run(hearth_at(&fake.url, &["claims"]));
    assert!(!ran.stdout.contains("soon") && ran.stderr.is_empty(), "{ran:?}");
}

#[test]
fn settings_of_claims_are_sent_as_they_are_said() {
    for (args, body) in [
        (&["--max-claims", "3"][..], json!({ "maxClaims": 3 })),
        (&["--no-max-claims"], json!({ "maxClaims": null })),
        (
            &["--idle-pause", "30", "--idle-pause-to", "disk"],
            json!({ "idlePauseMinutes": 30, "idlePauseToDisk": true }),
        ),
        (
            &["--no-idle-pause", "--idle-pause-to", "memory"],
            json!({ "idlePauseMinutes": null, "idlePauseToDisk": false }),
        ),
        (&["--lease-warning", "0"], json!({ "leaseWarningMinutes": 0 })),
    ] {
        let fake = Fake::start(|_| Reply::ok(&crate::support::project_page()));
        let all: Vec<&str> = ["project", "set", "web"].iter().chain(args).copied().collect();
        run(hearth_at(&fake.url, &all));
        let requests = fake.requests();
        let patch = requests.iter().find(|request| request.line.starts_with("PATCH"));
        let patch = patch.unwrap_or_else(|| panic!("{args:?}: {requests:?}"));
        let sent: Value = serde_json::from_str(&patch.body).unwrap();
        assert_eq!(sent, body, "{args:?}");
    }
}

/// What a terminal shows as standard error of `hearth forward`, until it holds a text or two answers of the server have been read.
fn shown_at_terminal(expires_at: String, until: &str) -> String {
    let fake = Fake::start(move |request| match request.line.as_str() {
        "GET /api/v1/instances/wpi_1" => Reply::ok(&view(&expires_at)),
        line if line.ends_with("/ports") => Reply::ok(r#"{"items":[],"previews":[]}"#),
        _ => Reply::ok(r#"{"items":[]}"#),
    });
    let terminal = openpty(None, None).unwrap();
    let mut command = hearth_at(&fake.url, &["forward", "wpi_1", "3000:0"]);
    command.stdout(Stdio::null()).stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut master = File::from(terminal.master);
    let (mut shown, mut buffer) = (String::new(), [0; 4096]);
    while !shown.contains(until) {
        match master.read(&mut buffer) {
            Ok(read @ 1..) => shown.push_str(&String::from_utf8_lossy(&buffer[..read])),
            _ => break,
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    shown
}

#[test]
fn who_works_in_a_vm_is_warned_before_its_lease_ends() {
    let shown = shown_at_terminal(in_seconds(300), "--by 120");
    let plain = console::strip_ansi_codes(&shown);
    assert!(plain.contains("hearth: the lease of wpi_1 ends in 4"), "{plain}");
    assert!(plain.contains("claim extend wpi_1 --by 120"), "{plain}");
}

#[test]
fn warnings_come_when_their_time_has_come() {
    // The first one is due in two seconds: it is waited for, and asks the server again.
    let begin = std::time::Instant::now();
    let shown = shown_at_terminal(in_seconds(602), "--by 120");
    assert!(shown.contains("the lease of wpi_1 ends in"), "{shown}");
    assert!(
        begin.elapsed() >= std::time::Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}
