//! A small model of everything around the planner: it carries actions out at once and keeps templates and streaks, so that a
//! world changes as a server would change it.

use std::collections::BTreeMap;

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::plan::{Action, Decision, decide};
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{FailureStreak, InstanceWorld, Limits, PoolWorld, PreviousRecipe, VmPresence, Work, World};
use jiff::{SignedDuration, Timestamp};

/// Memory of a VM that is set up, MiB.
pub const WHOLE_MIB: u64 = 1024;
/// Memory of a fork, MiB.
pub const FORK_MIB: u64 = 64;

/// The name of a recipe: a set-up, and the commit that it resolved to.
pub fn recipe(set_up: char, commit: u32) -> String {
    format!("{}{commit:012}", String::from(set_up).repeat(12))
}

/// The world, and what a server would read from its store.
#[derive(Debug, Clone)]
pub struct Model {
    pub world: World,
    /// Recipes that there is a template of, oldest first.
    pub templates: BTreeMap<ProjectId, Vec<String>>,
    /// How the latest boots by each recipe ended.
    pub streaks: BTreeMap<(ProjectId, String), FailureStreak>,
    made: usize,
}

impl Model {
    pub fn new() -> Self {
        Self {
            world: World {
                now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000),
                limits: Limits {
                    max_vms: 100,
                    tenant_vms: None,
                    memory_mib: 100 * WHOLE_MIB,
                    concurrent_provisions: 2,
                    concurrent_forks: 5,
                    tokens: 100,
                },
                pools: Vec::new(),
                can_pause: false,
                orphans: Vec::new(),
                drivers_observed: true,
            },
            templates: BTreeMap::new(),
            streaks: BTreeMap::new(),
            made: 0,
        }
    }

    pub fn add_pool(&mut self, name: &str, target: usize) -> &mut PoolWorld {
        self.world.pools.push(PoolWorld {
            project: name.parse().unwrap(),
            tenant: 0,
            enabled: true,
            target,
            max_vms: None,
            max_age_seconds: 24 * 3600,
            recipe: recipe('a', 1),
            memory_mib: WHOLE_MIB,
            build_mib: WHOLE_MIB,
            prepared: false,
            streak: FailureStreak::default(),
            previous: None,
            instances: Vec::new(),
        });
        self.world.pools.last_mut().unwrap()
    }

    /// A row as it is written: its work has not begun.
    pub fn add_row(&mut self, pool: usize, recipe: &str) -> &mut InstanceWorld {
        self.made += 1;
        let now = self.world.now;
        let forked = self.has_template(&self.world.pools[pool].project, recipe);
        self.world.pools[pool].instances.push(InstanceWorld {
            id: format!("i{}", self.made).parse().unwrap(),
            state: InstanceState::Provisioning,
            generation: 1,
            purpose: Purpose::Pool,
            recipe: recipe.to_owned(),
            forked,
            failure: None,
            memory_mib: if forked { FORK_MIB } else { WHOLE_MIB },
            created_at: now,
            state_since: now,
            lease_ends_at: None,
            vm: VmPresence::Absent,
            work: Work::Unstarted,
        });
        self.world.pools[pool].instances.last_mut().unwrap()
    }

    pub fn pool(&self, project: &ProjectId) -> usize {
        let found = self.world.pools.iter().position(|pool| pool.project == *project);
        found.unwrap_or_else(|| panic!("there is no pool {project}"))
    }

    pub fn place(&self, id: &InstanceId) -> (usize, usize) {
        let own = |pool: &PoolWorld| pool.instances.iter().position(|i| i.id == *id);
        let pools = self.world.pools.iter().enumerate();
        let found = pools.filter_map(|(at, pool)| Some((at, own(pool)?))).next();
        found.unwrap_or_else(|| panic!("there is no instance {id}"))
    }

    pub fn row(&mut self, id: &InstanceId) -> &mut InstanceWorld {
        let (pool, at) = self.place(id);
        &mut self.world.pools[pool].instances[at]
    }

    pub fn move_to(&mut self, id: &InstanceId, to: InstanceState) {
        let now = self.world.now;
        let row = self.row(id);
        assert!(
            to.legal_sources().contains(&row.state),
            "{id}: {:?} to {to:?}",
            row.state
        );
        (row.state, row.state_since, row.work) = (to, now, Work::Idle);
        row.generation += 1;
    }

    fn has_template(&self, project: &ProjectId, recipe: &str) -> bool {
        let own = self.templates.get(project);
        own.is_some_and(|own| own.iter().any(|name| name == recipe))
    }

    /// What a server would read in each pass: which recipe serves, and how the latest boots by it ended.
    pub fn refresh(&mut self) {
        for at in 0..self.world.pools.len() {
            let pool = &self.world.pools[at];
            let streak = |recipe: &String| {
                let of = (pool.project.clone(), recipe.clone());
                self.streaks.get(&of).copied().unwrap_or_default()
            };
            let prepared = self.has_template(&pool.project, &pool.recipe);
            let last = self.templates.get(&pool.project).and_then(|own| own.last());
            let previous = last.filter(|_| !prepared).map(|last| PreviousRecipe {
                recipe: last.clone(),
                memory_mib: FORK_MIB,
                streak: streak(last),
            });
            let own = streak(&pool.recipe);
            let pool = &mut self.world.pools[at];
            (pool.prepared, pool.previous, pool.streak) = (prepared, previous, own);
            pool.memory_mib = if prepared { FORK_MIB } else { WHOLE_MIB };
        }
    }

    /// One pass, carried out.
    pub fn pass(&mut self) -> Decision {
        self.refresh();
        let decision = decide(&self.world);
        for action in &decision.actions {
            self.act(action);
        }
        decision
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Create { project, recipe, .. } => {
                let pool = self.pool(project);
                let row = self.add_row(pool, recipe);
                (row.work, row.vm) = (Work::Here, VmPresence::Running);
            }
            Action::Build { project } => {
                let pool = self.pool(project);
                let recipe = self.world.pools[pool].recipe.clone();
                let row = self.add_row(pool, &recipe);
                (row.work, row.vm) = (Work::Here, VmPresence::Running);
            }
            Action::Start { instance } => {
                let row = self.row(instance);
                (row.work, row.vm) = (Work::Here, VmPresence::Running);
            }
            Action::Fail { instance, failure, .. } => {
                self.move_to(instance, InstanceState::Failed);
                self.row(instance).failure = Some(failure.kind);
            }
            Action::Retire { instance, .. } => {
                self.move_to(instance, InstanceState::Retiring);
                self.tear_down(instance);
            }
            Action::Delete { instance, .. } => {
                self.move_to(instance, InstanceState::Deleting);
                self.tear_down(instance);
            }
            Action::Teardown { instance } => self.tear_down(instance),
            Action::Pause { instance } => self.row(instance).vm = VmPresence::Paused,
            Action::DestroyOrphan { vm } => self.world.orphans.retain(|orphan| orphan != vm),
        }
    }

    fn tear_down(&mut self, id: &InstanceId) {
        self.row(id).vm = VmPresence::Absent;
        if self.row(id).state == InstanceState::Retiring {
            self.move_to(id, InstanceState::Archived);
        } else {
            let (pool, at) = self.place(id);
            self.world.pools[pool].instances.remove(at);
        }
    }

    /// A boot ends: well, or with a failure.
    pub fn finish(&mut self, id: &InstanceId, failure: Option<FailureKind>) {
        let (pool, at) = self.place(id);
        let now = self.world.now;
        let project = self.world.pools[pool].project.clone();
        let row = &self.world.pools[pool].instances[at];
        let (recipe, forked, is_test) = (row.recipe.clone(), row.forked, row.purpose.is_test());
        if !is_test {
            let streak = self.streaks.entry((project.clone(), recipe.clone())).or_default();
            *streak = failure.map_or(streak.succeeded(), |kind| streak.failed(kind, now));
        }
        if let Some(kind) = failure {
            self.move_to(id, InstanceState::Failed);
            self.row(id).failure = Some(kind);
            return;
        }
        self.move_to(id, InstanceState::Ready);
        // What was set up ends in a fork of its template, too.
        let row = self.row(id);
        (row.vm, row.memory_mib) = (VmPresence::Paused, FORK_MIB);
        if !forked && !self.has_template(&project, &recipe) {
            self.templates.entry(project).or_default().push(recipe);
        }
    }

    /// Instances that a task works on now.
    pub fn in_the_making(&self) -> Vec<InstanceId> {
        let all = self.world.pools.iter().flat_map(|pool| &pool.instances);
        all.filter(|i| i.state == InstanceState::Provisioning && i.work == Work::Here)
            .map(|i| i.id.clone())
            .collect()
    }

    /// Everything that was half made, or waited for a claim, when the server ended.
    pub fn restart(&mut self) {
        for row in self.world.pools.iter_mut().flat_map(|pool| &mut pool.instances) {
            row.release();
            if row.work == Work::Here {
                row.work = match row.state {
                    InstanceState::Provisioning => Work::Abandoned,
                    _ => Work::Idle,
                };
            }
        }
    }
}

/// VMs that exist or are being made, whatever their state.
pub fn existing(pool: &PoolWorld) -> impl Iterator<Item = &InstanceWorld> {
    let unstarted = |i: &InstanceWorld| i.state == InstanceState::Provisioning && i.work == Work::Unstarted;
    pool.instances
        .iter()
        .filter(move |i| i.state != InstanceState::Archived && !unstarted(i))
}
