//! Observation: store + drivers → one [`World`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use hearth_api::ids::{ProjectId, VmId};
use hearth_core::plan::{RECORD_KEPT, why_no_room};
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use hearth_core::world::{FailureStreak, InstanceWorld, Limits, PoolWorld, PreviousRecipe, VmPresence, Work, World};
use hearth_drivers::{CALL_TIMEOUT, Driver, VmState};
use jiff::Timestamp;

use super::act::Actor;
use super::schedule::Schedules;
use super::tasks::Tasks;
use crate::claims::{Capacity, Queues, ReservedRoom};
use crate::options::SharedLimits;
use crate::recipes::set_ups::SetUps;
use crate::recipes::target::Recipes;
use crate::status::PoolSeen;
use crate::status::messages::blocker_message;
use crate::store::{
    InstanceRow, PoolRow, PoolSize, ProjectOverview, ProjectRow, Sight, Store, StoreError, Streaks, TemplateRow,
};
use crate::templates::select::serving;
use crate::vms::ended::VmEnds;
use crate::vms::memory::Memory;

/// What a fork counts with that has no sibling yet, MiB; more than what one costs where it was measured.
const UNKNOWN_FORK_MIB: u64 = 96;

/// Reads what there is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Observer {
    store: Store,
    driver: Arc<dyn Driver>,
    recipes: Recipes,
    set_ups: SetUps,
    memory: Memory,
    ends: VmEnds,
    queues: Queues,
    tasks: Tasks,
    schedules: Schedules,
    /// What the host may be used for.
    limits: SharedLimits,
    /// Held by a pass, from its look to the last row that it writes, and by others who write rows of more VMs.
    passes: Arc<tokio::sync::Mutex<()>>,
}

#[async_trait]
impl Capacity for Observer {
    async fn reserve(
        &self,
        project: &ProjectId,
        memory_mib: u64,
        count: usize,
    ) -> Result<Result<ReservedRoom, String>, StoreError> {
        let room = self.begin_pass().await;
        let (world, _) = self.observe(Timestamp::now(), 0).await?;
        let each = self.memory.counts_new(memory_mib, UNKNOWN_FORK_MIB);
        Ok(match why_no_room(&world, project, each, count) {
            Some(blocker) => Err(blocker_message(blocker)),
            None => Ok(room),
        })
    }
}

impl Observer {
    /// `actor`: who is at work; `limits`: what the host may be used for.
    #[must_use]
    pub fn new(
        actor: &Actor,
        recipes: Recipes,
        set_ups: SetUps,
        memory: Memory,
        ends: VmEnds,
        queues: Queues,
        limits: SharedLimits,
    ) -> Self {
        Self {
            store: actor.store.clone(),
            driver: actor.driver.clone(),
            recipes,
            set_ups,
            memory,
            ends,
            queues,
            tasks: actor.tasks(),
            schedules: Schedules::default(),
            limits,
            passes: Arc::default(),
        }
    }

    /// Waits until nobody else counts what there is in order to make more.
    pub(super) async fn begin_pass(&self) -> ReservedRoom {
        self.passes.clone().lock_owned().await
    }

    /// How many VMs pools keep ready now.
    pub fn schedules(&self) -> &Schedules {
        &self.schedules
    }

    /// The projects that a caller sees, by name; failures count since then.
    pub async fn overview(
        &self,
        sight: Sight<'_>,
        failed_since: Timestamp,
    ) -> Result<Vec<ProjectOverview>, StoreError> {
        let now = Timestamp::now();
        let target = |project: &ProjectId, size: &PoolSize| self.schedules.target_size(project, size, now);
        self.store.overview(sight, failed_since, target).await
    }

    /// One pool as it is now, for those who ask why.
    pub async fn observe_pool(&self, project: &ProjectRow) -> Result<PoolSeen, StoreError> {
        let store = &self.store;
        let pool = store.pool(&project.id).await?;
        let configured = pool.is_some();
        let rows = store.instances_of(&project.id).await?;
        let templates = store.templates_of(&project.id).await?;
        let heads = store.branch_heads_of(project).await?;
        let target = self.recipes.target(project, pool.as_ref(), &heads).await;
        let serves = serving(&templates, project, &target.recipe);
        let instances = rows.iter().map(|row| {
            let prepared = templates.iter().any(|template| template.recipe == row.recipe);
            // No look at the VMs: a pass has just had one.
            self.instance_world(row, prepared, &HashMap::new())
        });
        let instances = instances.collect();
        let streaks = store.failure_streaks(Some(&project.id)).await?;
        let recipe = target.recipe.clone();
        let world = self.pool_world(project.clone(), pool, recipe, serves, &streaks, instances);
        Ok(PoolSeen {
            waiting_claims: self.queues.waiting(&project.id),
            configured,
            rows,
            templates,
            target,
            heads,
            world,
        })
    }

