//! Exec sessions: they outlive who started them, are read by several at once, and never wait for a reader.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hearth_guest::client::{AgentClient, AgentError, SessionEvent, SessionInput, SessionStream};
use hearth_guest::exec_session::{SessionAttach, SessionInfo, SessionSignal, SessionSpec, SessionStart, Until};
use hearth_guest::{ExecEnd, ExecSpec, TerminalSize};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::*;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

pub(super) fn spec(command: ExecSpec) -> SessionSpec {
    SessionSpec {
        command,
        ..SessionSpec::default()
    }
}

pub(super) async fn start(client: &AgentClient, spec: &SessionSpec) -> SessionInfo {
    match client.start_session(spec).await.unwrap() {
        SessionStart::Started(info) => *info,
        other @ SessionStart::NotStarted { .. } => panic!("{other:?}"),
    }
}

pub(super) fn attach(session: &str, until: Until) -> SessionAttach {
    SessionAttach {
        session: session.to_owned(),
        until,
        ..SessionAttach::default()
    }
}

pub(super) async fn reader(client: &AgentClient, attach: &SessionAttach) -> SessionStream {
    client.attach_session(attach, futures::stream::empty()).await.unwrap()
}

/// What a reader got.
#[derive(Debug, Default)]
pub(super) struct Got {
    pub(super) stdout: Vec<u8>,
    stderr: Vec<u8>,
    pub(super) dropped: u64,
    pub(super) last: Option<SessionInfo>,
}

impl Got {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.stdout.len() + self.stderr.len()) as u64 + self.dropped
    }
}

pub(super) async fn read(mut stream: SessionStream) -> Got {
    let mut got = Got::default();
    while let Some(event) = timeout(DEADLINE, stream.next()).await.expect("output comes") {
        match event.unwrap() {
            SessionEvent::Info(info) => got.last = Some(*info),
            SessionEvent::Stdout(bytes) => got.stdout.extend(bytes),
            SessionEvent::Stderr(bytes) => got.stderr.extend(bytes),
            SessionEvent::Dropped(bytes) => got.dropped += bytes,
        }
    }
    got
}

pub(super) async fn ended(client: &AgentClient, session: &str) -> SessionInfo {
    let info = client.wait_session(session, DEADLINE).await.unwrap();
    assert!(!info.runs(), "it did not end: {info:?}");
    info
}

