//! What was measured, what it is compared with, and whether it is as good as it must be. Plain data.

use std::time::Duration;

use serde::Serialize;

use crate::Row;
use crate::machine::Machine;

/// In what a line counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Milliseconds.
    Ms,
    /// MiB.
    Mib,
    /// So many of something.
    Count,
    /// So many times as much.
    Times,
}

/// Many values of one thing.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Samples {
    pub(crate) row: Row,
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) n: usize,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// In the order in which they were measured.
    pub(crate) values: Vec<f64>,
}

/// One value that follows from others.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) row: Row,
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
}

/// Something to say in a row: why there is no figure, how it was made.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Note {
    pub(crate) row: Row,
    pub(crate) text: String,
}

/// What must hold, and whether it does.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    pub(crate) row: Row,
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) demand: f64,
    pub(crate) at_most: bool,
    pub(crate) unit: Unit,
    pub(crate) holds: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) samples: Vec<Samples>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) notes: Vec<Note>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// Which value of a line a demand is about.
#[derive(Debug, Clone, Copy)]
enum Of {
    P50,
    P95,
    P99,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            samples: Vec::new(),
            figures: Vec::new(),
            notes: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    pub(crate) fn times(&mut self, row: Row, what: &str, times: &[Duration]) {
        let values = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        self.values(row, what, Unit::Ms, values);
    }

    pub(crate) fn values(&mut self, row: Row, what: &str, unit: Unit, values: Vec<f64>) {
        if values.is_empty() {
            return;
        }
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        self.samples.push(Samples {
            row,
            what: what.to_owned(),
            unit,
            n: sorted.len(),
            p50: percentile(&sorted, 50),
            p95: percentile(&sorted, 95),
            p99: percentile(&sorted, 99),
            max: percentile(&sorted, 100),
            values,
        });
    }

    pub(crate) fn figure(&mut self, row: Row, what: &str, unit: Unit, value: f64) {
        self.figures.push(Figure {
            row,
            what: what.to_owned(),
            unit,
            value,
        });
    }

    pub(crate) fn note(&mut self, row: Row, text: impl Into<String>) {
        self.notes.push(Note { row, text: text.into() });
    }

    /// The median of a line.
    pub(crate) fn p50(&self, row: Row, what: &str) -> Option<f64> {
        self.value(row, what, Of::P50)
    }

    /// `what / with`, both medians, as a figure of its own; nothing when one is missing.
    pub(crate) fn ratio(&mut self, row: Row, (what_row, what): (Row, &str), (with_row, with): (Row, &str)) {
        if let (Some(a), Some(b)) = (self.p50(what_row, what), self.p50(with_row, with)) {
            self.figure(row, &format!("{what} / {with}"), Unit::Times, a / b);
        }
    }

    fn value(&self, row: Row, what: &str, of: Of) -> Option<f64> {
        let samples = self.samples.iter().find(|line| line.row == row && line.what == what);
        let figure = || self.figures.iter().find(|line| line.row == row && line.what == what);
        match of {
            Of::P50 => samples.map(|line| line.p50).or_else(|| figure().map(|line| line.value)),
            Of::P95 => samples.map(|line| line.p95),
            Of::P99 => samples.map(|line| line.p99),
        }
    }

    fn unit(&self, row: Row, what: &str) -> Unit {
        let samples = self.samples.iter().find(|line| line.row == row && line.what == what);
        let figure = self.figures.iter().find(|line| line.row == row && line.what == what);
        samples
            .map(|line| line.unit)
            .or(figure.map(|line| line.unit))
            .unwrap_or(Unit::Ms)
    }

    /// Compares what was measured with what Hearth promises.
    pub(crate) fn judge(&mut self) {
        for (row, what, of, at_most, demand) in DEMANDS {
            let Some(value) = self.value(row, what, of) else {
                continue;
            };
            let name = match of {
                Of::P50 => "p50",
                Of::P95 => "p95",
                Of::P99 => "p99",
            };
            self.verdicts.push(Verdict {
                row,
                what: format!("{what}, {name}"),
                value,
                demand,
                at_most,
                unit: self.unit(row, what),
                holds: if at_most { value <= demand } else { value >= demand },
            });
        }
    }
}

