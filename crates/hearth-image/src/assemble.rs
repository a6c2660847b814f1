//! From a base and an agent to an image: seconds. The agent is written into a copy of the base's file system by `debugfs`,
//! which needs no root and no mount, and into the initrd.

use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use hearth_host::files::bytes_on_disk;
use hearth_host::program;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::base::{self, Base};
use super::guest::AGENT_IN_GUEST;
use super::manifest::{INITRD, Image, KERNEL, MANIFEST, Manifest, PACKAGES, ROOTFS, Sizes, UNPACKED_KERNEL};
use super::{AgentSource, ImageError, initrd, kernel, sandbox};

/// Everybody may look at an image; nobody writes to it.
const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o444;

/// The agent under a name without blanks in it, beside the file system while `debugfs` runs.
const AGENT_FILE: &str = "agent";
/// What `debugfs` reads back.
const CHECK_FILE: &str = "agent.check";

/// Longest name of a dynamic loader is short; a file that begins like this is a 64-bit little-endian ELF file.
const ELF_MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// ELF's numbers: machine x86-64, and the program header that asks for a dynamic loader.
const ELF_X86_64: u16 = 62;
const ELF_INTERPRETER: u32 = 3;

/// Larger than any build of the agent, unoptimised ones with debug information included.
const MAX_AGENT_BYTES: u64 = 256 * 1024 * 1024;

/// The agent's binary, read and checked.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) bytes: Vec<u8>,
    pub(super) sha256: String,
    pub(super) version: String,
}

