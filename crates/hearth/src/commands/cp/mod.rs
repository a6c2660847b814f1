//! `hearth cp`: files and folders into a VM and out of it, as `cp -r` and `scp -r` do it.
//!
//! A file appears under its name when all of it is there, on both sides: it is written under another name first. What an interrupted
//! copy has finished stays, and the same command again does the rest.

mod channel;
mod down;
mod location;
mod progress;
mod up;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::time::Instant;

use bytesize::ByteSize;
use clap::Args;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_api::values::Name;
use serde::Serialize;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};
use location::Location;
use progress::Progress;

const AFTER_HELP: &str = "\
Examples:
  hearth cp app.conf last:/etc/app.conf
  hearth cp -r ./src wpi_…:app          # /home/app, or /home/app/src when that folder is there
  hearth cp fix-17:/home/app/dist .
  hearth cp last:/var/log/syslog - | less
  tar -c . | hearth exec last -- tar -x -C /srv

A place in a VM is INSTANCE:PATH, where INSTANCE is its id, a part of it, the task it was claimed for, or `last`. PATH is absolute,
~/… for the user's home folder, or relative to /home. `-` is standard input or output. A name of this computer that holds a colon
is written ./a:b.

A folder is copied with all that it holds, into DEST when that is a folder, else as DEST; SOURCE/. means what it holds. Modes travel,
owners do not: what is made belongs to --user. A file that is replaced keeps its mode. Links that lead out of a copied folder,
devices and pipes are not made on this computer, and are named.";

/// `hearth cp`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CpArgs {
    /// What is copied, and where to: one side is in a VM, INSTANCE:PATH
    #[arg(value_name = "SOURCE… DEST", num_args = 2.., required = true)]
    locations: Vec<OsString>,
    /// The user in the VM who reads and writes, and whose permissions count [default: root]
    #[arg(long)]
    user: Option<Name>,
    /// Folders are always copied whole. The option is there for the habit of `cp -r`
    #[arg(long, short, visible_short_alias = 'R')]
    recursive: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    files: u64,
    bytes: u64,
    left_out: u64,
    failed: u64,
    named: Vec<String>,
}

impl Copied {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.left_out += other.left_out;
        self.failed += other.failed;
        self.named.extend(other.named);
    }
}

/// A VM, and as whom.
struct Vm<'a> {
    client: &'a Client,
    id: InstanceId,
    user: Option<&'a str>,
}

pub(crate) async fn run(globals: &Globals, args: CpArgs) -> Result<u8, Failure> {
    let mut locations = Vec::new();
    for text in &args.locations {
        locations.push(Location::parse(text)?);
    }
    let (to, from) = locations.split_last().ok_or_else(one_side)?;
    let name = from.iter().chain([to]).find_map(Location::vm).ok_or_else(one_side)?;
    let is_legal = match to {
        Location::There { .. } => from.iter().all(|from| from.vm().is_none()),
        _ => from.iter().all(|from| from.vm() == Some(name)),
    };
    if !is_legal {
        return Err(one_side());
    }
    let client = connect::client(globals)?;
    let vm = Vm {
        client: &client,
        id: resolve::instance(&client, name).await?,
        user: args.user.as_deref(),
    };
    let shows = !args.quiet && !globals.json && std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut copied = Copied::default();
    let many = from.len() > 1;
    for from in from {
        let progress = Progress::new(shows, &from.name());
        let done = match (from, to) {
            (Location::There { path, .. }, to) => down::copy(&vm, path, to, many, &progress).await,
            (from, Location::There { path, .. }) => up::copy(&vm, from, path, many, &progress).await,
            _ => Err(one_side()),
        };
        progress.end();
        copied.add(done?);
    }
    if globals.json && *to != Location::Stream {
        output::print_json(&copied)?;
    }
    if !globals.json {
        copied
            .named
            .iter()
            .for_each(|one| output::note_as_it_is(&format!("not copied: {}", clean_line(one))));
        let unnamed = (copied.left_out + copied.failed).saturating_sub(copied.named.len() as u64);
        if unnamed > 0 {
            output::note(&format!("not copied: {unnamed} more"));
        }
    }
    if copied.failed > 0 {
        let failed = usize::try_from(copied.failed).unwrap_or(usize::MAX);
        let message = format!(
            "{} could not be read; everything else was copied",
            output::count(failed, "entry").replace("entrys", "entries")
        );
        return Err(Failure::new(message).hint("--user says whose permissions count; root may read everything"));
    }
    if shows {
        let what = match copied.files {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        };
        let took = output::duration(started.elapsed());
        output::note(&format!("{what}, {} in {took}", ByteSize(copied.bytes)));
    }
    Ok(0)
}

fn one_side() -> Failure {
    Failure::usage("one side of a copy is a VM, the other one is this computer").hint(format!(
        "`{}` copies out of a VM; between two VMs: `{} | {}`",
        hint::command(["cp", "INSTANCE:PATH", "FILE"]),
        hint::command(["cp", "ONE:PATH", "-"]),
        hint::command(["cp", "-", "OTHER:PATH"]),
    ))
}
