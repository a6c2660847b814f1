//! One provisioning run: the stages of its chain, in order, from the longest prefix that is frozen already. What it makes is
//! frozen after each stage; the last checkpoint is the template, and the instance is a fork of it. The first stage that
//! fails ends the run.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use hearth_api::claim::ClaimedRepo;
use hearth_api::ids::{InstanceId, VmId};
use hearth_api::instance::{RepoSettings, StepName};
use hearth_api::pool::SetupCommand;
use hearth_core::checkout::{CheckoutState, with_own_scripts};
use hearth_core::provisioned::Provisioned;
use hearth_core::purpose::Purpose;
use hearth_core::redact::{Redacted, Redactor};
use hearth_core::scripts::{Phase, shell_text};
use hearth_core::stage_log::StageLog;
use hearth_core::stages::{self, Known, Stage, Work};
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_core::world::Failure;
use hearth_guest::ExecSpec;
use hearth_guest::client::{AgentClient, AgentError};
use jiff::Timestamp;
use serde_json::json;

use super::Builder;
use super::end_request::EndRequest;
use super::hooks::Import;
use super::lost::LastCommand;
use super::plan::BuildPlan;
use super::step_log::{CommandFailure, Recorder};
use crate::repos::checkout;
use crate::repos::mirrors::{Freshness, MirrorCommit};
use crate::secrets::{env_file, git_config};
use crate::store::{StoreError, TemplateRow};
use crate::templates::gc::forget_checkpoint;

/// a branch head that was fetched so long ago is new enough for a VM of the pool: a filling pool asks a repository's host once.
const POOL_FRESH: Duration = Duration::from_secs(30);

/// One run.
#[derive(Debug, Clone)]
pub struct Boot {
    pub id: InstanceId,
    /// Its VM.
    pub vm: VmId,
    /// What to do.
    pub plan: BuildPlan,
    /// What it is made for. A test is to show how the set-up goes *now*: nothing that was looked up before is good enough for it.
    pub purpose: Purpose,
    /// A restart of the server interrupted it then: it continues from what was frozen.
    pub interrupted_at: Option<Timestamp>,
    /// A person may ask for its end.
    pub end: EndRequest,
    /// It is a fork of this template; what the plan says is for another one.
    pub template: Option<TemplateRow>,
}

impl Boot {
    /// Whether its VM stays in the pool, paused, until it is claimed. Else a claim waits for it, or a person looks inside.
    #[must_use]
    pub fn pauses(&self) -> bool {
        self.purpose == Purpose::Pool
    }
}

/// Why a run ended before its end.
#[derive(Debug)]
pub enum Stop {
    /// A step failed.
    Failure(Failure),
    /// The record could not be written or read: it is not known how far the run came.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

pub(super) fn failure(kind: FailureKind, reason: impl Into<Redacted>) -> Failure {
    Failure {
        kind,
        reason: reason.into(),
    }
}

/// The agent does not answer any more.
pub(super) fn vm_lost(redactor: &Redactor, error: &AgentError) -> Failure {
    failure(FailureKind::VmLost, redactor.redact(&error.to_string()))
}

/// Makes the VM ready, or says why not. Dropping the future ends what is running; the VM stays as it is.
pub async fn provision(builder: &Builder, boot: &Boot) -> Result<Provisioned, Stop> {
    if let Some(template) = &boot.template {
        if let Some(made) = Run::new(builder, boot).known(template).await? {
            return Ok(made);
        }
        if template.recipe != boot.plan.recipe {
            let reason = "the template was damaged; it is built again";
            return Err(failure(FailureKind::Host, reason).into());
        }
    }
    let found = Run::new(builder, boot).find_heads().await;
    let mut boot = boot.clone();
    boot.plan.recipe = resolve_inputs(builder, &boot, &found).await?;
    let settings: Vec<_> = found
        .iter()
        .filter_map(|found| found.settings.clone().ok().flatten())
        .collect();
    boot.plan.checkouts = with_own_scripts(&boot.plan.checkouts, &settings);
    Run::new(builder, &boot).all(found).await
}

/// Notes where the branches turned out to be; the recipe that this run follows.
async fn resolve_inputs(builder: &Builder, boot: &Boot, found: &[Found]) -> Result<String, Stop> {
    let plan = &boot.plan;
    let commits: Vec<_> = found
        .iter()
        .map(|found| found.head.as_ref().ok().map(|head| head.commit.as_str()))
        .collect();
    for ((checkout, now), before) in plan.checkouts.iter().zip(&commits).zip(&plan.heads) {
        if let Some(commit) = now.filter(|commit| Some(*commit) != before.as_deref()) {
            let (remote, branch) = (checkout.remote(), &checkout.branch);
            let now = Timestamp::now();
            builder.store.note_branch_head(&remote, branch, commit, now).await?;
        }
    }
    let recipe = plan.recipe_at(builder, &commits).await;
    if recipe != plan.recipe {
        builder.store.set_instance_recipe(&boot.id, &recipe).await?;
    }
    Ok(recipe)
}

pub(super) struct Run<'a> {
    pub(super) builder: &'a Builder,
    pub(super) boot: &'a Boot,
    /// What ran since the last checkpoint.
    pub(super) logs: Mutex<Vec<StageLog>>,
    /// Where the set-up left the checkouts, once that is known.
    left: Mutex<Vec<CheckoutState>>,
    pub(super) last: tokio::sync::Mutex<Option<LastCommand>>,
}

