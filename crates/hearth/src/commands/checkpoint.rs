//! `hearth checkpoint`: named checkpoints of claimed VMs.

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use hearth_api::fork::{CheckpointRequest, NamedCheckpointItem, RestoreRequest};
use hearth_api::page::Items;
use hearth_api::values::{CheckpointName, Description};

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

const CREATE_HELP: &str = "\
Examples:
  hearth checkpoint create last before-upgrade
  hearth checkpoint create T1 seeded --note 'database filled, tests pass'

What is in the VM's memory is in the checkpoint, secrets too. `hearth claim PROJECT --checkpoint NAME` gives a VM that continues from it,
and `hearth checkpoint restore` lets the VM itself continue from it.";

/// What to do with checkpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Keep processes, memory and disk of a claimed VM under a name; the VM stops for a moment and continues
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// List the checkpoints of a project
    List {
        /// The project's name or id
        project: String,
    },
    /// Delete checkpoints of a project; VMs that were made from them stay
    Delete {
        /// The project's name or id
        project: String,
        /// Their names, as `list` shows them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<CheckpointName>,
    },
    /// Let a claimed VM continue from a checkpoint: what was done in it since is lost, and its claim stays
    Restore {
        #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
        id: String,
        /// The checkpoint's name
        name: CheckpointName,
    },
}

/// `hearth checkpoint create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// What it is called; no other checkpoint of the project is
    name: CheckpointName,
    /// A text about it, for people
    #[arg(long, value_name = "TEXT")]
    note: Option<Description>,
}

pub(crate) async fn run(globals: &Globals, command: CheckpointCommand) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    match command {
        CheckpointCommand::Create(args) => {
            let id = resolve::instance(&client, &args.id).await?;
            let body = CheckpointRequest {
                name: args.name,
                note: args.note,
            };
            let made = client.create_checkpoint(&id, &body).await?;
            output::print(globals.json, &made, |made| {
                format!("made {} of {}: {}", made.name, made.instance_id, ByteSize(made.bytes))
            })?;
            if !globals.json {
                let claim = hint::command(["claim", made.project_id.as_str(), "--checkpoint", made.name.as_str()]);
                output::note(&format!("next: {claim}"));
            }
        }
        CheckpointCommand::List { project } => {
            let project = connect::project(&client, &project).await?;
            let items = client.list_checkpoints(&project.id).await?;
            output::print(globals.json, &items, list)?;
        }
        CheckpointCommand::Delete { project, names } => {
            let project = connect::project(&client, &project).await?;
            for name in &names {
                let deleted = client.delete_checkpoint(&project.id, name).await?;
                output::print(globals.json, &deleted, |deleted| format!("deleted {}", deleted.name))?;
            }
        }
        CheckpointCommand::Restore { id, name } => {
            let id = resolve::instance(&client, &id).await?;
            let shown = name.to_string();
            let body = RestoreRequest { checkpoint: name };
            let reply = client.restore_checkpoint(&id, &body).await?;
            output::print(globals.json, &reply, |reply| {
                format!("{} continues from {shown}, as {}", reply.id, reply.instance_id)
            })?;
        }
    }
    Ok(0)
}

fn list(items: &Items<NamedCheckpointItem>) -> String {
    if items.items.is_empty() {
        return "no checkpoints; `hearth checkpoint create INSTANCE NAME` makes one of a claimed VM".to_owned();
    }
    let row = |item: &NamedCheckpointItem| {
        [
            item.name.clone(),
            item.instance_id.to_string(),
            clean_line(&item.owner),
            ByteSize(item.bytes).to_string(),
            output::ago(item.created_at),
            item.note.as_deref().map_or_else(|| "-".to_owned(), clean_line),
        ]
    };
    output::table(
        ["Name", "Of", "Owner", "On disk", "Made", "Note"],
        items.items.iter().map(row),
    )
}
