//! `hearth pool cancel`: ends one boot.

use hearth_api::ids::InstanceId;
use hearth_api::instance::{InstanceItem, InstanceStatus};

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, hint, output, resolve};

pub(super) const AFTER_HELP: &str = "\
The command that runs is ended, its VM is removed, and the record says who cancelled it. An enabled pool makes another VM: when
its set-up hangs, mend it first, or disable the pool. Of a test boot that has ended, the VM that is kept for 15 minutes goes.";

pub(super) async fn run(globals: &Globals, project: &str, id: Option<&str>) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, project).await?;
    let id = match id {
        Some(text) => resolve::instance_of(&client, &project.id, text).await?,
        None => {
            let being_made = client
                .list_instances(&project.id, None, Some(InstanceStatus::Provisioning))
                .await?;
            the_only(being_made.items, &project.name)?
        }
    };
    // The path of the project: an id of another one is a mistake that should not end its boot.
    client.get_instance(&project.id, &id).await?;
    let reply = client.end_boot(&id).await?;
    output::print(globals.json, &reply, |reply| match reply.cancelled {
        true => format!("cancelled {}", reply.id),
        false => format!("{} had ended before ({}); its VM goes", reply.id, reply.status.as_str()),
    })?;
    output::note(&format!(
        "its record and log: {}",
        hint::command(["pool", "instance", project.name.as_str(), id.as_str(), "--log"])
    ));
    Ok(0)
}

fn the_only(being_made: Vec<InstanceItem>, project: &str) -> Result<InstanceId, Failure> {
    match being_made.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => Err(Failure::new("nothing is being made")
            .hint(format!("see `{}`", hint::command(["pool", "instances", project])))),
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
