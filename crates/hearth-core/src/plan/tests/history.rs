//! A simulation of one pool that checks the promises over random histories.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One event of a random history.
#[derive(Debug, Clone)]
enum Event {
    Pass,
    Finish { which: usize, well: bool },
    Claim { which: usize },
    Kill { which: usize },
    SetTarget { target: usize, enabled: bool },
    Push,
    SetUp,
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
        1 => Just(Event::Push),
        1 => Just(Event::SetUp),
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
            Action::Create { recipe, .. } => {
                let pool = &mut world.pools[0];
                let forked = pool.prepared || recipe != pool.recipe;
                assert!(forked || pool.previous.is_none(), "what is not prepared serves");
                pool.instances.push(InstanceWorld {
                    recipe,
                    forked,
                    created_at: now,
                    state_since: now,
                    ..instance(InstanceState::Provisioning, 0)
                });
            }
            Action::Build { .. } => {
                let pool = &mut world.pools[0];
                pool.instances.push(InstanceWorld {
                    created_at: now,
                    state_since: now,
                    recipe: pool.recipe.clone(),
                    forked: false,
                    ..instance(InstanceState::Provisioning, 0)
                });
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
            Action::Teardown { .. } | Action::Pause { .. } | Action::DestroyOrphan { .. } => {}
        }
    }
    let set_ups: BTreeSet<&str> = world.pools[0]
        .instances
        .iter()
        .filter(|i| i.state == InstanceState::Provisioning && i.work == Work::Here && !i.forked)
        .map(|i| &i.recipe[..12])
        .collect();
    let building = world.pools[0].instances.iter();
    let building = building.filter(|i| i.state == InstanceState::Provisioning && i.work == Work::Here && !i.forked);
    assert_eq!(
        building.count(),
        set_ups.len(),
        "a set-up is carried out twice at a time"
    );
    let existing = world.pools[0].instances.iter().filter(|i| holds_resources(i)).count();
    assert!(existing <= world.limits.max_vms, "above the limit: {existing}");
}

/// A boot ends. What was set up leaves a template.
fn finish(world: &mut World, which: usize, well: bool) {
    let (now, pool) = (world.now, &mut world.pools[0]);
    let row = &mut pool.instances[which];
    (row.state, row.state_since, row.work) = (InstanceState::Ready, now, Work::Idle);
    let own = match &mut pool.previous {
        _ if row.recipe == pool.recipe => Some(&mut pool.streak),
        Some(last) if last.recipe == row.recipe => Some(&mut last.streak),
        _ => None,
    };
    if let Some(streak) = own {
        *streak = if well {
            streak.succeeded()
        } else {
            streak.failed(FailureKind::Setup, now)
        };
    }
    if !well {
        (row.state, row.failure) = (InstanceState::Failed, Some(FailureKind::Setup));
    } else if !row.forked && row.recipe == pool.recipe {
        (pool.prepared, pool.previous) = (true, None);
    } else if !row.forked && !pool.prepared {
        pool.previous = Some(PreviousRecipe {
            recipe: row.recipe.clone(),
            memory_mib: 64,
            streak: FailureStreak::default().succeeded(),
        });
    }
}

/// The pool wants something else now.
fn want(pool: &mut PoolWorld, recipe: String) {
    if pool.prepared {
        push(pool);
    }
    (pool.recipe, pool.streak) = (recipe, FailureStreak::default());
}

proptest! {
    #[test]
    fn random_histories_keep_the_promises_and_settle(events in events()) {
        let mut world = world(vec![pool(2, vec![])]);
        world.limits.max_vms = 12;
        let mut recipes = 1;
        for event in events {
            let rows = &mut world.pools[0].instances;
            let count = rows.len().max(1);
            match event {
                Event::Pass => {
                    let actions = plan(&world);
                    apply(&mut world, actions);
                }
                Event::Finish { which, well } => {
                    let which = which % count;
                    if rows.get(which).is_some_and(|r| r.state == InstanceState::Provisioning && r.work == Work::Here) {
                        finish(&mut world, which, well);
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
                Event::Push | Event::SetUp => {
                    recipes += 1;
                    let old = u32::from_str_radix(&world.pools[0].recipe[..12], 16).unwrap();
                    let set_up = if matches!(event, Event::Push) { old } else { recipes };
                    want(&mut world.pools[0], recipe(set_up, recipes));
                }
                Event::Restart => {
                    for row in rows.iter_mut().filter(|r| r.state == InstanceState::Provisioning) {
                        row.work = Work::Abandoned;
                    }
                }
                Event::Later { seconds } => world.now += SignedDuration::from_secs(seconds),
            }
        }
        // Left alone, with every boot succeeding and claims given back, it ends up at the target size with the current recipe.
        world.pools[0].instances.retain(|r| r.state != InstanceState::Claimed);
        world.pools[0].max_age_seconds = 1_000_000_000;
        for _ in 0..200 {
            world.now += SignedDuration::from_secs(60);
            let actions = plan(&world);
            apply(&mut world, actions);
            for which in 0..world.pools[0].instances.len() {
                let row = &world.pools[0].instances[which];
                if row.state == InstanceState::Provisioning && row.work == Work::Here {
                    finish(&mut world, which, true);
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
