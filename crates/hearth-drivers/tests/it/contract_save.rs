//! What every driver promises about VMs that are paused to the disk. Part of the contract suite.

use hearth_api::ids::VmId;
use hearth_drivers::{Driver, DriverError, VmState};

use crate::contract::{Rig, agent, spec};

async fn state(driver: &dyn Driver, id: &VmId) -> Option<VmState> {
    let state = driver.inspect(id).await.unwrap();
    let listed = driver.list().await.unwrap();
    assert_eq!(listed.iter().find(|vm| vm.id == *id).map(|vm| vm.state), state);
    state
}

pub(crate) async fn a_vm_paused_to_the_disk_costs_no_memory_and_continues(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    if !driver.capabilities().pause_to_disk {
        return a_driver_that_cannot_says_so(rig).await;
    }
    let unknown = driver.save(&id).await;
    assert!(matches!(unknown, Err(DriverError::Permanent { .. })), "{unknown:?}");
    driver.create(&spec(rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    client.write_file("/root/before", 0o644, "before").await.unwrap();
    let boot = client.health().await.unwrap().boot_id;
    for paused_before in [false, true] {
        if paused_before {
            driver.pause(&id).await.unwrap();
        }
        for _ in 0..2 {
            driver.save(&id).await.unwrap();
            assert_eq!(state(&*driver, &id).await, Some(VmState::Saved));
        }
        // It is paused already, and asking for the same VM again makes no other one.
        driver.pause(&id).await.unwrap();
        driver.create(&spec(rig, &id)).await.unwrap();
        let usage = driver.usage(&id).await.unwrap();
        assert!(usage.private_bytes == 0 && usage.saved_bytes > 0, "{usage:?}");
        assert!(driver.connect(&id).await.is_err());
        // The next server finds it, and continues it.
        let next = rig.reopen();
        assert_eq!(state(&*next, &id).await, Some(VmState::Saved));
        for _ in 0..2 {
            next.resume(&id).await.unwrap();
            assert_eq!(state(&*next, &id).await, Some(VmState::Running));
        }
        let client = agent(&*next, &id).await;
        assert_eq!(client.health().await.unwrap().boot_id, boot, "it has not booted again");
        let file = client.read_file("/root/before").await.unwrap();
        assert_eq!(file.collect(1000).await.unwrap(), b"before");
        let usage = next.usage(&id).await.unwrap();
        assert!(usage.private_bytes > 0 && usage.saved_bytes == 0, "{usage:?}");
    }
    // One that is destroyed leaves nothing.
    driver.save(&id).await.unwrap();
    driver.destroy(&id).await.unwrap();
    assert_eq!(state(&*driver, &id).await, None);
}

pub(crate) async fn a_vm_that_ended_cannot_be_paused_to_the_disk(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    driver.create(&spec(rig, &id)).await.unwrap();
    rig.kill(&id).await;
    let saved = driver.save(&id).await;
    assert!(matches!(saved, Err(DriverError::Permanent { .. })), "{saved:?}");
    assert_eq!(state(&*driver, &id).await, Some(VmState::Stopped));
    driver.destroy(&id).await.unwrap();
}

/// Where the capability is absent it is refused for good, and the VM is left as it was.
async fn a_driver_that_cannot_says_so(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    driver.create(&spec(rig, &id)).await.unwrap();
    let saved = driver.save(&id).await;
    assert!(matches!(saved, Err(DriverError::Permanent { .. })), "{saved:?}");
    assert_eq!(state(&*driver, &id).await, Some(VmState::Running));
    driver.destroy(&id).await.unwrap();
}
