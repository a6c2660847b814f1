//! `hearth import`: what a repository already says about its set-up, what of it is taken and what is not, and where it is written to.

mod folder;
mod save;

use std::path::PathBuf;

use clap::Args;
use hearth_api::settings::Settings;
use hearth_api::values::Branch;
use hearth_import::Imported;
use serde::Serialize;

use super::pool;
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_lines;
use crate::{connect, hint, output};

use folder::Folder;

/// Hearth's own settings file.
const OWN_FILE: &str = ".hearth/settings.json";
/// Settings files that are read before anything is imported.
const SETTINGS: [&str; 2] = [OWN_FILE, ".capy/settings.json"];

pub(crate) const AFTER_HELP: &str = "\
Examples:
  hearth import                                      what the folder you are in says
  hearth import https://git.example/acme/app.git     the same of a repository, cloned for the moment
  hearth import . --write                            write it to .hearth/settings.json, to be changed and committed
  hearth import . --project web --write --test       save it in the project, and test it

It reads devcontainer.json, copilot-setup-steps.yml, .cursor/environment.json or a Dockerfile, the first of these that is there, else
mise.toml, .tool-versions and lock files. Nothing of it is run here, and no registry is asked. Test boots and pools of a project
that has no set-up of its own do the same with the repository's newest commit.";

/// `hearth import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A folder, or the address of a git repository
    #[arg(default_value = ".")]
    source: String,
    /// The branch of the repository (only with an address)
    #[arg(long)]
    branch: Option<Branch>,
    /// Write it: to .hearth/settings.json in the folder, or with --project into the project's own set-up
    #[arg(long)]
    write: bool,
    /// The project's name or id
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Replace the set-up that is there
    #[arg(long, requires = "write")]
    replace: bool,
    /// Test the project's set-up afterwards, as `hearth pool test` does
    #[arg(long, requires = "project")]
    test: bool,
}

/// What was read, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    files: &'a [String],
    settings: &'a Settings,
    vm_size: Option<&'static str>,
    taken: Vec<String>,
    not_taken: Vec<String>,
}

pub(crate) async fn run(globals: &Globals, args: ImportArgs) -> Result<u8, Failure> {
    let folder = Folder::open(&args.source, args.branch.as_ref()).await?;
    // Before anything is read: without it nothing could be written.
    if args.write && args.project.is_none() && folder.is_clone() {
        return Err(
            Failure::usage("an address has no folder to write to").hint("--project names a project to save it in")
        );
    }
    let target = match &args.project {
        Some(project) => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, project).await?;
            Some(save::Target::find(client, project, folder.name()).await?)
        }
        None => None,
    };
    let workspace = match &target {
        Some(target) => target.workspace(),
        None => format!("/home/{}", folder.name()),
    };
    let imported = hearth_import::read(&folder, &workspace).map_err(|fault| Failure::new(fault.to_string()))?;
    for file in SETTINGS {
        if folder.has(file) {
            output::note(&format!(
                "{file} is there: it is what runs, and nothing is imported in VMs"
            ));
        }
    }
    let view = View {
        files: &imported.files,
        settings: &imported.settings,
        vm_size: imported.needs.vm_size().map(|size| size.as_str()),
        taken: imported.told(true),
        not_taken: imported.told(false),
    };
    output::print(globals.json, &view, |view| shown(&imported, view))?;
    if args.write {
        match &target {
            Some(target) => target.save(&imported, args.replace).await?,
            None => write(&folder, &imported, args.replace)?,
        }
    }
    match args.project.filter(|_| args.test) {
        Some(project) => pool::test_again(globals, project).await,
        None => Ok(0),
    }
}

fn shown(imported: &Imported, view: &View<'_>) -> String {
    if imported.is_empty() {
        return "nothing was found that says how it is set up".to_owned();
    }
    let mut lines = clean_lines(imported.report().trim_end());
    if let Some(size) = view.vm_size {
        lines.push(format!("the VM size that meets this: {size}"));
    }
    let commands = &imported.settings.hooks.setup;
    lines.push(format!(
        "\nthe set-up: {}",
        output::count(commands.len() as u64, "command")
    ));
    for (at, hook) in commands.iter().enumerate() {
        for (row, text) in clean_lines(hook.command().trim_end()).into_iter().enumerate() {
            let begins = if row == 0 {
                format!("{:>3}. ", at + 1)
            } else {
                " ".repeat(5)
            };
            lines.push(format!("{begins}{text}"));
        }
    }
    let hooks = &imported.settings.hooks;
    for (what, script) in [
        ("after a checkout", &hooks.update_after_checkout),
        ("when the VM becomes ready", &hooks.startup),
    ] {
        if let Some(script) = script {
            lines.push(format!("{what}:"));
            lines.extend(
                clean_lines(script.trim_end())
                    .into_iter()
                    .map(|text| format!("     {text}")),
            );
        }
    }
    lines.join("\n")
}

fn write(folder: &Folder, imported: &Imported, replace: bool) -> Result<(), Failure> {
    if imported.settings == Settings::default() {
        return Err(Failure::new("there is nothing to write"));
    }
    if folder.has(OWN_FILE) && !replace {
        return Err(Failure::new(format!("{OWN_FILE} is there already")).hint("if it may be replaced, say --replace"));
    }
    let text = serde_json::to_string_pretty(&imported.settings).map_err(|error| Failure::new(error.to_string()))?;
    let path: PathBuf = folder.path().join(OWN_FILE);
    let parent = folder.path().join(".hearth");
    let failed = |error: std::io::Error| Failure::new(format!("{} cannot be written: {error}", path.display()));
    std::fs::create_dir_all(&parent).map_err(failed)?;
    // Beside it first: what is there is whole, or as it was.
    let file = tempfile::NamedTempFile::new_in(&parent).map_err(failed)?;
    std::fs::write(file.path(), format!("{text}\n")).map_err(failed)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    output::note(&format!(
        "wrote {}; it counts once it is committed and pushed",
        path.display()
    ));
    if let Some(size) = imported.needs.vm_size() {
        let command = hint::command(["project", "set", "PROJECT", "--size", size.as_str()]);
        output::note(&format!("the size of the VMs is the project's: {command}"));
    }
    Ok(())
}