pub(super) fn code(info: &SessionInfo) -> Option<i32> {
    match &info.end {
        Some(ExecEnd::Exited { code, .. }) => *code,
        other => panic!("not an exit: {other:?}"),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, AgentError>) -> (u16, String) {
    match result {
        Err(AgentError::Refused { status, message, code }) => {
            assert!(code.is_some(), "{message}");
            (status, message)
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_session_outlives_its_connection_and_is_found_by_id_pid_and_tag() {
    let agent = Agent::start();
    let go = agent.path_text("go");
    let mut wanted = spec(shell(&format!(
        "echo one; echo bad >&2; until [ -e {go} ]; do sleep 0.01; done; echo two; exit 7"
    )));
    wanted.tag = Some("a build".into());
    wanted.command.cwd = Some("/tmp".into());
    let first = agent.client().await;
    let info = start(&first, &wanted).await;
    assert!(info.runs() && info.id.starts_with("s-"), "{info:?}");
    assert_eq!((info.tag.as_deref(), info.cwd.as_str()), (Some("a build"), "/tmp"));
    let watching = reader(&first, &attach(&info.id, Until::Ended)).await;
    drop((first, watching));
    let second = agent.client().await;
    let pid = info.pid.to_string();
    for name in [info.id.as_str(), &pid, "a build"] {
        let found = second.session(name).await.unwrap();
        assert_eq!((found.id.as_str(), found.runs()), (info.id.as_str(), true));
    }
    // The limit of a wait is no error.
    let waited = second.wait_session("a build", Duration::from_millis(1)).await.unwrap();
    assert!(waited.runs());
    std::fs::write(&go, "").unwrap();
    assert_eq!(code(&ended(&second, &info.id).await), Some(7));
    // A late reader gets all of it.
    let got = read(reader(&second, &attach("a build", Until::Closed)).await).await;
    assert_eq!(
        (got.text(), got.stderr.as_slice(), got.dropped),
        ("one\ntwo\n", &b"bad\n"[..], 0)
    );
    assert_eq!(got.bytes(), got.last.unwrap().output_bytes);
    let list = second.sessions().await.unwrap();
    assert_eq!(list.iter().map(|session| &session.id).collect::<Vec<_>>(), [&info.id]);
}

#[tokio::test]
async fn several_readers_see_the_same_and_one_continues_where_it_was() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut wanted = spec(argv(&["cat"]));
    wanted.stdin = true;
    let info = start(&client, &wanted).await;
    let streams = [
        reader(&client, &attach(&info.id, Until::Ended)).await,
        reader(&agent.client().await, &attach(&info.id, Until::Ended)).await,
        reader(&client, &attach(&info.id, Until::Closed)).await,
    ];
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    client.write_stdin(&info.id, bytes.clone(), false).await.unwrap();
    eventually("all of it was printed", async || {
        (client.session(&info.id).await.unwrap().output_bytes == 100_000).then_some(())
    })
    .await;
    assert_eq!(client.session(&info.id).await.unwrap().readers, 3);
    let from = SessionAttach {
        from: 99_990,
        ..attach(&info.id, Until::Now)
    };
    assert_eq!(read(reader(&client, &from).await).await.stdout, bytes[99_990..]);
    let last = SessionAttach {
        last: Some(5),
        ..attach(&info.id, Until::Now)
    };
    let got = read(reader(&client, &last).await).await;
    assert_eq!(got.stdout, bytes[99_995..]);
    assert!(got.last.unwrap().runs());
    client.write_stdin(&info.id, "end", true).await.unwrap();
    for stream in streams {
        let got = read(stream).await;
        assert_eq!((got.stdout.len(), got.dropped), (100_003, 0));
        assert!(got.stdout.starts_with(&bytes) && got.stdout.ends_with(b"end"));
        assert_eq!(code(&got.last.unwrap()), Some(0));
    }
    let (status, why) = refusal(client.write_stdin(&info.id, "more", false).await);
    assert!(status == 409 && why.contains("has ended"), "{status} {why}");
}

#[tokio::test]
async fn input_is_refused_where_there_is_none_and_a_full_pipe_is_left_by_closing_it() {
    let agent = Agent::start();
    let client = agent.client().await;
    let info = start(&client, &spec(shell("cat; echo empty; sleep 1000"))).await;
    let (_, why) = refusal(client.write_stdin(&info.id, "x", false).await);
    assert!(why.contains("takes no input"), "{why}");
    let mut unread = spec(argv(&["sleep", "1000"]));
    unread.stdin = true;
    let info = start(&client, &unread).await;
    let (other, id) = (client.clone(), info.id.clone());
    let writing = tokio::spawn(async move { other.write_stdin(&id, vec![0; 1 << 20], false).await });
    eventually("the pipe is full", async || {
        let name = format!("/proc/{}/fdinfo/0", info.pid);
        (std::fs::read(name).is_ok() && !writing.is_finished()).then_some(())
    })
    .await;
    client.write_stdin(&info.id, "", true).await.unwrap();
    assert_eq!(refusal(timeout(DEADLINE, writing).await.unwrap().unwrap()).0, 409);
    assert!(!client.session(&info.id).await.unwrap().stdin_open);
}

#[tokio::test]
async fn a_terminal_is_shared_resized_and_can_be_attached_to_again() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut command = argv(&["bash", "--norc", "--noediting", "-i"]);
    command.env = vec![("PS1".into(), "ready> ".into())];
    let mut wanted = spec(command);
    wanted.terminal = Some(TerminalSize { rows: 33, cols: 101 });
    let info = start(&client, &wanted).await;
    let printed = async |text: &str| {
        eventually(text, async || {
            let got = read(reader(&client, &attach(&info.id, Until::Now)).await).await;
            String::from_utf8_lossy(&got.stdout).contains(text).then_some(())
        })
        .await;
    };
    printed("ready> ").await;
    let (types, mut typed) = mpsc::channel(4);
    let input = futures::stream::poll_fn(move |cx| typed.poll_recv(cx));
    let stream = client
        .attach_session(&attach(&info.id, Until::Ended), input)
        .await
        .unwrap();
    let send = async |input| types.send(Ok(input)).await.unwrap();
    send(SessionInput::Bytes(Bytes::from_static(b"stty size\r"))).await;
    printed("33 101\r\nready> ").await;
    send(SessionInput::Resize(TerminalSize { rows: 50, cols: 70 })).await;
    send(SessionInput::Bytes(Bytes::from_static(b"stty size; x=kept\r"))).await;
    printed("50 70\r\nready> ").await;
    // The connection is cut: the shell stays.
    drop((stream, types));
    client.write_stdin(&info.id, "echo it is $x\r", false).await.unwrap();
    printed("it is kept\r\nready> ").await;
    assert_eq!(
        client.session(&info.id).await.unwrap().terminal,
        Some(TerminalSize { rows: 50, cols: 70 })
    );
    client
        .resize_session(&info.id, TerminalSize { rows: 5, cols: 6 })
        .await
        .unwrap();
    client.write_stdin(&info.id, "stty size\r", false).await.unwrap();
    printed("5 6\r\nready> ").await;
    // The end of the input is what a person types for it.
    client.write_stdin(&info.id, "", true).await.unwrap();
    assert_eq!(code(&ended(&client, &info.id).await), Some(0));
    let plain = start(&client, &spec(argv(&["sleep", "1000"]))).await;
    let size = TerminalSize { rows: 5, cols: 6 };
    assert!(
        refusal(client.resize_session(&plain.id, size).await)
            .1
            .contains("has no terminal")
    );
}

#[tokio::test]
async fn a_read_only_terminal_takes_no_input() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut wanted = spec(shell("echo shown; exec cat"));
    wanted.terminal = Some(TerminalSize { rows: 5, cols: 60 });
    wanted.read_only = true;
    let info = start(&client, &wanted).await;
    assert!(!info.stdin_open);
    let (_, why) = refusal(client.write_stdin(&info.id, "typed\r", false).await);
    assert!(why.contains("read-only"), "{why}");
    refusal(client.write_stdin(&info.id, "", true).await);
    client
        .resize_session(&info.id, TerminalSize { rows: 9, cols: 9 })
        .await
        .unwrap();
    assert!(client.session(&info.id).await.unwrap().runs());
}

#[tokio::test]
async fn a_signal_goes_to_the_first_process_or_to_all() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (child, asked) = (agent.path("child"), agent.path("asked"));
    let text = format!(
        "trap 'echo asked > {}' TERM; (echo $BASHPID > {}; exec sleep 1000) & while :; do wait || true; done",
        asked.display(),
        child.display()
    );
    let info = start(&client, &spec(shell(&text))).await;
    let pid = pid_in(&child).await;
    let signal = async |signal, tree| client.signal_session(&info.id, SessionSignal { signal, tree }).await;
    assert_eq!(signal(SIGTERM, false).await.unwrap(), 1);
    eventually("the first process was asked", async || asked.exists().then_some(())).await;
    assert!(alive(pid));
    assert!(signal(SIGKILL, true).await.unwrap() >= 2);
    is_gone(pid).await;
    let info = ended(&client, &info.id).await;
    assert!(
        matches!(
            info.end,
            Some(ExecEnd::Exited {
                signal: Some(SIGKILL),
                code: None,
                ..
            })
        ),
        "{info:?}"
    );
    let (status, why) = refusal(
        client
            .signal_session(
                &info.id,
                SessionSignal {
                    signal: SIGTERM,
                    tree: true,
                },
            )
            .await,
    );
    assert!(status == 409 && why.contains("has ended"), "{why}");
    let other = start(&client, &spec(argv(&["sleep", "1000"]))).await;
    let none = client
        .signal_session(
            &other.id,
            SessionSignal {
                signal: 999,
                tree: false,
            },
        )
        .await;
    assert_eq!(refusal(none).0, 400);
}

