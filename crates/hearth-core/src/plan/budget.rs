//! What may still be made in a pass: the limits of the host, of tenants and of projects, less everything that exists.

use std::collections::HashMap;

use hearth_api::ids::ProjectId;

use super::decision::Blocker;
use super::summary::host_load;
use crate::state::InstanceState;
use crate::world::{InstanceWorld, Limits, PoolWorld, Work, World};

/// What may still be made in this pass.
pub(super) struct Budget<'a> {
    vms: usize,
    memory_mib: u64,
    provisions: usize,
    forks: usize,
    /// Of them: what is left to the pools whose template is being replaced.
    older_forks: HashMap<&'a ProjectId, usize>,
    /// Forks that only claims may have.
    spared: usize,
    /// Memory that is left for the next build: a VM in which something is set up takes many times what a fork takes, and a pool
    /// that refills left alone would take all there is.
    kept_mib: u64,
    tokens: usize,
    /// What is left to the projects that have a limit of their own.
    projects: HashMap<&'a ProjectId, usize>,
    /// What is left to each tenant, where tenants have a limit.
    tenants: HashMap<usize, usize>,
}

impl<'a> Budget<'a> {
    /// Everything that exists counts, whatever its state. `replaced`: the pools that serve by a template while another one is made.
    pub(super) fn new(world: &'a World, replaced: impl Iterator<Item = &'a PoolWorld>) -> Self {
        let Limits {
            max_vms,
            tenant_vms,
            memory_mib,
            concurrent_provisions,
            concurrent_forks,
            tokens,
        } = world.limits;
        let load = host_load(world);
        let mut budget = Self {
            vms: max_vms.saturating_sub(load.vms),
            memory_mib: memory_mib.saturating_sub(load.memory_mib),
            provisions: concurrent_provisions.saturating_sub(load.provisions),
            forks: concurrent_forks.saturating_sub(load.forks),
            older_forks: replaced
                .map(|pool| {
                    (
                        &pool.project,
                        beside_build(concurrent_forks).saturating_sub(forking(pool)),
                    )
                })
                .collect(),
            spared: usize::from(concurrent_forks > 1),
            kept_mib: build_mib(world),
            tokens,
            projects: HashMap::new(),
            tenants: HashMap::new(),
        };
        for pool in &world.pools {
            if tenant_vms.is_none() && pool.max_vms.is_none() {
                continue;
            }
            let existing = pool.instances.iter().filter(|i| holds_resources(i)).count();
            if let Some(most) = tenant_vms {
                let left = budget.tenants.entry(pool.tenant).or_insert(most);
                *left = left.saturating_sub(existing);
            }
            if let Some(most) = pool.max_vms {
                budget.projects.insert(&pool.project, most.saturating_sub(existing));
            }
        }
        budget
    }

    /// How many of a kind may be in the making at once.
    fn at_once(&mut self, forked: bool) -> &mut usize {
        if forked { &mut self.forks } else { &mut self.provisions }
    }

    /// From here on no claim waits for what is made: a refill never takes the last fork that a claim may ask for.
    pub(super) fn spare_for_claims(&mut self) {
        self.forks = self.forks.saturating_sub(self.spared);
    }

    /// Takes one VM that is not there yet.
    pub(super) fn take(&mut self, pool: &PoolWorld, memory_mib: u64, forked: bool) -> bool {
        let older_left = self.older_forks.get(&pool.project).filter(|_| forked);
        let none_left = older_left == Some(&0) || self.tokens == 0 || *self.at_once(forked) == 0;
        if none_left || self.has_no_room(pool, memory_mib) {
            return false;
        }
        *self.at_once(forked) -= 1;
        if let Some(own) = self.older_forks.get_mut(&pool.project).filter(|_| forked) {
            *own -= 1;
        }
        if let Some(own) = self.projects.get_mut(&pool.project) {
            *own -= 1;
        }
        if let Some(own) = self.tenants.get_mut(&pool.tenant) {
            *own -= 1;
        }
        self.vms -= 1;
        self.tokens -= 1;
        self.memory_mib -= memory_mib;
        true
    }

    /// Takes one VM that must leave so much memory.
    pub(super) fn take_refill(&mut self, pool: &PoolWorld, memory_mib: u64, forked: bool, kept_mib: u64) -> bool {
        self.memory_mib >= memory_mib.saturating_add(kept_mib) && self.take(pool, memory_mib, forked)
    }

    /// Memory that a refill of a pool with so many VMs must leave: the first one is served before anything is built.
    pub(super) fn kept_mib(&self, forked: bool, there: usize) -> u64 {
        if forked && there > 0 { self.kept_mib } else { 0 }
    }

