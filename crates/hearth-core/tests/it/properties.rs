//! What must hold of every decision, over random worlds, and of what comes of them.

use std::collections::{BTreeMap, BTreeSet};

use hearth_api::ids::ProjectId;
use hearth_core::plan::{Action, Decision, Reason, decide};
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{FailureStreak, InstanceWorld, Limits, PoolWorld, VmPresence, Work, World};
use jiff::SignedDuration;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{FORK_MIB, Model, WHOLE_MIB, existing, recipe};

/// One row, as far as it is drawn; the rest follows from it.
#[derive(Debug, Clone)]
struct Row {
    state: InstanceState,
    work: Work,
    vm: VmPresence,
    /// Test, build, reserved, or nothing of it.
    role: u8,
    recipe: (char, u32),
    forked: bool,
    failure: FailureKind,
    since: i64,
    lease: i64,
}

#[derive(Debug, Clone)]
struct Pool {
    enabled: bool,
    target: usize,
    max_vms: Option<usize>,
    wanted: (char, u32),
    templates: Vec<(char, u32)>,
    failures: Vec<FailureKind>,
    rows: Vec<Row>,
}

fn recipes() -> impl Strategy<Value = (char, u32)> {
    (select(vec!['a', 'a', 'a', 'b']), 1..4_u32)
}

fn rows() -> impl Strategy<Value = Row> {
    let work = select(vec![Work::Here, Work::Here, Work::Unstarted, Work::Abandoned]);
    let vm = select(vec![
        VmPresence::Running,
        VmPresence::Paused,
        VmPresence::Paused,
        VmPresence::Stopped,
        VmPresence::Absent,
    ]);
    let row = (
        select(InstanceState::ALL.to_vec()),
        work,
        vm,
        0..6_u8,
        recipes(),
        any::<bool>(),
        select(FailureKind::ALL.to_vec()),
        0..100_000_i64,
        -100..100_i64,
    );
    row.prop_map(|(state, work, vm, role, recipe, forked, failure, since, lease)| Row {
        state,
        work,
        vm,
        role,
        recipe,
        forked,
        failure,
        since,
        lease,
    })
}

/// One that a claim could have: of rows drawn evenly few are, and a pool that has some decides most.
fn standing_rows() -> impl Strategy<Value = Row> {
    rows().prop_map(|row| Row {
        state: InstanceState::Ready,
        vm: VmPresence::Paused,
        role: 0,
        ..row
    })
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let pool = (
        prop::bool::weighted(0.8),
        0..5_usize,
        prop::option::of(0..8_usize),
        recipes(),
        prop::collection::vec(recipes(), 0..3),
        prop::collection::vec(select(FailureKind::ALL.to_vec()), 0..5),
        prop::collection::vec(prop_oneof![rows(), standing_rows()], 0..8),
    );
    let pool = pool.prop_map(|(enabled, target, max_vms, wanted, templates, failures, rows)| Pool {
        enabled,
        target,
        max_vms,
        wanted,
        templates,
        failures,
        rows,
    });
    prop::collection::vec(pool, 0..5)
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        0..30_usize,
        prop::option::of(0..20_usize),
        0..30_u64,
        0..4_usize,
        0..5_usize,
        0..8_usize,
    )
        .prop_map(
            |(max_vms, tenant_vms, memory, concurrent_provisions, concurrent_forks, tokens)| Limits {
                max_vms,
                tenant_vms,
                memory_mib: memory * WHOLE_MIB / 2,
                concurrent_provisions,
                concurrent_forks,
                tokens,
            },
        )
}

fn model(pools: &[Pool]) -> Model {
    let mut model = Model::new();
    for (number, pool) in pools.iter().enumerate() {
        let name = format!("pool{number}");
        let made = model.add_pool(&name, pool.target);
        (made.enabled, made.max_vms, made.tenant) = (pool.enabled, pool.max_vms, number % 2);
        made.recipe = recipe(pool.wanted.0, pool.wanted.1);
        made.target = made.target.min(pool.max_vms.unwrap_or(usize::MAX));
        let project = made.project.clone();
        let templates = pool.templates.iter().map(|(set_up, commit)| recipe(*set_up, *commit));
        model.templates.insert(project.clone(), templates.collect());
        let now = model.world.now;
        // Without failures, as many successes as there are rows.
        let good = pool
            .rows
            .iter()
            .fold(FailureStreak::default(), |streak, _| streak.succeeded());
        let streak = pool
            .failures
            .iter()
            .fold(good, |streak, kind| streak.failed(*kind, now));
        let wanted = recipe(pool.wanted.0, pool.wanted.1);
        model.streaks.insert((project, wanted), streak);
        for row in &pool.rows {
            let made = model.add_row(number, &recipe(row.recipe.0, row.recipe.1));
            draw(made, row, now);
        }
    }
    model.refresh();
    model
}

