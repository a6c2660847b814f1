//! Single decisions by example.

use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};

use super::budget::holds_resources;
use super::*;
use crate::world::{FailureStreak, Limits, PoolWorld, PreviousRecipe};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000_000 + seconds)
}

/// A recipe's name: a set-up, and its resolved inputs.
fn recipe(set_up: u32, commit: u32) -> String {
    format!("{set_up:012x}{commit:012x}")
}

fn instance(state: InstanceState, since: i64) -> InstanceWorld {
    InstanceWorld {
        id: InstanceId::generate(),
        state,
        generation: 1,
        purpose: Purpose::Pool,
        recipe: recipe(1, 1),
        forked: true,
        failure: None,
        memory_mib: 1024,
        created_at: at(since),
        state_since: at(since),
        lease_ends_at: None,
        vm: VmPresence::Running,
        work: if state == InstanceState::Provisioning {
            Work::Here
        } else {
            Work::Idle
        },
    }
}

fn pool(target: usize, instances: Vec<InstanceWorld>) -> PoolWorld {
    PoolWorld {
        project: ProjectId::generate(),
        tenant: 0,
        enabled: true,
        target,
        max_vms: None,
        max_age_seconds: 3600,
        recipe: recipe(1, 1),
        memory_mib: 1024,
        build_mib: 0,
        prepared: true,
        streak: FailureStreak {
            successes: 20,
            ..FailureStreak::default()
        },
        previous: None,
        instances,
    }
}

fn world(pools: Vec<PoolWorld>) -> World {
    World {
        now: at(1000),
        limits: Limits {
            max_vms: 100,
            tenant_vms: None,
            memory_mib: 100 * 1024,
            concurrent_provisions: 4,
            concurrent_forks: 5,
            tokens: 100,
        },
        pools,
        can_pause: false,
        orphans: Vec::new(),
        drivers_observed: true,
    }
}

/// The branch of a pool has moved; there is no template of the new commit yet.
fn push(pool: &mut PoolWorld) {
    pool.previous = Some(PreviousRecipe {
        recipe: std::mem::replace(&mut pool.recipe, recipe(1, 2)),
        memory_mib: 64,
        streak: std::mem::take(&mut pool.streak),
    });
    pool.prepared = false;
}

/// A VM in which a recipe is being set up, for its template alone.
fn build(recipe: String) -> InstanceWorld {
    InstanceWorld {
        recipe,
        purpose: Purpose::Renewal,
        forked: false,
        ..instance(InstanceState::Provisioning, 0)
    }
}

fn builds(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::Build { .. })).count()
}

fn creates(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::Create { .. })).count()
}

