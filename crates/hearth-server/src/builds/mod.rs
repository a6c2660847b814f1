//! Provisioning: from a row in the state `provisioning` to a VM that is ready, in eight steps. Every step's entry is in the
//! store when the step has ended. Nothing here decides *whether* a VM is made (the planner does), and nothing here writes
//! a state (the reconciler does).

pub mod advice;
pub mod checkpoints;
pub mod commands;
pub mod end_request;
pub mod live_log;
pub mod lost;
pub mod output;
pub mod plan;
pub mod repositories;
pub mod run;
pub mod scripts;
pub mod step_log;
pub mod vm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_core::checkout::Checkout;
use hearth_drivers::{CheckpointKey, Driver, Locks};
use jiff::Timestamp;

use crate::options::{ServeOptions, Sizes};
use crate::repos::mirrors::Mirrors;
use crate::repos::sources::{Sources, known_hosts};
use crate::store::{PoolRow, ProjectRow, Store, StoreError, TemplateRow, Tips};
use crate::templates::environment::Environments;
use crate::vms::connections::Agents;
use crate::vms::host_keys::HostKeys;
use live_log::Followers;
use plan::{Wish, checkouts, recipe_name};

/// Everything a run works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where entries go.
    pub store: Store,
    /// What makes VMs.
    pub driver: Arc<dyn Driver>,
    /// Connections to the agents.
    pub agents: Agents,
    /// The repositories on the host.
    pub mirrors: Mirrors,
    /// RSA keys for VMs with an SSH server.
    pub host_keys: HostKeys,
    /// Who is watching.
    pub followers: Followers,
    /// One build per project, and one per base, at a time.
    pub builds: Locks<String>,
    /// What the host gives to VMs.
    pub environments: Environments,
    /// What the VM sizes mean.
    pub sizes: Sizes,
    /// Time limit of one set-up command.
    pub command_timeout: Duration,
    /// Time a VM has to boot until its agent answers.
    pub boot_timeout: Duration,
}

impl Context {
    /// With nothing under way; `mirrors` is the folder of the repositories.
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>, mirrors: PathBuf, options: &ServeOptions) -> Self {
        let sources = Sources::new(&options.sources, known_hosts(&mirrors));
        Self {
            store,
            agents: Agents::new(driver.clone()),
            mirrors: Mirrors::new(mirrors, sources),
            host_keys: HostKeys::default(),
            followers: Followers::default(),
            builds: Locks::default(),
            environments: Environments::new(driver.clone()),
            driver,
            sizes: options.sizes.clone(),
            command_timeout: options.command_timeout,
            boot_timeout: options.boot_timeout,
        }
    }

    /// What a pool is to follow now.
    pub async fn wish(&self, project: &ProjectRow, pool: Option<&PoolRow>) -> Result<Wish, StoreError> {
        let tips = self.store.tips_of(project).await?;
        let checkouts = checkouts(project, pool);
        let recipe = self.recipe(project, pool, &checkouts, tips.commits(&checkouts)).await;
        Ok(Wish {
            checkouts,
            tips,
            recipe,
        })
    }

    /// Name of the recipe that a pool is to follow, for somebody who knows all tips.
    pub async fn wanted(&self, project: &ProjectRow, pool: Option<&PoolRow>, tips: &Tips) -> String {
        let checkouts = checkouts(project, pool);
        self.recipe(project, pool, &checkouts, tips.commits(&checkouts)).await
    }

    /// Name of the recipe of these checkouts at these commits, on this host as it is.
    async fn recipe(
        &self,
        project: &ProjectRow,
        pool: Option<&PoolRow>,
        checkouts: &[Checkout],
        commits: Vec<Option<&str>>,
    ) -> String {
        let shape = self.sizes.shape(project.vm_size);
        let environment = self.environments.get(project.image.as_deref(), shape).await;
        recipe_name(project, pool, checkouts, commits, environment.as_deref())
    }

    /// A checkpoint turned out to be damaged: nobody begins at it again, and what was forked from it goes.
    pub async fn forget_checkpoint(&self, key: &CheckpointKey, reason: &str) -> Result<(), StoreError> {
        tracing::error!(%key, reason, "a checkpoint is not used any more and is built again when it is needed");
        let now = Timestamp::now();
        self.store.note_checkpoint_fault(key, reason, now).await?;
        self.store.forget_checkpoint(key, true, now).await?;
        if let Err(error) = self.driver.remove_checkpoint(key).await {
            // VMs may lie on it still; then a later round of the keeper removes it.
            tracing::debug!(%error, %key, "a damaged checkpoint stays for now");
        }
        Ok(())
    }
}
