//! `hearth shell`: a terminal in a VM, as large as ours and as if it were ours.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _};
use std::thread;

use clap::Args;
use console::Term;
use hearth_api::client::{Client, ClientError, Screen, Shown, TerminalRequest, Typing};
use hearth_api::exec::{ExecExit, ExecRequest};
use hearth_api::ids::InstanceId;
use hearth_api::instance::InstanceStatus;
use hearth_api::session::{Session, StartSession};
use hearth_api::terminal::TerminalSize;
use hearth_api::values::{GuestPath, Invalid, Name, SessionTag, Word};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::exec::{apart_from_the_commands, exit_code, pass_on, until_stopped};
use super::session::attach::{AttachAs, attach};
use super::unfinished;
use crate::args::Globals;
use crate::failure::Failure;
use crate::lease_warning::Meanwhile;
use crate::{caller_env, connect, hint, lease_warning, resolve};

/// Most that is read of what is typed at once.
const READ_BYTES: usize = 4096;
/// What was typed and not sent yet.
const WAITING: usize = 16;

const AFTER_HELP: &str = "\
Examples:
  hearth shell wpi_…
  hearth shell wpi_… --user dev --cwd /home/app
  hearth shell wpi_… --session work

Works in a claimed VM, and for an admin in a ready one, one that is being made, or a failed one that was kept. `exit` or Ctrl-D ends it, with the shell's
own exit code. `~.` at the beginning of a line, or closing the window, ends it with everything that runs in it; `~~` types a tilde.
When the connection is cut, it is made again for two minutes, to the same shell. For a single command: hearth exec.

With --session it is a session of this name (hearth ps), made when none runs: `~.`, a closed window or a cut connection
leaves it running, and the same command comes back to it. In a VM that nobody has claimed a cut connection ends the shell.";

/// `hearth shell`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ShellArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The user who works in it [default: root]
    #[arg(long)]
    user: Option<String>,
    /// Working directory [default: /home]
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// Work in the session of this name, which stays when you leave
    #[arg(long, value_name = "NAME")]
    session: Option<SessionTag>,
}

/// Attaches to the session of this name, or starts one.
async fn work_in_session(
    globals: &Globals,
    client: &Client,
    id: &InstanceId,
    tag: SessionTag,
    args: ShellArgs,
) -> Result<u8, Failure> {
    let running = |session: &Session| session.is_running() && session.tag.as_deref() == Some(tag.as_str());
    let session = match client.list_sessions(id).await?.into_iter().find(running) {
        Some(session) => session,
        None => start(client, id, Some(tag), args).await?,
    };
    attach(globals, client, id, &session, AttachAs::default()).await
}

/// Starts a shell in a session.
async fn start(client: &Client, id: &InstanceId, tag: Option<SessionTag>, args: ShellArgs) -> Result<Session, Failure> {
    let word = |text: &str| text.parse::<Word>().map_err(|error| Failure::usage(error.to_string()));
    let mut env = BTreeMap::new();
    if let Some(term) = std::env::var("TERM").ok().filter(|term| !term.is_empty()) {
        let (name, value) = caller_env::variable("TERM", term)?;
        env.insert(name, value);
    }
    let request = ExecRequest {
        argv: Some(vec![word("bash")?, word("-l")?]),
        cwd: args
            .cwd
            .map(|cwd| cwd.parse::<GuestPath>())
            .transpose()
            .map_err(invalid("--cwd"))?,
        user: args
            .user
            .map(|user| user.parse::<Name>())
            .transpose()
            .map_err(invalid("--user"))?,
        env: Some(env),
        ..ExecRequest::default()
    };
    let body = StartSession {
        request,
        tag,
        terminal: Some(size()),
        open_stdin: false,
        read_only: false,
        release_when_ended: false,
    };
    Ok(client.start_session(id, &body).await?)
}

/// Whether somebody has claimed it. What runs on in a VM that nobody has could become part of a template.
async fn is_claimed(client: &Client, id: &InstanceId) -> bool {
    // One that cannot be looked at says why when the terminal is opened.
    let view = client.view_instance(id).await;
    view.is_ok_and(|view| view.status == InstanceStatus::Claimed)
}