fn draw(made: &mut InstanceWorld, row: &Row, now: jiff::Timestamp) {
    made.state = row.state;
    made.state_since = now - SignedDuration::from_secs(row.since);
    made.vm = row.vm;
    made.forked = row.forked;
    made.work = match row.state {
        InstanceState::Provisioning => row.work,
        InstanceState::Retiring | InstanceState::Deleting if row.work == Work::Here => Work::Here,
        _ => Work::Idle,
    };
    let may_wait = matches!(made.state, InstanceState::Provisioning | InstanceState::Ready);
    made.purpose = match row.role {
        1 => Purpose::Test { use_cache: true },
        2 => Purpose::Renewal,
        3 if may_wait && made.work != Work::Abandoned => Purpose::Claim,
        _ => Purpose::Pool,
    };
    if row.state == InstanceState::Failed {
        made.failure = Some(row.failure);
    }
    if row.state == InstanceState::Claimed {
        made.lease_ends_at = Some(now + SignedDuration::from_secs(row.lease));
    }
}

/// What a pass may do with an instance that a task has, or that a claim waits for.
fn check_touch(world: &World, row: &InstanceWorld, action: &Action) {
    if row.state == InstanceState::Claimed {
        let over = row.lease_ends_at.is_some_and(|end| end <= world.now);
        let ends = matches!(
            action,
            Action::Delete {
                reason: Reason::LeaseEnded,
                ..
            }
        );
        assert!(over && ends, "touches a claimed one: {action:?}");
    }
    if row.purpose == Purpose::Claim {
        let lost = row.state == InstanceState::Ready && !row.vm.is_alive() && world.drivers_observed;
        match action {
            Action::Start { .. } => assert_eq!(row.work, Work::Unstarted),
            Action::Fail { .. } => assert!(lost),
            other => panic!("touches a reserved one: {other:?}"),
        }
    }
}

/// What must hold of every decision, whatever the world.
fn check(world: &World, decision: &Decision) {
    let rows = world.pools.iter().flat_map(|pool| &pool.instances);
    let rows: BTreeMap<_, &InstanceWorld> = rows.map(|i| (&i.id, i)).collect();
    let mut named = BTreeSet::new();
    for action in &decision.actions {
        let Some(id) = action.instance() else { continue };
        let row = rows[id];
        assert!(named.insert(id), "two actions on {id}");
        check_touch(world, row, action);
        let to = match action {
            Action::Fail { .. } => InstanceState::Failed,
            Action::Retire { .. } => InstanceState::Retiring,
            Action::Delete { .. } => InstanceState::Deleting,
            _ => continue,
        };
        assert!(to.legal_sources().contains(&row.state), "{action:?} of {row:?}");
    }
    check_limits(world, decision);
}

