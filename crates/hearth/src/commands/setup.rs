//! `hearth setup`: a project's setup object, shown and saved.

mod file;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hearth_api::client::{Client, ClientError};
use hearth_api::find::ProjectFound;
use hearth_api::setup::{
    DEFAULT_SCRIPT_SECONDS, LegacyHooks, LegacyStatus, RepoSetup, SetupSource, SetupView, ToolHooks,
};
use hearth_api::values::CommandText;

use crate::args::Globals;
use crate::editor::Edited;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{branches, connect, editor, hint, input, output};

use file::SetupFile;

/// The query parameter that confirms that active hooks are replaced.
const REPLACE_PARAMETER: &str = "replaceLegacyHooks";

const SAVE_HELP: &str = r#"Example of such a file (what `hearth setup show PROJECT --json` prints is taken too):
  {
    "vmSize": "medium",
    "repositories": [{
      "repository": "acme/app", "branch": "main",
      "scripts": {"initialize": "npm ci", "updateAfterCheckout": "npm ci", "startup": null},
      "timeouts": {"initialize": 900},
      "commands": [{"name": "test", "command": "npm test"}]
    }]
  }

The repositories take the place of what was saved before; `vmSize` and `hooks` stay when they are not there. It holds for
VMs that are made from now on. `initialize` runs once in a fresh VM, `updateAfterCheckout` at a claim that moved the
checkout, `startup` when the VM becomes ready; `commands` only when somebody asks for them with `hearth run`. Only `repository`
must be there: what is left out does not run, and a branch that is left out stays as it is."#;

/// What to do with the setup object.
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Show it, and what VMs are set up by
    Show {
        /// The project's name or id
        project: String,
    },
    /// Save it
    #[command(after_help = SAVE_HELP)]
    Save(SaveArgs),
    /// Change it in your editor ($VISUAL, else $EDITOR, else vi) and save it
    Edit(EditArgs),
}

/// `hearth setup save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The project's name or id
    project: String,
    /// A JSON file (`-`: standard input)
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Replace hooks in the repositories' .capy/settings.json that are active now
    #[arg(long)]
    replace_legacy_hooks: bool,
}

/// `hearth setup edit`.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// The project's name or id
    project: String,
    /// Replace hooks in the repositories' .capy/settings.json that are active now
    #[arg(long)]
    replace_legacy_hooks: bool,
}

pub(crate) async fn run(globals: &Globals, command: SetupCommand) -> Result<u8, Failure> {
    let view = match command {
        SetupCommand::Show { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            client.get_setup(&project.id).await?
        }
        SetupCommand::Save(args) => {
            // Before the server is asked: a mistake in the file needs no server to be seen.
            let setup = SetupFile::read(&input::name(&args.file), &input::text(&args.file)?)?;
            let client = connect::client(globals)?;
            let project = connect::project(&client, &args.project).await?;
            let view = save(&client, &project, setup, args.replace_legacy_hooks).await?;
            branches::warn(&client, &project).await;
            view
        }
        SetupCommand::Edit(args) => match edit(globals, args).await? {
            Edited::Taken(view) => view,
            Edited::Unchanged => {
                output::note("nothing was changed");
                return Ok(0);
            }
        },
    };
    output::print(globals.json, &view, show)?;
    Ok(0)
}

async fn edit(globals: &Globals, args: EditArgs) -> Result<Edited<SetupView>, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    let setup = client.get_setup(&project.id).await?.setup;
    let text = serde_json::to_string_pretty(&setup).map_err(|error| Failure::new(error.to_string()))?;
    let save_it = |file: &Path| {
        let file = file.display().to_string();
        let save = hint::command(["setup", "save", project.name.as_str(), file.as_str()]);
        format!("fix it there, then `{save}`")
    };
    let edited = editor::edit(&format!("{text}\n"), save_it, async |written| {
        let setup = SetupFile::read("what you wrote", written)?;
        save(&client, &project, setup, args.replace_legacy_hooks).await
    })
    .await?;
    if matches!(edited, Edited::Taken(_)) {
        branches::warn(&client, &project).await;
    }
    Ok(edited)
}

