//! `hearth project`: create, change, list, show, delete.

mod delete;
mod edit;
mod repo;

use clap::{Args, Subcommand, ValueEnum};
use hearth_api::client::ClientError;
use hearth_api::error::ErrorCode;
use hearth_api::find::ProjectFound;
use hearth_api::page::Page;
use hearth_api::pool::SetupCommand;
use hearth_api::project::{CreateProject, PatchProject, Project, ProjectView, RepoInput, RepoView, VmSize};
use hearth_api::values::{Description, Name};

use crate::args::{GitIdentityArgs, Globals};
use crate::editor::Edited;
use crate::failure::Failure;
use crate::setup_commands::parse_command;
use crate::text::clean_line;
use crate::{branches, connect, hint, output};

use repo::parse_repo;

/// What to do with projects.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Make a project
    Create(CreateArgs),
    /// Change a project; options that are not given keep their values
    Set(SetArgs),
    /// Change a project's own settings in your editor ($VISUAL, else $EDITOR, else vi); the pool has `hearth pool edit`, the setup
    /// object `hearth setup edit`
    Edit {
        /// Its name or id
        project: String,
    },
    /// List the projects
    List,
    /// Show a project
    Show {
        /// Its name or id
        project: String,
    },
    /// Delete a project with its pool and all its VMs, claimed ones included
    Delete {
        /// Its name or id
        project: String,
        /// Do not ask, even if claimed VMs are destroyed with it
        #[arg(long)]
        yes: bool,
    },
}

/// `hearth project create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    name: Name,
    /// A repository: `org/name[@branch][=URL]`, or its URL alone (`#branch` at the end), whose last two parts are
    /// its name then; may be repeated. The branch is `main` unless said otherwise; without URL it is fetched from the server's git
    /// base URL
    #[arg(long = "repo", value_name = "REPO", value_parser = parse_repo)]
    repos: Vec<RepoInput>,
    /// What it is, for people
    #[arg(long)]
    description: Option<Description>,
    /// Short code that task names start with
    #[arg(long)]
    task_code: Option<Name>,
    /// Size of its VMs: small, medium (the default), large, ultra, hyper
    #[arg(long)]
    size: Option<VmSize>,
    /// Name or digest of the image its VMs are made from (default: the newest)
    #[arg(long)]
    image: Option<Name>,
    /// A command that prepares every VM of this project, run by bash before the pool's own; may be repeated
    #[arg(long = "setup", value_name = "'NAME: TEXT'", value_parser = parse_command)]
    setup: Vec<SetupCommand>,
    /// Most VMs it may have at once, in any state; 0 forbids it a warm pool (default: only the server's own limit)
    #[arg(long, value_name = "NUMBER")]
    max_vms: Option<u32>,
    #[command(flatten)]
    git: GitIdentityArgs,
    /// Do not fetch Git LFS objects: their files stay pointers
    #[arg(long)]
    no_lfs: bool,
    /// Leave submodules empty
    #[arg(long)]
    no_submodules: bool,
    /// If a project of this name is there, leave it as it is and show it
    #[arg(long)]
    exist_ok: bool,
}

/// Where the memory of a VM goes that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PauseTo {
    /// It stays in memory
    Memory,
    /// To the disk
    Disk,
}

/// `hearth project set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Its name or id
    project: String,
    /// Another name
    #[arg(long)]
    name: Option<Name>,
    /// A repository, as in `hearth project create`; may be repeated. These replace all it has
    #[arg(long = "repo", value_name = "REPO", value_parser = parse_repo)]
    repos: Vec<RepoInput>,
    /// Remove all repositories
    #[arg(long, conflicts_with = "repos")]
    no_repos: bool,
    /// What it is, for people
    #[arg(long)]
    description: Option<Description>,
    /// Remove the description
    #[arg(long, conflicts_with = "description")]
    no_description: bool,
    /// Short code that task names start with
    #[arg(long)]
    task_code: Option<Name>,
    /// Size of its VMs: small, medium, large, ultra, hyper
    #[arg(long)]
    size: Option<VmSize>,
    /// Name or digest of the image its VMs are made from
    #[arg(long)]
    image: Option<Name>,
    /// Make its VMs from the newest image
    #[arg(long, conflicts_with = "image")]
    no_image: bool,
    /// A command that prepares every VM of this project, run by bash before the pool's own; may be repeated. These replace
    /// all it has
    #[arg(long = "setup", value_name = "'NAME: TEXT'", value_parser = parse_command)]
    setup: Vec<SetupCommand>,
    /// Remove all these commands
    #[arg(long, conflicts_with = "setup")]
    no_setup: bool,
    /// Most VMs it may have at once, in any state; 0 forbids it a warm pool
    #[arg(long, value_name = "NUMBER")]
    max_vms: Option<u32>,
    /// Remove its own limit; the server's still applies
    #[arg(long, conflicts_with = "max_vms")]
    no_max_vms: bool,
    /// Most claims that may hold a VM at once
    #[arg(long, value_name = "NUMBER")]
    max_claims: Option<u32>,
    /// Let claims hold as many VMs as there can be
    #[arg(long, conflicts_with = "max_claims")]
    no_max_claims: bool,
    /// Pause a claimed VM that nobody uses for so many minutes; the next call resumes it
    #[arg(long, value_name = "MINUTES")]
    idle_pause: Option<u32>,
    /// Never pause a claimed VM
    #[arg(long, conflicts_with = "idle_pause")]
    no_idle_pause: bool,
    /// Where the memory of such a VM goes
    #[arg(long, value_name = "WHERE")]
    idle_pause_to: Option<PauseTo>,
    /// Warn so many minutes before a lease ends; 0: not at all
    #[arg(long, value_name = "MINUTES")]
    lease_warning: Option<u32>,
    #[command(flatten)]
    git: GitIdentityArgs,
    /// Remove its git identity: commits are made as the owner of the claiming token
    #[arg(long, conflicts_with = "git_name")]
    no_git_identity: bool,
    /// Fetch Git LFS objects with its repositories
    #[arg(long)]
    lfs: bool,
    /// Do not fetch Git LFS objects: their files stay pointers
    #[arg(long, conflicts_with = "lfs")]
    no_lfs: bool,
    /// Fetch submodules with its repositories
    #[arg(long)]
    submodules: bool,
    /// Leave submodules empty
    #[arg(long, conflicts_with = "submodules")]
    no_submodules: bool,
}

