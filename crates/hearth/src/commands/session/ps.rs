//! `hearth ps`: the sessions in a VM, and all of its processes.

use bytesize::ByteSize;
use clap::Args;
use hearth_api::page::Items;
use hearth_api::session::{Process, Session};
use serde::Serialize;

use super::{command, status_text};
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output, resolve};

/// KiB in bytes.
const KIB: u64 = 1024;

const AFTER_HELP: &str = "\
Examples:
  hearth ps last
  hearth ps wpi_… --all

Sessions are started with `hearth exec --detach`, and from the terminals of the settings file. The last 64 that have ended
are listed, too. --all adds every process of the VM, with the session that it is of.";

/// `hearth ps`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PsArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// Every process of the VM, too
    #[arg(long, short)]
    all: bool,
}

#[derive(Serialize)]
struct All {
    sessions: Vec<Session>,
    processes: Vec<Process>,
}

pub(crate) async fn run(globals: &Globals, args: PsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let sessions = client.list_sessions(&id).await?;
    if args.all {
        let processes = client.list_processes(&id).await?;
        let all = All { sessions, processes };
        output::print(globals.json, &all, |all| {
            format!("{}\n\n{}", session_table(&all.sessions), process_table(&all.processes))
        })?;
    } else {
        output::print(globals.json, &Items { items: sessions }, |list| {
            session_table(&list.items)
        })?;
    }
    Ok(0)
}

fn session_table(sessions: &[Session]) -> String {
    if sessions.is_empty() {
        return "no sessions; `hearth exec --detach INSTANCE -- COMMAND` starts one".to_owned();
    }
    let row = |session: &Session| {
        let mut size = ByteSize(session.output_bytes).to_string();
        if session.dropped_bytes > 0 {
            size.push_str(&format!(" ({} dropped)", ByteSize(session.dropped_bytes)));
        }
        [
            session.id.clone(),
            session.tag.as_deref().map_or_else(|| "-".to_owned(), clean_line),
            session.pid.to_string(),
            status_text(session),
            output::ago(session.started_at),
            size,
            command(session),
        ]
    };
    output::table(
        ["Session", "Tag", "PID", "Status", "Started", "Output", "Command"],
        sessions.iter().map(row),
    )
}

fn process_table(processes: &[Process]) -> String {
    let row = |process: &Process| {
        [
            process.pid.to_string(),
            process.parent.to_string(),
            clean_line(&process.user),
            clean_line(&process.state),
            ByteSize(process.rss_kib * KIB).to_string(),
            output::millis(process.cpu_ms),
            process.session.clone().unwrap_or_else(|| "-".to_owned()),
            clean_line(&process.command),
        ]
    };
    output::table(
        ["PID", "Parent", "User", "State", "Memory", "CPU", "Session", "Command"],
        processes.iter().map(row),
    )
}
