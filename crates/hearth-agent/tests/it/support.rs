//! An agent of its own for every test, and waiting for things with a deadline.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use hearth_guest::ExecSpec;
use hearth_guest::client::AgentClient;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// No single thing in these tests takes longer on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    child: Child,
    pub(crate) folder: TempDir,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let child = spawn(&folder.path().join("socket"), arguments);
        Self { child, folder }
    }

    /// Ends the agent the hard way and starts another one at the same place.
    pub(crate) fn replace(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.folder.path().join("socket")).unwrap();
        self.child = spawn(&self.folder.path().join("socket"), &[]);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn path_text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) async fn stream(&self) -> UnixStream {
        let socket = self.path("socket");
        eventually("the agent listens", async || UnixStream::connect(&socket).await.ok()).await
    }

    pub(crate) async fn client(&self) -> AgentClient {
        AgentClient::connect(self.stream().await, Instant::now() + DEADLINE)
            .await
            .unwrap()
    }

    /// Its child processes, zombies too.
    pub(crate) fn children(&self) -> Vec<i32> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Those that wait to become a command.
    pub(crate) fn pre_started(&self) -> Vec<i32> {
        let waits = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"launch")
        };
        self.children().into_iter().filter(waits).collect()
    }

    /// What the agent's process holds in memory, KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn spawn(socket: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_hearth-agent"))
        .arg("serve")
        .arg("--socket")
        .arg(socket)
        .arg("--log-folder")
        .arg(socket.with_file_name("logs"))
        .args(arguments)
        .spawn()
        .unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never happened: {what}");
        // pause between two checks
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn is_gone(pid: i32) {
    eventually(&format!("process {pid} is gone"), async || (!alive(pid)).then_some(())).await;
}

/// Zombies do not count.
pub(crate) fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The number that a command wrote into a file.
pub(crate) async fn pid_in(path: &Path) -> i32 {
    eventually("a command wrote its number", async || {
        std::fs::read_to_string(path)
            .ok()
            .filter(|text| text.ends_with('\n'))?
            .trim()
            .parse()
            .ok()
    })
    .await
}

pub(crate) fn shell(text: &str) -> ExecSpec {
    ExecSpec {
        shell: Some(text.to_owned()),
        ..ExecSpec::default()
    }
}

pub(crate) fn argv(words: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        ..ExecSpec::default()
    }
}
