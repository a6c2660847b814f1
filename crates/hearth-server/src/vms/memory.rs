//! How much memory claimed VMs use, measured again and again: they count with that and with a share of what they may still take. Without
//! a measure a VM counts with its whole size.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::ids::VmId;
use hearth_core::memory::counts_in_use;
use hearth_core::state::InstanceState;
use hearth_drivers::Driver;
use tokio::time::Instant;

use crate::store::InstanceRow;

/// A measure is good for so long: a busy guest takes some hundred MiB in that time, less than what is kept for it.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// How long one measure may take; the kernel walks through all of a process's memory for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Measured at once.
const AT_ONCE: usize = 4;
/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// What was measured, and when.
type Measures = HashMap<VmId, (Instant, Measure)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// It uses so many MiB.
    Uses(u64),
    /// It is paused to the disk.
    Saved,
}

/// Measures what claimed VMs use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    driver: Arc<dyn Driver>,
    /// Share of what a claimed VM may still take that it counts with, percent.
    reserve: u8,
    measured: Arc<Mutex<Measures>>,
}

/// The claimed VMs of the host together.
#[derive(Debug, Clone, Copy, Default)]
struct Claimed {
    vms: u64,
    used_mib: u64,
    counts_mib: u64,
    size_mib: u64,
}

impl Memory {
    /// `reserve`: the share of what a claimed VM may still take that it counts with, percent.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, reserve: u8) -> Self {
        Self {
            driver,
            reserve,
            measured: Arc::default(),
        }
    }

    /// Measures the claimed VMs of these rows whose measure is old.
    pub async fn measure_claimed(&self, rows: &[InstanceRow]) {
        let claimed = || rows.iter().filter(|row| is_claimed_and_there(row));
        let old: Vec<&InstanceRow> = self.measures(|measures| {
            measures.retain(|vm, _| claimed().any(|row| row.vm == *vm));
            let is_good = |row: &InstanceRow| measures.get(&row.vm).is_some_and(|(at, _)| at.elapsed() < GOOD_FOR);
            claimed().filter(|row| !is_good(row)).collect()
        });
        futures::stream::iter(old)
            .for_each_concurrent(AT_ONCE, |row| async move {
                let usage = tokio::time::timeout(PATIENCE, self.driver.usage(&row.vm)).await;
                self.measures(|measures| match usage {
                    Ok(Ok(usage)) => {
                        let measure = match usage.saved_bytes {
                            0 => Measure::Uses(usage.private_bytes.div_ceil(MIB)),
                            _ => Measure::Saved,
                        };
                        measures.insert(row.vm.clone(), (Instant::now(), measure));
                    }
                    // Not known: its whole size.
                    _ => drop(measures.remove(&row.vm)),
                });
            })
            .await;
    }

    /// Memory that the VM of an instance counts with, MiB.
    pub fn counts_mib(&self, row: &InstanceRow) -> u64 {
        match self.measure(row) {
            Some(Measure::Saved) => 0,
            Some(Measure::Uses(used)) => self.would_count_mib(row, used),
            None => row.counts_mib(),
        }
    }

    /// The same if it used so many MiB.
    pub(super) fn would_count_mib(&self, row: &InstanceRow, used_mib: u64) -> u64 {
        counts_in_use(row.memory_mib, used_mib, self.reserve)
    }

    /// What was measured of it does not hold any more.
    pub(super) fn forget(&self, vm: &VmId) {
        self.measures(|measures| measures.remove(vm));
    }

    /// Memory that a VM of this size counts with when it begins to be used and takes so much, MiB.
    pub fn counts_new(&self, size_mib: u64, used_mib: u64) -> u64 {
        counts_in_use(size_mib, used_mib.min(size_mib), self.reserve)
    }

    fn measure(&self, row: &InstanceRow) -> Option<Measure> {
        let measured = || self.measures(|measures| measures.get(&row.vm).map(|(_, measure)| *measure));
        is_claimed_and_there(row).then(measured).flatten()
    }

    /// Notes what the claimed VMs of all pools come to.
    pub fn sum_claimed(&self, rows: &[InstanceRow]) -> String {
        let mut all = Claimed::default();
        for row in rows.iter().filter(|row| is_claimed_and_there(row)) {
            all.used_mib += match self.measure(row) {
                // It costs none.
                Some(Measure::Saved) => continue,
                Some(Measure::Uses(used)) => used,
                None => row.memory_mib,
            };
            all.vms += 1;
            all.counts_mib += self.counts_mib(row);
            all.size_mib += row.memory_mib;
        }
        message(all, self.reserve)
    }

    fn measures<T>(&self, act: impl FnOnce(&mut Measures) -> T) -> T {
        act(&mut self.measured.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One that has ended uses nothing.
fn is_claimed_and_there(row: &InstanceRow) -> bool {
    row.state == InstanceState::Claimed && row.vm_ended.is_none()
}

fn message(all: Claimed, reserve: u8) -> String {
    let rule = format!(
        "a claimed VM counts with the memory that it uses now and {reserve} % of what it may still take up to its size \
         (`hearth serve --claimed-reserve`)"
    );
    match all.vms {
        0 => rule,
        1 => format!(
            "{rule}: the one that there is uses {} MiB and counts with {} of {} MiB",
            all.used_mib, all.counts_mib, all.size_mib
        ),
        vms => format!(
            "{rule}: {vms} of them use {} MiB and count with {} of {} MiB",
            all.used_mib, all.counts_mib, all.size_mib
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_one_sentence_with_its_figures() {
        let all = Claimed {
            vms: 2,
            used_mib: 500,
            counts_mib: 2298,
            size_mib: 4096,
        };
        let text = message(all, 50);
        assert!(text.contains("50 % of what it may still take"), "{text}");
        assert!(
            text.ends_with("2 of them use 500 MiB and count with 2298 of 4096 MiB"),
            "{text}"
        );
        assert!(!message(Claimed::default(), 50).contains("MiB"));
    }
}
