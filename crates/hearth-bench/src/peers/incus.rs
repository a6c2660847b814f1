//! Incus with a daemon and a storage pool of the bench's own: a stopped, prepared container is copied, started, entered.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use super::{NAME, output, words};
use crate::work::{COPIED_MIB, make_file};

/// Where packages put the daemon.
const DAEMONS: [&str; 3] = [
    "/usr/libexec/incus/incusd",
    "/usr/lib/incus/incusd",
    "/opt/incus/bin/incusd",
];
/// The pool's file, sparse: the tree is 1 GiB and shared by all copies.
const POOL_SIZE: &str = "size=6GiB";
/// How long the daemon may take to end, looks and their pause.
const END_CHECKS: u32 = 200;
const CHECK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Incus {
    folder: PathBuf,
    /// What its storage is: it decides what a copy costs.
    pub(super) storage: &'static str,
}

fn home(folder: &Path) -> PathBuf {
    folder.join("incus")
}

fn incus(folder: &Path) -> Command {
    let mut command = Command::new("incus");
    command
        .env("INCUS_DIR", home(folder))
        .env("INCUS_CONF", folder.join("incus-client"));
    command
}

impl Incus {
    pub(super) async fn prepare(folder: &Path, tree: &Path) -> Result<Self> {
        let daemon = DAEMONS.iter().find(|path| Path::new(path).exists());
        let daemon = daemon.context("it is not installed")?;
        fs::create_dir_all(home(folder))?;
        let log = File::create(folder.join("incusd.log"))?;
        let child = Command::new(daemon)
            .env("INCUS_DIR", home(folder))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("its daemon cannot be started")?;
        let pid = child.id().context("its daemon ended at once")?;
        fs::write(folder.join("incusd.pid"), pid.to_string())?;
        output(incus(folder).args(["admin", "waitready", "--timeout", "30"])).await?;
        // Copies that share what they do not change: the best it can do.
        let create = |driver: &'static str| {
            let mut command = incus(folder);
            command.args(["storage", "create", NAME, driver]);
            command
        };
        let storage = if output(create("btrfs").arg(POOL_SIZE)).await.is_ok() {
            "btrfs"
        } else {
            output(&mut create("dir")).await?;
            "dir"
        };
        let pool = format!("pool={NAME}");
        output(incus(folder).args(["profile", "device", "add", "default", "root", "disk", "path=/", &pool])).await?;
        let metadata = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  description: bench\n";
        fs::write(folder.join("metadata.yaml"), metadata)?;
        let tar = |into: &str, from: &Path, what: &str| {
            let mut command = Command::new("tar");
            command.arg("--directory").arg(from).arg("--exclude=./lost+found");
            command.arg("--create").arg("--file").arg(folder.join(into)).arg(what);
            command
        };
        output(&mut tar("metadata.tar", folder, "metadata.yaml")).await?;
        output(&mut tar("root.tar", tree, ".")).await?;
        let mut import = incus(folder);
        import
            .args(["image", "import"])
            .arg(folder.join("metadata.tar"))
            .arg(folder.join("root.tar"));
        output(import.args(["--alias", NAME])).await?;
        fs::remove_file(folder.join("root.tar"))?;
        output(incus(folder).args(["init", NAME, NAME])).await?;
        let incus = Self {
            folder: folder.to_owned(),
            storage,
        };
        incus.run(&words(0), 0).await?;
        Ok(incus)
    }

    pub(super) async fn run(&self, words: &[String], round: usize) -> Result<Duration> {
        let name = format!("{NAME}-{round}");
        let begin = Instant::now();
        output(incus(&self.folder).args(["copy", NAME, &name])).await?;
        output(incus(&self.folder).args(["start", &name])).await?;
        output(incus(&self.folder).args(["exec", &name, "--"]).args(words)).await?;
        let took = begin.elapsed();
        output(incus(&self.folder).args(["delete", "--force", &name])).await?;
        Ok(took)
    }

    /// Copies a file of [`COPIED_MIB`] into a running container, so many times.
    pub(super) async fn push(&self, rounds: usize) -> Result<Vec<Duration>> {
        let file = self.folder.join("pushed");
        make_file(&file, COPIED_MIB)?;
        let name = format!("{NAME}-files");
        output(incus(&self.folder).args(["copy", NAME, &name])).await?;
        output(incus(&self.folder).args(["start", &name])).await?;
        let mut took = Vec::new();
        for _ in 0..rounds {
            let begin = Instant::now();
            let to = format!("{name}/root/pushed");
            output(incus(&self.folder).args(["file", "push"]).arg(&file).arg(to)).await?;
            took.push(begin.elapsed());
        }
        output(incus(&self.folder).args(["delete", "--force", &name])).await?;
        Ok(took)
    }
}

/// Ends its containers, then its daemon.
pub(super) async fn clean(folder: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(folder.join("incusd.pid")) else {
        return Ok(());
    };
    let pid = Pid::from_raw(text.trim().parse()?);
    if !is_daemon(pid) {
        return Ok(());
    }
    let listed = output(incus(folder).args(["list", "--format", "csv", "--columns", "n"])).await?;
    for name in listed.lines().filter(|name| name.starts_with(NAME)) {
        output(incus(folder).args(["delete", "--force", name])).await?;
    }
    // Whatever of this was not made yet is not there to be removed.
    let parts: [&[&str]; 3] = [
        &["image", "delete", NAME],
        &["profile", "device", "remove", "default", "root"],
        &["storage", "delete", NAME],
    ];
    for part in parts {
        let _ = output(incus(folder).args(part)).await;
    }
    kill(pid, Signal::SIGTERM).context("incusd cannot be ended")?;
    for _ in 0..END_CHECKS {
        if !is_daemon(pid) {
            return Ok(());
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
    bail!("incusd does not end")
}

/// Whether this process (not its remains) is an incusd.
fn is_daemon(pid: Pid) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        program.ends_with(b"/incusd")
    })
}
