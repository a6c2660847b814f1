//! The planner: one pure function from the world to the actions of one pass, each with its reason.
//!
//! Order (ARCHITECTURE.md, invariant 7): finish what was begun → release → add missing → build what is wanted → remove broken →
//! remove surplus → replace one stale when full and idle. It decides afresh from everything it sees; it remembers nothing.
//!
//! A pool follows its wanted recipe. While that has no template, the last good one keeps serving and the wanted one is built
//! beside it, once; only when that went well do new instances come from it, and the old ones go one by one.

use hearth_api::ids::ProjectId;
use jiff::{SignedDuration, Timestamp};

use crate::recipe::same_set_up;
use crate::state::{FailureKind, InstanceState};
use crate::world::{Failure, FailureStreak, InstanceWorld, PoolWorld, VmPresence, Work, World};

mod budget;
mod decision;
mod standing;

use budget::{Budget, waits_for_start};
pub use decision::{Action, Decision, Hold, Reason};
pub use standing::{HostLoad, Pause, Standing, host_load, stand};

/// A test boot's VM is kept this long after the boot ended, so that a person can look inside.
pub const TEST_VM_KEPT: SignedDuration = SignedDuration::from_mins(15);
/// One VM whose set-up failed is kept running this long, so that a person can look inside.
pub const DEBUG_VM_KEPT: SignedDuration = SignedDuration::from_mins(30);
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
/// First pause when something that a recipe needs is missing (image, repository); doubles up to [`BREAKER_PAUSE_MAX`].
const MISSING_PAUSE: SignedDuration = SignedDuration::from_secs(15);
/// Pauses are lengthened by up to this share of themselves, per cent, so that pools that failed together do not try together.
const PAUSE_SPREAD_PERCENT: u64 = 25;
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
    build_wanted(world, &mut budget, &mut actions, &mut holds);
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
        if budget.take(&pool.project, instance.memory_mib, instance.forked) {
            actions.push(Action::Start {
                instance: instance.id.clone(),
            });
        } else {
            let why = budget.why_not(world, &pool.project, instance.memory_mib);
            holds.push((pool.project.clone(), why));
        }
    }
}

/// What new instances of a pool are made by right now.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    recipe: &'a str,
    memory_mib: u64,
    forked: bool,
    streak: FailureStreak,
}

fn source(pool: &PoolWorld) -> Source<'_> {
    match &pool.last_good {
        Some(last) if !pool.prepared => Source {
            recipe: &last.recipe,
            memory_mib: last.memory_mib,
            forked: true,
            streak: last.streak,
        },
        _ => Source {
            recipe: &pool.recipe,
            memory_mib: pool.memory_mib,
            forked: pool.prepared,
            streak: pool.streak,
        },
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
    budget.spare_for_claims();
    let mut missing = Vec::new();
    for pool in world.pools.iter().filter(|pool| pool.enabled) {
        let source = source(pool);
        let count = pool
            .target
            .saturating_sub(serving(pool).filter(|i| !is_first(pool, i)).count());
        match paused(pool, &source.streak, world.now) {
            None => missing.push((pool, source, missing_now(pool, &source, count))),
            Some(hold) if count > 0 => holds.push((pool.project.clone(), hold)),
            Some(_) => {}
        }
    }
    let mut left = true;
    while left {
        left = false;
        for (pool, source, count) in missing.iter_mut().filter(|(.., count)| *count > 0) {
            if budget.take(&pool.project, source.memory_mib, source.forked) {
                *count -= 1;
                left |= *count > 0;
                actions.push(Action::Create {
                    project: pool.project.clone(),
                    recipe: source.recipe.to_owned(),
                    reason: Reason::BelowTarget,
                });
            } else {
                *count = 0;
                holds.push((
                    pool.project.clone(),
                    budget.why_not(world, &pool.project, source.memory_mib),
                ));
            }
        }
    }
}

