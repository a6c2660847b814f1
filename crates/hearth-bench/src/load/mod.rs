//! `cargo xtask load`: claims over real HTTP, as fast as clients can make them, on SQLite and on a durable
//! PostgreSQL with one, two and three servers. The VMs are the fake driver's, so that neither memory nor processor sets the limit. Beside
//! each run on PostgreSQL, pgbench runs the bare claim statement with as many clients: what the database alone could do.

mod claims;
mod database;
mod servers;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hearth_api::counted::count;
use hearth_test_postgres::Postgres;
use serde::Serialize;

use claims::Run;
use servers::Servers;

use crate::report::percentile;

/// VMs of a pool: the most that one may have ready.
const OF_A_POOL: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// The built binary `hearth`
    #[arg(long)]
    hearth: PathBuf,
    /// An empty folder for everything that is made
    #[arg(long)]
    folder: PathBuf,
    /// Pools; each has 20 VMs ready
    #[arg(long, default_value_t = 60)]
    pools: usize,
    /// Clients that claim at the same time
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Numbers of servers on one PostgreSQL
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    servers: Vec<usize>,
    /// How long pgbench runs, seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Write the figures there, too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A line of the table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// What was measured.
    what: String,
    claims: usize,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Rate of the bare statement in the same run; none beside SQLite.
    bare_per_second: Option<f64>,
}

pub(crate) async fn measure(args: &LoadArgs) -> Result<()> {
    let vms = args.pools * OF_A_POOL;
    println!(
        "{} pools of {OF_A_POOL} VMs, {} clients, {} processors for servers, database and clients together\n",
        args.pools,
        args.clients,
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    );
    println!(
        "{:<28} {:>8} {:>10} {:>9} {:>9} {:>12} {:>7}",
        "", "claims", "claims/s", "p50", "p99", "bare/s", "ratio"
    );
    let mut lines = Vec::new();
    let mut tell = |line: Line| {
        let (bare, ratio) = match line.bare_per_second {
            Some(bare) => (format!("{bare:.0}"), format!("{:.2}", line.per_second / bare)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        println!(
            "{:<28} {:>8} {:>10.0} {:>6.1} ms {:>6.1} ms {bare:>12} {ratio:>7}",
            line.what, line.claims, line.per_second, line.p50_ms, line.p99_ms
        );
        lines.push(line);
    };
    let run = one_run(args, None, 1, vms).await.context("SQLite, 1 server")?;
    tell(line("SQLite, 1 server".to_owned(), &run, None));
    for &servers in &args.servers {
        let what = format!("PostgreSQL, {}", count(servers as u64, "server"));
        let postgres = tokio::task::spawn_blocking(Postgres::durable).await?;
        std::fs::create_dir_all(&args.folder)?;
        let time = Duration::from_secs(args.seconds);
        let bare = database::bare_claims(&postgres.database(), &args.folder, args.pools, args.clients, time).await?;
        let run = one_run(args, Some(&postgres.database()), servers, vms)
            .await
            .with_context(|| what.clone())?;
        tell(line(what, &run, Some(bare)));
    }
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_vec_pretty(&lines)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(())
}

async fn one_run(args: &LoadArgs, database: Option<&str>, servers: usize, vms: usize) -> Result<Run> {
    let folder = args.folder.join("servers");
    let servers = Servers::start(&args.hearth, &folder, database, servers, vms).await?;
    let pools = servers.fill(args.pools, OF_A_POOL).await?;
    let run = claims::take_all(&servers, &pools, OF_A_POOL, args.clients).await;
    servers.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    run
}

fn line(what: String, run: &Run, bare_per_second: Option<f64>) -> Line {
    Line {
        what,
        claims: run.took.len(),
        per_second: run.took.len() as f64 / run.all.as_secs_f64(),
        p50_ms: percentile(&run.took, 50),
        p99_ms: percentile(&run.took, 99),
        bare_per_second,
    }
}
