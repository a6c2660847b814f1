//! Whether there is memory for a VM that is paused to the disk and is to be resumed. It costs none until then, so others may have taken what
//! it had.

use std::sync::Arc;

use hearth_api::ids::VmId;
use hearth_drivers::{Driver, DriverError};
use jiff::Timestamp;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::memory::Memory;
use crate::store::Store;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// Lets VMs have memory again, one at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    store: Store,
    driver: Arc<dyn Driver>,
    memory: Memory,
    /// What all VMs of the host may have together, MiB.
    limit_mib: u64,
    one: Arc<Mutex<()>>,
}

/// There is memory for one VM. Held until it runs, so that nobody counts without it.
#[derive(Debug)]
pub struct Admitted {
    admission: Admission,
    vm: VmId,
    _one: OwnedMutexGuard<()>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // What was measured is that it takes nothing.
        self.admission.memory.forget(&self.vm);
    }
}

impl Admission {
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>, memory: Memory, limit_mib: u64) -> Self {
        Self {
            store,
            driver,
            memory,
            limit_mib,
            one: Arc::default(),
        }
    }

    /// The VM was paused to the disk: that is measured anew.
    pub(super) fn note_saved(&self, vm: &VmId) {
        self.memory.forget(vm);
    }

    /// Lets a VM have memory again, if there is as much as it will count with.
    pub(super) async fn admit(&self, vm: &VmId) -> Result<Admitted, DriverError> {
        let one = Arc::clone(&self.one).lock_owned().await;
        let rows = self.store.all_instances(Timestamp::UNIX_EPOCH).await;
        let rows = rows.map_err(|error| {
            DriverError::retry("what the host's memory is used for cannot be read").caused_by(error)
        })?;
        self.memory.measure_claimed(&rows).await;
        let saved = self.driver.usage(vm).await?.saved_bytes.div_ceil(MIB);
        let taken: u64 = rows
            .iter()
            .filter(|row| row.vm != *vm)
            .map(|row| self.memory.counts_mib(row))
            .sum();
        let own = rows.iter().find(|row| row.vm == *vm);
        let needed = own.map_or(saved, |row| self.memory.would_count_mib(row, saved));
        if taken.saturating_add(needed) > self.limit_mib {
            return Err(DriverError::retry(format!(
                "the VM is paused to the disk, and there is no memory to resume it: it would count with {needed} MiB, and {taken} of the {} MiB \
                 that VMs may have on this host are taken (`hearth serve --memory`). Nothing of it is lost: release a VM, or pause another one \
                 with `hearth pause ID --to-disk`, and try again",
                self.limit_mib
            )));
        }
        Ok(Admitted {
            admission: self.clone(),
            vm: vm.clone(),
            _one: one,
        })
    }
}
