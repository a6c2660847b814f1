//! The planner: one pure function from the world to the actions of one pass, each with its reason.
//!
//! Order (ARCHITECTURE.md, invariant 7): finish what was begun → release → add missing → remove broken → remove surplus →
//! replace one stale when full and idle. It decides afresh from everything it sees; it remembers nothing.

use hearth_api::ids::ProjectId;
use jiff::{SignedDuration, Timestamp};

use crate::state::{FailureKind, InstanceState};
use crate::world::{Failure, InstanceWorld, PoolWorld, VmPresence, Work, World};

mod budget;
mod decision;

use budget::{Budget, waits_for_start};
pub use decision::{Action, Decision, Hold, Reason};

/// A test boot's VM is kept this long after the boot ended, so that a person can look inside.
pub const TEST_VM_KEPT: SignedDuration = SignedDuration::from_mins(15);
/// Records of failed and test instances stay readable this long.
pub const RECORD_KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Failures in a row that blame the recipe before the pool stops making VMs by it.
pub const BREAKER_AFTER: u32 = 3;
/// First pause of an open breaker; doubles with every further failure up to [`BREAKER_PAUSE_MAX`].
const BREAKER_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// Longest pause of an open breaker.
const BREAKER_PAUSE_MAX: SignedDuration = SignedDuration::from_hours(1);
/// First pause after a failure that blames the host; doubles up to [`HOST_PAUSE_MAX`].
const HOST_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// Longest pause after failures that blame the host.
const HOST_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// An instance is replaced when it has used between this share (per cent) of its maximum age and [`AGE_SPREAD_PERCENT`]
/// more, so that instances made together do not all expire together and none outlives the maximum.
const AGE_FROM_PERCENT: i64 = 85;
/// Width of the window in which instances expire, per cent of the maximum age.
const AGE_SPREAD_PERCENT: u64 = 10;

/// Decides what to do in this pass.
#[must_use]
pub fn plan(world: &World) -> Vec<Action> {
    decide(world).actions
}

/// The same, with the reasons for what is not done.
#[must_use]
pub fn decide(world: &World) -> Decision {
    let mut actions = Vec::new();
    let mut holds = Vec::new();
    for pool in &world.pools {
        finish_and_release(world, pool, &mut actions);
    }
    let mut budget = Budget::new(world);
    start_waiting(world, &mut budget, &mut actions, &mut holds);
    add_missing(world, &mut budget, &mut actions, &mut holds);
    for pool in &world.pools {
        remove_broken(world, pool, &mut actions);
        remove_surplus(world, pool, &mut actions);
    }
    replace_stale(world, &mut budget, &mut actions);
    if world.can_rest {
        let tired = |i: &&InstanceWorld| {
            i.state == InstanceState::Ready && !i.is_test && !i.is_build && !i.reserved && i.vm == VmPresence::Running
        };
        let all = world.pools.iter().flat_map(|pool| &pool.instances).filter(tired);
        actions.extend(all.map(|i| Action::Rest { instance: i.id.clone() }));
    }
    if world.drivers_observed {
        actions.extend(world.orphans.iter().cloned().map(|vm| Action::DestroyOrphan { vm }));
    }
    holds.dedup();
    Decision { actions, holds }
}

/// Half-made rows, interrupted teardowns, ended leases.
fn finish_and_release(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    for instance in &pool.instances {
        let id = || instance.id.clone();
        let generation = instance.generation;
        match (instance.state, instance.work) {
            (InstanceState::Retiring | InstanceState::Deleting, work) if work != Work::Here => {
                actions.push(Action::Teardown { instance: id() });
            }
            (InstanceState::Provisioning, Work::Abandoned) if instance.is_test => {
                let failure = Failure {
                    kind: FailureKind::Interrupted,
                    reason: "the server was restarted during this boot; run the test again".to_owned(),
                };
                actions.push(Action::Fail {
                    instance: id(),
                    generation,
                    failure,
                });
            }
            (InstanceState::Provisioning, Work::Abandoned) => {
                actions.push(Action::Delete {
                    instance: id(),
                    generation,
                    reason: Reason::HalfMade,
                });
            }
            (InstanceState::Claimed, _) if instance.lease_ends_at.is_some_and(|end| end <= world.now) => {
                actions.push(Action::Delete {
                    instance: id(),
                    generation,
                    reason: Reason::LeaseEnded,
                });
            }
            _ => {}
        }
    }
}

