//! The planner: one pure function from the world to the actions of one pass, each with its reason.
//!
//! Order (ARCHITECTURE.md, invariant 7): finish what was begun → release → add missing → build the target recipe → remove broken →
//! remove surplus → replace one stale when full and idle. It decides afresh from everything it sees; it remembers nothing.
//!
//! A pool follows its target recipe. While that has no template, the previous recipe keeps serving and the target recipe is built
//! beside it, once. New instances use it only when that build succeeded; then the old ones are replaced one by one.

use std::collections::HashSet;
use std::time::Duration;

use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};

use crate::purpose::Purpose;
use crate::recipe::same_set_up;
use crate::state::{FailureKind, InstanceState};
use crate::world::{Failure, FailureStreak, InstanceWorld, PoolWorld, VmPresence, Work, World};

mod budget;
mod decision;
mod removal;
mod summary;

use budget::{Budget, waits_for_start};
pub use decision::{Action, Blocker, Decision, Reason};
use removal::{is_stale, kept_for_debugging, remove_broken, remove_surplus};
pub use summary::{Backoff, HostLoad, PoolSummary, host_load, summarize};

/// A test boot's VM is kept this long after the boot ended, so that a person can look inside.
pub const TEST_VM_KEPT: SignedDuration = SignedDuration::from_mins(15);
/// One VM whose set-up failed is kept running this long, so that a person can look inside.
pub const DEBUG_VM_KEPT: SignedDuration = SignedDuration::from_mins(30);
/// Records of failed and test instances stay readable this long.
pub const RECORD_KEPT: SignedDuration = SignedDuration::from_hours(24);
/// A claim that finds a template and no ready VM waits this long for a fork of it, however impatient it is: on a busy host that
/// keeps its place in the queue, which it would lose by asking again. So does a strict one while the template that it needs is built
/// beside an older one. HTTP clients and proxies give up after a minute or later.
pub const FORK_BUDGET: Duration = Duration::from_secs(50);
/// Failures in a row that blame the recipe before the pool stops making VMs by it.
pub const BREAKER_AFTER: u32 = 3;
/// First backoff of an open breaker; doubles with every further failure up to [`BREAKER_PAUSE_MAX`].
const BREAKER_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// Longest backoff of an open breaker.
const BREAKER_PAUSE_MAX: SignedDuration = SignedDuration::from_hours(1);
/// First backoff after a failure that blames the host; doubles up to [`HOST_PAUSE_MAX`].
const HOST_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// Longest backoff after failures that blame the host.
const HOST_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// First backoff when something that a recipe needs is missing (image, repository); doubles up to [`BREAKER_PAUSE_MAX`].
const MISSING_PAUSE: SignedDuration = SignedDuration::from_secs(15);
/// A backoff is lengthened by up to this share of itself, per cent, so that pools that failed together do not retry together.
const PAUSE_SPREAD_PERCENT: u64 = 25;

/// Decides what to do in this pass.
#[must_use]
pub fn plan(world: &World) -> Vec<Action> {
    decide(world).actions
}

/// The same, with the reasons for what is not done.
#[must_use]
pub fn decide(world: &World) -> Decision {
    let mut actions = Vec::new();
    let mut blockers = Vec::new();
    // Decided first and done later: what is about to end is not started.
    let mut endings = Vec::new();
    let mut states = Vec::with_capacity(world.pools.len());
    for pool in &world.pools {
        let state = PoolState::new(world, pool);
        finish_and_release(world, pool, &mut actions);
        remove_broken(world, pool, &mut endings);
        remove_surplus(world, &state, &mut endings);
        states.push(state);
    }
    let replaced = states.iter().filter(|state| state.is_replaced(world.now));
    let mut budget = Budget::new(world, replaced.map(|state| state.pool));
    start_waiting(world, &endings, &mut budget, &mut actions, &mut blockers);
    let waits = add_missing(world, &mut states, &mut budget, &mut actions, &mut blockers);
    build_wanted(world, &mut states, waits, &mut budget, &mut actions, &mut blockers);
    actions.append(&mut endings);
    replace_stale(world, &states, &mut budget, &mut actions);
    if world.can_pause {
        pause_idle(world, &mut actions);
    }
    if world.drivers_observed {
        actions.extend(world.orphans.iter().cloned().map(|vm| Action::DestroyOrphan { vm }));
    }
    blockers.dedup();
    Decision { actions, blockers }
}

