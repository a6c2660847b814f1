//! `kill -9` of the server while VMs are being made: nothing stays unseen, everything can be removed.

use std::path::PathBuf;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::{CheckDepth, CheckpointKey, CheckpointSpec, Driver, ForkPurpose, ForkStart, VmShape, VmSpec};

use crate::contract::Rig;
use crate::contract_forks::{fork, freezable, freeze, key};
use crate::qemu::{Qemu, open};
use crate::support::{eventually, processes_with};

const SOON: Duration = Duration::from_secs(60);
/// VMs that the server is making when it is killed.
const AT_ONCE: usize = 3;

/// Not a test: the server that [`a_killed_server_leaves_nothing_that_its_successor_does_not_find`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: started by another test"]
async fn not_a_test_server_to_be_killed() {
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

/// Starts one of the servers that are not tests and kills it so many milliseconds after its first VM has come to be.
async fn kill_at(rig: &Qemu, which: &str, (name, value): (&str, &str), moment: u64) {
    let mut server = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", &format!("qemu_crash::{which}")])
        .env("CRASH_DATA", rig.data())
        .env("CRASH_LABEL", rig.label())
        .env(name, value)
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
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_killed_server_leaves_nothing_that_its_successor_does_not_find() {
    let rig = Qemu::new().await;
    // At moments that fall into different parts of the making: the network, the folder, the disk, the process.
    for moment in [0, 30, 70, 120, 200, 350] {
        kill_at(
            &rig,
            "not_a_test_server_to_be_killed",
            ("CRASH_IMAGE", &rig.image()),
            moment,
        )
        .await;
        let vms = rig.data().join("vms");
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

/// Not a test: the server that [`a_server_killed_while_it_freezes_and_forks_leaves_whole_checkpoints_or_none`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: started by another test"]
async fn not_a_test_forking_server_to_be_killed() {
    let argument = |name: &str| std::env::var(name).unwrap();
    let driver = open(PathBuf::from(argument("CRASH_DATA")), &argument("CRASH_LABEL"));
    let from: CheckpointKey = argument("CRASH_KEY").parse().unwrap();
    for round in 0..u64::MAX {
        let (instance, build) = (VmId::generate(), VmId::generate());
        let wanted = fork(&instance, &from, ForkPurpose::Instance, ForkStart::Paused);
        let made = driver.fork(&wanted);
        let worked = async {
            driver
                .fork(&fork(&build, &from, ForkPurpose::Build, ForkStart::Running))
                .await
                .unwrap();
            let key: CheckpointKey = format!("{round:032x}").parse().unwrap();
            let wanted = CheckpointSpec {
                idle: Duration::ZERO,
                ..freeze(&key, Some(&from))
            };
            driver.checkpoint(&build, &wanted).await.unwrap();
            driver.destroy(&build).await.unwrap();
            driver.remove_checkpoint(&key).await.unwrap();
        };
        let (made, ()) = tokio::join!(made, worked);
        made.unwrap();
        driver.destroy(&instance).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_server_killed_while_it_freezes_and_forks_leaves_whole_checkpoints_or_none() {
    let rig = Qemu::new().await;
    let (base, client) = freezable(&rig).await;
    let from = key("f0");
    rig.driver().checkpoint(&base, &freeze(&from, None)).await.unwrap();
    drop(client);
    rig.driver().destroy(&base).await.unwrap();
    let vms = rig.data().join("vms");
    // At moments that fall into different parts: the copy of the memory, the start, the freezing, the summing, the removal.
    for moment in [0, 60, 130, 210, 300, 400, 550, 750] {
        kill_at(
            &rig,
            "not_a_test_forking_server_to_be_killed",
            ("CRASH_KEY", from.as_str()),
            moment,
        )
        .await;
        let next = rig.reopen();
        eventually("no VM is left", SOON, || async {
            for vm in next.list().await.unwrap() {
                next.destroy(&vm.id).await.unwrap();
            }
            let qemu = processes_with(&format!("hearth/{}/", rig.label()));
            (qemu.is_empty() && std::fs::read_dir(&vms).unwrap().count() == 0).then_some(())
        })
        .await;
        // The driver's opening has swept what was unfinished; what is there is whole.
        let infos = next.checkpoints().await.unwrap();
        let folders = std::fs::read_dir(rig.data().join("templates")).unwrap().count();
        assert_eq!(folders, infos.len(), "something unfinished is left");
        for info in &infos {
            next.check_checkpoint(&info.key, CheckDepth::Full).await.unwrap();
            if info.key != from {
                next.remove_checkpoint(&info.key).await.unwrap();
            }
        }
        assert!(infos.iter().any(|info| info.key == from));
    }
    rig.driver().remove_checkpoint(&from).await.unwrap();
    rig.finish().await;
}
