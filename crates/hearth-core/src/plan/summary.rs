//! The state of a pool by the planner's own rules, for those who explain it. Decides nothing.

use jiff::Timestamp;

use super::{Blocker, DEBUG_VM_KEPT, backoff_after, builds_wanted, kept_for_debugging, ready, serving, source};
use crate::state::InstanceState;
use crate::world::{InstanceWorld, PoolWorld, Work, World};

/// The state of a pool.
#[derive(Debug, Clone)]
pub struct PoolSummary<'a> {
    /// The recipe that new instances are made by right now.
    pub serves: &'a str,
    /// Instances that are ready for a claim.
    pub ready: usize,
    /// Those of the target recipe among them.
    pub current: usize,
    /// Instances that are being made for the pool.
    pub making: usize,
    /// The instance that builds the target recipe.
    pub builds: Option<&'a InstanceWorld>,
    /// The test boots under way.
    pub tests: Vec<&'a InstanceWorld>,
    /// The failed one that a person may look into, and until when.
    pub kept: Option<(&'a InstanceWorld, Timestamp)>,
    /// Why nothing is tried right now.
    pub backoffs: Vec<Backoff>,
}

/// Failures make a pool wait before it tries again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    pub blocker: Blocker,
    pub until: Timestamp,
    /// It is the target recipe that waits, while the previous recipe may serve.
    pub wanted: bool,
}

/// The state of a pool now. Without the drivers' answer every VM counts as there.
#[must_use]
pub fn summarize(pool: &PoolWorld, now: Timestamp, drivers_observed: bool) -> PoolSummary<'_> {
    let ready = || ready(pool, drivers_observed);
    let previous = pool.previous.as_ref().map(|last| (&last.streak, false));
    let backoffs = [Some((&pool.streak, true)), previous].into_iter().flatten();
    let backoffs = backoffs.filter_map(|(streak, wanted)| {
        let (blocker, until) = backoff_after(pool, streak)?;
        (pool.enabled && now < until).then_some(Backoff { blocker, until, wanted })
    });
    PoolSummary {
        serves: source(pool).recipe,
        ready: ready().count(),
        current: ready().filter(|i| i.recipe == pool.recipe).count(),
        making: serving(pool).filter(|i| i.state == InstanceState::Provisioning).count(),
        builds: pool
            .instances
            .iter()
            .find(|i| builds_wanted(pool, i) && !i.purpose.is_test()),
        tests: pool.instances.iter().filter(|i| is_test_boot(i)).collect(),
        kept: kept_for_debugging(pool, now, drivers_observed).map(|i| (i, i.state_since + DEBUG_VM_KEPT)),
        backoffs: backoffs.collect(),
    }
}

/// A test boot that a person waits for.
fn is_test_boot(instance: &InstanceWorld) -> bool {
    instance.purpose.is_test() && instance.state == InstanceState::Provisioning && instance.work != Work::Abandoned
}

/// What exists and is being made on a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostLoad {
    /// VMs in any state.
    pub vms: usize,
    /// Memory that they count with, MiB.
    pub memory_mib: u64,
    /// VMs that are being set up.
    pub provisions: usize,
    /// Forks that are being made.
    pub forks: usize,
}

/// What of the limits is used.
#[must_use]
pub fn host_load(world: &World) -> HostLoad {
    let mut load = HostLoad {
        vms: world.orphans.len(),
        ..HostLoad::default()
    };
    let all = world.pools.iter().flat_map(|pool| &pool.instances);
    for instance in all.filter(|i| super::budget::holds_resources(i)) {
        load.vms += 1;
        load.memory_mib += instance.memory_mib;
        if instance.is_in_the_making() {
            let at_once = if instance.forked {
                &mut load.forks
            } else {
                &mut load.provisions
            };
            *at_once += 1;
        }
    }
    load
}
