//! `hearth exec`: run a command in a VM as if it ran here: its bytes come out exactly, piped input goes in, its exit code
//! is ours, and Ctrl-C ends it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use futures::StreamExt as _;
use hearth_api::client::{Client, ClientError, ExecEvent};
use hearth_api::exec::{ExecExit, ExecReply, ExecRequest, ExecStart};
use hearth_api::ids::InstanceId;
use hearth_api::session::StartSession;
use hearth_api::terminal::TerminalSize;
use hearth_api::values::{CommandText, GuestPath, Name, SessionTag, Word};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::attached::{self, ClientOrFailure};
use super::shell::{Raw, size};
use super::unfinished;
use crate::args::Globals;
use crate::caller_env;
use crate::failure::{EXIT_EXEC_FAILED, EXIT_FAILED, EXIT_SIGNAL_BASE, EXIT_TIMED_OUT, EXIT_USAGE, Failure};
use crate::input::{self, Bound};
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;
/// The exit code for a program that was not found, as shells give it.
const EXIT_NOT_FOUND: u8 = 127;
/// The exit code for a command that cannot be run as asked.
const EXIT_NOT_RUN: u8 = 126;
/// What `--json` keeps of each output.
const MAX_KEPT_BYTES: usize = 8 * 1024 * 1024;
/// Piped input to a server that takes it inside the request only.
const STDIN: Bound = Bound {
    bytes: 8 * 1024 * 1024,
    than: "the 8 MiB that this server takes; put it where the VM can fetch it",
};

const AFTER_HELP: &str = "\
Examples:
  hearth exec wpi_… -- git status
  hearth exec wpi_… --shell 'npm test | tail -5'
  hearth exec wpi_… -- psql < dump.sql
  hearth exec -it wpi_… -- python3
  hearth exec --detach --tag build wpi_… -- make all

Ends with the command's exit code; 128 + n when signal n ended it, 124 when its time passed, 127 when the program was not
found, 126 when it cannot be run as asked (not executable, no such user or folder), 125 when Hearth failed and not the
command. Ctrl-C ends the command with everything it started. Standard input goes to the command as it comes; in a loop or a
script that reads its own input give --no-stdin. What a process prints that the command leaves running: hearth logs.

With --detach the command becomes a session, whose id is printed: it runs on without you, in the VM. See it with hearth ps,
attach, logs, wait and kill. Give -i to leave its input open, -t to run it in a terminal.";

/// `hearth exec`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExecArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// Run this text with `bash -c` instead of a program with arguments
    #[arg(long, value_name = "TEXT", conflicts_with = "argv")]
    shell: Option<CommandText>,
    /// Working directory [default: /home]
    #[arg(long, value_name = "PATH")]
    cwd: Option<GuestPath>,
    #[command(flatten)]
    options: ExecOptions,
    /// Leave it running as a session of the VM, and print the session's id
    #[arg(long, short)]
    detach: bool,
    /// A name for the session
    #[arg(long, requires = "detach")]
    tag: Option<SessionTag>,
    /// The program and its arguments, run without a shell. Options of `hearth` stand before it; `--` may stand between
    #[arg(trailing_var_arg = true, value_name = "COMMAND", required_unless_present = "shell")]
    argv: Vec<Word>,
}

/// How a command is run, whatever it is.
#[derive(Debug, Default, Args)]
pub(super) struct ExecOptions {
    /// The user it runs as [default: root]
    #[arg(long)]
    user: Option<Name>,
    /// A variable: NAME=VALUE, or NAME to take it from your own environment; may be repeated
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// End the command after this time
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Do not read standard input
    #[arg(long, short = 'n')]
    no_stdin: bool,
    /// Pass standard input on. This is always done; the option is there for the habit of `docker exec -it`
    #[arg(long, short, conflicts_with = "no_stdin")]
    interactive: bool,
    /// Run it in a terminal like this one
    #[arg(long, short, conflicts_with = "no_stdin")]
    tty: bool,
}

impl ExecOptions {
    /// The whole command.
    fn complete(self, what: ExecRequest, in_terminal: bool) -> Result<ExecRequest, Failure> {
        let mut env = caller_env::read(&self.env)?;
        if in_terminal && let Ok(term) = std::env::var("TERM") {
            let (name, value) = caller_env::variable("TERM", term)?;
            env.entry(name).or_insert(value);
        }
        Ok(ExecRequest {
            env: (!env.is_empty()).then_some(env),
            user: self.user,
            timeout_seconds: self.timeout,
            ..what
        })
    }

    /// The terminal it is to run in.
    fn terminal(&self) -> Result<Option<TerminalSize>, Failure> {
        if !self.tty {
            return Ok(None);
        }
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            return Ok(Some(size()));
        }
        Err(
            Failure::usage("--tty needs a terminal here, for what is typed and for what is shown")
                .hint("leave --tty (-t) away: input and output are passed on without it too"),
        )
    }
}