/// What was found of a repository before the run.
pub(super) struct Found {
    pub(super) head: Result<MirrorCommit, Failure>,
    pub(super) settings: Result<Option<RepoSettings>, Failure>,
    /// What the settings were made of, where no file was written for Hearth.
    pub(super) imported: Option<Import>,
}

impl<'a> Run<'a> {
    fn new(builder: &'a Builder, boot: &'a Boot) -> Self {
        Self {
            builder,
            boot,
            logs: Mutex::default(),
            left: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }
}

impl Run<'_> {
    /// All repositories as they are now.
    async fn find_heads(&self) -> Vec<Found> {
        let BuildPlan { checkouts, heads, .. } = &self.boot.plan;
        let searches = checkouts.iter().zip(heads);
        join_all(searches.map(|(checkout, head)| self.find_head(checkout, head.as_deref()))).await
    }

    /// A fork of a template that is known whole: no repository is looked at. `None` when it turned out to be damaged.
    async fn known(&self, template: &TemplateRow) -> Result<Option<Provisioned>, Stop> {
        let Some(agent) = self.fork_whole(&template.key, None).await? else {
            return Ok(None);
        };
        let private_mib = self.finish(&agent).await?;
        Ok(Some(Provisioned {
            repos: template.repos.clone(),
            settings: template.settings.clone(),
            private_mib,
            template: Some(template.key.clone()),
            boot_id: self.builder.connections.known_boot(&self.boot.vm).await,
        }))
    }

    async fn all(&self, found: Vec<Found>) -> Result<Provisioned, Stop> {
        let stages = self.stages(&found).await;
        let made = self.follow(&stages, found).await;
        let Err(stop) = made else { return made };
        let Some(failure) = self.what_it_did(&stop).await else {
            return Err(stop);
        };
        // Every fork of what was frozen meanwhile would end the same.
        if let Some(key) = stages.last().and_then(|stage| stage.key.as_ref()) {
            let (store, driver) = (&self.builder.store, &*self.builder.driver);
            forget_checkpoint(store, driver, key, failure.reason.as_str()).await?;
        }
        Err(failure.into())
    }

    async fn follow(&self, stages: &[Stage], found: Vec<Found>) -> Result<Provisioned, Stop> {
        let agent = if stages.iter().all(|stage| stage.key.is_none()) {
            let (agent, mut freezer) = (self.create().await?, None);
            self.run_stages(&agent, &stages[1..], &found, Vec::new(), &mut freezer)
                .await?;
            self.record_checkouts(&agent).await?;
            agent
        } else {
            self.fork_or_build(stages, &found).await?
        };
        let private_mib = self.finish(&agent).await?;
        let (repos, settings) = self.holds(&found)?;
        Ok(Provisioned {
            repos,
            settings,
            private_mib,
            template: stages.last().and_then(|stage| stage.key.clone()),
            boot_id: self.builder.connections.known_boot(&self.boot.vm).await,
        })
    }

    /// Checks that the VM is ready, and pauses one of the pool; what it costs then, MiB.
    async fn finish(&self, agent: &AgentClient) -> Result<Option<u64>, Stop> {
        self.check_ready(agent).await?;
        if !self.boot.pauses() {
            return Ok(None);
        }
        self.rehearse_hand_over(agent).await?;
        self.pause().await
    }

