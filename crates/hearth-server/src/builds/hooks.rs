//! `init_repo`: a repository's own hooks, one entry for each repository, a checkpoint after each hook. Where no settings file says any
//! and nothing else is set up, they come from the files that the repository has for others.

use std::time::Instant;

use hearth_api::instance::{RepoSettings, StepName};
use hearth_core::checkout::Checkout;
use hearth_core::redact::Redactor;
use hearth_core::stage_log::{StageLog, hooks_metadata};
use hearth_core::stages::Stage;
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_core::world::Failure;
use hearth_guest::client::AgentClient;
use hearth_import::Imported;
use serde_json::{Value, json};

use super::checkpoints::Freezer;
use super::run::{Found, Run, Stop, command_failure};
use super::step_log::Named;
use crate::repos::imports;
use crate::repos::mirrors::MirrorCommit;

/// What was made of files that were not written for Hearth.
pub(super) struct Import {
    /// For people.
    pub(super) report: String,
    /// For the entry's metadata.
    told: Value,
    /// Where each hook comes from.
    sources: Vec<String>,
}

impl Import {
    fn new(imported: &Imported, redactor: &Redactor) -> Self {
        let told = |taken| imports::told(imported, taken, redactor);
        Self {
            report: imported.report(),
            told: json!({ "files": imported.files, "taken": told(true), "notTaken": told(false) }),
            sources: imported.sources.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Run<'_> {
    /// A set-up from what the repository has for others.
    pub(super) async fn import(
        &self,
        checkout: &Checkout,
        head: &MirrorCommit,
        into: &mut Option<Import>,
    ) -> Result<Option<RepoSettings>, Failure> {
        let read = imports::read(head, &checkout.path).await;
        let read = read.map_err(|error| self.failure(FailureKind::Host, &error.to_string()))?;
        let imported = read.map_err(|fault| {
            let reason =
                format!("{fault}; fix it, or save a setup object: then the repository's own files are not read");
            self.failure(FailureKind::Setup, &reason)
        })?;
        if imported.is_empty() {
            return Ok(None);
        }
        *into = Some(Import::new(&imported, self.redactor()));
        Ok(Some(RepoSettings {
            repo_full_name: checkout.repo_full_name.clone(),
            file: imported.files.first().cloned().unwrap_or_default(),
            settings: imported.settings,
        }))
    }

    /// The entry of a repository of which no hook runs: what is wrong with its settings, or what was read in vain.
    pub(super) async fn tell_hooks(&self, checkout: &Checkout, found: &Found) -> Result<(), Stop> {
        let name = &checkout.repo_full_name;
        let mut recorder = self.begin(StepName::InitRepo, Some(name));
        if let Some(import) = &found.imported {
            recorder.print(&import.report);
        }
        let result = found.settings.as_ref().map(drop).map_err(Failure::clone);
        let metadata = hooks_metadata(&of_repo(name, found), 0);
        self.end(recorder, result, metadata).await
    }

    /// The hooks of a repository from the one at `from` on, in the repository; how many there were. `begun` are those before it, which
    /// ran before the VM was frozen. `stages` begins with those of these hooks and goes to the end of the chain.
    pub(super) async fn run_hooks(
        &self,
        agent: &AgentClient,
        (repo, from): (usize, usize),
        found: &Found,
        stages: &[Stage],
        begun: Vec<StageLog>,
        freezer: &mut Option<Freezer>,
    ) -> Result<usize, Stop> {
        let checkout = &self.boot.plan.checkouts[repo];
        let name = &checkout.repo_full_name;
        let of_repo = of_repo(name, found);
        let mut recorder = self.begin(StepName::InitRepo, Some(name));
        for log in &begun {
            recorder.replay(&log.output);
        }
        let hooks = found
            .settings
            .iter()
            .flatten()
            .flat_map(|read| &read.settings.hooks.setup);
        let hooks: Vec<_> = hooks.collect();
        let mut result = Ok(());
        let left = hooks.get(from..).unwrap_or_default();
        for (at, hook) in left.iter().enumerate() {
            recorder.next_command();
            let source = found.imported.as_ref().and_then(|import| {
                if from + at == 0 {
                    recorder.print(&import.report);
                }
                import.sources.get(from + at)
            });
            let named = source.map_or(Named::Hook(name), |source| Named::Imported(name, source));
            let spec = self.shell(hook.command(), &checkout.path);
            let began = Instant::now();
            if let Err(error) = recorder.run(agent, &spec, &named).await {
                result = Err(command_failure(FailureKind::Setup, error));
                break;
            }
            self.keep(StageLog {
                step: StepName::InitRepo,
                output: recorder.of_command(),
                duration_ms: millis(began.elapsed()),
                metadata: of_repo.clone(),
                is_command: true,
            });
            self.freeze(agent, &stages[at..], freezer).await?;
        }
        let metadata = hooks_metadata(&of_repo, hooks.len());
        self.end_apart(recorder, result, metadata).await?;
        Ok(left.len())
    }
}

/// The metadata of each hook.
fn of_repo(name: &str, found: &Found) -> Value {
    let mut metadata = json!({ "repo": name });
    if let Some(import) = &found.imported {
        metadata["imported"] = import.told.clone();
    }
    metadata
}