fn invalid(option: &'static str) -> impl Fn(Invalid) -> Failure {
    move |error| Failure::usage(format!("{option}: {error}"))
}

pub(crate) async fn run(globals: &Globals, args: ShellArgs) -> Result<u8, Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let failure = Failure::usage("a shell needs a terminal, for what is typed and for what is shown");
        return Err(failure.hint(format!(
            "without one: {} -- bash -c …",
            hint::command(["exec", args.id.as_str()])
        )));
    }
    let code = async {
        let client = connect::client(globals)?;
        let id = resolve::instance(&client, &args.id).await?;
        if let Some(tag) = args.session.clone() {
            return work_in_session(globals, &client, &id, tag, args).await;
        }
        if is_claimed(&client, &id).await {
            let session = start(&client, &id, None, args).await?;
            let how = AttachAs {
                ends_when_left: true,
                ..AttachAs::default()
            };
            return attach(globals, &client, &id, &session, how).await;
        }
        let wanted = TerminalRequest {
            size: size(),
            term: std::env::var("TERM").ok().filter(|term| !term.is_empty()),
            user: args.user,
            cwd: args.cwd,
        };
        let (typing, screen) = client.terminal(&id, &wanted).await?;
        if screen.is_unfinished() {
            unfinished::note();
        }
        let _warning = lease_warning::watch(&client, &id, Meanwhile::Renews);
        let exit = {
            let _raw = Raw::begin()?;
            until_stopped(work(typing, screen)).await?
        };
        exit_code(&exit, None, false)
    };
    apart_from_the_commands(code.await)
}

pub(super) fn size() -> TerminalSize {
    let (rows, cols) = Term::stdout().size();
    let size = TerminalSize { rows, cols };
    if size.is_possible() {
        size
    } else {
        TerminalSize::default()
    }
}

/// Our terminal passes on every key as it is, until this is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn begin() -> Result<Self, Failure> {
        let failed = |error| Failure::new(format!("the terminal cannot be prepared: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

async fn work(typing: Typing, mut screen: Screen) -> Result<ExecExit, Failure> {
    let shows = async {
        loop {
            match screen.next().await.map_err(lost)? {
                Shown::Bytes(bytes) => pass_on(&mut io::stdout().lock(), &bytes)?,
                Shown::Exit(exit) => return Ok(exit),
            }
        }
    };
    tokio::select! {
        exit = shows => exit,
        failure = types(typing) => Err(failure),
    }
}

/// The connection is gone, and with it what ran in the terminal.
fn lost(error: ClientError) -> Failure {
    match error {
        ClientError::Interrupted { url, reason } => Failure::new(format!(
            "the connection to {url} was lost, and what ran in the terminal was ended: {reason}"
        ))
        .hint("the VM itself is not touched by that: open another shell"),
        other => other.into(),
    }
}

/// Passes on what is typed and how large the terminal is; ends only when that fails.
async fn types(mut typing: Typing) -> Failure {
    let (sender, mut typed) = mpsc::channel(WAITING);
    // A thread of its own: one that waits for a key cannot be stopped, and must not hold the program's end.
    thread::spawn(move || {
        let mut buffer = [0; READ_BYTES];
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender
                .blocking_send(bytes::Bytes::copy_from_slice(&buffer[..read]))
                .is_err()
            {
                return;
            }
        }
    });
    let mut resized = match signal(SignalKind::window_change()) {
        Ok(resized) => resized,
        Err(error) => return Failure::new(format!("signals cannot be received: {error}")),
    };
    let mut types = true;
    loop {
        let sent = tokio::select! {
            bytes = typed.recv(), if types => match bytes {
                Some(bytes) => typing.bytes(bytes).await,
                None => {
                    // Our terminal is gone; what it showed last is still to come.
                    types = false;
                    Ok(())
                }
            },
            _ = resized.recv() => typing.resize(size()).await,
        };
        if let Err(error) = sent {
            // What has ended takes no more keys; the other half tells how it did, or that the connection is gone.
            drop(error);
            return std::future::pending().await;
        }
    }
}
