//! Prepare once, fork many: where a run begins, what it freezes on its way, and the template it ends in.

use std::time::{Duration, Instant};

use hearth_core::redacted;
use hearth_core::stage_log::{StageLog, step_entries};
use hearth_core::stages::{Stage, Work};
use hearth_core::state::FailureKind;
use hearth_drivers::{CheckpointKey, CheckpointSpec, ForkPurpose, VmShape};
use hearth_guest::client::AgentClient;
use jiff::Timestamp;

use super::run::{Found, Run, Stop, failure};
use super::step_log::replay;
use crate::store::{CheckpointRow, TemplateRow};

/// How long a template's guest may take to become idle before it is frozen: its forks each pay for what it was in the
/// middle of.
const TEMPLATE_IDLE: Duration = Duration::from_millis(500);
/// The same for a base, from which everything is made.
const BASE_IDLE: Duration = Duration::from_secs(3);
/// So many commands of a list are each followed by a checkpoint; in a longer list only those that took long.
const EACH_COMMAND: usize = 64;
/// A stage that took at least this long is worth a checkpoint whatever else holds.
const WORTH: Duration = Duration::from_secs(1);

/// The VM that a template is made in.
pub(super) struct Freezer {
    /// Its parent: the checkpoint that its disk is a layer on.
    parent: Option<CheckpointKey>,
    /// When it was last frozen.
    since: Instant,
}