#[tokio::test]
async fn a_time_limit_is_a_result_with_the_output_until_then() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut command = shell("echo part; (trap '' TERM; sleep 1000) & sleep 1000");
    command.timeout_ms = Some(300);
    let info = start(&client, &spec(command)).await;
    let info = ended(&client, &info.id).await;
    assert!(matches!(info.end, Some(ExecEnd::TimedOut { .. })), "{info:?}");
    let got = read(reader(&client, &attach(&info.id, Until::Closed)).await).await;
    assert_eq!(got.text(), "part\n");
    assert!(!got.last.unwrap().output_open);
}

#[tokio::test]
async fn what_cannot_start_leaves_no_session_and_a_tag_is_unique_while_it_runs() {
    let agent = Agent::start();
    let client = agent.client().await;
    let none = client.start_session(&spec(argv(&["/no/such/program"]))).await.unwrap();
    let SessionStart::NotStarted {
        reason,
        code: Some(127),
    } = none
    else {
        panic!("{none:?}");
    };
    assert!(reason.contains("/no/such/program was not found"), "{reason}");
    assert!(client.sessions().await.unwrap().is_empty());
    let tagged = SessionSpec {
        tag: Some("dev".into()),
        ..spec(argv(&["sleep", "1000"]))
    };
    let first = start(&client, &tagged).await;
    let (status, why) = refusal(client.start_session(&tagged).await);
    assert!(
        status == 409 && why.contains(&first.id) && why.contains("runs already"),
        "{why}"
    );
    for bad in ["", "12", "s-1"] {
        let mut wanted = tagged.clone();
        wanted.tag = Some(bad.into());
        assert_eq!(refusal(client.start_session(&wanted).await).0, 400);
    }
    let (status, why) = refusal(client.remove_session("dev").await);
    assert!(status == 409 && why.contains("runs"), "{why}");
    client
        .signal_session(
            "dev",
            SessionSignal {
                signal: SIGKILL,
                tree: true,
            },
        )
        .await
        .unwrap();
    ended(&client, &first.id).await;
    // The tag leads to the one that runs, and an id to what it names.
    let second = start(&client, &tagged).await;
    assert_eq!(client.session("dev").await.unwrap().id, second.id);
    client.remove_session(&first.id).await.unwrap();
    let (status, why) = refusal(client.session(&first.id).await);
    assert!(status == 404 && why.contains("restarted"), "{why}");
}

