//! `hearth run`: a command of the project's setup object, run by its name in the repository it belongs to.

use clap::Args;
use hearth_api::client::Client;
use hearth_api::exec::ExecRequest;
use hearth_api::instance::{InstanceCommand, InstanceView};
use hearth_api::page::Items;
use hearth_api::values::{CommandText, GuestPath, Invalid};

use super::exec::{self, ExecOptions};
use super::instance;
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth run wpi_…
  hearth run wpi_… test
  hearth run wpi_… test --repo acme/app

Without NAME it lists the commands. With it, it behaves as `hearth exec` does: the command's bytes come out exactly, piped
input goes in (unless --no-stdin), the exit code is the command's own; 128 + n when signal n ended it, 124 when its time
passed, 125 when Hearth failed and not the command. Commands are given names with `hearth setup save`.";

/// `hearth run`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RunArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The command's name
    name: Option<String>,
    /// The repository it belongs to, where several have a command of this name
    #[arg(long, value_name = "ORG/NAME")]
    repo: Option<String>,
    #[command(flatten)]
    options: ExecOptions,
}

pub(crate) async fn run(globals: &Globals, args: RunArgs) -> Result<u8, Failure> {
    match args.name.clone() {
        None => list(globals, args).await,
        Some(name) => exec::apart_from_the_commands(run_named(globals, args, &name).await),
    }
}

async fn list(globals: &Globals, args: RunArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let view = client.view_instance(&id).await?;
    let items: Vec<_> = view
        .commands
        .iter()
        .filter(|command| belongs_to(command, args.repo.as_deref()))
        .cloned()
        .collect();
    let advice = if items.is_empty() && !globals.json {
        advice(&client, &view, None).await
    } else {
        String::new()
    };
    output::print(globals.json, &Items { items }, |list| {
        if list.items.is_empty() {
            format!("this VM has no commands with a name: {advice}")
        } else {
            instance::commands(&list.items)
        }
    })?;
    Ok(0)
}

/// Where commands with names come from, when a VM has none or not the one that was named: the set-up may have got them after the VM
/// was made.
async fn advice(client: &Client, view: &InstanceView, name: Option<&str>) -> String {
    let project = match client.get_project(&view.project_id).await {
        Ok(project) => project.name,
        // A token that may only claim is not told.
        Err(_) => view.project_id.to_string(),
    };
    let save = hint::command(["setup", "save", project.as_str()]);
    // A token that may only claim is not told.
    let Ok(setup) = client.get_setup(&view.project_id).await else {
        return format!("`{save}` gives commands names, for VMs that are made after it");
    };
    let mut commands = setup.setup.repositories.iter().flat_map(|repo| &repo.commands);
    if commands.any(|command| name.is_none_or(|name| command.name == name)) {
        let claim = hint::command(["claim", project.as_str(), "--strict"]);
        let what = name.map_or_else(
            || "it has commands now".to_owned(),
            |name| format!("it has `{}` now", clean_line(name)),
        );
        return format!("the VM is older than the project's set-up; {what}, and a VM that `{claim}` gets can run it");
    }
    format!("`{save}` gives commands names, for VMs that are made after it")
}

async fn run_named(globals: &Globals, args: RunArgs, name: &str) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let view = client.view_instance(&id).await?;
    let command = match choose(&view.commands, name, args.repo.as_deref()) {
        Ok(command) => command,
        Err(failure) if view.commands.iter().all(|command| command.name != name) => {
            let advice = advice(&client, &view, Some(name)).await;
            return Err(if view.commands.is_empty() {
                failure.hint(format!("there are none at all: {advice}"))
            } else {
                failure.hint(format!("use one of these; or else {advice}"))
            });
        }
        Err(failure) => return Err(failure),
    };
    let said =
        |what: &str, fault: &Invalid| Failure::new(format!("the {what} of the command `{}` {fault}", clean_line(name)));
    let what = ExecRequest {
        command: Some(CommandText::try_from(command.command.as_str()).map_err(|fault| said("text", &fault))?),
        cwd: Some(GuestPath::try_from(command.path.as_str()).map_err(|fault| said("folder", &fault))?),
        ..ExecRequest::default()
    };
    exec::run_in(globals, &client, &id, what, args.options).await
}

fn belongs_to(command: &InstanceCommand, repo: Option<&str>) -> bool {
    repo.is_none_or(|repo| command.repo_full_name == repo)
}

/// The one command that is meant.
fn choose<'a>(commands: &'a [InstanceCommand], name: &str, repo: Option<&str>) -> Result<&'a InstanceCommand, Failure> {
    let fitting: Vec<&InstanceCommand> = commands
        .iter()
        .filter(|command| command.name == name && belongs_to(command, repo))
        .collect();
    let named = clean_line(name);
    let with_lines = |failure: Failure, commands: &[&InstanceCommand]| {
        commands
            .iter()
            .fold(failure, |failure, command| failure.detail(instance::command(command)))
    };
    match fitting[..] {
        [command] => Ok(command),
        [] => {
            let place = repo.map_or_else(String::new, |repo| format!(" of {}", clean_line(repo)));
            let failure = Failure::usage(format!("there is no command `{named}`{place} in this instance"));
            let all: Vec<&InstanceCommand> = commands.iter().collect();
            Err(with_lines(failure, &all).hint("use one of these"))
        }
        [first, ..] if fitting.iter().all(|other| other.repo_full_name == first.repo_full_name) => Err(with_lines(
            Failure::usage(format!("several commands are called `{named}`")),
            &fitting,
        )
        .hint("give each its own name with `hearth setup save`")),
        _ => Err(with_lines(
            Failure::usage(format!("several repositories have a command `{named}`")),
            &fitting,
        )
        .hint("say whose with --repo")),
    }
}
