//! The planner's latest decisions, pool by pool: a few of each, and fewer where there are many pools.

use std::collections::{HashMap, HashSet, VecDeque};

use hearth_api::explain::{DecisionExplained, DecisionInputs};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::plan::{Action, Blocker, Decision, HostLoad, PoolSummary, Reason};
use hearth_core::world::{PoolWorld, World};
use jiff::Timestamp;

use super::messages::{blocker_message, same_kind, why};

/// Decisions that are kept of one pool.
const KEPT: usize = 30;
/// Decisions that are kept of all pools together, about 200 bytes each.
const KEPT_IN_ALL: usize = 60_000;
/// However many pools there are, so many are kept of each.
const KEPT_AT_LEAST: usize = 4;
/// A decision is counted with an equal one among the so many before it: passes repeat pairs, not only single ones.
const FOLDS_OVER: usize = 4;

/// How many are kept of each of so many pools.
pub(super) fn room_for(pools: usize) -> usize {
    (KEPT_IN_ALL / pools.max(1)).clamp(KEPT_AT_LEAST, KEPT)
}

/// What was decided, as small as it can be kept.
#[derive(Debug, Clone)]
pub(super) struct What {
    kind: Kind,
    instance: Option<InstanceId>,
    recipe: Option<String>,
}

impl What {
    /// What holds the pool back, if that is what was decided.
    pub(super) fn blocker(&self) -> Option<Blocker> {
        match self.kind {
            Kind::Wait(blocker) => Some(blocker),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Create(Reason),
    Build,
    Start,
    Fail(String),
    Retire(Reason),
    Delete(Reason),
    Teardown,
    Pause,
    Wait(Blocker),
}

impl Kind {
    fn action(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Build => "build",
            Self::Start => "start",
            Self::Fail(_) => "fail",
            Self::Retire(_) => "retire",
            Self::Delete(_) => "delete",
            Self::Teardown => "teardown",
            Self::Pause => "pause",
            Self::Wait(_) => "wait",
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Create(reason) | Self::Retire(reason) | Self::Delete(reason) => why(*reason).to_owned(),
            Self::Build => {
                "the target recipe has no template yet; VMs of the previous recipe are handed out meanwhile".to_owned()
            }
            Self::Start => "a claim or a test boot waits for it".to_owned(),
            Self::Fail(reason) => reason.clone(),
            Self::Teardown => "its VM is still to be destroyed".to_owned(),
            Self::Pause => "a VM of the pool is paused until it is claimed".to_owned(),
            Self::Wait(blocker) => blocker_message(*blocker),
        }
    }

    /// Equal but for figures.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Wait(one), Self::Wait(other)) => same_kind(*one, *other),
            _ => self == other,
        }
    }
}

/// What this pass decided, for each pool that it decided something about.
pub(super) fn by_pool(world: &World, decision: &Decision) -> HashMap<ProjectId, Vec<What>> {
    let named: HashSet<&InstanceId> = decision.actions.iter().filter_map(Action::instance).collect();
    let mut owners: HashMap<&InstanceId, &ProjectId> = HashMap::with_capacity(named.len());
    if !named.is_empty() {
        let all = world
            .pools
            .iter()
            .flat_map(|pool| pool.instances.iter().map(move |i| (&i.id, &pool.project)));
        owners.extend(all.filter(|(id, _)| named.contains(id)));
    }
    let mut decided: HashMap<ProjectId, Vec<What>> = HashMap::new();
    for action in &decision.actions {
        let instance = action.instance();
        let (kind, recipe, project) = match action {
            Action::Create {
                project,
                recipe,
                reason,
            } => (Kind::Create(*reason), Some(recipe.clone()), Some(project)),
            Action::Build { project } => {
                let wanted = world.pools.iter().find(|pool| pool.project == *project);
                (Kind::Build, wanted.map(|pool| pool.recipe.clone()), Some(project))
            }
            Action::Start { .. } => (Kind::Start, None, None),
            Action::Fail { failure, .. } => (Kind::Fail(failure.reason.to_string()), None, None),
            Action::Retire { reason, .. } => (Kind::Retire(*reason), None, None),
            Action::Delete { reason, .. } => (Kind::Delete(*reason), None, None),
            Action::Teardown { .. } => (Kind::Teardown, None, None),
            Action::Pause { .. } => (Kind::Pause, None, None),
            Action::DestroyOrphan { .. } => continue,
        };
        let owner = project.or_else(|| owners.get(instance?).copied());
        if let Some(owner) = owner {
            decided.entry(owner.clone()).or_default().push(What {
                kind,
                instance: instance.cloned(),
                recipe,
            });
        }
    }
    for (project, blocker) in &decision.blockers {
        decided.entry(project.clone()).or_default().push(What {
            kind: Kind::Wait(*blocker),
            instance: None,
            recipe: None,
        });
    }
    decided
}

