//! Process 1 in the initial RAM disk: loads the modules that the root disk needs, mounts it, and goes there.
//!
//! With `hearth.probe` on the kernel's command line it only says that it has booted: that is how a host finds out
//! whether its hardware virtualisation truly works.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::{MODULES, Mount, mount_all, power_off, say};

/// On the kernel's command line: say [`PROBE_ANSWER`] and power off.
const PROBE_WORD: &str = "hearth.probe";
const PROBE_ANSWER: &str = "HEARTH-PROBE-OK";

const ROOT_DISK: &str = "/dev/vda";
const ROOT_KIND: &str = "ext4";
const NEW_ROOT: &str = "/newroot";
const INIT: &str = "/sbin/init";

/// Where the agent continues from in a root without an init: that root need not hold the agent.
const AGENT_COPY: &str = "/run/hearth-agent";
const AGENT_MODE: u32 = 0o755;

/// The disk appears within milliseconds of its driver; much longer only on a very busy host.
const DISK_DEADLINE: Duration = Duration::from_secs(30);
const DISK_CHECK: Duration = Duration::from_millis(5);

/// A flag to the kernel for a module that is compressed; `nix` has no name for it.
const COMPRESSED_MODULE: u32 = 4;

/// How long the message of a failed boot stays before the machine ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

const EARLY: [Mount; 3] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: MsFlags::empty(),
        data: None,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: MsFlags::empty(),
        data: None,
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::empty(),
        data: None,
    },
];

/// Never returns when all goes well; a boot that fails ends the machine, with the reason on the console.
pub(super) fn run() -> ExitCode {
    mount_all(&EARLY);
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_whitespace().any(|word| word == PROBE_WORD) {
        println!("{PROBE_ANSWER}");
        return power_off();
    }
    if let Err(reason) = go_to_root() {
        say(format_args!("this VM cannot boot: {reason}"));
        std::thread::sleep(LAST_WORDS);
    }
    power_off()
}

fn go_to_root() -> Result<(), String> {
    load_modules()?;
    wait_for_disk()?;
    fs::create_dir_all(NEW_ROOT).map_err(|error| format!("{NEW_ROOT}: {error}"))?;
    mount(
        Some(ROOT_DISK),
        NEW_ROOT,
        Some(ROOT_KIND),
        MsFlags::MS_NOATIME,
        None::<&str>,
    )
    .map_err(|error| format!("{ROOT_DISK} could not be mounted as {ROOT_KIND}: {}", error.desc()))?;
    let agent = File::open("/proc/self/exe").map_err(|error| format!("the agent cannot read itself: {error}"))?;
    switch_root().map_err(|error| format!("the root could not be changed: {error}"))?;
    if Path::new(INIT).exists() {
        let error = Command::new(INIT).env_clear().exec();
        say(format_args!("{INIT} could not be run, continuing without it: {error}"));
    }
    become_init(agent).map_err(|error| format!("the agent could not continue in the root: {error}"))
}

fn load_modules() -> Result<(), String> {
    let list = fs::read_to_string(MODULES).map_err(|error| format!("{MODULES}: {error}"))?;
    for line in list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
        if let Err(error) = load_module(Path::new("/").join(path).as_path(), parameters) {
            // Not the end: what truly was needed is missed when the disk does not appear.
            say(format_args!("the kernel module {path} could not be loaded: {error}"));
        }
    }
    Ok(())
}

fn load_module(path: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let parameters = CString::new(parameters)?;
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let flags = if plain {
        ModuleInitFlags::empty()
    } else {
        ModuleInitFlags::from_bits_retain(COMPRESSED_MODULE)
    };
    match finit_module(&file, &parameters, flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_disk() -> Result<(), String> {
    let deadline = Instant::now() + DISK_DEADLINE;
    while !Path::new(ROOT_DISK).exists() {
        if Instant::now() >= deadline {
            return Err(format!("no disk {ROOT_DISK} after {} s", DISK_DEADLINE.as_secs()));
        }
        std::thread::sleep(DISK_CHECK);
    }
    Ok(())
}

/// What `switch_root(8)` does: the mounts move over, the RAM disk's memory is freed, the new root becomes `/`.
fn switch_root() -> io::Result<()> {
    for moved in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{moved}");
        fs::create_dir_all(&target)?;
        mount(
            Some(moved),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )?;
    }
    let old_root = fs::metadata("/")?.dev();
    delete_below(Path::new("/"), old_root);
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// Deletes everything that is on the device itself. What is mounted on top of it is another device, and stays.
fn delete_below(folder: &Path, device: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        if found.dev() != device {
            continue;
        }
        // Memory that is not freed is no reason not to boot.
        if found.is_dir() {
            delete_below(&path, device);
            drop(fs::remove_dir(&path));
        } else {
            drop(fs::remove_file(&path));
        }
    }
}

/// Puts the agent into the new root's memory and continues as its init.
fn become_init(mut agent: File) -> io::Result<()> {
    let run = Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        data: Some("mode=755"),
    };
    run.make()?;
    let path = PathBuf::from(AGENT_COPY);
    let mut copy = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(AGENT_MODE)
        .open(&path)?;
    io::copy(&mut agent, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(AGENT_MODE))?;
    // A file that is open for writing cannot be run.
    drop(copy);
    Err(Command::new(&path).arg("init").env_clear().exec())
}
