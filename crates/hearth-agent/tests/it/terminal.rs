//! Terminals: a real pseudo terminal, and that nothing of what ran in it is left.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hearth_guest::TerminalSize;
use hearth_guest::client::{ExecEvent, ExecStream, TerminalInput};
use hearth_guest::{ExecEnd, ExecSpec, TerminalSpec};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A person at a terminal.
struct Person {
    types: mpsc::Sender<std::io::Result<TerminalInput>>,
    sees: ExecStream,
    seen: String,
    end: Option<ExecEnd>,
}

impl Person {
    async fn at(agent: &Agent, command: ExecSpec) -> Self {
        let (types, mut typed) = mpsc::channel(16);
        let input = futures::stream::poll_fn(move |cx| typed.poll_recv(cx));
        let spec = TerminalSpec {
            command,
            size: TerminalSize { rows: 33, cols: 101 },
        };
        let sees = agent.client().await.terminal(&spec, input).await.unwrap();
        Self {
            types,
            sees,
            seen: String::new(),
            end: None,
        }
    }

    async fn types(&self, text: &'static str) {
        let bytes = Bytes::from_static(text.as_bytes());
        self.types.send(Ok(TerminalInput::Bytes(bytes))).await.unwrap();
    }

    /// Looks until this is there, or until the end.
    async fn looks_for(&mut self, text: &str) {
        while !self.seen.contains(text) && self.end.is_none() {
            match timeout(PATIENCE, self.sees.next())
                .await
                .expect(&self.seen)
                .unwrap()
                .unwrap()
            {
                ExecEvent::Stdout(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                ExecEvent::Stderr(bytes) => panic!("a terminal has one output: {bytes:?}"),
                ExecEvent::End(end) => self.end = Some(end),
            }
        }
        assert!(self.seen.contains(text), "{text:?} is not in {:?}", self.seen);
    }

    /// Looks to the end.
    async fn leaves(mut self) -> ExecEnd {
        while self.end.is_none() {
            let event = timeout(PATIENCE, self.sees.next()).await.expect(&self.seen);
            if let ExecEvent::End(end) = event.unwrap().unwrap() {
                self.end = Some(end);
            }
        }
        self.end.unwrap()
    }
}

fn exit_code(end: &ExecEnd) -> Option<i32> {
    match end {
        ExecEnd::Exited { code, .. } => *code,
        other => panic!("not an exit: {other:?}"),
    }
}

#[tokio::test]
async fn a_shell_has_a_terminal_of_its_size_with_job_control_and_ends_with_its_code() {
    let agent = Agent::start();
    let mut command = argv(&["bash", "--norc", "--noediting", "-i"]);
    command.env = vec![("PS1".into(), "ready> ".into())];
    let mut person = Person::at(&agent, command).await;
    // Only at the prompt is something typed, as people do: what comes while a shell changes the terminal's mode may be lost.
    person.looks_for("ready> ").await;
    person.types("tty; stty size; echo $((6*7)).\r").await;
    person.looks_for("/dev/pts/").await;
    person.looks_for("33 101").await;
    person.looks_for("42.\r\nready> ").await;
    let smaller = TerminalSize { rows: 50, cols: 70 };
    person.types.send(Ok(TerminalInput::Resize(smaller))).await.unwrap();
    person.types("stty size\r").await;
    person.looks_for("50 70\r\nready> ").await;
    // Ctrl-C ends what runs, not the shell.
    person.types("sh -c 'echo $((3+4)) sheep; exec cat'\r").await;
    person.looks_for("7 sheep").await;
    person.types("\u{3}").await;
    person.looks_for("^C\r\nready> ").await;
    person.types("echo still $((40+2)) here\r").await;
    person.looks_for("still 42 here\r\nready> ").await;
    assert!(!person.seen.contains("job control"), "{}", person.seen);
    person.types("exit 7\r").await;
    assert_eq!(exit_code(&person.leaves().await), Some(7));
}

#[tokio::test]
async fn everything_that_was_shown_comes_before_the_end() {
    let agent = Agent::start();
    for _ in 0..5 {
        let mut person = Person::at(&agent, shell("seq 1 20000; echo last-line")).await;
        person.looks_for("last-line").await;
        assert!(person.seen.contains("\r\n19999\r\n20000\r\n"));
    }
}

#[tokio::test]
async fn a_process_that_holds_the_terminal_does_not_hold_its_end() {
    let agent = Agent::start();
    let mut person = Person::at(&agent, shell("trap '' HUP; (trap '' HUP; sleep 60) & echo started")).await;
    person.looks_for("started").await;
    assert_eq!(exit_code(&person.leaves().await), Some(0));
}

#[tokio::test]
async fn client_that_leaves_takes_what_runs_along() {
    let agent = Agent::start();
    let file = agent.path("pid");
    let text = format!(
        "echo $BASHPID > {}; trap '' HUP TERM; while :; do sleep 1; done",
        file.display()
    );
    let mut person = Person::at(&agent, shell(&format!("({text}) & wait; echo never"))).await;
    let pid = pid_in(&file).await;
    assert!(person.end.take().is_none());
    drop(person);
    is_gone(pid).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_said_with_its_reason() {
    let agent = Agent::start();
    let mut person = Person::at(&agent, argv(&["/no/such/program"])).await;
    let end = person.sees.next().await.unwrap().unwrap();
    let ExecEvent::End(ExecEnd::NotStarted { reason, .. }) = end else {
        panic!("{end:?}");
    };
    assert!(reason.contains("/no/such/program was not found"), "{reason}");
    let mut stopped = shell("sleep 1000");
    stopped.timeout_ms = Some(200);
    person = Person::at(&agent, stopped).await;
    let end = person.sees.next().await.unwrap().unwrap();
    assert!(matches!(end, ExecEvent::End(ExecEnd::TimedOut { .. })), "{end:?}");
}
