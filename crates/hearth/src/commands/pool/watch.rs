//! `hearth pool status --watch`: the pool shown again whenever it changes.

use std::io::IsTerminal as _;
use std::time::Duration;

use console::Term;
use hearth_api::client::{Client, ClientError};
use hearth_api::find::ProjectFound;

use super::show;
use crate::args::Globals;
use crate::commands::exec::until_stopped;
use crate::failure::Failure;
use crate::{hint, output};

/// Pause between two checks.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// Runs until it is stopped. A server that is away for some time is waited for.
pub(super) async fn run(globals: &Globals, client: &Client, project: &ProjectFound) -> Result<u8, Failure> {
    until_stopped(watch(globals, client, project)).await
}

async fn watch(globals: &Globals, client: &Client, project: &ProjectFound) -> Result<u8, Failure> {
    let mut shown = String::new();
    let mut is_away = false;
    loop {
        match look(globals, client, project).await {
            Ok(text) => {
                if text != shown || is_away {
                    present(&text)?;
                    shown = text;
                }
                is_away = false;
            }
            Err(Look::Away(reason)) => {
                if !is_away {
                    output::note(&format!("{reason}; looking again every second"));
                }
                is_away = true;
            }
            Err(Look::Failed(failure)) => return Err(failure),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Why there is nothing to show.
enum Look {
    /// It may come back.
    Away(String),
    Failed(Failure),
}

impl From<ClientError> for Look {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } | ClientError::Interrupted { .. } | ClientError::Timeout { .. } => {
                Self::Away(error.to_string())
            }
            error => Self::Failed(error.into()),
        }
    }
}

async fn look(globals: &Globals, client: &Client, project: &ProjectFound) -> Result<String, Look> {
    let view = client.get_pool(&project.id).await?;
    if globals.json {
        // One line for each change: what programs can read while it runs.
        return serde_json::to_string(&view).map_err(|error| Look::Failed(Failure::new(error.to_string())));
    }
    let (view, explained) = show::both(client, project, view).await?;
    Ok(hint::complete(&show::pool(&view, &explained)))
}

/// On a screen in the place of what was there, elsewhere below it.
fn present(text: &str) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        Term::stdout().clear_screen()?;
    }
    output::print_as_it_is(text)
}