fn check_limits(world: &World, decision: &Decision) {
    let (mut forks, mut provisions) = (0, 0);
    let (mut memory, mut refilled_forks) = (0, 0);
    let mut begun: BTreeMap<&ProjectId, usize> = BTreeMap::new();
    for action in &decision.actions {
        let (pool, forked, mib) = match action {
            Action::Create { project, recipe, .. } => {
                let pool = world.pools.iter().find(|pool| pool.project == *project).unwrap();
                assert!(pool.enabled);
                let wanted = *recipe == pool.recipe;
                let last = pool.previous.as_ref().filter(|last| last.recipe == *recipe);
                assert!(wanted || last.is_some_and(|_| !pool.prepared));
                let mib = last.filter(|_| !wanted).map_or(pool.memory_mib, |last| last.memory_mib);
                refilled_forks += usize::from(!wanted || pool.prepared);
                (pool, !wanted || pool.prepared, mib)
            }
            Action::Build { project } => {
                let pool = world.pools.iter().find(|pool| pool.project == *project).unwrap();
                assert!(pool.enabled && !pool.prepared);
                (pool, false, pool.memory_mib)
            }
            Action::Start { instance } => {
                let own = |pool: &&PoolWorld| pool.instances.iter().any(|i| i.id == *instance);
                let pool = world.pools.iter().find(own).unwrap();
                let row = pool.instances.iter().find(|i| i.id == *instance).unwrap();
                (pool, row.forked, row.memory_mib)
            }
            _ => continue,
        };
        *begun.entry(&pool.project).or_default() += 1;
        memory += mib;
        if forked { forks += 1 } else { provisions += 1 }
    }
    let all = begun.values().sum::<usize>();
    if all == 0 {
        return;
    }
    let there: usize = world.pools.iter().map(|pool| existing(pool).count()).sum();
    let taken: u64 = world.pools.iter().flat_map(existing).map(|i| i.memory_mib).sum();
    let making = |forked: bool| {
        let all = world.pools.iter().flat_map(|pool| &pool.instances);
        all.filter(|i| i.state == InstanceState::Provisioning && i.work == Work::Here && i.forked == forked)
            .count()
    };
    let limits = &world.limits;
    assert!(there + world.orphans.len() + all <= limits.max_vms);
    assert!(taken + memory <= limits.memory_mib);
    assert!(all <= limits.tokens);
    assert!(provisions == 0 || making(false) + provisions <= limits.concurrent_provisions);
    assert!(forks == 0 || making(true) + forks <= limits.concurrent_forks);
    assert!(refilled_forks == 0 || making(true) + forks < limits.concurrent_forks.max(2));
    for tenant in 0..2 {
        let own = || world.pools.iter().filter(|pool| pool.tenant == tenant);
        let more: usize = own().filter_map(|pool| begun.get(&pool.project)).sum();
        let there: usize = own().map(|pool| existing(pool).count()).sum();
        assert!(more == 0 || limits.tenant_vms.is_none_or(|most| there + more <= most));
    }
    for pool in &world.pools {
        let (more, most) = (begun.get(&pool.project).copied().unwrap_or_default(), pool.max_vms);
        assert!(more == 0 || most.is_none_or(|most| existing(pool).count() + more <= most));
    }
}

/// Lets everything that is being made go well, and every task end.
fn go_well(model: &mut Model) {
    for id in model.in_the_making() {
        model.finish(&id, None);
    }
    for pool in &mut model.world.pools {
        for row in &mut pool.instances {
            row.release();
            if row.state != InstanceState::Provisioning {
                row.work = Work::Idle;
            }
        }
    }
}

/// How often a pool may try in so many hours when nothing ever goes well, by the pauses alone.
fn most_tries(kind: FailureKind, seconds: i64) -> usize {
    let (free, first, longest) = match kind {
        FailureKind::Setup => (3, 300, 3600),
        FailureKind::Image | FailureKind::Repository => (1, 15, 3600),
        _ => (1, 5, 300),
    };
    let (mut tries, mut at, mut pause) = (free, first, first);
    while at <= seconds {
        (tries, pause) = (tries + 1, (pause * 2).min(longest));
        at += pause;
    }
    tries
}

