//! Checkpoints and forks of real guests: what only a real VM can break.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hearth_api::ids::VmId;
use hearth_drivers::{CheckDepth, CheckpointKey, DriverError, ForkPurpose, ForkStart, VmShape, VmSpec, VmState};
use hearth_guest::client::{AgentClient, NewIdentity, Upload};
use hearth_guest::{Activated, Detach, ExecEnd, ExecSpec};

use crate::contract::{Rig, agent, shell, spec};
use crate::contract_forks::{fork, freezable, freeze, key};
use crate::qemu::Qemu;
use crate::support::eventually;

const SOON: Duration = Duration::from_secs(60);
/// What the guest's clock may differ from the host's by.
const CLOCK_LIMIT: Duration = Duration::from_millis(50);
/// Room for a VM, a template and what must stay free, and no more than a test may take.
const SMALL_DISK: &str = "3G";
/// How wrong the clock of a template of some age is.
const AGE: Duration = Duration::from_secs(5 * 3600);

async fn activate(client: &AgentClient, id: &VmId) -> Activated {
    let identity = NewIdentity {
        rsa_host_key: None,
        hostname: id.as_str().replace('_', "-"),
        machine_id: None,
    };
    client.activate(&identity).await.unwrap()
}

pub(crate) async fn print(client: &AgentClient, text: &str) -> String {
    let (code, printed) = shell(client, text).await;
    assert_eq!(code, Some(0), "{text}: {printed}");
    printed.trim().to_owned()
}

/// A command that keeps running in the background; gives its process id.
pub(crate) async fn background(client: &AgentClient, text: &str) -> u32 {
    let spec = ExecSpec {
        shell: Some(text.into()),
        detach: Some(Detach {
            log_path: "/var/log/hearth/background.log".into(),
            grace_ms: 200,
        }),
        ..ExecSpec::default()
    };
    match client.exec_collect(&spec, 10_000).await.unwrap().end {
        ExecEnd::Detached { pid } => pid,
        other => panic!("{other:?}"),
    }
}

/// Until systemd has started everything, udev's idle workers have ended (they would wait for three more seconds), and the
/// disk has what was written: what is left of these, each fork would do again.
async fn settle(client: &AgentClient) {
    shell(
        client,
        "systemctl is-system-running --wait || true; udevadm settle; udevadm control --reload; sync",
    )
    .await;
}

async fn fork_now(rig: &Qemu, from: &CheckpointKey, purpose: ForkPurpose) -> (VmId, AgentClient) {
    let (driver, id) = (rig.driver(), VmId::generate());
    driver
        .fork(&fork(&id, from, purpose, ForkStart::Running))
        .await
        .unwrap();
    let client = agent(&*driver, &id).await;
    (id, client)
}

