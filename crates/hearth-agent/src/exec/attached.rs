//! A command with a caller: its output streams back, its input streams in, and it does not outlive the caller.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hearth_api::agent::{ExecEnd, FrameKind};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::launch::{Started, Status};
use super::plan::Plan;
use super::process_tree::ProcessTree;
use super::{Execs, Input, Output, exited, millis_since, time_is_up};

/// How much is read from a command at once.
const READ_BYTES: usize = 16 * 1024;

/// After a command has ended, a child of it may still hold its output open; this long is waited for more.
pub(super) const AFTERMATH: Duration = Duration::from_millis(150);

/// The most that can still lie in a pipe when that time is up: what Linux lets a command enlarge it to.
const PIPE_BYTES: usize = 1024 * 1024;

/// What ended the wait for a command.
pub(super) enum Outcome {
    Ended(std::io::Result<std::process::ExitStatus>),
    TimedOut,
    CallerGone,
}

impl Outcome {
    /// How the caller is told. What has not ended by itself is ended.
    pub(super) async fn into_end(
        self,
        status: &Status,
        tree: &ProcessTree,
        child: &mut tokio::process::Child,
        start: Instant,
    ) -> ExecEnd {
        match self {
            Self::Ended(Ok(exit)) => match status.reason() {
                Some(reason) => ExecEnd::NotStarted { reason },
                None => exited(exit, start),
            },
            Self::Ended(Err(error)) => ExecEnd::NotStarted {
                reason: format!("the command was lost: {error}"),
            },
            Self::TimedOut | Self::CallerGone => {
                end_all(tree, child).await;
                ExecEnd::TimedOut {
                    duration_ms: millis_since(start),
                }
            }
        }
    }
}

pub(super) async fn run(
    execs: &Execs,
    plan: Plan,
    timeout_ms: Option<u64>,
    input: Input,
    output: Output,
    session: CancellationToken,
) {
    let start = Instant::now();
    let _running = execs.spares.begin();
    let Plan { order, script } = plan;
    let Started {
        mut child,
        tree,
        stdin,
        stdout,
        stderr,
        status,
    } = match execs.start(order).await {
        Ok(started) => started,
        Err(reason) => return output.end(ExecEnd::NotStarted { reason }).await,
    };
    let (ended_sender, ended) = watch::channel(None);
    let stdin = tokio::spawn(feed(input, stdin));
    let stdout = stdout.map(|pipe| forward(pipe, FrameKind::Stdout, output.clone(), ended.clone()));
    let stderr = stderr.map(|pipe| forward(pipe, FrameKind::Stderr, output.clone(), ended));
    let outputs = tokio::spawn(async move {
        futures::future::join(maybe(stdout), maybe(stderr)).await;
    });
    let outcome = tokio::select! {
        biased;
        ended = child.wait() => Outcome::Ended(ended),
        () = time_is_up(start, timeout_ms) => Outcome::TimedOut,
        () = output.caller_gone() => Outcome::CallerGone,
        () = session.cancelled() => Outcome::CallerGone,
    };
    let end = outcome.into_end(&status, &tree, &mut child, start).await;
    ended_sender.send_replace(Some(Instant::now()));
    stdin.abort();
    // A slow reader may still be taking output; one that is gone makes this end at once.
    drop(outputs.await);
    output.end(end).await;
    execs.cgroups.retire(tree.cgroup);
    drop(script);
}

async fn maybe(forwarding: Option<impl Future<Output = ()>>) {
    if let Some(forwarding) = forwarding {
        forwarding.await;
    }
}

/// Ends the tree while the leader is reaped: a zombie would look alive to its process group.
pub(super) async fn end_all(tree: &ProcessTree, child: &mut tokio::process::Child) {
    let (_, status) = tokio::join!(tree.end(), tokio::time::timeout(LONGEST_REAP, child.wait()));
    drop(status);
}

/// More than [`ProcessTree::end`] takes. A process that even SIGKILL does not end is stuck in the kernel.
const LONGEST_REAP: Duration = Duration::from_secs(10);

/// Standard input, piece by piece: a command that does not read holds back the host, not the agent.
async fn feed(mut input: Input, mut pipe: ChildStdin) {
    // Wrong frames end the input like its end does; a command that no longer reads makes the rest of no use.
    while let Ok(Some((FrameKind::Stdin, piece))) = input.next().await {
        if pipe.write_all(&piece).await.is_err() {
            break;
        }
    }
}

/// One output, until its end; or until the command has ended and nothing more comes.
async fn forward<P>(mut pipe: P, kind: FrameKind, output: Output, mut ended: watch::Receiver<Option<Instant>>)
where
    P: AsyncRead + IntoPipe + Unpin,
{
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            () = aftermath_over(&mut ended) => break,
            read = pipe.read(&mut buffer) => read.unwrap_or(0),
        };
        if read == 0 || !output.send(kind, &buffer[..read]).await {
            return;
        }
    }
    // What the command itself wrote is all in the pipe by now, whether or not Tokio has heard of it. A child of it that
    // goes on writing is cut off after that.
    let Ok(mut pipe) = pipe.into_pipe() else { return };
    let mut rest = PIPE_BYTES;
    while rest > 0 {
        let read = pipe.read(&mut buffer).unwrap_or(0);
        if read == 0 || !output.send(kind, &buffer[..read]).await {
            return;
        }
        rest = rest.saturating_sub(read);
    }
}

/// A child's output as a plain file that never waits.
trait IntoPipe {
    fn into_pipe(self) -> std::io::Result<File>;
}

impl IntoPipe for ChildStdout {
    fn into_pipe(self) -> std::io::Result<File> {
        never_waiting(self.into_owned_fd()?)
    }
}

impl IntoPipe for ChildStderr {
    fn into_pipe(self) -> std::io::Result<File> {
        never_waiting(self.into_owned_fd()?)
    }
}

fn never_waiting(pipe: OwnedFd) -> std::io::Result<File> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(pipe.into())
}

async fn aftermath_over(ended: &mut watch::Receiver<Option<Instant>>) {
    // The sender lives until after it has sent.
    let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| *end);
    if let Some(end) = end {
        tokio::time::sleep_until((end + AFTERMATH).into()).await;
    }
}
