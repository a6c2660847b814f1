//! Holds the VMs of claims to their projects' egress policies: at the hand-over, when a policy changes, and again after a failure. The
//! driver enforces them, outside of the VM; this says which one it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::egress::{EgressMode, EgressPolicy, PendingEgress};
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::values::{EgressHost, EgressNetwork};
use hearth_drivers::{Driver, DriverError, Locks, closed_network};
use ipnet::Ipv4Net;
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
        let is_set = self.is_set(project, vm).await?;
        if is_set {
            self.hold(project, vm).await?;
        }
        Ok(is_set)
    }

    /// Whether the project says what its VMs may reach, or the claim of this one does.
    pub async fn is_set(&self, project: &ProjectId, vm: &VmId) -> Result<bool, StoreError> {
        self.store.has_egress(project, vm).await
    }

    /// What a VM is to be held to.
    async fn policy(&self, project: &ProjectId, vm: &VmId) -> Result<EgressPolicy, StoreError> {
        let set = self.store.egress(project).await?;
        let of_project = set.map(|(policy, _)| policy).unwrap_or_default();
        Ok(match self.store.claim_egress(vm).await? {
            Some(of_claim) => narrowed(&of_project, of_claim),
            None => of_project,
        })
    }

    /// Sets what one claim may reach at most, and holds its VM to it.
    pub async fn narrow(
        &self,
        instance: &InstanceId,
        project: &ProjectId,
        vm: &VmId,
        policy: Option<&EgressPolicy>,
    ) -> Result<(), NotHeld> {
        self.store.put_claim_egress(instance, policy).await?;
        self.hold(project, vm).await
    }

    /// Holds a VM to the policy that its project has now.
    async fn hold(&self, project: &ProjectId, vm: &VmId) -> Result<(), NotHeld> {
        let _alone = self.locks.lock(vm.clone()).await;
        let policy = self.policy(project, vm).await?;
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

    /// A copy is claimed before it is made, and a VM can end; what is not known counts as there.
    async fn is_there(&self, vm: &VmId) -> bool {
        let listed = self.driver.list().await;
        listed.map_or(true, |all| all.iter().any(|one| one.id == *vm))
    }

    async fn hold_all(&self, vms: impl Iterator<Item = ClaimedVm>) {
        futures::stream::iter(vms)
            .for_each_concurrent(AT_ONCE, async |one| {
                if let Err(error) = self.hold(&one.project, &one.vm).await
                    && self.is_there(&one.vm).await
                {
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
            if self.is_set(&one.project, &one.vm).await? {
                with_policy.push(one);
            }
        }
        self.hold_all(with_policy.into_iter()).await;
        Ok(())
    }
}

/// What both policies let through. A claim opens nothing that its project does not.
fn narrowed(project: &EgressPolicy, claim: EgressPolicy) -> EgressPolicy {
    if claim.mode == EgressMode::Open {
        return project.clone();
    }
    let named = |host: &EgressHost| project.allows_name(host.as_str()) || project.hosts.contains(host);
    let inside = |network: &EgressNetwork| {
        let opened = project.cidrs.iter().filter_map(EgressNetwork::net);
        let within = |net: Ipv4Net| opened.clone().any(|outer| outer.contains(&net));
        match (network.net(), project.mode) {
            (None, _) => false,
            (Some(net), EgressMode::Allow) => within(net),
            (Some(net), EgressMode::Open) => within(net) || !is_closed(net),
        }
    };
    EgressPolicy {
        mode: EgressMode::Allow,
        hosts: claim.hosts.into_iter().filter(named).collect(),
        cidrs: claim.cidrs.into_iter().filter(inside).collect(),
    }
}

/// Whether a network lies within one that is closed to VMs: only a project opens it. One of which the host cannot tell is taken for closed.
fn is_closed(net: Ipv4Net) -> bool {
    closed_network(net).map_or(true, |closed| closed.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: EgressMode, hosts: &[&str], cidrs: &[&str]) -> EgressPolicy {
        EgressPolicy {
            mode,
            hosts: hosts.iter().map(|host| (*host).try_into().unwrap()).collect(),
            cidrs: cidrs.iter().map(|cidr| (*cidr).try_into().unwrap()).collect(),
        }
    }

    #[test]
    fn claim_opens_nothing_that_its_project_does_not() {
        use EgressMode::{Allow, Open};
        let wants = policy(
            Allow,
            &["a.example.org", "example.com"],
            &["10.1.0.0/16", "203.0.113.0/24"],
        );
        // Clouds have their metadata there.
        let closed = policy(Allow, &[], &["168.63.129.16/32", "192.0.0.0/24", "198.18.0.0/15"]);
        assert_eq!(narrowed(&policy(Open, &[], &[]), closed), policy(Allow, &[], &[]));
        let of = |project: &EgressPolicy| narrowed(project, wants.clone());
        assert_eq!(
            of(&policy(Open, &[], &[])),
            policy(Allow, &["a.example.org", "example.com"], &["203.0.113.0/24"])
        );
        assert_eq!(of(&policy(Open, &[], &["10.0.0.0/8"])), wants);
        assert_eq!(
            of(&policy(Allow, &["*.example.org"], &["203.0.0.0/16"])),
            policy(Allow, &["a.example.org"], &["203.0.113.0/24"])
        );
        let closed = policy(Allow, &[], &[]);
        assert_eq!(of(&closed), closed);
        assert_eq!(narrowed(&closed, policy(Open, &[], &[])), closed);
    }
}
