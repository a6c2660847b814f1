//! Projects as an agent sees them: the list, one whole, and changes of how its VMs are set up.

use std::fmt::Write as _;

use futures::StreamExt as _;
use hearth_api::client::{Client, ClientError};
use hearth_api::ids::ProjectId;
use hearth_api::instance::InstanceItem;
use hearth_api::pool::{PatchPool, PoolView, SetupCommand};
use hearth_api::project::{CreateProject, Project, RepoInput};
use hearth_api::setup::{RepoSetup, SetupView};
use hearth_api::values::{Branch, CommandText, Name, RepoFullName, RepoUrl};

use crate::arguments::{ChangeSetup, Command, Projects, Scripts};
use crate::find;
use crate::refusal::Refusal;
use crate::run::value;

/// Projects whose pools are shown in the list.
const MOST_LISTED: usize = 50;
/// Pools that are asked for at a time.
const AT_ONCE: usize = 8;
/// Newest boots of a project that are shown.
const MOST_BOOTS: u32 = 5;
/// The branch of a new project when none is named.
const DEFAULT_BRANCH: &str = "main";

pub(crate) async fn projects(client: &Client, arguments: Projects) -> Result<String, Refusal> {
    match arguments.project {
        Some(project) => one(client, &find::project(client, &project).await?.id).await,
        None => list(client).await,
    }
}

async fn list(client: &Client) -> Result<String, Refusal> {
    let page = client.list_projects(None).await?;
    let is_cut = page.has_more || page.items.len() > MOST_LISTED;
    let shown = futures::stream::iter(page.items.into_iter().take(MOST_LISTED))
        .map(async |project: Project| {
            let pool = client.get_pool(&project.id).await?;
            let repos: Vec<&str> = project.repos.iter().map(|repo| repo.repo_full_name.as_str()).collect();
            Ok::<_, ClientError>(format!(
                "{} {} ({}): {}",
                project.id,
                project.name,
                repos.join(", "),
                pool_state(&pool)
            ))
        })
        .buffered(AT_ONCE);
    let lines: Vec<Result<String, ClientError>> = shown.collect().await;
    let mut lines = lines.into_iter().collect::<Result<Vec<String>, ClientError>>()?;
    if lines.is_empty() {
        return Ok(
            "there are no projects that this token may see; `change_setup` with `create_from` makes one".to_owned(),
        );
    }
    if is_cut {
        lines.push(format!(
            "[only the first {MOST_LISTED}; the others are found by their names]"
        ));
    }
    Ok(lines.join("\n"))
}

fn pool_state(pool: &PoolView) -> String {
    let status = &pool.status;
    match &pool.config {
        None => "no pool yet".to_owned(),
        Some(config) => format!(
            "pool {}, {} of {} ready, {} being made, {} failed in 24 h",
            if config.enabled { "enabled" } else { "disabled" },
            status.ready,
            config.target_size,
            status.provisioning,
            status.failed
        ),
    }
}

async fn one(client: &Client, id: &ProjectId) -> Result<String, Refusal> {
    let (view, pool, setup, boots, claims) = tokio::try_join!(
        client.view_project(id),
        client.get_pool(id),
        client.get_setup(id),
        client.list_instances(id, Some(MOST_BOOTS), None),
        client.list_claims(Some(id)),
    )?;
    let mut text = format!("project {} {}\n{}", view.id, view.name, pool_state(&pool));
    for repo in &view.repos {
        let _ = write!(
            text,
            "\nrepository {} branch {} from {}",
            repo.repo_full_name, repo.branch, repo.url
        );
    }
    set_up(&mut text, &view.project_setup, "project command");
    let commands = pool.config.and_then(|config| config.setup_commands);
    set_up(&mut text, &commands, "command");
    scripts(&mut text, &setup);
    for boot in &boots.items {
        let _ = write!(text, "\nboot {}", shown_boot(boot));
    }
    for claim in &claims.items {
        let task = claim.task_id.as_deref().unwrap_or("none");
        let _ = write!(
            text,
            "\nclaimed {} task {task}, lease until {:.0}",
            claim.id, claim.expires_at
        );
    }
    Ok(text)
}

