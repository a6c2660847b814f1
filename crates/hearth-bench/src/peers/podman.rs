//! Podman with runc, as root, in a storage of the bench's own, so that nothing of the person's is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::{NAME, output, words};

/// Container limits that no host forbids; podman's own are above what some sandboxes allow.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];

pub(super) struct Podman {
    folder: PathBuf,
}

fn podman(folder: &Path) -> Command {
    let mut command = Command::new("podman");
    command
        .arg("--root")
        .arg(folder.join("podman"))
        .arg("--runroot")
        .arg(folder.join("podman-run"))
        .args(["--storage-driver", "overlay", "--runtime", "runc"])
        .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    command
}

impl Podman {
    /// Makes the image and tries it.
    pub(super) async fn prepare(folder: &Path, tree: &Path) -> Result<Self> {
        output(Command::new("podman").arg("--version")).await?;
        let mut tar = Command::new("tar")
            .arg("--directory")
            .arg(tree)
            .args(["--exclude=./lost+found", "--create", "."])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("tar cannot be started")?;
        let pipe: Stdio = tar.stdout.take().context("tar has no output")?.try_into()?;
        let imported = podman(folder)
            .args(["import", "--quiet", "-", NAME])
            .stdin(pipe)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await?;
        if !tar.wait().await?.success() || !imported.success() {
            bail!("podman import failed");
        }
        let podman = Self {
            folder: folder.to_owned(),
        };
        podman.run(&words(0), 0).await?;
        Ok(podman)
    }

    pub(super) async fn run(&self, words: &[String], round: usize) -> Result<Duration> {
        let name = format!("{NAME}-{round}");
        let image = format!("localhost/{NAME}");
        let begin = Instant::now();
        output(
            podman(&self.folder)
                .args(["run", "--detach", "--network", "none", "--name", &name])
                .args(LIMITS)
                .args([&image, "sleep", "infinity"]),
        )
        .await?;
        output(podman(&self.folder).args(["exec", &name]).args(words)).await?;
        let took = begin.elapsed();
        output(podman(&self.folder).args(["rm", "--force", "--time", "0", &name])).await?;
        Ok(took)
    }
}

/// Ends all its containers; its storage goes with the folder.
pub(super) async fn clean(folder: &Path) -> Result<()> {
    let storage = folder.join("podman");
    if !storage.exists() {
        return Ok(());
    }
    output(podman(folder).args(["rm", "--all", "--force", "--time", "0"])).await?;
    output(podman(folder).args(["rmi", "--all", "--force"])).await?;
    // Podman keeps it mounted on itself.
    let overlay = storage.join("overlay");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.contains(&format!(" {} ", overlay.display())) {
        output(Command::new("umount").arg(&overlay)).await?;
    }
    Ok(())
}