fn deleted(actions: &[Action]) -> Vec<(&InstanceId, Reason)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Delete { instance, reason, .. } => Some((instance, *reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn fills_up_to_the_target_and_then_rests() {
    assert_eq!(creates(&plan(&world(vec![pool(3, vec![])]))), 3);
    let full = (0..3).map(|_| instance(InstanceState::Ready, 0)).collect();
    assert_eq!(plan(&world(vec![pool(3, full)])), []);
}

#[test]
fn what_is_being_made_counts_and_the_limits_hold() {
    let half = vec![
        instance(InstanceState::Provisioning, 0),
        instance(InstanceState::Ready, 0),
    ];
    assert_eq!(creates(&plan(&world(vec![pool(3, half)]))), 1);
    let mut tight = world(vec![pool(20, vec![])]);
    assert_eq!(creates(&plan(&tight)), 4);
    tight.limits.memory_mib = 2048;
    assert_eq!(creates(&plan(&tight)), 2);
    tight.limits.max_vms = 1;
    assert_eq!(creates(&plan(&tight)), 1);
}

#[test]
fn a_projects_own_limit_counts_everything_it_has() {
    let mut limited = pool(3, vec![instance(InstanceState::Claimed, 0)]);
    limited.max_vms = Some(2);
    let other = pool(2, vec![]);
    let world = world(vec![limited, other]);
    let actions = plan(&world);
    let of = |pool: &PoolWorld| {
        let own = |a: &&Action| matches!(a, Action::Create { project, .. } if *project == pool.project);
        actions.iter().filter(own).count()
    };
    assert_eq!((of(&world.pools[0]), of(&world.pools[1])), (1, 2));
}

#[test]
fn a_tenants_limit_counts_what_all_its_projects_have() {
    let one = pool(3, vec![instance(InstanceState::Claimed, 0)]);
    let mut other = pool(2, vec![]);
    other.tenant = 1;
    let mut world = world(vec![one, pool(2, vec![]), other]);
    world.limits.tenant_vms = Some(3);
    let decision = decide(&world);
    let of = |pools: &[PoolWorld]| {
        let own = |a: &&Action| {
            let Action::Create { project, .. } = a else {
                return false;
            };
            pools.iter().any(|pool| pool.project == *project)
        };
        decision.actions.iter().filter(own).count()
    };
    assert_eq!((of(&world.pools[..2]), of(&world.pools[2..])), (2, 2));
    assert!(
        decision
            .blockers
            .iter()
            .any(|(_, blocker)| *blocker == Blocker::TenantVms { max: 3 })
    );
}

#[test]
fn without_room_for_one_more_the_stalest_goes_first() {
    let mut full = pool(
        2,
        vec![instance(InstanceState::Ready, 5), instance(InstanceState::Ready, 0)],
    );
    full.max_vms = Some(2);
    full.recipe = recipe(1, 2);
    let actions = plan(&world(vec![full.clone()]));
    assert_eq!(deleted(&actions), [(&full.instances[1].id, Reason::Stale)]);
    assert_eq!(creates(&actions), 0);
}

#[test]
fn pools_share_a_tight_budget() {
    let mut world = world(vec![pool(5, vec![]), pool(5, vec![])]);
    world.limits.max_vms = 4;
    let actions = plan(&world);
    for pool in &world.pools {
        let own = |a: &&Action| matches!(a, Action::Create { project, .. } if *project == pool.project);
        assert_eq!(actions.iter().filter(own).count(), 2);
    }
}

#[test]
fn surplus_goes_oldest_first_and_a_disabled_pool_empties() {
    let old = instance(InstanceState::Ready, 0);
    let young = instance(InstanceState::Ready, 10);
    let mut pool = pool(1, vec![young.clone(), old.clone()]);
    assert_eq!(deleted(&plan(&world(vec![pool.clone()]))), [(&old.id, Reason::Surplus)]);
    pool.enabled = false;
    assert_eq!(
        deleted(&plan(&world(vec![pool]))),
        [(&old.id, Reason::PoolDisabled), (&young.id, Reason::PoolDisabled)]
    );
}

#[test]
fn a_stale_instance_goes_only_after_its_replacement_is_ready() {
    let mut old = instance(InstanceState::Ready, 0);
    old.recipe = recipe(1, 0);
    let first = plan(&world(vec![pool(1, vec![old.clone()])]));
    assert!(matches!(
        first[..],
        [Action::Create {
            reason: Reason::ReplaceStale,
            ..
        }]
    ));
    let making = instance(InstanceState::Provisioning, 0);
    assert_eq!(plan(&world(vec![pool(1, vec![old.clone(), making])])), []);
    let new = instance(InstanceState::Ready, 20);
    assert_eq!(
        deleted(&plan(&world(vec![pool(1, vec![new, old.clone()])]))),
        [(&old.id, Reason::Stale)]
    );
}

#[test]
fn an_old_instance_is_replaced_before_its_maximum_age() {
    let young = world(vec![pool(
        1,
        vec![instance(InstanceState::Ready, 1000 - 3600 * 84 / 100)],
    )]);
    assert_eq!(plan(&young), []);
    let old = world(vec![pool(
        1,
        vec![instance(InstanceState::Ready, 1000 - 3600 * 96 / 100)],
    )]);
    assert_eq!(creates(&plan(&old)), 1);
}

#[test]
fn a_lost_vm_fails_its_instance_but_silence_of_the_driver_does_not() {
    let mut lost = instance(InstanceState::Ready, 0);
    lost.vm = VmPresence::Stopped;
    let mut world = world(vec![pool(1, vec![lost])]);
    assert!(plan(&world).iter().any(|a| matches!(a, Action::Fail { .. })));
    world.drivers_observed = false;
    assert_eq!(plan(&world), []);
}

#[test]
fn the_breaker_opens_after_three_failures_and_probes_later() {
    let mut broken = pool(3, vec![]);
    broken.streak = FailureStreak {
        recipe: BREAKER_AFTER,
        last_at: Some(at(999)),
        last_kind: Some(FailureKind::Setup),
        ..FailureStreak::default()
    };
    assert_eq!(plan(&world(vec![broken.clone()])), []);
    broken.streak.last_at = Some(at(1000 - 5 * 60 * 125 / 100));
    assert_eq!(creates(&plan(&world(vec![broken]))), 1);
}

/// How long a pool waits after a failure, in whole seconds.
fn backoff_after(recipe: u32, host: u32, kind: FailureKind) -> i64 {
    let streak = FailureStreak {
        recipe,
        host,
        last_at: Some(at(0)),
        last_kind: Some(kind),
        successes: 0,
    };
    let pool = pool(1, vec![]);
    (0..10_000)
        .find(|seconds| paused(&pool, &streak, at(*seconds)).is_none())
        .unwrap()
}

#[test]
fn pauses_grow_with_every_failure_up_to_their_longest() {
    // Each with up to a quarter more, so that pools do not try together.
    let about = |seconds: i64, pause: i64| (seconds..=seconds * 5 / 4 + 1).contains(&pause);
    for (failures, minutes) in [(3, 5), (4, 10), (5, 20), (6, 40), (7, 60), (40, 60)] {
        assert!(about(minutes * 60, backoff_after(failures, 0, FailureKind::Setup)));
    }
    assert_eq!(backoff_after(2, 0, FailureKind::Setup), 0);
    for (failures, seconds) in [(1, 15), (2, 30), (3, 60), (20, 3600)] {
        assert!(about(seconds, backoff_after(failures, 0, FailureKind::Image)));
        assert!(about(seconds, backoff_after(failures, 0, FailureKind::Repository)));
    }
    for (failures, seconds) in [(1, 5), (2, 10), (3, 20), (20, 300)] {
        assert!(about(seconds, backoff_after(0, failures, FailureKind::Host)));
    }
}

#[test]
fn a_streak_ends_with_the_first_boot_that_ends_the_other_way() {
    let good = FailureStreak::default().succeeded().succeeded();
    assert_eq!((good.successes, good.last_at), (2, None));
    let bad = good
        .failed(FailureKind::Setup, at(1))
        .failed(FailureKind::Identity, at(2));
    assert_eq!(
        (bad.successes, bad.recipe, bad.host, bad.last_at),
        (0, 1, 1, Some(at(2)))
    );
    assert_eq!(bad.failed(FailureKind::Interrupted, at(3)), bad);
    assert_eq!(bad.succeeded().successes, 1);
}

#[test]
fn the_previous_recipe_serves_while_the_wanted_one_is_built_once_beside_it() {
    let mut pushed = pool(3, vec![instance(InstanceState::Ready, 0)]);
    push(&mut pushed);
    let first = plan(&world(vec![pushed.clone()]));
    assert_eq!((creates(&first), builds(&first)), (1, 1));
    let old = recipe(1, 1);
    assert!(
        first
            .iter()
            .all(|a| !matches!(a, Action::Create { recipe, .. } if *recipe != old))
    );
    // Under way: neither a second one nor a replacement of what serves.
    pushed
        .instances
        .extend([1, 1].map(|_| instance(InstanceState::Ready, 0)));
    pushed.instances.push(build(pushed.recipe.clone()));
    assert_eq!(plan(&world(vec![pushed.clone()])), []);
    // Prepared: one more than the target at a time, and never one less.
    (pushed.prepared, pushed.previous) = (true, None);
    pushed.instances[3].state = InstanceState::Ready;
    let rolling = plan(&world(vec![pushed.clone()]));
    assert_eq!(creates(&rolling), 1);
    assert_eq!(deleted(&rolling), [(&pushed.instances[3].id, Reason::Built)]);
    pushed.instances[3] = InstanceWorld {
        recipe: pushed.recipe.clone(),
        ..instance(InstanceState::Ready, 5)
    };
    assert!(matches!(deleted(&plan(&world(vec![pushed])))[..], [(_, Reason::Stale)]));
}

#[test]
fn forks_of_what_is_replaced_leave_the_processor_to_the_build() {
    let claimed = || InstanceWorld {
        purpose: Purpose::Claim,
        work: Work::Unstarted,
        ..instance(InstanceState::Provisioning, 0)
    };
    let mut pushed = pool(3, (0..3).map(|_| claimed()).collect());
    let starts = |pool: &PoolWorld| {
        let actions = plan(&world(vec![pool.clone()]));
        let forks = |a: &&Action| matches!(a, Action::Start { .. } | Action::Create { .. });
        actions.iter().filter(forks).count()
    };
    // Five at once, and the last is kept for claims.
    assert_eq!(starts(&pushed), 4);
    push(&mut pushed);
    assert_eq!(starts(&pushed), 1);
    pushed.instances.push(build(pushed.recipe.clone()));
    assert_eq!(starts(&pushed), 1);
    pushed.instances[0].work = Work::Here;
    assert_eq!(starts(&pushed), 0);
    // Nothing is built while the breaker is open.
    pushed.instances.pop();
    for _ in 0..3 {
        pushed.streak = pushed.streak.failed(FailureKind::Setup, at(999));
    }
    assert!(starts(&pushed) > 1);
}

#[test]
fn a_build_outlives_the_next_commit_but_not_another_set_up() {
    let full = (0..2).map(|_| instance(InstanceState::Ready, 0)).collect();
    let mut pushed = pool(2, full);
    push(&mut pushed);
    pushed.instances.push(build(pushed.recipe.clone()));
    pushed.recipe = recipe(1, 3);
    assert_eq!(plan(&world(vec![pushed.clone()])), []);
    pushed.recipe = recipe(2, 3);
    let actions = plan(&world(vec![pushed.clone()]));
    assert_eq!(deleted(&actions), [(&pushed.instances[2].id, Reason::Stale)]);
    assert_eq!(builds(&actions), 1);
}

#[test]
fn a_pool_waits_for_a_build_that_is_under_way_and_is_set_up_once() {
    let mut empty = pool(3, vec![build(recipe(1, 1))]);
    empty.prepared = false;
    assert_eq!(plan(&world(vec![empty.clone()])), []);
    empty.instances.clear();
    assert_eq!(creates(&plan(&world(vec![empty.clone()]))), 1);
    empty.target = 0;
    assert_eq!(builds(&plan(&world(vec![empty]))), 1);
}

#[test]
fn a_lost_template_does_not_replace_the_wanted_by_older_ones() {
    let mut lost = pool(1, vec![instance(InstanceState::Ready, 0)]);
    push(&mut lost);
    lost.instances[0].recipe.clone_from(&lost.recipe);
    let actions = plan(&world(vec![lost]));
    assert_eq!(
        (creates(&actions), builds(&actions), deleted(&actions).len()),
        (0, 1, 0)
    );
}

#[test]
fn a_recipe_starts_slowly() {
    let mut fresh = pool(20, vec![]);
    for (successes, at_once) in [(0, 1), (1, 2), (3, 4)] {
        fresh.streak.successes = successes;
        assert_eq!(creates(&plan(&world(vec![fresh.clone()]))), at_once);
    }
    fresh.instances.push(instance(InstanceState::Provisioning, 0));
    assert_eq!(creates(&plan(&world(vec![fresh]))), 3);
}

#[test]
fn tokens_bound_what_a_pass_begins_and_one_fork_is_spared_for_claims() {
    let mut waiting = instance(InstanceState::Provisioning, 0);
    (waiting.work, waiting.purpose) = (Work::Unstarted, Purpose::Claim);
    let mut world = world(vec![pool(20, vec![]), pool(1, vec![waiting])]);
    let starts = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Start { .. })).count();
    world.limits.tokens = 3;
    let actions = plan(&world);
    assert_eq!((starts(&actions), creates(&actions)), (1, 2));
    world.limits.tokens = 100;
    let actions = plan(&world);
    assert_eq!((starts(&actions), creates(&actions)), (1, 3));
    world.pools[1].instances.clear();
    assert_eq!(creates(&plan(&world)), 4);
    world.limits.concurrent_forks = 1;
    assert_eq!(creates(&plan(&world)), 1);
}

