//! Claims: one VM for one task. A claim's way: `claim.rs` looks, asks `hearth_core::claim` what to do next and does it; `handoff.rs`
//! takes a VM and makes it the task's own; `update_checkout.rs` moves its checkouts; `queue.rs` keeps the order of those that wait.
//! Nothing here decides how many VMs a pool has.

mod claim;
mod error;
mod handoff;
mod queue;
mod reservation;
mod trace;
mod update_checkout;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_drivers::Locks;
use jiff::Timestamp;

use crate::builds::Context;
use crate::recipes::set_ups::SetUps;
use crate::store::{ProjectRow, StoreError};
use crate::vms::pause::Pause;
use crate::wake::Wake;

pub use claim::{ClaimTask, FIELDS_OF_A_KEY};
pub use error::ClaimError;
pub use queue::Queues;
pub use trace::explain_claim;

/// What keeps a pool from having more VMs: whoever plans for the pools tells, and claims ask.
#[async_trait]
pub trait Blockers: Debug + Send + Sync {
    /// In a sentence, as of the last pass.
    async fn blocker(&self, project: &ProjectRow) -> Result<Option<Blocker>, StoreError>;

    /// Whether this recipe is not built until a person repairs something, as of the last pass.
    fn needs_repair(&self, project: &ProjectId, recipe: &str) -> bool;
}

/// What keeps a pool from having more VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// For a person.
    pub sentence: String,
    /// When it is tried again by itself, where that is known.
    pub until: Option<Timestamp>,
}

/// Hands VMs over. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Claims(Arc<Inner>);

/// What claims work with.
#[derive(Debug)]
pub struct Inner {
    context: Context,
    /// The claims that wait.
    queues: Queues,
    pause: Pause,
    set_ups: SetUps,
    wake: Wake,
    blockers: Arc<dyn Blockers>,
    /// One request of a key at a time.
    keys: Locks<(ProjectId, String)>,
}

impl std::ops::Deref for Claims {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Claims {
    /// No claim is under way.
    #[must_use]
    pub fn new(
        context: Context,
        queues: Queues,
        pause: Pause,
        set_ups: SetUps,
        wake: Wake,
        blockers: Arc<dyn Blockers>,
    ) -> Self {
        Self(Arc::new(Inner {
            context,
            queues,
            pause,
            set_ups,
            wake,
            blockers,
            keys: Locks::default(),
        }))
    }

    /// An instance changed: the claims that it concerns look again, and the pools' loop.
    fn changed(&self, project: &ProjectId, instance: &InstanceId) {
        self.queues.notify(project, instance);
        self.wake.wake();
    }
}
