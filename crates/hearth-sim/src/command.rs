//! The command line: one run or many, and what they come to.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use comfy_table::{CellAlignment, Table, TableStyle};

use crate::figures::Figures;
use crate::growth;
use crate::sim::{Broken, Plan, Sim, clock};
use crate::state::{Micros, SECOND};

/// Shortest pause between two passes; a large installation's observation takes longer than that.
const PAUSE_LEAST: Micros = SECOND / 10;
/// Share of the pause that each pool adds: 10,000 pools are observed and decided on once a second.
const PAUSE_OF_A_POOL: Micros = SECOND / 10_000;
/// Numbers of pools at which a decision is timed.
const SIZES: [usize; 4] = [1_000, 3_000, 10_000, 100_000];

/// Run the planner through simulated days with faults, and check what it promises
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask sim",
    bin_name = "cargo xtask sim",
    max_term_width = 120,
    after_help = "What a run costs: most of it are the passes, about 0.2 ms for each 1,000 rows. 500 pools at 20 claims a second are \
                  3 s of one core for each simulated hour; 10,000 pools at 2,000 claims a second (one pass a second over 65,000 \
                  rows) about 2 minutes, so 24 hours are most of an hour of a core that has nothing else to do, and some 100 MiB. \
                  There are no claims in the last fifth of each hour, where everything must settle. The same seed is the same run."
)]
struct Args {
    /// Pools
    #[arg(long, default_value_t = 1_000)]
    pools: usize,
    /// Claims a second, of all pools together; popular pools get more of them
    #[arg(long, default_value_t = 50.0)]
    claims_per_second: f64,
    /// Simulated hours
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// What everything is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many runs, with this seed and those after it, on all cores
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How long a task keeps its VM on average, seconds
    #[arg(long, default_value_t = 20.0)]
    hold_seconds: f64,
    /// Shortest time between two passes, milliseconds; by default 100 and more for many pools
    #[arg(long)]
    pause_ms: Option<u64>,
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        let by_size = PAUSE_LEAST.max(self.pools as u64 * PAUSE_OF_A_POOL);
        Plan {
            pools: self.pools.max(1),
            claims_per_second: self.claims_per_second.max(0.001),
            length: (self.hours * 3600.0) as Micros * SECOND,
            seed,
            pause: self.pause_ms.map_or(by_size, |pause| pause * 1000),
            hold_seconds: self.hold_seconds.max(1.0),
            tells: self.seeds <= 1,
        }
    }
}

/// Runs what the command line asks for.
#[must_use]
pub fn run() -> ExitCode {
    match run_all(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(args: &Args) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut all = Figures::new()?;
    let mut whole = true;
    for result in run_seeds(args)? {
        match result {
            Ok(figures) => all.add(&figures)?,
            Err(_) => whole = false,
        }
    }
    println!(
        "{} pools, {} claims a second, {} simulated hours, seeds {} to {}: {:.0} s",
        args.pools,
        args.claims_per_second,
        args.hours,
        args.seed,
        args.seed + args.seeds.max(1) - 1,
        began.elapsed().as_secs_f64()
    );
    println!("{}\n", all.table());
    if whole {
        println!("{}", growth_table()?);
    }
    Ok(whole)
}

/// Every seed's run, as many at a time as there are cores.
fn run_seeds(args: &Args) -> anyhow::Result<Vec<Result<Figures, Box<Broken>>>> {
    let next = AtomicU64::new(args.seed);
    let end = args.seed + args.seeds.max(1);
    let results = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.min(usize::try_from(args.seeds.max(1))?);
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(());
            }
            let began = Instant::now();
            let result = Sim::new(args.plan(seed))?.run();
            let verdict = if result.is_ok() { "kept" } else { "BROKEN" };
            eprintln!("seed {seed}: {verdict}, {:.1} s", began.elapsed().as_secs_f64());
            if let Err(broken) = &result {
                tell_broken(broken);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
        }
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in started {
            let ended = worker.join();
            ended.map_err(|_| anyhow::anyhow!("a run panicked; its message is above"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn tell_broken(broken: &Broken) {
    println!("A promise is broken. Seed {}, at {}:", broken.seed, clock(broken.at));
    println!("  {}\nWhat happened last:", broken.what);
    for line in &broken.recent {
        println!("  {line}");
    }
    println!();
}

fn growth_table() -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header([
        "one decision, pools of 3",
        "nothing to do",
        "every pool misses one and was pushed",
    ]);
    for pools in SIZES {
        let growth = growth::measure(pools)?;
        let millis = |time: std::time::Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        table.add_row([growth.pools.to_string(), millis(growth.quiet), millis(growth.busy)]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_break_no_promise_and_are_the_same_every_time() {
        let args = "sim --pools 200 --claims-per-second 4 --pause-ms 1500 --seeds 3";
        let args = Args::parse_from(args.split(' '));
        let runs = run_seeds(&args).unwrap();
        let mut all = Figures::new().unwrap();
        for run in runs {
            all.add(&run.unwrap()).unwrap();
        }
        // A run in which nothing happens proves nothing.
        assert!(all.served() > 10_000 && all.warm > 0 && all.fork > 0 && all.joined > 0 && all.cold > 0);
        assert!(all.restarts > 3 && all.went_on > 3 && all.outages > 1 && all.faults > 100 && all.settled == 6);
        let again = |seed| {
            Sim::new(Plan {
                pools: 20,
                ..args.plan(seed)
            })
            .unwrap()
            .run()
            .unwrap()
        };
        let (one, other) = (again(7), again(7));
        assert_eq!(
            (one.served(), one.begun, one.passes),
            (other.served(), other.begun, other.passes)
        );
    }
}
