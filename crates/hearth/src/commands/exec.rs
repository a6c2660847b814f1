//! `hearth exec`: run a command in a VM as if it ran here: its bytes come out exactly, piped input goes in, its exit code
//! is ours, and Ctrl-C ends it.

use std::io::{self, IsTerminal as _, Read as _, Write};

use clap::Args;
use futures::StreamExt as _;
use hearth_api::client::{Client, ExecEvent};
use hearth_api::exec::{ExecExit, ExecRequest};
use hearth_api::ids::InstanceId;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::unfinished;
use crate::args::Globals;
use crate::caller_env;
use crate::failure::{EXIT_EXEC_FAILED, EXIT_FAILED, EXIT_SIGNAL_BASE, EXIT_TIMED_OUT, EXIT_USAGE, Failure};
use crate::{connect, output};

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;
/// Most bytes of piped input; it travels inside the request.
const MAX_STDIN_BYTES: u64 = 8 * 1024 * 1024;

const AFTER_HELP: &str = "\
Examples:
  hearth exec wpi_… -- git status
  hearth exec wpi_… --shell 'npm test | tail -5'
  hearth exec wpi_… -- psql < dump.sql

Ends with the command's exit code; 128 + n when signal n ended it, 124 when its time passed, 125 when Hearth failed and
not the command. Ctrl-C ends the command with everything it started. Input that is piped or redirected here goes to the
command, whole, before it starts; in a loop or a script that has other plans for its input say --no-stdin.";

/// `hearth exec`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExecArgs {
    /// The instance's id
    #[arg(value_name = "INSTANCE")]
    id: InstanceId,
    /// Run this text with `bash -c` instead of a program with arguments
    #[arg(long, value_name = "TEXT", conflicts_with = "argv")]
    shell: Option<String>,
    /// Working directory [default: /home]
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    #[command(flatten)]
    options: ExecOptions,
    /// The program and its arguments, run without a shell
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "shell")]
    argv: Vec<String>,
}

/// How a command is run, whatever it is.
#[derive(Debug, Args)]
pub(super) struct ExecOptions {
    /// The user it runs as [default: root]
    #[arg(long)]
    user: Option<String>,
    /// A variable: NAME=VALUE, or NAME to take it from your own environment; may be repeated
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// End the command after this time
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Do not read standard input
    #[arg(long, short = 'n')]
    no_stdin: bool,
}

pub(crate) async fn run(globals: &Globals, args: ExecArgs) -> Result<u8, Failure> {
    let code = async {
        let client = connect::client(globals)?;
        let what = ExecRequest {
            command: args.shell,
            argv: (!args.argv.is_empty()).then_some(args.argv),
            cwd: args.cwd,
            ..ExecRequest::default()
        };
        let code = run_in(globals, &client, &args.id, what, args.options).await;
        unfinished::note(&client, &args.id).await;
        code
    };
    apart_from_the_commands(code.await)
}

/// Runs this in an instance, its bytes passed on; the exit code is the command's own.
pub(super) async fn run_in(
    globals: &Globals,
    client: &Client,
    id: &InstanceId,
    what: ExecRequest,
    options: ExecOptions,
) -> Result<u8, Failure> {
    let env = caller_env::read(&options.env)?;
    let timeout = options.timeout;
    let request = ExecRequest {
        env: (!env.is_empty()).then_some(env),
        user: options.user,
        timeout_seconds: timeout,
        stdin: if options.no_stdin { None } else { piped_input()? },
        ..what
    };
    if globals.json {
        let reply = until_stopped(async { Ok(client.exec(id, &request).await?) }).await?;
        output::print_json(&reply)?;
        let exit = ExecExit {
            exit_code: reply.exit_code,
            signal: reply.signal,
            duration_ms: reply.duration_ms,
            error: None,
        };
        return exit_code(&exit, timeout);
    }
    let exit = until_stopped(stream(client, id, &request)).await?;
    exit_code(&exit, timeout)
}

