//! `hearth setup`: a project's setup object, shown and saved.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hearth_api::client::ClientError;
use hearth_api::patch::Object;
use hearth_api::setup::{
    DEFAULT_SCRIPT_SECONDS, LegacyHooks, LegacyStatus, RepoSetup, SetupBody, SetupSource, SetupView, ToolHooks,
};
use serde::Deserialize;
use serde_json::Value;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, input, output};

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
checkout, `startup` when the VM becomes ready; `commands` only when somebody asks for them with `hearth run`."#;

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
}

/// `hearth setup save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The project's name or id
    project: String,
    /// A JSON file (`-`: standard input)
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Let it take the place of hooks in the repositories' .capy/settings.json that are active now
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
            let body = read(&args.file)?;
            let client = connect::client(globals)?;
            let project = connect::project(&client, &args.project).await?;
            client
                .patch_setup(&project.id, &body, args.replace_legacy_hooks)
                .await
                .map_err(refusal)?
        }
    };
    output::print(globals.json, &view, show)?;
    Ok(0)
}

/// The server does not know how this program spells the confirmation it wants.
fn refusal(error: ClientError) -> Failure {
    let wants_confirmation = match &error {
        ClientError::Api { details, .. } => details.iter().any(|field| field.path == REPLACE_PARAMETER),
        _ => false,
    };
    let failure = Failure::from(error);
    if wants_confirmation {
        failure.hint("if they may be replaced, say --replace-legacy-hooks")
    } else {
        failure
    }
}

/// What `hearth setup show --json` prints; only the setup object counts.
#[derive(Deserialize)]
struct Shown {
    #[serde(rename = "setup")]
    object: Object<SetupBody>,
}

fn read(path: &Path) -> Result<SetupBody, Failure> {
    let name = input::name(path);
    let text = input::text(path)?;
    let unreadable = |error: serde_json::Error| {
        Failure::usage(format!("{name} holds no setup object: {error}")).hint("see `hearth setup save --help`")
    };
    let raw: Value = serde_json::from_str(&text).map_err(unreadable)?;
    let shown = raw.get("repositories").is_none() && raw.get("setup").is_some();
    let (body, raw) = if shown {
        let Object(shown) = serde_json::from_str::<Object<Shown>>(&text).map_err(unreadable)?;
        (shown.object.0, raw.get("setup").cloned().unwrap_or_default())
    } else {
        let Object(body) = serde_json::from_str(&text).map_err(unreadable)?;
        (body, raw)
    };
    let known = serde_json::to_value(&body).map_err(unreadable)?;
    let mut unknown = Vec::new();
    find_unknown("", &raw, &known, &mut unknown);
    if !unknown.is_empty() {
        // The documented service takes more than we know; but it may as well be a slip of the pen.
        output::note(&format!(
            "note: Hearth does not know and leaves out: {}",
            unknown.join(", ")
        ));
    }
    Ok(body)
}

/// Paths of keys that were not understood.
fn find_unknown(path: &str, given: &Value, known: &Value, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match known.get(key) {
                    Some(known) => find_unknown(&path, value, known, found),
                    None => found.push(clean_line(&path)),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (at, (given, known)) in given.iter().zip(known).enumerate() {
                find_unknown(&format!("{path}[{at}]"), given, known, found);
            }
        }
        _ => {}
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
        LegacyStatus::Ignored => format!("in {repos}, but the setup object takes their place"),
        LegacyStatus::None => "none".to_owned(),
    };
    if !hooks.check_complete {
        text.push_str(" (not every repository could be looked at)");
    }
    text
}

fn tool_hooks(hooks: Option<&ToolHooks>) -> String {
    let Some(hooks) = hooks else { return "-".to_owned() };
    let of = |when: &'static str, tools: &Option<std::collections::BTreeMap<String, Vec<String>>>| {
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
    let script = |text: &Option<String>, limit: Option<i64>| match text {
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
