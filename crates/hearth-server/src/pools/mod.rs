//! The loop that makes the world as the pools wish it: observe → plan → act. A wake carries nothing; every pass reads
//! everything anew; the timer is the retry.

mod act;
mod cancel;
mod gc;
mod leader;
mod memory;
mod observe;
mod probe;
mod status;
mod take_over;
mod tasks;
mod tokens;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::plan::decide;
use hearth_core::world::{Limits, World};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::builds::Context;
use crate::claims::Queues;
use crate::options::ServeOptions;
use crate::recipes::set_ups::SetUps;
use crate::store::{NewInstance, ProjectRow, StoreError};
use crate::vms::pause::Pause;
use crate::wake::Wake;

pub use cancel::Ended;
pub use gc::KeptCheckpoint;
use tasks::Tasks;
use tokens::Bucket;

/// Who waits for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Somebody tests the set-up.
    Test {
        /// Stages that are frozen already need not run.
        use_cache: bool,
    },
    /// The template has become old.
    Renewal,
}

/// Ended claims are remembered this long, so that a repeated key is recognised.
const CLAIMS_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// The loop and its helpers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reconciler(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    context: Context,
    limits: Limits,
    /// What may still be begun; fills up with time.
    tokens: Mutex<Bucket>,
    /// Time between two passes when nobody wakes the loop.
    tick: Duration,
    /// Names this server process; rows that another one began are half made.
    session: String,
    tasks: Tasks,
    wake: Wake,
    /// The claims that wait: told when an instance changes.
    queues: Queues,
    pause: Pause,
    set_ups: SetUps,
    /// What checkpoints may take on the disk.
    template_disk_bytes: u64,
    /// An older template is renewed.
    template_max_age: SignedDuration,
    /// What passes leave for those who ask why.
    notes: Mutex<status::Notes>,
    /// The controller's lease, and the clock.
    lead: Mutex<leader::Lead>,
    /// How ready VMs answer.
    probing: Mutex<probe::Probes>,
    /// How often a ready VM is asked whether it answers; zero: never.
    probe_interval: Duration,
    /// How long a VM that runs has to answer.
    probe_patience: Duration,
    /// What claimed VMs use.
    measured: Mutex<memory::Measures>,
    /// Share of what a claimed VM may still take that it counts with, percent.
    claimed_reserve: u8,
    /// What is known of the checkpoints on the disk.
    keeping: Mutex<gc::Keeping>,
    /// The keeper is to come at once.
    keep_soon: Notify,
}

impl std::ops::Deref for Reconciler {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Reconciler {
    /// At rest until [`Reconciler::run`].
    #[must_use]
    pub fn new(
        context: Context,
        queues: Queues,
        pause: Pause,
        set_ups: SetUps,
        wake: Wake,
        options: &ServeOptions,
    ) -> Self {
        Self(Arc::new(Inner {
            context,
            limits: Limits {
                max_vms: options.max_vms,
                tenant_vms: options.tenant_vms,
                memory_mib: options.memory_mib,
                concurrent_provisions: options.provision_concurrency.max(1),
                concurrent_forks: options.fork_concurrency.max(1),
                tokens: 0,
            },
            tokens: Mutex::new(Bucket::full()),
            tick: options.tick,
            session: uuid::Uuid::now_v7().simple().to_string(),
            tasks: Tasks::default(),
            wake,
            queues,
            pause,
            set_ups,
            notes: Mutex::default(),
            lead: Mutex::default(),
            probing: Mutex::default(),
            probe_interval: options.probe_interval,
            probe_patience: options.probe_patience,
            measured: Mutex::default(),
            claimed_reserve: options.claimed_reserve,
            keeping: Mutex::default(),
            keep_soon: Notify::new(),
            template_disk_bytes: options.template_disk_mib << 20,
            template_max_age: SignedDuration::try_from(options.template_max_age).unwrap_or(SignedDuration::MAX),
        }))
    }

    /// What runs work with.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    fn tokens(&self) -> MutexGuard<'_, Bucket> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed: look soon.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Passes until the server stops. VMs and half-made work stay as they are: the next server goes on.
    pub async fn run(&self, stop: CancellationToken) {
        if let Err(error) = self.take_lead().await {
            tracing::error!(%error, "the controller's lease could not be taken; the first pass tries again");
        }
        if let Err(error) = self.take_over().await {
            tracing::error!(%error, "boots that were interrupted cannot continue; they start again");
        }
        loop {
            self.pass().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.woken() => {}
                () = tokio::time::sleep(self.tick) => {}
            }
        }
        self.give_up_lead().await;
    }

    async fn pass(&self) {
        let began = std::time::Instant::now();
        let world = match self.world().await {
            Ok(Some(world)) => world,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the pools could not be read; the next pass tries again");
                return;
            }
        };
        let (pools, observed) = (world.pools.len(), began.elapsed());
        let decision = decide(&world);
        tracing::debug!(pools, ?observed, decided = ?began.elapsed() - observed, actions = decision.actions.len(), "a pass");
        self.note_pass(&world, &decision);
        for action in &decision.actions {
            if let Err(error) = self.act(&world, action).await {
                tracing::error!(%error, ?action, "an action could not be done; the next pass tries again");
            }
        }
        self.context.store.refill_reserve();
        if let Err(error) = self.context.store.forget_claims(world.now - CLAIMS_KEPT).await {
            tracing::warn!(%error, "old claims could not be removed");
        }
    }

    /// What this pass decides on; `None` while another server does.
    async fn world(&self) -> Result<Option<World>, StoreError> {
        let now = Timestamp::now();
        self.look_at_clock(now).await?;
        if !self.leads(now).await? {
            return Ok(None);
        }
        self.observe(now).await.map(Some)
    }

    /// An instance changed: the claims that it concerns look again, and the loop.
    fn changed(&self, project: &ProjectId, instance: &InstanceId) {
        self.queues.notify(project, instance);
        self.wake();
    }

    /// Writes the row of an instance that somebody waits for (a test boot, a renewal); the loop starts it. The caller chooses
    /// the id, so that it can clean up after a call whose end it did not see.
    pub async fn order_instance(&self, id: &InstanceId, project: &ProjectRow, order: Order) -> Result<(), StoreError> {
        let pool = self.context.store.pool(&project.id).await?;
        let recipe = self.context.wish(project, pool.as_ref()).await?.recipe;
        let shape = self.context.sizes.shape(project.vm_size);
        let new = NewInstance {
            id: id.clone(),
            is_test: matches!(order, Order::Test { .. }),
            is_build: order == Order::Renewal,
            use_cache: order != Order::Test { use_cache: false },
            ..NewInstance::new(&project.id, recipe, u64::from(shape.memory_mib))
        };
        self.context.store.insert_instance(&new, Timestamp::now()).await?;
        self.wake();
        Ok(())
    }
}