impl Agent {
    pub(super) async fn read(source: &AgentSource) -> Result<Self, ImageError> {
        let path = match source {
            AgentSource::File(path) => path,
            AgentSource::Inside { bytes, version } => {
                check_static(bytes).map_err(|why| ImageError::BadAgent {
                    path: "inside this program".into(),
                    why: why.to_owned(),
                })?;
                return Ok(Self::new(bytes.to_vec(), version.clone()));
            }
        };
        let bad = |why: String| ImageError::BadAgent {
            path: path.clone(),
            why,
        };
        let file = tokio::fs::metadata(path)
            .await
            .map_err(|error| bad(error.to_string()))?;
        // A device has no end.
        if !file.is_file() || file.len() > MAX_AGENT_BYTES {
            return Err(bad("it is no program file of at most 256 MiB".to_owned()));
        }
        let bytes = tokio::fs::read(path).await.map_err(|error| bad(error.to_string()))?;
        // Helpers run in `/`, where a relative path means something else.
        let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        check_static(&bytes).map_err(|why| bad(why.to_owned()))?;
        let mut command = program::clean(absolute);
        command.arg("version");
        let output = program::run(command, &[])
            .await
            .map_err(|error| bad(error.to_string()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || version.is_empty() {
            return Err(bad("it does not say its version; is it really hearth-agent?".to_owned()));
        }
        Ok(Self::new(bytes, version))
    }

    fn new(bytes: Vec<u8>, version: String) -> Self {
        Self {
            sha256: hex::encode(Sha256::digest(&bytes)),
            bytes,
            version,
        }
    }
}

/// A program that asks for a dynamic loader could not be process 1 of an initrd that has none: the kernel would panic.
fn check_static(bytes: &[u8]) -> Result<(), &'static str> {
    const NO_PROGRAM: &str = "it is not a program for x86-64 Linux";
    let number = |at: usize, size: usize| {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let read = || {
        // Offsets of the ELF header (elf(5)): machine, place, size and count of the program headers.
        let is_ours = bytes.starts_with(&ELF_MAGIC) && number(18, 2)? == u64::from(ELF_X86_64);
        let (place, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut is_dynamic = false;
        for index in 0..count {
            let at = usize::try_from(place.checked_add(index * size)?).ok()?;
            is_dynamic |= number(at, 4)? == u64::from(ELF_INTERPRETER);
        }
        is_ours.then_some(is_dynamic)
    };
    match read() {
        Some(false) => Ok(()),
        Some(true) => Err("it is linked dynamically: build it with RUSTFLAGS=\"-C target-feature=+crt-static\""),
        None => Err(NO_PROGRAM),
    }
}

/// What an image is called and made from.
pub(super) struct Parts<'a> {
    pub(super) digest: &'a str,
    pub(super) base_digest: &'a str,
    pub(super) name: &'a str,
    pub(super) suite: &'a str,
    pub(super) packages: &'a [String],
    pub(super) base: &'a Base,
    pub(super) agent: &'a Agent,
}

/// Makes the image in an empty folder `work` and puts it in its place among `images_dir`.
pub(super) async fn make(
    parts: &Parts<'_>,
    images_dir: &Path,
    work: &Path,
    cancel: &CancellationToken,
) -> Result<Image, ImageError> {
    let out = work.join(parts.digest);
    let failed = |what: &str| ImageError::io(format!("{what} in {} could not be written", out.display()));
    fs::create_dir(&out).map_err(failed("the image"))?;
    let work = async {
        copy_rootfs(&parts.base.folder.join(ROOTFS), &out.join(ROOTFS)).await?;
        inject_agent(&out, &parts.agent.bytes).await
    };
    tokio::select! {
        result = work => result?,
        () = cancel.cancelled() => return Err(ImageError::Cancelled),
    }
    for name in [KERNEL, PACKAGES] {
        fs::copy(parts.base.folder.join(name), out.join(name)).map_err(failed(name))?;
    }
    let unpacked = fs::read(out.join(KERNEL)).map_err(failed(KERNEL))?;
    let unpacked = kernel::unpack(&unpacked);
    if let Some(kernel) = &unpacked {
        fs::write(out.join(UNPACKED_KERNEL), kernel).map_err(failed(UNPACKED_KERNEL))?;
    }
    let file = fs::File::create(out.join(INITRD)).map_err(failed(INITRD))?;
    let modules = parts.base.folder.join(base::MODULES);
    initrd::write(BufWriter::new(file), &parts.agent.bytes, &modules, &parts.base.modules).map_err(failed(INITRD))?;

    let size = |name: &str| fs::metadata(out.join(name)).map_err(failed(name));
    let rootfs = size(ROOTFS)?;
    let manifest = Manifest {
        digest: parts.digest.to_owned(),
        name: parts.name.to_owned(),
        suite: parts.suite.to_owned(),
        kernel_version: parts.base.kernel_version.clone(),
        packages: parts.packages.to_vec(),
        agent_sha256: parts.agent.sha256.clone(),
        agent_version: parts.agent.version.clone(),
        base: parts.base_digest.to_owned(),
        created: jiff::Timestamp::now(),
        sizes: Sizes {
            rootfs: rootfs.len(),
            rootfs_on_disk: bytes_on_disk(&rootfs),
            vmlinuz: size(KERNEL)?.len(),
            initrd: size(INITRD)?.len(),
            vmlinux: unpacked.as_ref().map(|kernel| kernel.len() as u64),
        },
    };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(MANIFEST)(error.into()))?;
    fs::write(out.join(MANIFEST), text).map_err(failed(MANIFEST))?;
    let unpacked = unpacked.map(|_| UNPACKED_KERNEL);
    for name in [ROOTFS, KERNEL, INITRD, PACKAGES, MANIFEST].into_iter().chain(unpacked) {
        // The manifest's time says which image was asked for last, so its owner must be able to open it.
        let mode = if name == MANIFEST { FILE_MODE | 0o200 } else { FILE_MODE };
        fs::set_permissions(out.join(name), fs::Permissions::from_mode(mode)).map_err(failed(name))?;
    }
    fs::set_permissions(&out, fs::Permissions::from_mode(FOLDER_MODE)).map_err(failed("the image"))?;
    let folder = images_dir.join(parts.digest);
    base::settle(&out, &folder).await?;
    Image::read(&folder).map_err(|detail| ImageError::Tool {
        program: "the build",
        detail,
    })
}

/// Shares the blocks where the file system can, copies only what is not a hole where it cannot.
async fn copy_rootfs(from: &Path, to: &Path) -> Result<(), ImageError> {
    let mut command = program::clean("cp");
    command
        .args(["--reflink=auto", "--sparse=always", "--"])
        .arg(from)
        .arg(to);
    run_tool("cp", command).await?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o600)).map_err(ImageError::io(format!(
        "{} could not be opened for writing",
        to.display()
    )))
}

