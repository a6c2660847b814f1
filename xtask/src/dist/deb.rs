//! The Debian package, put together by Debian's own `dpkg-deb`: a tool from elsewhere would have to be compiled first, and would build
//! the program without the agent inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Release, copy, read, write};
use crate::{process, workspace};

/// What VMs need on the machine.
const DEPENDS: &str = "adduser, ca-certificates, e2fsprogs, git, init-system-helpers, iproute2, mount, nftables, qemu-utils, \
                       slirp4netns, util-linux";
/// And what images are built with.
const RECOMMENDS: &str = "mmdebstrap, debian-archive-keyring, git-lfs, openssh-client, uidmap, xz-utils, zstd";
/// The first QEMU that freezes a VM into files; Debian 12 has it in its backports.
const QEMU: &str = "1:8.2";
const UNITS: &str = "lib/systemd/system";

pub(super) fn package(release: &Release) -> Result<PathBuf> {
    let (architecture, emulator) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "qemu-system-arm"),
        _ => ("amd64", "qemu-system-x86"),
    };
    let root = release.work("deb")?;
    release.install(&root.join("usr"), UNITS)?;
    for page in fs::read_dir(root.join("usr/share/man/man1"))? {
        process::run(Command::new("gzip").args(["--best", "--no-name"]).arg(page?.path()))?;
    }
    write(&root.join("etc/hearth/hearth.toml"), &release.example()?, 0o640)?;
    let doc = root.join("usr/share/doc/hearth");
    copy(&workspace::root().join("LICENSE"), &doc.join("copyright"), 0o644)?;
    copy(
        &workspace::root().join("CHANGELOG.md"),
        &doc.join("CHANGELOG.md"),
        0o644,
    )?;
    let scripts = workspace::root().join("deploy/debian");
    for script in ["postinst", "prerm", "postrm"] {
        copy(&scripts.join(script), &root.join("DEBIAN").join(script), 0o755)?;
    }
    write(&root.join("DEBIAN/conffiles"), "/etc/hearth/hearth.toml\n", 0o644)?;
    let version = format!("{}-{}", release.version, release.revision);
    let libraries = libraries(release)?;
    let control = format!(
        "Package: hearth\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: Hearth <hearth@example.invalid>\n\
         Section: admin\nPriority: optional\nInstalled-Size: {}\nDepends: {libraries}, {emulator} (>= {QEMU}), {DEPENDS}\n\
         Recommends: {RECOMMENDS}\nDescription: warm pools of prepared virtual machines\n \
         Keeps virtual machines ready for coding agents: booted, with a project's repositories, variables and set-up,\n \
         to be claimed in milliseconds. Runs as a service of its own user; VMs outlive its restarts and upgrades.\n",
        kib(&root)?
    );
    write(&root.join("DEBIAN/control"), &control, 0o644)?;
    let file = release.folder.join(format!("hearth_{version}_{architecture}.deb"));
    process::run(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .args([&root, &file]),
    )?;
    Ok(file)
}

/// The packages of the libraries that the program is linked to, in the versions that it needs.
fn libraries(release: &Release) -> Result<String> {
    let work = release.work("shlibs")?;
    write(
        &work.join("debian/control"),
        "Source: hearth\n\nPackage: hearth\nArchitecture: any\n",
        0o644,
    )?;
    let said = read(
        Command::new("dpkg-shlibdeps")
            .args(["-O", "-e"])
            .arg(&release.program)
            .current_dir(&work),
    )?;
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(depends.unwrap_or("libc6").to_owned())
}

fn kib(folder: &Path) -> Result<u64> {
    let said = read(
        Command::new("du")
            .args(["--summarize", "--block-size=1024"])
            .arg(folder),
    )?;
    Ok(said.split_whitespace().next().unwrap_or_default().parse()?)
}
