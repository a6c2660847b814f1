//! Observation: store + drivers → one [`World`].

use std::collections::{HashMap, HashSet};

use hearth_api::ids::{ProjectId, VmId};
use hearth_core::state::InstanceState;
use hearth_core::world::{FailureStreak, InstanceWorld, PoolWorld, VmPresence, Work, World};
use hearth_drivers::{CALL_TIMEOUT, VmState};
use jiff::Timestamp;

use super::Reconciler;
use crate::provision::blueprint::recipe_name;
use crate::store::{InstanceRow, StoreError};

/// What a fork counts with that has no sibling yet, MiB; more than what one costs where it was measured.
const UNKNOWN_FORK_MIB: u64 = 96;

impl Reconciler {
    pub(super) async fn observe(&self, now: Timestamp) -> Result<World, StoreError> {
        // The driver first: a VM it names has had its row before, so a VM without a row in the later read is an orphan.
        let vms = match tokio::time::timeout(CALL_TIMEOUT, self.context.driver.list()).await {
            Ok(Ok(vms)) => Some(vms.into_iter().map(|vm| (vm.id, vm.state)).collect::<HashMap<_, _>>()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the driver cannot say which VMs there are");
                None
            }
            Err(_) => {
                tracing::warn!("the driver did not say in time which VMs there are");
                None
            }
        };
        let drivers_observed = vms.is_some();
        let vms = vms.unwrap_or_default();
        let rows = self.context.store.all_instances().await?;
        let known: HashSet<&VmId> = rows.iter().map(|row| &row.vm).collect();
        let orphans = vms
            .keys()
            .filter(|vm| !known.contains(vm) && !self.tasks.is_tearing_down(vm.as_str()))
            .cloned()
            .collect();
        let templates: HashSet<(ProjectId, String)> = self
            .context
            .store
            .templates()
            .await?
            .into_iter()
            .map(|template| (template.project, template.recipe))
            .collect();
        let capabilities = self.context.driver.capabilities();
        let mut by_project: HashMap<ProjectId, Vec<InstanceWorld>> = HashMap::new();
        for row in &rows {
            by_project
                .entry(row.project.clone())
                .or_default()
                .push(self.instance_world(row, &vms));
        }
        let mut pools = Vec::new();
        for project in self.context.store.all_projects().await? {
            let pool = self.context.store.pool(&project.id).await?;
            let mut instances = by_project.remove(&project.id).unwrap_or_default();
            if pool.is_none() && instances.is_empty() {
                continue;
            }
            let recipe = recipe_name(&project, pool.as_ref());
            let forked = templates.contains(&(project.id.clone(), recipe.clone()));
            let memory_mib = if forked {
                let cost = fork_cost(&instances);
                let waiting = instances.iter_mut().filter(|i| i.state == InstanceState::Provisioning);
                waiting.for_each(|i| i.memory_mib = cost);
                cost
            } else {
                u64::from(self.sizes.shape(project.vm_size).memory_mib)
            };
            let streak = self.context.store.failure_streak(&project.id, &recipe).await?;
            let config = pool.as_ref().map(|pool| &pool.config);
            let max_vms = project.max_vms.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
            pools.push(PoolWorld {
                enabled: config.is_some_and(|config| config.enabled),
                target: config
                    .and_then(|config| usize::try_from(config.target_size).ok())
                    .unwrap_or_default()
                    .min(max_vms.unwrap_or(usize::MAX)),
                max_vms,
                max_age_seconds: config.map_or(i64::MAX / 1000, |config| config.max_age_minutes * 60),
                memory_mib,
                prepared: forked || !capabilities.memory_checkpoints,
                project: project.id,
                recipe,
                streak,
                instances,
            });
        }
        // Instances whose project is gone: nothing is wished for them.
        pools.extend(by_project.into_iter().map(|(project, instances)| PoolWorld {
            project,
            enabled: false,
            target: 0,
            max_vms: None,
            max_age_seconds: 0,
            recipe: String::new(),
            memory_mib: 0,
            prepared: true,
            streak: FailureStreak::default(),
            instances,
        }));
        Ok(World {
            now,
            limits: self.limits,
            can_rest: capabilities.pause,
            pools,
            orphans,
            drivers_observed,
        })
    }

    fn instance_world(&self, row: &InstanceRow, vms: &HashMap<VmId, VmState>) -> InstanceWorld {
        let work = match row.state {
            InstanceState::Provisioning if self.tasks.is_provisioning(&row.id) => Work::Here,
            InstanceState::Provisioning if row.started_by.is_none() => Work::Unstarted,
            InstanceState::Provisioning => Work::Abandoned,
            InstanceState::Retiring | InstanceState::Deleting if self.tasks.is_tearing_down(row.vm.as_str()) => {
                Work::Here
            }
            _ => Work::Idle,
        };
        InstanceWorld {
            id: row.id.clone(),
            state: row.state,
            generation: row.generation,
            is_test: row.is_test,
            is_build: row.is_build,
            reserved: row.reserved,
            recipe: row.recipe.clone(),
            memory_mib: row.counts_mib(),
            created_at: row.created_at,
            state_since: row.state_since,
            lease_ends_at: row.lease_ends_at,
            vm: match vms.get(&row.vm) {
                Some(VmState::Running) => VmPresence::Running,
                Some(VmState::Paused) => VmPresence::Paused,
                Some(VmState::Stopped) => VmPresence::Stopped,
                None => VmPresence::Absent,
            },
            work,
        }
    }
}

/// What one more fork will cost, MiB: what its siblings at rest cost, or a guess when there are none.
fn fork_cost(siblings: &[InstanceWorld]) -> u64 {
    let resting = || {
        siblings
            .iter()
            .filter(|i| i.vm == VmPresence::Paused)
            .map(|i| i.memory_mib)
    };
    match resting().count() as u64 {
        0 => UNKNOWN_FORK_MIB,
        count => resting().sum::<u64>().div_ceil(count),
    }
}
