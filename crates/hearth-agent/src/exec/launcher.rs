//! A command's second half: this same binary, started again as `launch` by the server. It enters its own session and cgroup,
//! waits on its standard input for the order, and becomes the command, whose input is whatever follows.
//!
//! It exists because none of this can be done between `fork` and `exec` without unsafe code. It tells the first half over a
//! pipe, found through `/proc`, that it is there, and later why it could not continue; the pipe's end without a message means that
//! the command runs. Nothing of how it was started is left in the command, so it may wait for as long as it likes.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::libc::O_NOCTTY;
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};

use super::not_started::NotStarted;
use super::plan::DEFAULT_PATH;
use crate::priority;

/// First byte on the pipe: the launcher is in its session and cgroup, and holds its own end.
pub(super) const ARRIVED: u8 = b'+';

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The agent's own user when absent.
    pub(super) user: Option<User>,
    pub(super) cwd: String,
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) reads: Reads,
}

/// What the command's standard input is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reads {
    /// What follows the order.
    Caller,
    Nothing,
    /// The device of a terminal, which is all of its outputs too.
    Terminal(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Besides `gid`.
    pub(super) groups: Vec<u32>,
}

impl Order {
    /// Its length, four bytes, and itself.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).map_err(|_| io::Error::from(ErrorKind::ArgumentListTooLong))?;
        Ok([&length.to_be_bytes(), &text[..]].concat())
    }

    /// `None` when the server is gone.
    fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match from.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let length = u64::from(u32::from_be_bytes(length));
        let mut text = Vec::new();
        from.take(length).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

/// Never returns when all goes well.
pub(crate) fn run(arguments: std::env::ArgsOs) -> ExitCode {
    /// What shells answer for a command that cannot be run.
    const NOT_RUN: u8 = 127;
    let (cgroup, mut status) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(reason) => {
            eprintln!("hearth-agent: launch is for the agent itself: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let fault = match wait_for_order(cgroup, &mut status) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(order)) => {
            let Err(fault) = become_command(&order);
            fault
        }
        Err(reason) => NotStarted::ours(reason),
    };
    // Without a reader the answer is not needed. Our own type always has a JSON form.
    drop(status.write_all(&serde_json::to_vec(&fault).unwrap_or_default()));
    ExitCode::from(NOT_RUN)
}

