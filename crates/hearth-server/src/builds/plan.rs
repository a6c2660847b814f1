//! Everything one provisioning run needs, read once at its start, and the name of the recipe it follows.

use std::collections::BTreeSet;

use hearth_api::ids::ProjectId;
use hearth_api::pool::SetupCommand;
use hearth_api::project::GitIdentity;
use hearth_core::checkout::Checkout;
use hearth_core::recipe::{Meets, Recipe, RecipeRepo, set_up_of};
use hearth_core::scripts::{Phase, RepoScripts};
use hearth_core::set_up::{OwnCommand, SetUp};
use hearth_core::stages::Inputs;
use hearth_drivers::VmShape;

use crate::builds::Context;
use crate::secrets::mask::Masker;
use crate::secrets::mask_cache;
use crate::store::{PoolRow, ProjectRow, StoreError, Tips, VariableOwner, VariableRow};

/// What a run does.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Whose.
    pub project: ProjectId,
    /// Name of the recipe.
    pub recipe: String,
    /// The image, or the newest one.
    pub image: Option<String>,
    /// The VM's size.
    pub shape: VmShape,
    /// Counts up when the template is renewed without its inputs having changed.
    pub epoch: i64,
    /// Repositories in order.
    pub checkouts: Vec<Checkout>,
    /// The commit that each of them was last seen at, in order.
    pub tips: Vec<Option<String>>,
    /// Who makes commits, where the project says it.
    pub git_identity: Option<GitIdentity>,
    /// Shared variables.
    pub variables: Vec<VariableRow>,
    /// Counts up with every change of them.
    pub variables_version: i64,
    /// Hides their values.
    pub masker: Masker,
    /// Whether hooks in `.capy/settings.json` run: a saved setup object replaces them.
    pub legacy_hooks: bool,
    /// Commands of `project_setup`.
    pub project_setup: Vec<SetupCommand>,
    /// Commands of `warm_pool_setup`.
    pub pool_setup: Vec<SetupCommand>,
    /// What it was read from.
    wish: Box<(ProjectRow, Option<PoolRow>)>,
}

/// What a pool is to follow now.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The repositories.
    pub checkouts: Vec<Checkout>,
    /// Where their branches were last seen.
    pub tips: Tips,
    /// Name of the recipe.
    pub recipe: String,
}

/// The named commands of a project.
#[must_use]
pub fn own_commands(project: &ProjectRow) -> Vec<OwnCommand> {
    let repositories = project.setup.iter().flat_map(|setup| &setup.repositories);
    let commands = repositories.flat_map(|setup| setup.commands.iter().map(move |command| (setup, command)));
    commands
        .map(|(setup, command)| OwnCommand {
            repo_full_name: setup.repository.clone(),
            name: command.name.clone(),
            command: command.command.clone(),
        })
        .collect()
}

/// The set-up that a pool is to follow.
#[must_use]
pub fn set_up(project: &ProjectRow, pool: Option<&PoolRow>) -> SetUp {
    let checkouts = checkouts(project, pool);
    let recipe = recipe(project, pool, &checkouts, Meets::default());
    SetUp {
        name: set_up_of(&recipe.name()).to_owned(),
        parts: recipe.parts(),
        commands: own_commands(project),
    }
}

/// Name of the recipe of a pool with these checkouts, whose branches are at these commits, on a host that gives VMs this
/// environment.
#[must_use]
pub fn recipe_name(
    project: &ProjectRow,
    pool: Option<&PoolRow>,
    checkouts: &[Checkout],
    commits: Vec<Option<&str>>,
    environment: Option<&str>,
) -> String {
    let meets = Meets {
        environment,
        commits,
        epoch: project.template_epoch,
    };
    recipe(project, pool, checkouts, meets).name()
}

fn recipe<'a>(
    project: &'a ProjectRow,
    pool: Option<&'a PoolRow>,
    checkouts: &'a [Checkout],
    meets: Meets<'a>,
) -> Recipe<'a> {
    Recipe {
        image: project.image.as_deref(),
        size: project.vm_size,
        repositories: checkouts
            .iter()
            .map(|checkout| RecipeRepo {
                url: &checkout.url,
                branch: &checkout.branch,
                path: &checkout.path,
                lfs: checkout.lfs,
                submodules: checkout.submodules,
                initialize: checkout.scripts.script(Phase::Initialize),
                startup: checkout.scripts.script(Phase::Startup),
            })
            .collect(),
        variables_version: project.variables_version,
        git_identity: project.git_identity.as_ref(),
        project_setup: project.project_setup.as_deref().unwrap_or_default(),
        legacy_hooks: project.setup.is_none(),
        pool_setup: pool
            .and_then(|pool| pool.config.setup_commands.as_deref())
            .unwrap_or_default(),
        meets,
    }
}

