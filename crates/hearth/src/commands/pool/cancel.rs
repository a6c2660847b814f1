//! `hearth pool cancel`: ends one boot.

use std::time::{Duration, Instant};

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::ids::InstanceId;
use hearth_api::instance::{BootEnded, InstanceItem, InstanceStatus};

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

pub(super) const AFTER_HELP: &str = "\
The command that runs is ended, its VM is removed, and the record says who cancelled it. An enabled pool makes another VM: when
its set-up hangs, fix it first, or disable the pool. Of a test boot that has ended, the VM that is kept for 15 minutes goes.";

/// A boot that ended on its own is followed by the one in its place within this time.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two checks for it.
const POLL_PAUSE: Duration = Duration::from_millis(300);

pub(super) async fn run(globals: &Globals, project: &str, id: Option<&str>) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, project).await?;
    let reply = match id {
        Some(text) => {
            let id = resolve::instance_of(&client, &project.id, text).await?;
            match end(&client, &project, &id).await? {
                Some(reply) => reply,
                None => return Err(gone(&client, &project, &id).await),
            }
        }
        None => end_running(&client, &project).await?,
    };
    output::print(globals.json, &reply, |reply| match reply.cancelled {
        true => format!("cancelled {}", reply.id),
        false => format!("{} had ended before ({}); its VM goes", reply.id, reply.status.as_str()),
    })?;
    output::note(&format!(
        "its record and log: {}",
        hint::command(["pool", "instance", project.name.as_str(), reply.id.as_str(), "--log"])
    ));
    Ok(0)
}

/// Ends this one; `None` when it is gone, or is no instance of the project.
async fn end(client: &Client, project: &ProjectFound, id: &InstanceId) -> Result<Option<BootEnded>, Failure> {
    // The path of the project: an id of another one is a mistake that should not end its boot.
    let ended = match client.get_instance(&project.id, id).await {
        Ok(_) => client.end_boot(id).await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends the one boot that is under way. The server may end it between two requests, because the set-up was changed, say:
/// then the one in its place is meant.
async fn end_running(client: &Client, project: &ProjectFound) -> Result<BootEnded, Failure> {
    let mut gone_since = None;
    loop {
        let being_made = client
            .list_instances(&project.id, None, Some(InstanceStatus::Provisioning))
            .await?;
        if let Some(id) = the_only(being_made.items, &project.name)? {
            if let Some(reply) = end(client, project, &id).await? {
                return Ok(reply);
            }
            gone_since.get_or_insert_with(Instant::now);
        }
        if gone_since.is_none_or(|since| since.elapsed() > SUCCESSOR_PATIENCE) {
            let list = hint::command(["pool", "instances", project.name.as_str()]);
            let failure = nothing(client, project, "nothing is being made").await;
            return Err(failure.hint(format!("see `{list}`")));
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// It was there a moment ago, or never.
async fn gone(client: &Client, project: &ProjectFound, id: &InstanceId) -> Failure {
    let what = format!(
        "{} has no instance {id}: its set-up was changed meanwhile and another boot took its place, it was cleared, or it never was there",
        clean_line(&project.name)
    );
    let cancel = hint::command(["pool", "cancel", project.name.as_str()]);
    let failure = nothing(client, project, &what).await;
    failure.hint(format!("without an id, `{cancel}` ends the boot that is under way"))
}

/// There is nothing to end: how the pool is instead.
async fn nothing(client: &Client, project: &ProjectFound, what: &str) -> Failure {
    let mut failure = Failure::new(what);
    if let Ok(explained) = client.explain_pool(&project.id).await {
        failure = failure.detail(format!("the pool: {}", clean_line(&explained.summary)));
        // The renewal of a template is in no list.
        let mut conditions = explained.conditions.iter();
        if let Some(building) = conditions.find(|it| it.status && it.kind == "Building") {
            failure = failure.detail(clean_line(&building.message));
        }
    }
    failure
}

fn the_only(being_made: Vec<InstanceItem>, project: &str) -> Result<Option<InstanceId>, Failure> {
    match being_made.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.id.clone())),
        several => {
            let mut failure = Failure::usage(format!("{} are being made: say which", several.len()));
            for one in several {
                let kind = if one.is_test { "test boot" } else { "for the pool" };
                failure = failure.detail(format!("{} ({kind}, {})", one.id, output::ago(one.created_at)));
            }
            Err(failure.hint(hint::command(["pool", "cancel", project, several[0].id.as_str()])))
        }
    }
}