fn parse(arguments: std::env::ArgsOs) -> Result<(Option<PathBuf>, File), String> {
    use lexopt::prelude::*;
    let (mut cgroup, mut status) = (None, None);
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut read = || -> Result<(), lexopt::Error> {
        while let Some(argument) = parser.next()? {
            match argument {
                Long("status") => status = Some(parser.value()?),
                Long("cgroup") => cgroup = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(())
    };
    read().map_err(|error| error.to_string())?;
    let path = status.ok_or("no status")?;
    let status = OpenOptions::new().write(true).open(&path);
    Ok((cgroup, status.map_err(|error| error.to_string())?))
}

fn said(what: &'static str) -> impl Fn(nix::Error) -> String {
    move |error| format!("{what}: {}", error.desc())
}

/// Everything that is the same for every command, and then the order; none when the server ended before it had one.
fn wait_for_order(cgroup: Option<PathBuf>, status: &mut File) -> Result<Option<Order>, String> {
    let prepared = setsid().map(drop).map_err(said("no session of its own"));
    let prepared = prepared.and_then(|()| match cgroup {
        // "0" is who writes. Before the user changes: only root may.
        Some(cgroup) => fs::write(cgroup.join("cgroup.procs"), "0").map_err(|e| format!("no cgroup of its own: {e}")),
        None => Ok(()),
    });
    be_mortal();
    priority::give_up();
    let sent = status.write_all(&[ARRIVED]);
    prepared?;
    sent.map_err(|error| error.to_string())?;
    // Not the standard handle: that would read too much into its buffer.
    let input = rustix::io::dup(rustix::stdio::stdin()).map_err(|error| error.to_string())?;
    Order::read(File::from(input)).map_err(|error| format!("an order that cannot be read: {error}"))
}

/// Takes on everything that makes the command what it is, its program last.
fn become_command(order: &Order) -> Result<Infallible, NotStarted> {
    match &order.reads {
        Reads::Caller => {}
        Reads::Nothing => {
            let empty = File::open("/dev/null").map_err(|error| NotStarted::ours(format!("/dev/null: {error}")))?;
            rustix::stdio::dup2_stdin(&empty).map_err(|error| NotStarted::ours(format!("no input: {error}")))?;
        }
        Reads::Terminal(path) => {
            take_terminal(path, order.user.as_ref())
                .map_err(|error| NotStarted::ours(format!("no terminal: {path}: {error}")))?;
        }
    }
    if let Some(User { uid, gid, groups }) = &order.user {
        // The main group among them, as after a login.
        let all = [*gid].into_iter().chain(groups.iter().copied());
        let groups: Vec<Gid> = all.map(Gid::from_raw).collect();
        let switched = setgroups(&groups)
            .map_err(said("cannot switch to the user's groups"))
            .and_then(|()| setgid(Gid::from_raw(*gid)).map_err(said("cannot switch to the user's group")))
            .and_then(|()| setuid(Uid::from_raw(*uid)).map_err(said("cannot switch to the user")));
        switched.map_err(NotStarted::not_run)?;
    }
    std::env::set_current_dir(&order.cwd).map_err(|error| {
        NotStarted::not_run(match error.kind() {
            ErrorKind::NotFound => format!("the working directory {} does not exist", order.cwd),
            _ => format!("the working directory {} cannot be entered: {error}", order.cwd),
        })
    })?;
    let (program, arguments) = order
        .argv
        .split_first()
        .ok_or_else(|| NotStarted::not_run("no program"))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.envs(order.env.iter().map(|(name, value)| (name, value)));
    let mut error = command.exec();
    if error.kind() == ErrorKind::NotFound && !program.contains('/') {
        // The command's own search path may name folders that do not exist; that does not keep it from being started.
        for folder in DEFAULT_PATH.split(':') {
            let found = Path::new(folder).join(program);
            if found.exists() {
                let mut command = Command::new(found);
                command.arg0(program).args(arguments).env_clear();
                command.envs(order.env.iter().map(|(name, value)| (name, value)));
                error = command.exec();
                break;
            }
        }
    }
    Err(match error.kind() {
        // The kernel says the same of what a program needs to run.
        ErrorKind::NotFound if is_there(program, &order.env) => NotStarted::not_run(format!(
            "the program {program} is there, and the interpreter or loader that it names is not"
        )),
        ErrorKind::NotFound => NotStarted::not_found(format!("the program {program} was not found")),
        ErrorKind::PermissionDenied => NotStarted::not_run(format!("the program {program} may not be run")),
        ErrorKind::ArgumentListTooLong => NotStarted::not_run(
            "the arguments and variables together are longer than Linux allows; pass them in a file or by stdin",
        ),
        _ => NotStarted::not_run(format!("the program {program} cannot be run: {error}")),
    })
}

/// Whether there is a file where a program of this name is looked for.
fn is_there(program: &str, env: &[(String, String)]) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    // The last one counts, as for the command.
    let path = env.iter().rev().find(|(name, _)| name == "PATH");
    path.is_some_and(|(_, path)| path.split(':').any(|folder| Path::new(folder).join(program).exists()))
}

/// The terminal becomes that of our session, and all input and output; it belongs to who runs in it, as after a login.
fn take_terminal(path: &str, user: Option<&User>) -> io::Result<()> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_NOCTTY)
        .open(path)?;
    if let Some(user) = user {
        fchown(&terminal, Some(user.uid), None)?;
    }
    rustix::process::ioctl_tiocsctty(&terminal)?;
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    Ok(())
}

/// The agent's service may be spared when memory runs out; what it runs must not be.
fn be_mortal() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let is_protected = fs::read_to_string(SCORE).is_ok_and(|score| score.starts_with('-'));
    if is_protected {
        // Raising it is always allowed.
        drop(fs::write(SCORE, "0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_ends_where_the_commands_input_begins() {
        let order = Order {
            user: None,
            cwd: "/".to_owned(),
            argv: vec!["a b".to_owned(), "\n\u{1}'".to_owned()],
            env: vec![("A".to_owned(), String::new())],
            reads: Reads::Caller,
        };
        let mut bytes = order.to_bytes().unwrap();
        bytes.extend(b"input");
        let mut from = &bytes[..];
        let read = Order::read(&mut from).unwrap().unwrap();
        assert_eq!((read.argv, read.env, from), (order.argv, order.env, &b"input"[..]));
        assert!(Order::read(&b""[..]).unwrap().is_none());
        assert!(Order::read(&b"\0\0\0\x09{"[..]).is_err());
    }
}