    /// Everything that the set-up does is done: where it left the checkouts.
    pub(super) async fn record_checkouts(&self, agent: &AgentClient) -> Result<(), Failure> {
        let mut all = Vec::new();
        for checkout in &self.boot.plan.checkouts {
            let left = checkout::record(agent, &checkout.path).await;
            all.push(left.map_err(|error| self.vm_lost(&error))?);
        }
        self.set_left(all);
        Ok(())
    }

    pub(super) fn set_left(&self, left: Vec<CheckoutState>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    pub(super) fn left(&self) -> Vec<CheckoutState> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The checkouts, and what their settings files say.
    pub(super) fn holds(&self, found: &[Found]) -> Result<(Vec<ClaimedRepo>, Vec<RepoSettings>), Failure> {
        let (mut repos, mut settings) = (Vec::new(), Vec::new());
        let left = self.left();
        for (at, (checkout, found)) in self.boot.plan.checkouts.iter().zip(found).enumerate() {
            let mut repo = ClaimedRepo {
                repo_full_name: checkout.repo_full_name.clone(),
                branch: checkout.branch.clone(),
                commit: found.head.as_ref().map_err(Clone::clone)?.commit.clone(),
                path: checkout.path.clone(),
                branch_missing: false,
                behind: false,
                gone: false,
                cloned: None,
                why: None,
            };
            if let Some(left) = left.get(at) {
                left.apply(&mut repo);
            }
            repos.push(repo);
            settings.extend(found.settings.clone()?);
        }
        Ok((repos, settings))
    }

    /// The chain; without any key where nothing can or shall be frozen.
    async fn stages(&self, found: &[Found]) -> Vec<Stage> {
        let BuildPlan { image, shape, .. } = &self.boot.plan;
        let driver = &self.builder.driver;
        let environment = if self.boot.purpose.uses_cache() && driver.capabilities().disk_checkpoints {
            // What is wrong with the image, `create_vm` will say.
            driver.environment(image.as_deref(), *shape).await.ok()
        } else {
            None
        };
        let known: Vec<_> = found
            .iter()
            .map(|found| Known {
                commit: found.head.as_ref().ok().map(|head| head.commit.as_str()),
                told: found.imported.as_ref().map(|import| import.report.as_str()),
                settings: match &found.settings {
                    Ok(settings) => settings.as_ref().map(|read| Ok(&read.settings)),
                    Err(_) => Some(Err(())),
                },
            })
            .collect();
        let timeout = self.builder.timeouts.command.as_secs();
        stages::stages(environment.as_deref(), timeout, &self.boot.plan.inputs(), &known)
    }

    /// Which head of a repository is good enough: the one that the recipe names, for a VM of the pool.
    pub(super) fn freshness<'b>(&self, last: Option<&'b str>) -> Freshness<'b> {
        match last {
            _ if self.boot.purpose.is_test() => Freshness::Newest,
            Some(commit) => Freshness::Commit(commit),
            None => Freshness::Fetched(POOL_FRESH),
        }
    }

    /// Runs stages in a VM; after each, `freezer` freezes it. `begun` is what commands of the first stage's step left that ran
    /// before the VM was frozen.
    pub(super) async fn run_stages(
        &self,
        agent: &AgentClient,
        stages: &[Stage],
        found: &[Found],
        mut begun: Vec<StageLog>,
        freezer: &mut Option<super::checkpoints::Freezer>,
    ) -> Result<(), Stop> {
        let mut at = 0;
        while let Some(stage) = stages.get(at) {
            let left = &stages[at..];
            self.last.lock().await.take();
            at += if let Some(commands) = self.commands_from(stage.work) {
                let begun = std::mem::take(&mut begun);
                self.run_commands(agent, commands, left, begun, freezer).await?
            } else if let Work::Hook(repo, from) = stage.work {
                let begun = std::mem::take(&mut begun);
                self.run_hooks(agent, (repo, from), &found[repo], left, begun, freezer)
                    .await?
            } else {
                self.run_stage(agent, stage.work, found).await?;
                self.freeze(agent, left, freezer).await?;
                1
            };
        }
        Ok(())
    }

    /// The step, the whole list and the place in it, when a stage is a command of a list.
    fn commands_from(&self, work: Work) -> Option<(StepName, &[SetupCommand], usize)> {
        let plan = &self.boot.plan;
        match work {
            Work::Project(at) => Some((StepName::ProjectSetup, &plan.project_setup, at)),
            Work::Pool(at) => Some((StepName::WarmPoolSetup, &plan.pool_setup, at)),
            _ => None,
        }
    }

    async fn run_stage(&self, agent: &AgentClient, work: Work, found: &[Found]) -> Result<(), Stop> {
        let checkouts = &self.boot.plan.checkouts;
        match work {
            Work::Identity => self.set_git_identity(agent).await,
            Work::Variables => self.set_env_vars(agent).await,
            Work::Clone(repo) => self.clone_repo(agent, &checkouts[repo], &found[repo].head).await,
            Work::Hooks(repo) => self.tell_hooks(&checkouts[repo], &found[repo]).await,
            Work::Initialize => self.run_scripts(agent, Phase::Initialize).await,
            Work::Startup => self.run_scripts(agent, Phase::Startup).await,
            // The VM has been made; commands run list by list.
            Work::Base | Work::Hook(..) | Work::Project(_) | Work::Pool(_) => Ok(()),
        }
    }

    /// Knows the values of the project's variables.
    pub(super) fn redactor(&self) -> &Redactor {
        &self.boot.plan.redactor
    }

    /// A failure of which something else than Hearth speaks: the guest, git, the driver.
    pub(super) fn failure(&self, kind: FailureKind, reason: &str) -> Failure {
        failure(kind, self.redactor().redact(reason))
    }

    pub(super) fn vm_lost(&self, error: &AgentError) -> Failure {
        vm_lost(self.redactor(), error)
    }

    pub(super) fn begin(&self, name: StepName, subject: Option<&str>) -> Recorder<'_> {
        Recorder::begin(self.builder, self.boot, name, subject)
    }

    /// Writes the entry and passes the failure on, if it was one.
    pub(super) async fn end<T>(
        &self,
        recorder: Recorder<'_>,
        result: Result<T, Failure>,
        metadata: serde_json::Value,
    ) -> Result<T, Stop> {
        let (value, log) = self.end_apart(recorder, result, metadata).await?;
        self.keep(log);
        Ok(value)
    }

    /// The same for an entry whose logs are kept one by one.
    pub(super) async fn end_apart<T>(
        &self,
        recorder: Recorder<'_>,
        result: Result<T, Failure>,
        metadata: serde_json::Value,
    ) -> Result<(T, StageLog), Stop> {
        let given_up = self.builder.connections.given_up(&self.boot.vm);
        let result = result.map_err(|failure| match (failure.kind, given_up) {
            // The connection was broken off because nothing came over it any more.
            (FailureKind::VmLost, Some(reason)) => Failure { reason, ..failure },
            _ => failure,
        });
        let error = result.as_ref().err().map(|failure| failure.reason.clone());
        let log = recorder.end(error, metadata).await?;
        Ok((result?, log))
    }

    pub(super) fn keep(&self, log: StageLog) {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).push(log);
    }

    async fn set_git_identity(&self, agent: &AgentClient) -> Result<(), Stop> {
        if let Some(identity) = &self.boot.plan.git_identity {
            let text = git_config::render(&identity.into());
            let written = agent.write_file(git_config::PATH, git_config::MODE, text).await;
            written.map_err(|error| self.vm_lost(&error))?;
        }
        Ok(())
    }

    async fn set_env_vars(&self, agent: &AgentClient) -> Result<(), Stop> {
        let recorder = self.begin(StepName::SetEnvVars, None);
        let variables = &self.boot.plan.variables;
        let written = agent
            .write_file(env_file::PATH, env_file::MODE, env_file::render(variables))
            .await;
        let result = written.map_err(|error| self.vm_lost(&error));
        self.end(recorder, result, json!({ "count": variables.len() })).await
    }

    /// A set-up command as CONTRACT.md wants it run.
    pub(super) fn shell(&self, command: &str, cwd: &str) -> ExecSpec {
        ExecSpec {
            shell: Some(shell_text(command)),
            cwd: Some(cwd.to_owned()),
            env_file: Some(env_file::PATH.to_owned()),
            timeout_ms: Some(millis(self.builder.timeouts.command)),
            ..ExecSpec::default()
        }
    }
}

pub(super) fn command_failure(kind: FailureKind, error: CommandFailure) -> Failure {
    match error {
        CommandFailure::Command { message, .. } => failure(kind, message),
        CommandFailure::Stopped(failure) => failure,
    }
}
