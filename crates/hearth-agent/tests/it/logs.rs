//! What commands leave behind lives, and what it prints can be read.

use std::time::Duration;

use futures::StreamExt as _;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::{Detach, ExecEnd, ExecSpec, LogEntry, LogKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

const MAX: usize = 1 << 20;

/// Runs it; the name of the log of what it left behind.
async fn left_by(client: &AgentClient, command: &str) -> Option<String> {
    match client.exec_collect(&shell(command), MAX).await.unwrap().end {
        ExecEnd::Exited { code: Some(0), log, .. } => log,
        other => panic!("{other:?}"),
    }
}

async fn entry(client: &AgentClient, name: &str) -> LogEntry {
    let logs = client.logs().await.unwrap();
    logs.into_iter().find(|log| log.name == name).unwrap()
}

async fn text(client: &AgentClient, name: &str) -> String {
    let bytes = client
        .read_log(name, false)
        .await
        .unwrap()
        .collect(8 * MAX)
        .await
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn what_a_child_prints_after_its_command_is_kept_and_the_child_lives() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (file, go) = (agent.path("child"), agent.path("go"));
    let command = format!(
        "(echo $BASHPID > {}; while [ ! -e {} ]; do sleep 0.05; done; echo out; echo err >&2; exec sleep 1000) & sleep 0.1",
        file.display(),
        go.display()
    );
    let name = left_by(&client, &command).await.unwrap();
    let pid = pid_in(&file).await;
    let before = entry(&client, &name).await;
    assert_eq!((before.kind, before.open, before.bytes), (LogKind::Exec, Some(true), 0));
    assert!(before.command.unwrap().starts_with("bash -eo pipefail -c (echo"));
    // A client follows it from now on.
    let mut following = client.read_log(&name, true).await.unwrap();
    std::fs::write(&go, "").unwrap();
    let mut seen = Vec::new();
    while seen.len() < b"out\nerr\n".len() {
        let chunk = tokio::time::timeout(DEADLINE, following.next()).await.unwrap();
        seen.extend(chunk.unwrap().unwrap());
    }
    assert!(alive(pid));
    // Pipes have no order between them.
    let mut lines: Vec<String> = text(&client, &name).await.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
    // When no process has the outputs open any more, the stream ends for clients that follow, and the log stays.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let more = tokio::time::timeout(DEADLINE, following.collect(MAX)).await.unwrap();
    assert_eq!(more.unwrap(), b"");
    assert_eq!(entry(&client, &name).await.open, Some(false));
}

#[tokio::test]
async fn a_child_that_never_stops_writing_fills_no_disk_and_the_rest_is_counted() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path("writer");
    let command = format!("(echo $BASHPID > {}; exec yes) & sleep 0.1", file.display());
    let name = left_by(&client, &command).await.unwrap();
    let found = eventually("some of it is gone", async || {
        let found = entry(&client, &name).await;
        (found.dropped_bytes > 4 * MAX as u64).then_some(found)
    })
    .await;
    assert!(found.bytes <= 3 * MAX as u64, "{found:?}");
    // Read without following, it ends although more comes all the time. What turned over while it was read is not in it: how much is left
    // depends on who is quicker.
    let read = tokio::time::timeout(DEADLINE, text(&client, &name)).await.unwrap();
    assert!(read.contains("y\ny\n"), "{}", read.len());
    let pid = pid_in(&file).await;
    assert!(alive(pid));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert!(agent.resident_kib() < 64 * 1024, "{} KiB", agent.resident_kib());
}

#[tokio::test]
async fn only_what_says_something_leaves_a_log() {
    let agent = Agent::start();
    let client = agent.client().await;
    assert_eq!(left_by(&client, "echo done").await, None);
    assert_eq!(left_by(&client, "sleep 1000 >/dev/null 2>&1 & echo done").await, None);
    let silent = left_by(&client, "sleep 0.5 & echo done").await.unwrap();
    eventually("a silent one is gone", async || {
        let logs = client.logs().await.unwrap();
        logs.iter().all(|log| log.name != silent).then_some(())
    })
    .await;
    let missing = client.read_log(&silent, false).await;
    assert!(
        matches!(missing, Err(AgentError::Refused { status: 404, .. })),
        "{missing:?}"
    );
    // A name is no path.
    for name in ["", "../../etc/passwd", "exec-1/../x", "/etc/passwd"] {
        assert!(client.read_log(name, false).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn background_command_is_said_to_run_until_nothing_holds_its_log() {
    let mut agent = Agent::start();
    let client = agent.client().await;
    let go = agent.path("go");
    // What serves is a child that the command leaves behind.
    let command = format!(
        "(while [ ! -e {} ]; do sleep 0.05; done) & while [ ! -e {} ]; do sleep 0.05; done",
        go.display(),
        go.display()
    );
    let spec = ExecSpec {
        detach: Some(Detach {
            log_path: agent.path_text("logs/web.log"),
            grace_ms: 1,
        }),
        ..shell(&command)
    };
    let end = client.exec_collect(&spec, MAX).await.unwrap().end;
    assert!(matches!(end, ExecEnd::Detached { .. }), "{end:?}");
    let web = entry(&client, "web").await;
    assert_eq!((web.kind, web.open), (LogKind::Setup, Some(true)));
    // The next agent knows it too, and who only reads does not count.
    agent.replace();
    let client = agent.client().await;
    let _reads = std::fs::File::open(agent.path("logs/web.log")).unwrap();
    assert_eq!(entry(&client, "web").await.open, Some(true));
    std::fs::write(&go, "").unwrap();
    eventually("it has ended", async || {
        (entry(&client, "web").await.open == Some(false)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn logs_outlive_the_agent_and_those_of_the_setup_are_among_them() {
    let mut agent = Agent::start();
    let client = agent.client().await;
    let name = left_by(&client, "(sleep 0.3; echo later) & echo now").await.unwrap();
    eventually("it was written", async || {
        (text(&client, &name).await == "later\n").then_some(())
    })
    .await;
    std::fs::write(agent.path("logs/web.log"), "listening\n").unwrap();
    agent.replace();
    let client = agent.client().await;
    assert_eq!(text(&client, &name).await, "later\n");
    assert_eq!(text(&client, "web").await, "listening\n");
    let web = entry(&client, "web").await;
    assert_eq!((web.kind, web.bytes, web.open), (LogKind::Setup, 10, Some(false)));
    assert_eq!(entry(&client, &name).await.open, Some(false));
    // The next one has a name of its own.
    assert_ne!(left_by(&client, "sleep 5 & true").await.unwrap(), name);
    // A plain one can be followed too.
    let mut following = client.read_log("web", true).await.unwrap();
    let first = following.next().await.unwrap().unwrap();
    assert_eq!(first, "listening\n");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(agent.path("logs/web.log"))
        .unwrap();
    std::io::Write::write_all(&mut file, b"request\n").unwrap();
    let next = tokio::time::timeout(DEADLINE + Duration::from_secs(1), following.next())
        .await
        .unwrap();
    assert_eq!(next.unwrap().unwrap(), "request\n");
}
