//! What every image holds besides packages: the files laid over Debian's, the list of packages, the scripts of the build.
//! The texts themselves lie in `guest/` (files of the VM, at the place they have there) and `host/` (scripts of the build).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A file of the VM: path without the leading slash, mode, text.
pub(super) struct GuestFile {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) text: &'static str,
}

const PLAIN: u32 = 0o644;
const PROGRAM: u32 = 0o755;

macro_rules! guest_file {
    ($mode:expr, $path:literal) => {
        GuestFile {
            path: $path,
            mode: $mode,
            text: include_str!(concat!("guest/", $path)),
        }
    };
}

pub(super) const FILES: [GuestFile; 16] = [
    guest_file!(PLAIN, "etc/apt/apt.conf.d/90hearth"),
    guest_file!(PLAIN, "etc/environment"),
    guest_file!(PLAIN, "etc/fstab"),
    guest_file!(PLAIN, "etc/hostname"),
    guest_file!(PLAIN, "etc/hosts"),
    guest_file!(PLAIN, "etc/initramfs-tools/update-initramfs.conf"),
    guest_file!(PLAIN, "etc/profile.d/hearth-environment.sh"),
    guest_file!(PLAIN, "etc/resolv.conf"),
    guest_file!(PLAIN, "etc/sysctl.d/90-hearth.conf"),
    guest_file!(PLAIN, "etc/systemd/journald.conf.d/hearth.conf"),
    guest_file!(PLAIN, "etc/systemd/system.conf.d/hearth.conf"),
    guest_file!(PLAIN, "etc/systemd/system/hearth-agent.service"),
    guest_file!(PLAIN, "etc/systemd/system/hearth-network.service"),
    guest_file!(PLAIN, "etc/systemd/system/ssh.service.d/hearth.conf"),
    guest_file!(PLAIN, "etc/systemd/system/systemd-udev-trigger.service.d/hearth.conf"),
    guest_file!(PROGRAM, "usr/local/lib/hearth/network"),
];

/// Where the agent lies in the VM; `hearth-agent.service` starts it from there.
pub(super) const AGENT_IN_GUEST: &str = "/usr/local/sbin/hearth-agent";

/// Where Debian looks for CA certificates besides its own, on the host and in the VM alike, without the leading slash.
pub(super) const EXTRA_CA_FOLDER: &str = "usr/local/share/ca-certificates";

/// The script that does the work, and the two it calls.
pub(super) const BUILD_SCRIPT: (&str, &str) = ("build.sh", include_str!("host/build.sh"));
pub(super) const HOOK_SCRIPTS: [(&str, &str); 2] = [
    ("setup.sh", include_str!("host/setup.sh")),
    ("customize.sh", include_str!("host/customize.sh")),
];

/// What every image has, besides the kernel and what Debian itself cannot do without. None of them starts anything by itself
/// (`host/customize.sh` switches off what would); C.UTF-8 needs no package, and manuals are left out of the image.
pub(super) const PACKAGES: &[&str] = &[
    // A system that boots.
    "systemd",
    "systemd-sysv",
    "udev",
    "kmod",
    "netbase",
    "iproute2",
    "procps",
    // What a coding task expects.
    "build-essential",
    "ca-certificates",
    "curl",
    "git",
    "git-lfs",
    "jq",
    "nodejs",
    "npm",
    "openssh-client",
    "openssh-server",
    "pkg-config",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "sqlite3",
    "sudo",
    // What a person at a terminal reaches for: editors, files, text.
    "bash-completion",
    "bc",
    "bsdextrautils",
    "fd-find",
    "gettext-base",
    "less",
    "nano",
    "tmux",
    "tree",
    "vim-tiny",
    "xxd",
    // Processes and the network.
    "bind9-dnsutils",
    "htop",
    "iputils-ping",
    "lsof",
    "net-tools",
    "netcat-openbsd",
    "psmisc",
    "rsync",
    "socat",
    "strace",
    "wget",
    // What the instructions for adding somebody's package archive call.
    "gpg",
    "lsb-release",
    // What archives are made of; the build unpacks kernel modules with the last two.
    "bzip2",
    "file",
    "unzip",
    "zip",
    "xz-utils",
    "zstd",
];

