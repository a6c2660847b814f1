//! `hearth exec` against a real server with the fake driver: input that is streamed, terminals, and how commands end.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Special};
use hearth_guest::{EXIT_NOT_FOUND, ExecEnd};
use hearth_server::{ServeOptions, serve_with};
use tokio_util::sync::CancellationToken;

use crate::support::{Ran, eventually, hearth_at, run, run_at_terminal, run_at_terminal_after};

/// A server, and a claimed VM of it.
pub(crate) struct House {
    pub(crate) url: String,
    pub(crate) id: String,
    token: String,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) fn start(rules: Vec<ExecRule>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = ServeOptions::new(folder.path().join("data"));
        options.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()];
        options.memory_mib = 64 * 1024;
        let driver = FakeDriver::new(
            1,
            FakeOptions {
                rules,
                ..FakeOptions::default()
            },
        );
        let driver: Arc<dyn Driver> = Arc::new(driver);
        let stop = CancellationToken::new();
        let (ready, address) = std::sync::mpsc::channel();
        let token_file = options.data_dir.join("admin-token");
        std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async move {
                    let serving = serve_with(
                        &options,
                        move |_| Ok(driver),
                        |addresses| ready.send(addresses[0].clone()).unwrap(),
                        stop,
                    );
                    serving.await.unwrap();
                });
            }
        });
        let address = address.recv().unwrap();
        let mut house = Self {
            url: format!("http://{address}"),
            id: String::new(),
            token: std::fs::read_to_string(token_file).unwrap().trim().to_owned(),
            stop,
            folder,
        };
        house.run_ok(&["project", "create", "demo"]);
        house.run_ok(&["pool", "set", "demo", "--enabled", "--target", "1"]);
        eventually("a VM can be claimed", || {
            let claim = run(house.command(&["claim", "demo", "--json"]));
            let claimed: Option<serde_json::Value> = serde_json::from_str(&claim.stdout).ok();
            let id = claimed.and_then(|claimed| Some(claimed["id"].as_str()?.to_owned()));
            house.id = id.unwrap_or_default();
            !house.id.is_empty()
        });
        house
    }

    pub(crate) fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = hearth_at(&self.url, args);
        command.env("HEARTH_TOKEN", &self.token);
        command
    }

    /// The file that holds the token.
    pub(crate) fn token_file(&self) -> String {
        self.folder.path().join("data/admin-token").display().to_string()
    }

    fn run_ok(&self, args: &[&str]) {
        let ran = run(self.command(args));
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    }

    /// `hearth exec [options] ID -- words`
    pub(crate) fn exec(&self, options: &[&str], words: &[&str]) -> std::process::Command {
        let all = [&["exec"], options, &[self.id.as_str(), "--"], words].concat();
        self.command(&all)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[test]
fn any_bytes_are_streamed_through_a_command() {
    let house = House::start(vec![ExecRule::does("cat", Special::Echo)]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let mut child = house
        .exec(&[], &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn({
        let bytes = bytes.clone();
        move || stdin.write_all(&bytes).unwrap()
    });
    let mut printed = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut printed).unwrap();
    writing.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(printed == bytes, "{} bytes came back", printed.len());
    // In one answer too, where they are no text.
    let mut child = house
        .exec(&["--json"], &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[0, 0xff, b'x']).unwrap();
    let output = child.wait_with_output().unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&reply["stdoutBase64"], &reply["exitCode"]),
        (&"AP94".into(), &0.into())
    );
    // And none of it when that is asked for.
    let mut child = house.exec(&["-n"], &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let held = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(held);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_command_that_reads_nothing_does_not_wait_for_input() {
    let house = House::start(vec![ExecRule::prints("echo hi", "hi\n")]);
    let mut child = house
        .exec(&[], &["echo", "hi"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A process holds the other end and writes nothing, as `sleep 4 | hearth exec …` does.
    let held = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"hi\n"[..])
    );
    drop(held);
}

#[test]
fn a_command_that_leaves_its_input_unread_ends_with_its_own_code() {
    let head = ExecRule {
        code: 7,
        ..ExecRule::prints("head -c 3", "abc")
    };
    let missing = Special::End(ExecEnd::NotStarted {
        reason: "the program nix was not found".into(),
        code: Some(EXIT_NOT_FOUND),
    });
    let house = House::start(vec![head, ExecRule::does("nix", missing)]);
    // More than every buffer on the way holds, and then without end.
    for size in [Some(20_000_000), None] {
        for round in 0..20 {
            for (words, code, printed) in [(&["head", "-c", "3"][..], 7, &b"abc"[..]), (&["nix"], 127, b"")] {
                let mut child = house
                    .exec(&[], words)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut stdin = child.stdin.take().unwrap();
                let writing = std::thread::spawn(move || {
                    let chunk = vec![b'y'; 64 * 1024];
                    let mut sent = 0;
                    while size.is_none_or(|size| sent < size) && stdin.write_all(&chunk).is_ok() {
                        sent += chunk.len();
                    }
                });
                let output = child.wait_with_output().unwrap();
                writing.join().unwrap();
                assert_eq!(
                    (output.status.code(), output.stdout.as_slice()),
                    (Some(code), printed),
                    "round {round} of {size:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
}

#[test]
fn what_is_typed_reaches_a_command_without_a_terminal_and_one_with_it() {
    let house = House::start(vec![ExecRule::does("cat", Special::Echo)]);
    // Ctrl-D ends the input of a terminal. What is typed is shown by the terminal, and again by the command.
    let (code, shown) = run_at_terminal(house.exec(&[], &["cat"]), b"well\n\x04");
    assert_eq!((code, shown.matches("well").count()), (Some(0), 2), "{shown:?}");
    let (code, shown) = run_at_terminal_after(house.exec(&["-it"], &["python3"]), "31 x 99", b"exit\r");
    assert_eq!(code, Some(0), "{shown:?}");
    assert!(shown.contains("31 x 99"), "{shown:?}");
    let without = run(house.exec(&["-it"], &["python3"]));
    assert_eq!(without.code, 2);
    assert!(
        without.stderr.contains("--tty needs a terminal here"),
        "{}",
        without.stderr
    );
}

#[test]
fn however_a_command_ends_the_code_and_a_sentence_say_it() {
    let missing = Special::End(ExecEnd::NotStarted {
        reason: "the program nix was not found".into(),
        code: Some(EXIT_NOT_FOUND),
    });
    let house = House::start(vec![
        ExecRule {
            takes: std::time::Duration::from_secs(60),
            ..ExecRule::prints("slow", "half\n")
        },
        ExecRule::does("nix", missing),
        ExecRule {
            takes: std::time::Duration::from_millis(50),
            ..ExecRule::does("kill -9 -1", Special::AgentDies)
        },
        ExecRule::does("server &", Special::Leaves("GET /\n".into())),
    ]);
    let exec = |options: &[&str], words: &[&str]| -> Ran { run(house.exec(options, words)) };
    let ran = exec(&["--timeout", "1"], &["slow"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (124, "half\n"));
    assert!(ran.stderr.contains("time was up after 1 s"), "{}", ran.stderr);
    let ran = exec(&["--timeout", "1", "--json"], &["slow"]);
    let reply: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, &reply["timedOut"], &reply["stdout"]),
        (124, &true.into(), &"half\n".into())
    );
    let ran = exec(&[], &["nix"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (127, "error: the program nix was not found\n")
    );
    let ran = exec(&[], &["kill -9 -1"]);
    assert_eq!(ran.code, 125);
    assert!(
        ran.stderr.contains("the agent in the VM died") && !ran.stderr.contains("try again"),
        "{}",
        ran.stderr
    );
    // What it leaves behind has a log; a note of that is for terminals only.
    let ran = exec(&[], &["server &"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let (_, shown) = run_at_terminal(house.exec(&["-n"], &["server &"]), b"");
    assert!(shown.contains(&format!("hearth logs {} exec-2", house.id)), "{shown:?}");
    let logs = run(house.command(&["logs", &house.id]));
    assert!(
        logs.stdout.contains("exec-1") && logs.stdout.contains("server &"),
        "{}",
        logs.stdout
    );
    let log = run(house.command(&["logs", &house.id, "exec-1"]));
    assert_eq!((log.code, log.stdout.as_str()), (0, "GET /\n"));
    let none = run(house.command(&["logs", &house.id, "web"]));
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("there are: exec-1, exec-2"), "{}", none.stderr);
}
