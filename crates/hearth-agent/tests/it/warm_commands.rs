//! Processes that are started before a command asks for one.

use crate::exec::{MAX, code, text};
use crate::support::*;

async fn some_pre_started(agent: &Agent) -> Vec<i32> {
    eventually("some wait", async || {
        let found = agent.pre_started();
        (found.len() >= 3).then_some(found)
    })
    .await
}

#[tokio::test]
async fn commands_find_processes_that_wait_for_them() {
    let agent = Agent::start();
    let client = agent.client().await;
    let own_pid = async || {
        let output = client.exec_collect(&shell("echo $$"), MAX).await.unwrap();
        text(&output.stdout).trim().parse::<i32>().unwrap()
    };
    assert!(agent.pre_started().is_empty());
    own_pid().await;
    let waiting = some_pre_started(&agent).await;
    assert!(waiting.contains(&own_pid().await));
    // Those that were killed are noticed.
    let waiting = some_pre_started(&agent).await;
    for pid in &waiting {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL).unwrap();
        is_gone(*pid).await;
    }
    assert!(!waiting.contains(&own_pid().await));
}

#[tokio::test]
async fn an_agent_that_is_told_to_settle_prepares_at_once() {
    let agent = Agent::start();
    let client = agent.client().await;
    assert!(agent.pre_started().is_empty());
    client.quiesce().await.unwrap();
    let waiting = some_pre_started(&agent).await;
    client.quiesce().await.unwrap();
    assert_eq!(agent.pre_started(), waiting);
    let output = client.exec_collect(&shell("echo $$"), MAX).await.unwrap();
    assert!(waiting.contains(&text(&output.stdout).trim().parse().unwrap()));
}

#[tokio::test]
async fn nothing_that_waits_outlives_the_agent() {
    let mut agent = Agent::start();
    assert_eq!(
        code(&agent.client().await.exec_collect(&shell("true"), MAX).await.unwrap()),
        Some(0)
    );
    let waiting = some_pre_started(&agent).await;
    agent.replace();
    for pid in waiting {
        is_gone(pid).await;
    }
}