pub(crate) async fn run(globals: &Globals, args: ExecArgs) -> Result<u8, Failure> {
    let code = async {
        let client = connect::client(globals)?;
        let id = resolve::instance(&client, &args.id).await?;
        let what = ExecRequest {
            command: args.shell,
            argv: (!args.argv.is_empty()).then_some(args.argv),
            cwd: args.cwd,
            ..ExecRequest::default()
        };
        if args.detach {
            return detach(globals, &client, &id, what, args.options, args.tag).await;
        }
        run_in(globals, &client, &id, what, args.options).await
    };
    apart_from_the_commands(code.await)
}

/// Starts it as a session, and leaves it running.
async fn detach(
    globals: &Globals,
    client: &Client,
    id: &InstanceId,
    what: ExecRequest,
    options: ExecOptions,
    tag: Option<SessionTag>,
) -> Result<u8, Failure> {
    let terminal = options.tty.then(size);
    let body = StartSession {
        tag,
        terminal,
        open_stdin: options.interactive,
        read_only: false,
        release_when_ended: false,
        request: options.complete(what, terminal.is_some())?,
    };
    let session = match client.start_session(id, &body).await {
        Ok(session) => session,
        Err(error) => return Err(not_started(error)),
    };
    if globals.json {
        output::print_json(&session)?;
        return Ok(0);
    }
    output::print_as_it_is(&session.id)?;
    if io::stderr().is_terminal() {
        let follow = hint::command(["logs", id.as_str(), session.id.as_str(), "--follow"]);
        output::note(&format!("it runs in the VM; what it prints: `{follow}`"));
    }
    Ok(0)
}

/// The codes that a shell gives for what cannot be started.
fn not_started(error: ClientError) -> Failure {
    let code = match &error {
        ClientError::Api {
            status: 422,
            message,
            details,
            ..
        } => details.iter().any(|field| field.path == "request").then(|| {
            if message.contains("was not found") {
                EXIT_NOT_FOUND
            } else {
                EXIT_NOT_RUN
            }
        }),
        _ => None,
    };
    let failure = Failure::from(error);
    match code {
        Some(code) => failure.with_code(code),
        None => failure,
    }
}

/// Runs this in an instance, its bytes passed on; the exit code is the command's own.
pub(super) async fn run_in(
    globals: &Globals,
    client: &Client,
    id: &InstanceId,
    what: ExecRequest,
    options: ExecOptions,
) -> Result<u8, Failure> {
    let timeout = options.timeout;
    let terminal = options.terminal()?;
    let streams = terminal.is_some() || (!options.no_stdin && attached::has_input());
    let request = options.complete(what, terminal.is_some())?;
    let unfinished = AtomicBool::new(false);
    let ended = {
        let _raw = terminal.map(|_| Raw::begin()).transpose()?;
        let streams = streams.then_some(terminal);
        until_stopped(run_by(client, id, request, streams, globals.json, &unfinished)).await
    };
    if unfinished.load(Ordering::Relaxed) {
        unfinished::note();
    }
    let (exit, kept) = ended?;
    if let Some(Kept { stdout, stderr, cut }) = kept {
        output::print_json(&ExecReply::new(exit.clone(), stdout, stderr, cut))?;
        return exit_code(&exit, timeout, true);
    }
    if let (Some(log), true) = (&exit.log, io::stderr().is_terminal()) {
        // A closed standard error has no one to talk to.
        let log = clean_line(log);
        let _ = writeln!(
            io::stderr().lock(),
            "it left something running; what that prints from now on: {}",
            hint::command(["logs", id.as_str(), log.as_str()])
        );
    }
    exit_code(&exit, timeout, false)
}

/// What a command printed, for one answer at its end.
#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    cut: bool,
}

impl Kept {
    fn keep(&mut self, event: ExecEvent) {
        let (kept, chunk) = match event {
            ExecEvent::Stdout(chunk) => (&mut self.stdout, chunk),
            ExecEvent::Stderr(chunk) => (&mut self.stderr, chunk),
            ExecEvent::Exit(_) => return,
        };
        let room = MAX_KEPT_BYTES.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(&chunk[..room]);
        self.cut |= room < chunk.len();
    }
}

fn print(event: ExecEvent) -> Result<(), Failure> {
    match event {
        ExecEvent::Stdout(bytes) => pass_on(&mut io::stdout().lock(), &bytes),
        ExecEvent::Stderr(bytes) => pass_on(&mut io::stderr().lock(), &bytes),
        ExecEvent::Exit(_) => Ok(()),
    }
}