/// What the planner saw of a pool and of the host.
pub(super) fn inputs(world: &World, pool: &PoolWorld, summary: &PoolSummary<'_>, load: HostLoad) -> DecisionInputs {
    let limits = &world.limits;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let memory_left = limits.memory_mib.saturating_sub(load.memory_mib);
    DecisionInputs {
        target: count(pool.target),
        ready: count(summary.ready),
        making: count(summary.making),
        recipe_failures: pool.streak.recipe,
        host_failures: pool.streak.host,
        vms_left: count(limits.max_vms.saturating_sub(load.vms)),
        memory_left_mib: u32::try_from(memory_left).unwrap_or(u32::MAX),
        provisions_left: count(limits.concurrent_provisions.saturating_sub(load.provisions)),
        forks_left: count(limits.concurrent_forks.saturating_sub(load.forks)),
        starts_left: count(limits.tokens),
    }
}

/// The latest decisions of one pool, oldest first.
#[derive(Debug, Default)]
pub(super) struct Decisions(VecDeque<Noted>);

#[derive(Debug)]
struct Noted {
    what: What,
    inputs: DecisionInputs,
    first_at: Timestamp,
    at: Timestamp,
    count: u32,
}

impl Decisions {
    /// Notes one; `room`: how many are kept.
    pub(super) fn note(&mut self, what: What, inputs: DecisionInputs, now: Timestamp, room: usize) {
        let latest = self.0.iter().enumerate().rev().take(FOLDS_OVER);
        let like = |noted: &Noted| noted.what.kind.is_like(&what.kind) && noted.what.recipe == what.recipe;
        let folds = latest.into_iter().find(|(_, noted)| like(noted)).map(|(at, _)| at);
        let before = folds.and_then(|at| self.0.remove(at));
        while self.0.len() >= room {
            self.0.pop_front();
        }
        self.0.push_back(Noted {
            what,
            inputs,
            first_at: before.as_ref().map_or(now, |before| before.first_at),
            at: now,
            count: before.map_or(1, |before| before.count.saturating_add(1)),
        });
    }

    /// For a reply.
    pub(super) fn newest_first(&self) -> Vec<DecisionExplained> {
        let told = self.0.iter().rev().map(|noted| DecisionExplained {
            at: noted.at,
            first_at: noted.first_at,
            count: noted.count.into(),
            action: noted.what.kind.action().to_owned(),
            reason: noted.what.kind.reason(),
            instance: noted.what.instance.clone(),
            recipe: noted.what.recipe.clone(),
            inputs: noted.inputs,
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(kind: Kind) -> What {
        What {
            kind,
            instance: None,
            recipe: None,
        }
    }

    #[test]
    fn equal_decisions_are_told_once_with_a_count_and_the_latest_figures() {
        let mut all = Decisions::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for second in 0..100_u32 {
            let blocker = Blocker::HostMemory {
                wants_mib: 100,
                left_mib: u64::from(second),
                kept_mib: 0,
            };
            for kind in [Kind::Wait(blocker), Kind::Create(Reason::BelowTarget)] {
                all.note(what(kind), DecisionInputs::default(), at(second.into()), KEPT);
            }
        }
        let told = all.newest_first();
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|it| it.count == 100));
        assert_eq!((told[1].first_at, told[1].at), (at(0), at(99)));
        assert!(told[1].reason.contains("99 MiB are left"), "{}", told[1].reason);
    }

    #[test]
    fn so_many_are_kept_and_fewer_of_many_pools() {
        let mut all = Decisions::default();
        for number in 0..100 {
            let kind = Kind::Fail(number.to_string());
            all.note(
                what(kind),
                DecisionInputs::default(),
                Timestamp::UNIX_EPOCH,
                room_for(1),
            );
        }
        let told = all.newest_first();
        assert_eq!((told.len(), told[0].reason.as_str()), (KEPT, "99"));
        assert!(room_for(10_000) * 10_000 <= KEPT_IN_ALL);
        assert!(std::mem::size_of::<Noted>() <= 200);
    }
}