#[tokio::test]
async fn what_a_session_leaves_running_goes_on_printing_into_it() {
    let agent = Agent::start();
    let client = agent.client().await;
    let go = agent.path_text("go");
    let text = format!("(until [ -e {go} ]; do sleep 0.01; done; echo late; echo later) & echo early");
    let info = start(&client, &spec(shell(&text))).await;
    let got = read(reader(&client, &attach(&info.id, Until::Ended)).await).await;
    let last = got.last.as_ref().unwrap();
    assert_eq!((got.text(), code(last), last.output_open), ("early\n", Some(0), true));
    let following = reader(&client, &attach(&info.id, Until::Closed)).await;
    std::fs::write(&go, "").unwrap();
    let got = read(following).await;
    assert_eq!(got.text(), "early\nlate\nlater\n");
    assert!(!got.last.unwrap().output_open);
    // Also when nothing keeps it any more: nobody dies of a closed pipe.
    let (go, done) = (agent.path_text("go2"), agent.path("done"));
    let text = format!(
        "(until [ -e {go} ]; do sleep 0.01; done; echo late && echo $BASHPID > {}) & true",
        done.display()
    );
    let info = start(&client, &spec(shell(&text))).await;
    ended(&client, &info.id).await;
    client.remove_session(&info.id).await.unwrap();
    std::fs::write(&go, "").unwrap();
    pid_in(&done).await;
}

#[tokio::test]
async fn another_agent_has_no_session_of_the_one_before() {
    let mut agent = Agent::start();
    let info = start(&agent.client().await, &spec(argv(&["sleep", "5"]))).await;
    agent.replace();
    let (status, why) = refusal(agent.client().await.session(&info.id).await);
    assert!(status == 404 && why.contains("agent is restarted"), "{why}");
}

#[tokio::test]
async fn an_agent_that_is_asked_to_end_ends_its_sessions() {
    let agent = Agent::start();
    let file = agent.path("pid");
    let text = format!(
        "(trap '' HUP; echo $BASHPID > {}; exec sleep 1000) & wait",
        file.display()
    );
    let info = start(&agent.client().await, &spec(shell(&text))).await;
    let child = pid_in(&file).await;
    let own = i32::try_from(agent.pid()).unwrap();
    kill(Pid::from_raw(own), Signal::SIGTERM).unwrap();
    is_gone(child).await;
    is_gone(i32::try_from(info.pid).unwrap()).await;
}

#[tokio::test]
async fn processes_are_listed_with_their_session() {
    let agent = Agent::start();
    let client = agent.client().await;
    let info = start(&client, &spec(argv(&["sleep", "1234"]))).await;
    let all = client.processes().await.unwrap();
    let found = all.iter().find(|process| process.pid == info.pid).unwrap();
    assert_eq!(
        (found.command.as_str(), found.session.as_ref()),
        ("sleep 1234", Some(&info.id))
    );
    assert!(
        found.started_unix_ms.abs_diff(info.started_unix_ms) < 60_000,
        "{found:?} {info:?}"
    );
    let own = all.iter().find(|process| process.pid == agent.pid()).unwrap();
    assert!(own.session.is_none() && own.rss_kib > 0, "{own:?}");
}
