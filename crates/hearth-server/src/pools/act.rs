//! Action: carries out what the planner decided. Each action is checked again by the store against the generation it was
//! decided on; losing that race is normal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::instance::InstanceStatus;
use hearth_core::plan::Action;
use hearth_core::provisioned::Provisioned;
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{Failure, World};
use hearth_drivers::{Driver, VmState};
use jiff::Timestamp;
use tracing::Instrument as _;

use super::cancel::end_after_patience;
use super::endings::Endings;
use super::tasks::{Running, Tasks};
use super::tokens::Bucket;
use crate::builds::Builder;
use crate::builds::cause;
use crate::builds::live_log::LiveLogs;
use crate::builds::plan::BuildPlan;
use crate::builds::run::{Boot, Stop, provision};
use crate::claims::Queues;
use crate::status::messages::{vm_ended, why};
use crate::store::{End, InstanceRow, Moved, NewInstance, Store, StoreError, TemplateRow};
use crate::vms::connections::Connections;
use crate::vms::pause::Pause;
use crate::vms::probe::GiveUp as _;
use crate::wake::Wake;

/// Does what the planner decided, and what a person asks of a boot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Actor {
    pub(super) store: Store,
    pub(super) driver: Arc<dyn Driver>,
    builder: Builder,
    connections: Connections,
    pub(super) live_logs: LiveLogs,
    pause: Pause,
    /// The claims that wait: notified when a template is there.
    queues: Queues,
    wake: Wake,
    pub(super) endings: Endings,
    pub(super) tasks: Tasks,
    /// What may still be begun; fills up with time.
    tokens: Arc<Mutex<Bucket>>,
    /// Names this server process; rows that another one began are half made.
    pub(super) session: Arc<str>,
}