/// The first instance of a wanted recipe, which is set up beside the pool: only when it is ready is it one of it.
fn is_first(pool: &PoolWorld, instance: &InstanceWorld) -> bool {
    instance.state == InstanceState::Provisioning && !instance.forked && (pool.last_good.is_some() || pool.target == 0)
}

/// How many to add now: with every success twice as many at once. What is not prepared is set up once: the others would only
/// wait for it.
fn missing_now(pool: &PoolWorld, source: &Source<'_>, missing: usize) -> usize {
    let at_once = if source.forked {
        1_usize.saturating_add(source.streak.successes as usize)
    } else {
        1
    };
    let making = serving(pool)
        .filter(|i| i.state == InstanceState::Provisioning && !is_first(pool, i))
        .count();
    missing.min(at_once.saturating_sub(making))
}

/// The wanted recipe of a pool that is served by its last good one, or that keeps no VM but is to answer at once, is built by
/// one instance above the target. One build of a set-up at a time: when the next commit comes, the one under way still ends.
fn build_wanted(world: &World, budget: &mut Budget<'_>, actions: &mut Vec<Action>, holds: &mut Vec<(ProjectId, Hold)>) {
    let waits = |pool: &&PoolWorld| pool.enabled && !pool.prepared && (pool.last_good.is_some() || pool.target == 0);
    for pool in world.pools.iter().filter(waits) {
        if pool.instances.iter().any(|i| builds_wanted(pool, i)) {
            continue;
        }
        if let Some(hold) = paused(pool, &pool.streak, world.now) {
            holds.push((pool.project.clone(), hold));
        } else if budget.take(&pool.project, pool.memory_mib, false) {
            actions.push(Action::Build {
                project: pool.project.clone(),
            });
        } else {
            holds.push((
                pool.project.clone(),
                budget.why_not(world, &pool.project, pool.memory_mib),
            ));
        }
    }
}

fn builds_wanted(pool: &PoolWorld, instance: &InstanceWorld) -> bool {
    instance.state == InstanceState::Provisioning
        && instance.work != Work::Abandoned
        && !instance.forked
        && same_set_up(&instance.recipe, &pool.recipe)
}

/// What keeps a pool from trying again now, after the failures so far.
fn paused(pool: &PoolWorld, streak: &FailureStreak, now: Timestamp) -> Option<Hold> {
    let (hold, until) = pause_after(pool, streak)?;
    (now < until).then_some(hold)
}

/// The pause that the failures so far ask for, and when it ends.
fn pause_after(pool: &PoolWorld, streak: &FailureStreak) -> Option<(Hold, Timestamp)> {
    let last = streak.last_at?;
    let (pause, hold) = match streak.last_kind? {
        kind @ (FailureKind::Repository | FailureKind::Image) => {
            let pause = doubled(MISSING_PAUSE, streak.recipe.saturating_sub(1), BREAKER_PAUSE_MAX);
            let failures = streak.recipe;
            (pause, Hold::Missing { kind, failures })
        }
        _ if streak.recipe >= BREAKER_AFTER => {
            let failures = streak.recipe;
            let pause = doubled(BREAKER_PAUSE, failures - BREAKER_AFTER, BREAKER_PAUSE_MAX);
            (pause, Hold::BreakerOpen { failures })
        }
        _ if streak.host > 0 => {
            let failures = streak.host;
            let pause = doubled(HOST_PAUSE, failures - 1, HOST_PAUSE_MAX);
            (pause, Hold::HostTrouble { failures })
        }
        _ => return None,
    };
    let failures = u64::from(streak.recipe + streak.host);
    let percent = (spread(pool.project.as_str()).wrapping_add(failures.wrapping_mul(7))) % (PAUSE_SPREAD_PERCENT + 1);
    let pause = pause + pause.saturating_mul(i32::try_from(percent).unwrap_or_default()) / 100;
    Some((hold, last + pause))
}

