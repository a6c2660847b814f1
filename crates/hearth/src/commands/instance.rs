//! `hearth instance`: what is in one instance. How it was made is the matter of `hearth pool instance`.

use clap::Args;
use hearth_api::instance::{InstanceCommand, InstanceStatus, InstanceView, RepoSettings, Unresponsive};
use jiff::Timestamp;

use super::claim::{checkouts, lease_end};
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output, resolve};

/// `hearth instance`.
#[derive(Debug, Args)]
pub(crate) struct InstanceArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
}

pub(crate) async fn run(globals: &Globals, args: InstanceArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let view = client.view_instance(&id).await?;
    output::print(globals.json, &view, show)?;
    Ok(0)
}

fn show(view: &InstanceView) -> String {
    output::pairs([
        ("id", view.id.to_string()),
        ("VM", view.instance_id.to_string()),
        ("project", view.project_id.to_string()),
        ("status", status(view)),
        ("kind", kind(view).to_owned()),
        ("recipe", view.recipe.clone()),
        (
            "yours until",
            view.expires_at
                .map_or_else(|| "-".to_owned(), |at| lease_end(&view.id, at)),
        ),
        ("repositories", checkouts(&view.repos)),
        ("commands", commands(&view.commands)),
        ("terminals", terminals(&view.settings)),
        ("previews", previews(&view.settings)),
        ("settings", files(&view.settings)),
    ])
}

/// With when its VM ended, and why, where only the record is left.
fn status(view: &InstanceView) -> String {
    let status = view.status.as_str();
    match view.vm_ended_at {
        Some(at) => {
            let why = clean_line(view.vm_ended_because.as_deref().unwrap_or_default());
            format!("{status}\nVM ended {}: {why}", output::ago(at))
        }
        None => match trouble(view.unresponsive.as_ref(), paused(view), view.rebooted_at) {
            Some(trouble) => format!("{status}\n{trouble}"),
            None => status.to_owned(),
        },
    }
}

/// By its owner. That the ready VMs of a pool are paused is no news.
fn paused(view: &InstanceView) -> Option<String> {
    (view.paused && view.status == InstanceStatus::Claimed)
        .then(|| paused_text(view.paused_to_disk, view.paused_because.as_deref()))
}

/// How it is paused, and why Hearth did it.
pub(super) fn paused_text(to_disk: bool, because: Option<&str>) -> String {
    let to_disk = if to_disk { " to the disk" } else { "" };
    let because = because.map(|why| format!(" ({})", clean_line(why))).unwrap_or_default();
    format!("paused{to_disk}{because}: the next command resumes it")
}

/// What a person who works in a VM must know of it.
pub(super) fn trouble(
    unresponsive: Option<&Unresponsive>,
    paused: Option<String>,
    rebooted_at: Option<Timestamp>,
) -> Option<String> {
    let silent = unresponsive.map(|silent| {
        let why = clean_line(&silent.reason);
        format!("does not answer since {}: {why}", output::ago(silent.since))
    });
    let restarted = rebooted_at.map(|at| format!("restarted {}: what ran in it then is gone", output::ago(at)));
    let all: Vec<String> = silent.into_iter().chain(paused).chain(restarted).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn kind(view: &InstanceView) -> &'static str {
    match (view.is_test, view.status) {
        (true, _) => "test boot: it is never handed out",
        (false, InstanceStatus::Claimed) => "claimed from the pool",
        (false, _) => "pool",
    }
}

/// One line per command that can be run by name.
pub(super) fn commands(commands: &[InstanceCommand]) -> String {
    output::lines_or_dash(commands.iter().map(command))
}

/// `test (acme/app): npm test`.
pub(super) fn command(command: &InstanceCommand) -> String {
    let text = command.command.replace('\n', "; ");
    clean_line(&format!("{} ({}): {text}", command.name, command.repo_full_name))
}

fn terminals(settings: &[RepoSettings]) -> String {
    let lines = settings.iter().flat_map(|repo| {
        repo.settings.hooks.terminals.iter().map(|terminal| {
            let kind = if terminal.readonly { ", read only" } else { "" };
            let text = terminal.command.replace('\n', "; ");
            clean_line(&format!("{} ({}{kind}): {text}", terminal.name, repo.repo_full_name))
        })
    });
    output::lines_or_dash(lines)
}

fn previews(settings: &[RepoSettings]) -> String {
    let lines = settings.iter().flat_map(|repo| {
        let line = |preview: &hearth_api::settings::Preview| {
            clean_line(&format!(
                "{} ({}): port {}",
                preview.name, repo.repo_full_name, preview.port
            ))
        };
        repo.settings.hooks.previews.iter().map(line)
    });
    output::lines_or_dash(lines)
}

fn files(settings: &[RepoSettings]) -> String {
    let line = |repo: &RepoSettings| clean_line(&format!("{} of {}", repo.file, repo.repo_full_name));
    output::lines_or_dash(settings.iter().map(line))
}
