//! What a run is told in.

use comfy_table::{Table, TableStyle};
use hdrhistogram::Histogram;

/// Longest time that is told apart, microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// Counts and times of a run.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) warm: u64,
    pub(crate) fork: u64,
    pub(crate) joined: u64,
    pub(crate) cold: u64,
    pub(crate) refused: u64,
    /// The VM made for the claim failed.
    pub(crate) failed: u64,
    /// The server was restarting.
    pub(crate) down: u64,
    /// VMs begun.
    pub(crate) begun: u64,
    /// Of them: test boots and builds.
    pub(crate) beside: u64,
    pub(crate) passes: u64,
    pub(crate) faults: u64,
    pub(crate) restarts: u64,
    /// Boots that continued after a restart, as the same instance.
    pub(crate) went_on: u64,
    pub(crate) outages: u64,
    /// Templates that were found damaged when they were to be used.
    pub(crate) damaged: u64,
    /// Calls of the driver that change something, and looks at templates.
    pub(crate) calls: u64,
    pub(crate) settled: u64,
    /// Most rows at once.
    pub(crate) most: usize,
    /// From request to VM, microseconds.
    pub(crate) waits: Histogram<u64>,
    /// Of a pass, microseconds of this machine.
    pub(crate) plan: Histogram<u64>,
}

impl Figures {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            warm: 0,
            fork: 0,
            joined: 0,
            cold: 0,
            refused: 0,
            failed: 0,
            down: 0,
            begun: 0,
            beside: 0,
            passes: 0,
            faults: 0,
            restarts: 0,
            went_on: 0,
            outages: 0,
            damaged: 0,
            calls: 0,
            settled: 0,
            most: 0,
            waits: Histogram::new_with_max(LONGEST, 3)?,
            plan: Histogram::new_with_max(LONGEST, 3)?,
        })
    }

    pub(crate) fn served(&self) -> u64 {
        self.warm + self.fork + self.joined + self.cold
    }

    fn asked(&self) -> u64 {
        self.served() + self.refused + self.failed + self.down
    }

    /// Takes another run's figures in.
    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        let sums = [
            (&mut self.warm, other.warm),
            (&mut self.fork, other.fork),
            (&mut self.joined, other.joined),
            (&mut self.cold, other.cold),
            (&mut self.refused, other.refused),
            (&mut self.failed, other.failed),
            (&mut self.down, other.down),
            (&mut self.begun, other.begun),
            (&mut self.beside, other.beside),
            (&mut self.passes, other.passes),
            (&mut self.faults, other.faults),
            (&mut self.restarts, other.restarts),
            (&mut self.went_on, other.went_on),
            (&mut self.outages, other.outages),
            (&mut self.damaged, other.damaged),
            (&mut self.calls, other.calls),
            (&mut self.settled, other.settled),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.most = self.most.max(other.most);
        self.waits.add(&other.waits)?;
        self.plan.add(&other.plan)?;
        Ok(())
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        let asked = self.asked().max(1);
        let share = |count: u64| format!("{count} ({:.2} %)", count as f64 * 100.0 / asked as f64);
        let spread = |times: &Histogram<u64>, last: f64| {
            let at = |share: f64| times.value_at_quantile(share) as f64 / 1000.0;
            format!(
                "{:.1} / {:.1} / {:.1} ms",
                at(0.5),
                at(if last < 1.0 { 0.95 } else { 0.99 }),
                at(last)
            )
        };
        let rows = [
            ("claims", asked.to_string()),
            ("  warm", share(self.warm)),
            ("  forked for it", share(self.fork)),
            ("  joined one being made", share(self.joined)),
            ("  cold", share(self.cold)),
            ("  refused: nothing ready", share(self.refused)),
            ("  its VM failed", share(self.failed)),
            ("  server restarting", share(self.down)),
            ("waits p50 / p95 / p99", spread(&self.waits, 0.99)),
            (
                "VMs begun",
                format!("{} ({} of them tests and builds)", self.begun, self.beside),
            ),
            (
                "VMs begun per served claim",
                format!("{:.3}", self.begun as f64 / self.served().max(1) as f64),
            ),
            ("calls of the fake driver", self.calls.to_string()),
            ("most rows at once", self.most.to_string()),
            (
                "faults and changes",
                format!(
                    "{}, {} restarts ({} boots continued), {} outages, {} damaged templates found",
                    self.faults, self.restarts, self.went_on, self.outages, self.damaged
                ),
            ),
            ("times everything was found settled", self.settled.to_string()),
            ("passes", self.passes.to_string()),
            ("plan p50 / p99 / longest", spread(&self.plan, 1.0)),
        ];
        for (name, value) in rows {
            table.add_row([name, value.as_str()]);
        }
        table
    }
}