/// Why a project may not have so many more VMs of this size at once, by the limits and what exists; `None` when it may.
#[must_use]
pub fn why_no_room(world: &World, project: &ProjectId, memory_mib: u64, count: usize) -> Option<Blocker> {
    let pool = world.pools.iter().find(|pool| pool.project == *project)?;
    Budget::new(world, std::iter::empty()).why_not_all(world, pool, memory_mib, count)
}

/// Half-made rows, interrupted teardowns, ended leases.
fn finish_and_release(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    for instance in &pool.instances {
        match (instance.state, instance.work) {
            (InstanceState::Retiring | InstanceState::Deleting, work) if work != Work::Here => {
                actions.push(Action::Teardown {
                    instance: instance.id.clone(),
                });
            }
            (InstanceState::Provisioning, Work::Abandoned) if instance.purpose.is_test() => {
                let failure = Failure {
                    kind: FailureKind::Interrupted,
                    reason: "the server was restarted during this boot; run the test again".into(),
                };
                actions.push(Action::fail(instance, failure));
            }
            (InstanceState::Provisioning, Work::Abandoned) => {
                actions.push(Action::delete(instance, Reason::HalfMade));
            }
            (InstanceState::Claimed, _) if instance.lease_ends_at.is_some_and(|end| end <= world.now) => {
                actions.push(Action::delete(instance, Reason::LeaseEnded));
            }
            _ => {}
        }
    }
}

/// Rows that a test boot or a claim wrote, oldest first.
fn start_waiting(
    world: &World,
    endings: &[Action],
    budget: &mut Budget<'_>,
    actions: &mut Vec<Action>,
    blockers: &mut Vec<(ProjectId, Blocker)>,
) {
    let all = world.pools.iter();
    let all = all.flat_map(|pool| pool.instances.iter().map(move |instance| (pool, instance)));
    let mut waiting: Vec<_> = all.filter(|(_, instance)| waits_for_start(instance)).collect();
    if waiting.is_empty() {
        return;
    }
    let ending: HashSet<&InstanceId> = endings.iter().filter_map(Action::instance).collect();
    waiting.retain(|(_, instance)| !ending.contains(&instance.id));
    waiting.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    for (pool, instance) in waiting {
        if budget.take(pool, instance.memory_mib, instance.forked) {
            actions.push(Action::Start {
                instance: instance.id.clone(),
            });
        } else {
            let why = budget.why_not(world, pool, instance.memory_mib, 0);
            blockers.push((pool.project.clone(), why));
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
    match &pool.previous {
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
        i.purpose == Purpose::Pool
            && match i.state {
                InstanceState::Provisioning => i.work != Work::Abandoned,
                InstanceState::Ready => true,
                _ => false,
            }
    })
}

/// Instances that a claim could have now: a VM that is known to be dead is none of them.
fn ready(pool: &PoolWorld, drivers_observed: bool) -> impl Iterator<Item = &InstanceWorld> {
    serving(pool).filter(move |i| i.state == InstanceState::Ready && i.is_there(drivers_observed))
}

/// How a pool stands: looked at once in a pass.
#[derive(Debug, Clone, Copy)]
struct PoolState<'a> {
    pool: &'a PoolWorld,
    source: Source<'a>,
    /// Instances that serve the pool, or will; not the one that builds the target recipe.
    there: usize,
    /// Of them: those in the making.
    making: usize,
    /// Of them: those that a claim could have now.
    ready: usize,
    /// Of these: those that should not be there.
    stale: usize,
    /// The one of those that has been there longest.
    stalest: Option<&'a InstanceWorld>,
    /// The target recipe is being built.
    builds: bool,
    /// It has too few VMs, and the host has no room for another one.
    lacks_room: bool,
    /// One of its VMs is deleted in this pass to make room for a build.
    makes_room: bool,
}

