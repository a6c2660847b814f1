//! Sessions from the command line, against a real server with the fake driver.

use std::process::Stdio;
use std::time::Duration;

use hearth_drivers::fake::{ExecRule, Special};
use hearth_guest::ExecEnd;
use serde_json::Value;

use crate::attached::House;
use crate::support::{eventually, run, run_at_terminal_after, run_with_stdin};

fn house() -> House {
    House::start(vec![
        ExecRule {
            stdout: "step one\n".into(),
            stderr: "a warning\n".into(),
            ..ExecRule::does("build", Special::NeverEnds)
        },
        ExecRule {
            code: 3,
            ..ExecRule::prints("quick", "done\n")
        },
        ExecRule {
            takes: Duration::from_millis(300),
            ..ExecRule::prints("short", "short\n")
        },
        ExecRule::does("cat", Special::Echo),
        ExecRule::does(
            "no-such-program",
            Special::End(ExecEnd::NotStarted {
                reason: "the program no-such-program was not found".into(),
                code: Some(127),
            }),
        ),
    ])
}

/// Starts one; its id.
fn detach(house: &House, options: &[&str], words: &[&str]) -> String {
    let ran = run(house.exec(&[&["--detach"], options].concat(), words));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let id = ran.stdout.trim().to_owned();
    assert!(id.starts_with("s-"), "{id}");
    id
}

#[test]
fn a_detached_command_is_listed_read_signalled_and_waited_for() {
    let house = house();
    let id = house.id.as_str();
    let none = run(house.command(&["attach", id, "nothing"]));
    assert!(
        // No code that a session could have ended with.
        none.code == 125 && none.stderr.contains("exec --detach"),
        "{}",
        none.stderr
    );
    let session = detach(&house, &["--tag", "b"], &["build"]);
    let again = run(house.exec(&["--detach", "--tag", "b"], &["build"]));
    assert!(
        again.code == 125 && again.stderr.contains("runs already"),
        "{}",
        again.stderr
    );
    let table = run(house.command(&["ps", id]));
    assert!(
        table.stdout.contains(&session) && table.stdout.contains("running"),
        "{}",
        table.stdout
    );
    let list: Value = serde_json::from_str(&run(house.command(&["ps", id, "--json"])).stdout).unwrap();
    assert_eq!(
        (&list["items"][0]["id"], &list["items"][0]["tag"]),
        (&session.as_str().into(), &"b".into())
    );
    let all: Value = serde_json::from_str(&run(house.command(&["ps", id, "--all", "--json"])).stdout).unwrap();
    assert_eq!(all["processes"][0]["session"], session.as_str());
    let logs = run(house.command(&["logs", id, "b"]));
    assert_eq!(
        (logs.code, logs.stdout.as_str(), logs.stderr.as_str()),
        (0, "step one\n", "a warning\n")
    );
    let waits = run(house.command(&["wait", id, "last", "--timeout", "0"]));
    assert!(
        waits.code == 124 && waits.stderr.contains("still runs"),
        "{}",
        waits.stderr
    );
    let following = house
        .command(&["logs", id, &session[..5], "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let killed = run(house.command(&["kill", id, "b", "-s", "int"]));
    assert!(
        killed.code == 0 && killed.stdout.starts_with("INT sent to 2 processes"),
        "{} {}",
        killed.stdout,
        killed.stderr
    );
    assert_eq!(following.wait_with_output().unwrap().stdout, b"step one\n");
    assert_eq!(run(house.command(&["wait", id, "b"])).code, 130);
    assert_eq!(run(house.command(&["attach", id, "b"])).code, 130);
    let ended = run(house.command(&["kill", id, "b"]));
    assert!(ended.code == 1 && ended.stderr.contains("ended"), "{}", ended.stderr);
    let table = run(house.command(&["ps", id]));
    assert!(table.stdout.contains("SIGINT"), "{}", table.stdout);
}

#[test]
fn codes_are_the_sessions_own() {
    let house = house();
    let quick = detach(&house, &[], &["quick"]);
    assert_eq!(run(house.command(&["wait", &house.id, &quick])).code, 3);
    let short = detach(&house, &[], &["short"]);
    let attached = run(house.command(&["attach", &house.id, &short]));
    assert_eq!((attached.code, attached.stdout.as_str()), (0, "short\n"));
    let missing = run(house.exec(&["--detach"], &["no-such-program"]));
    assert!(
        missing.code == 127 && missing.stderr.contains("was not found"),
        "{} {}",
        missing.code,
        missing.stderr
    );
    let nothing = run(house.command(&["logs", &house.id, "nothing"]));
    assert!(
        nothing.code == 1 && nothing.stderr.contains("hearth") && nothing.stderr.contains("ps"),
        "{}",
        nothing.stderr
    );
}

#[test]
fn what_is_piped_in_is_its_input_to_the_end() {
    let house = house();
    let cat = detach(&house, &["-i"], &["cat"]);
    let ran = run_with_stdin(house.command(&["attach", &house.id, &cat]), "a\ngrüße".as_bytes());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "a\ngrüße"), "{}", ran.stderr);
}

#[test]
fn a_shell_with_a_session_is_left_with_a_tilde_and_found_again() {
    let house = house();
    let shell = || house.command(&["shell", &house.id, "--session", "work"]);
    // The fake shows how large the terminal is, which is what was waited for.
    let (code, shown) = run_at_terminal_after(shell(), "99", b"hello\r~.");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("runs on"), "{shown}");
    let list: Value = serde_json::from_str(&run(house.command(&["ps", &house.id, "--json"])).stdout).unwrap();
    assert_eq!(
        (&list["items"][0]["tag"], &list["items"][0]["status"]),
        (&"work".into(), &"running".into())
    );
    let (code, shown) = run_at_terminal_after(shell(), "hello", b"\r~.");
    assert_eq!(code, Some(0), "{shown}");
    let list: Value = serde_json::from_str(&run(house.command(&["ps", &house.id, "--json"])).stdout).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[test]
fn a_shell_of_its_own_ends_with_a_tilde_and_leaves_nothing() {
    let house = house();
    let shell = || house.command(&["shell", &house.id]);
    let (code, shown) = run_at_terminal_after(shell(), "99", b"hello\r~.");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("the shell was ended"), "{shown}");
    let list: Value = serde_json::from_str(&run(house.command(&["ps", &house.id, "--json"])).stdout).unwrap();
    assert_eq!(list["items"], serde_json::json!([]));
}

#[test]
fn a_command_can_be_run_in_a_vm_of_its_own() {
    let house = house();
    let all = run(house.command(&["release", "--all"]));
    assert!(all.code == 2 && all.stderr.contains("--yes"), "{}", all.stderr);
    let all = run(house.command(&["release", "--all", "--yes"]));
    assert!(
        all.code == 0 && all.stdout.contains(&house.id),
        "{} {}",
        all.stdout,
        all.stderr
    );
    let mut ran = None;
    eventually("a VM is ready", || {
        let claim = run(house.command(&["claim", "demo", "--exec", "--", "quick"]));
        let done = claim.code != 5;
        ran = Some(claim);
        done
    });
    let ran = ran.unwrap();
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "done\n"), "{}", ran.stderr);
    let claims: Value = serde_json::from_str(&run(house.command(&["claims", "--json"])).stdout).unwrap();
    assert_eq!(claims["items"], Value::Array(Vec::new()));
    let none = run(house.command(&["release", "--all"]));
    assert_eq!((none.code, none.stdout.as_str()), (0, "nothing is claimed\n"));
}