/// Writes the agent into the file system and reads it back: `debugfs` says success whatever happens.
async fn inject_agent(folder: &Path, agent: &[u8]) -> Result<(), ImageError> {
    let debugfs = sandbox::need("debugfs", "e2fsprogs")?;
    let failed = || ImageError::io(format!("the agent could not be written to {}", folder.display()));
    fs::write(folder.join(AGENT_FILE), agent).map_err(failed())?;
    // Run in the folder: its path may hold blanks, which debugfs would take for the end of a word.
    let commands = format!(
        "write {AGENT_FILE} {AGENT_IN_GUEST}\n\
         set_inode_field {AGENT_IN_GUEST} mode 0100755\n\
         set_inode_field {AGENT_IN_GUEST} uid 0\n\
         set_inode_field {AGENT_IN_GUEST} gid 0\n\
         dump {AGENT_IN_GUEST} {CHECK_FILE}\n\
         stat {AGENT_IN_GUEST}\n"
    );
    let mut command = program::clean(debugfs);
    command.args(["-w", "-f", "-", ROOTFS]).current_dir(folder);
    let output = program::run(command, commands.as_bytes())
        .await
        .map_err(ImageError::io("debugfs could not be run"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let is_program = said.contains("Type: regular") && said.contains("Mode:  0755");
    let back = fs::read(folder.join(CHECK_FILE)).unwrap_or_default();
    if !is_program || back != agent {
        return Err(ImageError::Tool {
            program: "debugfs",
            detail: program::last_output(&output.stderr),
        });
    }
    for name in [AGENT_FILE, CHECK_FILE] {
        fs::remove_file(folder.join(name)).map_err(failed())?;
    }
    Ok(())
}

async fn run_tool(name: &'static str, mut command: Command) -> Result<(), ImageError> {
    command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command
        .output()
        .await
        .map_err(ImageError::io(format!("{name} could not be run")))?;
    if output.status.success() {
        return Ok(());
    }
    let detail = program::last_output(&output.stderr);
    if detail.contains("No space left on device") {
        return Err(ImageError::DiskFull);
    }
    Err(ImageError::Tool { program: name, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_for_this_machine_pass() {
        assert!(check_static(b"").is_err());
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(&ELF_MAGIC).is_err());
        // The test program itself is linked dynamically.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check_static(&own).unwrap_err().contains("dynamically"));
        let mut wild = own.clone();
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check_static(&wild).is_err());
    }

    #[tokio::test]
    async fn the_agent_is_in_the_file_system_and_can_be_run_by_root() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("usr/local/sbin")).unwrap();
        let mut command = program::clean("mke2fs");
        command
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&tree)
            .arg(folder.path().join(ROOTFS))
            .arg("16M");
        run_tool("mke2fs", command).await.unwrap();
        let agent = vec![7_u8; 300_000];
        inject_agent(folder.path(), &agent).await.unwrap();
        let mut command = program::clean("e2fsck");
        command.args(["-fn"]).arg(folder.path().join(ROOTFS));
        run_tool("e2fsck", command).await.unwrap();
        assert!(!folder.path().join(CHECK_FILE).exists());
    }

    #[tokio::test]
    async fn a_file_system_without_the_agents_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = program::clean("mke2fs");
        command
            .args(["-q", "-t", "ext4"])
            .arg(folder.path().join(ROOTFS))
            .arg("16M");
        run_tool("mke2fs", command).await.unwrap();
        assert!(matches!(
            inject_agent(folder.path(), b"x").await,
            Err(ImageError::Tool { program: "debugfs", .. })
        ));
    }
}
