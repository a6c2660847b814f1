//! A command with a caller: its output streams back, its input streams in, and it does not outlive the caller.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_guest::{ExecEnd, FrameKind};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cgroup::Cgroup;
use super::launch::{Started, Status};
use super::memory::{self, Suspect};
use super::not_started::NotStarted;
use super::plan::Plan;
use super::process_tree::ProcessTree;
use super::{Execs, Input, Output, exited, millis_since, time_is_up};
use crate::logs::Logs;

/// How much is read from a command at once.
const READ_BYTES: usize = 16 * 1024;

/// After a command has ended, a child of it may still hold its output open; this long is waited for more.
pub(super) const AFTERMATH: Duration = Duration::from_millis(150);

/// The most that can still lie in a pipe when that time is up: what Linux lets a command enlarge it to.
const PIPE_BYTES: usize = 1024 * 1024;

/// What ended the wait for a command.
pub(super) enum Outcome {
    Ended(std::io::Result<ExitStatus>),
    TimedOut,
    CallerGone,
}

impl Outcome {
    /// How the caller learns of it. A command that has not ended on its own is ended.
    pub(super) async fn into_end(
        self,
        status: &Status,
        tree: &ProcessTree,
        child: &mut tokio::process::Child,
        start: Instant,
        began: Option<Duration>,
    ) -> ExecEnd {
        match self {
            Self::Ended(Ok(exit)) => match status.reason() {
                Some(fault) => fault.into(),
                None => with_reason(exited(exit, start), tree, began).await,
            },
            Self::Ended(Err(error)) => NotStarted::ours(format!("the command was lost: {error}")).into(),
            Self::TimedOut | Self::CallerGone => {
                let ended = end_all(tree, child).await;
                ExecEnd::TimedOut {
                    duration_ms: millis_since(start),
                    code: ended.and_then(|exit| exit.code()),
                    signal: ended.and_then(|exit| exit.signal()),
                }
            }
        }
    }
}

/// Adds who was killed for memory, to the end of a command that failed.
async fn with_reason(mut end: ExecEnd, tree: &ProcessTree, began: Option<Duration>) -> ExecEnd {
    if let ExecEnd::Exited {
        code, out_of_memory, ..
    } = &mut end
        && *code != Some(0)
    {
        let cgroup = tree.cgroup.as_ref();
        let suspect = Suspect {
            began,
            killed: cgroup.and_then(Cgroup::killed_for_memory),
            group: cgroup.and_then(Cgroup::name_in_log),
        };
        let looking = tokio::task::spawn_blocking(move || memory::killed_of(&suspect));
        *out_of_memory = looking.await.unwrap_or_default();
    }
    end
}

pub(super) async fn run(
    execs: &Execs,
    plan: Plan,
    timeout_ms: Option<u64>,
    input: Input,
    output: Output,
    session: CancellationToken,
) {
    let (start, began) = (Instant::now(), memory::now());
    let _running = execs.pre_started.begin();
    let Plan { order, script } = plan;
    let argv = order.argv.clone();
    let Started {
        mut child,
        tree,
        stdin,
        stdout,
        stderr,
        status,
    } = match execs.start(order).await {
        Ok(started) => started,
        Err(fault) => return output.end(fault.into()).await,
    };
    let (ended_sender, ended) = watch::channel(None);
    let stdin = tokio::spawn(feed(input, stdin));
    let stdout = stdout.map(|pipe| forward(pipe, FrameKind::Stdout, output.clone(), ended.clone()));
    let stderr = stderr.map(|pipe| forward(pipe, FrameKind::Stderr, output.clone(), ended));
    let outputs = tokio::spawn(async move { futures::future::join(maybe(stdout), maybe(stderr)).await });
    let outcome = tokio::select! {
        biased;
        ended = child.wait() => Outcome::Ended(ended),
        () = time_is_up(start, timeout_ms) => Outcome::TimedOut,
        () = output.caller_gone() => Outcome::CallerGone,
        () = session.cancelled() => Outcome::CallerGone,
    };
    let mut end = outcome.into_end(&status, &tree, &mut child, start, began).await;
    ended_sender.send_replace(Some(Instant::now()));
    stdin.abort();
    // A slow reader may still be taking output; one that is gone makes this end at once.
    let (stdout, stderr) = outputs.await.unwrap_or_default();
    if let ExecEnd::Exited { log, .. } = &mut end {
        *log = keep_reading(&execs.logs, &argv, [stdout, stderr]);
    }
    output.end(end).await;
    execs.cgroups.retire(tree.cgroup);
    drop(script);
}

async fn maybe(forwarding: Option<impl Future<Output = Option<File>>>) -> Option<File> {
    forwarding?.await
}

/// What the command left running keeps writing, into a log. Its name, when there is something that could write.
fn keep_reading(logs: &Arc<Logs>, argv: &[String], held: [Option<File>; 2]) -> Option<String> {
    let pipes = held.into_iter().flatten();
    let pipes: Vec<Receiver> = pipes.filter_map(|pipe| Receiver::from_file(pipe).ok()).collect();
    if pipes.is_empty() {
        return None;
    }
    let log = logs.begin(argv, pipes.len());
    for pipe in pipes {
        // Not one of the tasks that the agent waits for when it is asked to end.
        tokio::spawn(Arc::clone(logs).drain(Arc::clone(&log), pipe));
    }
    Some(log.name().to_owned())
}

/// Ends the tree while the leader is reaped: a zombie would look alive to its process group.
/// How the leader ended, where that can be said.
pub(super) async fn end_all(tree: &ProcessTree, child: &mut tokio::process::Child) -> Option<ExitStatus> {
    let (_, status) = tokio::join!(tree.end(), tokio::time::timeout(LONGEST_REAP, child.wait()));
    status.ok()?.ok()
}

/// More than [`ProcessTree::end`] takes. A process that even SIGKILL does not end is stuck in the kernel.
const LONGEST_REAP: Duration = Duration::from_secs(10);

/// Standard input, chunk by chunk: a command that does not read holds back the host, not the agent.
async fn feed(mut input: Input, mut pipe: ChildStdin) {
    // Wrong frames end the input like its end does; when the command no longer reads, the remaining input is of no use.
    while let Ok(Some((FrameKind::Stdin, chunk))) = input.next().await {
        if pipe.write_all(&chunk).await.is_err() {
            break;
        }
    }
}

/// One output, until its end; or until the command has ended and nothing more comes. Then something else holds it open, and it is
/// handed back, so that it is read on.
async fn forward<P>(
    mut pipe: P,
    kind: FrameKind,
    output: Output,
    mut ended: watch::Receiver<Option<Instant>>,
) -> Option<File>
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
            return None;
        }
    }
    // What the command itself wrote is all in the pipe by now, whether or not Tokio has heard of it. What a child of it continues
    // writing after that is for the log.
    let mut pipe = pipe.into_pipe().ok()?;
    let mut rest = PIPE_BYTES;
    while rest > 0 {
        match pipe.read(&mut buffer) {
            Ok(0) => return None,
            Ok(read) => {
                if !output.send(kind, &buffer[..read]).await {
                    return None;
                }
                rest = rest.saturating_sub(read);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(pipe)
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
