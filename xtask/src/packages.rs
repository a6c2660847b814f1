//! What of the host's packages is there, as dpkg and apt tell it. Reads only.

use std::process::Command;

use crate::process::output_of;

/// Everything that Hearth and its tests use, by what it is for. Names are the same in Debian 12, Debian 13 and Ubuntu 24.04.
const NEEDED: [&str; 30] = [
    // Virtual machines and their network.
    "qemu-utils",
    "slirp4netns",
    "nftables",
    "uidmap",
    "iproute2",
    // The images of the driver `incus`' tests, and the storage of their daemons.
    "btrfs-progs",
    "squashfs-tools",
    "busybox-static",
    // Guest images.
    "mmdebstrap",
    "debian-archive-keyring",
    "e2fsprogs",
    "xz-utils",
    "zstd",
    "ca-certificates",
    // Repositories.
    "git",
    "git-lfs",
    // Clients of SSH in a VM, and keys for it.
    "openssh-client",
    "rsync",
    // A store for more than one machine.
    "postgresql",
    // Programs that the server and the tests call.
    "util-linux",
    "mount",
    "procps",
    // The tester of the HTTP API, and the examples.
    "python3-venv",
    "curl",
    "jq",
    "nodejs",
    // Building Hearth.
    "gcc",
    "libc6-dev",
    "make",
    "pkg-config",
];

/// The emulator for this processor; apart from the others because it must fit the version of `qemu-utils`.
pub(crate) const EMULATOR: &str = if cfg!(target_arch = "aarch64") {
    "qemu-system-arm"
} else {
    "qemu-system-x86"
};

/// The browser of the tests of the pages, and what drives it. Ubuntu has no package of it; there those tests need one that somebody has installed.
const BROWSER: [&str; 2] = ["chromium", "chromium-driver"];

/// The daemon of the driver `incus`' tests: without the one for virtual machines. Debian 12 has it in backports alone, which not every
/// machine knows; there those tests need one that somebody has installed.
const INCUS: [&str; 2] = ["incus-base", "incus-client"];

/// The packages that are not installed, the emulator last.
pub(crate) fn missing() -> Vec<&'static str> {
    NEEDED
        .into_iter()
        .chain(
            BROWSER
                .into_iter()
                .chain(INCUS)
                .filter(|name| !is_installed(name) && has_candidate(name)),
        )
        // Others' packages of Node.js bring it themselves.
        .chain((!is_program("npm")).then_some("npm"))
        .chain([EMULATOR])
        .filter(|name| !is_installed(name))
        .collect()
}

fn is_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).exists()))
}

fn is_installed(name: &str) -> bool {
    field(name, "${db:Status-Status}").is_some_and(|status| status == "installed")
}

/// The installed version.
pub(crate) fn version(name: &str) -> Option<String> {
    field(name, "${Version}").filter(|version| !version.is_empty() && is_installed(name))
}

fn field(name: &str, format: &str) -> Option<String> {
    output_of(Command::new("dpkg-query").args(["--show", "--showformat", format, name]))
}

/// Whether apt knows a version that it could install.
pub(crate) fn has_candidate(name: &str) -> bool {
    let policy = output_of(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C")).unwrap_or_default();
    policy
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
}

/// Whether apt knows a version of it from this suite.
pub(crate) fn offered_by(name: &str, suite: &str) -> bool {
    let table = output_of(Command::new("apt-cache").args(["madison", name]).env("LC_ALL", "C")).unwrap_or_default();
    table.lines().any(|line| line.contains(&format!(" {suite}/")))
}

/// The mirror that the host uses for its own suite.
pub(crate) fn mirror(codename: &str) -> Option<String> {
    let targets = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CODENAME) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    targets.lines().find_map(|line| {
        let (name, address) = line.split_once(' ')?;
        (name == codename).then(|| address.trim_end_matches('/').to_owned())
    })
}

/// The host's suite by name: `bookworm`.
pub(crate) fn codename() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}