/// Modules the kernel needs before it can read the root disk, and the virtual hardware the agent wants to find at once. What
/// they depend on comes by itself; what is built into a kernel is skipped.
pub(super) const INITRD_MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "ext4",
    "overlay",
];

/// Debian's name for this machine's architecture and the kernel made for virtual machines of it.
pub(super) fn kernel_package() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Some("linux-image-cloud-amd64"),
        _ => None,
    }
}

/// A CA certificate of the host, as the image gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostCertificate {
    /// A harmless file name, the same for the same content.
    pub(super) name: String,
    pub(super) text: Vec<u8>,
}

/// The CA certificates that this host trusts besides Debian's: without them nothing in the VM could talk TLS through a company
/// proxy that signs anew. Sorted by name.
pub(super) fn host_certificates(folder: &Path) -> io::Result<Vec<HostCertificate>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "crt") {
                let text = fs::read(&path)?;
                let name = format!("host-{}.crt", super::recipe::short_digest(&text));
                found.push(HostCertificate { name, text });
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found.dedup();
    Ok(found)
}

/// Writes scripts, overlay and the overlay's list into the build's working folder.
pub(super) fn write_work_files(work: &Path, certificates: &[HostCertificate], sources: &str) -> io::Result<()> {
    let mut list = String::new();
    let mut lay = |path: &str, mode: u32, text: &[u8]| -> io::Result<()> {
        let target = work.join("overlay").join(path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&target, text)?;
        list.push_str(&format!("{mode:o} {path}\n"));
        Ok(())
    };
    for file in &FILES {
        lay(file.path, file.mode, file.text.as_bytes())?;
    }
    for certificate in certificates {
        lay(
            &format!("{EXTRA_CA_FOLDER}/{}", certificate.name),
            PLAIN,
            &certificate.text,
        )?;
    }
    fs::write(work.join("overlay.list"), list)?;
    fs::write(work.join("sources.list"), sources)?;
    for (name, text) in HOOK_SCRIPTS.iter().chain([&BUILD_SCRIPT]) {
        let path = work.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(PROGRAM))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_guest_folder_is_in_the_table() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest");
        let mut on_disk = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    on_disk.push(path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        on_disk.sort();
        let mut listed: Vec<_> = FILES.iter().map(|file| file.path.to_owned()).collect();
        listed.sort();
        assert_eq!(listed, on_disk);
    }

    #[test]
    fn certificates_of_the_host_are_found_in_subfolders_and_named_by_content() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("company")).unwrap();
        fs::write(folder.path().join("a b.crt"), "one").unwrap();
        fs::write(folder.path().join("company/x.crt"), "two").unwrap();
        fs::write(folder.path().join("company/same.crt"), "one").unwrap();
        fs::write(folder.path().join("readme"), "no").unwrap();
        let found = host_certificates(folder.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|certificate| !certificate.name.contains(' ')));
        assert!(host_certificates(&folder.path().join("missing")).unwrap().is_empty());
    }

    #[test]
    fn work_files_list_what_they_lay() {
        let work = tempfile::tempdir().unwrap();
        let certificate = HostCertificate {
            name: "host-1.crt".to_owned(),
            text: b"pem".to_vec(),
        };
        write_work_files(work.path(), &[certificate], "deb x\n").unwrap();
        let list = fs::read_to_string(work.path().join("overlay.list")).unwrap();
        assert!(
            list.contains("644 usr/local/share/ca-certificates/host-1.crt\n"),
            "{list}"
        );
        assert!(list.contains("755 usr/local/lib/hearth/network\n"), "{list}");
        for line in list.lines() {
            let (_, path) = line.split_once(' ').unwrap();
            assert!(work.path().join("overlay").join(path).is_file(), "{path}");
        }
    }
}
