//! Holds the VMs of claims to their projects' egress policies: at the hand-over, when a policy changes, and again after a failure. The
//! driver enforces them, outside of the VM; this says which one it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::egress::{EgressPolicy, PendingEgress};
use hearth_api::ids::{ProjectId, VmId};
use hearth_drivers::{Driver, DriverError, Locks};
use tokio_util::sync::CancellationToken;

use crate::store::{ClaimedVm, Store, StoreError};

/// How often VMs that are not held to their policy yet are tried again.
const ROUND: Duration = Duration::from_secs(3);
/// VMs at a time: each costs the host a helper program.
const AT_ONCE: usize = 4;

/// What came of the last attempt in a VM.
#[derive(Debug, Clone)]
enum Held {
    To(EgressPolicy),
    Failed(String),
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Egress {
    store: Store,
    driver: Arc<dyn Driver>,
    held: Arc<Mutex<HashMap<VmId, Held>>>,
    /// One change of a VM at a time: the last one reads the newest policy.
    locks: Locks<VmId>,
}

/// Why a VM is not held to its policy.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    /// The driver could not.
    #[error("it cannot be held to the project's egress policy: {0}")]
    Driver(#[from] DriverError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Egress {
    /// No VM is known to be held to anything.
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>) -> Self {
        Self {
            store,
            driver,
            held: Arc::default(),
            locks: Locks::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<VmId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM of the project is handed over: whether it had to be held to a policy. One that nobody has claimed before may reach everything
    /// public, which is what a project without a policy wants.
    pub async fn begin(&self, project: &ProjectId, vm: &VmId) -> Result<bool, NotHeld> {
        let is_set = self.is_set(project).await?;
        if is_set {
            self.hold(project, vm).await?;
        }
        Ok(is_set)
    }

    /// Whether the project says what its VMs may reach.
    pub async fn is_set(&self, project: &ProjectId) -> Result<bool, StoreError> {
        Ok(self.store.egress(project).await?.is_some())
    }

    /// Holds a VM to the policy that its project has now.
    async fn hold(&self, project: &ProjectId, vm: &VmId) -> Result<(), NotHeld> {
        let _alone = self.locks.lock(vm.clone()).await;
        let set = self.store.egress(project).await?;
        let policy = set.map(|(policy, _)| policy).unwrap_or_default();
        if matches!(self.held().get(vm), Some(Held::To(held)) if *held == policy) {
            return Ok(());
        }
        let done = self.driver.hold_egress(vm, &policy).await;
        let now = match &done {
            Ok(()) => Held::To(policy),
            Err(error) => Held::Failed(error.to_string()),
        };
        self.held().insert(vm.clone(), now);
        Ok(done?)
    }

    /// Holds all claimed VMs of a project to the policy that it has now; what fails is tried again later.
    pub async fn changed(&self, project: &ProjectId) -> Result<(), StoreError> {
        let claimed = self.store.claimed_vms_and_copies().await?;
        self.hold_all(claimed.into_iter().filter(|one| one.project == *project))
            .await;
        Ok(())
    }

    async fn hold_all(&self, vms: impl Iterator<Item = ClaimedVm>) {
        futures::stream::iter(vms)
            .for_each_concurrent(AT_ONCE, async |one| {
                if let Err(error) = self.hold(&one.project, &one.vm).await {
                    tracing::warn!(instance = %one.id, %error, "a claimed VM is not held to its egress policy; it is tried again");
                }
            })
            .await;
    }

    /// What a VM is held to, and what it was refused.
    pub async fn seen(&self, vm: &VmId) -> Result<hearth_drivers::Egress, DriverError> {
        self.driver.egress(vm).await
    }

    /// The claimed VMs of a project that are not held to this policy yet, and why.
    pub async fn pending(&self, project: &ProjectId, policy: &EgressPolicy) -> Result<Vec<PendingEgress>, StoreError> {
        let claimed = self.store.claimed_vms_and_copies().await?;
        let held = self.held();
        let pending = claimed
            .into_iter()
            .filter(|one| one.project == *project)
            .filter_map(|one| {
                let reason = match held.get(&one.vm) {
                    Some(Held::To(held)) if held == policy => return None,
                    Some(Held::Failed(reason)) => reason.clone(),
                    // Nobody has changed what a new VM may reach.
                    None if *policy == EgressPolicy::default() => return None,
                    Some(Held::To(_)) | None => "it is about to be".to_owned(),
                };
                let id = one.id.to_string();
                Some(PendingEgress { id, reason })
            });
        Ok(pending.collect())
    }

    /// Until the server stops: tries again where it failed, and after a start says to every VM of a project with a policy what that is.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "egress policies could not be read; it is tried again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        let claimed = self.store.claimed_vms_and_copies().await?;
        self.held().retain(|vm, _| claimed.iter().any(|one| one.vm == *vm));
        let mut with_policy = Vec::new();
        for one in claimed {
            if self.store.egress(&one.project).await?.is_some() {
                with_policy.push(one);
            }
        }
        self.hold_all(with_policy.into_iter()).await;
        Ok(())
    }
}
