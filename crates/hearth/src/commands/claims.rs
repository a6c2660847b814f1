//! `hearth claims`: who has what claimed, and for how long.

use std::time::Duration;

use clap::Args;
use hearth_api::find::ClaimItem;
use hearth_api::page::Items;
use jiff::Timestamp;

use super::instance::{paused_text, trouble};
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output};

/// `hearth claims`.
#[derive(Debug, Args)]
pub(crate) struct ClaimsArgs {
    /// Only of this project (name or id)
    project: Option<String>,
}

pub(crate) async fn run(globals: &Globals, args: ClaimsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = match &args.project {
        Some(text) => Some(connect::project(&client, text).await?.id),
        None => None,
    };
    let claims = client.list_claims(project.as_ref()).await?;
    output::print(globals.json, &claims, list)?;
    if let Some(claim) = claims.items.iter().find(|claim| claim.lease_ends_soon)
        && !globals.json
    {
        let extend = hint::command(["claim", "extend", claim.id.as_str(), "--by", "120"]);
        output::note(&format!("a lease ends soon; later: {extend}"));
    }
    Ok(0)
}

fn list(claims: &Items<ClaimItem>) -> String {
    if claims.items.is_empty() {
        return "nothing is claimed".to_owned();
    }
    let now = Timestamp::now();
    let row = |claim: &ClaimItem| {
        [
            claim.id.to_string(),
            clean_line(&claim.project_name),
            clean_line(claim.task_id.as_deref().unwrap_or("-")),
            clean_line(claim.owner.as_deref().unwrap_or("-")),
            left(claim, now),
            output::duration(length(claim.claimed_at, now)),
            vm(claim),
        ]
    };
    output::table(
        ["Instance", "Project", "Task", "Owner", "Lease left", "Age", "VM"],
        claims.items.iter().map(row),
    )
}

/// What there is to know of its VM.
fn vm(claim: &ClaimItem) -> String {
    match claim.vm_ended_at {
        Some(at) => {
            let why = clean_line(claim.vm_ended_because.as_deref().unwrap_or_default());
            format!("ended {}: {why}; release it", output::ago(at))
        }
        None => {
            let paused = claim
                .paused
                .then(|| paused_text(claim.paused_to_disk, claim.paused_because.as_deref()));
            trouble(claim.unresponsive.as_ref(), paused, claim.rebooted_at).unwrap_or_else(|| "answers".to_owned())
        }
    }
}

fn left(claim: &ClaimItem, now: Timestamp) -> String {
    let end = claim.expires_at;
    if end <= now {
        return "ended".to_owned();
    }
    let soon = if claim.lease_ends_soon { ", ends soon" } else { "" };
    format!("{}{soon}", output::duration(length(now, end)))
}

/// From one time to another; nothing when the clocks disagree.
fn length(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}
