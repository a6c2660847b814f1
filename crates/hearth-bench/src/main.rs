//! What `cargo xtask bench` and `cargo xtask load` run when everything is set up: measures, prints a table, writes JSON. Made to be called by them:
//! xtask gives it a folder and a guest image, and ends whatever is left in that folder afterwards, however this ended.

mod again;
mod bare;
mod claims;
mod clients;
mod cold;
mod fill;
mod fork;
mod load;
mod machine;
mod peers;
mod project;
mod report;
mod server;
mod table;
mod vm;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use report::Report;

/// What a shell gives for a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// What the project's own tasks measure with
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// What `cargo xtask bench` runs
    Bench(Args),
    /// What `cargo xtask load` runs
    Load(load::LoadArgs),
}

#[derive(Debug, clap::Args)]
struct Args {
    /// The built binary `hearth`
    #[arg(long)]
    hearth: PathBuf,
    /// Where the guest images are
    #[arg(long)]
    images: PathBuf,
    /// An empty folder for everything that is made
    #[arg(long)]
    folder: PathBuf,
    /// Few rounds
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_enum)]
    only: Vec<Row>,
    /// A Python that has E2B's client
    #[arg(long)]
    e2b: Option<PathBuf>,
    /// Write the figures there, too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A row of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Row {
    /// 1: from a template to a paused VM, against a bare QEMU
    Fork,
    /// 2: claims and first commands
    Claim,
    /// 3: the same without templates
    Cold,
    /// 4: what a user would pick instead
    Peers,
    /// 5: filling a pool, and a burst of claims
    Fill,
    /// 6: memory of a warm VM
    Memory,
    /// 7: test boots again
    Again,
    /// 8: daily work in a claimed VM
    Work,
    /// 9: the first command through E2B's client
    Clients,
}

/// How often each thing is measured.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Forks, and as many bare restores.
    forks: usize,
    /// VMs that are forked in a row, and stay.
    in_a_row: usize,
    /// Claims from a hot pool, and commands at the driver.
    claims: usize,
    /// Claims from an empty pool.
    empty: usize,
    /// Pools filled for the claim after that.
    first: usize,
    /// Boots without templates.
    cold: usize,
    /// VMs of each kind beside what a user would pick instead.
    peers: usize,
    /// Pools of 20 filled.
    fills: usize,
    /// Test boots of each kind.
    again: usize,
    /// Copies of each kind.
    work: usize,
    /// Sandboxes of E2B's client, and as many claims of our own.
    clients: usize,
}

impl Counts {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                forks: 10,
                in_a_row: 20,
                claims: 10,
                empty: 3,
                first: 2,
                cold: 1,
                peers: 4,
                fills: 1,
                again: 2,
                work: 2,
                clients: 5,
            }
        } else {
            Self {
                forks: 40,
                in_a_row: 20,
                claims: 60,
                empty: 12,
                first: 4,
                cold: 2,
                peers: 8,
                fills: 2,
                again: 3,
                work: 4,
                clients: 30,
            }
        }
    }
}

/// What every row works with.
struct Bench {
    args: Args,
    counts: Counts,
    report: Report,
}

impl Bench {
    fn wants(&self, row: Row) -> bool {
        self.args.only.is_empty() || self.args.only.contains(&row)
    }

    fn wants_any(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.wants(*row))
    }
}

/// A progress line for the person who waits.
fn say(text: &str) {
    eprintln!("    {text}");
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the bench cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match task {
            Task::Bench(args) => {
                let folder = args.folder.clone();
                let done = until_stopped(run(args)).await;
                // What containers left is not in any record of Hearth's.
                peers::clean(&folder).await;
                done
            }
            // Servers and PostgreSQL end with the run, however it ends.
            Task::Load(args) => until_stopped(load::measure(&args)).await,
        }
    });
    match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        None => ExitCode::from(EXIT_INTERRUPTED),
    }
}

/// What comes of it; `None` where a signal was sooner.
async fn until_stopped(work: impl Future<Output = Result<()>>) -> Option<Result<()>> {
    tokio::select! {
        done = work => Some(done),
        stop = stopped() => stop.err().map(Err),
    }
}

async fn stopped() -> Result<()> {
    let listen = |kind| signal(kind).context("signals cannot be received");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn run(args: Args) -> Result<()> {
    let report = Report::new(machine::look(&args).await?);
    table::print_head(&report);
    let mut bench = Bench {
        counts: Counts::new(args.quick),
        args,
        report,
    };
    let done = rows(&mut bench).await;
    // What was measured before something failed is worth as much as ever.
    bench.report.machine.load_at_end = machine::load();
    bench.report.judge();
    table::print(&bench.report);
    if let Some(path) = &bench.args.json {
        let text = serde_json::to_vec_pretty(&bench.report)?;
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    done
}

async fn rows(bench: &mut Bench) -> Result<()> {
    if bench.wants_any(&[Row::Fork, Row::Claim, Row::Memory]) {
        fork::measure(bench).await.context("rows at the driver")?;
    }
    let with_server = [
        Row::Claim,
        Row::Cold,
        Row::Peers,
        Row::Fill,
        Row::Memory,
        Row::Again,
        Row::Work,
        Row::Clients,
    ];
    if !bench.wants_any(&with_server) {
        return Ok(());
    }
    let project = project::Project::make(bench).await?;
    let done = server_rows(bench, &project).await;
    let ended = project.end().await;
    done.and(ended)
}

async fn server_rows(bench: &mut Bench, project: &project::Project) -> Result<()> {
    if bench.wants(Row::Cold) {
        cold::measure(bench, project).await.context("row 3")?;
    }
    project.make_template().await?;
    if bench.wants(Row::Again) {
        again::measure(bench, project).await.context("row 7")?;
    }
    if bench.wants(Row::Claim) {
        claims::empty(bench, project).await.context("row 2")?;
    }
    if bench.wants_any(&[Row::Fill, Row::Memory]) {
        fill::measure(bench, project).await.context("rows 5 and 6")?;
    }
    if bench.wants(Row::Claim) {
        claims::first(bench, project).await.context("row 2")?;
        claims::hot(bench, project).await.context("row 2")?;
    }
    if bench.wants(Row::Peers) {
        peers::measure(bench, project).await.context("row 4")?;
    }
    if bench.wants(Row::Work) {
        work::measure(bench, project).await.context("row 8")?;
    }
    if bench.wants(Row::Clients) {
        clients::measure(bench, project).await.context("row 9")?;
    }
    Ok(())
}
