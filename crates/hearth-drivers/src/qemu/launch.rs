//! One QEMU process: from a VM's record and files to a process whose monitor says that the VM is up. Makes no files but the
//! record.

use std::io;
use std::time::{Duration, Instant};

use hearth_host::program;
use tokio::sync::oneshot;

use super::command::{self, Accelerator, Memory, Spec, Start};
use super::folder::{MemoryKind, Record, VmFolder};
use super::monitor::{MemoryIs, Monitor, RunState};
use super::template::{RAM, Templates};
use super::{Inner, images, time_stamp};
use crate::process::ProcessId;
use crate::vm_user::VmUser;
use crate::{CALL_TIMEOUT, DriverError, error};

/// Between two looks whether QEMU's monitor is there yet: it takes 30 ms and more, and a fork waits for it. The shortest that
/// the runtime's clock can do.
const CHECK_EVERY: Duration = Duration::from_millis(1);
/// What QEMU's own allocator gets: one arena for all threads, because each further one keeps memory of its own in every VM.
const QEMU_ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "1")];
/// The kernel's words: the root disk, the console that is logged, `eth0` for the one network card, no waiting after a panic.
/// `nokaslr` saves 25 MiB of touched memory per VM, and a VM has one tenant, who is root in it: `mitigations`, memory that the kernel
/// clears for itself and security modules without a policy would protect that tenant from itself. The image has no `apparmor_parser`,
/// and Docker runs no container without it where the kernel has AppArmor on (`docker.io` only recommends the package). The clock
/// is the emulated processor's own and steady; how fast it is, `time_stamp.rs` tells.
pub(super) const KERNEL_ARGUMENTS: &str = "root=/dev/vda rw console=ttyS0 net.ifnames=0 nokaslr mitigations=off init_on_alloc=0 \
     lsm=landlock,yama,bpf apparmor=0 tsc=reliable panic=-1";

/// Where a VM starts from.
#[derive(Debug)]
pub(super) struct Restore {
    /// The file of saved devices as QEMU sees it.
    pub(super) state: String,
    /// Where the memory begins in the template's file, when QEMU wrote that with the state.
    pub(super) memory_at: Option<u64>,
    /// Whether it runs at once.
    pub(super) runs: bool,
}

/// Starts QEMU for a VM whose folder is filled, and waits until the VM is up.
pub(super) async fn launch(
    inner: &Inner,
    folder: &VmFolder,
    record: &mut Record,
    accelerator: &Accelerator,
    restore: Option<&Restore>,
    holder: i32,
) -> Result<(), DriverError> {
    launch_within(inner, folder, record, accelerator, restore, holder, CALL_TIMEOUT).await
}

/// The same for one that may take longer.
pub(super) async fn launch_within(
    inner: &Inner,
    folder: &VmFolder,
    record: &mut Record,
    accelerator: &Accelerator,
    restore: Option<&Restore>,
    holder: i32,
    patience: Duration,
) -> Result<(), DriverError> {
    let kernel_arguments = kernel_arguments(accelerator, restore).await;
    let disks = record.disks.clone();
    let wanted = Spec {
        installation: &inner.options.installation,
        id: &record.id,
        shape: record.shape(),
        accelerator,
        image: &record.image,
        folder: &folder.inside(),
        kernel: images::kernel_file(&inner.options.images_dir, &record.image),
        kernel_arguments: &kernel_arguments,
        memory: memory(record, folder, restore),
        layers: record
            .chain
            .iter()
            .map(|layer| Templates::inside(&layer.template, &layer.file))
            .collect(),
        disks: &disks,
        start: restore.map_or(Start::Boot, |_| Start::Restore),
    };
    let mut arguments = inner.network.take(holder, &record.id).await?;
    arguments.extend(command::arguments(&wanted));
    let log = folder
        .open_log()
        .map_err(|error| error::io("cannot open the VM's log", error))?;
    let errors = log
        .try_clone()
        .map_err(|error| error::io("cannot open the VM's log", error))?;
    be_frugal(wanted.accelerator);
    // `setsid` frees it from our terminal and our process group; each word of the chain replaces the one before, so the
    // process number stays the same up to QEMU.
    let mut command = program::clean("setsid");
    command
        .args(&arguments)
        .envs(QEMU_ENVIRONMENT)
        .stdout(log)
        .stderr(errors);
    let mut child = command.spawn().map_err(|error| error::io("cannot start QEMU", error))?;
    let process = ProcessId::of_child(&child);
    // Collects the exit status whenever it ends, so that no zombie stays while we live.
    let (tell, ended) = oneshot::channel();
    tokio::spawn(async move {
        let _ = tell.send(child.wait().await);
    });
    record.process = match process {
        Ok(process) => Some(process),
        Err(error) => {
            // Most likely it has ended already, and said why.
            let ended = tokio::time::timeout(CHECK_EVERY, ended).await;
            return Err(match ended {
                Ok(_) => refused(folder),
                Err(_) => error::io("cannot read the QEMU process", error),
            });
        }
    };
    folder
        .write(record)
        .map_err(|error| error::io("cannot write the VM's record", error))?;
    tokio::select! {
        _ = ended => Err(refused(folder)),
        up = wait_until_up(folder, &inner.user, restore, patience) => up,
    }
}

