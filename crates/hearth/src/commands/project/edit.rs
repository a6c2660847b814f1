//! `hearth project edit`: the project's own settings, all that may be changed, in the person's own editor.

use std::path::Path;

use hearth_api::client::ClientError;
use hearth_api::find::ProjectFound;
use hearth_api::project::{PatchProject, Project};

use crate::args::Globals;
use crate::editor::{self, Edited};
use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::{branches, connect, hint};

/// What a view shows and a change cannot set.
const KEPT_BY_THE_SERVER: [&str; 3] = ["id", "createdAt", "updatedAt"];

pub(super) async fn run(globals: &Globals, project: &str) -> Result<Edited<Project>, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, project).await?;
    let unreadable = |error: serde_json::Error| Failure::new(format!("the project cannot be shown: {error}"));
    let mut settings = serde_json::to_value(client.view_project(&project.id).await?).map_err(unreadable)?;
    if let Some(members) = settings.as_object_mut() {
        members.retain(|name, _| !KEPT_BY_THE_SERVER.contains(&name.as_str()));
    }
    let text = serde_json::to_string_pretty(&settings).map_err(unreadable)?;
    let edit_again = |_: &Path| {
        let edit = hint::command(["project", "edit", project.name.as_str()]);
        format!("`{edit}` begins anew: copy into it what you need of that file")
    };
    let edited = editor::edit(&format!("{text}\n"), edit_again, async |written| {
        let mut file = JsonFile::parse("what you wrote", written, None)?;
        file.check("PatchProject");
        file.finish("settings of a project")?;
        let patch: PatchProject = serde_json::from_value(file.value.clone())
            .map_err(|error| Failure::usage(format!("what you wrote holds no settings of a project: {error}")))?;
        let changed = client.patch_project(&project.id, &patch).await;
        changed.map_err(|error| match &error {
            ClientError::Api { details, .. } if !details.is_empty() => file.refusal("the server refuses it", details),
            _ => error.into(),
        })
    })
    .await?;
    if let Edited::Taken(changed) = &edited {
        let (id, name) = (changed.id.clone(), changed.name.clone());
        branches::warn(&client, &ProjectFound { id, name }).await;
    }
    Ok(edited)
}