impl<'a> PoolState<'a> {
    fn new(world: &World, pool: &'a PoolWorld) -> Self {
        let ready_now = ready(pool, world.drivers_observed).count();
        let there = || serving(pool).filter(|i| !is_first(pool, ready_now, i));
        let making = |i: &&InstanceWorld| i.state == InstanceState::Provisioning;
        let stale = || ready(pool, world.drivers_observed).filter(|i| is_stale(pool, i, world.now));
        Self {
            pool,
            source: source(pool),
            there: there().count(),
            making: there().filter(making).count(),
            ready: ready_now,
            stale: stale().count(),
            stalest: stale().min_by_key(|i| i.state_since),
            builds: !pool.prepared && pool.instances.iter().any(|i| builds_wanted(pool, i)),
            lacks_room: false,
            makes_room: false,
        }
    }

    fn missing(&self) -> usize {
        self.pool.target.saturating_sub(self.there)
    }

    /// The target recipe is to be built beside the recipe that serves, or before the first claim.
    fn is_to_build(&self) -> bool {
        let pool = self.pool;
        let beside = pool.previous.is_some() || self.missing() == 0;
        pool.enabled && !pool.prepared && beside && !self.builds
    }

    /// That build only lacks room on the host.
    fn awaits_build(&self, now: Timestamp) -> bool {
        self.is_to_build() && paused(self.pool, &self.pool.streak, now).is_none()
    }

    /// The VMs that serve are about to be replaced by those of the target recipe, now or as soon as its build can begin.
    fn is_replaced(&self, now: Timestamp) -> bool {
        self.pool.previous.is_some() && (self.builds || self.awaits_build(now))
    }
}

