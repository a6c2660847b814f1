//! A run as the events that a server would have written, so that a real store can have a simulated day in its history; and beside them what
//! the run itself counted.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::claim::ClaimSource;
use hearth_api::event::{Event, EventKind};
use hearth_api::explain::MissCause;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::purpose::Purpose;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::sim::{Plan, Sim};
use crate::state::{Micros, SECOND, moment, pool_of};

/// What a run was.
#[derive(Debug)]
pub struct Tale {
    /// What happened, in order; the projects are called `p0`, `p1` and so on.
    pub events: Vec<Event>,
    /// What the run counted, by pool.
    pub pools: Vec<PoolTold>,
}

/// What a run counted of one pool.
#[derive(Debug, Clone, Default)]
pub struct PoolTold {
    /// How many VMs it was to keep ready in the end.
    pub target: usize,
    /// Claims that got a VM, by where it came from.
    pub served: BTreeMap<ClaimSource, u64>,
    /// Of those that got no ready VM, how many for which cause.
    pub causes: BTreeMap<MissCause, u64>,
    /// Waits of all that got one, in order.
    pub waits: Vec<Duration>,
    /// How long its VMs took to be made, in order: those that became ready, for the pool or for a claim.
    pub refills: Vec<Duration>,
}

/// Runs so many pools with faults for so many hours, which end at this time; the promise that was broken, if one was.
pub fn tell(pools: usize, claims_per_second: f64, hours: u32, seed: u64, until: Timestamp) -> Result<Tale, String> {
    let length = Micros::from(hours) * 3600 * SECOND;
    let mut sim = Sim::new(Plan {
        pools,
        claims_per_second,
        length,
        seed,
        pause: SECOND,
        hold_seconds: 20.0,
        tells: false,
    })
    .map_err(|error| format!("{error:#}"))?;
    let begins = until - SignedDuration::from_hours(i64::from(hours));
    sim.tale = Some(Telling::new(begins, pools));
    let (targets, tale) = sim.run_told().map_err(|broken| broken.what)?;
    let mut pools = tale.pools;
    for (pool, target) in pools.iter_mut().zip(targets) {
        pool.target = target;
        pool.waits.sort_unstable();
        pool.refills.sort_unstable();
    }
    let events = tale.events;
    Ok(Tale { events, pools })
}

/// A tale while it happens.
#[derive(Debug)]
pub(crate) struct Telling {
    /// The real time of the simulated beginning.
    begins: Timestamp,
    events: Vec<Event>,
    pools: Vec<PoolTold>,
    /// When each instance that is there was ordered.
    ordered: BTreeMap<InstanceId, Micros>,
}

impl Telling {
    fn new(begins: Timestamp, pools: usize) -> Self {
        Self {
            begins,
            events: Vec::new(),
            pools: vec![PoolTold::default(); pools],
            ordered: BTreeMap::new(),
        }
    }

    fn event(
        &mut self,
        at: Micros,
        project: &ProjectId,
        id: &InstanceId,
        kind: EventKind,
        detail: Value,
    ) -> &mut Event {
        let since = moment(at).duration_since(moment(0));
        self.events.push(Event {
            id: self.events.len() as u64 + 1,
            at: self.begins + since,
            project_id: project.clone(),
            instance_id: Some(id.clone()),
            kind,
            reason: None,
            detail,
        });
        let last = self.events.len() - 1;
        &mut self.events[last]
    }
}

/// How a claim ended that got a VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    pub(crate) source: ClaimSource,
    pub(crate) cause: Option<MissCause>,
    /// From the request until there was a VM.
    pub(crate) waited: Micros,
    /// From the request to the reply.
    pub(crate) total: Micros,
}

impl Sim {
    /// An instance was ordered.
    pub(crate) fn tell_ordered(&mut self, slot: u32) {
        let Some(tale) = &mut self.tale else { return };
        let (now, row) = (self.state.now, self.state.row(slot));
        let (id, project) = (row.id.clone(), self.state.project(slot).clone());
        let detail = json!({ "purpose": row.purpose.as_str(), "recipe": row.recipe });
        tale.ordered.insert(id.clone(), now);
        tale.event(now, &project, &id, EventKind::InstanceProvisioning, detail);
    }

    /// It became ready, or failed.
    pub(crate) fn tell_boot(&mut self, slot: u32, failure: Option<&str>) {
        let Some(tale) = &mut self.tale else { return };
        let (now, row) = (self.state.now, self.state.row(slot));
        let (id, project) = (row.id.clone(), self.state.project(slot).clone());
        let kind = match failure {
            None => EventKind::InstanceReady,
            Some(_) => EventKind::InstanceFailed,
        };
        let counts = failure.is_none() && matches!(row.purpose, Purpose::Pool | Purpose::Claim);
        let event = tale.event(now, &project, &id, kind, json!({ "recipe": row.recipe }));
        event.reason = failure.map(str::to_owned);
        let ordered = tale.ordered.get(&id).copied();
        if let (true, Some(ordered), Some(pool)) = (counts, ordered, pool_of(&project)) {
            tale.pools[pool].refills.push(Duration::from_micros(now - ordered));
        }
    }

    /// A claim got it.
    pub(crate) fn tell_handed_over(&mut self, slot: u32, served: Served) {
        let Some(tale) = &mut self.tale else { return };
        let row = self.state.row(slot);
        let (id, project) = (row.id.clone(), self.state.project(slot).clone());
        let detail = json!({
            "source": served.source, "cause": served.cause, "recipe": row.recipe,
            "waitMs": served.waited / 1000, "totalMs": served.total as f64 / 1000.0,
        });
        let at = self.state.now + (served.total - served.waited);
        tale.event(at, &project, &id, EventKind::ClaimHandedOver, detail);
        if let Some(pool) = pool_of(&project) {
            let told = &mut tale.pools[pool];
            *told.served.entry(served.source).or_default() += 1;
            told.waits.push(Duration::from_micros(served.waited));
            if let Some(cause) = served.cause {
                *told.causes.entry(cause).or_default() += 1;
            }
        }
    }

    /// It goes; if a claim had it, that has ended.
    pub(crate) fn tell_gone(&mut self, slot: u32, was_claimed: bool) {
        let Some(tale) = &mut self.tale else { return };
        let (now, row) = (self.state.now, self.state.row(slot));
        let (id, project) = (row.id.clone(), self.state.project(slot).clone());
        tale.ordered.remove(&id);
        if was_claimed {
            tale.event(now, &project, &id, EventKind::ClaimEnded, json!({}));
        }
        tale.event(now, &project, &id, EventKind::InstanceDeleting, json!({}));
    }
}
