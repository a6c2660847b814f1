//! `hearth pool edit`: what a pool is configured to be, its commands included, in the person's own editor. The one way to change one
//! command and keep the others.

use std::path::Path;

use hearth_api::client::ClientError;
use hearth_api::pool::{PatchPool, PatchPoolReply};
use serde_json::json;

use crate::args::Globals;
use crate::editor::{self, Edited};
use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::{branches, connect, hint};

pub(super) async fn run(globals: &Globals, project: &str) -> Result<Edited<PatchPoolReply>, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, project).await?;
    let settings = match client.get_pool(&project.id).await?.config {
        Some(config) => json!({
            "enabled": config.enabled,
            "targetSize": config.target_size,
            "maxAgeMinutes": config.max_age_minutes,
            "branch": config.branch,
            "setupCommands": config.setup_commands.unwrap_or_default(),
        }),
        // What is left out gets the server's own value.
        None => json!({ "enabled": false, "setupCommands": [] }),
    };
    let text = serde_json::to_string_pretty(&settings)
        .map_err(|error| Failure::new(format!("the pool cannot be shown: {error}")))?;
    let edit_again = |_: &Path| {
        let edit = hint::command(["pool", "edit", project.name.as_str()]);
        format!("`{edit}` begins anew: copy into it what you need of that file")
    };
    let edited = editor::edit(&format!("{text}\n"), edit_again, async |written| {
        let mut file = JsonFile::parse("what you wrote", written, None)?;
        file.check("PatchPool");
        file.finish("settings of a pool")?;
        let patch: PatchPool = serde_json::from_value(file.value.clone())
            .map_err(|error| Failure::usage(format!("what you wrote holds no settings of a pool: {error}")))?;
        let changed = client.patch_pool(&project.id, &patch).await;
        changed.map_err(|error| match &error {
            ClientError::Api { details, .. } if !details.is_empty() => file.refusal("the server refuses it", details),
            _ => error.into(),
        })
    })
    .await?;
    if matches!(edited, Edited::Taken(_)) {
        branches::warn(&client, &project).await;
    }
    Ok(edited)
}
