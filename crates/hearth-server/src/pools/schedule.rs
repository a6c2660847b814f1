//! What pools' schedules come to now. What was found is kept until it changes: a pass asks for every pool.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::ProjectId;
use hearth_api::schedule::PoolSchedule;
use hearth_core::schedule::{InForce, Schedule};
use jiff::Timestamp;

use crate::store::PoolRow;

/// What holds now, by pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Schedules(Arc<Mutex<HashMap<ProjectId, Known>>>);

#[derive(Debug)]
struct Known {
    schedule: PoolSchedule,
    own: i64,
    since: Timestamp,
    found: InForce,
}

impl Schedules {
    /// Forgets every pool but these.
    pub(super) fn keep(&self, pools: &HashMap<ProjectId, PoolRow>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|project, _| pools.contains_key(project));
    }

    /// How many VMs this pool is to keep ready.
    pub(super) fn target_size(&self, project: &ProjectId, pool: &PoolRow, now: Timestamp) -> i64 {
        let own = pool.config.target_size;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(schedule) = &pool.schedule else {
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
        let found = in_force(pool, now);
        let schedule = schedule.clone();
        known.insert(
            project.clone(),
            Known {
                schedule,
                own,
                since: now,
                found,
            },
        );
        found.target_size
    }
}

/// What a pool's schedule comes to. One that is not understood any more, because its time zone is gone from this host, changes nothing.
pub fn in_force(pool: &PoolRow, now: Timestamp) -> InForce {
    let own = pool.config.target_size;
    let unchanged = InForce {
        target_size: own,
        until: None,
    };
    let Some(schedule) = &pool.schedule else {
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