#[test]
fn of_a_full_host_only_so_many_give_way_at_a_time_as_can_be_made_anew() {
    let pools = (0..20).map(|_| {
        let mut stale = pool(1, vec![instance(InstanceState::Ready, 0)]);
        stale.recipe = recipe(1, 2);
        stale
    });
    let mut world = world(pools.collect());
    world.limits.max_vms = 20;
    assert_eq!(deleted(&plan(&world)).len(), 4);
}

#[test]
fn a_row_that_is_not_needed_any_more_is_not_started_and_nothing_is_named_twice() {
    let mut left = instance(InstanceState::Provisioning, 0);
    left.work = Work::Unstarted;
    let mut tired = instance(InstanceState::Ready, 0);
    tired.vm = VmPresence::Running;
    let mut old = build(recipe(2, 1));
    old.work = Work::Abandoned;
    let ids = [left.id.clone(), tired.id.clone(), old.id.clone()];
    let mut pool = pool(1, vec![left, tired, old]);
    pool.enabled = false;
    let mut world = world(vec![pool]);
    world.can_pause = true;
    let actions = plan(&world);
    for id in &ids {
        assert_eq!(actions.iter().filter(|a| a.instance() == Some(id)).count(), 1);
    }
}

#[test]
fn what_a_disabled_pool_has_goes_once_also_when_a_build_lacks_its_memory() {
    let disabled = pool(
        2,
        vec![instance(InstanceState::Ready, 0), instance(InstanceState::Ready, 1)],
    );
    let ids = [disabled.instances[0].id.clone(), disabled.instances[1].id.clone()];
    let mut pushed = pool(1, vec![instance(InstanceState::Ready, 2)]);
    push(&mut pushed);
    let mut world = world(vec![disabled, pushed]);
    world.limits.memory_mib = 3 * 1024;
    assert!(
        deleted(&plan(&world))
            .iter()
            .any(|(_, reason)| *reason == Reason::MakesRoom)
    );
    world.pools[0].enabled = false;
    assert_eq!(
        deleted(&plan(&world)),
        [(&ids[0], Reason::PoolDisabled), (&ids[1], Reason::PoolDisabled)]
    );
}

