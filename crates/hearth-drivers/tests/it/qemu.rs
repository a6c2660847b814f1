//! Driver `qemu`: the contract, and what only a real VM can break.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hearth_api::ids::VmId;
use hearth_drivers::qemu::{Accel, QemuDriver, QemuOptions};
use hearth_drivers::{CheckpointKey, Driver, DriverError, VmInfo, VmShape, VmSpec, VmState};
use hearth_image::{self as image, Image};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::contract::{Rig, agent, shell, spec};
use crate::contract_suite;
use crate::support::{eventually, processes_with};

/// VMs at a time: an emulated guest keeps a processor busy while it boots.
static ROOM: Semaphore = Semaphore::const_new(2);
const SOON: Duration = Duration::from_secs(30);
/// What else wants a processor while a guest boots.
const BUSY_THREADS: usize = 8;

/// Where xtask put the image.
pub(crate) fn images_dir() -> PathBuf {
    let data = std::env::var_os("HEARTH_TEST_DATA")
        .expect("HEARTH_TEST_DATA is not set: `cargo xtask test NAME` builds a guest image and sets it");
    Path::new(&data).join("images")
}

fn image() -> Image {
    image::find(&images_dir(), None).unwrap_or_else(|error| panic!("{error}; or run `cargo xtask test NAME`"))
}

/// A host of its own for one test: data folder and label. The folder lies deep (a socket's address holds 108 bytes) and below
/// one that only its owner may enter.
pub(crate) struct Qemu {
    folder: tempfile::TempDir,
    label: String,
    driver: QemuDriver,
    _room: SemaphorePermit<'static>,
}

pub(crate) fn open(data_dir: PathBuf, label: &str) -> QemuDriver {
    let images_dir = images_dir();
    let installation = label.to_owned();
    QemuDriver::open(QemuOptions {
        data_dir,
        images_dir,
        shared_images: Vec::new(),
        installation,
        accel: Accel::Auto,
        vm_user: None,
        gateway: hearth_drivers::gateway_program(),
        dns_upstream: None,
    })
    .unwrap()
}

