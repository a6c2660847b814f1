//! The agent as a VM's first process: in the initial RAM disk, and in a root that has no init of its own.
//!
//! It is not a service manager: besides the agent's server it starts nothing.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

pub(crate) mod initrd;
pub(crate) mod net;
pub(crate) mod system;

/// Lists the kernel modules to load, one path a line. Its presence tells an initial RAM disk from a root.
const MODULES: &str = "/modules";

/// Process 1 without a role in its arguments: finds out where it runs.
pub(crate) fn run_first() -> ExitCode {
    if Path::new(MODULES).exists() {
        initrd::run()
    } else {
        system::run()
    }
}

/// A line on the console, which is all there is to write to this early.
fn say(message: impl Display) {
    eprintln!("hearth-agent: {message}");
}

/// Something to mount. Fails softly: a mount that is there already is as good.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

impl Mount {
    fn make(&self) -> nix::Result<()> {
        drop(std::fs::create_dir_all(self.target));
        match mount(Some(self.kind), self.target, Some(self.kind), self.flags, self.data) {
            Err(Errno::EBUSY) => Ok(()),
            result => result,
        }
    }
}

fn mount_all(mounts: &[Mount]) {
    for wanted in mounts {
        if let Err(error) = wanted.make() {
            say(format_args!(
                "{} could not be mounted at {}: {}",
                wanted.kind,
                wanted.target,
                error.desc()
            ));
        }
    }
}

/// Ends the machine. Without power management the kernel would only halt and QEMU run for ever; then a reboot ends the tiny guest in
/// which the host tries KVM, which is started with `-no-reboot`. A VM is not: who has one may restart it, and the driver's machine always
/// has power management.
fn power_off() -> ExitCode {
    nix::unistd::sync();
    let managed = Path::new("/sys/firmware/acpi").exists();
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT]
        .into_iter()
        .skip(usize::from(!managed))
    {
        let Err(error) = reboot(mode);
        say(format_args!("the machine could not be ended: {}", error.desc()));
    }
    ExitCode::FAILURE
}