/// Nearest rank: a value that was really measured.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Names of lines that are measured in one place and compared in another.
pub(crate) mod names {
    pub(crate) const FORK: &str = "fork to paused";
    pub(crate) const BARE: &str = "bare QEMU restore (qemu-img + QEMU + QMP)";
    pub(crate) const FORK_RATIO: &str = "fork to paused / bare QEMU restore (qemu-img + QEMU + QMP)";
    pub(crate) const FORKS_IN_A_ROW: &str = "20 forks in a row";
    pub(crate) const BARE_IN_A_ROW: &str = "20 bare restores in a row";
    pub(crate) const BARE_MEMORY: &str = "bare restore, never run: private";
    pub(crate) const DRIVER_TRUE: &str = "at the driver: resume + clock + /bin/true";
    pub(crate) const DRIVER_CAT: &str = "at the driver: resume + clock + bash -c 'cat FILE'";
    pub(crate) const CLAIM: &str = "claim, pool hot";
    pub(crate) const CLAIM_TRUE: &str = "claim + /bin/true, pool hot";
    pub(crate) const CLAIM_CAT: &str = "claim + bash -c 'cat FILE', pool hot";
    pub(crate) const EMPTY: &str = "claim + /bin/true, pool empty (source: fork)";
    pub(crate) const EMPTY_CLAIM: &str = "claim, pool empty (source: fork)";
    pub(crate) const FILL: &str = "pool of 20 full";
    pub(crate) const MEMORY: &str = "warm, paused VM: private";
    pub(crate) const UNCHANGED: &str = "test boot, nothing changed";
    pub(crate) const LAST: &str = "test boot, last command changed";
    pub(crate) const LAST_OVER: &str = "test boot, last command changed, without the command's own time";
    pub(crate) const PODMAN_RATIO: &str = "podman run + exec (runc) / Hearth, /bin/true";
    pub(crate) const PODMAN_RATIO_CAT: &str = "podman run + exec (runc) / Hearth, bash -c 'cat FILE'";
    pub(crate) const INCUS_RATIO: &str = "incus copy + start + exec / Hearth, /bin/true";
    pub(crate) const INCUS_RATIO_CAT: &str = "incus copy + start + exec / Hearth, bash -c 'cat FILE'";
    pub(crate) const SDK: &str = "Sandbox.create + commands.run(\"true\") of E2B's client, pool hot";
    pub(crate) const OWN: &str = "claim + bash -c true, Hearth's own client, pool hot";
    pub(crate) const HOOK: &str = "hook of a cloud agent's order (hearth relay command), pool hot";
    pub(crate) const WORKER: &str = "the same until its worker runs";
    pub(crate) const CP_UP: &str = "hearth cp, 32 MiB into the VM";
    pub(crate) const SCP_UP: &str = "scp over hearth ssh-proxy, 32 MiB into the VM";
    pub(crate) const CP_DOWN: &str = "hearth cp, 32 MiB out of the VM";
    pub(crate) const SCP_DOWN: &str = "scp over hearth ssh-proxy, 32 MiB out of the VM";
    pub(crate) const EXEC_DOWN: &str = "hearth exec -- cat, 32 MiB out of the VM";
    pub(crate) const INCUS_PUSH: &str = "incus file push, 32 MiB into a container";
    pub(crate) const PROXY_SMALL: &str = "GET of 2 bytes through the port proxy";
    pub(crate) const INSIDE_SMALL: &str = "GET of 2 bytes by a client in the VM";
    pub(crate) const PROXY_BIG: &str = "GET of 8 MiB through the port proxy";
    pub(crate) const INSIDE_BIG: &str = "GET of 8 MiB by a client in the VM";
}

/// What must hold: milliseconds, MiB or times as much, on two processors without hardware virtualisation.
const DEMANDS: [(Row, &str, Of, bool, f64); 17] = [
    (Row::Fork, names::FORK_RATIO, Of::P50, true, 1.3),
    (Row::Claim, names::CLAIM, Of::P50, true, 12.0),
    (Row::Claim, names::CLAIM, Of::P99, true, 40.0),
    (Row::Claim, names::CLAIM_TRUE, Of::P50, true, 25.0),
    (Row::Claim, names::CLAIM_CAT, Of::P50, true, 50.0),
    (Row::Claim, names::EMPTY, Of::P50, true, 400.0),
    (Row::Peers, names::PODMAN_RATIO, Of::P50, false, 4.0),
    (Row::Peers, names::PODMAN_RATIO_CAT, Of::P50, false, 4.0),
    (Row::Peers, names::INCUS_RATIO, Of::P50, false, 4.0),
    (Row::Peers, names::INCUS_RATIO_CAT, Of::P50, false, 4.0),
    (Row::Fill, names::FILL, Of::P50, true, 6000.0),
    (Row::Memory, names::MEMORY, Of::P50, true, 45.0),
    (Row::Again, names::UNCHANGED, Of::P50, true, 1500.0),
    (Row::Again, names::LAST_OVER, Of::P50, true, 1500.0),
    (Row::Claim, names::EMPTY_CLAIM, Of::P50, true, 400.0),
    (Row::Clients, names::HOOK, Of::P50, true, 150.0),
    (Row::Clients, names::WORKER, Of::P95, true, 1000.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 5.0);
        assert_eq!(percentile(&values, 95), 10.0);
        assert_eq!(percentile(&values, 100), 10.0);
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert!(percentile(&[], 50).is_nan());
    }
}