/// A number that is always the same for a text, and likely another for another.
fn spread(text: &str) -> u64 {
    text.bytes()
        .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

fn doubled(first: SignedDuration, times: u32, max: SignedDuration) -> SignedDuration {
    // 2^10 times the first pause is past every maximum here.
    first.saturating_mul(1 << times.min(10)).min(max)
}

/// VMs that died, VMs of failures, records past their time.
fn remove_broken(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    let kept = kept_for_debugging(pool, world.now, world.drivers_observed).map(|i| &i.id);
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
            InstanceState::Failed if !instance.is_test && kept != Some(&instance.id) => {
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

/// The VM of a failing set-up that a person may look into: the one that failed first, once nothing more is made by its recipe.
fn kept_for_debugging(pool: &PoolWorld, now: Timestamp, drivers_observed: bool) -> Option<&InstanceWorld> {
    let lasts = |i: &&InstanceWorld| {
        i.state == InstanceState::Failed
            && !i.is_test
            && i.failure == Some(FailureKind::Setup)
            && (!drivers_observed || i.vm.is_alive())
            && now.duration_since(i.state_since) < DEBUG_VM_KEPT
            && (i.recipe != pool.recipe || pool.streak.recipe >= BREAKER_AFTER)
    };
    pool.instances.iter().filter(lasts).min_by_key(|i| i.state_since)
}

/// A reason why a ready instance should not be there, apart from being one too many.
fn is_stale(pool: &PoolWorld, instance: &InstanceWorld, now: Timestamp) -> bool {
    instance.recipe != source(pool).recipe || now.duration_since(instance.state_since) >= expires_after(pool, instance)
}

/// The instance's own maximum age: spread by its id, which is random enough, so that it is the same in every pass.
fn expires_after(pool: &PoolWorld, instance: &InstanceWorld) -> SignedDuration {
    let own = spread(instance.id.as_str()) % (AGE_SPREAD_PERCENT + 1);
    let percent = AGE_FROM_PERCENT + i64::try_from(own).unwrap_or_default();
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
    // By an older set-up it would be stale the moment it is ready. One of an older commit still ends: were it stopped, a
    // branch that moves faster than a build takes would never be built at all.
    let serves = source(pool).recipe;
    let lasts = |i: &InstanceWorld| pool.enabled && (i.recipe == serves || same_set_up(&i.recipe, &pool.recipe));
    let (current, outdated): (Vec<_>, Vec<_>) = serving(pool)
        .filter(|i| i.state == InstanceState::Provisioning)
        .partition(|i| lasts(i));
    let builds = pool
        .instances
        .iter()
        .filter(|i| i.state == InstanceState::Provisioning && i.is_build && !lasts(i));
    let current: Vec<_> = current.into_iter().filter(|i| !is_first(pool, i)).collect();
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
    for (instance, reason) in unneeded.chain(outdated.into_iter().chain(builds).map(|i| (i, why_outdated))) {
        actions.push(Action::Delete {
            instance: instance.id.clone(),
            generation: instance.generation,
            reason,
        });
    }
}

/// Make before break: when a pool is full and nothing is being made, one more by what serves now. Where a limit leaves no room
/// for one more, the stalest goes first.
fn replace_stale(world: &World, budget: &mut Budget<'_>, actions: &mut Vec<Action>) {
    for pool in world.pools.iter().filter(|pool| pool.enabled) {
        let source = source(pool);
        if paused(pool, &source.streak, world.now).is_some() {
            continue;
        }
        let ready = count_ready(pool);
        let idle = serving(pool).all(|i| i.state == InstanceState::Ready || is_first(pool, i));
        let stale = serving(pool).any(|i| i.state == InstanceState::Ready && is_stale(pool, i, world.now));
        if !(stale && idle && ready == pool.target) {
            continue;
        }
        if budget.take(&pool.project, source.memory_mib, source.forked) {
            actions.push(Action::Create {
                project: pool.project.clone(),
                recipe: source.recipe.to_owned(),
                reason: Reason::ReplaceStale,
            });
        } else if budget.has_no_room(&pool.project, source.memory_mib) {
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