impl SetArgs {
    fn patch(self) -> PatchProject {
        let setup = (!self.setup.is_empty()).then_some(self.setup);
        let repos = (!self.repos.is_empty()).then_some(self.repos);
        PatchProject {
            name: self.name,
            description: value_or_null(self.description, self.no_description),
            task_code: self.task_code,
            repos: repos.or_else(|| self.no_repos.then(Vec::new)),
            image: value_or_null(self.image, self.no_image),
            project_setup: value_or_null(setup, self.no_setup),
            vm_size: self.size,
            max_vms: value_or_null(self.max_vms, self.no_max_vms),
            max_claims: value_or_null(self.max_claims, self.no_max_claims),
            idle_pause_minutes: value_or_null(self.idle_pause, self.no_idle_pause),
            idle_pause_to_disk: self.idle_pause_to.map(|to| to == PauseTo::Disk),
            lease_warning_minutes: self.lease_warning,
            git_identity: value_or_null(self.git.identity(), self.no_git_identity),
            lfs: yes_or_no(self.lfs, self.no_lfs),
            submodules: yes_or_no(self.submodules, self.no_submodules),
        }
    }
}

/// Absent, or what was said.
fn yes_or_no(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// Absent, `null` or a value.
fn value_or_null<T>(value: Option<T>, null: bool) -> Option<Option<T>> {
    if null { Some(None) } else { value.map(Some) }
}

pub(crate) async fn run(globals: &Globals, command: ProjectCommand) -> Result<u8, Failure> {
    match command {
        ProjectCommand::Create(args) => {
            let client = connect::client(globals)?;
            let body = CreateProject {
                name: args.name,
                description: args.description,
                task_code: args.task_code,
                repos: args.repos,
                image: args.image,
                project_setup: (!args.setup.is_empty()).then_some(args.setup),
                vm_size: args.size,
                max_vms: args.max_vms,
                git_identity: args.git.identity(),
                lfs: args.no_lfs.then_some(false),
                submodules: args.no_submodules.then_some(false),
            };
            let project = match client.create_project(&body).await {
                Ok(project) => project,
                Err(error) if error.code() == Some(ErrorCode::Conflict) && args.exist_ok => {
                    let found = connect::project(&client, &body.name).await?;
                    output::note("it exists already and stays as it is");
                    client.get_project(&found.id).await?
                }
                Err(error) => return Err(name_taken(error, &body.name)),
            };
            output::print(globals.json, &project, show)?;
            if !globals.json {
                let next = hint::command(["pool", "test", project.name.as_str()]);
                output::note(&format!("next: {next}"));
            }
        }
        ProjectCommand::Set(args) => {
            let text = args.project.clone();
            let patch = args.patch();
            if patch == PatchProject::default() {
                return Err(Failure::usage("nothing to set").hint("see `hearth project set --help`"));
            }
            let client = connect::client(globals)?;
            let project = connect::project(&client, &text).await?;
            let names_branches = patch.repos.is_some();
            let project = client.patch_project(&project.id, &patch).await?;
            output::print(globals.json, &project, show)?;
            if names_branches {
                branches::warn(
                    &client,
                    &ProjectFound {
                        id: project.id,
                        name: project.name,
                    },
                )
                .await;
            }
        }
        ProjectCommand::Edit { project } => match edit::run(globals, &project).await? {
            Edited::Taken(project) => output::print(globals.json, &project, show)?,
            Edited::Unchanged => output::note("nothing was changed"),
        },
        ProjectCommand::List => {
            let client = connect::client(globals)?;
            let items = client.list_all_projects().await?;
            output::print(
                globals.json,
                &Page {
                    items,
                    next_cursor: None,
                    has_more: false,
                },
                list,
            )?;
        }
        ProjectCommand::Show { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            match client.view_project(&project.id).await {
                Ok(view) => {
                    output::print(globals.json, &view, show_all)?;
                    if !globals.json {
                        output::note(&elsewhere(&view.name));
                    }
                }
                // A server that is older than views.
                Err(error) if error.is_not_found() || matches!(error, ClientError::Decode { .. }) => {
                    output::print(globals.json, &client.get_project(&project.id).await?, show)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        ProjectCommand::Delete { project, yes } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            if !yes {
                delete::confirm(&client, &project).await?;
            }
            let deleted = client.delete_project(&project.id).await?;
            output::print(globals.json, &deleted, |_| {
                format!("deleted {} ({})", project.name, project.id)
            })?;
        }
    }
    Ok(0)
}

/// The server says whose the name is; this program knows what can be done about it.
fn name_taken(error: ClientError, name: &str) -> Failure {
    let is_taken = error.code() == Some(ErrorCode::Conflict);
    let failure = Failure::from(error);
    if !is_taken {
        return failure;
    }
    failure.hint(format!(
        "see it with `{}`; with --exist-ok it is no error that the name is taken",
        hint::command(["project", "show", name])
    ))
}

fn list(page: &Page<Project>) -> String {
    if page.items.is_empty() {
        return "no projects yet: make one with `hearth project create NAME --repo URL`".to_owned();
    }
    let row = |project: &Project| {
        [
            project.name.clone(),
            project.id.to_string(),
            repos(project, ", "),
            output::ago(project.updated_at),
        ]
    };
    output::table(["Name", "Id", "Repositories", "Changed"], page.items.iter().map(row))
}

fn show(project: &Project) -> String {
    output::pairs([
        ("name", project.name.clone()),
        ("id", project.id.to_string()),
        (
            "description",
            project.description.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("task code", project.task_code.clone()),
        (
            "repositories",
            if project.repos.is_empty() {
                "-".to_owned()
            } else {
                repos(project, "\n")
            },
        ),
        ("created", output::ago(project.created_at)),
        ("changed", output::ago(project.updated_at)),
    ])
}

/// Where the rest of a project's set-up is shown.
fn elsewhere(name: &str) -> String {
    let shown = |words: [&str; 2]| hint::command([words[0], words[1], name]);
    format!(
        "also: the pool and its commands `{}`, the setup object `{}`, variables `{}`",
        shown(["pool", "status"]),
        shown(["setup", "show"]),
        shown(["env", "list"])
    )
}

/// All of the project's own that can be set.
fn show_all(project: &ProjectView) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let repo = |repo: &RepoView| {
        let without = [
            (repo.lfs, ", without what Git LFS keeps"),
            (repo.submodules, ", without submodules"),
        ];
        let line = format!("{}@{} from {}", repo.repo_full_name, repo.branch, repo.url);
        clean_line(
            &without
                .iter()
                .filter(|(has, _)| !has)
                .fold(line, |line, (_, text)| line + text),
        )
    };
    let command =
        |command: &SetupCommand| clean_line(&format!("{}: {}", command.name, command.command.replace('\n', "; ")));
    let identity = project.git_identity.as_ref();
    output::pairs([
        ("name", project.name.clone()),
        ("id", project.id.to_string()),
        ("description", or_dash(project.description.as_deref().map(clean_line))),
        ("task code", project.task_code.clone()),
        ("repositories", output::lines_or_dash(project.repos.iter().map(repo))),
        ("VM size", project.vm_size.as_str().to_owned()),
        (
            "image",
            project.image.clone().unwrap_or_else(|| "the newest".to_owned()),
        ),
        (
            "own commands",
            output::lines_or_dash(project.project_setup.iter().flatten().map(command)),
        ),
        (
            "most VMs",
            project
                .max_vms
                .map_or_else(|| "as many as the server allows".to_owned(), |most| most.to_string()),
        ),
        (
            "most claims",
            project
                .max_claims
                .map_or_else(|| "as many as there are VMs".to_owned(), |most| most.to_string()),
        ),
        ("idle pause", idle_pause(project)),
        (
            "lease end",
            match project.lease_warning_minutes {
                0 => "not warned of".to_owned(),
                minutes => format!("warned of {minutes} min before"),
            },
        ),
        (
            "commits by",
            identity.map_or_else(
                || "the owner of the claiming token".to_owned(),
                |identity| clean_line(&format!("{} <{}>", identity.name, identity.email)),
            ),
        ),
        ("created", output::ago(project.created_at)),
        ("changed", output::ago(project.updated_at)),
    ])
}

fn idle_pause(project: &ProjectView) -> String {
    let to = if project.idle_pause_to_disk {
        "to the disk"
    } else {
        "in memory"
    };
    project.idle_pause_minutes.map_or_else(
        || "never".to_owned(),
        |minutes| format!("{to}, when nobody uses a claimed VM for {minutes} min"),
    )
}

fn repos(project: &Project, separator: &str) -> String {
    let texts: Vec<String> = project
        .repos
        .iter()
        .map(|repo| format!("{}@{}", repo.repo_full_name, repo.branch))
        .collect();
    texts.join(separator)
}