async fn save(
    client: &Client,
    project: &ProjectFound,
    mut setup: SetupFile,
    replace_legacy_hooks: bool,
) -> Result<SetupView, Failure> {
    if setup.lacks_branches() {
        setup.take_branches(&client.get_project(&project.id).await?.repos)?;
    }
    let saved = client.patch_setup(&project.id, &setup.body, replace_legacy_hooks).await;
    if saved.is_ok() {
        setup.tell_kept(&project.name);
    }
    saved.map_err(|error| match &error {
        ClientError::Api { details, .. } if wants_confirmation(&error) || details.is_empty() => refusal(error),
        ClientError::Api { details, .. } => setup.file.refusal("the server refuses it", details),
        _ => error.into(),
    })
}

fn wants_confirmation(error: &ClientError) -> bool {
    match error {
        ClientError::Api { details, .. } => details.iter().any(|field| field.path == REPLACE_PARAMETER),
        _ => false,
    }
}

/// The server does not know how this program spells the confirmation it wants.
fn refusal(error: ClientError) -> Failure {
    let wants_confirmation = wants_confirmation(&error);
    let failure = Failure::from(error);
    if wants_confirmation {
        failure.hint("if they may be replaced, say --replace-legacy-hooks")
    } else {
        failure
    }
}

fn show(view: &SetupView) -> String {
    let source = match view.source {
        SetupSource::Setup => "this setup object",
        SetupSource::Legacy => "the hooks in the repositories' .capy/settings.json (no setup object is saved)",
        SetupSource::None => "nothing (no setup object is saved)",
    };
    let size = view.setup.vm_size.map_or("-", hearth_api::project::VmSize::as_str);
    let mut text = output::pairs([
        ("set up by", source.to_owned()),
        ("old hooks", legacy(&view.legacy_hooks)),
        ("VM size", size.to_owned()),
        ("tool hooks", tool_hooks(view.setup.hooks.as_ref())),
    ]);
    for repo in &view.setup.repositories {
        text.push_str("\n\n");
        text.push_str(&clean_line(&format!("{}@{}", repo.repository, repo.branch)));
        for line in repository(repo).lines() {
            text.push_str("\n  ");
            text.push_str(line);
        }
    }
    text
}

fn legacy(hooks: &LegacyHooks) -> String {
    let repos = clean_line(&hooks.repositories.join(", "));
    let mut text = match hooks.status {
        LegacyStatus::Active => format!("active in {repos}"),
        LegacyStatus::Ignored => format!("in {repos}, but the setup object replaces them"),
        LegacyStatus::None => "none".to_owned(),
    };
    if !hooks.check_complete {
        text.push_str(" (not every repository could be read)");
    }
    text
}

fn tool_hooks(hooks: Option<&ToolHooks>) -> String {
    let Some(hooks) = hooks else { return "-".to_owned() };
    let of = |when: &'static str, tools: &Option<std::collections::BTreeMap<String, Vec<CommandText>>>| {
        let tools = tools.iter().flatten();
        tools
            .map(|(tool, commands)| {
                let commands = output::count(commands.len() as u64, "command");
                clean_line(&format!("{when} {tool}: {commands}"))
            })
            .collect::<Vec<_>>()
    };
    output::lines_or_dash([of("before", &hooks.pre), of("after", &hooks.post)].concat())
}

fn repository(repo: &RepoSetup) -> String {
    let limits = repo.timeouts.clone().unwrap_or_default();
    let script = |text: &Option<CommandText>, limit: Option<i64>| match text {
        Some(text) => {
            let lines: Vec<String> = text.lines().map(clean_line).collect();
            format!(
                "{}\n(at most {} s)",
                lines.join("\n"),
                limit.unwrap_or(DEFAULT_SCRIPT_SECONDS)
            )
        }
        None => "-".to_owned(),
    };
    let commands = repo.commands.iter().map(|command| {
        let text = command.command.replace('\n', "; ");
        clean_line(&format!("{}: {text}", command.name))
    });
    let scripts = &repo.scripts;
    output::pairs([
        ("initialize", script(&scripts.initialize, limits.initialize)),
        (
            "updateAfterCheckout",
            script(&scripts.update_after_checkout, limits.update_after_checkout),
        ),
        ("startup", script(&scripts.startup, limits.startup)),
        ("commands", output::lines_or_dash(commands)),
    ])
}
