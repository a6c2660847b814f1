//! What may still be made in a pass: the limits of the host and of projects, less everything that exists.

use std::collections::HashMap;

use hearth_api::ids::ProjectId;

use super::decision::Hold;
use super::standing::host_load;
use crate::state::InstanceState;
use crate::world::{InstanceWorld, Limits, Work, World};

/// What may still be made in this pass.
pub(super) struct Budget<'a> {
    vms: usize,
    memory_mib: u64,
    provisions: usize,
    forks: usize,
    /// Forks that only claims may have.
    spared: usize,
    tokens: usize,
    /// What is left to the projects that have a limit of their own.
    projects: HashMap<&'a ProjectId, usize>,
}

impl<'a> Budget<'a> {
    /// Everything that exists counts, whatever its state.
    pub(super) fn new(world: &'a World) -> Self {
        let Limits {
            max_vms,
            memory_mib,
            concurrent_provisions,
            concurrent_forks,
            tokens,
        } = world.limits;
        let load = host_load(world);
        Self {
            vms: max_vms.saturating_sub(load.vms),
            memory_mib: memory_mib.saturating_sub(load.memory_mib),
            provisions: concurrent_provisions.saturating_sub(load.provisions),
            forks: concurrent_forks.saturating_sub(load.forks),
            spared: usize::from(concurrent_forks > 1),
            tokens,
            projects: world
                .pools
                .iter()
                .filter_map(|pool| {
                    let existing = pool.instances.iter().filter(|i| holds_resources(i)).count();
                    Some((&pool.project, pool.max_vms?.saturating_sub(existing)))
                })
                .collect(),
        }
    }

    /// From here on nobody waits for what is made: a refill never takes the last fork that a claim may ask for.
    pub(super) fn spare_for_claims(&mut self) {
        self.forks = self.forks.saturating_sub(self.spared);
    }

    /// Takes one VM that is not there yet.
    pub(super) fn take(&mut self, project: &ProjectId, memory_mib: u64, forked: bool) -> bool {
        let own = self.projects.get_mut(project);
        let at_once = if forked { &mut self.forks } else { &mut self.provisions };
        let none_left = self.vms == 0 || *at_once == 0 || self.tokens == 0;
        if none_left || self.memory_mib < memory_mib || own.as_deref() == Some(&0) {
            return false;
        }
        *at_once -= 1;
        if let Some(own) = own {
            *own -= 1;
        }
        self.vms -= 1;
        self.tokens -= 1;
        self.memory_mib -= memory_mib;
        true
    }

    /// Why [`Budget::take`] said no.
    pub(super) fn why_not(&self, world: &World, project: &ProjectId, memory_mib: u64) -> Hold {
        if self.projects.get(project) == Some(&0) {
            Hold::ProjectVms
        } else if self.vms == 0 {
            Hold::HostVms {
                max: world.limits.max_vms,
            }
        } else if self.memory_mib < memory_mib {
            Hold::HostMemory {
                wants_mib: memory_mib,
                left_mib: self.memory_mib,
            }
        } else {
            Hold::InTheMaking
        }
    }

    /// Whether waiting alone makes no room for one more.
    pub(super) fn has_no_room(&self, project: &ProjectId, memory_mib: u64) -> bool {
        self.vms == 0 || self.memory_mib < memory_mib || self.projects.get(project) == Some(&0)
    }
}

/// An unstarted row has no VM yet: it takes its share when it is started.
pub(super) fn holds_resources(instance: &InstanceWorld) -> bool {
    instance.state.may_have_vm() && !waits_for_start(instance)
}

pub(super) fn waits_for_start(instance: &InstanceWorld) -> bool {
    instance.state == InstanceState::Provisioning && instance.work == Work::Unstarted
}