fn set_up(text: &mut String, commands: &Option<Vec<SetupCommand>>, what: &str) {
    for command in commands.iter().flatten() {
        let how = match (command.background, command.timeout_seconds) {
            (Some(true), _) => " (background)".to_owned(),
            (_, Some(seconds)) => format!(" (at most {seconds} s)"),
            _ => String::new(),
        };
        let _ = write!(text, "\n{what} {}{how}: {}", command.name, &*command.command);
    }
}

fn scripts(text: &mut String, setup: &SetupView) {
    for repo in &setup.setup.repositories {
        let of = [
            ("initialize", &repo.scripts.initialize),
            ("update_after_checkout", &repo.scripts.update_after_checkout),
            ("startup", &repo.scripts.startup),
        ];
        for (name, script) in of {
            if let Some(script) = script {
                let _ = write!(text, "\nscript {name} of {}: {}", &*repo.repository, &**script);
            }
        }
    }
}

fn shown_boot(boot: &InstanceItem) -> String {
    let test = if boot.is_test { " (test)" } else { "" };
    let reason = boot.failure_reason.as_deref().map(|reason| format!(": {reason}"));
    format!(
        "{} {}{test}{}",
        boot.id,
        boot.status.as_str(),
        reason.unwrap_or_default()
    )
}

pub(crate) async fn change_setup(client: &Client, arguments: ChangeSetup) -> Result<String, Refusal> {
    let branch = arguments
        .branch
        .map(|branch| value::<Branch>("branch", branch))
        .transpose()?;
    let known = find::optional_project(client, &arguments.project).await?;
    let is_untested = arguments.commands.is_some()
        || arguments.scripts.is_some()
        || arguments.create_from.is_some()
        || branch.is_some();
    let mut done = Vec::new();
    let id = match (known, &arguments.create_from) {
        (Some(project), None) => project.id,
        (Some(project), Some(_)) => {
            return Err(Refusal::new(format!(
                "there is a project `{}` already ({}): leave `create_from` out to change it",
                project.name, project.id
            )));
        }
        (None, Some(url)) => {
            let made = create(client, arguments.project, url, branch.clone()).await?;
            done.push(format!("project {} made", made.id));
            made.id
        }
        (None, None) => {
            return Err(Refusal::new(format!(
                "there is no project with the name or id `{}` that this token may use: `projects` lists them, and `create_from` makes one from a \
                 repository's URL",
                arguments.project
            )));
        }
    };
    if let Some(scripts) = arguments.scripts {
        change_scripts(client, &id, scripts).await?;
        done.push("scripts changed".to_owned());
    }
    let mut patch = PatchPool {
        enabled: arguments.enabled,
        target_size: arguments.target_size,
        branch: branch.map(Some),
        ..PatchPool::default()
    };
    if let Some(changes) = arguments.commands {
        let config = client.get_pool(&id).await?.config;
        let before = config.and_then(|config| config.setup_commands).unwrap_or_default();
        let after = changed(before, changes)?;
        patch.setup_commands = Some((!after.is_empty()).then_some(after));
    }
    if patch != PatchPool::default() {
        let reply = client.patch_pool(&id, &patch).await?;
        let commands = reply.config.as_ref().and_then(|config| config.setup_commands.as_ref());
        let names: Vec<&str> = commands.into_iter().flatten().map(|command| &*command.name).collect();
        let enabled = reply.config.as_ref().is_some_and(|config| config.enabled);
        done.push(format!(
            "the pool is {}; its commands: {}",
            if enabled { "enabled" } else { "disabled" },
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        ));
    }
    if done.is_empty() {
        return Err(Refusal::new(
            "nothing to change was given: `commands`, `scripts`, `branch`, `enabled`, `target_size` or `create_from`",
        ));
    }
    if is_untested {
        done.push(format!("test it with `test_setup`, `project`: {id}"));
    }
    Ok(done.join("\n"))
}

async fn create(client: &Client, name: String, url: &str, branch: Option<Branch>) -> Result<Project, Refusal> {
    let branch = match branch {
        Some(branch) => branch,
        None => value::<Branch>("branch", DEFAULT_BRANCH.to_owned())?,
    };
    let body = CreateProject {
        name: value::<Name>("project", name)?,
        description: None,
        task_code: None,
        repos: vec![RepoInput {
            repo_full_name: value::<RepoFullName>("create_from", full_name(url))?,
            branch,
            url: Some(value::<RepoUrl>("create_from", url.to_owned())?),
            lfs: None,
            submodules: None,
        }],
        image: None,
        project_setup: None,
        vm_size: None,
        max_vms: None,
        git_identity: None,
        lfs: None,
        submodules: None,
    };
    Ok(client.create_project(&body).await?)
}