/// How far the guest's clock is from ours, at most: the answer was given at some moment of the round trip.
async fn clock_error(client: &AgentClient) -> Duration {
    let before = SystemTime::now();
    let text = print(client, "date +%s%N").await;
    let after = SystemTime::now();
    let guest = UNIX_EPOCH + Duration::from_nanos(text.parse().unwrap());
    let early = before.duration_since(guest).unwrap_or_default();
    let late = guest.duration_since(after).unwrap_or_default();
    early.max(late)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_fork_is_somebody_of_its_own() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let (base, client) = freezable(&rig).await;
    settle(&client).await;
    // An SSH server's keys, as a package would leave them.
    print(
        &client,
        "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && cp /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_rsa_key",
    )
    .await;
    let look =
        "cat /etc/machine-id /etc/hostname /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_ed25519_key.pub; hostname";
    let mut seen: BTreeSet<String> = print(&client, look).await.lines().map(str::to_owned).collect();
    client.set_clock(SystemTime::now() - AGE).await.unwrap();
    let template = key("ab");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    driver.destroy(&base).await.unwrap();

    // Without it, siblings are one and the same: that is what this is about.
    let dice = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; \
                python3 -c 'import os; print(os.getrandom(16).hex())'";
    let mut names = 0;
    for purpose in [ForkPurpose::Instance, ForkPurpose::Instance, ForkPurpose::Build] {
        let (id, client) = fork_now(&rig, &template, purpose).await;
        let activated = activate(&client, &id).await;
        assert_eq!(activated.host_keys, ["ssh_host_ed25519_key"]);
        let error = clock_error(&client).await;
        assert!(error < CLOCK_LIMIT, "the clock is off by {error:?}");
        let own = print(&client, look).await;
        let lines: Vec<&str> = own.lines().collect();
        let [machine, hostname, boot, ssh, running_name] = lines[..] else {
            panic!("{own}")
        };
        assert_eq!(
            (machine, boot),
            (activated.machine_id.as_str(), activated.boot_id.as_str())
        );
        assert_eq!((hostname, running_name), (id.as_str(), id.as_str()));
        assert_eq!(
            print(&client, "getent hosts $(hostname) | cut -d' ' -f1").await,
            "127.0.1.1"
        );
        assert_eq!(print(&client, "ls /etc/ssh | grep -c rsa || true").await, "0");
        let random = print(&client, dice).await;
        for part in [machine, hostname, boot, ssh].into_iter().chain(random.lines()) {
            assert!(seen.insert(part.to_owned()), "{part} has been seen before");
            names += 1;
        }
        // A second time, as for the fork of a fork.
        let again = activate(&client, &id).await;
        assert!(seen.insert(again.boot_id.clone()) && seen.insert(again.machine_id));
        assert_eq!(
            print(&client, "cat /proc/sys/kernel/random/boot_id").await,
            again.boot_id
        );
        assert_eq!(print(&client, "grep -c boot_id /proc/self/mounts").await, "1");
        driver.destroy(&id).await.unwrap();
    }
    assert_eq!(names, 3 * 7);
    driver.remove_checkpoint(&template).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn background_commands_go_on_and_half_open_connections_end() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let (base, client) = freezable(&rig).await;
    settle(&client).await;
    let server = background(&client, "cd /etc && exec python3 -m http.server 8000").await;
    let get = "curl --silent --fail --max-time 20 --retry 5 --retry-connrefused http://127.0.0.1:8000/hostname";
    print(&client, get).await;
    // One connection to the outside that only listens, and one within the VM.
    let wait = "import socket,sys\n\
                far = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
                print('open', flush=True)\n\
                try:\n    print('end', far.recv(1), flush=True)\n\
                except OSError as error:\n    print('end', error, flush=True)\n";
    client.write_file("/root/wait.py", 0o644, wait).await.unwrap();
    for (name, place) in [("outside", "deb.debian.org 80"), ("inside", "127.0.0.1 8000")] {
        background(
            &client,
            &format!("exec python3 /root/wait.py {place} >/root/{name} 2>&1"),
        )
        .await;
        let is_open = format!(
            "for i in $(seq 100); do grep -q open /root/{name} && exit; sleep 0.1; done; cat /root/{name}; exit 1"
        );
        print(&client, &is_open).await;
    }
    // And a command whose caller is there when the VM is frozen.
    let attached = ExecSpec {
        shell: Some("echo $$ >/root/attached; exec sleep 1000".into()),
        ..ExecSpec::default()
    };
    let attached = client.exec(&attached, Upload::empty()).await.unwrap();
    print(&client, "until [ -s /root/attached ]; do sleep 0.1; done").await;
    let template = key("cd");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    // In the VM itself nothing has happened.
    print(&client, "kill -0 $(cat /root/attached)").await;
    drop(attached);
    driver.destroy(&base).await.unwrap();

    let (id, client) = fork_now(&rig, &template, ForkPurpose::Instance).await;
    let activated = activate(&client, &id).await;
    assert_eq!(activated.closed_connections, 1);
    assert_eq!(print(&client, get).await, id.as_str(), "the server reads the new name");
    let same = format!("tr '\\0' ' ' </proc/{server}/cmdline");
    assert!(print(&client, &same).await.contains("http.server"), "the same process");
    eventually("the connection to the outside has ended", SOON, || async {
        let (_, text) = shell(&client, "cat /root/outside").await;
        text.contains("end").then_some(())
    })
    .await;
    assert_eq!(
        print(&client, "cat /root/inside").await,
        "open",
        "within the VM all goes on"
    );
    eventually("the frozen caller's command has ended", SOON, || async {
        let (code, _) = shell(&client, "kill -0 $(cat /root/attached)").await;
        (code != Some(0)).then_some(())
    })
    .await;
    // The network works for new connections.
    print(
        &client,
        "curl --silent --fail --max-time 30 --head http://deb.debian.org/ >/dev/null",
    )
    .await;
    driver.destroy(&id).await.unwrap();
    driver.remove_checkpoint(&template).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM and root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_full_disk_while_freezing_is_said_and_leaves_nothing() {
    // A disk of its own for the data folder; only root can have one.
    let rig = Qemu::on_small_disk(SMALL_DISK).await;
    let driver = rig.driver();
    let (base, client) = freezable(&rig).await;
    settle(&client).await;
    let (first, second) = (key("d1"), key("d2"));
    driver.checkpoint(&base, &freeze(&first, None)).await.unwrap();
    // What is free now is enough to pass the look at the room, and not enough for the copy.
    let ballast = rig.data().join("ballast");
    let memory = rig.data().join("vms").join(base.as_str()).join("ram");
    // Written by the guest after it was looked at, in a manner of speaking.
    print(&client, "head -c 64M /dev/urandom >/dev/shm/filler").await;
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(memory).unwrap()) * 512;
    fill(&ballast, &rig.data(), taken / 2);
    let error = driver
        .checkpoint(&base, &freeze(&second, Some(&first)))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, DriverError::Retry { reason, .. } if reason.contains("disk")),
        "{error:?}"
    );
    // The VM is resumed, the other checkpoint serves, nothing else is there.
    assert_eq!(driver.inspect(&base).await.unwrap(), Some(VmState::Running));
    print(&client, "true").await;
    driver.check_checkpoint(&first, CheckDepth::Full).await.unwrap();
    assert_eq!(std::fs::read_dir(rig.data().join("templates")).unwrap().count(), 1);
    std::fs::remove_file(&ballast).unwrap();
    let info = driver.checkpoint(&base, &freeze(&second, Some(&first))).await.unwrap();
    assert_eq!(info.parent, Some(first.clone()));
    driver.destroy(&base).await.unwrap();
    let (id, client) = fork_now(&rig, &second, ForkPurpose::Instance).await;
    print(&client, "test $(stat -c %s /dev/shm/filler) = 67108864").await;
    driver.destroy(&id).await.unwrap();
    for key in [&second, &first] {
        driver.remove_checkpoint(key).await.unwrap();
    }
    rig.finish().await;
}

