//! Pausing real guests to the disk: what only a real VM can break.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hearth_api::ids::VmId;
use hearth_drivers::{Driver, DriverError, ForkPurpose, ForkStart, VmState};
use hearth_guest::client::AgentClient;

use crate::contract::{Rig, agent, spec};
use crate::contract_forks::{fork, freezable, freeze, key};
use crate::qemu::{Qemu, open};
use crate::qemu_forks::{background, print};
use crate::support::{eventually, processes_with};

const SOON: Duration = Duration::from_secs(60);
/// Room for a VM and what must stay free.
const SMALL_DISK: &str = "3G";

/// A process that counts into a file that has no name any more, and one that listens.
async fn work(client: &AgentClient) -> u32 {
    let count = "exec 3>/root/open; rm /root/open; echo begun >&3; n=0; while :; do n=$((n+1)); echo $n >/run/count; sleep 0.05; done";
    let counts = background(client, count).await;
    background(client, "cd /etc && exec python3 -m http.server 8000").await;
    print(client, GET).await;
    counts
}

const GET: &str = "curl --silent --fail --max-time 20 --retry 5 --retry-connrefused http://127.0.0.1:8000/hostname";

async fn count(client: &AgentClient) -> u64 {
    // It is empty for a moment each time it is written.
    print(
        client,
        "until n=$(cat /run/count) && [ -n \"$n\" ]; do sleep 0.01; done; echo $n",
    )
    .await
    .parse()
    .unwrap()
}

/// Pauses it to the disk and resumes it; what was going on in it is going on.
async fn there_and_back(rig: &Qemu, id: &VmId, client: AgentClient, counts: u32, what: &str) -> AgentClient {
    let driver = rig.driver();
    let before = count(&client).await;
    let folder = rig.data().join("vms").join(id.as_str());
    let name = format!("/{id}");
    let begin = Instant::now();
    driver.save(id).await.unwrap();
    let saved = begin.elapsed();
    assert_eq!(driver.inspect(id).await.unwrap(), Some(VmState::Saved));
    assert!(processes_with(&name).is_empty(), "its process has ended");
    let bytes = driver.usage(id).await.unwrap().saved_bytes;
    let begin = Instant::now();
    driver.resume(id).await.unwrap();
    let resumed = begin.elapsed();
    let client = agent(&*driver, id).await;
    let answers = begin.elapsed();
    println!(
        "{what}: paused to the disk in {saved:?} ({} MiB), resumed in {resumed:?}, its agent answers after {answers:?}",
        bytes >> 20
    );
    for file in ["memory", "memory.part"] {
        assert!(!folder.join(file).exists(), "{file} is left");
    }
    let after = count(&client).await;
    assert!(after >= before, "{after} after {before}");
    eventually("it counts", SOON, || async {
        (count(&client).await > after).then_some(())
    })
    .await;
    print(
        &client,
        &format!("kill -0 {counts} && grep -q begun /proc/{counts}/fd/3"),
    )
    .await;
    print(&client, GET).await;
    // Its disk and the way out.
    print(
        &client,
        "echo after >/root/after && sync && grep -q after /root/after && rm /root/after",
    )
    .await;
    client
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_process_its_listener_and_its_open_file_survive_a_pause_to_the_disk() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    // One that was made from the image.
    let id = VmId::generate();
    driver.create(&spec(&rig, &id)).await.unwrap();
    let mut client = agent(&*driver, &id).await;
    let counts = work(&client).await;
    for _ in 0..2 {
        client = there_and_back(&rig, &id, client, counts, "made from the image").await;
    }
    drop(client);
    driver.destroy(&id).await.unwrap();
    // One that can be frozen, before and after it was: its memory is in a file of its own, and then its disk has another layer.
    let (base, mut client) = freezable(&rig).await;
    let counts = work(&client).await;
    client = there_and_back(&rig, &base, client, counts, "with memory in a file").await;
    let template = key("5a");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    client = there_and_back(&rig, &base, client, counts, "after a checkpoint").await;
    let second = key("5b");
    driver
        .checkpoint(&base, &freeze(&second, Some(&template)))
        .await
        .unwrap();
    drop(there_and_back(&rig, &base, client, counts, "after two").await);
    driver.destroy(&base).await.unwrap();
    // And one as pools have them: a fork that shares its memory with its template.
    let id = VmId::generate();
    driver
        .fork(&fork(&id, &second, ForkPurpose::Instance, ForkStart::Running))
        .await
        .unwrap();
    let mut client = agent(&*driver, &id).await;
    for _ in 0..2 {
        client = there_and_back(&rig, &id, client, counts, "a fork").await;
    }
    drop(client);
    driver.destroy(&id).await.unwrap();
    for key in [&second, &template] {
        driver.remove_checkpoint(key).await.unwrap();
    }
    rig.finish().await;
}

