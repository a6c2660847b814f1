//! `hearth attach`: a session in this terminal, or its output here and our input there.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use hearth_api::client::{AttachOptions, Client};
use hearth_api::ids::InstanceId;
use hearth_api::session::{ReadUntil, SendSignal, Session};
use hearth_api::values::SignalName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::super::attached::has_input;
use super::super::exec::{apart_from_the_commands, exit_code, until_stopped};
use super::super::shell::Raw;
use super::follow::{Mode, Over, follow};
use super::{SESSION_HELP, find, say};
use crate::args::Globals;
use crate::failure::Failure;
use crate::lease_warning::Meanwhile;
use crate::{connect, hint, lease_warning, output, resolve};

/// Of a terminal this much of what it showed before is shown: several screens.
const SCREENS_BYTES: u64 = 64 * 1024;

const AFTER_HELP: &str = "\
Examples:
  hearth attach last build
  hearth attach wpi_… dev
  echo 'select 1;' | hearth attach wpi_… psql

What the session printed before comes first, as far as it is kept. Several may be attached at once. One that runs in a
terminal takes the size of yours; `~.` at the beginning of a line leaves it running, `~~` types a tilde. One without a
terminal takes what is piped in, and the end of that is the end of its input; Ctrl-C leaves it running. When the connection
is cut, it is made again for two minutes, and continues where it was. Ends with the session's exit code.";

/// `hearth attach`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct AttachArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    #[arg(value_name = "SESSION", help = SESSION_HELP)]
    session: String,
    /// Do not read standard input
    #[arg(long, short = 'n')]
    no_stdin: bool,
    /// Let the command wait where it prints faster than this takes; else what is not taken in time is dropped, and that is said
    #[arg(long)]
    lossless: bool,
}

pub(crate) async fn run(globals: &Globals, args: AttachArgs) -> Result<u8, Failure> {
    let code = async {
        let client = connect::client(globals)?;
        let id = resolve::instance(&client, &args.id).await?;
        let session = find(&client, &id, &args.session).await?;
        let how = AttachAs {
            input: !args.no_stdin,
            lossless: args.lossless,
            ends_when_left: false,
        };
        attach(globals, &client, &id, &session, how).await
    };
    apart_from_the_commands(code.await)
}

/// How a session is attached to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttachAs {
    /// What is typed or piped in here goes to it.
    pub(crate) input: bool,
    /// It waits where it prints faster than this takes.
    pub(crate) lossless: bool,
    /// It is this person's shell: it ends with its client, and leaves no record.
    pub(crate) ends_when_left: bool,
}

impl Default for AttachAs {
    fn default() -> Self {
        Self {
            input: true,
            lossless: false,
            ends_when_left: false,
        }
    }
}

/// How long what runs in a shell has to end by itself once it is left, seconds.
const HANG_UP_SECONDS: u64 = 1;
/// All of ending a shell may take so long: its client is to be gone.
const ENDING: Duration = Duration::from_secs(5);

/// Hangs up, and kills what does not end by that; the record goes too.
async fn end(client: &Client, id: &InstanceId, session: &str) -> Result<(), Failure> {
    for signal in ["HUP", "KILL"] {
        let signal = signal.parse::<SignalName>();
        let signal = signal.map_err(|error| Failure::new(error.to_string()))?;
        let body = SendSignal { signal, tree: true };
        client.signal_session(id, session, &body).await?;
        let seen = client.wait_session(id, session, Some(HANG_UP_SECONDS)).await?;
        if !seen.is_running() {
            break;
        }
    }
    client.remove_session(id, session).await?;
    Ok(())
}

/// The window is closed. What the shell was told to ignore stays ignored.
async fn hung_up() {
    match signal(SignalKind::hangup()) {
        Ok(mut hang_up) => drop(hang_up.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// The same for a session that is known.
pub(crate) async fn attach(
    globals: &Globals,
    client: &Client,
    id: &InstanceId,
    session: &Session,
    how: AttachAs,
) -> Result<u8, Failure> {
    let AttachAs {
        input,
        lossless,
        ends_when_left,
    } = how;
    let here = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mode = match session.terminal {
        Some(_) if here && input => Mode::Terminal,
        _ if input && session.stdin_open && session.terminal.is_none() && has_input() => Mode::Pipe,
        _ => Mode::Read,
    };
    let options = AttachOptions {
        from: 0,
        last: session.terminal.map(|_| SCREENS_BYTES),
        until: ReadUntil::Ended,
        lossless,
    };
    let _warning = lease_warning::watch(client, id, Meanwhile::Renews);
    let over = {
        let _raw = (mode == Mode::Terminal).then(Raw::begin).transpose()?;
        until_stopped(async {
            tokio::select! {
                over = follow(client, id, session, options, mode) => over,
                () = hung_up(), if ends_when_left => Ok(Over::Left),
            }
        })
        .await
    };
    let ended = match &over {
        Ok(Over::Ended(_)) if ends_when_left => {
            // It is told what it ended with; a record that stays is no loss.
            drop(timeout(ENDING, client.remove_session(id, &session.id)).await);
            true
        }
        Ok(Over::Left) | Err(_) if ends_when_left => {
            matches!(timeout(ENDING, end(client, id, &session.id)).await, Ok(Ok(())))
        }
        _ => false,
    };
    let again = || hint::command(["attach", id.as_str(), session.id.as_str()]);
    match over {
        Ok(Over::Ended(session)) => {
            if globals.json {
                output::print_json(&session)?;
            }
            match &session.exit {
                Some(exit) => exit_code(exit, None, globals.json),
                None => Err(Failure::new("the server did not say how the session ended")),
            }
        }
        Ok(Over::Left) if ended => {
            say("\nthe shell was ended, and what ran in it");
            Ok(0)
        }
        Ok(Over::Left) => {
            say(&format!("\nthe session {} runs on; `{}`", session.id, again()));
            Ok(0)
        }
        Err(failure) => {
            // Ctrl-C, or an error that is said.
            if !ended && io::stderr().is_terminal() {
                say(&format!("the session {} was not ended; `{}`", session.id, again()));
            }
            Err(failure)
        }
    }
}
