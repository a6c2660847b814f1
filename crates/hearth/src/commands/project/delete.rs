//! Before a project is deleted: whether its VMs are still claimed.

use std::io::{self, IsTerminal as _};

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::instance::InstanceStatus;

use crate::failure::Failure;
use crate::output;

/// The longest list that the server gives.
const MOST_LISTED: u32 = 50;

/// Nothing when no VM of the project is claimed; otherwise asks at the terminal, and refuses where there is none.
pub(super) async fn confirm(client: &Client, project: &ProjectFound) -> Result<(), Failure> {
    let claimed = client
        .list_instances(&project.id, Some(MOST_LISTED), Some(InstanceStatus::Claimed))
        .await?;
    let count = claimed.items.len() as u64;
    if count == 0 {
        return Ok(());
    }
    let at_least = if count == u64::from(MOST_LISTED) {
        "at least "
    } else {
        ""
    };
    let harm = format!(
        "deleting {} destroys {at_least}{} with the work in it",
        project.name,
        output::count(count, "claimed VM")
    );
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::usage(harm).hint("if that is meant, say --yes"));
    }
    output::note(&format!("{harm}; type yes to continue:"));
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new("nothing was deleted"))
}