/// One instance per pool and round, so that a large pool does not starve the others; the emptiest pools first, and among
/// equals another one in every second, so that neither does the first in the list. True when any pool misses one that only room
/// or its turn keeps from it.
fn add_missing(
    world: &World,
    states: &mut [PoolState<'_>],
    budget: &mut Budget<'_>,
    actions: &mut Vec<Action>,
    blockers: &mut Vec<(ProjectId, Blocker)>,
) -> bool {
    budget.spare_for_claims();
    let mut missing = Vec::new();
    let mut waits = false;
    let lacking = states.iter_mut();
    for state in lacking.filter(|state| state.pool.enabled && state.missing() > 0) {
        let PoolState {
            pool, source, there, ..
        } = *state;
        if let Some(blocker) = paused(pool, &source.streak, world.now) {
            blockers.push((pool.project.clone(), blocker));
            continue;
        }
        waits = true;
        // The room for one more VM that is left is for the one that is built in.
        let leaves_room = there > 0 && state.awaits_build(world.now);
        if !(leaves_room && budget.is_last_place_for(pool, pool.memory_mib)) {
            missing.push((there, missing_now(state), state));
        }
    }
    if let Some(turn) = usize::try_from(world.now.as_second())
        .unwrap_or_default()
        .checked_rem(missing.len())
    {
        missing.rotate_left(turn);
    }
    missing.sort_by_key(|(there, ..)| *there);
    while !missing.is_empty() {
        missing.retain_mut(|(there, count, state)| {
            if *count == 0 {
                return false;
            }
            let PoolState { pool, source, .. } = **state;
            let kept_mib = budget.kept_mib(source.forked, *there);
            if !budget.take_refill(pool, source.memory_mib, source.forked, kept_mib) {
                let why = budget.why_not(world, pool, source.memory_mib, kept_mib);
                state.lacks_room = why != Blocker::InTheMaking && *there == state.there;
                blockers.push((pool.project.clone(), why));
                return false;
            }
            (*there, *count) = (*there + 1, *count - 1);
            actions.push(Action::Create {
                project: pool.project.clone(),
                recipe: source.recipe.to_owned(),
                reason: Reason::BelowTarget,
            });
            true
        });
    }
    waits
}

/// The instance that builds the target recipe beside a pool that serves without it: only when it is ready does it become part
/// of the pool.
fn is_first(pool: &PoolWorld, ready: usize, instance: &InstanceWorld) -> bool {
    let beside = pool.previous.is_some() || ready >= pool.target;
    instance.state == InstanceState::Provisioning && !instance.forked && !pool.prepared && beside
}

/// How many to add now: with every success twice as many at once. What is not prepared is set up once: the others would only
/// wait for it.
fn missing_now(state: &PoolState<'_>) -> usize {
    let at_once = match state.source {
        Source {
            forked: true, streak, ..
        } => 1_usize.saturating_add(streak.successes as usize),
        _ if state.builds => 0,
        _ => 1,
    };
    state.missing().min(at_once.saturating_sub(state.making))
}

/// The target recipe of a pool that the previous recipe serves, or that lacks no VM but is to answer at once, is built by
/// one instance above the target. One build of a set-up at a time: when the next commit comes, the one under way still ends.
/// Where there is no room for it, a ready VM is deleted to make room.
fn build_wanted(
    world: &World,
    states: &mut [PoolState<'_>],
    others_wait: bool,
    budget: &mut Budget<'_>,
    actions: &mut Vec<Action>,
    blockers: &mut Vec<(ProjectId, Blocker)>,
) {
    let mut lacks_memory = None;
    for state in states.iter_mut().filter(|state| state.is_to_build()) {
        let pool = state.pool;
        if let Some(blocker) = paused(pool, &pool.streak, world.now) {
            blockers.push((pool.project.clone(), blocker));
        } else if budget.take(pool, pool.memory_mib, false) {
            actions.push(Action::Build {
                project: pool.project.clone(),
            });
        } else {
            blockers.push((pool.project.clone(), budget.why_not(world, pool, pool.memory_mib, 0)));
            let full = state.ready > 1 && state.ready == pool.target && state.making == 0;
            if budget.vms_left(pool) > 0 {
                lacks_memory = lacks_memory.or(Some(pool));
            } else if full && (budget.only_own_limit(pool) || !others_wait) {
                give_way(world, state, budget, actions);
            }
        }
    }
    // Memory is given by the pool that has most, when all together have enough and keep one each.
    if let Some(pool) = lacks_memory.filter(|pool| budget.has_no_room(pool, pool.memory_mib)) {
        let can = |state: &&mut PoolState<'_>| {
            // Whatever is above the target, or of a disabled pool, goes anyway.
            let in_order = state.pool.enabled && state.ready <= state.pool.target && state.making == 0;
            state.ready > 1 && in_order && !state.makes_room
        };
        let have = states.iter_mut().filter(can).collect::<Vec<_>>();
        let spare = have.iter().map(|state| {
            let each = || ready(state.pool, world.drivers_observed).map(|i| i.memory_mib);
            each().sum::<u64>() - each().max().unwrap_or_default()
        });
        let enough = !budget.has_no_room(pool, pool.memory_mib.saturating_sub(spare.sum()));
        if let Some(most) = have.into_iter().max_by_key(|state| state.ready).filter(|_| enough) {
            give_way(world, most, budget, actions);
        }
    }
}

/// The oldest of a pool goes, so that something can be built: of all pools only so many at a time as can be built at a time.
fn give_way(world: &World, state: &mut PoolState<'_>, budget: &mut Budget<'_>, actions: &mut Vec<Action>) {
    let pool = state.pool;
    let oldest = ready(pool, world.drivers_observed).min_by_key(|i| (i.recipe == pool.recipe, i.state_since));
    if let Some(oldest) = oldest.filter(|_| budget.take_turn(false)) {
        state.makes_room = true;
        actions.push(Action::delete(oldest, Reason::MakesRoom));
    }
}

/// It builds the pool's target recipe, or an older commit of the same set-up: a template will come of it.
fn builds_wanted(pool: &PoolWorld, instance: &InstanceWorld) -> bool {
    instance.state == InstanceState::Provisioning
        && instance.work != Work::Abandoned
        && !instance.forked
        && same_set_up(&instance.recipe, &pool.recipe)
}

/// What keeps a pool from trying again now, after the failures so far.
fn paused(pool: &PoolWorld, streak: &FailureStreak, now: Timestamp) -> Option<Blocker> {
    let (blocker, until) = backoff_after(pool, streak)?;
    (now < until).then_some(blocker)
}

/// The backoff that the failures so far ask for, and when it ends.
fn backoff_after(pool: &PoolWorld, streak: &FailureStreak) -> Option<(Blocker, Timestamp)> {
    let last = streak.last_at?;
    let (pause, blocker) = match streak.last_kind? {
        kind @ (FailureKind::Repository | FailureKind::Image) => {
            let pause = doubled(MISSING_PAUSE, streak.recipe.saturating_sub(1), BREAKER_PAUSE_MAX);
            let failures = streak.recipe;
            (pause, Blocker::Missing { kind, failures })
        }
        _ if streak.recipe >= BREAKER_AFTER => {
            let failures = streak.recipe;
            let pause = doubled(BREAKER_PAUSE, failures - BREAKER_AFTER, BREAKER_PAUSE_MAX);
            (pause, Blocker::BreakerOpen { failures })
        }
        _ if streak.host > 0 => {
            let failures = streak.host;
            let pause = doubled(HOST_PAUSE, failures - 1, HOST_PAUSE_MAX);
            (pause, Blocker::HostTrouble { failures })
        }
        _ => return None,
    };
    let failures = u64::from(streak.recipe + streak.host);
    let percent = (spread(pool.project.as_str()).wrapping_add(failures.wrapping_mul(7))) % (PAUSE_SPREAD_PERCENT + 1);
    let pause = pause + pause.saturating_mul(i32::try_from(percent).unwrap_or_default()) / 100;
    Some((blocker, last + pause))
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

/// Make before break: when a pool is full and nothing is being made, one more by what serves now. Where a limit leaves no room
/// for one more, or not even for the whole pool, the stalest goes first; of all pools only so many at a time as can be
/// replaced at a time.
fn replace_stale(world: &World, states: &[PoolState<'_>], budget: &mut Budget<'_>, actions: &mut Vec<Action>) {
    for state in states {
        let PoolState { pool, source, .. } = *state;
        let idle = state.making == 0 && state.there == state.ready && !state.makes_room;
        let settled = pool.enabled && idle && (state.ready == pool.target || state.lacks_room);
        let Some(stalest) = state.stalest.filter(|_| settled) else {
            continue;
        };
        if paused(pool, &source.streak, world.now).is_some() {
            continue;
        }
        if !state.lacks_room && budget.take(pool, source.memory_mib, source.forked) {
            actions.push(Action::Create {
                project: pool.project.clone(),
                recipe: source.recipe.to_owned(),
                reason: Reason::ReplaceStale,
            });
        } else if (state.lacks_room || budget.has_no_room(pool, source.memory_mib)) && budget.take_turn(source.forked) {
            actions.push(Action::delete(stalest, Reason::Stale));
        }
    }
}

/// Pauses ready VMs that run: a person worked in them, or a claim gave them back.
fn pause_idle(world: &World, actions: &mut Vec<Action>) {
    let tired = |i: &&InstanceWorld| {
        i.state == InstanceState::Ready && i.vm == VmPresence::Running && i.purpose == Purpose::Pool
    };
    let all = world.pools.iter().flat_map(|pool| &pool.instances);
    let mut tired: Vec<_> = all.filter(tired).map(|i| i.id.clone()).collect();
    if tired.is_empty() {
        return;
    }
    let named: HashSet<&InstanceId> = actions.iter().filter_map(Action::instance).collect();
    tired.retain(|id| !named.contains(id));
    actions.extend(tired.into_iter().map(|instance| Action::Pause { instance }));
}

#[cfg(test)]
mod tests;
