//! When each VM is to be asked whether it answers, and what is known of those that did not.

use std::collections::HashMap;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_api::instance::Unresponsive;
use hearth_core::redact::Redacted;
use hearth_core::state::InstanceState;
use jiff::Timestamp;
use rand::RngExt as _;
use tokio::time::Instant;

use crate::store::InstanceRow;

/// After a miss the VM is asked again so much sooner; so often it is looked which VMs are due, too.
pub(super) const SOONER: u32 = 20;
/// A VM that runs is asked this often, if not more often than one of the pool: a user waits for it.
pub(super) const RUNNING_INTERVAL: Duration = Duration::from_secs(60);

/// When each VM is due, and how often it missed.
#[derive(Debug, Default)]
pub(super) struct ProbeStates(pub(super) HashMap<VmId, Probe>);

#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) due: Instant,
    pub(super) misses: u32,
    /// When the first answer of this row of misses was missed.
    pub(super) missed: Option<Timestamp>,
    /// It is known not to answer.
    pub(super) silent: Option<Unresponsive>,
}

/// Whose VM it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// It stands ready in the pool.
    Pool,
    /// It is being set up.
    Build,
    /// It is claimed, or kept for debugging.
    Owner,
}

pub(super) fn whose(row: &InstanceRow) -> Whose {
    match row.state {
        InstanceState::Provisioning => Whose::Build,
        InstanceState::Ready if row.purpose.serves_claims() => Whose::Pool,
        _ => Whose::Owner,
    }
}

impl ProbeStates {
    /// Those that are due; a new one is due at any moment of the first interval, so that VMs made together are not asked together.
    pub(super) fn due(&mut self, rows: &[InstanceRow], interval: Duration) -> Vec<VmId> {
        self.0.retain(|vm, _| rows.iter().any(|row| row.vm == *vm));
        let now = Instant::now();
        for row in rows {
            let interval = match whose(row) {
                Whose::Pool => interval,
                _ => interval.min(RUNNING_INTERVAL),
            };
            let probe = self.0.entry(row.vm.clone()).or_insert_with(|| Probe {
                due: now + interval.mul_f64(rand::rng().random_range(0.1..1.0)),
                misses: 0,
                missed: None,
                silent: None,
            });
            // What was of the pool and is claimed now is asked as often as its like.
            probe.due = probe.due.min(now + interval.mul_f64(1.25));
        }
        let due = self.0.iter().filter(|(_, probe)| probe.due <= now);
        due.map(|(vm, _)| vm.clone()).collect()
    }

    /// Notes how it ended; the misses in a row before and now.
    pub(super) fn note(&mut self, vm: &VmId, missed: bool, interval: Duration) -> (u32, u32) {
        let Some(probe) = self.0.get_mut(vm) else { return (0, 0) };
        let before = probe.misses;
        if missed {
            probe.misses += 1;
            probe.missed.get_or_insert_with(Timestamp::now);
        } else {
            (probe.misses, probe.missed, probe.silent) = (0, None, None);
        }
        let pause = if missed { interval / SOONER } else { interval };
        probe.due = Instant::now() + pause.mul_f64(rand::rng().random_range(0.75..1.25));
        (before, probe.misses)
    }

    /// It is known now not to answer; `Some` when that is news.
    pub(super) fn silence(&mut self, vm: &VmId, reason: Redacted) -> Option<Unresponsive> {
        let probe = self.0.get_mut(vm)?;
        let since = probe.missed.unwrap_or_else(Timestamp::now);
        let is_news = probe.silent.is_none();
        let silent = Unresponsive {
            since,
            reason: reason.into(),
        };
        probe.silent = Some(silent.clone());
        is_news.then_some(silent)
    }
}