proptest! {
    #[test]
    fn every_decision_keeps_the_promises(
        pools in pools(),
        limits in limits(),
        orphans in 0..3_usize,
        observed in any::<bool>(),
        can_pause in any::<bool>(),
    ) {
        let mut model = model(&pools);
        model.world.limits = limits;
        (model.world.drivers_observed, model.world.can_pause) = (observed, can_pause);
        model.world.orphans = (0..orphans).map(|number| format!("vm-{number}").parse().unwrap()).collect();
        let decision = decide(&model.world);
        check(&model.world, &decision);
        prop_assert_eq!(decision, decide(&model.world));
    }

    /// From whatever world: with boots that go well and room enough every pool is in the end full, fresh and paused.
    #[test]
    fn whatever_there_is_becomes_what_is_wanted(pools in pools(), slots in 1..4_usize) {
        let mut model = model(&pools);
        for row in model.world.pools.iter_mut().flat_map(|pool| &mut pool.instances) {
            // Leases end at once; a project's own limit must leave room for one more.
            row.lease_ends_at = row.lease_ends_at.map(|_| row.created_at);
        }
        for pool in &mut model.world.pools {
            pool.max_vms = pool.max_vms.map(|most| most.max(pool.target + 2));
            pool.max_age_seconds = 1_000_000_000;
        }
        model.world.limits.concurrent_provisions = slots;
        model.world.limits.concurrent_forks = slots;
        for _ in 0..100 {
            model.refresh();
            check(&model.world, &decide(&model.world));
            model.pass();
            go_well(&mut model);
            model.world.now += SignedDuration::from_mins(30);
        }
        model.refresh();
        prop_assert_eq!(decide(&model.world), Decision::default());
        for pool in &model.world.pools {
            let (ready, other): (Vec<_>, Vec<_>) =
                pool.instances.iter().partition(|i| i.state == InstanceState::Ready);
            prop_assert_eq!(ready.len(), if pool.enabled { pool.target } else { 0 });
            prop_assert!(ready.iter().all(|i| i.recipe == pool.recipe));
            prop_assert!(other.is_empty(), "{:?}", other);
            prop_assert!(pool.prepared || !pool.enabled);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A host whose memory the pools have filled, projects that may have no VM more: what is pushed is built all the same, and
    /// everything follows it.
    #[test]
    fn what_is_pushed_finds_room_on_a_full_host(
        targets in prop::collection::vec((1..12_usize, any::<bool>()), 1..5),
        memory in 0..WHOLE_MIB,
    ) {
        let mut model = Model::new();
        // A build, one VM of each pool, and some more.
        model.world.limits.memory_mib = WHOLE_MIB + targets.len() as u64 * FORK_MIB + memory;
        for (number, (target, limited)) in targets.iter().enumerate() {
            let name = format!("pool{number}");
            let pool = model.add_pool(&name, *target);
            // One that has a single VM does not give it away for a build.
            pool.max_vms = (*limited && *target > 1).then_some(*target);
            model.templates.insert(name.parse().unwrap(), vec![recipe('a', 1)]);
        }
        for pushed in 1..4 {
            for pool in &mut model.world.pools {
                pool.recipe = recipe('a', pushed);
            }
            for _ in 0..200 {
                let had: Vec<_> = model.world.pools.iter().map(ready).collect();
                model.refresh();
                check(&model.world, &decide(&model.world));
                model.pass();
                go_well(&mut model);
                for (pool, had) in model.world.pools.iter().zip(had) {
                    prop_assert!(had < 2 || ready(pool) > 0, "a pool was emptied");
                }
                model.world.now += SignedDuration::from_secs(10);
            }
            for pool in &model.world.pools {
                prop_assert!(pool.prepared && ready(pool) > 0, "{pool:?}");
                prop_assert!(pool.instances.iter().all(|i| i.recipe == pool.recipe), "{pool:?}");
            }
        }
    }
}

fn ready(pool: &PoolWorld) -> usize {
    pool.instances
        .iter()
        .filter(|i| i.state == InstanceState::Ready)
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// When nothing can become ready, a pool tries as seldom as its pauses say.
    #[test]
    fn what_always_fails_is_tried_seldom(
        kind in select(vec![FailureKind::Setup, FailureKind::Image, FailureKind::Host, FailureKind::Identity, FailureKind::VmLost]),
        target in 1..5_usize,
        pushed in any::<bool>(),
    ) {
        const HOURS: i64 = 6;
        let mut model = Model::new();
        let pool = model.add_pool("web", target);
        if pushed {
            pool.recipe = recipe('a', 2);
            model.templates.insert("web".parse().unwrap(), vec![recipe('a', 1)]);
        }
        let mut tries = 0;
        for _ in 0..HOURS * 3600 / 10 {
            let begun = model.pass().actions;
            tries += begun.iter().filter(|a| matches!(a, Action::Create { .. } | Action::Build { .. })).count();
            for id in model.in_the_making() {
                // Forks fail by the host's fault, whatever the set-up does.
                let forked = model.row(&id).forked;
                let kind = if forked && kind.blames_recipe() { FailureKind::Identity } else { kind };
                model.finish(&id, Some(kind));
            }
            model.world.now += SignedDuration::from_secs(10);
        }
        let forks = if pushed { most_tries(FailureKind::Identity, HOURS * 3600) } else { 0 };
        let most = forks + most_tries(kind, HOURS * 3600);
        prop_assert!(tries <= most, "{tries} tries, {most} allowed");
        prop_assert!(tries * 2 > most, "it gave up: {tries} tries of {most}");
        // One VM to look into, at most.
        let with_vm = model.world.pools[0].instances.iter().filter(|i| i.state != InstanceState::Archived);
        prop_assert!(with_vm.count() <= 1 + target);
    }
}
