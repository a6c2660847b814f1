//! The steps of repositories: their files, their scripts of the setup object.

use futures::future::try_join_all;
use hearth_api::instance::{RepoSettings, StepName};
use hearth_core::checkout::Checkout;
use hearth_core::scripts::Phase;
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_core::world::Failure;
use hearth_guest::ExecSpec;
use hearth_guest::client::AgentClient;
use serde_json::json;

use super::run::{Found, Run, Stop, command_failure};
use super::scripts::script_spec;
use super::step_log::{Named, Recorder};
use crate::repos::mirrors::{MirrorCommit, MirrorError};
use crate::repos::settings;
use crate::repos::transfer::{self, TransferError};

impl Run<'_> {
    /// The head of a repository's branch and what its settings file says.
    pub(super) async fn find_head(&self, checkout: &Checkout, last: Option<&str>) -> Found {
        let head = self
            .builder
            .mirrors
            .fetch(
                &checkout.repo_full_name,
                &checkout.remote(),
                &checkout.branch,
                self.builder.timeouts.command,
                self.freshness(last),
            )
            .await
            .map_err(|error| self.mirror_failure(&error));
        let mut imported = None;
        let settings = match &head {
            Ok(head) => match self.read_settings(checkout, head).await {
                Ok(None) if self.boot.plan.imports => self.import(checkout, head, &mut imported).await,
                settings => settings,
            },
            // The clone will say it.
            Err(_) => Ok(None),
        };
        Found {
            head,
            settings,
            imported,
        }
    }

    /// What the repository's settings file says; hooks that a setup object replaces are left out.
    async fn read_settings(&self, checkout: &Checkout, head: &MirrorCommit) -> Result<Option<RepoSettings>, Failure> {
        let found = settings::find(head).await;
        let found = found.map_err(|error| self.failure(FailureKind::Host, &error.to_string()))?;
        let Some((file, content)) = found else {
            return Ok(None);
        };
        let replaced = file == settings::LEGACY_FILE && !self.boot.plan.legacy_hooks;
        let mut settings = match settings::read(file, &content) {
            Ok(settings) => settings,
            // Nothing of it runs, so its faults do not matter.
            Err(_) if replaced => return Ok(None),
            Err(reason) => return Err(self.failure(FailureKind::Setup, &reason)),
        };
        if replaced {
            settings.hooks.setup.clear();
        }
        Ok(Some(RepoSettings {
            repo_full_name: checkout.repo_full_name.clone(),
            file: file.to_owned(),
            settings,
        }))
    }

    pub(super) async fn clone_repo(
        &self,
        agent: &AgentClient,
        checkout: &Checkout,
        head: &Result<MirrorCommit, Failure>,
    ) -> Result<(), Stop> {
        let mut recorder = self.begin(StepName::CloneRepo, Some(&checkout.repo_full_name));
        let result = match head {
            Ok(head) => self.transfer_repo(&mut recorder, agent, checkout, head).await,
            Err(failure) => Err(failure.clone()),
        };
        let mut metadata = json!({ "repo": checkout.repo_full_name, "branch": checkout.branch, "path": checkout.path });
        if let Ok(head) = head {
            metadata["commit"] = json!(head.commit);
        }
        self.end(recorder, result, metadata).await
    }

    async fn transfer_repo(
        &self,
        recorder: &mut Recorder<'_>,
        agent: &AgentClient,
        checkout: &Checkout,
        head: &MirrorCommit,
    ) -> Result<(), Failure> {
        let Checkout {
            repo_full_name,
            url,
            branch,
            path,
            ..
        } = checkout;
        if !head.messages.is_empty() {
            recorder.print(&format!("{}\n", head.messages));
        }
        let (extras, limit) = (checkout.extras(), self.builder.timeouts.command);
        let extra_content = self
            .builder
            .mirrors
            .extra_content(head, &checkout.remote(), extras, limit)
            .await;
        let extra_content = extra_content.map_err(|error| self.mirror_failure(&error))?;
        for note in &extra_content.notes {
            recorder.print(&format!("{note}\n"));
        }
        let put = transfer::put_clone(agent, path, (head, url, branch), &extra_content, extras).await;
        put.map_err(|error| match error {
            TransferError::Mirror(error) => self.mirror_failure(&error),
            error => {
                let reason = format!("{repo_full_name} could not be written: {error}");
                self.failure(FailureKind::VmLost, &reason)
            }
        })?;
        let fill = std::iter::once(transfer::fill(path, &extra_content))
            .chain(transfer::fill_submodules(path, &extra_content));
        for spec in fill {
            let spec = ExecSpec {
                timeout_ms: Some(millis(limit)),
                ..spec
            };
            recorder
                .run(agent, &spec, &Named::Checkout(repo_full_name))
                .await
                .map_err(|error| command_failure(FailureKind::Repository, error))?;
        }
        Ok(())
    }

    /// The scripts of one phase, those of all repositories at the same time; the first that fails ends the others. Each
    /// leaves an entry of its own, named `repo_setup`.
    pub(super) async fn run_scripts(&self, agent: &AgentClient, phase: Phase) -> Result<(), Stop> {
        let runs = self.boot.plan.checkouts.iter().filter_map(|checkout| {
            let spec = script_spec(checkout, phase)?;
            Some(async move {
                let repo = checkout.repo_full_name.as_str();
                let subject = format!("{repo} ({})", phase.as_str());
                let mut recorder = self.begin(StepName::RepoSetup, Some(&subject));
                let ended = recorder.run(agent, &spec, &Named::Script(phase.as_str(), repo)).await;
                let result = ended
                    .map(drop)
                    .map_err(|error| command_failure(FailureKind::Setup, error));
                self.end(recorder, result, json!({ "repo": repo, "script": phase.as_str() }))
                    .await
            })
        });
        try_join_all(runs).await.map(drop)
    }

    fn mirror_failure(&self, error: &MirrorError) -> Failure {
        let kind = match error {
            MirrorError::Busy { .. }
            | MirrorError::Folder { .. }
            | MirrorError::Local { .. }
            | MirrorError::NoLfs { .. } => FailureKind::Host,
            _ => FailureKind::Repository,
        };
        self.failure(kind, &error.to_string())
    }
}
