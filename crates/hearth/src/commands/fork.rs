//! `hearth fork`: running copies of a claimed VM.

use clap::Args;
use hearth_api::fork::{ForkReply, ForkRequest, ForkedClaim, MAX_FORKS};
use hearth_api::values::TaskId;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth fork last              one copy
  hearth fork T1 -n 3           three copies: the tasks T1-1, T1-2 and T1-3
  hearth fork T1 -n 3 --task try --ttl 60
  for id in $(hearth fork T1 -n 3 --id-only); do hearth exec $id -- ./attempt; done

Each copy continues from the same moment, with the processes, memory and disk of the VM, and is a claimed VM of its own: other host
name, machine id and keys, and a claim of the same owner that is released by itself. Detached sessions run in the copies too; commands
and terminals that somebody is attached to, and connections to the outside, end there. The VM itself stops for a moment and continues.
All copies are made or none.";

/// `hearth fork`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ForkArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_FORKS))]
    count: u64,
    /// Name the tasks of the copies after this one (ID-1, ID-2 …; the id itself for one copy): asking again with the same one gives
    /// the same copies
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// Length of the leases in minutes (default: they end when the VM's own lease does)
    #[arg(long, value_name = "MINUTES")]
    ttl: Option<u64>,
    /// Print the instances' ids alone, one in a line
    #[arg(long, conflicts_with = "json")]
    id_only: bool,
}

pub(crate) async fn run(globals: &Globals, args: ForkArgs) -> Result<u8, Failure> {
    let body = ForkRequest {
        count: Some(args.count),
        task_id: args.task,
        ttl_minutes: args.ttl,
    };
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let reply = client.fork(&id, &body).await?;
    if args.id_only {
        for fork in &reply.items {
            output::print_line(fork.claim.id.as_str())?;
        }
        return Ok(0);
    }
    output::print(globals.json, &reply, show)?;
    if !globals.json
        && let Some(first) = reply.items.first()
    {
        output::note(&format!(
            "next: {} -- <command>, then {}",
            hint::command(["exec", first.claim.id.as_str()]),
            hint::command(["release", first.claim.id.as_str()])
        ));
    }
    Ok(0)
}

fn show(reply: &ForkReply) -> String {
    let row = |fork: &ForkedClaim| {
        [
            fork.claim.id.to_string(),
            fork.claim.instance_id.to_string(),
            fork.task_id.as_deref().map_or_else(|| "-".to_owned(), clean_line),
            format!("{:.0}", fork.claim.expires_at),
        ]
    };
    let table = output::table(["Id", "VM", "Task", "Yours until"], reply.items.iter().map(row));
    let stopped = match reply.paused_ms {
        // It was paused all the time.
        0 => String::new(),
        paused_ms => format!(", which was stopped for {}", output::millis(paused_ms)),
    };
    format!("{table}\nforked {}{stopped}", reply.parent)
}