    /// What a pass decides on, and what the claimed VMs come to, in a sentence. `tokens`: how many VMs may be begun.
    pub(super) async fn observe(&self, now: Timestamp, tokens: usize) -> Result<(World, String), StoreError> {
        // The driver first: a VM it names has had its row before, so a VM without a row in the later read is an orphan.
        let vms = match tokio::time::timeout(CALL_TIMEOUT, self.driver.list()).await {
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
        let rows = self.store.all_instances(now - RECORD_KEPT).await?;
        if drivers_observed {
            self.note_ends(&rows, &vms).await?;
        }
        self.memory.measure_claimed(&rows).await;
        let claimed = self.memory.sum_claimed(&rows);
        let known: HashSet<&VmId> = rows.iter().map(|row| &row.vm).collect();
        let orphans = vms
            .keys()
            .filter(|vm| !known.contains(vm) && !self.tasks.is_tearing_down(vm.as_str()))
            .cloned()
            .collect();
        let templates = self.store.templates().await?;
        let heads = self.store.branch_heads().await?;
        let prepared: HashSet<(&ProjectId, &str)> = templates
            .iter()
            .map(|template| (&template.project, template.recipe.as_str()))
            .collect();
        let capabilities = self.driver.capabilities();
        let mut by_project: HashMap<ProjectId, Vec<InstanceWorld>> = HashMap::new();
        for row in &rows {
            let prepared = prepared.contains(&(&row.project, row.recipe.as_str()));
            by_project
                .entry(row.project.clone())
                .or_default()
                .push(self.instance_world(row, prepared, &vms));
        }
        let mut configured = self.store.pools().await?;
        self.schedules.keep(|project| configured.contains_key(project));
        let streaks = self.store.failure_streaks(None).await?;
        let mut pools = Vec::new();
        let mut tenants: HashMap<String, usize> = HashMap::new();
        for project in self.store.all_projects().await? {
            let pool = configured.remove(&project.id);
            let instances = by_project.remove(&project.id).unwrap_or_default();
            if pool.is_none() && instances.is_empty() {
                continue;
            }
            let recipe = self.recipes.target(&project, pool.as_ref(), &heads).await.recipe;
            self.set_ups.note(&project, pool.as_ref(), &recipe).await?;
            let serving = serving(&templates, &project, &recipe);
            let next = tenants.len();
            let tenant = *tenants.entry(project.tenant.clone()).or_insert(next);
            let pool = self.pool_world(project, pool, recipe, serving, &streaks, instances);
            pools.push(PoolWorld { tenant, ..pool });
        }
        // Instances whose project is gone: no pool asks for them.
        pools.extend(by_project.into_iter().map(|(project, instances)| PoolWorld {
            project,
            // Their tenant is not known any more: they count for none.
            tenant: usize::MAX,
            enabled: false,
            target: 0,
            max_vms: None,
            max_age_seconds: 0,
            recipe: String::new(),
            memory_mib: 0,
            build_mib: 0,
            prepared: true,
            streak: FailureStreak::default(),
            previous: None,
            instances,
        }));
        let world = World {
            now,
            limits: Limits {
                tokens,
                ..self.limits.get()
            },
            can_pause: capabilities.pause,
            pools,
            orphans,
            drivers_observed,
        };
        Ok((world, claimed))
    }

    /// Claimed VMs that the driver does not name any more, or names as ended.
    async fn note_ends(&self, rows: &[InstanceRow], vms: &HashMap<VmId, VmState>) -> Result<(), StoreError> {
        let is_missing = |row: &&InstanceRow| {
            row.state == InstanceState::Claimed
                && row.vm_ended.is_none()
                && !row.being_forked
                && matches!(vms.get(&row.vm), None | Some(VmState::Stopped))
        };
        for row in rows.iter().filter(is_missing) {
            self.ends.check(row).await?;
        }
        Ok(())
    }

    fn pool_world(
        &self,
        project: ProjectRow,
        pool: Option<PoolRow>,
        recipe: String,
        serving: Option<&TemplateRow>,
        streaks: &Streaks,
        mut instances: Vec<InstanceWorld>,
    ) -> PoolWorld {
        let capabilities = self.driver.capabilities();
        let cost = fork_cost(&instances);
        let waiting = |i: &&mut InstanceWorld| i.state == InstanceState::Provisioning && i.forked;
        instances.iter_mut().filter(waiting).for_each(|i| i.memory_mib = cost);
        let forked = serving.is_some_and(|template| template.recipe == recipe);
        let previous = serving.filter(|_| !forked).map(|template| PreviousRecipe {
            recipe: template.recipe.clone(),
            memory_mib: cost,
            streak: streaks.get(&project.id, &template.recipe),
        });
        let config = pool.as_ref().map(|pool| &pool.config);
        let size = pool.as_ref().map(|pool| pool.size(&project));
        let target = size.map_or(0, |size| {
            self.schedules.target_size(&project.id, &size, Timestamp::now())
        });
        let target = usize::try_from(target).unwrap_or(usize::MAX);
        let max_vms = project.max_vms.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        let whole = u64::from(self.recipes.shape(&project).memory_mib);
        PoolWorld {
            tenant: 0,
            enabled: config.is_some_and(|config| config.enabled),
            target,
            max_vms,
            max_age_seconds: config.map_or(i64::MAX / 1000, |config| config.max_age_minutes * 60),
            memory_mib: if forked { cost } else { whole },
            build_mib: if capabilities.disk_checkpoints { whole } else { 0 },
            prepared: forked || !capabilities.disk_checkpoints,
            streak: streaks.get(&project.id, &recipe),
            previous,
            project: project.id,
            recipe,
            instances,
        }
    }

    /// `prepared`: there is a template of its recipe.
    fn instance_world(&self, row: &InstanceRow, prepared: bool, vms: &HashMap<VmId, VmState>) -> InstanceWorld {
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
            purpose: row.purpose,
            recipe: row.recipe.clone(),
            forked: prepared && row.purpose.uses_cache() && row.purpose != Purpose::Renewal,
            failure: row.failure_kind,
            memory_mib: self.memory.counts_mib(row),
            created_at: row.created_at,
            state_since: row.state_since,
            lease_ends_at: row.lease_ends_at,
            vm: match vms.get(&row.vm) {
                Some(VmState::Running) => VmPresence::Running,
                Some(VmState::Paused | VmState::Saved) => VmPresence::Paused,
                Some(VmState::Halted) => VmPresence::Halted,
                Some(VmState::Stopped) => VmPresence::Stopped,
                None => VmPresence::Absent,
            },
            work,
        }
    }
}

