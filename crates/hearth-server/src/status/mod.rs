//! Why a pool is as it is: conditions, the planner's latest decisions, instances beside where their branches are now. What a
//! pass leaves for this stays in memory: how long conditions hold, and what was decided.

mod conditions;
mod decisions;
pub mod messages;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::claim::ClaimedRepo;
use hearth_api::explain::{
    AtWork, HostUse, InstanceExplained, PoolExplained, RepoBehind, RepositoryExplained, TemplateInfo,
};
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::instance::InstanceStatus;
use hearth_api::pool::Status;
use hearth_core::checkout::Checkout;
use hearth_core::plan::{Blocker, Decision, HostLoad, PoolSummary, host_load, summarize};
use hearth_core::progress;
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use hearth_core::world::{InstanceWorld, PoolWorld, Work, World};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::builds::live_log::LiveLogs;
use crate::options::SharedLimits;
use crate::recipes::target::Target;
use crate::repos::checkouts::checkouts;
use crate::repos::mirrors::Mirrors;
use crate::store::{BranchHeads, InstanceRow, ProjectRow, Store, StoreError, TemplateRow};
use crate::templates::gc::Gc;
use crate::templates::select::serving;
use crate::vms::memory::Memory;
use crate::vms::probe::Probes;
use conditions::{Facts, Since};
use decisions::{Decisions, What};
use messages::blocker_message;

/// All looks at how far instances are behind may take so long together.
const BEHIND_PATIENCE: Duration = Duration::from_secs(2);

/// What passes leave for those who ask.
#[derive(Debug, Default)]
struct Notes {
    pools: HashMap<ProjectId, PoolNotes>,
    load: HostLoad,
    /// How claimed VMs count, and what that comes to.
    claimed: String,
    /// When the host's clock last jumped, and by how much.
    clock_jumped: Option<(Timestamp, SignedDuration)>,
    passes: Passes,
    /// VMs without a row that the last pass saw.
    orphans: HashSet<VmId>,
}

/// The passes since the server started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passes {
    pub count: u64,
    /// When the last one was.
    pub last: Option<Timestamp>,
    /// VMs without a row that were found.
    pub orphans: u64,
}

#[derive(Debug, Default)]
struct PoolNotes {
    /// The target recipe then.
    recipe: String,
    /// What holds it back, and since when.
    blockers: Vec<(Blocker, Timestamp)>,
    /// Until when failures hold it back.
    backoffs: Vec<(Blocker, Timestamp)>,
    since: Since,
    decisions: Decisions,
}

/// A pool as it is now.
#[derive(Debug)]
pub struct PoolSeen {
    /// A person has configured it.
    pub configured: bool,
    /// Its instances.
    pub rows: Vec<InstanceRow>,
    /// The templates of its project.
    pub templates: Vec<TemplateRow>,
    /// What it is to be made by.
    pub target: Target,
    /// Where its branches were last seen.
    pub heads: BranchHeads,
    /// What the planner sees of it.
    pub world: PoolWorld,
    /// The claims that wait for one of its VMs.
    pub waiting_claims: usize,
}

/// What keeps a pool from having more VMs: a message, and when it is retried, where that is known.
pub type Blocked = (String, Option<Timestamp>);

/// Says why pools are as they are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    store: Store,
    mirrors: Mirrors,
    live_logs: LiveLogs,
    memory: Memory,
    probes: Probes,
    gc: Gc,
    /// What the host may be used for.
    limits: SharedLimits,
    /// What passes leave for those who ask why.
    notes: Arc<Mutex<Notes>>,
}

