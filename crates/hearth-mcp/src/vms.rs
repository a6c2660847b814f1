//! VMs for tasks: claimed, copied, saved, restored, given back.

use hearth_api::claim::{ClaimReply, ClaimRequest};
use hearth_api::client::Client;
use hearth_api::fork::{CheckpointRequest, ForkRequest, RestoreRequest};
use hearth_api::ids::InstanceId;
use hearth_api::values::{Branch, CheckpointName, TaskId};

use crate::arguments::{Claim, Fork, Release};
use crate::find;
use crate::refusal::Refusal;
use crate::run::{DEFAULT_WAIT_SECONDS, value, wait};

/// Commands with a name that are shown.
const MOST_COMMANDS: usize = 20;
/// What is shown of a commit.
const SHORT_COMMIT: usize = 10;

pub(crate) async fn claim(client: &Client, arguments: Claim) -> Result<String, Refusal> {
    let project = find::project(client, &arguments.project).await?;
    let checkpoint = arguments
        .checkpoint
        .map(|name| value::<CheckpointName>("checkpoint", name));
    let branch = arguments.branch.map(|branch| value::<Branch>("branch", branch));
    let mut body = ClaimRequest {
        task_id: Some(value::<TaskId>("task_id", arguments.task_id)?),
        branch: branch.transpose()?,
        checkpoint: checkpoint.transpose()?,
        ttl_minutes: arguments.ttl_minutes,
        ..ClaimRequest::default()
    };
    if body.checkpoint.is_none() {
        let patience = wait(arguments.wait_seconds, DEFAULT_WAIT_SECONDS);
        body.wait_ms = Some(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
    }
    let reply = client.claim(&project.id, &body).await?;
    let mut text = claimed(&reply);
    text.push_str(&named_commands(client, &reply.id).await);
    Ok(text)
}

fn claimed(reply: &ClaimReply) -> String {
    let mut text = format!(
        "instance {} ({}, waited {} ms); the lease ends {:.0}",
        reply.id,
        reply.source.as_str(),
        reply.wait_ms,
        reply.expires_at
    );
    for repo in &reply.repos {
        let commit: String = repo.commit.chars().take(SHORT_COMMIT).collect();
        text.push_str(&format!(
            "\n{} at {}, branch {}, commit {commit}",
            repo.repo_full_name, repo.path, repo.branch
        ));
        if let Some(why) = &repo.why {
            text.push_str(&format!(" (behind: {why})"));
        }
    }
    if reply.stale {
        text.push_str("\nThe VM was made by an older version of the set-up.");
    }
    text
}

/// What the project calls by name; nothing where that cannot be had: the VM is claimed all the same.
async fn named_commands(client: &Client, id: &InstanceId) -> String {
    let view = client.view_instance(id).await;
    let commands = view.map(|view| view.commands).unwrap_or_default();
    let shown = commands
        .iter()
        .take(MOST_COMMANDS)
        .map(|command| format!("\ncommand {}: {} (in {})", command.name, command.command, command.path));
    shown.collect()
}

pub(crate) async fn fork(client: &Client, arguments: Fork) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    let is_fork = arguments.count.is_some() || arguments.task_id.is_some();
    match (arguments.save, arguments.restore) {
        (None, None) => {
            let task_id = arguments.task_id.map(|task| value::<TaskId>("task_id", task));
            let body = ForkRequest {
                count: arguments.count,
                task_id: task_id.transpose()?,
                ttl_minutes: None,
            };
            let reply = client.fork(&id, &body).await?;
            let lines = reply.items.iter().map(|fork| {
                let task = fork.task_id.as_deref().unwrap_or("none");
                format!("instance {}, task {task}", fork.claim.id)
            });
            let lines: Vec<String> = lines.collect();
            Ok(format!(
                "{}\ncopied from {id}, which was stopped for {} ms; release each when done",
                lines.join("\n"),
                reply.paused_ms
            ))
        }
        (Some(name), None) if !is_fork => {
            let name = value::<CheckpointName>("save", name)?;
            let saved = client
                .create_checkpoint(&id, &CheckpointRequest { name, note: None })
                .await?;
            Ok(format!(
                "saved as {} ({} bytes): `fork` with `restore` goes back to it, `claim` with `checkpoint` makes a VM of it",
                saved.name, saved.bytes
            ))
        }
        (None, Some(name)) if !is_fork => {
            let checkpoint = value::<CheckpointName>("restore", name)?;
            let restored = client.restore_checkpoint(&id, &RestoreRequest { checkpoint }).await?;
            Ok(format!("restored: {}", claimed(&restored)))
        }
        _ => Err(Refusal::new(
            "give one of `save`, `restore`, or neither for copies (`count`, `task_id`)",
        )),
    }
}

pub(crate) async fn release(client: &Client, arguments: Release) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    // Nobody has claimed a test boot's VM: it is kept for a while, to be looked into.
    if client.view_instance(&id).await?.is_test {
        client.end_boot(&id).await?;
        return Ok(format!("the test boot {id} is over, and its VM goes"));
    }
    let released = client.release(&id).await?;
    Ok(format!("{} is released", released.id))
}