/// Rows that a test boot or a claim wrote, oldest first.
fn start_waiting(
    world: &World,
    budget: &mut Budget<'_>,
    actions: &mut Vec<Action>,
    holds: &mut Vec<(ProjectId, Hold)>,
) {
    let mut waiting: Vec<_> = world
        .pools
        .iter()
        .flat_map(|pool| pool.instances.iter().map(move |instance| (pool, instance)))
        .filter(|(_, instance)| waits_for_start(instance))
        .collect();
    waiting.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    for (pool, instance) in waiting {
        if budget.take(pool, instance.memory_mib) {
            actions.push(Action::Start {
                instance: instance.id.clone(),
            });
        } else {
            holds.push((pool.project.clone(), budget.why_not(world, pool, instance.memory_mib)));
        }
    }
}

/// Instances that are, or will be, of use to the pool.
fn serving(pool: &PoolWorld) -> impl Iterator<Item = &InstanceWorld> {
    pool.instances.iter().filter(|i| {
        !i.is_test
            && !i.is_build
            && !i.reserved
            && match i.state {
                InstanceState::Provisioning => i.work != Work::Abandoned,
                InstanceState::Ready => true,
                _ => false,
            }
    })
}

fn count_ready(pool: &PoolWorld) -> usize {
    serving(pool).filter(|i| i.state == InstanceState::Ready).count()
}

/// One instance per pool and round, so that a large pool does not starve the others.
fn add_missing(world: &World, budget: &mut Budget<'_>, actions: &mut Vec<Action>, holds: &mut Vec<(ProjectId, Hold)>) {
    for pool in world
        .pools
        .iter()
        .filter(|pool| pool.enabled && !may_try(pool, world.now))
    {
        if pool.target > serving(pool).count() {
            holds.push((pool.project.clone(), paused_by(pool)));
        }
    }
    let mut missing: Vec<_> = world
        .pools
        .iter()
        .filter(|pool| pool.enabled && may_try(pool, world.now))
        .map(|pool| (pool, missing_now(pool)))
        .collect();
    while missing.iter().any(|(_, count)| *count > 0) {
        for (pool, count) in missing.iter_mut().filter(|(_, count)| *count > 0) {
            if budget.take(pool, pool.memory_mib) {
                *count -= 1;
                actions.push(Action::Create {
                    project: pool.project.clone(),
                    reason: Reason::BelowTarget,
                });
            } else {
                *count = 0;
                holds.push((pool.project.clone(), budget.why_not(world, pool, pool.memory_mib)));
            }
        }
    }
}

/// How many to add now: all that are missing; without a template, or after a failure, one at a time until one succeeds.
fn missing_now(pool: &PoolWorld) -> usize {
    let missing = pool.target.saturating_sub(serving(pool).count());
    // The first one makes the template; the others would only wait for it.
    if pool.prepared && pool.streak.recipe + pool.streak.host == 0 {
        return missing;
    }
    let making = serving(pool).any(|i| i.state == InstanceState::Provisioning);
    missing.min(usize::from(!making))
}

/// Whether the failures so far allow another try now.
fn may_try(pool: &PoolWorld, now: Timestamp) -> bool {
    let Some(last) = pool.streak.last_at else { return true };
    let pause = if pool.streak.recipe >= BREAKER_AFTER {
        doubled(BREAKER_PAUSE, pool.streak.recipe - BREAKER_AFTER, BREAKER_PAUSE_MAX)
    } else if pool.streak.host > 0 {
        doubled(HOST_PAUSE, pool.streak.host - 1, HOST_PAUSE_MAX)
    } else {
        return true;
    };
    now.duration_since(last) >= pause
}

/// Why [`may_try`] said no.
fn paused_by(pool: &PoolWorld) -> Hold {
    if pool.streak.recipe >= BREAKER_AFTER {
        Hold::BreakerOpen {
            failures: pool.streak.recipe,
        }
    } else {
        Hold::HostTrouble {
            failures: pool.streak.host,
        }
    }
}

fn doubled(first: SignedDuration, times: u32, max: SignedDuration) -> SignedDuration {
    // 2^10 times the first pause is past every maximum here.
    first.saturating_mul(1 << times.min(10)).min(max)
}

/// VMs that died, VMs of failures, records past their time.
fn remove_broken(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    for instance in &pool.instances {
        let id = || instance.id.clone();
        let generation = instance.generation;
        let for_how_long = world.now.duration_since(instance.state_since);
        match instance.state {
            InstanceState::Ready if world.drivers_observed && !instance.vm.is_alive() => {
                let failure = Failure {
                    kind: FailureKind::VmLost,
                    reason: "the VM ended unexpectedly while it stood ready".to_owned(),
                };
                actions.push(Action::Fail {
                    instance: id(),
                    generation,
                    failure,
                });
            }
            InstanceState::Ready if instance.is_build => {
                actions.push(Action::Delete {
                    instance: id(),
                    generation,
                    reason: Reason::Built,
                });
            }
            InstanceState::Ready | InstanceState::Failed if instance.is_test && for_how_long >= TEST_VM_KEPT => {
                actions.push(Action::Retire {
                    instance: id(),
                    generation,
                    reason: Reason::TestTimeUp,
                });
            }
            InstanceState::Failed if !instance.is_test => {
                actions.push(Action::Retire {
                    instance: id(),
                    generation,
                    reason: Reason::FailedVmNotNeeded,
                });
            }
            InstanceState::Archived if for_how_long >= RECORD_KEPT => {
                actions.push(Action::Delete {
                    instance: id(),
                    generation,
                    reason: Reason::RecordExpired,
                });
            }
            _ => {}
        }
    }
}

