//! An image as a container engine takes it: one tar with `metadata.yaml` and the tree below `rootfs/` (Incus' unified form). The
//! tree is read out of the root disk as it is, without root and without a mount; what only a VM needs is left out, and a few files
//! are laid over it (`container/`): where the agent listens, and a network whose addresses somebody else gives.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ext4_view::{Ext4, Metadata};
use tar::{Builder, EntryType, Header};

use super::{Image, ImageError};

/// Counts up when the same image would give another tar.
pub const CONTAINER_FORMAT: u32 = 1;

const ROOTFS: &str = "rootfs";
const METADATA: &str = "metadata.yaml";
const PLAIN: u32 = 0o644;
const PROGRAM: u32 = 0o755;

/// What only a kernel of its own needs.
const LEFT_OUT: [&str; 4] = ["/boot", "/usr/lib/modules", "/lib/modules", "/lost+found"];

/// Files over the image's: path below the root, mode, text.
const FILES: [(&str, u32, &str); 6] = [
    (
        "etc/systemd/system/hearth-agent.service.d/container.conf",
        PLAIN,
        include_str!("container/agent.conf"),
    ),
    (
        "etc/systemd/network/80-hearth.network",
        PLAIN,
        include_str!("container/hearth.network"),
    ),
    (
        "etc/systemd/system/hearth-names.path",
        PLAIN,
        include_str!("container/hearth-names.path"),
    ),
    (
        "etc/systemd/system/hearth-names.service",
        PLAIN,
        include_str!("container/hearth-names.service"),
    ),
    ("usr/local/lib/hearth/names", PROGRAM, include_str!("container/names")),
    // No disk of its own to mount or to grow.
    ("etc/fstab", PLAIN, ""),
];

/// Links over the image's: path, target.
const LINKS: [(&str, &str); 4] = [
    // The addresses of QEMU's user-mode network.
    ("etc/systemd/system/hearth-network.service", "/dev/null"),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/lib/systemd/system/systemd-networkd.service",
    ),
    (
        "etc/systemd/system/sockets.target.wants/systemd-networkd.socket",
        "/lib/systemd/system/systemd-networkd.socket",
    ),
    (
        "etc/systemd/system/multi-user.target.wants/hearth-names.path",
        "/etc/systemd/system/hearth-names.path",
    ),
];

/// Writes the tar. Blocks; the order of entries is the disk's, so that the same image gives the same bytes.
pub fn write_container(image: &Image, out: impl Write) -> Result<(), ImageError> {
    let failed = || {
        ImageError::io(format!(
            "the image {} could not be written as a container's",
            image.manifest.name
        ))
    };
    let mut tar = Builder::new(out);
    pack(image, &mut tar).and_then(|()| tar.finish()).map_err(failed())
}

fn pack(image: &Image, tar: &mut Builder<impl Write>) -> io::Result<()> {
    let made = image.manifest.created.as_second();
    let text = metadata(image)?;
    file(tar, Path::new(METADATA), PLAIN, made, text.as_bytes())?;
    let disk = Ext4::load_from_path(&image.rootfs).map_err(io::Error::other)?;
    let laid: HashSet<&str> = FILES
        .iter()
        .map(|(path, ..)| *path)
        .chain(LINKS.iter().map(|(path, _)| *path))
        .collect();
    let root = disk.metadata("/")?;
    folder(tar, Path::new(ROOTFS), &root)?;
    let mut made_folders = HashSet::new();
    walk(&disk, "/", tar, &laid, &mut made_folders)?;
    for (path, mode, text) in FILES {
        parents(tar, path, made, &mut made_folders)?;
        file(tar, &Path::new(ROOTFS).join(path), mode, made, text.as_bytes())?;
    }
    for (path, target) in LINKS {
        parents(tar, path, made, &mut made_folders)?;
        let mut header = header(EntryType::Symlink, 0o777, made);
        tar.append_link(&mut header, Path::new(ROOTFS).join(path), target)?;
    }
    Ok(())
}

/// What the engine is told of the image.
fn metadata(image: &Image) -> io::Result<String> {
    let manifest = &image.manifest;
    // JSON is YAML.
    let value = serde_json::json!({
        "architecture": std::env::consts::ARCH,
        "creation_date": manifest.created.as_second(),
        "properties": {
            "description": format!("Hearth's image {} (Debian {})", manifest.name, manifest.suite),
            "os": "Debian",
            "release": manifest.suite,
        },
    });
    serde_json::to_string_pretty(&value).map_err(io::Error::other)
}

