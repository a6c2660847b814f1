//! The tree that all others start from: what is in Hearth's guest image, with the repository cloned and set up by the same
//! commands, at the host's speed. Needs root.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use hearth_image as image;
use tokio::process::Command;

use super::output;
use crate::project::{ANSWER, CHECKOUT, Project, commands};

pub(super) async fn make(images: &Path, folder: &Path, project: &Project) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("mounting the guest image needs root");
    }
    let image = image::find(images, None)?;
    let disk = images.join(&image.manifest.digest).join("rootfs.ext4");
    let (mount, tree) = (folder.join("image"), folder.join("tree"));
    fs::create_dir_all(&mount)?;
    fs::create_dir_all(&tree)?;
    output(
        Command::new("mount")
            .args(["-o", "loop,ro,noload"])
            .arg(&disk)
            .arg(&mount),
    )
    .await?;
    let copied = output(Command::new("cp").arg("-a").arg(mount.join(".")).arg(&tree)).await;
    output(Command::new("umount").arg(&mount)).await?;
    copied?;
    let inside = |path: &str| tree.join(path.trim_start_matches('/'));
    output(
        Command::new("git")
            .args(["clone", "--quiet"])
            .arg(&project.repository)
            .arg(inside(CHECKOUT)),
    )
    .await?;
    for command in commands(0, 0)? {
        let words = ["bash", "-eo", "pipefail", "-c", &command.command];
        output(Command::new("chroot").arg(&tree).args(words)).await?;
    }
    fs::metadata(inside(ANSWER)).context("the set-up of the tree left nothing")?;
    Ok(tree)
}
