//! Driver `incus`: the contract, against real daemons of Incus that each test starts for itself, one or a cluster of three.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::ids::VmId;
use hearth_drivers::incus::{IncusAddress, IncusDriver, IncusOptions, IncusSettings};
use hearth_drivers::{CheckpointKey, Driver, VmShape, VmState};
use hearth_image::{Manifest, Sizes, Stores};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::contract::Rig;
use crate::contract_suite;
use crate::incus_daemon::{Daemons, POOL};
use crate::support::eventually;

/// Daemons at a time.
static ROOM: Semaphore = Semaphore::const_new(2);
const SOON: Duration = Duration::from_secs(30);
const DIGEST_BYTE: &str = "5a";

/// A folder of images with one of a few megabytes: the agent, which is the first process, and a shell.
pub(crate) fn small_image(images: &Path) -> String {
    let agent = std::env::var_os("HEARTH_AGENT")
        .expect("HEARTH_AGENT is not set: `cargo xtask test NAME` builds the agent and sets it");
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path();
    for folder in [
        "usr/local/sbin",
        "bin",
        "sbin",
        "etc",
        "root",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var",
        "home",
    ] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy(agent, root.join("usr/local/sbin/hearth-agent")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is not installed");
    for name in ["sh", "cat", "sync", "echo", "ls", "sleep", "hostname"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    // Commands are run by bash; busybox' shell knows the options that they are run with.
    let bash = root.join("bin/bash");
    std::fs::write(&bash, "#!/bin/sh\nexec /bin/sh \"$@\"\n").unwrap();
    std::fs::set_permissions(&bash, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/usr/local/sbin/hearth-agent", root.join("sbin/init")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    let digest = DIGEST_BYTE.repeat(32);
    let folder = images.join(&digest);
    std::fs::create_dir_all(&folder).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"])
        .arg(root)
        .arg(folder.join("rootfs.ext4"))
        .arg("64M")
        .status()
        .unwrap();
    assert!(made.success());
    for name in ["vmlinuz", "initrd"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let rootfs = std::fs::metadata(folder.join("rootfs.ext4")).unwrap().len();
    let manifest = Manifest {
        digest: digest.clone(),
        name: "small".to_owned(),
        suite: "none".to_owned(),
        kernel_version: String::new(),
        packages: Vec::new(),
        agent_sha256: String::new(),
        agent_version: "test".to_owned(),
        base: String::new(),
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        sizes: Sizes {
            rootfs,
            rootfs_on_disk: rootfs,
            vmlinuz: 0,
            initrd: 0,
            vmlinux: None,
        },
    };
    std::fs::write(folder.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    digest
}

pub(crate) struct Incus {
    pub(crate) daemons: Daemons,
    folder: tempfile::TempDir,
    label: String,
    pub(crate) driver: IncusDriver,
    _room: SemaphorePermit<'static>,
}

impl Incus {
    pub(crate) async fn one() -> Self {
        Self::with(Daemons::one).await
    }

    pub(crate) async fn cluster() -> Self {
        Self::with(|| Daemons::cluster(3)).await
    }

    async fn with(start: impl FnOnce() -> Daemons + Send + 'static) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let daemons = tokio::task::spawn_blocking(start).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        small_image(&folder.path().join("images"));
        let label = format!("test-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let driver = open(folder.path(), &label, daemons.sockets());
        Self {
            daemons,
            folder,
            label,
            driver,
            _room: room,
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub(crate) fn project(&self) -> String {
        format!("hearth-{}", self.label)
    }

    fn daemon_of(&self, id: &VmId) -> Option<(usize, nix::unistd::Pid)> {
        let name = format!("{}_{id}", self.project());
        (0..self.daemons.sockets().len()).find_map(|at| {
            let containers = self.daemons.get(at).containers();
            let found = containers.into_iter().find(|(of, _)| *of == name)?;
            Some((at, found.1))
        })
    }
}

pub(crate) fn open(data: &Path, label: &str, sockets: Vec<PathBuf>) -> IncusDriver {
    IncusDriver::open(IncusOptions {
        settings: IncusSettings {
            addresses: sockets.into_iter().map(IncusAddress::Socket).collect(),
            pool: Some(POOL.to_owned()),
            ..IncusSettings::default()
        },
        installation: label.to_owned(),
        stores: Stores::new(data, Vec::new()),
        agent: None,
    })
    .unwrap()
}

#[async_trait]
impl Rig for Incus {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn reopen(&self) -> Arc<dyn Driver> {
        Arc::new(open(self.folder.path(), &self.label, self.daemons.sockets()))
    }

    async fn kill(&self, id: &VmId) {
        let (at, pid) = self.daemon_of(id).expect("the VM runs");
        kill(pid, Signal::SIGKILL).unwrap();
        // The end of a frozen process waits until it is let go.
        let path = format!("/1.0/instances/{id}/state?project={}", self.project());
        let body = json!({ "action": "unfreeze", "timeout": 5 });
        drop(self.daemons.get(at).try_api("PUT", &path, Some(&body)));
        eventually("the killed VM is stopped", SOON, || async {
            (self.driver.inspect(id).await.unwrap() == Some(VmState::Stopped)).then_some(())
        })
        .await;
    }

    fn image(&self) -> String {
        DIGEST_BYTE.repeat(8)
    }

    fn shape(&self) -> VmShape {
        VmShape {
            vcpus: 1,
            memory_mib: 256,
            disk_gib: 1,
        }
    }

    fn damage(&self, key: &CheckpointKey) {
        let (daemon, project) = (self.daemons.get(0), self.project());
        let all = daemon.api("GET", &format!("/1.0/instances?recursion=1&project={project}"), None);
        for instance in all.as_array().unwrap() {
            if instance["config"]["user.hearth.checkpoint"] == key.as_str() {
                let name = instance["name"].as_str().unwrap();
                let path = format!("/1.0/instances/{name}/snapshots/frozen?project={project}");
                daemon.api("DELETE", &path, None);
            }
        }
    }

    /// No kernel of its own boots there.
    fn console_says(&self) -> &'static str {
        "is the first process"
    }

    async fn finish(&self) {
        assert_eq!(self.driver.checkpoints().await.unwrap(), []);
        assert_eq!(self.driver.list().await.unwrap(), []);
        let path = format!("/1.0/instances?project={}", self.project());
        let left = self.daemons.get(0).try_api("GET", &path, None);
        // Where nothing was made there is no project.
        assert!(left.as_ref().map_or(true, |left| *left == json!([])), "{left:?}");
    }
}

mod as_root_one_daemon {
    use super::*;

    contract_suite!(
        Incus::one().await,
        #[ignore = "needs Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
    );
}

mod as_root_three_members {
    use super::*;

    contract_suite!(
        Incus::cluster().await,
        #[ignore = "needs Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
    );
}
