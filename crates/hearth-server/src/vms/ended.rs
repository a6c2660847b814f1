//! Claimed VMs that have ended by themselves: their process is gone. That is noted once, with why, and nothing is taken away: the
//! claim is its owner's to release, and the disk may hold work.

use std::sync::Arc;
use std::time::Duration;

use hearth_core::state::InstanceState;
use hearth_drivers::{Driver, VmState};
use jiff::Timestamp;

use crate::store::{InstanceRow, Store, StoreError};
use crate::vms::connections::Connections;
use crate::wake::Wake;

/// How long the host may take to say whether a VM is there.
const HOST_CHECK: Duration = Duration::from_secs(5);

/// When it was noticed that a VM had ended, and why it did.
pub type VmEnd = (Timestamp, String);

/// Notes the ends of claimed VMs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct VmEnds {
    store: Store,
    driver: Arc<dyn Driver>,
    connections: Connections,
    wake: Wake,
}

impl VmEnds {
    /// `wake`: who counts what VMs use learns of it.
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>, connections: Connections, wake: Wake) -> Self {
        Self {
            store,
            driver,
            connections,
            wake,
        }
    }

    /// Looks at a claimed VM; its end, when it has ended. A host that does not say whether it is there says nothing.
    pub async fn check(&self, row: &InstanceRow) -> Result<Option<VmEnd>, StoreError> {
        if row.state != InstanceState::Claimed || row.vm_ended.is_some() || row.being_forked {
            return Ok(row.vm_ended.clone());
        }
        let seen = tokio::time::timeout(HOST_CHECK, self.driver.inspect(&row.vm)).await;
        if !matches!(seen, Ok(Ok(Some(VmState::Stopped) | None))) {
            return Ok(None);
        }
        let (why, now) = (self.connections.how_it_ended(&row.vm).await, Timestamp::now());
        if !self.store.note_vm_ended(&row.id, &why, now).await? {
            // Another call was first, or it was released meanwhile.
            let known = self.store.instance(&row.id).await?;
            return Ok(known.and_then(|row| row.vm_ended).or(Some((now, why))));
        }
        tracing::error!(instance = %row.id, project = %row.project, "a claimed VM has ended: {why}; its claim stays until it is released");
        self.connections.forget(&row.vm);
        self.wake.wake();
        Ok(Some((now, why)))
    }
}

/// What its owner is told of a VM that has ended.
#[must_use]
pub fn ended_message(row: &InstanceRow, end: &VmEnd) -> String {
    let (at, why) = end;
    format!(
        "the VM has ended, as was noticed at {at:.0}: {why}. Nothing that ran in it comes back: release it with `hearth release {}` and \
         claim another one",
        row.id
    )
}
