//! What a person means by a text: a project by its name or id, an instance by its id, a part of it, its task, or `last`. One
//! place for all commands; the server looks, so that it works with a token that may only claim.

use hearth_api::client::{Client, ClientError};
use hearth_api::find::{InstanceFound, LAST, ProjectFound};
use hearth_api::ids::{InstanceId, ProjectId};

use crate::failure::{EXIT_USAGE, Failure};
use crate::text::clean_line;
use crate::{hint, output};

/// How ids of projects begin.
const PROJECT_PREFIX: &str = "prj_";
/// How ids of instances begin.
const INSTANCE_PREFIX: &str = "wpi_";
/// The characters of an id after its beginning.
const ID_DIGITS: usize = 32;

/// What an option for an instance takes, in `--help`.
pub(crate) const INSTANCE_HELP: &str = "The instance: its id, the beginning or end of it, the task it was claimed for, or `last` for what you claimed last";

/// A whole id needs no look-up: the command itself says when there is none.
fn is_whole(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == ID_DIGITS && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// An older server has no such path, and something else in its place has another answer.
fn cannot_be_asked(error: &ClientError) -> bool {
    error.is_not_found() || matches!(error, ClientError::Decode { .. })
}

/// The project that a person named by its id, the beginning of its id, or its name.
pub(crate) async fn project(client: &Client, text: &str) -> Result<ProjectFound, Failure> {
    if is_whole(text, PROJECT_PREFIX)
        && let Ok(id) = text.parse::<ProjectId>()
    {
        let name = id.to_string();
        return Ok(ProjectFound { id, name });
    }
    let mut may_list = None;
    let mut found = match client.find_projects(text).await {
        Ok(found) => found.items,
        Err(error) if cannot_be_asked(&error) => {
            let found = listed(client, text).await?;
            may_list = Some(true);
            found
        }
        Err(error) => return Err(error.into()),
    };
    if found.len() > 1 {
        let failure = Failure::new(format!(
            "`{}` may mean {}",
            clean_line(text),
            count(found.len(), "project")
        ));
        let failure = failure.with_code(EXIT_USAGE).hint("use the name, or more of the id");
        return Err(found.iter().fold(failure, |failure, project| {
            failure.detail(format!("{}  {}", project.id, clean_line(&project.name)))
        }));
    }
    match found.pop() {
        Some(found) => Ok(found),
        None => Err(Failure::new(format!(
            "there is no project with the name or id `{}`",
            clean_line(text)
        ))
        .hint(where_projects_are(client, may_list).await)),
    }
}

/// Where a person finds the names of projects: a token that may only claim may not list them.
async fn where_projects_are(client: &Client, may_list: Option<bool>) -> String {
    let may_list = match may_list {
        Some(known) => known,
        None => !matches!(
            client.list_projects(None).await,
            Err(ClientError::Api { status: 403, .. })
        ),
    };
    if may_list {
        return format!("see `{}`", hint::command(["project", "list"]));
    }
    "this token may not list projects: ask the person who made it for the name, or for the id".to_owned()
}

/// The same by the list of all projects.
async fn listed(client: &Client, text: &str) -> Result<Vec<ProjectFound>, Failure> {
    let all = client.list_all_projects().await?;
    let fitting = all
        .into_iter()
        .filter(|project| project.id.as_str() == text || project.name == text);
    let found = fitting.map(|project| ProjectFound {
        id: project.id,
        name: project.name,
    });
    Ok(found.collect())
}

/// The instance that a person means, which must be there.
pub(crate) async fn instance(client: &Client, text: &str) -> Result<InstanceId, Failure> {
    look_up(client, text, None, false).await
}

/// The same of one project.
pub(crate) async fn instance_of(client: &Client, project: &ProjectId, text: &str) -> Result<InstanceId, Failure> {
    look_up(client, text, Some(project), false).await
}

/// The instance whose claim a person means; it may be gone.
pub(crate) async fn claimed_instance(client: &Client, text: &str) -> Result<InstanceId, Failure> {
    look_up(client, text, None, true).await
}

async fn look_up(
    client: &Client,
    text: &str,
    project: Option<&ProjectId>,
    may_be_gone: bool,
) -> Result<InstanceId, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::usage("an empty text names no VM")
            .hint("`hearth claims` lists them; `last` is what you claimed last"));
    }
    let id: Option<InstanceId> = text.parse().ok();
    if let Some(id) = id.as_ref().filter(|_| is_whole(text, INSTANCE_PREFIX)) {
        return Ok(id.clone());
    }
    let found = match (client.find_instances(text, project).await, id) {
        (Ok(found), _) => found.items,
        // The command itself says what is wrong with it.
        (Err(error), Some(id)) if cannot_be_asked(&error) => return Ok(id),
        (Err(error), _) => return Err(error.into()),
    };
    choose(&found, text, may_be_gone)
}

/// The one that is meant: a living one is meant rather than one that is gone.
fn choose(found: &[InstanceFound], text: &str, may_be_gone: bool) -> Result<InstanceId, Failure> {
    let named = clean_line(text);
    let living: Vec<&InstanceFound> = found.iter().filter(|one| one.status.is_some()).collect();
    let fitting = if living.is_empty() && may_be_gone {
        found.iter().collect()
    } else {
        living
    };
    let list = format!("see `{}`", hint::command(["claims"]));
    match (fitting.as_slice(), found) {
        ([one], _) => Ok(one.id.clone()),
        ([], []) if text == LAST => {
            Err(Failure::new("you have claimed nothing with this token that is still known").hint(list))
        }
        ([], []) => Err(Failure::new(format!(
            "there is no VM `{named}`: no id begins or ends so, and no claim is for a task of this name"
        ))
        .hint(list)),
        ([], [gone, ..]) => {
            let what = gone
                .task_id
                .as_deref()
                .map_or_else(String::new, |task| format!(" of task {}", clean_line(task)));
            Err(Failure::new(format!(
                "the VM {}{what} is gone: it was given back, or its lease ended",
                gone.id
            ))
            .hint(list))
        }
        (several, _) => {
            let failure = Failure::usage(format!("`{named}` may mean {}", count(several.len(), "VM")));
            let failure = failure.hint("use more of the id");
            Err(several
                .iter()
                .fold(failure, |failure, one| failure.detail(candidate(one))))
        }
    }
}

/// `wpi_…  web  claimed 5 min ago for T10`.
fn candidate(one: &InstanceFound) -> String {
    let status = one.status.map_or("gone", hearth_api::instance::InstanceStatus::as_str);
    let when = one
        .claimed_at
        .map_or_else(String::new, |at| format!(", claimed {}", output::ago(at)));
    let task = one
        .task_id
        .as_deref()
        .map_or_else(String::new, |task| format!(" for {task}"));
    clean_line(&format!("{}  {}  {status}{when}{task}", one.id, one.project_name))
}

fn count(number: usize, noun: &str) -> String {
    output::count(number as u64, noun)
}
