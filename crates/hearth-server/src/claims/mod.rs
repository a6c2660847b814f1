//! Claims: one VM for one task. Nothing here decides how many VMs a pool has.
//!
//! * `claim.rs`: the loop, which reads the state, asks `hearth_core::claim` what to do next and does it.
//! * `queue.rs`: the order of the claims that wait. `reservation.rs`: what is made for a claim, and what becomes of it when the claim goes away.
//! * `handoff.rs`: takes a VM and makes it the task's own. `update_checkout.rs` moves its checkouts, `terminals.rs` starts its terminals.
//! * `trace.rs`: what a claim was offered and where its time went. `error.rs`: why there is no VM.
//! * `release_session.rs`: releases, by hand and with a session.
//! * `forks.rs`: copies of a claimed VM; `checkpoints.rs`: copies that are kept by name; `fork_error.rs`: why there are none. A claim from a
//!   checkpoint needs neither the loop nor the queue; its check of the key is in `checkpoints.rs`.

mod checkpoints;
mod claim;
mod error;
mod fork_error;
mod forks;
mod handoff;
mod queue;
mod release_session;
mod reservation;
mod terminals;
mod trace;
mod update_checkout;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_drivers::{Driver, Locks};
use jiff::Timestamp;

use crate::recipes::set_ups::SetUps;
use crate::recipes::target::Recipes;
use crate::repos::mirrors::Mirrors;
use crate::store::{ProjectRow, Store, StoreError};
use crate::vms::connections::Connections;
use crate::vms::egress::Egress;
use crate::vms::guest_requests::GuestRequests;
use crate::vms::host_keys::HostKeys;
use crate::vms::pause::Pause;
use crate::wake::Wake;

pub use claim::{ClaimTask, FIELDS_OF_A_KEY};
pub use error::ClaimError;
pub use fork_error::ForkError;
pub use forks::ForkOrder;
pub use queue::Queues;
pub use trace::explain_claim;

/// What keeps a pool from having more VMs: `pools/blockers.rs` records it, and claims ask.
#[async_trait]
pub trait Blockers: Debug + Send + Sync {
    /// As a message, as of the last pass.
    async fn blocker(&self, project: &ProjectRow) -> Result<Option<BlockerText>, StoreError>;

    /// What the boot that sets this recipe up is at, in a sentence: which command runs, and since when.
    async fn being_set_up(&self, project: &ProjectId, recipe: &str) -> Result<Option<String>, StoreError>;

    /// Whether this recipe is not built until a person repairs something, as of the last pass.
    fn needs_repair(&self, project: &ProjectId, recipe: &str) -> bool;
}

/// Memory and places for VMs that are taken: nobody else gets them until this is dropped.
pub type ReservedRoom = tokio::sync::OwnedMutexGuard<()>;

/// Whether there is room for VMs beside those that the pools plan: `pools/observe.rs` knows.
#[async_trait]
pub trait Capacity: Debug + Send + Sync {
    /// Takes room for so many more VMs of this size, all at once, or says why there is none.
    async fn reserve(
        &self,
        project: &ProjectId,
        memory_mib: u64,
        count: usize,
    ) -> Result<Result<ReservedRoom, String>, StoreError>;
}

/// What keeps a pool from having more VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockerText {
    pub message: String,
    /// When it is retried, where that is known.
    pub until: Option<Timestamp>,
}

/// Hands VMs over. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Claims(Arc<Parts>);

/// What claims work with.
#[derive(Debug)]
pub struct Parts {
    /// The rows.
    pub store: Store,
    /// What VMs can do.
    pub driver: Arc<dyn Driver>,
    /// Connections to the agents.
    pub connections: Connections,
    /// The repositories on the host.
    pub mirrors: Mirrors,
    /// What pools are made by.
    pub recipes: Recipes,
    /// What VMs were made by.
    pub set_ups: SetUps,
    /// The claims that wait.
    pub queues: Queues,
    /// Pauses and resumes VMs.
    pub pause: Pause,
    /// Wakes the pools' loop.
    pub wake: Wake,
    /// What keeps pools from having more VMs.
    pub blockers: Arc<dyn Blockers>,
    /// Whether there is room for forks.
    pub capacity: Arc<dyn Capacity>,
    /// RSA keys for forks with an SSH server.
    pub host_keys: HostKeys,
    /// Answers what is asked in claimed VMs.
    pub guest_requests: GuestRequests,
    /// Holds VMs to egress policies.
    pub egress: Egress,
    /// One request of a key at a time.
    pub keys: Locks<(ProjectId, String)>,
}

impl std::ops::Deref for Claims {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Claims {
    /// No claim is under way.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// An instance changed: the claims that it concerns check again, and the pools' loop.
    fn changed(&self, project: &ProjectId, instance: &InstanceId) {
        self.queues.notify(project, instance);
        self.wake.wake();
    }
}
