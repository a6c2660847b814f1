//! `systemd-nspawn` on the tree itself, what it writes in memory: a bare container, without images, network or a daemon.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::process::Command;

use super::{NAME, output, words};

pub(super) struct Nspawn {
    tree: PathBuf,
}

impl Nspawn {
    pub(super) async fn prepare(tree: &Path) -> Result<Self> {
        let nspawn = Self { tree: tree.to_owned() };
        nspawn.run(&words(0)).await?;
        Ok(nspawn)
    }

    pub(super) async fn run(&self, words: &[String]) -> Result<Duration> {
        let mut command = Command::new("systemd-nspawn");
        command
            // Neither systemd nor its register of machines need be there.
            .args(["--quiet", "--volatile=overlay", "--register=no", "--keep-unit"])
            .args(["--private-network", "--machine", NAME, "--directory"])
            .arg(&self.tree)
            .arg("--")
            .args(words);
        let begin = Instant::now();
        output(&mut command).await?;
        Ok(begin.elapsed())
    }
}
