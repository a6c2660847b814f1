//! `hearth wait`: until a session has ended.

use clap::Args;
use tokio::time::Instant;

use super::super::exec::{apart_from_the_commands, exit_code, until_stopped};
use super::{SESSION_HELP, find, say};
use crate::args::Globals;
use crate::failure::{EXIT_TIMED_OUT, Failure};
use crate::{connect, output, resolve};

/// One request waits this long at most, so that proxies keep its connection.
const ONE_WAIT_SECONDS: u64 = 30;

const AFTER_HELP: &str = "\
Examples:
  hearth wait last build
  hearth wait wpi_… s-1f0c9a3e --timeout 600

Ends with the session's exit code, as `hearth exec` does; 124 when it still runs after --timeout.";

/// `hearth wait`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct WaitArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    #[arg(value_name = "SESSION", help = SESSION_HELP)]
    session: String,
    /// Wait at most so long; the session is not touched
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) async fn run(globals: &Globals, args: WaitArgs) -> Result<u8, Failure> {
    apart_from_the_commands(until_stopped(wait(globals, args)).await)
}

async fn wait(globals: &Globals, args: WaitArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let mut session = find(&client, &id, &args.session).await?;
    let begun = Instant::now();
    loop {
        let left = args
            .timeout
            .map(|limit| limit.saturating_sub(begun.elapsed().as_secs()));
        if !session.is_running() || left == Some(0) {
            break;
        }
        let seconds = left.unwrap_or(ONE_WAIT_SECONDS).min(ONE_WAIT_SECONDS);
        session = client.wait_session(&id, &session.id, Some(seconds)).await?;
    }
    if globals.json {
        output::print_json(&session)?;
    }
    match &session.exit {
        Some(exit) => exit_code(exit, None, globals.json),
        None => {
            say(&format!("the session {} still runs", session.id));
            Ok(EXIT_TIMED_OUT)
        }
    }
}
