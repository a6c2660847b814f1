//! A command in a VM with our standard input as its own, byte by byte as it comes, and our terminal too where that is asked for.

use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use hearth_api::client::{Client, ClientError, ExecEvent, ExecInput, ExecOutput};
use hearth_api::exec::{ExecExit, ExecStart};
use hearth_api::ids::InstanceId;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::shell::size;
use crate::failure::Failure;

/// Most that is read of our input at once.
const READ_BYTES: usize = 32 * 1024;
/// What was read and not sent yet.
const WAITING: usize = 16;

/// Whether something can come from our standard input.
pub(super) fn has_input() -> bool {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        // One in the background would be stopped for reading.
        return tcgetpgrp(stdin.as_fd()).map_or(true, |foreground| foreground == getpgrp());
    }
    let (Ok(ours), Ok(nothing)) = (fstat(stdin.as_fd()), nix::sys::stat::stat("/dev/null")) else {
        // It is closed.
        return false;
    };
    let is_device = SFlag::from_bits_truncate(ours.st_mode).contains(SFlag::S_IFCHR);
    !(is_device && ours.st_rdev == nothing.st_rdev)
}

/// Runs it to its end; everything that it prints goes to `print`. `unfinished` becomes true when its VM is still being made.
pub(super) async fn run(
    client: &Client,
    id: &InstanceId,
    start: &ExecStart,
    unfinished: &AtomicBool,
    print: impl FnMut(ExecEvent) -> Result<(), Failure>,
) -> Result<ExecExit, ClientOrFailure> {
    let (input, output) = client
        .exec_attached(id, start)
        .await
        .map_err(ClientOrFailure::Refused)?;
    unfinished.store(output.is_unfinished(), Ordering::Relaxed);
    let in_terminal = start.terminal.is_some();
    let resized = in_terminal.then(|| signal(SignalKind::window_change())).transpose();
    let resized = resized.map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?;
    tokio::select! {
        exit = shows(output, print) => exit,
        failure = reads(input, resized) => Err(failure.into()),
    }
}

/// Why there is no end: the server did not take the command at all, or something went wrong later.
#[derive(Debug)]
pub(super) enum ClientOrFailure {
    Refused(ClientError),
    Failed(Failure),
}

impl From<Failure> for ClientOrFailure {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ClientOrFailure> for Failure {
    fn from(fault: ClientOrFailure) -> Self {
        match fault {
            ClientOrFailure::Refused(error) => error.into(),
            ClientOrFailure::Failed(failure) => failure,
        }
    }
}

async fn shows(
    mut output: ExecOutput,
    mut print: impl FnMut(ExecEvent) -> Result<(), Failure>,
) -> Result<ExecExit, ClientOrFailure> {
    loop {
        match output.next().await {
            Ok(ExecEvent::Exit(exit)) => return Ok(exit),
            Ok(printed) => print(printed)?,
            Err(error @ ClientError::Interrupted { .. }) => return Err(lost(error).into()),
            Err(refused) => return Err(Failure::from(refused).into()),
        }
    }
}

/// The connection is gone, and with it the command.
fn lost(error: ClientError) -> Failure {
    match error {
        ClientError::Interrupted { url, reason } => Failure::new(format!(
            "the connection to {url} was lost, and the command was ended with it: {reason}"
        ))
        .hint("what it had done until then is done: check before you run it again"),
        other => other.into(),
    }
}

/// Passes on what is read and how large the terminal is; ends only when that fails.
async fn reads(mut input: ExecInput, mut resized: Option<Signal>) -> Failure {
    let (sender, mut read) = mpsc::channel(WAITING);
    // A thread of its own: one that waits for input cannot be stopped, and must not hold the program's end.
    thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        // What cannot be read has ended.
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(Bytes::copy_from_slice(&buffer[..read])).is_err() {
                return;
            }
        }
    });
    let mut more = true;
    loop {
        let sent = tokio::select! {
            bytes = read.recv(), if more => match bytes {
                Some(bytes) => input.bytes(bytes).await,
                None => {
                    more = false;
                    input.end().await
                }
            },
            () = next(&mut resized) => input.resize(size()).await,
        };
        if let Err(error) = sent {
            // A command that has ended reads no more; the other half tells how it did, or that the connection is gone.
            drop(error);
            return std::future::pending().await;
        }
    }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