/// A reason why a ready instance should not be there, apart from being one too many.
fn is_stale(pool: &PoolWorld, instance: &InstanceWorld, now: Timestamp) -> bool {
    instance.recipe != pool.recipe || now.duration_since(instance.state_since) >= expires_after(pool, instance)
}

/// The instance's own maximum age: spread by its id, which is random enough, so that it is the same in every pass.
fn expires_after(pool: &PoolWorld, instance: &InstanceWorld) -> SignedDuration {
    let spread = instance
        .id
        .as_str()
        .bytes()
        .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let percent = AGE_FROM_PERCENT + i64::try_from(spread % (AGE_SPREAD_PERCENT + 1)).unwrap_or_default();
    SignedDuration::from_secs(pool.max_age_seconds * percent / 100)
}

/// Ready instances above the target: stale ones first, then the oldest. Those being made count only when they are ready,
/// but unneeded ones of a disabled pool or above the target are stopped as well.
fn remove_surplus(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    let target = if pool.enabled { pool.target } else { 0 };
    let alive = |i: &&InstanceWorld| !world.drivers_observed || i.state != InstanceState::Ready || i.vm.is_alive();
    let mut ready: Vec<_> = serving(pool)
        .filter(|i| i.state == InstanceState::Ready)
        .filter(alive)
        .collect();
    ready.sort_by_key(|i| (!is_stale(pool, i, world.now), i.state_since));
    let surplus = ready.len().saturating_sub(target);
    for instance in ready.iter().take(surplus) {
        let reason = if !pool.enabled {
            Reason::PoolDisabled
        } else if is_stale(pool, instance, world.now) {
            Reason::Stale
        } else {
            Reason::Surplus
        };
        actions.push(Action::Delete {
            instance: instance.id.clone(),
            generation: instance.generation,
            reason,
        });
    }
    // By an older recipe it would be stale the moment it is ready.
    let (current, outdated): (Vec<_>, Vec<_>) = serving(pool)
        .filter(|i| i.state == InstanceState::Provisioning)
        .partition(|i| pool.enabled && i.recipe == pool.recipe);
    // One above the target may be in the making: the replacement of a stale one.
    let stale_left = ready.iter().skip(surplus).any(|i| is_stale(pool, i, world.now));
    let allowed = target.saturating_sub(ready.len() - surplus) + usize::from(stale_left);
    let mut current = current;
    // The ones that began last have the least to lose.
    current.sort_by(|a, b| b.id.cmp(&a.id));
    let too_many = current.len().saturating_sub(allowed);
    let unneeded = current.into_iter().take(too_many).map(|i| (i, Reason::Surplus));
    let why_outdated = if pool.enabled {
        Reason::Stale
    } else {
        Reason::PoolDisabled
    };
    for (instance, reason) in unneeded.chain(outdated.into_iter().map(|i| (i, why_outdated))) {
        actions.push(Action::Delete {
            instance: instance.id.clone(),
            generation: instance.generation,
            reason,
        });
    }
}

/// Make before break: when a pool is full and nothing is being made, one more by the current recipe. Where a limit leaves no
/// room for one more, the stalest goes first.
fn replace_stale(world: &World, budget: &mut Budget<'_>, actions: &mut Vec<Action>) {
    for pool in world
        .pools
        .iter()
        .filter(|pool| pool.enabled && may_try(pool, world.now))
    {
        let ready = count_ready(pool);
        let idle = serving(pool).all(|i| i.state == InstanceState::Ready);
        let stale = serving(pool).any(|i| i.state == InstanceState::Ready && is_stale(pool, i, world.now));
        if !(stale && idle && ready == pool.target) {
            continue;
        }
        if budget.take(pool, pool.memory_mib) {
            actions.push(Action::Create {
                project: pool.project.clone(),
                reason: Reason::ReplaceStale,
            });
        } else if budget.has_no_room(&pool.project, pool.memory_mib) {
            let oldest = serving(pool)
                .filter(|i| is_stale(pool, i, world.now))
                .min_by_key(|i| i.state_since);
            actions.extend(oldest.map(|instance| Action::Delete {
                instance: instance.id.clone(),
                generation: instance.generation,
                reason: Reason::Stale,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
