//! The checks, one function each.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use hearth_host::files::bytes_on_disk;
use hearth_host::program;
use hearth_image::Stores;

use super::{Finding, Load, available_memory_mib, free_disk_mib};
use crate::network::{Tun, namespace_advice};
use crate::vm_user::VmUser;
use crate::{DriverError, qemu};

/// The oldest QEMU whose machine has every switch that the command line uses.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// Less available memory than the smallest VM and its overhead, MiB.
const MEMORY_FAIL_MIB: u64 = 1280;
/// Less available memory than two of them, MiB.
const MEMORY_WARN_MIB: u64 = 2 * MEMORY_FAIL_MIB;
/// Less free disk than an image and one VM's packages, MiB.
const DISK_FAIL_MIB: u64 = 3 * 1024;
/// Less free disk than a handful of VMs in use, MiB.
const DISK_WARN_MIB: u64 = 20 * 1024;
/// Programs that want to run on each processor above which VMs are made and answer noticeably later.
const LOAD_WARN: f64 = 2.0;
/// Bytes of the file that is cloned to see whether files can be: more than one block of any file system.
const CLONE_PROBE_BYTES: usize = 128 * 1024;

/// The first line a program prints about its version.
async fn version_line(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = program::clean(program::find(program)?);
    command.args(arguments);
    let output = program::run(command, b"").await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .next()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
}

async fn installed(name: &'static str, package: &str, program: &str) -> Finding {
    match version_line(program, &["--version"]).await {
        Some(line) => Finding::ok(name, line),
        None => Finding::fail(
            name,
            format!("{program} is not installed or does not run"),
            format!("run `apt-get install {package}` (as root)"),
        ),
    }
}