/// What one more fork will cost, MiB: what its paused siblings cost, or a guess when there are none. One that failed counts with
/// its whole size, and says nothing.
fn fork_cost(siblings: &[InstanceWorld]) -> u64 {
    let paused = || {
        siblings
            .iter()
            .filter(|i| i.state == InstanceState::Ready && i.vm == VmPresence::Paused)
            .map(|i| i.memory_mib)
    };
    match paused().count() as u64 {
        0 => UNKNOWN_FORK_MIB,
        count => paused().sum::<u64>().div_ceil(count),
    }
}

#[cfg(test)]
mod tests {
    use hearth_api::ids::InstanceId;
    use jiff::Timestamp;

    use super::*;

    fn paused(state: InstanceState, memory_mib: u64) -> InstanceWorld {
        InstanceWorld {
            id: InstanceId::generate(),
            state,
            generation: 1,
            purpose: Purpose::Pool,
            recipe: String::new(),
            forked: true,
            failure: None,
            memory_mib,
            created_at: Timestamp::UNIX_EPOCH,
            state_since: Timestamp::UNIX_EPOCH,
            lease_ends_at: None,
            vm: VmPresence::Paused,
            work: Work::Idle,
        }
    }

    #[test]
    fn a_fork_costs_what_those_cost_that_stand_ready() {
        let ready = |mib| paused(InstanceState::Ready, mib);
        assert_eq!(fork_cost(&[]), UNKNOWN_FORK_MIB);
        let mut all = vec![ready(40), ready(43), paused(InstanceState::Failed, 2048)];
        assert_eq!(fork_cost(&all), 42);
        all.drain(..2);
        assert_eq!(fork_cost(&all), UNKNOWN_FORK_MIB);
    }
}
