//! `hearth kill`: a signal for a session.

use clap::Args;
use hearth_api::session::SendSignal;
use hearth_api::values::SignalName;

use super::{SESSION_HELP, find};
use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth kill last build
  hearth kill wpi_… s-1f0c9a3e -s KILL
  hearth kill wpi_… dev -s HUP --first

The signal goes to every process of the session. With --first it goes to the first process alone, which may end the others
by itself, or leave them running.";

/// `hearth kill`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct KillArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    #[arg(value_name = "SESSION", help = SESSION_HELP)]
    session: String,
    /// The signal's name or number
    #[arg(long, short, default_value = "TERM", value_parser = name)]
    signal: SignalName,
    /// To the first process alone
    #[arg(long)]
    first: bool,
}

/// Also in small letters, as `kill` takes it.
fn name(text: &str) -> Result<SignalName, hearth_api::values::Invalid> {
    text.to_uppercase().parse()
}

pub(crate) async fn run(globals: &Globals, args: KillArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let session = find(&client, &id, &args.session).await?;
    let body = SendSignal {
        signal: args.signal,
        tree: !args.first,
    };
    let sent = client.signal_session(&id, &session.id, &body).await?;
    output::print(globals.json, &sent, |sent| {
        let count = match sent.processes {
            1 => "1 process".to_owned(),
            many => format!("{many} processes"),
        };
        format!("{} sent to {count} of the session {}", body.signal, sent.id)
    })?;
    Ok(0)
}
