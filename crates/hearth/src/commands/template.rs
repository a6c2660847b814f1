//! `hearth template`: the frozen VMs that others are forked from.

use bytesize::ByteSize;
use clap::Subcommand;
use hearth_api::template::{CheckpointItem, TemplateList};

use crate::args::Globals;
use crate::failure::{EXIT_FAILED, Failure};
use crate::{connect, output};

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List templates and other checkpoints, and which were found damaged
    List,
    /// Check every byte of every checkpoint; damaged ones are built again. Exit code 1 when one was damaged
    Verify,
}

pub(crate) async fn run(globals: &Globals, command: TemplateCommand) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    match command {
        TemplateCommand::List => output::print(globals.json, &client.list_templates().await?, list)?,
        TemplateCommand::Verify => {
            let verified = client.verify_templates().await?;
            output::print(globals.json, &verified, |verified| {
                let looked = output::count(verified.checked, "checkpoint");
                match verified.damaged {
                    0 => format!("checked every byte of {looked}: all are whole"),
                    damaged => format!(
                        "checked every byte of {looked}: {damaged} damaged, not used any more and built again when needed \
                         (`hearth template list` says which)"
                    ),
                }
            })?;
            if verified.damaged > 0 {
                return Ok(EXIT_FAILED);
            }
        }
    }
    Ok(0)
}

fn list(templates: &TemplateList) -> String {
    let mut text = if templates.items.is_empty() {
        "no checkpoints yet: the first `hearth pool test` or enabled pool makes some".to_owned()
    } else {
        let row = |item: &CheckpointItem| {
            let what = if item.recipes.is_empty() {
                "checkpoint"
            } else {
                "template"
            };
            [
                output::short_digest(&item.key),
                item.project_id
                    .as_ref()
                    .map_or_else(|| "all (base)".to_owned(), ToString::to_string),
                what.to_owned(),
                item.stage.clone(),
                ByteSize(item.bytes).to_string(),
                if item.needed { "yes" } else { "no" }.to_owned(),
                output::ago(item.last_used_at),
            ]
        };
        output::table(
            ["Key", "Project", "Is", "After", "On disk", "Needed", "Last used"],
            templates.items.iter().map(row),
        )
    };
    text.push_str(&format!(
        "\n{} of {} used",
        ByteSize(templates.disk_bytes),
        ByteSize(templates.disk_limit_bytes)
    ));
    for fault in &templates.faults {
        text.push_str(&format!("\nfound damaged {}: {}", output::ago(fault.at), fault.reason));
    }
    text
}