    /// Takes the turn of one VM that can be made only after another one is gone.
    pub(super) fn take_turn(&mut self, forked: bool) -> bool {
        if *self.at_once(forked) == 0 || self.tokens == 0 {
            return false;
        }
        *self.at_once(forked) -= 1;
        self.tokens -= 1;
        true
    }

    /// Why [`Budget::take`] said no, or [`Budget::take_refill`] that had to leave so much.
    pub(super) fn why_not(&self, world: &World, pool: &PoolWorld, memory_mib: u64, kept_mib: u64) -> Blocker {
        if self.projects.get(&pool.project) == Some(&0) {
            Blocker::ProjectVms
        } else if self.tenants.get(&pool.tenant) == Some(&0) {
            Blocker::TenantVms {
                max: world.limits.tenant_vms.unwrap_or_default(),
            }
        } else if self.vms == 0 {
            Blocker::HostVms {
                max: world.limits.max_vms,
            }
        } else if self.memory_mib < memory_mib.saturating_add(kept_mib) {
            Blocker::HostMemory {
                wants_mib: memory_mib,
                left_mib: self.memory_mib,
                kept_mib,
            }
        } else {
            Blocker::InTheMaking
        }
    }

    /// Why there is no room for so many more of this size, all at once; `None` when there is.
    pub(super) fn why_not_all(
        &self,
        world: &World,
        pool: &PoolWorld,
        memory_mib: u64,
        count: usize,
    ) -> Option<Blocker> {
        let (own, tenant) = (self.projects.get(&pool.project), self.tenants.get(&pool.tenant));
        if own.is_some_and(|left| *left < count) {
            Some(Blocker::ProjectVms)
        } else if tenant.is_some_and(|left| *left < count) {
            Some(Blocker::TenantVms {
                max: world.limits.tenant_vms.unwrap_or_default(),
            })
        } else if self.vms < count {
            Some(Blocker::HostVms {
                max: world.limits.max_vms,
            })
        } else if self.memory_mib < memory_mib.saturating_mul(count as u64) {
            Some(Blocker::HostMemory {
                wants_mib: memory_mib,
                left_mib: self.memory_mib,
                kept_mib: 0,
            })
        } else {
            None
        }
    }

    /// Whether waiting alone makes no room for one more.
    pub(super) fn has_no_room(&self, pool: &PoolWorld, memory_mib: u64) -> bool {
        self.vms_left(pool) == 0 || self.memory_mib < memory_mib
    }

    /// How many more VMs the limits allow a pool, by their number.
    pub(super) fn vms_left(&self, pool: &PoolWorld) -> usize {
        let own = [self.projects.get(&pool.project), self.tenants.get(&pool.tenant)];
        own.into_iter().flatten().fold(self.vms, |left, own| left.min(*own))
    }

    /// Whether a pool may have one more, of this size too, and no other after it.
    pub(super) fn is_last_place_for(&self, pool: &PoolWorld, memory_mib: u64) -> bool {
        self.vms_left(pool) == 1 && self.memory_mib >= memory_mib
    }

    /// Whether a pool may not have one more by its project's own limit alone.
    pub(super) fn only_own_limit(&self, pool: &PoolWorld) -> bool {
        let tenant = self.tenants.get(&pool.tenant);
        self.projects.get(&pool.project) == Some(&0) && self.vms > 0 && tenant != Some(&0)
    }
}

/// Forks of a pool that may be in the making while what it is to follow is set up: each takes the processor from that, and its
/// checkouts are updated when it is claimed, so the sooner it is done the less there is to do. Never none: it may take long.
fn beside_build(concurrent_forks: usize) -> usize {
    (concurrent_forks / 4).max(1)
}

/// Forks of a pool that are in the making.
fn forking(pool: &PoolWorld) -> usize {
    let all = pool.instances.iter();
    all.filter(|i| i.forked && i.is_in_the_making()).count()
}

/// Memory that the largest build of a pool takes, MiB, less what is being set up already.
fn build_mib(world: &World) -> u64 {
    let enabled = world.pools.iter().filter(|pool| pool.enabled);
    let largest = enabled.map(|pool| pool.build_mib).max().unwrap_or_default();
    let all = world.pools.iter().flat_map(|pool| &pool.instances);
    let under_way = all.filter(|i| i.is_in_the_making() && !i.forked);
    largest.saturating_sub(under_way.map(|i| i.memory_mib).sum())
}

/// An unstarted row has no VM yet: it takes its share when it is started.
pub(super) fn holds_resources(instance: &InstanceWorld) -> bool {
    instance.state.may_have_vm() && !waits_for_start(instance)
}

pub(super) fn waits_for_start(instance: &InstanceWorld) -> bool {
    instance.state == InstanceState::Provisioning && instance.work == Work::Unstarted
}
