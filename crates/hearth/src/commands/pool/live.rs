//! `hearth pool watch`: what happens in a pool, each change with what the pool has after it.

use std::time::Duration;

use hearth_api::client::{Client, EventMessage, EventsQuery};
use hearth_api::find::ProjectFound;

use super::show;
use crate::args::Globals;
use crate::commands::events::{Watched, print_event};
use crate::commands::exec::until_stopped;
use crate::failure::Failure;
use crate::output;

/// Events that are shown first: what has just happened.
const LAST: u32 = 10;
/// Changes that come close together are counted once.
const GATHER: Duration = Duration::from_millis(300);

/// Runs until it is stopped. A server that is away for some time is waited for.
pub(super) async fn run(globals: &Globals, client: &Client, project: &ProjectFound) -> Result<u8, Failure> {
    until_stopped(watch(globals, client, project)).await
}

async fn watch(globals: &Globals, client: &Client, project: &ProjectFound) -> Result<u8, Failure> {
    let query = EventsQuery {
        project: Some(project.id.clone()),
        last: Some(LAST),
        follow: true,
        ..EventsQuery::default()
    };
    let mut watched = Watched::new(client.clone(), query);
    let mut shown = String::new();
    loop {
        let mut message = Some(watched.next().await?);
        while let Some(now) = message.take() {
            if let EventMessage::Event(event) = now {
                print_event(globals, &event, false)?;
            }
            if let Ok(next) = tokio::time::timeout(GATHER, watched.next()).await {
                message = Some(next?);
            }
        }
        if !globals.json {
            let counts = show::counts(&client.get_pool(&project.id).await?.status);
            if counts != shown {
                output::print_line(&format!("now {counts}"))?;
                shown = counts;
            }
        }
    }
}