/// Runs it with our input streamed to it, in a terminal or without, or with none at all (`streams` is `None`). What it prints is
/// passed on, or kept for one answer. `unfinished` becomes true when its VM is still being made.
async fn run_by(
    client: &Client,
    id: &InstanceId,
    mut request: ExecRequest,
    streams: Option<Option<TerminalSize>>,
    keep: bool,
    unfinished: &AtomicBool,
) -> Result<(ExecExit, Option<Kept>), Failure> {
    let mut kept = keep.then(Kept::default);
    if let Some(terminal) = streams {
        let start = ExecStart { request, terminal };
        let take = |event| match &mut kept {
            Some(kept) => {
                kept.keep(event);
                Ok(())
            }
            None => print(event),
        };
        match attached::run(client, id, &start, unfinished, take).await {
            Ok(exit) => return Ok((exit, kept)),
            // A server that is older than streamed input takes it whole.
            Err(ClientOrFailure::Refused(ClientError::Api { status: 405, .. })) if terminal.is_none() => {}
            Err(fault) => return Err(fault.into()),
        }
        request = ExecRequest {
            stdin: piped_input()?,
            ..start.request
        };
    }
    let mut events = client.exec_stream(id, &request).await?;
    unfinished.store(events.is_unfinished(), Ordering::Relaxed);
    while let Some(event) = events.next().await {
        match (event?, &mut kept) {
            (ExecEvent::Exit(exit), _) => return Ok((exit, kept)),
            (event, Some(kept)) => kept.keep(event),
            (event, None) => print(event)?,
        }
    }
    Err(Failure::new("the server stopped sending before the command ended"))
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

pub(super) fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes)?;
    to.flush()?;
    Ok(())
}

/// The code that stands for this end. A sentence about it is said on standard error, unless it has been printed already.
pub(super) fn exit_code(exit: &ExecExit, timeout: Option<u64>, said: bool) -> Result<u8, Failure> {
    let code = own_code(exit, timeout);
    match &exit.error {
        Some(_) if said => Ok(code),
        Some(error) => {
            // A closed standard error has no one to complain to.
            let _ = write!(io::stderr().lock(), "{}", Failure::new(clean_line(error)));
            Ok(code)
        }
        None if exit.exit_code.is_none() && exit.signal.is_none() => {
            Err(Failure::new("the server did not say how the command ended").with_code(EXIT_EXEC_FAILED))
        }
        None => Ok(code),
    }
}

fn own_code(exit: &ExecExit, timeout: Option<u64>) -> u8 {
    // A server before `timedOut` says it with the sentence and the time alone.
    let unexplained = exit.error.is_some() && exit.exit_code.is_none() && exit.signal.is_none();
    let passed = timeout.is_some_and(|seconds| exit.duration_ms >= seconds.saturating_mul(MS_PER_S));
    if exit.timed_out || (unexplained && passed) {
        return EXIT_TIMED_OUT;
    }
    if let Some(name) = &exit.signal {
        return name.parse().map_or(EXIT_EXEC_FAILED, code_of_signal);
    }
    exit.exit_code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(EXIT_EXEC_FAILED)
}

fn code_of_signal(signal: Signal) -> u8 {
    EXIT_SIGNAL_BASE.saturating_add(u8::try_from(signal as i32).unwrap_or_default())
}

/// What is piped or redirected into us, whole; nothing when it is a terminal.
fn piped_input() -> Result<Option<String>, Failure> {
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let bytes = input::standard_input_bytes(STDIN)?;
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
            ..ExecExit::default()
        }
    }

    #[test]
    fn the_code_is_the_commands_own_where_there_is_one() {
        let code = |exit: &ExecExit| exit_code(exit, None, true);
        assert_eq!(code(&exit(Some(7), None, None, 1)), Ok(7));
        assert_eq!(code(&exit(None, Some("SIGKILL"), None, 1)), Ok(137));
        assert_eq!(code(&exit(None, Some("SIGTERM"), None, 1)), Ok(143));
        assert_eq!(code(&exit(Some(127), None, Some("not found"), 1)), Ok(127));
    }

    #[test]
    fn a_timeout_and_a_failure_of_hearth_have_codes_of_their_own() {
        let code = |exit: ExecExit, timeout| exit_code(&exit, timeout, true).unwrap_or_else(|failure| failure.code());
        let timed_out = ExecExit {
            timed_out: true,
            ..exit(Some(0), None, Some("too long"), 2000)
        };
        assert_eq!(code(timed_out, None), EXIT_TIMED_OUT);
        assert_eq!(code(exit(None, None, Some("too long"), 2000), Some(2)), EXIT_TIMED_OUT);
        assert_eq!(code(exit(None, None, Some("not found"), 5), Some(2)), EXIT_EXEC_FAILED);
        assert_eq!(code(exit(None, None, None, 5), None), EXIT_EXEC_FAILED);
    }
}
