//! Ready VMs are paused until they are needed. A task that pauses or resumes one holds its lock, and reads its row again: a VM
//! that was claimed meanwhile is left alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::{InstanceId, VmId};
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use hearth_drivers::{Driver, DriverError, Locks};

use crate::store::Store;
use crate::wake::Wake;

/// Pauses and resumes VMs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pause {
    store: Store,
    driver: Arc<dyn Driver>,
    wake: Wake,
    /// One lock per VM, held while it is paused or resumed.
    locks: Locks<VmId>,
    /// How many work in VMs that would be paused otherwise.
    used: Arc<Mutex<HashMap<VmId, usize>>>,
}

/// Keeps a VM running for as long as a client works in it.
#[derive(Debug)]
pub struct ResumedVm {
    pause: Pause,
    vm: VmId,
}

impl Drop for ResumedVm {
    fn drop(&mut self) {
        let mut used = self.pause.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = used.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.vm);
            }
        }
        drop(used);
        self.pause.wake.wake();
    }
}

impl Pause {
    /// No client works in any VM yet.
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>, wake: Wake) -> Self {
        Self {
            store,
            driver,
            wake,
            locks: Locks::default(),
            used: Arc::default(),
        }
    }

    /// Resumes a VM, and keeps it running until the guard is dropped.
    pub async fn keep_resumed(&self, vm: &VmId) -> Result<ResumedVm, DriverError> {
        {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            *used.entry(vm.clone()).or_default() += 1;
        }
        let guard = ResumedVm {
            pause: self.clone(),
            vm: vm.clone(),
        };
        self.resume(vm).await?;
        Ok(guard)
    }

    /// Resumes a VM.
    pub async fn resume(&self, vm: &VmId) -> Result<(), DriverError> {
        if !self.driver.capabilities().pause {
            return Ok(());
        }
        let _alone = self.locks.lock(vm.clone()).await;
        self.driver.resume(vm).await
    }

    /// Pauses the VM of a ready instance, unless a client works in it or has claimed it.
    pub async fn pause(&self, id: &InstanceId) {
        let row = match self.store.instance(id).await {
            Ok(Some(row)) => row,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, instance = %id, "an instance could not be read"),
        };
        let _alone = self.locks.lock(row.vm.clone()).await;
        let used = self
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&row.vm);
        // Again: it may have been claimed while we waited.
        let ready =
            self.store.instance(id).await.is_ok_and(|row| {
                row.is_some_and(|row| row.state == InstanceState::Ready && row.purpose != Purpose::Claim)
            });
        if used || !ready {
            return;
        }
        if let Err(error) = self.driver.pause(&row.vm).await {
            tracing::warn!(%error, instance = %id, "a ready VM could not be paused; the next pass tries again");
        }
    }
}