impl Qemu {
    pub(crate) async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap()).await
    }

    /// The same on a disk of its own, in memory and of a certain size; for root.
    pub(crate) async fn on_small_disk(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let kind = Some("tmpfs");
        nix::mount::mount(kind, folder.path(), kind, nix::mount::MsFlags::empty(), Some(&*options)).unwrap();
        Self::in_folder(folder).await
    }

    async fn in_folder(folder: tempfile::TempDir) -> Self {
        let room = ROOM.acquire().await.unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let label = format!("test-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let data = Self::data_in(folder.path());
        std::fs::create_dir_all(&data).unwrap();
        // A verdict on KVM that was found once serves all tests; its key says whether it holds here.
        let verdict = images_dir().with_file_name("kvm-verdict.json");
        drop(std::fs::copy(&verdict, data.join("kvm-verdict.json")));
        let driver = open(data, &label);
        Self {
            folder,
            label,
            driver,
            _room: room,
        }
    }

    fn data_in(folder: &Path) -> PathBuf {
        folder.join("d".repeat(80)).join("e".repeat(80))
    }

    pub(crate) fn data(&self) -> PathBuf {
        Self::data_in(self.folder.path())
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The process that runs a VM, as its record says.
    pub(crate) fn pid(&self, id: &VmId) -> i32 {
        let text = std::fs::read(self.data().join("vms").join(id.as_str()).join("vm.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// The process that holds the VM network.
    pub(crate) fn network_process(&self, which: &str) -> i32 {
        let text = std::fs::read(self.data().join("network/network.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        i32::try_from(record[which]["pid"].as_i64().unwrap()).unwrap()
    }
}

/// `kill -9`, and the wait until it has happened.
pub(crate) async fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the killed process is gone", SOON, || async {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, idle)| idle.chars().next());
        matches!(state, None | Some('Z' | 'X')).then_some(())
    })
    .await;
}

#[async_trait]
impl Rig for Qemu {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn reopen(&self) -> Arc<dyn Driver> {
        Arc::new(open(self.data(), &self.label))
    }

    async fn kill(&self, id: &VmId) {
        kill(self.pid(id)).await;
    }

    fn image(&self) -> String {
        image().manifest.digest[..12].to_owned()
    }

    fn shape(&self) -> VmShape {
        VmShape {
            vcpus: 1,
            memory_mib: 768,
            disk_gib: 7,
        }
    }

    fn damage(&self, key: &CheckpointKey) {
        let state = self.data().join("templates").join(key.as_str()).join("state");
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::File::options()
            .write(true)
            .open(state)
            .unwrap()
            .set_len(1000)
            .unwrap();
    }

    async fn finish(&self) {
        self.driver.shutdown_network().await.unwrap();
        // Found once, it serves the tests after this one (if this user may write there).
        let verdict = self.data().join("kvm-verdict.json");
        drop(std::fs::copy(verdict, images_dir().with_file_name("kvm-verdict.json")));
        let left = std::fs::read_dir(self.data())
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect::<Vec<_>>();
        let kept = ["vms", "templates", "kvm-verdict.json"];
        let expected = |path: &PathBuf| kept.iter().any(|name| path.ends_with(name));
        assert!(left.iter().all(expected), "files are left: {left:?}");
        for folder in ["vms", "templates"] {
            let count = std::fs::read_dir(self.data().join(folder)).unwrap().count();
            assert_eq!(count, 0, "{folder} are left");
        }
        assert_eq!(processes_with(&self.label), [], "processes are left");
    }
}

/// After a failed test nothing may keep running.
impl Drop for Qemu {
    fn drop(&mut self) {
        for (pid, _) in processes_with(&self.label) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        // A disk of its own goes with the folder; most have none.
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

contract_suite!(
    crate::qemu::Qemu::new().await,
    #[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_guest_has_its_size_and_runs_without_root() {
    let rig = Qemu::new().await;
    let id = VmId::generate();
    let wanted = VmSpec {
        shape: VmShape {
            vcpus: 2,
            memory_mib: 1024,
            disk_gib: 9,
        },
        ..spec(&rig, &id)
    };
    rig.driver.create(&wanted).await.unwrap();
    let process = PathBuf::from(format!("/proc/{}", rig.pid(&id)));
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert!(
        field("Uid:").split_whitespace().all(|uid| uid != "0"),
        "{}",
        field("Uid:")
    );
    assert_eq!(field("Groups:").split_whitespace().find(|group| *group == "0"), None);
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("CapBnd:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let stat = std::fs::read_to_string(process.join("stat")).unwrap();
    let group: i32 = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(group, rig.pid(&id), "a process group of its own");
    let environment = std::fs::read(process.join("environ")).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains("HEARTH_TEST_DATA"),
        "nothing of the server's environment"
    );

    let client = agent(&rig.driver, &id).await;
    assert_eq!(shell(&client, "nproc").await.1.trim(), "2");
    let kib: u64 = shell(&client, "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .await
        .1
        .trim()
        .parse()
        .unwrap();
    assert!((900_000..1_048_576).contains(&kib), "{kib} KiB");
    let bytes: u64 = shell(&client, "cat /sys/block/vda/size")
        .await
        .1
        .trim()
        .parse::<u64>()
        .unwrap()
        * 512;
    assert_eq!(bytes, 9 << 30);
    // The file system grows while the guest boots, and the agent answers before that is done.
    shell(&client, "systemctl is-system-running --wait || true").await;
    let size: u64 = shell(&client, "df -B1 --output=size / | tail -1")
        .await
        .1
        .trim()
        .parse()
        .unwrap();
    assert!(size > 8 << 30, "the file system has grown to {size} bytes");
    rig.driver.destroy(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_smaller_disk_than_the_image_is_refused() {
    let rig = Qemu::new().await;
    let id = VmId::generate();
    let least = image().manifest.sizes.rootfs.div_ceil(1 << 30);
    if let Some(less @ 1..) = u32::try_from(least).unwrap().checked_sub(1) {
        let wanted = VmSpec {
            shape: VmShape {
                disk_gib: less,
                ..rig.shape()
            },
            ..spec(&rig, &id)
        };
        assert!(matches!(
            rig.driver.create(&wanted).await,
            Err(DriverError::Permanent { .. })
        ));
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_vm_larger_than_the_host_is_put_off() {
    let rig = Qemu::new().await;
    let id = VmId::generate();
    let wanted = VmSpec {
        shape: VmShape {
            memory_mib: 1 << 30,
            ..rig.shape()
        },
        ..spec(&rig, &id)
    };
    let error = rig.driver.create(&wanted).await.unwrap_err();
    assert!(
        matches!(&error, DriverError::Retry { reason, .. } if reason.contains("not enough memory")),
        "{error:?}"
    );
    assert_eq!(rig.driver.list().await.unwrap(), []);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn what_a_crash_leaves_is_listed_and_removed() {
    let rig = Qemu::new().await;
    // A folder with a record that was being written, and one whose process was never started.
    let (torn, unborn) = (VmId::generate(), VmId::generate());
    for id in [&torn, &unborn] {
        std::fs::create_dir(rig.data().join("vms").join(id.as_str())).unwrap();
    }
    std::fs::write(rig.data().join("vms").join(torn.as_str()).join("vm.json"), "{").unwrap();
    // A process whose folder is gone.
    let orphan = VmId::generate();
    rig.driver.create(&spec(&rig, &orphan)).await.unwrap();
    let pid = rig.pid(&orphan);
    std::fs::remove_dir_all(rig.data().join("vms").join(orphan.as_str())).unwrap();
    // Another installation's process is none of our business.
    let stranger = format!("hearth/another-{}/{}", rig.label(), VmId::generate());
    let mut other = tokio::process::Command::new("sh")
        .args(["-c", "read forever", "sh", "-name", &stranger])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();

    let driver = rig.reopen();
    let mut expected: Vec<VmInfo> = [&torn, &unborn, &orphan]
        .map(|id| VmInfo {
            id: id.clone(),
            state: VmState::Stopped,
        })
        .into();
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(driver.list().await.unwrap(), expected);
    assert_eq!(driver.inspect(&orphan).await.unwrap(), Some(VmState::Stopped));
    // A half-made one is made again under the same id.
    driver.create(&spec(&rig, &unborn)).await.unwrap();
    assert_eq!(driver.inspect(&unborn).await.unwrap(), Some(VmState::Running));
    for id in [&torn, &unborn, &orphan] {
        driver.destroy(id).await.unwrap();
    }
    assert_eq!(driver.list().await.unwrap(), []);
    assert!(!processes_with(orphan.as_str()).iter().any(|(found, _)| *found == pid));
    assert!(
        other.try_wait().unwrap().is_none(),
        "the other installation's process lives"
    );
    other.kill().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_process_number_given_to_another_process_is_not_killed() {
    let rig = Qemu::new().await;
    let id = VmId::generate();
    rig.driver.create(&spec(&rig, &id)).await.unwrap();
    rig.kill(&id).await;
    eventually("it is gone", SOON, || async {
        processes_with(id.as_str()).is_empty().then_some(())
    })
    .await;
    let mut innocent = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
    let path = rig.data().join("vms").join(id.as_str()).join("vm.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["process"]["pid"] = innocent.id().unwrap().into();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(rig.driver.inspect(&id).await.unwrap(), Some(VmState::Stopped));
    rig.driver.destroy(&id).await.unwrap();
    assert!(innocent.try_wait().unwrap().is_none());
    innocent.kill().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn the_verdict_on_kvm_is_found_kept_and_shown() {
    let rig = Qemu::new().await;
    let file = rig.data().join("kvm-verdict.json");
    drop(std::fs::remove_file(&file));
    assert_eq!(rig.driver.kvm_verdict(), None);
    let id = VmId::generate();
    rig.driver.create(&spec(&rig, &id)).await.unwrap();
    let verdict = rig.driver.kvm_verdict().expect("the first VM finds the verdict");
    assert!(!verdict.reason.is_empty());
    rig.driver.destroy(&id).await.unwrap();
    let stores = image::Stores::new(rig.data(), vec![images_dir()]);
    let findings = hearth_drivers::host::check(&rig.data(), &stores, None).await;
    let shown = findings.iter().find(|finding| finding.name == "KVM").unwrap();
    assert!(shown.summary.contains(&verdict.reason), "{shown:?}");
    rig.finish().await;
}

/// The kernel measures its clock's rate while it boots, and on a busy host it was wrong several times over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_guest_that_boots_on_a_busy_host_has_a_clock_that_keeps_pace() {
    let rig = Qemu::new().await;
    let id = VmId::generate();
    let busy = Arc::new(AtomicBool::new(true));
    let threads: Vec<_> = (0..BUSY_THREADS)
        .map(|_| {
            let busy = Arc::clone(&busy);
            std::thread::spawn(move || {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    rig.driver.create(&spec(&rig, &id)).await.unwrap();
    let client = agent(&rig.driver, &id).await;
    busy.store(false, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let uptime = || async { Duration::from_millis(client.health().await.unwrap().uptime_ms) };
    let (before, begin) = (uptime().await, Instant::now());
    let (code, printed) = shell(&client, "sleep 3").await;
    assert_eq!(code, Some(0), "{printed}");
    let (guest, host) = (uptime().await - before, begin.elapsed());
    assert!(
        guest.abs_diff(host) < host / 10,
        "{guest:?} in the guest, {host:?} on the host"
    );
    rig.driver.destroy(&id).await.unwrap();
    rig.finish().await;
}