impl Actor {
    /// Nothing is under way. `session` names this server process.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, builder: Builder, pause: Pause, endings: Endings, session: Arc<str>) -> Self {
        Self {
            store: endings.store.clone(),
            driver,
            builder,
            connections: endings.connections.clone(),
            live_logs: endings.live_logs.clone(),
            pause,
            queues: endings.queues.clone(),
            wake: endings.wake.clone(),
            endings,
            tasks: Tasks::default(),
            tokens: Arc::new(Mutex::new(Bucket::full())),
            session,
        }
    }

    /// Names this server process.
    pub(super) fn session(&self) -> &str {
        &self.session
    }

    /// How many VMs may be begun now.
    pub(super) fn tokens(&self) -> usize {
        self.bucket().look()
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this process has under way.
    #[must_use]
    pub(super) fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    pub(super) async fn act(&self, world: &World, action: &Action) -> Result<(), StoreError> {
        match action {
            Action::Create {
                project,
                recipe,
                reason,
            } => {
                let template = self.store.template(project, recipe).await?;
                tracing::debug!(%project, recipe, reason = reason.as_str(), "an instance is to be made");
                self.begin(world, project, template, why(*reason)).await?;
            }
            Action::Build { project } => {
                self.begin(world, project, None, "the target recipe has no template")
                    .await?;
            }
            Action::Start { instance } => self.start(instance).await?,
            Action::Fail {
                instance,
                generation,
                failure,
            } => {
                self.fail(instance, *generation, failure).await?;
            }
            Action::Retire {
                instance,
                generation,
                reason,
            } => {
                self.end_instance(instance, *generation, InstanceState::Retiring, reason)
                    .await?;
            }
            Action::Delete {
                instance,
                generation,
                reason,
            } => {
                self.end_instance(instance, *generation, InstanceState::Deleting, reason)
                    .await?;
            }
            Action::Teardown { instance } => {
                if let Some(row) = self.store.instance(instance).await? {
                    self.spawn_teardown(row);
                }
            }
            Action::Pause { instance } => self.pause.pause(instance).await,
            Action::DestroyOrphan { vm } => self.spawn_destroy_orphan(vm.clone()),
        }
        Ok(())
    }

    /// Writes the row of a new instance and makes its VM: a fork of this template, or what the pool is to follow now.
    async fn begin(
        &self,
        world: &World,
        project: &ProjectId,
        template: Option<TemplateRow>,
        why: &str,
    ) -> Result<(), StoreError> {
        let Some(plan) = BuildPlan::load(&self.builder, project, false).await? else {
            return Ok(());
        };
        let recipe = template.as_ref().map_or(&plan.recipe, |template| &template.recipe);
        let memory_mib = u64::from(plan.shape.memory_mib);
        let mut new = NewInstance::new(project, recipe.clone(), memory_mib, why);
        new.started_by = Some(self.session.to_string());
        let running = self.tasks.begin_provision(&new.id);
        self.store.insert_instance(&new, world.now).await?;
        self.bucket().take();
        tracing::info!(instance = %new.id, %project, recipe = new.recipe, "making an instance");
        let boot = Boot {
            id: new.id,
            vm: new.vm,
            plan,
            purpose: new.purpose,
            interrupted_at: None,
            end: running.end.clone(),
            template,
        };
        self.spawn_provision(boot, running);
        Ok(())
    }

    /// Makes the VM of a row that is there already.
    async fn start(&self, instance: &InstanceId) -> Result<(), StoreError> {
        let store = &self.store;
        let Some(row) = store.instance(instance).await? else {
            return Ok(());
        };
        let renews = row.purpose == Purpose::Renewal;
        let Some(plan) = BuildPlan::load(&self.builder, &row.project, renews).await? else {
            return Ok(());
        };
        let template = if row.purpose.serves_claims() {
            // Since a claim ordered it, a push may have been built: a fork of that needs no checkout update.
            match store.template(&row.project, &plan.recipe).await? {
                None => store.template(&row.project, &row.recipe).await?,
                newest => newest,
            }
        } else {
            None
        };
        let recipe = template.as_ref().map_or(&plan.recipe, |template| &template.recipe);
        let running = self.tasks.begin_provision(instance);
        if !store.start_instance(instance, &self.session, recipe).await? {
            return Ok(());
        }
        self.bucket().take();
        cause::span(instance).in_scope(|| {
            tracing::info!(%instance, project = %row.project, purpose = %row.purpose, "making an instance");
        });
        let boot = Boot {
            id: row.id,
            vm: row.vm,
            plan,
            purpose: row.purpose,
            interrupted_at: row.interrupted_at,
            end: running.end.clone(),
            template,
        };
        self.spawn_provision(boot, running);
        Ok(())
    }

    /// The planner saw a VM missing in a list; the driver is asked about this one before it is believed.
    async fn fail(&self, instance: &InstanceId, generation: i64, failure: &Failure) -> Result<(), StoreError> {
        let Some(row) = self.store.instance(instance).await? else {
            return Ok(());
        };
        if failure.kind == FailureKind::VmLost {
            match self.driver.inspect(&row.vm).await {
                Ok(Some(VmState::Running | VmState::Paused)) | Err(_) => return Ok(()),
                // Halted, ended or gone.
                Ok(_) => {}
            }
        }
        if row.generation == generation {
            self.endings.give_up(&row, failure).await?;
        }
        Ok(())
    }

    async fn end_instance(
        &self,
        instance: &InstanceId,
        generation: i64,
        to: InstanceState,
        reason: &hearth_core::plan::Reason,
    ) -> Result<(), StoreError> {
        let (store, now) = (&self.store, Timestamp::now());
        let moved = if to == InstanceState::Retiring {
            let end = End::Retired(vm_ended(*reason));
            store.end_instance(instance, Some(generation), end, now).await?
        } else {
            store
                .move_instance(instance, to, Some(generation), why(*reason), now)
                .await?
        };
        if moved == Moved::Lost {
            return Ok(());
        }
        if let Some(row) = self.store.instance(instance).await? {
            tracing::info!(%instance, project = %row.project, reason = reason.as_str(), "ending an instance");
            self.endings.changed(&row.project, instance);
            self.spawn_teardown(row);
        }
        Ok(())
    }

    fn spawn_provision(&self, boot: Boot, running: Running) {
        let this = self.clone();
        let span = cause::boot_span(&boot.id, &boot.plan.project, boot.purpose.as_str());
        tokio::spawn(
            async move {
                let ended = tokio::select! {
                    biased;
                    () = running.cancel.cancelled() => None,
                    failure = end_after_patience(&running.end) => Some(Err(Stop::Failure(failure))),
                    ended = provision(&this.builder, &boot) => Some(ended),
                };
                if let Err(error) = this.finish_provision(&boot, ended).await {
                    // The row stays in `provisioning` without a task: the next pass removes it.
                    tracing::error!(%error, instance = %boot.id, "the end of a boot could not be written");
                }
                drop(running);
                let project = &boot.plan.project;
                if boot.template.is_none() {
                    // There may be a template now, and a waiting claim can have a fork of it made.
                    this.queues.notify_all(project);
                }
                this.endings.changed(project, &boot.id);
            }
            .instrument(span),
        );
    }

    async fn finish_provision(&self, boot: &Boot, ended: Option<Result<Provisioned, Stop>>) -> Result<(), StoreError> {
        let (id, store, live_logs) = (&boot.id, &self.store, &self.live_logs);
        match ended {
            // The request that stopped it has moved the row.
            None => self.tell_end(id).await?,
            Some(Ok(made)) => {
                if boot.purpose == Purpose::Renewal {
                    let plan = &boot.plan;
                    store.set_template_epoch(&plan.project, plan.epoch).await?;
                    tracing::info!(project = %plan.project, "a template is built");
                }
                store.set_instance_made(id, &made).await?;
                if store.instance_ready(id, Timestamp::now()).await? == Moved::Lost {
                    live_logs.ended(id, None, None);
                } else {
                    tracing::info!(instance = %id, "an instance is ready");
                    live_logs.ended(id, Some(InstanceStatus::Ready), None);
                }
            }
            // The server is ending, or the disk is full: the row stays as it is, and the next pass treats it as half made.
            Some(Err(Stop::Store(error))) => return Err(error),
            Some(Err(Stop::Failure(failure))) => {
                if failure.kind == FailureKind::Cancelled {
                    self.close_entries(id, &failure).await?;
                }
                let end = End::Failed(&failure);
                if store.end_instance(id, None, end, Timestamp::now()).await? == Moved::Lost {
                    self.tell_end(id).await?;
                } else {
                    tracing::warn!(instance = %id, kind = failure.kind.as_str(), reason = failure.reason.as_str(), "a boot failed");
                    live_logs.ended(id, Some(InstanceStatus::Failed), Some(failure.reason));
                }
            }
        }
        Ok(())
    }

    /// Destroys the VM of an instance that is retiring or deleting, then finishes its row.
    fn spawn_teardown(&self, row: InstanceRow) {
        let Some(entry) = self.tasks.begin_teardown(row.vm.as_str()) else {
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            this.tasks.cancel_provision(&row.id).await;
            this.connections.forget(&row.vm);
            this.pause.forget(&row.vm);
            let id = &row.id;
            match this.driver.destroy(&row.vm).await {
                Err(error) => {
                    tracing::warn!(%error, instance = %id, "a VM could not be destroyed; the next pass tries again")
                }
                Ok(()) => {
                    let done = match row.state {
                        InstanceState::Retiring => {
                            let now = Timestamp::now();
                            this.store
                                .move_instance(id, InstanceState::Archived, None, "its VM is gone", now)
                                .await
                                .map(drop)
                        }
                        _ => this.store.forget_instance(id).await,
                    };
                    if let Err(error) = done {
                        tracing::warn!(%error, instance = %id, "the end of an instance could not be written");
                    }
                    this.live_logs.ended(id, None, None);
                }
            }
            drop(entry);
            this.wake.wake();
        });
    }

    fn spawn_destroy_orphan(&self, vm: VmId) {
        let Some(entry) = self.tasks.begin_teardown(vm.as_str()) else {
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            tracing::info!(%vm, "destroying a VM that no row names");
            if let Err(error) = this.driver.destroy(&vm).await {
                tracing::warn!(%error, %vm, "a VM could not be destroyed; the next pass tries again");
            }
            drop(entry);
        });
    }
}
