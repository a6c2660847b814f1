//! `hearth pause` and `hearth resume`: a claimed VM stops where it is, and continues.

use clap::Args;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth pause last
  hearth pause T1 --force       also while a shell or a command is open in it: they wait
  hearth pause last --to-disk   it costs no memory either, and takes longer to resume
  hearth resume last            any other command resumes it as well

Every process stops where it is and costs no processor; memory, disk and open connections stay. The lease is renewed by a
pause and by a resume, and not in between: `hearth claim extend` makes it longer.";

/// `hearth pause`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PauseArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// Also while calls are under way in it: they wait until it is resumed, or end with --to-disk
    #[arg(long)]
    force: bool,
    /// Move its memory to the disk: it costs no memory either. Calls under way, with --force, end
    #[arg(long)]
    to_disk: bool,
}

/// `hearth resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
}

pub(crate) async fn pause(globals: &Globals, args: PauseArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let paused = client.pause(&id, args.force, args.to_disk).await?;
    output::print(globals.json, &paused, |paused| {
        let to_disk = if paused.to_disk { " to the disk" } else { "" };
        format!("paused {}{to_disk}: the next command in it resumes it", paused.id)
    })?;
    Ok(0)
}

pub(crate) async fn resume(globals: &Globals, args: ResumeArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let resumed = client.resume(&id).await?;
    output::print(globals.json, &resumed, |resumed| format!("{} runs", resumed.id))?;
    Ok(0)
}