#[test]
fn the_first_vm_that_fails_with_an_open_breaker_is_kept_for_half_an_hour() {
    let failed = |since| InstanceWorld {
        failure: Some(FailureKind::Setup),
        ..instance(InstanceState::Failed, since)
    };
    let mut broken = pool(1, vec![failed(990), failed(980)]);
    let retired = |pool: &PoolWorld, now| {
        let mut world = world(vec![pool.clone()]);
        world.now = at(now);
        let retires = |a: Action| match a {
            Action::Retire { instance, .. } => Some(instance),
            _ => None,
        };
        plan(&world).into_iter().filter_map(retires).collect::<Vec<_>>()
    };
    let [later, first] = [0, 1].map(|index: usize| broken.instances[index].id.clone());
    broken.streak = FailureStreak {
        recipe: 2,
        last_at: Some(at(990)),
        last_kind: Some(FailureKind::Setup),
        ..FailureStreak::default()
    };
    assert_eq!(retired(&broken, 1000), [later.clone(), first.clone()]);
    broken.streak.recipe = 3;
    assert_eq!(retired(&broken, 1000), std::slice::from_ref(&later));
    // A dead one shows nothing, and half an hour is enough.
    assert_eq!(retired(&broken, 980 + 30 * 60), std::slice::from_ref(&first));
    broken.instances[1].vm = VmPresence::Stopped;
    assert_eq!(retired(&broken, 1000), [first]);
    // A retry closes the breaker, and the VM that is kept for debugging stays.
    broken.instances[1].vm = VmPresence::Running;
    broken.streak = FailureStreak::default();
    assert_eq!(retired(&broken, 1012), [later]);
}