impl Run<'_> {
    /// A VM with all stages done: a fork of the template. When there is none, it is made first, from the longest prefix that
    /// is frozen already; of several runs that need the same template one makes it and the others wait.
    pub(super) async fn fork_or_build(&self, stages: &[Stage], found: &[Found]) -> Result<AgentClient, Stop> {
        if let Some(agent) = self.fork_template(stages, found).await? {
            return Ok(agent);
        }
        let project = self.boot.plan.project.to_string();
        let _alone = self.builder.locks.lock(project).await;
        if let Some(agent) = self.fork_template(stages, found).await? {
            return Ok(agent);
        }
        let agent = self.build(stages, found).await?;
        let Some(key) = stages.last().and_then(|stage| stage.key.as_ref()) else {
            // It cannot have come so far without knowing every commit.
            return Ok(agent);
        };
        self.note_template(key, found).await?;
        if !self.boot.purpose.serves_claims() {
            // It is not handed out: the VM that was set up is good enough to look into, and is there sooner.
            return Ok(agent);
        }
        drop(agent);
        self.builder.connections.forget(&self.boot.vm);
        self.builder
            .driver
            .destroy(&self.boot.vm)
            .await
            .map_err(|error| self.driver_failure(&error))?;
        let agent = self.fork_again(key).await?;
        agent.ok_or_else(|| {
            Stop::Failure(failure(
                FailureKind::Host,
                "the template was damaged right after it was made; is the disk sound?",
            ))
        })
    }

    async fn fork_template(&self, stages: &[Stage], found: &[Found]) -> Result<Option<AgentClient>, Stop> {
        let Some(key) = stages.last().and_then(|stage| stage.key.as_ref()) else {
            return Ok(None);
        };
        let agent = self.fork_whole(key, Some(self.boot.plan.shape)).await?;
        if agent.is_some() {
            self.set_left(self.builder.store.checkouts_of(key).await?);
            // It may be the template of another recipe too: a project without anything shares its base with all others.
            self.note_template(key, found).await?;
        }
        Ok(agent)
    }

    /// A fork of a checkpoint with everything done, and the entries of what had been done.
    pub(super) async fn fork_whole(
        &self,
        key: &CheckpointKey,
        shape: Option<VmShape>,
    ) -> Result<Option<AgentClient>, Stop> {
        let Some(logs) = self.builder.store.stage_logs_up_to(key).await? else {
            return Ok(None);
        };
        let Some(agent) = self.fork(key, ForkPurpose::Instance, shape, "template").await? else {
            return Ok(None);
        };
        self.replay(&logs).await?;
        Ok(Some(agent))
    }

    async fn note_template(&self, key: &CheckpointKey, found: &[Found]) -> Result<(), Stop> {
        let (repos, settings) = self.holds(found)?;
        let plan = &self.boot.plan;
        let row = TemplateRow {
            project: plan.project.clone(),
            recipe: plan.recipe.clone(),
            key: key.clone(),
            created_at: Timestamp::now(),
            repos,
            settings,
        };
        Ok(self.builder.store.set_template(&row).await?)
    }

    /// Runs what is not frozen yet, and freezes it.
    async fn build(&self, stages: &[Stage], found: &[Found]) -> Result<AgentClient, Stop> {
        for done in (1..=stages.len()).rev() {
            let Some(key) = &stages[done - 1].key else { continue };
            let Some(logs) = self.builder.store.stage_logs_up_to(key).await? else {
                continue;
            };
            let Some(agent) = self
                .fork(key, ForkPurpose::Build, Some(self.boot.plan.shape), "checkpoint")
                .await?
            else {
                continue;
            };
            let left = &stages[done..];
            let begun = self.replay_but_for(&logs, left).await?;
            let mut freezer = Some(Freezer {
                parent: Some(key.clone()),
                since: Instant::now(),
            });
            self.run_stages(&agent, left, found, begun, &mut freezer).await?;
            return Ok(agent);
        }
        let base = stages[0].key.as_ref().map(ToString::to_string).unwrap_or_default();
        // All projects of this size share the base: one makes it.
        let making = self.builder.locks.lock(base).await;
        if let Some(key) = &stages[0].key
            && self.builder.store.stage_logs_up_to(key).await?.is_some()
        {
            drop(making);
            return Box::pin(self.build(stages, found)).await;
        }
        let agent = self.create().await?;
        let mut freezer = Some(Freezer {
            parent: None,
            since: Instant::now(),
        });
        self.freeze(&agent, stages, &mut freezer).await?;
        drop(making);
        self.run_stages(&agent, &stages[1..], found, Vec::new(), &mut freezer)
            .await?;
        Ok(agent)
    }

    /// Freezes the VM after the first of these stages, if that is worth it. Without a freezer nothing is frozen.
    pub(super) async fn freeze(
        &self,
        agent: &AgentClient,
        stages: &[Stage],
        freezer: &mut Option<Freezer>,
    ) -> Result<(), Stop> {
        let (Some(at), Some(Stage { work, key: Some(key) })) = (freezer.as_mut(), stages.first()) else {
            return Ok(());
        };
        let is_last = stages.len() == 1;
        if !is_last && !worth_it(*work, stages.get(1), at.since.elapsed()) {
            return Ok(());
        }
        let spec = CheckpointSpec {
            key: key.clone(),
            parent: at.parent.clone(),
            labels: [
                ("recipe".to_owned(), self.boot.plan.recipe.clone()),
                ("stage".to_owned(), work.to_string()),
            ]
            .into(),
            idle: match work {
                Work::Base => BASE_IDLE,
                _ if is_last => TEMPLATE_IDLE,
                _ => Duration::ZERO,
            },
        };
        // A checkpoint without a row would be kept as it is, with another parent than this VM has.
        if let Err(error) = self.builder.driver.remove_checkpoint(key).await {
            tracing::debug!(%error, %key, "what was left of a checkpoint stays");
        }
        if *work == Work::Base {
            // Once before all its forks do it: what they do for the first time costs each of them time and memory.
            self.activate(agent).await?;
        }
        if is_last {
            self.record_checkouts(agent).await?;
        }
        if is_last || *work == Work::Base {
            self.prepare_to_freeze(agent).await;
        }
        if let Err(error) = self.builder.driver.checkpoint(&self.boot.vm, &spec).await {
            if is_last {
                let why = self.driver_failure(&error).reason;
                let reason = redacted!["the prepared VM could not be frozen: ", why];
                return Err(failure(FailureKind::Host, reason).into());
            }
            // The run continues; only a later one will have to do this stage again. The driver may have left the VM paused.
            tracing::warn!(%error, instance = %self.boot.id, stage = %work, "a stage could not be frozen");
            if self.builder.driver.capabilities().pause {
                let resumed = self.builder.driver.resume(&self.boot.vm).await;
                resumed.map_err(|error| self.driver_failure(&error))?;
            }
            return Ok(());
        }
        let logs = std::mem::take(&mut *self.logs.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let row = CheckpointRow {
            key: key.clone(),
            parent: at.parent.replace(key.clone()),
            project: (*work != Work::Base).then(|| self.boot.plan.project.clone()),
            logs,
            checkouts: is_last.then(|| self.left()),
        };
        self.builder.store.insert_checkpoint(&row, Timestamp::now()).await?;
        at.since = Instant::now();
        Ok(())
    }

    async fn replay(&self, logs: &[StageLog]) -> Result<(), Stop> {
        for entry in step_entries(logs) {
            replay(self.builder, &self.boot.id, &entry).await?;
        }
        Ok(())
    }

    /// The same, without the commands of an unfinished list: they are the beginning of its entry.
    async fn replay_but_for(&self, logs: &[StageLog], left: &[Stage]) -> Result<Vec<StageLog>, Stop> {
        let goes_on = match left.first().map(|stage| stage.work) {
            Some(Work::Project(at) | Work::Pool(at) | Work::Hook(_, at)) => at,
            _ => 0,
        };
        let (whole, begun) = logs.split_at(logs.len().saturating_sub(goes_on));
        self.replay(whole).await?;
        Ok(begun.to_vec())
    }
}

/// Whether a checkpoint after this stage may spare a later run anything.
fn worth_it(work: Work, next: Option<&Stage>, took: Duration) -> bool {
    let next = next.map(|stage| stage.work);
    took >= WORTH
        || match work {
            // A file is written in no time.
            Work::Variables | Work::Identity => false,
            // Repositories are cloned one after the other; they are frozen together.
            Work::Clone(_) => !matches!(next, Some(Work::Clone(_))),
            Work::Project(at) | Work::Pool(at) | Work::Hook(_, at) => at < EACH_COMMAND,
            _ => true,
        }
}
