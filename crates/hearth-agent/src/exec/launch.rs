//! Starting a command, first half: a [`launcher`](super::launcher) is started, and gets the command as an order. It can be started
//! long before anybody knows what: see [`pre_started`](super::pre_started).

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use uuid::Uuid;

use super::cgroup::{Cgroup, Cgroups};
use super::launcher::{ARRIVED, Order};
use super::not_started::NotStarted;
use super::process_tree::{MARK, ProcessTree};

/// More than any sentence the launcher says.
const LONGEST_REASON: usize = 4096;

/// Where a command's outputs go.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
}

impl Outputs {
    pub(super) fn piped() -> Self {
        Self {
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
        }
    }
}

/// A command that has been started, or a reason why not is under way.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) tree: ProcessTree,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    pub(super) status: Status,
}

/// The pipe on which a launcher says why it did not become the command. It is only looked at when it matters: to be woken by
/// it would cost every command time.
#[derive(Debug)]
pub(super) struct Status(OwnedFd);

impl Status {
    /// What was said so far; all of it when the process has ended.
    pub(super) fn reason(&self) -> Option<NotStarted> {
        let mut buffer = [0; LONGEST_REASON];
        let length = read(&self.0, &mut buffer).unwrap_or(0);
        (length > 0).then(|| understand(&buffer[..length]))
    }

    /// Waits until the launcher has become the command (`None`) or has said why not.
    pub(super) async fn started(&self) -> Option<NotStarted> {
        let mut text = Vec::new();
        let heard = match self.receiver() {
            Ok(receiver) => receiver.take(LONGEST_REASON as u64).read_to_end(&mut text).await,
            Err(error) => Err(error),
        };
        match heard {
            Ok(0) => None,
            Ok(_) => Some(understand(&text)),
            Err(error) => Some(cannot(&error)),
        }
    }

    /// False when the pipe ended first.
    async fn arrived(&self) -> bool {
        let mut first = [0; 1];
        let heard = match read(&self.0, &mut first) {
            Err(Errno::EAGAIN) => match self.receiver() {
                Ok(mut receiver) => receiver.read(&mut first).await,
                Err(error) => Err(error),
            },
            other => other.map_err(Into::into),
        };
        heard.is_ok_and(|length| length == 1) && first[0] == ARRIVED
    }

    fn receiver(&self) -> io::Result<pipe::Receiver> {
        pipe::Receiver::from_owned_fd(self.0.try_clone()?)
    }
}

/// A process that waits for the command that it is to become.
#[derive(Debug)]
pub(super) struct Launcher {
    child: Child,
    leader: Pid,
    cgroup: Option<Cgroup>,
    stdin: ChildStdin,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    status: Status,
    /// The launcher opens its own end through this one.
    write_end: OwnedFd,
}

fn cannot(error: &io::Error) -> NotStarted {
    NotStarted::ours(format!("the command could not be started: {error}"))
}

/// What a launcher said: JSON, unless it was longer than anybody listens.
fn understand(said: &[u8]) -> NotStarted {
    serde_json::from_slice(said).unwrap_or_else(|_| NotStarted::ours(String::from_utf8_lossy(said)))
}

impl Launcher {
    pub(super) fn start(cgroups: &Cgroups, outputs: Outputs) -> Result<Self, NotStarted> {
        let cgroup = cgroups.create();
        match spawn(cgroup.as_ref(), outputs) {
            Ok((mut child, status, write_end)) => {
                let leader = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
                // Now: waiting for a child closes its standard input.
                if let (Some(leader), Some(stdin)) = (leader, child.stdin.take()) {
                    return Ok(Self {
                        leader,
                        cgroup,
                        stdin,
                        stdout: child.stdout.take(),
                        stderr: child.stderr.take(),
                        child,
                        status: Status(status),
                        write_end,
                    });
                }
                cgroups.retire(cgroup);
                Err(NotStarted::ours("the command ended before it began"))
            }
            Err(error) => {
                cgroups.retire(cgroup);
                Err(cannot(&error))
            }
        }
    }

    /// False when it has ended, whatever ended it.
    pub(super) fn waits(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Tells it what to become. Comes back when it has its session and cgroup, so that it can be ended from now on.
    pub(super) async fn become_command(mut self, cgroups: &Cgroups, mut order: Order) -> Result<Started, NotStarted> {
        let mark = self.cgroup.is_none().then(|| Uuid::new_v4().simple().to_string());
        order.env.extend(mark.clone().map(|mark| (MARK.to_owned(), mark)));
        let sent = self.tell(&order).await;
        // From now on the pipe ends with the launcher.
        drop(self.write_end);
        match sent {
            Ok(()) => Ok(Started {
                child: self.child,
                tree: ProcessTree {
                    leader: self.leader,
                    cgroup: self.cgroup,
                    mark,
                },
                stdin: self.stdin,
                stdout: self.stdout,
                stderr: self.stderr,
                status: self.status,
            }),
            Err(reason) => {
                drop(self.stdin);
                drop(self.child.wait().await);
                cgroups.retire(self.cgroup);
                Err(reason)
            }
        }
    }

    async fn tell(&mut self, order: &Order) -> Result<(), NotStarted> {
        let order = order.to_bytes().map_err(|error| cannot(&error))?;
        let sent = self.stdin.write_all(&order).await;
        // It may have said why before it had all of the order.
        if sent.as_ref().is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
            return sent.map_err(|error| cannot(&error));
        }
        let arrived = tokio::select! {
            biased;
            arrived = self.status.arrived() => arrived,
            _ = self.child.wait() => false,
        };
        if arrived && sent.is_ok() {
            return Ok(());
        }
        let reason = self.status.reason();
        Err(reason.unwrap_or_else(|| NotStarted::ours("the command could not be started: its launcher ended early")))
    }

    /// One that has ended.
    pub(super) fn forget(self, cgroups: &Cgroups) {
        cgroups.retire(self.cgroup);
    }

    /// One that is not needed: it ends when its pipe is closed and no order can come any more.
    pub(super) async fn end(mut self, cgroups: &Cgroups) {
        drop(self.stdin);
        drop(self.child.wait().await);
        cgroups.retire(self.cgroup);
    }
}

fn spawn(cgroup: Option<&Cgroup>, outputs: Outputs) -> io::Result<(Child, OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hearth-agent").arg("launch");
    let of_ours = format!("/proc/{}/fd/{}", std::process::id(), write_end.as_raw_fd());
    command.arg(format!("--status={of_ours}"));
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup.path());
    }
    command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(outputs.stdout)
        .stderr(outputs.stderr);
    let child = tokio::process::Command::from(command).spawn()?;
    Ok((child, read_end, write_end))
}
