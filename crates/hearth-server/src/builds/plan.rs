//! Everything one provisioning run needs, read once at its start, and the name of the recipe it follows.

use hearth_api::ids::ProjectId;
use hearth_api::pool::SetupCommand;
use hearth_api::project::GitIdentity;
use hearth_core::checkout::Checkout;
use hearth_core::redact::Redactor;
use hearth_core::stages::Inputs;
use hearth_drivers::VmShape;

use super::Builder;
use crate::recipes::target::{Target, imports};
use crate::secrets::redactors;
use crate::store::{PoolRow, ProjectRow, StoreError, VariableOwner, VariableRow};

/// What a run does.
#[derive(Debug, Clone)]
pub struct BuildPlan {
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
    pub heads: Vec<Option<String>>,
    /// Who makes commits, where the project says it.
    pub git_identity: Option<GitIdentity>,
    /// Shared variables.
    pub variables: Vec<VariableRow>,
    /// Counts up with every change of them.
    pub variables_version: i64,
    /// Hides their values.
    pub redactor: Redactor,
    /// Whether hooks in `.capy/settings.json` run: a saved setup object replaces them.
    pub legacy_hooks: bool,
    /// Whether the repositories' own files are read for a set-up, as nothing else is set up.
    pub imports: bool,
    /// Commands of `project_setup`.
    pub project_setup: Vec<SetupCommand>,
    /// Commands of `warm_pool_setup`.
    pub pool_setup: Vec<SetupCommand>,
    /// What it was read from.
    read_from: Box<(ProjectRow, Option<PoolRow>)>,
}

impl BuildPlan {
    /// Reads it; `None` when the project is gone. `renews`: what the template's renewal is made by.
    pub async fn load(builder: &Builder, project: &ProjectId, renews: bool) -> Result<Option<Self>, StoreError> {
        let store = &builder.store;
        // The variables may change between these reads. Then the recipe says an older version than the values are, and
        // the next pass sees a newer recipe and replaces the instance: late, but never wrong for long.
        let Some(mut row) = store.project(project).await? else {
            redactors::forget(project);
            return Ok(None);
        };
        row.template_epoch += i64::from(renews);
        let pool = store.pool(project).await?;
        let variables = store.variables(project, VariableOwner::Shared).await?;
        let mut secrets = variables.clone();
        secrets.extend(redactors::of_credentials(store, project).await?);
        let version = |row: &ProjectRow| (row.variables_version, row.credentials_version);
        let now = store.project(project).await?;
        let redactor = if now.as_ref().map(version) == Some(version(&row)) {
            redactors::of_version(project, version(&row), &secrets).await
        } else {
            // These values may belong to either version.
            redactors::build(&secrets).await
        };
        let heads = store.branch_heads_of(&row).await?;
        let Target { checkouts, recipe } = builder.recipes.target(&row, pool.as_ref(), &heads).await;
        let commands = |commands: Option<&[SetupCommand]>| commands.unwrap_or_default().to_vec();
        Ok(Some(Self {
            project: row.id.clone(),
            variables_version: row.variables_version,
            epoch: row.template_epoch,
            recipe,
            image: row.image.clone(),
            shape: builder.recipes.shape(&row),
            heads: heads
                .commits(&checkouts)
                .into_iter()
                .map(|commit| commit.map(str::to_owned))
                .collect(),
            checkouts,
            git_identity: row.git_identity.clone(),
            redactor,
            variables,
            legacy_hooks: row.setup.is_none(),
            imports: imports(&row, pool.as_ref()),
            project_setup: commands(row.project_setup.as_deref()),
            pool_setup: commands(pool.as_ref().and_then(|pool| pool.config.setup_commands.as_deref())),
            read_from: Box::new((row, pool)),
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
    pub async fn recipe_at(&self, builder: &Builder, commits: &[Option<&str>]) -> String {
        let seen = commits.iter().zip(&self.heads);
        let commits = seen.map(|(now, before)| now.or(before.as_deref())).collect();
        let (project, pool) = &*self.read_from;
        builder
            .recipes
            .at(project, pool.as_ref(), &self.checkouts, commits)
            .await
    }
}