/// The repositories with their branch and folder: `/home/<name>`, or `/home/<org>-<name>` when that is taken.
#[must_use]
pub fn checkouts(project: &ProjectRow, pool: Option<&PoolRow>) -> Vec<Checkout> {
    let branch = pool.and_then(|pool| pool.config.branch.as_deref());
    let mut taken = BTreeSet::new();
    project
        .repos
        .iter()
        .map(|repo| {
            let full = repo.repo_full_name.as_str();
            let (org, name) = full.rsplit_once('/').unwrap_or(("", full));
            let mut path = format!("/home/{name}");
            if !taken.insert(path.clone()) {
                path = format!("/home/{}-{name}", org.replace('/', "-"));
                taken.insert(path.clone());
            }
            Checkout {
                repo_full_name: full.to_owned(),
                url: repo.url.clone(),
                tenant: project.tenant.clone(),
                branch: branch.unwrap_or(&repo.branch).to_owned(),
                path,
                lfs: repo.lfs,
                submodules: repo.submodules,
                scripts: project
                    .setup
                    .iter()
                    .flat_map(|setup| &setup.repositories)
                    .find(|setup| setup.repository == full)
                    .map(RepoScripts::from)
                    .unwrap_or_default(),
            }
        })
        .collect()
}

impl Blueprint {
    /// Reads it; `None` when the project is gone. `renews`: what the template's renewal is made by.
    pub async fn load(context: &Context, project: &ProjectId, renews: bool) -> Result<Option<Self>, StoreError> {
        let store = &context.store;
        // The variables may change between these reads. Then the recipe says an older version than the values are, and
        // the next pass sees a newer recipe and replaces the instance: late, but never wrong for long.
        let Some(mut row) = store.project(project).await? else {
            mask_cache::forget(project);
            return Ok(None);
        };
        row.template_epoch += i64::from(renews);
        let pool = store.pool(project).await?;
        let variables = store.variables(project, VariableOwner::Shared).await?;
        let now = store.project(project).await?.map(|row| row.variables_version);
        let masker = if now == Some(row.variables_version) {
            mask_cache::masker_of(project, row.variables_version, &variables).await
        } else {
            // These values may belong to either version.
            mask_cache::build(&variables).await
        };
        let Wish {
            checkouts,
            tips,
            recipe,
        } = context.wish(&row, pool.as_ref()).await?;
        let commands = |commands: Option<&[SetupCommand]>| commands.unwrap_or_default().to_vec();
        Ok(Some(Self {
            project: row.id.clone(),
            variables_version: row.variables_version,
            epoch: row.template_epoch,
            recipe,
            image: row.image.clone(),
            shape: context.sizes.shape(row.vm_size),
            tips: tips
                .commits(&checkouts)
                .into_iter()
                .map(|commit| commit.map(str::to_owned))
                .collect(),
            checkouts,
            git_identity: row.git_identity.clone(),
            masker,
            variables,
            legacy_hooks: row.setup.is_none(),
            project_setup: commands(row.project_setup.as_deref()),
            pool_setup: commands(pool.as_ref().and_then(|pool| pool.config.setup_commands.as_deref())),
            wish: Box::new((row, pool)),
        }))
    }

    /// What decides its stages.
    #[must_use]
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            project: &self.project,
            epoch: self.epoch,
            git_identity: self.git_identity.as_ref(),
            variables: (!self.variables.is_empty()).then_some(self.variables_version),
            checkouts: &self.checkouts,
            project_setup: &self.project_setup,
            pool_setup: &self.pool_setup,
        }
    }

    /// Name of the recipe when its branches are at these commits; one that cannot be seen is where it was last seen.
    pub async fn recipe_at(&self, context: &Context, commits: &[Option<&str>]) -> String {
        let seen = commits.iter().zip(&self.tips);
        let commits = seen.map(|(now, before)| now.or(before.as_deref())).collect();
        let (project, pool) = &*self.wish;
        context.recipe(project, pool.as_ref(), &self.checkouts, commits).await
    }
}
