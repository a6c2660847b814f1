//! Single decisions by example, and a simulation that checks the promises over random histories.

use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::budget::holds_resources;
use super::*;
use crate::world::{FailureStreak, Limits, PoolWorld};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000_000 + seconds)
}

fn instance(state: InstanceState, since: i64) -> InstanceWorld {
    InstanceWorld {
        id: InstanceId::generate(),
        state,
        generation: 1,
        is_test: false,
        is_build: false,
        reserved: false,
        recipe: "r1".into(),
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
        enabled: true,
        target,
        max_vms: None,
        max_age_seconds: 3600,
        recipe: "r1".into(),
        memory_mib: 1024,
        prepared: true,
        streak: FailureStreak::default(),
        instances,
    }
}

fn world(pools: Vec<PoolWorld>) -> World {
    World {
        now: at(1000),
        limits: Limits {
            max_vms: 100,
            memory_mib: 100 * 1024,
            concurrent_provisions: 4,
            concurrent_forks: 4,
        },
        pools,
        can_rest: false,
        orphans: Vec::new(),
        drivers_observed: true,
    }
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
fn without_room_for_one_more_the_stalest_goes_first() {
    let mut full = pool(
        2,
        vec![instance(InstanceState::Ready, 5), instance(InstanceState::Ready, 0)],
    );
    full.max_vms = Some(2);
    full.recipe = "r2".into();
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
    old.recipe = "r0".into();
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
        host: 0,
        last_at: Some(at(999)),
    };
    assert_eq!(plan(&world(vec![broken.clone()])), []);
    broken.streak.last_at = Some(at(1000 - 301));
    assert_eq!(creates(&plan(&world(vec![broken]))), 1);
}

#[test]
fn half_made_rows_of_a_dead_server_are_removed_and_tests_fail_with_a_sentence() {
    let mut half = instance(InstanceState::Provisioning, 0);
    half.work = Work::Abandoned;
    let mut test = half.clone();
    test.id = InstanceId::generate();
    test.is_test = true;
    let actions = plan(&world(vec![pool(1, vec![half.clone(), test])]));
    assert_eq!(deleted(&actions), [(&half.id, Reason::HalfMade)]);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Fail { failure, .. } if failure.reason.contains("restarted")))
    );
    assert_eq!(creates(&actions), 1);
}

/// One event of a random history.
#[derive(Debug, Clone)]
enum Event {
    Pass,
    Finish { which: usize, well: bool },
    Claim { which: usize },
    Kill { which: usize },
    SetTarget { target: usize, enabled: bool },
    NewRecipe,
    Restart,
    Later { seconds: i64 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => Just(Event::Pass),
        4 => (0..8_usize, any::<bool>()).prop_map(|(which, well)| Event::Finish { which, well }),
        2 => (0..8_usize).prop_map(|which| Event::Claim { which }),
        1 => (0..8_usize).prop_map(|which| Event::Kill { which }),
        1 => (1..5_usize, any::<bool>()).prop_map(|(target, enabled)| Event::SetTarget { target, enabled }),
        1 => Just(Event::NewRecipe),
        1 => Just(Event::Restart),
        1 => (1..4000_i64).prop_map(|seconds| Event::Later { seconds }),
    ];
    prop::collection::vec(event, 0..80)
}

