//! `kill -9` of the server while VMs are being made: nothing stays unseen, everything can be removed.

use std::path::PathBuf;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::{Driver, VmShape, VmSpec};

use crate::contract::Rig;
use crate::qemu::{Qemu, open};
use crate::support::{eventually, processes_with};

const SOON: Duration = Duration::from_secs(60);
/// VMs that the server is making when it is killed.
const AT_ONCE: usize = 3;

/// Not a test: the server that [`a_killed_server_leaves_nothing_that_its_successor_does_not_find`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn server_to_be_killed() {
    let argument = |name: &str| std::env::var(name).unwrap();
    let driver = open(PathBuf::from(argument("CRASH_DATA")), &argument("CRASH_LABEL"));
    let shape = VmShape {
        vcpus: 1,
        memory_mib: 512,
        disk_gib: 7,
    };
    loop {
        let make = |_| {
            let (driver, image) = (driver.clone(), argument("CRASH_IMAGE"));
            async move {
                let spec = VmSpec {
                    id: VmId::generate(),
                    image: Some(image),
                    shape,
                    checkpointable: false,
                };
                driver.create(&spec).await.unwrap();
                driver.destroy(&spec.id).await.unwrap();
            }
        };
        futures::future::join_all((0..AT_ONCE).map(make)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_nothing_that_its_successor_does_not_find() {
    let rig = Qemu::new().await;
    // At moments that fall into different parts of the making: the network, the folder, the disk, the process.
    for moment in [0, 30, 70, 120, 200, 350] {
        let mut server = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "qemu_crash::server_to_be_killed"])
            .env("CRASH_DATA", rig.data())
            .env("CRASH_LABEL", rig.label())
            .env("CRASH_IMAGE", rig.image())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let vms = rig.data().join("vms");
        eventually("the server makes VMs", SOON, || async {
            std::fs::read_dir(&vms).unwrap().next().is_some().then_some(())
        })
        .await;
        // the moment of a disturbance
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill().await.unwrap();

        let next = rig.reopen();
        // A process that the killed server had just started may still be on its way to become QEMU.
        eventually("nothing is left", SOON, || async {
            for vm in next.list().await.unwrap() {
                next.destroy(&vm.id).await.unwrap();
            }
            let qemu = processes_with(&format!("hearth/{}/", rig.label()));
            let files = std::fs::read_dir(&vms).unwrap().count();
            (qemu.is_empty() && files == 0).then_some(())
        })
        .await;
        if moment == 200 {
            // The network's helpers may be lost too.
            std::fs::write(rig.data().join("network/network.json"), "").unwrap();
        }
    }
    rig.finish().await;
}
