//! VMs of the pool stand still until somebody needs them. Whoever lets one stand still or go on is alone with it, and looks
//! at its row again: a VM that was claimed meanwhile is left alone.

use std::sync::PoisonError;

use hearth_api::ids::{InstanceId, VmId};
use hearth_core::state::InstanceState;
use hearth_drivers::DriverError;

use super::Reconciler;

/// Keeps a VM going for as long as somebody works in it.
pub struct Awake {
    reconciler: Reconciler,
    vm: VmId,
}

impl Drop for Awake {
    fn drop(&mut self) {
        let mut awake = self.reconciler.awake.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = awake.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                awake.remove(&self.vm);
            }
        }
        drop(awake);
        self.reconciler.wake();
    }
}

impl Reconciler {
    /// Lets a VM go on, and keeps it going until the guard is dropped.
    pub async fn keep_awake(&self, vm: &VmId) -> Result<Awake, DriverError> {
        {
            let mut awake = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
            *awake.entry(vm.clone()).or_default() += 1;
        }
        let guard = Awake {
            reconciler: self.clone(),
            vm: vm.clone(),
        };
        self.resume(vm).await?;
        Ok(guard)
    }

    /// Lets a VM go on.
    pub(super) async fn resume(&self, vm: &VmId) -> Result<(), DriverError> {
        if !self.context.driver.capabilities().pause {
            return Ok(());
        }
        let _alone = self.rest.lock(vm.clone()).await;
        self.context.driver.resume(vm).await
    }

    /// Lets the VM of a ready instance stand still, unless somebody works in it or has claimed it.
    pub(super) async fn let_rest(&self, id: &InstanceId) {
        let row = match self.context.store.instance(id).await {
            Ok(Some(row)) => row,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, instance = %id, "an instance could not be looked at"),
        };
        let _alone = self.rest.lock(row.vm.clone()).await;
        let used = self
            .awake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&row.vm);
        // Again: it may have been claimed while we waited.
        let ready = self
            .context
            .store
            .instance(id)
            .await
            .is_ok_and(|row| row.is_some_and(|row| row.state == InstanceState::Ready && !row.reserved));
        if used || !ready {
            return;
        }
        if let Err(error) = self.context.driver.pause(&row.vm).await {
            tracing::warn!(%error, instance = %id, "a ready VM could not be put to rest; the next pass tries again");
        }
    }
}