impl PoolStatus {
    /// Without a pass nothing is known of decisions.
    #[must_use]
    pub fn new(
        store: Store,
        mirrors: Mirrors,
        live_logs: LiveLogs,
        memory: Memory,
        probes: Probes,
        gc: Gc,
        limits: SharedLimits,
    ) -> Self {
        Self {
            store,
            mirrors,
            live_logs,
            memory,
            probes,
            gc,
            limits,
            notes: Arc::default(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what claimed VMs come to.
    pub fn note_claimed(&self, message: String) {
        self.notes().claimed = message;
    }

    /// Notes when the host's clock last jumped, and by how much.
    pub fn note_clock(&self, jumped: Option<(Timestamp, SignedDuration)>) {
        self.notes().clock_jumped = jumped;
    }

    /// Notes what this pass saw and decided, and says in the log what newly holds a pool back.
    pub fn note_pass(&self, world: &World, decision: &Decision) {
        let load = host_load(world);
        let mut notes = self.notes();
        notes.load = load;
        notes.note_orphans(world);
        let mut before = std::mem::take(&mut notes.pools);
        let mut decided = decisions::by_pool(world, decision);
        let room = decisions::room_for(world.pools.len());
        for pool in &world.pools {
            let mut own = before.remove(&pool.project).unwrap_or_default();
            own.recipe.clone_from(&pool.recipe);
            let summary = summarize(pool, world.now, world.drivers_observed);
            let decided = decided.remove(&pool.project).unwrap_or_default();
            own.note_holds(pool, decided.iter().filter_map(What::blocker), world.now);
            own.backoffs = summary
                .backoffs
                .iter()
                .map(|backoff| (backoff.blocker, backoff.until))
                .collect();
            own.since.note(pool, &summary, &own.blockers, world.now);
            let inputs = decisions::inputs(world, pool, &summary, load);
            for what in decided {
                own.decisions.note(what, inputs, world.now, room);
            }
            notes.pools.insert(pool.project.clone(), own);
        }
    }

    /// Why a pool is as it is.
    pub async fn explain(&self, project: &ProjectRow, seen: PoolSeen) -> Result<PoolExplained, StoreError> {
        let (now, store) = (Timestamp::now(), &self.store);
        let PoolSeen {
            configured,
            rows,
            mut templates,
            target: Target { checkouts, recipe },
            heads,
            world,
            waiting_claims,
        } = seen;
        templates.sort_by_key(|template| std::cmp::Reverse(template.created_at));
        let serves = serving(&templates, project, &recipe);
        let summary = summarize(&world, now, false);
        let at_work: Vec<_> = summary
            .builds
            .iter()
            .chain(&summary.tests)
            .map(|boot| (boot.id.clone(), self.at_work(boot).message))
            .collect();
        let failed = newest_failure(&rows, &world.recipe);
        let why = match failed {
            Some(row) => store.failure_of(row).await?,
            None => None,
        };
        let facts = Facts {
            project,
            configured,
            pool: &world,
            summary: &summary,
            cause: messages::cause(&world, serves, &checkouts, &heads),
            at_work: &at_work,
            failed: failed.map(|row| &row.id).zip(why.as_deref()),
            now,
        };
        let behind = self.behind(&rows, &checkouts, &heads).await;
        let host = self.host_use();
        let unresponsive = conditions::unresponsive(&self.probes.all_unresponsive(&rows));
        let mut notes = self.notes();
        // A pool that no pass has seen yet has nothing to remember.
        let mut unseen = PoolNotes::default();
        let own = notes.pools.get_mut(&project.id).unwrap_or(&mut unseen);
        own.since.note(&world, &summary, &own.blockers, now);
        Ok(PoolExplained {
            summary: conditions::summary(&facts, &own.blockers),
            status: counts(&rows, Store::failed_window(now)),
            target: world.target as u64,
            waiting_claims: waiting_claims as u64,
            conditions: conditions::all(&facts, &own.blockers, &own.since)
                .into_iter()
                .chain(unresponsive)
                .collect(),
            decisions: own.decisions.newest_first(),
            serving_recipe: summary.serves.to_owned(),
            templates: templates
                .iter()
                .map(|template| to_template(template, summary.serves))
                .collect(),
            repositories: checkouts.iter().map(|checkout| where_it_is(checkout, &heads)).collect(),
            instances: rows
                .iter()
                .zip(behind)
                .filter(|(row, _)| row.purpose != Purpose::Renewal)
                .filter_map(|(row, repos)| self.to_instance(row, repos, &world, &summary, now))
                .collect(),
            host,
            recipe: world.recipe.clone(),
        })
    }

    /// What a boot is at, and since when.
    fn at_work(&self, boot: &InstanceWorld) -> AtWork {
        self.running(&boot.id).unwrap_or_else(|| {
            let message = if boot.work == Work::Unstarted {
                "it waits for its turn"
            } else {
                "its VM is being made or frozen"
            };
            AtWork {
                what: None,
                message: message.to_owned(),
            }
        })
    }

    /// What runs in a boot now.
    fn running(&self, boot: &InstanceId) -> Option<AtWork> {
        let running = self.live_logs.progress(boot).into_iter().next()?;
        let step = || match &running.subject {
            Some(subject) => format!("{} {subject}", running.step.as_str()),
            None => running.step.as_str().to_owned(),
        };
        let what = running.command.as_ref().map_or_else(step, ToString::to_string);
        Some(AtWork {
            message: progress::message(&what, running.ran, running.silent),
            what: Some(what),
        })
    }

    fn to_instance(
        &self,
        row: &InstanceRow,
        repos: Vec<RepoBehind>,
        world: &PoolWorld,
        summary: &PoolSummary<'_>,
        now: Timestamp,
    ) -> Option<InstanceExplained> {
        let since = |at| u64::try_from(now.duration_since(at).as_millis()).unwrap_or_default();
        let kept = summary.kept.filter(|(kept, _)| kept.id == row.id);
        let being_made = row.state == InstanceState::Provisioning;
        let own = being_made.then(|| world.instances.iter().find(|it| it.id == row.id));
        Some(InstanceExplained {
            at_work: own.flatten().map(|boot| self.at_work(boot)),
            id: row.id.clone(),
            status: row.status()?,
            is_test: row.purpose.is_test(),
            recipe: row.recipe.clone(),
            current: row.recipe == world.recipe,
            repos,
            memory_mib: self.memory.counts_mib(row),
            age_ms: since(row.created_at),
            since_ms: since(row.state_since),
            generation: row.generation,
            missed: self.probes.misses(&row.vm),
            unresponsive: self.probes.unresponsive(&row.vm),
            rebooted_at: row.rebooted_at,
            kept_until: kept.map(|(_, until)| until),
            vm_ended_at: row.vm_ended.as_ref().map(|(at, _)| *at),
            vm_ended_because: row.vm_ended.as_ref().map(|(_, why)| why.clone()),
        })
    }

    /// What the host may be asked for, and what is used of it.
    #[must_use]
    pub fn host_use(&self) -> HostUse {
        let (template_disk_bytes, max_template_disk_bytes) = self.gc.disk();
        let (load, claimed_memory, jumped) = {
            let notes = self.notes();
            (notes.load, notes.claimed.clone(), notes.clock_jumped)
        };
        let limits = self.limits.get();
        HostUse {
            vms: load.vms as u64,
            max_vms: limits.max_vms as u64,
            memory_mib: load.memory_mib,
            max_memory_mib: limits.memory_mib,
            claimed_memory,
            provisions: load.provisions as u64,
            max_provisions: limits.concurrent_provisions as u64,
            forks: load.forks as u64,
            max_forks: limits.concurrent_forks as u64,
            template_disk_bytes,
            max_template_disk_bytes,
            clock_jumped_at: jumped.map(|(at, _)| at),
            clock_jumped_by_ms: jumped.map(|(_, by)| i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        }
    }

    /// The checkouts of each instance, beside where their branches are.
    async fn behind(&self, rows: &[InstanceRow], checkouts: &[Checkout], heads: &BranchHeads) -> Vec<Vec<RepoBehind>> {
        let deadline = Instant::now() + BEHIND_PATIENCE;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let mut repos = Vec::with_capacity(row.repos.len());
            for repo in &row.repos {
                repos.push(RepoBehind {
                    repo_full_name: repo.repo_full_name.clone(),
                    branch: repo.branch.clone(),
                    commit: repo.commit.clone(),
                    behind: self.commits_behind(repo, checkouts, heads, deadline).await,
                });
            }
            all.push(repos);
        }
        all
    }

    /// How many commits of its branch a checkout lacks, where that is known before the deadline.
    async fn commits_behind(
        &self,
        repo: &ClaimedRepo,
        checkouts: &[Checkout],
        heads: &BranchHeads,
        deadline: Instant,
    ) -> Option<u64> {
        let checkout = checkouts.iter().find(|checkout| checkout.path == repo.path)?;
        let remote = checkout.remote();
        let head = heads.commit(&remote, &checkout.branch)?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.mirrors.behind(&remote, &repo.commit, head, left).await
    }

    /// How many commits the ready VM of each pool lacks, over all its repositories, that lacks most. Pools of which that is not known are
    /// left out.
    pub async fn checkout_lags(&self) -> Result<Vec<(ProjectId, u64)>, StoreError> {
        let deadline = Instant::now() + BEHIND_PATIENCE;
        let (ready, heads) = (self.store.ready_checkouts().await?, self.store.branch_heads().await?);
        let (projects, pools) = (self.store.all_projects().await?, self.store.pools().await?);
        let projects: HashMap<&ProjectId, &ProjectRow> = projects.iter().map(|row| (&row.id, row)).collect();
        let mut lags: HashMap<ProjectId, u64> = HashMap::new();
        for (project, repos) in ready {
            let Some(row) = projects.get(&project) else { continue };
            let checkouts = checkouts(row, pools.get(&project));
            let mut lag = None;
            for repo in &repos {
                let behind = self.commits_behind(repo, &checkouts, &heads, deadline).await;
                lag = behind.map(|behind| lag.unwrap_or(0) + behind).or(lag);
            }
            if let Some(lag) = lag {
                let most = lags.entry(project).or_default();
                *most = lag.max(*most);
            }
        }
        Ok(lags.into_iter().collect())
    }
}

impl PoolStatus {
    /// What keeps a pool from having more VMs, as of the last pass.
    pub async fn blocked(&self, project: &ProjectRow) -> Result<Option<Blocked>, StoreError> {
        let (blocker, until, recipe) = {
            let notes = self.notes();
            let Some(pool) = notes.pools.get(&project.id) else {
                return Ok(None);
            };
            let Some((blocker, _)) = pool.blockers.first() else {
                return Ok(None);
            };
            let backoff = pool.backoffs.iter().find(|(of, _)| messages::same_kind(*of, *blocker));
            (*blocker, backoff.map(|(_, until)| *until), pool.recipe.clone())
        };
        let Some(until) = until else {
            return Ok(Some((blocker_message(blocker), None)));
        };
        let rows = self.store.instances_of(&project.id).await?;
        let why = match newest_failure(&rows, &recipe) {
            Some(row) => self.store.failure_of(row).await?,
            None => None,
        };
        let message = messages::backoff_message(blocker, why.as_deref(), until, project);
        Ok(Some((message, Some(until))))
    }

    /// What runs in the boot that sets this recipe up.
    pub async fn being_set_up(&self, project: &ProjectId, recipe: &str) -> Result<Option<String>, StoreError> {
        let rows = self.store.instances_of(project).await?;
        let mut boots = rows
            .iter()
            .filter(|row| row.state == InstanceState::Provisioning && row.recipe == recipe);
        Ok(boots
            .find_map(|row| self.running(&row.id))
            .map(|at_work| at_work.message))
    }

    /// The passes since the server started.
    #[must_use]
    pub fn passes(&self) -> Passes {
        self.notes().passes
    }

    /// Each pool, and whether it is not filled because its set-up failed again and again, as of the last pass.
    #[must_use]
    pub fn breakers(&self) -> Vec<(ProjectId, bool)> {
        let notes = self.notes();
        let is_open = |pool: &PoolNotes| {
            let mut blockers = pool.blockers.iter();
            blockers.any(|(blocker, _)| matches!(blocker, Blocker::BreakerOpen { .. }))
        };
        let pools = notes.pools.iter();
        pools.map(|(project, pool)| (project.clone(), is_open(pool))).collect()
    }

    /// Whether this recipe is not built until a person repairs something, as of the last pass.
    #[must_use]
    pub fn needs_repair(&self, project: &ProjectId, recipe: &str) -> bool {
        let notes = self.notes();
        // Of one that no pass has seen yet nothing is known.
        let pool = notes.pools.get(project).filter(|pool| pool.recipe == recipe);
        pool.is_some_and(|pool| {
            let mut blockers = pool.blockers.iter();
            blockers.any(|(blocker, _)| matches!(blocker, Blocker::BreakerOpen { .. } | Blocker::Missing { .. }))
        })
    }
}

impl Notes {
    fn note_orphans(&mut self, world: &World) {
        self.passes.count += 1;
        self.passes.last = Some(world.now);
        if !world.drivers_observed {
            return;
        }
        let seen: HashSet<VmId> = world.orphans.iter().cloned().collect();
        self.passes.orphans += seen.difference(&self.orphans).count() as u64;
        self.orphans = seen;
    }
}

impl PoolNotes {
    fn note_holds(&mut self, pool: &PoolWorld, blockers: impl Iterator<Item = Blocker>, now: Timestamp) {
        let before = std::mem::take(&mut self.blockers);
        // Being busy is no condition.
        for blocker in blockers.filter(|blocker| *blocker != Blocker::InTheMaking) {
            if self
                .blockers
                .iter()
                .any(|(noted, _)| messages::same_kind(*noted, blocker))
            {
                continue;
            }
            let known = before.iter().find(|(known, _)| messages::same_kind(*known, blocker));
            if known.is_none() {
                tracing::warn!(project = %pool.project, "the pool waits: {}", blocker_message(blocker));
            }
            self.blockers.push((blocker, known.map_or(now, |(_, since)| *since)));
        }
    }
}

/// What `GET …/warm-pool` counts, of these rows.
fn counts(rows: &[InstanceRow], failed_since: Timestamp) -> Status {
    let count = |is: &dyn Fn(&InstanceRow) -> bool| {
        let of_pool = rows.iter().filter(|row| row.purpose.serves_claims());
        of_pool.filter(|row| is(row)).count() as u64
    };
    Status {
        ready: count(&|row| row.state == InstanceState::Ready && row.purpose == Purpose::Pool),
        provisioning: count(&|row| row.state == InstanceState::Provisioning),
        failed: count(&|row| {
            row.status() == Some(InstanceStatus::Failed)
                && row.failure_reason.is_some()
                && row.state_since >= failed_since
        }),
    }
}

fn newest_failure<'a>(rows: &'a [InstanceRow], recipe: &str) -> Option<&'a InstanceRow> {
    rows.iter()
        .filter(|row| row.recipe == recipe && !row.purpose.is_test() && row.failure_reason.is_some())
        .max_by_key(|row| row.created_at)
}

fn to_template(template: &TemplateRow, serves: &str) -> TemplateInfo {
    TemplateInfo {
        recipe: template.recipe.clone(),
        key: template.key.to_string(),
        serving: template.recipe == serves,
        repos: template.repos.clone(),
        created_at: template.created_at,
    }
}

fn where_it_is(checkout: &Checkout, heads: &BranchHeads) -> RepositoryExplained {
    let head = heads.get(&checkout.remote(), &checkout.branch);
    RepositoryExplained {
        repo_full_name: checkout.repo_full_name.clone(),
        branch: checkout.branch.clone(),
        commit: head.map(|head| head.commit.clone()),
        since: head.map(|head| head.changed_at),
    }
}