/// `org/name`: the last two names of a URL's path.
fn full_name(url: &str) -> String {
    let bare = url.trim_end_matches('/').trim_end_matches(".git");
    let names: Vec<&str> = bare.split(['/', ':']).filter(|name| !name.is_empty()).collect();
    names[names.len().saturating_sub(2)..].join("/")
}

/// Each change by its name: in the place of the one that is called so, or behind all.
fn changed(mut commands: Vec<SetupCommand>, changes: Vec<Command>) -> Result<Vec<SetupCommand>, Refusal> {
    for change in changes {
        let at = commands.iter().position(|command| *command.name == *change.name);
        match (at, change.command) {
            (Some(at), None) => {
                commands.remove(at);
            }
            (None, None) => {
                let names: Vec<&str> = commands.iter().map(|command| &*command.name).collect();
                return Err(Refusal::new(format!(
                    "there is no set-up command `{}` to remove; there are: {}",
                    change.name,
                    names.join(", ")
                )));
            }
            (at, Some(text)) => {
                let before = at.map(|at| &commands[at]);
                let new = SetupCommand {
                    background: change.background.or_else(|| before?.background),
                    timeout_seconds: before.and_then(|before| before.timeout_seconds),
                    name: value::<Name>("commands.name", change.name)?,
                    command: value::<CommandText>("commands.command", text)?,
                };
                match at {
                    Some(at) => commands[at] = new,
                    None => commands.push(new),
                }
            }
        }
    }
    Ok(commands)
}

async fn change_scripts(client: &Client, id: &ProjectId, change: Scripts) -> Result<(), Refusal> {
    let mut setup = client.get_setup(id).await?.setup;
    let names: Vec<String> = setup
        .repositories
        .iter()
        .map(|repo| repo.repository.to_string())
        .collect();
    let repo = setup
        .repositories
        .iter_mut()
        .find(|repo| *repo.repository == *change.repository);
    let Some(RepoSetup { scripts, .. }) = repo else {
        return Err(Refusal::new(format!(
            "the project has no repository `{}`; it has: {}",
            change.repository,
            names.join(", ")
        )));
    };
    for (name, script, new) in [
        ("initialize", &mut scripts.initialize, change.initialize),
        (
            "update_after_checkout",
            &mut scripts.update_after_checkout,
            change.update_after_checkout,
        ),
        ("startup", &mut scripts.startup, change.startup),
    ] {
        match new {
            None => {}
            Some(text) if text.is_empty() => *script = None,
            Some(text) => *script = Some(value::<CommandText>(name, text)?),
        }
    }
    client.patch_setup(id, &setup, false).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(name: &str, text: &str) -> SetupCommand {
        SetupCommand {
            name: Name::try_from(name).unwrap(),
            command: CommandText::try_from(text).unwrap(),
            background: None,
            timeout_seconds: None,
        }
    }

    fn change(name: &str, text: Option<&str>) -> Command {
        Command {
            name: name.to_owned(),
            command: text.map(str::to_owned),
            background: None,
        }
    }

    #[test]
    fn commands_change_in_their_place_so_that_what_is_before_stays_cached() {
        let before = vec![command("a", "1"), command("b", "2"), command("c", "3")];
        let after = changed(
            before.clone(),
            vec![change("b", Some("x")), change("d", Some("4")), change("c", None)],
        );
        assert_eq!(
            after.unwrap(),
            [command("a", "1"), command("b", "x"), command("d", "4")]
        );
        let refused = changed(before, vec![change("z", None)]).unwrap_err().to_string();
        assert!(refused.contains("there are: a, b, c"), "{refused}");
    }

    #[test]
    fn a_repository_is_called_by_the_end_of_its_url() {
        for url in [
            "https://git.example.org/acme/app.git",
            "git@git.example.org:acme/app",
            "file:///srv/acme/app/",
            "acme/app",
        ] {
            assert_eq!(full_name(url), "acme/app", "{url}");
        }
        assert_eq!(full_name(""), "");
    }
}