/// Our own exit codes from 1 to 5 would look like codes of the command.
pub(super) fn apart_from_the_commands(code: Result<u8, Failure>) -> Result<u8, Failure> {
    code.map_err(|failure: Failure| match failure.code() {
        EXIT_FAILED..=5 if failure.code() != EXIT_USAGE => failure.with_code(EXIT_EXEC_FAILED),
        _ => failure,
    })
}

/// Runs it until Ctrl-C or another request to stop; then it is dropped, which closes the connection and so ends the command.
pub(super) async fn until_stopped<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be received: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let stopped_by = tokio::select! {
        done = work => return done,
        _ = interrupt.recv() => Signal::SIGINT,
        _ = terminate.recv() => Signal::SIGTERM,
    };
    Err(Failure::silent(code_of_signal(stopped_by)))
}

/// Passes the output on byte by byte.
async fn stream(client: &Client, id: &InstanceId, request: &ExecRequest) -> Result<ExecExit, Failure> {
    let mut events = client.exec_stream(id, request).await?;
    while let Some(event) = events.next().await {
        match event? {
            ExecEvent::Stdout(bytes) => pass_on(&mut io::stdout().lock(), &bytes)?,
            ExecEvent::Stderr(bytes) => pass_on(&mut io::stderr().lock(), &bytes)?,
            ExecEvent::Exit(exit) => return Ok(exit),
        }
    }
    Err(Failure::new("the server stopped sending before the command ended"))
}

pub(super) fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes)?;
    to.flush()?;
    Ok(())
}

pub(super) fn exit_code(exit: &ExecExit, timeout: Option<u64>) -> Result<u8, Failure> {
    if let Some(error) = &exit.error {
        let timed_out = timeout.is_some_and(|seconds| exit.duration_ms >= seconds.saturating_mul(MS_PER_S));
        let code = if timed_out { EXIT_TIMED_OUT } else { EXIT_EXEC_FAILED };
        return Err(Failure::new(error.clone()).with_code(code));
    }
    if let Some(name) = &exit.signal {
        return Ok(name.parse().map_or(EXIT_EXEC_FAILED, code_of_signal));
    }
    match exit.exit_code.map(u8::try_from) {
        Some(Ok(code)) => Ok(code),
        _ => Err(Failure::new("the server did not say how the command ended").with_code(EXIT_EXEC_FAILED)),
    }
}

fn code_of_signal(signal: Signal) -> u8 {
    EXIT_SIGNAL_BASE.saturating_add(u8::try_from(signal as i32).unwrap_or_default())
}

/// What is piped or redirected into us, whole; nothing when it is a terminal.
fn piped_input() -> Result<Option<String>, Failure> {
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_STDIN_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")).hint("or say --no-stdin"))?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(
            Failure::usage(format!("standard input is longer than {} MiB", MAX_STDIN_BYTES >> 20))
                .hint("put it where the VM can fetch it"),
        );
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::usage("standard input is not UTF-8 text").hint("send it as base64 and decode it inside: `base64 -d`")
    })?;
    Ok((!text.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exit_code: Option<i32>, signal: Option<&str>, error: Option<&str>, duration_ms: u64) -> ExecExit {
        ExecExit {
            exit_code,
            signal: signal.map(str::to_owned),
            duration_ms,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn the_code_is_the_commands_own_where_there_is_one() {
        assert_eq!(exit_code(&exit(Some(7), None, None, 1), None), Ok(7));
        assert_eq!(exit_code(&exit(None, Some("SIGKILL"), None, 1), None), Ok(137));
        assert_eq!(exit_code(&exit(None, Some("SIGTERM"), None, 1), None), Ok(143));
    }

    #[test]
    fn a_timeout_and_a_failure_of_hearth_have_codes_of_their_own() {
        let code = |exit, timeout| exit_code(&exit, timeout).unwrap_err().code();
        assert_eq!(code(exit(None, None, Some("too long"), 2000), Some(2)), EXIT_TIMED_OUT);
        assert_eq!(code(exit(None, None, Some("not found"), 5), Some(2)), EXIT_EXEC_FAILED);
        assert_eq!(code(exit(None, None, None, 5), None), EXIT_EXEC_FAILED);
    }
}
