//! Why a pool is as it is: what holds it back, in words, with the figures.

use std::collections::HashMap;
use std::sync::PoisonError;

use hearth_api::ids::ProjectId;
use hearth_core::plan::Hold;
use hearth_core::state::FailureKind;
use jiff::Timestamp;

use super::Reconciler;
use crate::store::InstanceRow;

/// What holds a pool back.
#[derive(Debug, Clone)]
pub struct Held {
    /// The condition's name.
    pub kind: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// For a person.
    pub message: String,
}

/// What this host may be asked for, and what is used of it.
#[derive(Debug, Clone, Copy)]
pub struct HostUse {
    /// VMs that exist.
    pub vms: usize,
    /// VMs that may exist.
    pub max_vms: usize,
    /// Memory that they count with, MiB.
    pub memory_mib: u64,
    /// Memory that they may have, MiB.
    pub max_memory_mib: u64,
}

impl Reconciler {
    /// What is used of this host.
    #[must_use]
    pub fn host_use(&self, rows: &[InstanceRow]) -> HostUse {
        let existing = || rows.iter().filter(|row| row.state.may_have_vm());
        HostUse {
            vms: existing().count(),
            max_vms: self.limits.max_vms,
            memory_mib: existing().map(InstanceRow::counts_mib).sum(),
            max_memory_mib: self.limits.memory_mib,
        }
    }

    /// Notes what this pass decided, and says in the log what is new.
    pub(super) fn note_holds(&self, holds: Vec<(ProjectId, Hold)>, now: Timestamp) {
        let mut before = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = HashMap::new();
        for (project, hold) in holds {
            // Being busy is no condition.
            if hold == Hold::InTheMaking {
                continue;
            }
            let known = before.get(&project).filter(|(known, _)| same_kind(*known, hold));
            let since = known.map_or(now, |(_, since)| *since);
            if known.is_none() {
                tracing::warn!(%project, "the pool waits: {}", sentence(hold));
            }
            after.insert(project, (hold, since));
        }
        *before = after;
    }

    /// What holds a pool back, as of the last pass.
    pub fn held(&self, project: &ProjectId) -> Option<Held> {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let (hold, since) = *holds.get(project)?;
        Some(Held {
            kind: kind(hold),
            since,
            message: sentence(hold),
        })
    }
}

fn same_kind(one: Hold, other: Hold) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}

fn kind(hold: Hold) -> &'static str {
    match hold {
        Hold::HostVms { .. } | Hold::HostMemory { .. } | Hold::ProjectVms => "CapacityLimited",
        Hold::InTheMaking => "Busy",
        Hold::Missing { kind, .. } if kind == FailureKind::Image => "ImageMissing",
        Hold::Missing { .. } => "RepositoryMissing",
        Hold::BreakerOpen { .. } => "BreakerOpen",
        Hold::HostTrouble { .. } => "HostTrouble",
    }
}

fn sentence(hold: Hold) -> String {
    match hold {
        Hold::HostVms { max } => {
            format!("this host has {max} VMs and may have no more (`hearth serve --max-vms`)")
        }
        Hold::HostMemory { wants_mib, left_mib } => format!(
            "one more VM takes {wants_mib} MiB of memory and {left_mib} MiB are left of what VMs may have on this host \
             (`hearth serve --memory`)"
        ),
        Hold::ProjectVms => "the project has as many VMs as its own limit allows (`maxVms`)".to_owned(),
        Hold::InTheMaking => "as many VMs are in the making as may be at once".to_owned(),
        Hold::Missing { kind, failures } => {
            let what = if kind == FailureKind::Image {
                "the image is missing or does not boot"
            } else {
                "a repository cannot be fetched or lacks the branch"
            };
            format!("{what}: looked for {failures} times in vain; the pauses between two looks grow")
        }
        Hold::BreakerOpen { failures } => format!(
            "the set-up failed {failures} times in a row; no more VMs are made until it changes or some time has passed"
        ),
        Hold::HostTrouble { failures } => {
            format!("this host failed {failures} times in a row; the next try waits a little")
        }
    }
}
