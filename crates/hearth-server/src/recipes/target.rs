//! The only answer to "which recipe is this pool made by?": from what its project and pool say, where the branches were last seen,
//! and what the host gives to VMs.

use hearth_api::pool::SetupCommand;
use hearth_api::project::VmSize;
use hearth_core::checkout::Checkout;
use hearth_core::recipe::{Recipe, RecipeRepo, ResolvedInputs, set_up_of};
use hearth_core::scripts::Phase;
use hearth_core::set_up::{OwnCommand, SetUp};
use hearth_drivers::VmShape;
use hearth_import::IMPORT_VERSION;

use crate::options::Sizes;
use crate::repos::checkouts::checkouts;
use crate::store::{BranchHeads, PoolRow, ProjectRow};
use crate::templates::environment::Environments;

/// What a pool is to be made by now.
#[derive(Debug, Clone)]
pub struct Target {
    /// The repositories.
    pub checkouts: Vec<Checkout>,
    /// Name of the recipe.
    pub recipe: String,
}

/// Tells what pools are made by. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recipes {
    environments: Environments,
    sizes: Sizes,
}

impl Recipes {
    /// `environments`: what the host gives to VMs; `sizes`: what the VM sizes mean.
    #[must_use]
    pub fn new(environments: Environments, sizes: Sizes) -> Self {
        Self { environments, sizes }
    }

    /// What a pool is to be made by now. Everybody who asks that asks here. `heads`: where the branches were last seen.
    pub async fn target(&self, project: &ProjectRow, pool: Option<&PoolRow>, heads: &BranchHeads) -> Target {
        let checkouts = checkouts(project, pool);
        let recipe = self.at(project, pool, &checkouts, heads.commits(&checkouts)).await;
        Target { checkouts, recipe }
    }

    /// What a build was really made by: name of the recipe of these checkouts at these commits, on this host as it is.
    pub async fn at(
        &self,
        project: &ProjectRow,
        pool: Option<&PoolRow>,
        checkouts: &[Checkout],
        commits: Vec<Option<&str>>,
    ) -> String {
        let environment = self
            .environments
            .get(project.image.as_deref(), self.shape(project))
            .await;
        recipe_name(project, pool, checkouts, commits, environment.as_deref())
    }

    /// The size of the project's VMs.
    #[must_use]
    pub fn shape(&self, project: &ProjectRow) -> VmShape {
        self.shape_of(project.vm_size)
    }

    /// What a VM size means here.
    #[must_use]
    pub fn shape_of(&self, size: VmSize) -> VmShape {
        self.sizes.shape(size)
    }
}

/// The named commands of a project.
#[must_use]
pub fn own_commands(project: &ProjectRow) -> Vec<OwnCommand> {
    let repositories = project.setup.iter().flat_map(|setup| &setup.repositories);
    let commands = repositories.flat_map(|setup| setup.commands.iter().map(move |command| (setup, command)));
    commands
        .map(|(setup, command)| OwnCommand {
            repo_full_name: setup.repository.to_string(),
            name: command.name.to_string(),
            command: command.command.to_string(),
        })
        .collect()
}

/// The set-up that a pool is to follow.
#[must_use]
pub fn set_up(project: &ProjectRow, pool: Option<&PoolRow>) -> SetUp {
    let checkouts = checkouts(project, pool);
    let recipe = recipe(project, pool, &checkouts, ResolvedInputs::default());
    SetUp {
        name: set_up_of(&recipe.name()).to_owned(),
        parts: recipe.parts(),
        commands: own_commands(project),
    }
}

/// Name of the recipe of a pool with these checkouts, whose branches are at these commits, on a host that gives VMs this
/// environment.
fn recipe_name(
    project: &ProjectRow,
    pool: Option<&PoolRow>,
    checkouts: &[Checkout],
    commits: Vec<Option<&str>>,
    environment: Option<&str>,
) -> String {
    let resolved = ResolvedInputs {
        environment,
        commits,
        epoch: project.template_epoch,
    };
    recipe(project, pool, checkouts, resolved).name()
}

/// Whether nothing is set up, so that the repositories' own files are read for it: a test boot and a pool decide by the same rule.
#[must_use]
pub fn imports(project: &ProjectRow, pool: Option<&PoolRow>) -> bool {
    let of_pool = pool.and_then(|pool| pool.config.setup_commands.as_deref());
    let of_project = project.project_setup.as_deref();
    let is_empty = |commands: Option<&[SetupCommand]>| commands.unwrap_or_default().is_empty();
    !project.repos.is_empty() && project.setup.is_none() && is_empty(of_project) && is_empty(of_pool)
}

fn recipe<'a>(
    project: &'a ProjectRow,
    pool: Option<&'a PoolRow>,
    checkouts: &'a [Checkout],
    resolved: ResolvedInputs<'a>,
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
        imports: imports(project, pool).then_some(IMPORT_VERSION),
        resolved,
    }
}