/// Not a test: the server that [`a_server_killed_while_it_pauses_to_the_disk_leaves_a_vm_that_resumes`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: started by another test"]
async fn not_a_test_server_that_pauses_to_the_disk() {
    let argument = |name: &str| std::env::var(name).unwrap();
    let driver = open(PathBuf::from(argument("CRASH_DATA")), &argument("CRASH_LABEL"));
    let id: VmId = argument("CRASH_VM").parse().unwrap();
    std::fs::write(argument("CRASH_BEGUN"), "").unwrap();
    loop {
        driver.save(&id).await.unwrap();
        driver.resume(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_server_killed_while_it_pauses_to_the_disk_leaves_a_vm_that_resumes() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let id = VmId::generate();
    driver.create(&spec(&rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    let counts = work(&client).await;
    let boot = client.health().await.unwrap().boot_id;
    let mut before = count(&client).await;
    drop(client);
    let apart = tempfile::tempdir().unwrap();
    let begun = apart.path().join("begun");
    let folder = rig.data().join("vms").join(id.as_str());
    for moment in [0, 30, 100, 250, 400, 600, 900, 1300, 1900] {
        drop(std::fs::remove_file(&begun));
        let mut server = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "qemu_save::not_a_test_server_that_pauses_to_the_disk",
            ])
            .env("CRASH_DATA", rig.data())
            .env("CRASH_LABEL", rig.label())
            .env("CRASH_VM", id.as_str())
            .env("CRASH_BEGUN", &begun)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("the server works", SOON, || async { begun.exists().then_some(()) }).await;
        // the moment of a disturbance
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill().await.unwrap();
        let next = rig.reopen();
        let found = next.inspect(&id).await.unwrap();
        let left = ["memory", "memory.part"].map(|file| folder.join(file).exists());
        println!("killed after {moment} ms: {found:?}; memory and memory.part are there: {left:?}");
        assert!(
            matches!(found, Some(VmState::Running | VmState::Paused | VmState::Saved)),
            "after {moment} ms: {found:?}"
        );
        next.resume(&id).await.unwrap();
        let client = agent(&*next, &id).await;
        assert_eq!(client.health().await.unwrap().boot_id, boot);
        let now = count(&client).await;
        assert!(now >= before, "{now} after {before}");
        // Nothing stops it later: a save that the killed server had begun has ended.
        eventually("it counts", SOON, || async {
            (count(&client).await > now + 20).then_some(())
        })
        .await;
        print(&client, &format!("kill -0 {counts}")).await;
        before = count(&client).await;
    }
    driver.destroy(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM and root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_full_disk_while_pausing_to_it_is_said_and_the_vm_runs_on() {
    const MIB: u64 = 1 << 20;
    let rig = Qemu::on_small_disk(SMALL_DISK).await;
    let driver = rig.driver();
    let id = VmId::generate();
    driver.create(&spec(&rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    let counts = work(&client).await;
    let ballast = rig.data().join("ballast");
    // Seen at once.
    fill(&ballast, &rig.data(), 100 * MIB);
    let error = driver.save(&id).await.unwrap_err();
    assert!(
        matches!(&error, DriverError::Retry { reason, .. } if reason.contains("disk space")),
        "{error:?}"
    );
    assert_eq!(driver.inspect(&id).await.unwrap(), Some(VmState::Running));
    print(&client, &format!("kill -0 {counts}")).await;
    // And in the middle: it fills while the memory is written.
    std::fs::remove_file(&ballast).unwrap();
    let part = rig.data().join("vms").join(id.as_str()).join("memory.part");
    let data = rig.data();
    let disk = data.ancestors().nth(2).unwrap().to_owned();
    let small = disk.clone();
    let shrinks = std::thread::spawn(move || {
        let begin = Instant::now();
        while begin.elapsed() < SOON {
            let stat = rustix::fs::statvfs(&small).unwrap();
            let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
            // What is written meanwhile may be more than that: then it is tried again.
            if part.exists() && resize(&small, &(used + 4 * MIB).to_string()).is_ok() {
                return;
            }
        }
        panic!("no memory was written");
    });
    let error = driver.save(&id).await.unwrap_err();
    shrinks.join().unwrap();
    resize(&disk, SMALL_DISK).unwrap();
    assert!(
        matches!(&error, DriverError::Retry { reason, .. } if reason.contains("the disk is full")),
        "{error:?}"
    );
    assert_eq!(driver.inspect(&id).await.unwrap(), Some(VmState::Running));
    let client = {
        drop(client);
        agent(&*driver, &id).await
    };
    drop(there_and_back(&rig, &id, client, counts, "after a full disk").await);
    driver.destroy(&id).await.unwrap();
    rig.finish().await;
}

/// Another size for a disk in memory.
fn resize(disk: &std::path::Path, size: &str) -> nix::Result<()> {
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_REMOUNT);
    nix::mount::mount(none, disk, none, flags, Some(&*format!("size={size}")))
}

/// Leaves this much free on a folder's disk.
fn fill(ballast: &std::path::Path, folder: &std::path::Path, leave: u64) {
    let stat = rustix::fs::statvfs(folder).unwrap();
    let file = std::fs::File::create(ballast).unwrap();
    let take = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
}