/// Leaves this much free on a folder's disk.
fn fill(ballast: &std::path::Path, folder: &std::path::Path, leave: u64) {
    let stat = rustix::fs::statvfs(folder).unwrap();
    let file = std::fs::File::create(ballast).unwrap();
    let take = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_template_in_use_by_a_vm_that_another_server_made_stays() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let (base, client) = freezable(&rig).await;
    let template = key("e1");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    drop(client);
    let (id, client) = fork_now(&rig, &template, ForkPurpose::Instance).await;
    drop(client);
    driver.destroy(&base).await.unwrap();
    let next = rig.reopen();
    assert_eq!(next.inspect(&id).await.unwrap(), Some(VmState::Running));
    assert!(matches!(
        next.remove_checkpoint(&template).await,
        Err(DriverError::Retry { .. })
    ));
    // Its process gone, it still lies there until it is destroyed.
    rig.kill(&id).await;
    assert!(next.remove_checkpoint(&template).await.is_err());
    next.destroy(&id).await.unwrap();
    next.remove_checkpoint(&template).await.unwrap();
    rig.finish().await;
}

/// Not a test: prints what checkpoints and forks cost here.
/// `cargo test -p hearth-drivers --test it -- --ignored --nocapture qemu_forks::not_a_test_figures`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: prints figures for people"]
async fn not_a_test_figures() {
    const MIB: u64 = 1024 * 1024;
    let rig = Qemu::new().await;
    let (driver, base) = (rig.driver(), VmId::generate());
    let wanted = VmSpec {
        shape: VmShape {
            memory_mib: 1024,
            ..rig.shape()
        },
        checkpointable: true,
        ..spec(&rig, &base)
    };
    let begin = Instant::now();
    driver.create(&wanted).await.unwrap();
    let client = agent(&*driver, &base).await;
    settle(&client).await;
    println!("boot until settled: {:?}", begin.elapsed());
    let template = key("ef");
    let begin = Instant::now();
    let info = driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    let took = begin.elapsed();
    println!(
        "checkpoint: {took:?}, of that the VM stood still {} ms, {} MiB",
        info.paused_ms,
        info.bytes / MIB
    );
    let begin = Instant::now();
    driver.check_checkpoint(&template, CheckDepth::Full).await.unwrap();
    println!("full check: {:?}", begin.elapsed());
    let begin = Instant::now();
    driver.check_checkpoint(&template, CheckDepth::Quick).await.unwrap();
    println!("quick check: {:?}", begin.elapsed());
    driver.destroy(&base).await.unwrap();
    let begin = Instant::now();
    let (build, _) = fork_now(&rig, &template, ForkPurpose::Build).await;
    println!("build fork until its agent answers: {:?}", begin.elapsed());
    driver.destroy(&build).await.unwrap();

    let mut took = Vec::new();
    let mut ids = Vec::new();
    let all = Instant::now();
    for _ in 0..20 {
        let id = VmId::generate();
        let begin = Instant::now();
        let wanted = fork(&id, &template, ForkPurpose::Instance, ForkStart::Paused);
        driver.fork(&wanted).await.unwrap();
        took.push(begin.elapsed());
        ids.push(id);
    }
    let all = all.elapsed();
    took.sort();
    println!(
        "20 forks in a row: {all:?}, p50 {:?}, best {:?}, worst {:?}",
        took[10], took[0], took[19]
    );
    let usage = driver.usage(&ids[0]).await.unwrap();
    println!(
        "never run: private {} MiB, shared {} MiB",
        usage.private_bytes / MIB,
        usage.shared_bytes / MIB
    );
    let mut private = Vec::new();
    for id in &ids[..8] {
        let begin = Instant::now();
        driver.resume(id).await.unwrap();
        let client = agent(&*driver, id).await;
        let connected = begin.elapsed();
        let begin = Instant::now();
        let activated = activate(&client, id).await;
        let active = begin.elapsed();
        let begin = Instant::now();
        shell(&client, "true").await;
        let ran = begin.elapsed();
        driver.pause(id).await.unwrap();
        let usage = driver.usage(id).await.unwrap();
        println!(
            "connected {connected:?}, activated {active:?} ({} ms inside), command {ran:?}, private {:.1} MiB, shared {} MiB, disk {} KiB",
            activated.duration_ms,
            usage.private_bytes as f64 / MIB as f64,
            usage.shared_bytes / MIB,
            usage.disk_bytes / 1024
        );
        private.push(usage.private_bytes);
        let begin = Instant::now();
        driver.resume(id).await.unwrap();
        let resumed = begin.elapsed();
        let error = client.sync_clock(SOON).await.unwrap();
        let clock = begin.elapsed();
        shell(&client, "cat /etc/hostname").await;
        println!(
            "  again: resume {resumed:?}, clock {clock:?} (error {error:?}), command {:?}",
            begin.elapsed()
        );
        driver.pause(id).await.unwrap();
    }
    if let Some(pause) = std::env::var_os("HEARTH_FIGURES_WAIT") {
        println!("waiting until {pause:?} is gone; pid {}", rig.pid(&ids[1]));
        eventually("the file is gone", Duration::from_secs(3600), || async {
            (!std::path::Path::new(&pause).exists()).then_some(())
        })
        .await;
    }
    for id in &ids {
        driver.destroy(id).await.unwrap();
    }
    driver.remove_checkpoint(&template).await.unwrap();
    rig.finish().await;
}