/// Everything below a folder.
fn walk(
    disk: &Ext4,
    from: &str,
    tar: &mut Builder<impl Write>,
    laid: &HashSet<&str>,
    folders: &mut HashSet<PathBuf>,
) -> io::Result<()> {
    for entry in disk.read_dir(from)? {
        let entry = entry?;
        let path = entry.path();
        let path = path.to_str().map_err(io::Error::other)?;
        let name = entry.file_name();
        if matches!(name.as_ref(), b"." | b"..") || LEFT_OUT.contains(&path) {
            continue;
        }
        let below = path.trim_start_matches('/');
        if laid.contains(below) {
            continue;
        }
        let metadata = disk.symlink_metadata(path)?;
        let kind = metadata.file_type();
        let to = Path::new(ROOTFS).join(below);
        if kind.is_dir() {
            folder(tar, &to, &metadata)?;
            folders.insert(PathBuf::from(below));
            walk(disk, path, tar, laid, folders)?;
        } else if kind.is_symlink() {
            let target = disk.read_link(path)?;
            let target = target.to_str().map_err(io::Error::other)?;
            let mut header = of_entry(EntryType::Symlink, &metadata);
            tar.append_link(&mut header, &to, target)?;
        } else if kind.is_regular_file() {
            let mut header = of_entry(EntryType::Regular, &metadata);
            header.set_size(metadata.len());
            let content = disk.open(path)?.take(metadata.len());
            tar.append_data(&mut header, &to, content)?;
        }
        // Devices and sockets: a container gets its own.
    }
    Ok(())
}

/// Folders that the image lacks on the way to a file that is laid over it.
fn parents(tar: &mut Builder<impl Write>, path: &str, time: i64, folders: &mut HashSet<PathBuf>) -> io::Result<()> {
    let mut above: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
    above.retain(|folder| folder.as_os_str() != "");
    for folder in above.into_iter().rev() {
        if folders.insert(folder.to_owned()) {
            let mut header = header(EntryType::Directory, PROGRAM, time);
            tar.append_data(&mut header, Path::new(ROOTFS).join(folder), io::empty())?;
        }
    }
    Ok(())
}

fn file(tar: &mut Builder<impl Write>, path: &Path, mode: u32, time: i64, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode, time);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn folder(tar: &mut Builder<impl Write>, path: &Path, metadata: &Metadata) -> io::Result<()> {
    let mut header = of_entry(EntryType::Directory, metadata);
    tar.append_data(&mut header, path, io::empty())
}

fn of_entry(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = header(kind, u32::from(metadata.mode()), metadata.modified().seconds());
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header
}

/// Owned by root, and empty.
fn header(kind: EntryType, mode: u32, time: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(u64::try_from(time).unwrap_or_default());
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;
    use crate::{Manifest, Sizes};

    fn image(folder: &Path, tree: &Path) -> Image {
        let rootfs = folder.join("rootfs.ext4");
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([tree, &rootfs])
            .arg("16M")
            .status()
            .unwrap();
        assert!(made.success());
        Image {
            folder: folder.to_owned(),
            rootfs,
            kernel: folder.join("vmlinuz"),
            unpacked_kernel: None,
            initrd: folder.join("initrd"),
            manifest: Manifest {
                digest: "d".repeat(64),
                name: "debian-bookworm".to_owned(),
                suite: "bookworm".to_owned(),
                kernel_version: String::new(),
                packages: Vec::new(),
                agent_sha256: String::new(),
                agent_version: String::new(),
                base: String::new(),
                created: jiff::Timestamp::UNIX_EPOCH,
                sizes: Sizes {
                    rootfs: 0,
                    rootfs_on_disk: 0,
                    vmlinuz: 0,
                    initrd: 0,
                    vmlinux: None,
                },
            },
        }
    }

    #[test]
    fn the_tree_is_there_without_what_only_a_vm_needs_and_with_what_a_container_does() {
        let (folder, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for path in ["boot", "usr/lib/modules/6.1", "etc/systemd/system", "home/long"] {
            std::fs::create_dir_all(tree.path().join(path)).unwrap();
        }
        let long = format!("home/long/{}", "n".repeat(200));
        for (path, text) in [
            ("boot/vmlinuz", "kernel"),
            ("usr/lib/modules/6.1/a.ko", "module"),
            ("etc/fstab", "/dev/vda / ext4"),
            ("etc/systemd/system/hearth-network.service", "static"),
            ("etc/motd", "hello"),
            (&long, "long"),
        ] {
            std::fs::write(tree.path().join(path), text).unwrap();
        }
        std::os::unix::fs::symlink("motd", tree.path().join("etc/link")).unwrap();
        let image = image(folder.path(), tree.path());
        let mut bytes = Vec::new();
        write_container(&image, &mut bytes).unwrap();
        let mut again = Vec::new();
        write_container(&image, &mut again).unwrap();
        assert!(bytes == again, "the same image gives the same bytes");

        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let before = entries.insert(path.trim_end_matches('/').to_owned(), link.unwrap_or(text));
            assert!(before.is_none(), "twice: {path}");
        }
        assert!(entries["metadata.yaml"].contains("architecture"));
        assert_eq!(entries["rootfs/etc/motd"], "hello");
        assert_eq!(entries["rootfs/etc/link"], "motd");
        assert_eq!(entries[&format!("rootfs/{long}")], "long");
        assert_eq!(entries["rootfs/etc/fstab"], "");
        assert_eq!(entries["rootfs/etc/systemd/system/hearth-network.service"], "/dev/null");
        let agent = &entries["rootfs/etc/systemd/system/hearth-agent.service.d/container.conf"];
        assert!(agent.contains("serve --container"), "{agent}");
        for gone in ["rootfs/boot", "rootfs/usr/lib/modules", "rootfs/lost+found"] {
            assert!(!entries.contains_key(gone), "{gone}");
        }
    }
}
