//! Before a project is deleted: whether its VMs are still claimed.

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::instance::InstanceStatus;

use crate::commands::really::really;
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
    really(&harm)
}