/// The kernel's command line of a VM. The kernel of a fork does not boot: it got its command line when the template's VM booted.
async fn kernel_arguments(accelerator: &Accelerator, restore: Option<&Restore>) -> String {
    let boots_emulated = restore.is_none() && matches!(accelerator, Accelerator::Tcg);
    let rate = match boots_emulated {
        true => tokio::task::spawn_blocking(time_stamp::kernel_argument)
            .await
            .ok()
            .flatten(),
        false => None,
    };
    match rate {
        Some(rate) => format!("{KERNEL_ARGUMENTS} {rate}"),
        None => KERNEL_ARGUMENTS.to_owned(),
    }
}

/// QEMU inherits from us that it gets no huge pages. An emulator asks for them for its translated code (2 MiB each, 12 and more
/// in a VM that has hardly run); without them a warm VM takes 3 MiB less, and nothing takes longer.
fn be_frugal(accelerator: &Accelerator) {
    let emulates = matches!(accelerator, Accelerator::Tcg);
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(emulates) {
        tracing::debug!(%error, "huge pages stay as they are");
    }
}

fn memory(record: &Record, folder: &VmFolder, restore: Option<&Restore>) -> Memory {
    match (record.memory, &record.template) {
        (MemoryKind::Own, _) => Memory::Own(folder.ram_inside()),
        (MemoryKind::Shared, Some(template)) => Memory::Shared {
            path: Templates::inside(template, RAM),
            at: restore.and_then(|restore| restore.memory_at).unwrap_or_default(),
        },
        (MemoryKind::Shared | MemoryKind::Anonymous, _) => Memory::Anonymous,
    }
}

/// Gives QEMU the saved state, if there is one, as soon as its monitor is there, and waits until it says that the VM is up.
async fn wait_until_up(
    folder: &VmFolder,
    user: &VmUser,
    mut restore: Option<&Restore>,
    patience: Duration,
) -> Result<(), DriverError> {
    let up = match restore {
        Some(Restore { runs: false, .. }) => RunState::Paused,
        _ => RunState::Running,
    };
    let begin = Instant::now();
    loop {
        let left = patience.saturating_sub(begin.elapsed());
        let asked = async {
            let mut monitor = Monitor::open(folder, user, left).await?;
            if let Some(Restore { state, memory_at, runs }) = restore.take() {
                let memory = match memory_at {
                    Some(_) => MemoryIs::InTheState,
                    None => MemoryIs::InItsFile,
                };
                monitor.load_state(state, memory).await?;
                if *runs {
                    monitor.cont().await?;
                }
            }
            monitor.state().await
        };
        match asked.await {
            Ok(state) if state == up => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            // QEMU is ending; the other branch knows more.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                let reason = format!("QEMU's monitor does not answer as it should: {error}");
                return Err(DriverError::retry(reason).caused_by(error));
            }
        }
        if left.is_zero() {
            return Err(DriverError::retry(format!(
                "QEMU did not come up within {} s",
                patience.as_secs()
            )));
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// QEMU ended at once: which kind of trouble its last words are.
fn refused(folder: &VmFolder) -> DriverError {
    let arguments = folder.last_output();
    let short = [
        "Cannot allocate memory",
        "No space left",
        "Resource temporarily unavailable",
    ];
    if let Some(what) = short.iter().find(|text| arguments.contains(*text)) {
        return DriverError::retry(format!("this host is short of something ({what}): {arguments}"));
    }
    // The VM network's holder died between the look at it and its use.
    if arguments.contains("nsenter:") {
        return DriverError::retry(format!("cannot enter the VM network: {arguments}"));
    }
    DriverError::permanent(format!("QEMU refused to start: {arguments}"))
}
