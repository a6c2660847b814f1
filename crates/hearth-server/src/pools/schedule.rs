//! How many VMs pools keep ready now, by their own target sizes and their schedules. What was found is kept until it changes: a pass asks
//! for every pool, and so do metrics and pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::ProjectId;
use hearth_api::schedule::PoolSchedule;
use hearth_core::schedule::{InForce, Schedule};
use jiff::Timestamp;

use crate::store::PoolSize;

/// What holds now, by pool. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Schedules(Arc<Mutex<HashMap<ProjectId, Known>>>);

#[derive(Debug)]
struct Known {
    schedule: PoolSchedule,
    own: i64,
    since: Timestamp,
    found: InForce,
}

impl Schedules {
    /// Forgets the pools that are gone.
    pub(super) fn keep(&self, is_there: impl Fn(&ProjectId) -> bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|project, _| is_there(project));
    }

    /// How many VMs this pool is to keep ready while it is enabled.
    pub fn target_size(&self, project: &ProjectId, size: &PoolSize, now: Timestamp) -> u64 {
        let target = self.in_force(project, size, now);
        let target = size.max_vms.map_or(target, |most| most.min(target));
        u64::try_from(target).unwrap_or_default()
    }

    fn in_force(&self, project: &ProjectId, size: &PoolSize, now: Timestamp) -> i64 {
        let own = size.own;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(schedule) = &size.schedule else {
            known.remove(project);
            return own;
        };
        let holds = known.get(project).filter(|known| {
            let until = known.found.until;
            known.own == own
                && known.schedule == *schedule
                && known.since <= now
                && until.is_none_or(|until| now < until)
        });
        if let Some(known) = holds {
            return known.found.target_size;
        }
        let found = in_force(own, Some(schedule), now);
        known.insert(
            project.clone(),
            Known {
                schedule: schedule.clone(),
                own,
                since: now,
                found,
            },
        );
        found.target_size
    }
}

/// What a pool's schedule comes to. One that is not understood any more, because its time zone is gone from this host, changes nothing.
pub fn in_force(own: i64, schedule: Option<&PoolSchedule>, now: Timestamp) -> InForce {
    let unchanged = InForce {
        target_size: own,
        until: None,
    };
    let Some(schedule) = schedule else {
        return unchanged;
    };
    match Schedule::parse(schedule) {
        Ok(schedule) => schedule.in_force(own, now),
        Err(error) => {
            tracing::warn!(%error, "a pool's schedule is not understood: its own target size holds");
            unchanged
        }
    }
}
