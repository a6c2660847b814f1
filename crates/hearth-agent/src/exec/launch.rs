//! Starting a command, in two halves: the server starts this same binary again as `launch`, and that becomes the command
//! after it has entered its own session, cgroup, user and folder.
//!
//! The second half exists because none of this can be done between `fork` and `exec` without unsafe code. It tells the
//! first half over a pipe, found through `/proc`, why it could not go on; the pipe's end without a word means that the
//! command runs.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Pid, Uid, pipe2, setgid, setgroups, setsid, setuid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use uuid::Uuid;

use super::Execs;
use super::plan::Plan;
use super::process_tree::{MARK, ProcessTree};

/// First byte on the pipe: the launcher is there and holds its own end.
const ARRIVED: u8 = b'+';

/// More than any sentence the launcher says.
const LONGEST_REASON: u64 = 4096;

/// A command that has been started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) tree: ProcessTree,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// Where a command's input and output go.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
}

/// Starts a command; the error is a sentence for a person.
pub(super) async fn start(execs: &Execs, plan: &Plan, streams: Streams) -> Result<Started, String> {
    let cgroup = execs.cgroups.create();
    let mark = cgroup.is_none().then(|| Uuid::new_v4().simple().to_string());
    let started = spawn(
        plan,
        streams,
        cgroup.as_ref().map(super::cgroup::Cgroup::path),
        mark.as_deref(),
    );
    let (mut child, leader, status, write_end) = match started {
        Ok(started) => started,
        Err(reason) => {
            if let Some(cgroup) = cgroup {
                execs.cgroups.retire(cgroup);
            }
            return Err(reason);
        }
    };
    // Now: waiting for a child closes its standard input.
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    match hear(&mut child, status, write_end).await {
        None => {
            let tree = ProcessTree { leader, cgroup, mark };
            Ok(Started {
                child,
                tree,
                stdin,
                stdout,
                stderr,
            })
        }
        Some(reason) => {
            // It says so as its last act.
            drop(child.wait().await);
            if let Some(cgroup) = cgroup {
                execs.cgroups.retire(cgroup);
            }
            Err(reason)
        }
    }
}

fn spawn(
    plan: &Plan,
    streams: Streams,
    cgroup: Option<&std::path::Path>,
    mark: Option<&str>,
) -> Result<(Child, Pid, pipe::Receiver, OwnedFd), String> {
    let cannot = |error: &std::io::Error| format!("the command could not be started: {error}");
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|error| cannot(&error.into()))?;
    let status = pipe::Receiver::from_owned_fd(read_end).map_err(|error| cannot(&error))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hearth-agent").arg("launch");
    command.arg(format!(
        "--status=/proc/{}/fd/{}",
        std::process::id(),
        write_end.as_raw_fd()
    ));
    if let Some(path) = cgroup {
        command.arg("--cgroup").arg(path);
    }
    if plan.switch_user {
        let groups: Vec<String> = plan.identity.groups.iter().map(u32::to_string).collect();
        command
            .arg(format!("--uid={}", plan.identity.uid))
            .arg(format!("--gid={}", plan.identity.gid));
        command.arg(format!("--groups={}", groups.join(",")));
    }
    command.arg(format!("--cwd={}", plan.cwd)).arg("--").args(&plan.argv);
    command
        .env_clear()
        .envs(plan.env.iter().map(|(name, value)| (name, value)));
    if let Some(mark) = mark {
        command.env(MARK, mark);
    }
    command
        .stdin(streams.stdin)
        .stdout(streams.stdout)
        .stderr(streams.stderr);
    let child = tokio::process::Command::from(command)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::ArgumentListTooLong => {
                "the arguments and variables together are longer than Linux allows; pass them in a file or by stdin"
                    .into()
            }
            _ => cannot(&error),
        })?;
    let leader = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let leader = leader.ok_or_else(|| "the command ended before it began".to_owned())?;
    Ok((child, leader, status, write_end))
}

/// Waits until the launcher has become the command (`None`) or has said why not.
async fn hear(child: &mut Child, mut status: pipe::Receiver, write_end: OwnedFd) -> Option<String> {
    let mut first = [0; 1];
    let arrived = tokio::select! {
        biased;
        read = status.read(&mut first) => read.is_ok_and(|read| read == 1) && first[0] == ARRIVED,
        _ = child.wait() => false,
    };
    drop(write_end);
    if !arrived {
        return Some("the command could not be started: its launcher ended early".to_owned());
    }
    let mut reason = String::new();
    match status.take(LONGEST_REASON).read_to_string(&mut reason).await {
        Ok(0) => None,
        Ok(_) => Some(reason),
        Err(error) => Some(format!("the command could not be started: {error}")),
    }
}

