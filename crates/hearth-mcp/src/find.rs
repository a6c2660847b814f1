//! What an agent means by a text: a project by its name or id, an instance by its id, its task, or `last`.

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::ids::InstanceId;

use crate::refusal::Refusal;

/// The project; `None` when there is none of that name or id.
pub(crate) async fn optional_project(client: &Client, text: &str) -> Result<Option<ProjectFound>, Refusal> {
    let mut found = client.find_projects(text).await?.items;
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().map(|project| project.id.as_str()).collect();
        return Err(Refusal::new(format!(
            "`{text}` may mean several projects: use one of the ids {}",
            ids.join(", ")
        )));
    }
    Ok(found.pop())
}

/// The project.
pub(crate) async fn project(client: &Client, text: &str) -> Result<ProjectFound, Refusal> {
    optional_project(client, text).await?.ok_or_else(|| {
        Refusal::new(format!(
            "there is no project with the name or id `{text}` that this token may use: `projects` lists them"
        ))
    })
}

/// The instance, which must be there.
pub(crate) async fn instance(client: &Client, text: &str) -> Result<InstanceId, Refusal> {
    let found = client.find_instances(text, None).await?.items;
    let living: Vec<_> = found.iter().filter(|found| found.status.is_some()).collect();
    match (living.as_slice(), found.as_slice()) {
        ([one], _) => Ok(one.id.clone()),
        ([], []) => Err(Refusal::new(format!(
            "there is no instance `{text}` that this token may use; its id is in the reply of `claim`, and `projects` with a project lists yours"
        ))),
        ([], _) => Err(Refusal::new(format!(
            "the instance `{text}` is gone: it was released or its lease ended. Claim another one, with a new task id"
        ))),
        (several, _) => {
            let ids: Vec<&str> = several.iter().map(|found| found.id.as_str()).collect();
            Err(Refusal::new(format!(
                "`{text}` may mean several instances: use one of the ids {}",
                ids.join(", ")
            )))
        }
    }
}
