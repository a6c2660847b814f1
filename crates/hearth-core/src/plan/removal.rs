//! What a pass removes: broken instances, those that are not needed any more, and those above the target.

use jiff::{SignedDuration, Timestamp};

use super::{
    Action, BREAKER_AFTER, DEBUG_VM_KEPT, PoolState, RECORD_KEPT, Reason, TEST_VM_KEPT, is_first, ready, serving,
    source, spread,
};
use crate::purpose::Purpose;
use crate::recipe::same_set_up;
use crate::state::{FailureKind, InstanceState};
use crate::world::{Failure, InstanceWorld, PoolWorld, VmPresence, Work, World};

/// A failed VM that is there for longer has been kept.
const DEBUG_VM_NOTICED: SignedDuration = SignedDuration::from_secs(30);
/// An instance is replaced when it has used between this share (per cent) of its maximum age and [`AGE_SPREAD_PERCENT`]
/// more, so that instances made together do not all expire together and none outlives the maximum.
const AGE_FROM_PERCENT: i64 = 85;
/// Width of the window in which instances expire, per cent of the maximum age.
const AGE_SPREAD_PERCENT: u64 = 10;

/// VMs that died, VMs of failures, records past their time.
pub(super) fn remove_broken(world: &World, pool: &PoolWorld, actions: &mut Vec<Action>) {
    let kept = kept_for_debugging(pool, world.now, world.drivers_observed).map(|i| &i.id);
    for instance in &pool.instances {
        let for_how_long = world.now.duration_since(instance.state_since);
        let is_there = instance.is_there(world.drivers_observed);
        match instance.state {
            // Its boot ended as it did: that its VM is gone since changes nothing about that.
            InstanceState::Ready if instance.purpose.is_test() && !is_there => {
                actions.push(Action::retire(instance, Reason::TestVmEnded));
            }
            InstanceState::Failed
                if instance.purpose.is_test() && world.drivers_observed && instance.vm == VmPresence::Stopped =>
            {
                actions.push(Action::retire(instance, Reason::TestVmEnded));
            }
            InstanceState::Ready if !is_there => {
                let reason = match instance.vm {
                    VmPresence::Halted => "something on the host stopped the VM's process while it was ready",
                    _ => "the VM ended unexpectedly while it was ready",
                };
                let failure = Failure {
                    kind: FailureKind::VmLost,
                    reason: reason.into(),
                };
                actions.push(Action::fail(instance, failure));
            }
            InstanceState::Ready if instance.purpose == Purpose::Renewal => {
                actions.push(Action::delete(instance, Reason::Built));
            }
            InstanceState::Failed if instance.failure == Some(FailureKind::Cancelled) => {
                actions.push(Action::retire(instance, Reason::Cancelled));
            }
            InstanceState::Ready | InstanceState::Failed
                if instance.purpose.is_test() && for_how_long >= TEST_VM_KEPT =>
            {
                actions.push(Action::retire(instance, Reason::TestTimeUp));
            }
            InstanceState::Failed if !instance.purpose.is_test() && kept != Some(&instance.id) => {
                actions.push(Action::retire(instance, Reason::FailedVmNotNeeded));
            }
            InstanceState::Archived if for_how_long >= RECORD_KEPT => {
                actions.push(Action::delete(instance, Reason::RecordExpired));
            }
            _ => {}
        }
    }
}

/// The VM of a failing set-up that a person may look into: the one that failed first, once nothing more is made by its recipe.
pub(super) fn kept_for_debugging(pool: &PoolWorld, now: Timestamp, drivers_observed: bool) -> Option<&InstanceWorld> {
    // What is not kept goes with the next pass: one that is still there was kept, and a retry does not take it away.
    let kept_since = now - DEBUG_VM_NOTICED;
    let lasts = |i: &&InstanceWorld| {
        i.state == InstanceState::Failed
            && !i.purpose.is_test()
            && i.failure == Some(FailureKind::Setup)
            && i.is_there(drivers_observed)
            && now.duration_since(i.state_since) < DEBUG_VM_KEPT
            && (i.recipe != pool.recipe || pool.streak.recipe >= BREAKER_AFTER || i.state_since <= kept_since)
    };
    pool.instances.iter().filter(lasts).min_by_key(|i| i.state_since)
}

/// A reason why a ready instance should not be there, apart from being one too many.
pub(super) fn is_stale(pool: &PoolWorld, instance: &InstanceWorld, now: Timestamp) -> bool {
    let outdated = instance.recipe != pool.recipe && instance.recipe != source(pool).recipe;
    let age = now.duration_since(instance.state_since);
    // The spread is looked at only where it can matter.
    outdated || age >= share(pool, AGE_FROM_PERCENT) && age >= expires_after(pool, instance)
}

/// The instance's own maximum age: spread by its id, which is random enough, so that it is the same in every pass.
fn expires_after(pool: &PoolWorld, instance: &InstanceWorld) -> SignedDuration {
    let own = spread(instance.id.as_str()) % (AGE_SPREAD_PERCENT + 1);
    let percent = AGE_FROM_PERCENT + i64::try_from(own).unwrap_or_default();
    share(pool, percent)
}

/// So much of the maximum age.
fn share(pool: &PoolWorld, percent: i64) -> SignedDuration {
    SignedDuration::from_secs(pool.max_age_seconds.saturating_mul(percent) / 100)
}

/// Ready instances above the target: stale ones first, then the oldest. Those being made count only when they are ready,
/// but unneeded ones of a disabled pool or above the target are stopped as well.
pub(super) fn remove_surplus(world: &World, state: &PoolState<'_>, actions: &mut Vec<Action>) {
    let pool = state.pool;
    let target = if pool.enabled { pool.target } else { 0 };
    let surplus = state.ready.saturating_sub(target);
    if surplus > 0 {
        let mut ready: Vec<_> = ready(pool, world.drivers_observed)
            .map(|i| (!is_stale(pool, i, world.now), i.state_since, i))
            .collect();
        ready.sort_by_key(|(fresh, since, _)| (*fresh, *since));
        for (fresh, _, instance) in ready.into_iter().take(surplus) {
            let reason = match (pool.enabled, fresh) {
                (false, _) => Reason::PoolDisabled,
                (true, true) => Reason::Surplus,
                (true, false) => Reason::Stale,
            };
            actions.push(Action::delete(instance, reason));
        }
    }
    // By an older set-up it would be stale the moment it is ready. One of an older commit still ends: were it stopped, a
    // branch that moves faster than a build takes would never be built at all.
    let serves = state.source.recipe;
    let lasts = |i: &InstanceWorld| pool.enabled && (i.recipe == serves || same_set_up(&i.recipe, &pool.recipe));
    let (mut current, outdated): (Vec<_>, Vec<_>) = serving(pool)
        .filter(|i| i.state == InstanceState::Provisioning)
        .partition(|i| lasts(i));
    current.retain(|i| !is_first(pool, state.ready, i));
    let builds = pool.instances.iter().filter(|i| {
        i.state == InstanceState::Provisioning
            && i.work != Work::Abandoned
            && i.purpose == Purpose::Renewal
            && !lasts(i)
    });
    // One above the target may be in the making: the replacement of a stale one.
    let stale_left = state.stale > surplus;
    let allowed = target.saturating_sub(state.ready - surplus) + usize::from(stale_left);
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
        actions.push(Action::delete(instance, reason));
    }
}