/// The second half: never returns when all goes well.
pub(crate) fn run_launcher(arguments: std::env::ArgsOs) -> ExitCode {
    /// What shells answer for a command that cannot be run.
    const NOT_RUN: u8 = 127;
    let (mut status, reason) = match parse(arguments) {
        Ok((order, status)) => {
            let Err(reason) = become_command(&order);
            (status, reason)
        }
        Err(reason) => {
            eprintln!("hearth-agent: launch is for the agent itself: {reason}");
            return ExitCode::FAILURE;
        }
    };
    // Without a reader nobody wants to know.
    drop(status.write_all(reason.as_bytes()));
    ExitCode::from(NOT_RUN)
}

#[derive(Debug, Default)]
struct Order {
    cgroup: Option<PathBuf>,
    uid: Option<u32>,
    gid: u32,
    groups: Vec<u32>,
    cwd: PathBuf,
    argv: Vec<std::ffi::OsString>,
}

fn parse(arguments: std::env::ArgsOs) -> Result<(Order, File), String> {
    use lexopt::prelude::*;
    let mut order = Order::default();
    let mut status = None;
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut read = || -> Result<(), lexopt::Error> {
        while let Some(argument) = parser.next()? {
            match argument {
                Long("status") => status = Some(parser.value()?),
                Long("cgroup") => order.cgroup = Some(parser.value()?.into()),
                Long("uid") => order.uid = Some(parser.value()?.parse()?),
                Long("gid") => order.gid = parser.value()?.parse()?,
                Long("groups") => {
                    let text = parser.value()?.string()?;
                    let groups = text.split(',').filter(|group| !group.is_empty()).map(str::parse);
                    order.groups = groups.collect::<Result<_, _>>().map_err(|_| "bad groups")?;
                }
                Long("cwd") => order.cwd = parser.value()?.into(),
                Value(program) => {
                    order.argv.push(program);
                    order.argv.extend(parser.raw_args()?);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(())
    };
    read().map_err(|error| error.to_string())?;
    let path = status.ok_or("no status")?;
    let mut status = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(|error| error.to_string())?;
    status.write_all(&[ARRIVED]).map_err(|error| error.to_string())?;
    Ok((order, status))
}

/// Takes on everything that makes the command what it is, its program last.
fn become_command(order: &Order) -> Result<Infallible, String> {
    let said = |what: &'static str| move |error: nix::Error| format!("{what}: {}", error.desc());
    setsid().map_err(said("no session of its own"))?;
    if let Some(cgroup) = &order.cgroup {
        // "0" is who writes. Before the user changes: only root may.
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| format!("no cgroup of its own: {error}"))?;
    }
    be_mortal();
    if let Some(uid) = order.uid {
        // The main group among them, as after a login.
        let groups: Vec<Gid> = [order.gid]
            .iter()
            .chain(&order.groups)
            .copied()
            .map(Gid::from_raw)
            .collect();
        setgroups(&groups).map_err(said("cannot switch to the user's groups"))?;
        setgid(Gid::from_raw(order.gid)).map_err(said("cannot switch to the user's group"))?;
        setuid(Uid::from_raw(uid)).map_err(said("cannot switch to the user"))?;
    }
    std::env::set_current_dir(&order.cwd).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("the working directory {} does not exist", order.cwd.display()),
        _ => format!(
            "the working directory {} cannot be entered: {error}",
            order.cwd.display()
        ),
    })?;
    let (program, arguments) = order.argv.split_first().ok_or("no program")?;
    let error = Command::new(program).args(arguments).exec();
    Err(match error.kind() {
        std::io::ErrorKind::NotFound => format!("the program {} was not found", program.display()),
        std::io::ErrorKind::PermissionDenied => format!("the program {} may not be run", program.display()),
        _ => format!("the program {} cannot be run: {error}", program.display()),
    })
}

/// The agent's service may be spared when memory runs out; what it runs must not be.
fn be_mortal() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let spared = fs::read_to_string(SCORE).is_ok_and(|score| score.starts_with('-'));
    if spared {
        // Raising it is always allowed.
        drop(fs::write(SCORE, "0"));
    }
}