pub(super) async fn qemu() -> Finding {
    const NAME: &str = "QEMU";
    let install = "run `apt-get install qemu-system-x86` (as root)";
    if program::find(qemu::PROGRAM).is_none() {
        return Finding::fail(NAME, format!("{} is not installed", qemu::PROGRAM), install);
    }
    let Ok(version) = qemu::version().await else {
        return Finding::fail(NAME, format!("{} does not run", qemu::PROGRAM), install);
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if found < OLDEST_QEMU {
        let (major, minor) = OLDEST_QEMU;
        return Finding::warn(
            NAME,
            format!("QEMU {version} is older than {major}.{minor} and was never tried"),
            "install a newer one, on Debian from backports: `apt-get install -t bookworm-backports qemu-system-x86 qemu-utils`",
        );
    }
    Finding::ok(NAME, format!("QEMU {version}"))
}

pub(super) async fn qemu_img() -> Finding {
    installed("qemu-img", "qemu-utils", "qemu-img").await
}

pub(super) fn kvm(data_dir: &Path) -> Finding {
    const NAME: &str = "KVM";
    let slow = "VMs work without it but run several times slower; for full speed use a host with hardware virtualisation \
                (in a VM: nested virtualisation) and let this user open /dev/kvm (group kvm)";
    match qemu::kept_verdict(data_dir) {
        Some(verdict) if verdict.usable => Finding::ok(NAME, verdict.reason),
        Some(verdict) => Finding::warn(NAME, format!("not usable: {}", verdict.reason), slow),
        None if qemu::device_exists() => {
            Finding::ok(NAME, "not tried yet: the first VM tries it by booting a tiny guest")
        }
        None => Finding::warn(NAME, "not usable: this host has no /dev/kvm", slow),
    }
}

pub(super) async fn slirp() -> Finding {
    installed("slirp4netns", "slirp4netns", "slirp4netns").await
}

pub(super) async fn nft() -> Finding {
    installed("nftables", "nftables", "nft").await
}

pub(super) fn util_linux() -> Finding {
    const NAME: &str = "util-linux";
    let missing: Vec<&str> = ["unshare", "nsenter", "setpriv", "setsid", "mount"]
        .into_iter()
        .filter(|name| program::find(name).is_none())
        .collect();
    if missing.is_empty() {
        return Finding::ok(NAME, "unshare, nsenter, setpriv, setsid and mount are there");
    }
    Finding::fail(
        NAME,
        format!("not installed: {}", missing.join(", ")),
        "run `apt-get install util-linux mount` (as root)",
    )
}

/// Makes the kind of namespaces in which VMs run, and lets them go.
pub(super) async fn namespaces() -> Finding {
    const NAME: &str = "namespaces";
    let user = VmUser::detect(None);
    let mut words = user.prefix();
    if user.owner().is_some() {
        words.extend(crate::network::KEEP_FOR_NAMESPACES.map(str::to_owned));
    }
    words.extend(["unshare", "--user", "--map-root-user", "--net", "--mount", "mount"].map(str::to_owned));
    words.extend(["-t", "tmpfs", "none", crate::network::INSIDE].map(str::to_owned));
    let mut command = program::clean(words.first().map_or("unshare", String::as_str));
    command.args(words.iter().skip(1));
    match program::run(command, b"").await {
        Ok(output) if output.status.success() => Finding::ok(NAME, "user, network and mount namespaces can be made"),
        Ok(output) => Finding::fail(
            NAME,
            format!(
                "namespaces, which keep VMs away from this host, cannot be made: {}",
                program::last_output(&output.stderr)
            ),
            namespace_advice(),
        ),
        Err(error) => Finding::fail(
            NAME,
            format!("unshare cannot be run: {error}"),
            "run `apt-get install util-linux` (as root)",
        ),
    }
}

pub(super) fn tun() -> Finding {
    const NAME: &str = "/dev/net/tun";
    match Tun::inspect(&VmUser::detect(None)) {
        Ok(_) => Finding::ok(NAME, "can be opened"),
        Err(
            DriverError::Permanent { reason, .. }
            | DriverError::Retry { reason, .. }
            | DriverError::Unknown { reason, .. },
        ) => match reason.split_once(": run ") {
            Some((what, fix)) => Finding::fail(NAME, what, format!("run {fix}")),
            None => Finding::fail(NAME, reason, "see the summary"),
        },
    }
}

pub(super) fn memory() -> Finding {
    const NAME: &str = "memory";
    let Some(available) = available_memory_mib() else {
        return Finding::warn(
            NAME,
            "the kernel does not say how much memory is available",
            "mount /proc",
        );
    };
    let summary = format!("{:.1} GiB available", gib(available));
    let fix = "end other programs, or use a host with more memory: the smallest VM size takes 1 GiB";
    match available {
        0..MEMORY_FAIL_MIB => Finding::fail(NAME, summary, fix),
        MEMORY_FAIL_MIB..MEMORY_WARN_MIB => Finding::warn(NAME, summary, fix),
        _ => Finding::ok(NAME, summary),
    }
}

/// How much wants to run, against the processors there are.
pub(super) fn load(load: Option<Load>) -> Finding {
    const NAME: &str = "load";
    let Some(load) = load else {
        return Finding::warn(NAME, "the kernel does not say how much wants to run", "mount /proc");
    };
    let processors = match load.processors {
        1 => "1 processor".to_owned(),
        more => format!("{more} processors"),
    };
    let waited = load
        .pressure
        .map(|percent| format!("; something waited for one in {percent:.0} % of the last 10 s"));
    let summary = format!(
        "load average {:.1} on {processors}{}",
        load.average,
        waited.unwrap_or_default()
    );
    if load.per_processor() < LOAD_WARN {
        return Finding::ok(NAME, summary);
    }
    Finding::warn(
        NAME,
        format!("{summary}: VMs are made and answer several times slower"),
        "end what else runs (`top` shows it), let fewer VMs be made at once (`hearth serve --provision-concurrency 1`) or be there \
         (`--max-vms`), or use a host with more processors",
    )
}

fn gib(mib: u64) -> f64 {
    // A sum of MiB is far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "for showing only")]
    let mib = mib as f64;
    mib / 1024.0
}

/// The folder itself or the nearest one above it that exists.
fn nearest(folder: &Path) -> &Path {
    folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

pub(super) fn disk(data_dir: &Path) -> Finding {
    const NAME: &str = "disk";
    let fix = "free some space, or put the data folder (`--data-dir`) on a larger disk";
    match free_disk_mib(nearest(data_dir)) {
        Err(error) => Finding::fail(NAME, format!("cannot read {}: {error}", data_dir.display()), fix),
        Ok(free) => {
            let summary = format!("{:.1} GiB free under {}", gib(free), data_dir.display());
            match free {
                0..DISK_FAIL_MIB => Finding::fail(NAME, summary, fix),
                DISK_FAIL_MIB..DISK_WARN_MIB => Finding::warn(NAME, summary, fix),
                _ => Finding::ok(NAME, summary),
            }
        }
    }
}

/// What frozen VMs take on the disk.
pub(super) fn templates(data_dir: &Path) -> Finding {
    const NAME: &str = "templates";
    let folders = std::fs::read_dir(data_dir.join("templates"))
        .into_iter()
        .flatten()
        .flatten();
    let (mut count, mut bytes) = (0_u64, 0);
    for folder in folders {
        let Ok(files) = std::fs::read_dir(folder.path()) else {
            continue;
        };
        count += 1;
        let files = files.flatten().filter_map(|file| file.metadata().ok());
        bytes += files.map(|file| bytes_on_disk(&file)).sum::<u64>();
    }
    let mib = bytes / (1 << 20);
    Finding::ok(
        NAME,
        format!(
            "{count} checkpoints take {:.1} GiB under {}",
            gib(mib),
            data_dir.display()
        ),
    )
}

/// Clones a small file on the data folder's file system.
pub(super) fn reflink(data_dir: &Path) -> Finding {
    const NAME: &str = "reflink";
    let folder = nearest(data_dir);
    let clone = || -> std::io::Result<()> {
        let mut source = tempfile::tempfile_in(folder)?;
        source.write_all(&[1; CLONE_PROBE_BYTES])?;
        let copy = tempfile::tempfile_in(folder)?;
        Ok(rustix::fs::ioctl_ficlone(&copy, &source)?)
    };
    match clone() {
        Ok(()) => Finding::ok(NAME, "the data folder's file system clones files in no time"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Finding::fail(
            NAME,
            format!("cannot write below {}: {error}", folder.display()),
            "choose a data folder (`--data-dir`) that this user may write to",
        ),
        Err(_) => Finding::warn(
            NAME,
            "the data folder's file system cannot clone files: copies of a VM's disk and memory take longer",
            "nothing has to be done; btrfs or xfs for the data folder makes such copies instant",
        ),
    }
}

pub(super) async fn git() -> Finding {
    installed("git", "git", "git").await
}

pub(super) async fn git_lfs() -> Finding {
    const NAME: &str = "git-lfs";
    match version_line("git-lfs", &["version"]).await {
        Some(line) => Finding::ok(NAME, line),
        None => Finding::warn(
            NAME,
            "git-lfs is not installed: repositories that use Git LFS cannot be cloned",
            "run `apt-get install git-lfs` (as root), or leave it out of a project: `hearth project set PROJECT --no-lfs`",
        ),
    }
}

pub(super) fn image(images: &Stores) -> Finding {
    const NAME: &str = "image";
    let listed = match images.list() {
        Ok(listed) => listed,
        Err(error) => {
            return Finding::fail(NAME, error.to_string(), "make the image folder readable for this user");
        }
    };
    if let Some((folder, reason)) = listed.broken.first() {
        return Finding::warn(
            NAME,
            format!("{} is a damaged image: {reason}", folder.display()),
            "remove that folder, then run `hearth image build`",
        );
    }
    let Some(newest) = listed.images.first() else {
        let places: Vec<String> = images
            .places()
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        return Finding::fail(
            NAME,
            format!("there is no VM image in {}", places.join(" or ")),
            "run `hearth image build` (it takes a few minutes)",
        );
    };
    let count = match listed.images.len() {
        1 => "1 VM image".to_owned(),
        more => format!("{more} VM images"),
    };
    Finding::ok(
        NAME,
        format!(
            "{count}; VMs start from the newest, {} in {}",
            newest.manifest.name,
            newest.folder.display()
        ),
    )
}

pub(super) fn port(listen: SocketAddr) -> Finding {
    const NAME: &str = "port";
    match TcpListener::bind(listen) {
        Ok(_) => Finding::ok(NAME, format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Finding::warn(
            NAME,
            format!("{listen} is in use"),
            "fine if that is Hearth itself; else stop the other program or choose another address (`--listen`)",
        ),
        Err(error) => Finding::fail(
            NAME,
            format!("cannot listen on {listen}: {error}"),
            "choose another address (`--listen`); ports below 1024 are root's",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Status;

    #[test]
    fn an_overloaded_host_is_said_with_what_to_do() {
        let with = |average, processors| Load {
            average,
            running: 1,
            processors,
            pressure: Some(34.6),
        };
        let fine = load(Some(with(3.9, 2)));
        assert_eq!((fine.status, fine.fix), (Status::Ok, None));
        assert_eq!(
            fine.summary,
            "load average 3.9 on 2 processors; something waited for one in 35 % of the last 10 s"
        );
        let busy = load(Some(with(13.0, 1)));
        assert_eq!(busy.status, Status::Warn);
        assert!(
            busy.summary.starts_with("load average 13.0 on 1 processor;"),
            "{}",
            busy.summary
        );
        assert!(busy.fix.unwrap().contains("--provision-concurrency 1"));
    }
}
