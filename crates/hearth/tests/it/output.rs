//! Data goes to standard output, words to standard error.

use std::process::Stdio;

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run};

#[test]
fn json_is_the_apis_own() {
    let fake = Fake::start(|_| Reply::ok(&project_page()));
    let ran = run(hearth_at(&fake.url, &["project", "list", "--json"]));
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let sent: serde_json::Value = serde_json::from_str(&project_page()).unwrap();
    assert_eq!(printed, sent);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let fake = Fake::start(|_| Reply::ok(&project_page()));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = hearth_at(&fake.url, &["project", "list"]);
    command.stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn field_errors_are_shown_one_by_one() {
    let fake = Fake::start(|_| {
        Reply::json(
            422,
            r#"{"error":{"code":"validation_error","message":"the request is not as it must be",
                "details":[{"path":"name","message":"must not be empty"}]}}"#,
        )
    });
    let ran = run(hearth_at(&fake.url, &["project", "create", "x"]));
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: the request is not as it must be\n  name: must not be empty\n"
    );
}

#[test]
fn a_fault_that_the_message_tells_already_is_not_told_twice() {
    let fake = Fake::start(|_| {
        Reply::json(
            422,
            r#"{"error":{"code":"validation_error","message":"the request is not valid: name: must not be empty",
                "details":[{"path":"name","message":"must not be empty"}]}}"#,
        )
    });
    let ran = run(hearth_at(&fake.url, &["project", "create", "x"]));
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr, "error: the request is not valid: name: must not be empty\n");
}

#[test]
fn another_server_at_the_address_is_recognised() {
    let fake = Fake::start(|_| Reply::json(404, "<html>").with("content-type: text/html\r\n"));
    let ran = run(hearth_at(&fake.url, &["project", "create", "x"]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("is something else at this address?"),
        "{}",
        ran.stderr
    );
}