/// Carries the actions out, and checks what must hold for each.
fn apply(world: &mut World, actions: Vec<Action>) {
    let now = world.now;
    for action in actions {
        let find = |pool: &PoolWorld, id: &InstanceId| pool.instances.iter().position(|i| i.id == *id);
        match action {
            Action::Create { .. } => {
                let recipe = world.pools[0].recipe.clone();
                let mut new = instance(InstanceState::Provisioning, 0);
                (new.recipe, new.created_at, new.state_since) = (recipe, now, now);
                world.pools[0].instances.push(new);
            }
            Action::Start { instance } => {
                let at = find(&world.pools[0], &instance).unwrap();
                world.pools[0].instances[at].work = Work::Here;
            }
            Action::Fail { instance, .. } => {
                let at = find(&world.pools[0], &instance).unwrap();
                let row = &mut world.pools[0].instances[at];
                assert!(InstanceState::Failed.legal_sources().contains(&row.state));
                (row.state, row.state_since) = (InstanceState::Failed, now);
            }
            Action::Retire { instance, .. } => {
                let at = find(&world.pools[0], &instance).unwrap();
                let row = &mut world.pools[0].instances[at];
                assert!(InstanceState::Retiring.legal_sources().contains(&row.state));
                (row.state, row.state_since, row.work) = (InstanceState::Archived, now, Work::Idle);
            }
            Action::Delete { instance, reason, .. } => {
                let at = find(&world.pools[0], &instance).unwrap();
                let row = world.pools[0].instances.remove(at);
                assert!(
                    row.state != InstanceState::Claimed || reason == Reason::LeaseEnded,
                    "touched a claimed one"
                );
            }
            Action::Teardown { .. } | Action::Rest { .. } | Action::DestroyOrphan { .. } => {}
        }
    }
    let existing = world.pools[0].instances.iter().filter(|i| holds_resources(i)).count();
    assert!(existing <= world.limits.max_vms, "above the limit: {existing}");
}

proptest! {
    #[test]
    fn random_histories_keep_the_promises_and_settle(events in events()) {
        let mut world = world(vec![pool(2, vec![])]);
        world.limits.max_vms = 12;
        for event in events {
            let rows = &mut world.pools[0].instances;
            let count = rows.len().max(1);
            match event {
                Event::Pass => {
                    let actions = plan(&world);
                    apply(&mut world, actions);
                }
                Event::Finish { which, well } => {
                    if let Some(row) = rows.get_mut(which % count).filter(|r| r.state == InstanceState::Provisioning) {
                        row.state = if well { InstanceState::Ready } else { InstanceState::Failed };
                        (row.state_since, row.work) = (world.now, Work::Idle);
                    }
                }
                Event::Claim { which } => {
                    if let Some(row) = rows.get_mut(which % count).filter(|r| r.state == InstanceState::Ready) {
                        (row.state, row.state_since) = (InstanceState::Claimed, world.now);
                    }
                }
                Event::Kill { which } => {
                    if let Some(row) = rows.get_mut(which % count) {
                        row.vm = VmPresence::Stopped;
                    }
                }
                Event::SetTarget { target, enabled } => {
                    (world.pools[0].target, world.pools[0].enabled) = (target, enabled);
                }
                Event::NewRecipe => world.pools[0].recipe.push('x'),
                Event::Restart => {
                    for row in rows.iter_mut().filter(|r| r.state == InstanceState::Provisioning) {
                        row.work = Work::Abandoned;
                    }
                }
                Event::Later { seconds } => world.now += SignedDuration::from_secs(seconds),
            }
        }
        // Left alone, with every boot succeeding and claims given back, it settles on the target by the current recipe.
        world.pools[0].instances.retain(|r| r.state != InstanceState::Claimed);
        for _ in 0..64 {
            let actions = plan(&world);
            apply(&mut world, actions);
            for row in &mut world.pools[0].instances {
                if row.state == InstanceState::Provisioning && row.work == Work::Here {
                    (row.state, row.state_since, row.work) = (InstanceState::Ready, world.now, Work::Idle);
                }
            }
        }
        let pool = &world.pools[0];
        let ready = pool.instances.iter().filter(|r| r.state == InstanceState::Ready).count();
        prop_assert_eq!(ready, if pool.enabled { pool.target } else { 0 });
        prop_assert!(pool.instances.iter().filter(|r| r.state == InstanceState::Ready).all(|r| r.recipe == pool.recipe));
        prop_assert_eq!(plan(&world), []);
    }
}