#[test]
fn something_missing_backs_off_from_the_first_time() {
    for kind in [FailureKind::Image, FailureKind::Repository] {
        let mut missing = pool(1, vec![]);
        (missing.prepared, missing.streak) = (false, FailureStreak::default().failed(kind, at(990)));
        let decision = decide(&world(vec![missing.clone()]));
        assert_eq!(decision.actions, []);
        assert_eq!(
            decision.blockers,
            [(missing.project.clone(), Blocker::Missing { kind, failures: 1 })]
        );
        missing.streak.last_at = Some(at(980));
        assert_eq!(creates(&plan(&world(vec![missing]))), 1);
    }
}

#[test]
fn half_made_rows_of_a_dead_server_are_removed_and_tests_fail_with_a_sentence() {
    let mut half = instance(InstanceState::Provisioning, 0);
    half.work = Work::Abandoned;
    let mut test = half.clone();
    test.id = InstanceId::generate();
    test.purpose = Purpose::Test { use_cache: true };
    let actions = plan(&world(vec![pool(1, vec![half.clone(), test])]));
    assert_eq!(deleted(&actions), [(&half.id, Reason::HalfMade)]);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Fail { failure, .. } if failure.reason.contains("restarted")))
    );
    assert_eq!(creates(&actions), 1);
}

mod history;
