//! `hearth exec` behaves as the command it runs.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::{Fake, Reply, Request};
use crate::support::{eventually, hearth_at, run, run_at_terminal, run_with_stdin};

fn exit(code: &str, signal: &str, error: &str) -> String {
    format!(r#"{{"exitCode":{code},"signal":{signal},"durationMs":2500,"error":{error}}}"#)
}

fn replying(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Fake {
    Fake::start(move |_: &Request| reply())
}

#[test]
fn bytes_and_exit_code_come_out_exactly() {
    // Bytes that are no text, on both streams.
    let fake = replying(|| {
        let end = exit("7", "null", "null");
        Reply::events(&[
            ("stdout", "AP8KCg=="),
            ("stderr", "ZXJyCg=="),
            ("stdout", "eA=="),
            ("exit", &end),
        ])
    });
    let output = hearth_at(&fake.url, &["exec", "wpi_1", "--", "ls", "-l"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, [0, 0xff, b'\n', b'\n', b'x']);
    assert_eq!(output.stderr, b"err\n");
    let request = &fake.requests()[0];
    assert_eq!(request.line, "POST /api/v1/instances/wpi_1/exec");
    assert_eq!(request.body, r#"{"argv":["ls","-l"]}"#);
}

#[test]
fn a_vm_that_is_being_made_is_said_to_be_without_another_request() {
    for (headers, says_so) in [
        ("content-type: text/event-stream\r\nhearth-unfinished: true\r\n", true),
        ("content-type: text/event-stream\r\n", false),
    ] {
        let fake = replying(move || Reply::events(&[("exit", &exit("0", "null", "null"))]).with(headers));
        let ran = run(hearth_at(&fake.url, &["exec", "wpi_1", "--no-stdin", "--", "true"]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("this VM is unfinished"), says_so, "{}", ran.stderr);
        assert_eq!(fake.requests().len(), 1, "{:?}", fake.requests());
    }
}

#[test]
fn signals_timeouts_and_faults_have_their_own_codes() {
    for (end, code) in [
        (exit("null", "\"SIGKILL\"", "null"), 137),
        (exit("null", "null", "\"it took too long\""), 124),
        (exit("null", "null", "\"it took too long\"").replace("2500", "1"), 125),
    ] {
        let fake = replying(move || Reply::events(&[("exit", &end)]));
        let ran = run(hearth_at(&fake.url, &["exec", "wpi_1", "--timeout", "2", "--", "true"]));
        assert_eq!(ran.code, code, "{}", ran.stderr);
    }
}

#[test]
fn a_stream_without_an_end_is_no_success() {
    let fake = replying(|| Reply::events(&[("stdout", "eA==")]));
    let ran = run(hearth_at(&fake.url, &["exec", "wpi_1", "--", "true"]));
    assert_eq!(ran.code, 125);
    assert_eq!(ran.stdout, "x");
    assert!(
        ran.stderr.contains("broke before the answer was complete"),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_unknown_instance_is_not_taken_for_the_commands_failure() {
    let fake = replying(Reply::not_found);
    let ran = run(hearth_at(&fake.url, &["exec", "wpi_1", "--", "true"]));
    assert_eq!(ran.code, 125);
}

#[test]
fn piped_input_goes_to_the_command() {
    // A server that is older than streamed input gets it whole, in the request.
    let fake = Fake::start(|request: &Request| {
        if request.line.starts_with("GET ") {
            return Reply::json(
                405,
                r#"{"error":{"code":"method_not_allowed","message":"not this method"}}"#,
            );
        }
        Reply::events(&[("exit", &exit("0", "null", "null"))])
    });
    let ran = run_with_stdin(hearth_at(&fake.url, &["exec", "wpi_1", "--shell", "cat"]), b"a\nb");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(fake.requests()[0].headers.contains("upgrade: websocket"));
    assert_eq!(fake.requests()[1].body, r#"{"command":"cat","stdin":"a\nb"}"#);
}

#[test]
fn variables_can_come_from_the_callers_environment() {
    let fake = replying(|| Reply::events(&[("exit", &exit("0", "null", "null"))]));
    let mut command = hearth_at(
        &fake.url,
        &["exec", "wpi_1", "--env", "SECRET", "--env", "A=b=c", "--", "env"],
    );
    command.env("SECRET", "s3cret");
    assert_eq!(run(command).code, 0);
    assert!(
        fake.requests()[0]
            .body
            .contains(r#""env":{"A":"b=c","SECRET":"s3cret"}"#)
    );
}

#[test]
fn ctrl_c_closes_the_connection_and_so_ends_the_command() {
    let fake = replying(|| Reply::events(&[("stdout", "eA==")]).held_open());
    let mut command = hearth_at(&fake.url, &["exec", "wpi_1", "--", "sleep", "9999"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    eventually("the connection is closed", || fake.closed.try_recv().is_ok());
}

#[test]
fn a_shell_without_a_terminal_says_what_to_do_instead() {
    let ran = run(hearth_at("http://127.0.0.1:1", &["shell", "wpi_1"]));
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("needs a terminal") && ran.stderr.contains("hearth exec wpi_1"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_shell_that_is_refused_says_why_and_leaves_the_terminal_as_it_was() {
    let fake = replying(|| {
        let body = r#"{"error":{"code":"gone","message":"the VM of this instance was removed"}}"#;
        Reply::json(410, body)
    });
    let (code, shown) = run_at_terminal(hearth_at(&fake.url, &["shell", "wpi_1"]), b"");
    assert_eq!(code, Some(125));
    assert!(shown.contains("the VM of this instance was removed"), "{shown}");
    let request = &fake.requests_of("GET /api/v1/instances/wpi_1/terminal")[0];
    assert!(
        request
            .line
            .starts_with("GET /api/v1/instances/wpi_1/terminal?rows=31&cols=99&term=xterm")
    );
    assert!(request.headers.contains("upgrade: websocket"), "{}", request.headers);
}
