//! Making one VM: checks, folder, disk, process, and the proof that its processor runs. What goes wrong on the way is taken
//! back before the error is given.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, oneshot};

use super::command::{self, Accelerator, PROGRAM, Wanted};
use super::folder::{Record, VmFolder};
use super::monitor::Monitor;
use super::{Accel, Inner, VmState, images, kvm};
use crate::process::ProcessId;
use crate::program::VmUser;
use crate::{CALL_TIMEOUT, Created, DriverError, VmShape, VmSpec, error, program};

/// Kept free on the data folder's file system, MiB: below it running VMs would soon meet write errors.
const DISK_RESERVE_MIB: u64 = 1024;
/// Kept available besides the new VM's own memory, MiB: QEMU itself and the host need some.
const MEMORY_RESERVE_MIB: u64 = 256;
/// What the machine type q35 can hold.
const MAX_VCPUS: u32 = 255;
/// The image's kernel and its services do not start with less, MiB.
const MIN_MEMORY_MIB: u32 = 256;
/// Larger than any host's; above it QEMU's own limits begin, GiB.
const MAX_DISK_GIB: u32 = 16 * 1024;
/// Between two looks whether QEMU's monitor answers. It takes about 50 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The kernel's words: the root disk, the console that is logged, `eth0` for the one network card, no waiting after a panic.
/// `nokaslr` saves 25 MiB of touched memory per VM, and a VM has one tenant, who is root in it: `mitigations` would protect
/// that tenant from itself. The clock is the emulated processor's own and steady.
const KERNEL_ARGUMENTS: &str =
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 nokaslr mitigations=off tsc=reliable panic=-1";

/// The version of the installed QEMU, asked once per run of the server.
pub(crate) async fn version() -> Result<String, DriverError> {
    static VERSION: OnceCell<String> = OnceCell::const_new();
    let ask = || async {
        let path = program::need(PROGRAM, "qemu-system-x86")?;
        let mut command = program::clean(path);
        command.arg("--version");
        let output = program::run(command, b"")
            .await
            .map_err(|error| error::io("cannot run QEMU", error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split("version ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        version
            .map(str::to_owned)
            .ok_or_else(|| DriverError::permanent("QEMU does not tell its version: is it broken?"))
    };
    VERSION.get_or_try_init(ask).await.cloned()
}

/// Makes the VM, unless it already runs. The caller holds its gate.
pub(super) async fn create(inner: &Inner, spec: &VmSpec) -> Result<Created, DriverError> {
    let folder = inner.folder(&spec.id);
    let record = folder.read();
    let record = record.map_err(|error| error::io(format!("cannot read the record of {}", spec.id), error))?;
    if inner.inspect(&spec.id)? == Some(VmState::Running)
        && let Some(record) = record
    {
        return Ok(Created { image: record.image });
    }
    let _making = inner.mark_making(&spec.id);
    check_shape(spec.shape)?;
    let found = images::find(&inner.options.images_dir, spec.image.as_deref())?;
    let image = found.manifest.digest.clone();
    let least = images::least_disk_gib(&found);
    if u64::from(spec.shape.disk_gib) < least {
        return Err(DriverError::permanent(format!(
            "the image {image} needs a disk of at least {least} GiB, not {}: choose a larger VM size",
            spec.shape.disk_gib
        )));
    }
    let qemu = version().await?;
    program::need("qemu-img", "qemu-utils")?;
    check_room(&inner.options.data_dir, spec.shape)?;
    // What a crashed call or a crashed VM left under this id.
    inner.remove(&spec.id).await?;
    let holder = inner.network.ensure().await?;
    if inner.user.owner().is_some() {
        images::open_up(&inner.options.images_dir, &found).map_err(|error| {
            error::io(
                format!("cannot make the image {image} readable for the VMs' user"),
                error,
            )
        })?;
    }
    let accelerator = accelerator(inner, &qemu, &image).await?;
    let mut record = Record {
        id: spec.id.clone(),
        image: image.clone(),
        vcpus: spec.shape.vcpus,
        memory_mib: spec.shape.memory_mib,
        disk_gib: spec.shape.disk_gib,
        qemu,
        accelerator: accelerator.name().to_owned(),
        created_at: jiff::Timestamp::now(),
        process: None,
    };
    let made = make(inner, &folder, &mut record, &accelerator, holder).await;
    match made {
        Ok(()) => Ok(Created { image }),
        Err(error) => {
            // If even this fails, the folder stays and the next `create` or `destroy` finds it.
            if let Err(left) = inner.remove(&spec.id).await {
                tracing::warn!(vm = %spec.id, error = %left, "pieces of a VM that was not made are left");
            }
            Err(error)
        }
    }
}

async fn make(
    inner: &Inner,
    folder: &VmFolder,
    record: &mut Record,
    accelerator: &Accelerator,
    holder: i32,
) -> Result<(), DriverError> {
    let wanted = Wanted {
        installation: &inner.options.installation,
        id: &record.id,
        shape: VmShape {
            vcpus: record.vcpus,
            memory_mib: record.memory_mib,
            disk_gib: record.disk_gib,
        },
        accelerator,
        image: &record.image,
        folder: &folder.inside(),
        kernel_arguments: KERNEL_ARGUMENTS,
    };
    let mut words = inner.network.enter(holder);
    words.extend(command::words(&wanted));
    folder
        .make(record)
        .map_err(|error| error::io("cannot make the VM's folder", error))?;
    make_disk(folder, record).await?;
    folder
        .hand_over(&inner.user)
        .map_err(|error| error::io("cannot hand the VM's files to its user", error))?;
    let log = folder
        .open_log()
        .map_err(|error| error::io("cannot open the VM's log", error))?;
    let errors = log
        .try_clone()
        .map_err(|error| error::io("cannot open the VM's log", error))?;
    // `setsid` frees it from our terminal and our process group; each word of the chain replaces the one before, so the
    // process number stays the same up to QEMU.
    let mut command = program::clean("setsid");
    command.args(&words).stdout(log).stderr(errors);
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
            let ended = tokio::time::timeout(LOOK_AGAIN, ended).await;
            return Err(match ended {
                Ok(_) => refused(folder),
                Err(_) => error::io("cannot look at the QEMU process", error),
            });
        }
    };
    folder
        .write(record)
        .map_err(|error| error::io("cannot write the VM's record", error))?;
    tokio::select! {
        _ = ended => Err(refused(folder)),
        up = wait_until_up(folder, &inner.user) => up,
    }
}

/// Until the monitor says that the processors run.
async fn wait_until_up(folder: &VmFolder, user: &VmUser) -> Result<(), DriverError> {
    let begin = Instant::now();
    loop {
        let left = CALL_TIMEOUT.saturating_sub(begin.elapsed());
        let asked = async { Monitor::open(folder, user, left).await?.is_running(left).await };
        match asked.await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
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
                CALL_TIMEOUT.as_secs()
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// QEMU ended at once: which kind of trouble its last words are.
fn refused(folder: &VmFolder) -> DriverError {
    let words = folder.last_words();
    let short = [
        "Cannot allocate memory",
        "No space left",
        "Resource temporarily unavailable",
    ];
    if let Some(what) = short.iter().find(|text| words.contains(*text)) {
        return DriverError::retry(format!("this host is short of something ({what}): {words}"));
    }
    // The VM network's holder died between the look at it and its use.
    if words.contains("nsenter:") {
        return DriverError::retry(format!("cannot enter the VM network: {words}"));
    }
    DriverError::permanent(format!("QEMU refused to start: {words}"))
}

async fn make_disk(folder: &VmFolder, record: &Record) -> Result<(), DriverError> {
    let base = format!("{}/rootfs.ext4", command::image_inside(&record.image));
    let mut command = program::clean("qemu-img");
    // `-u`: the image's path holds inside the VM network, where QEMU opens it, not out here.
    command.args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &base]);
    command.arg(folder.disk()).arg(format!("{}G", record.disk_gib));
    let output = program::run(command, b"")
        .await
        .map_err(|error| error::io("cannot run qemu-img", error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(DriverError::retry(format!(
        "cannot make the VM's disk: {}",
        program::last_words(&output.stderr)
    )))
}

fn check_shape(shape: VmShape) -> Result<(), DriverError> {
    let VmShape {
        vcpus,
        memory_mib,
        disk_gib,
    } = shape;
    if vcpus == 0 || vcpus > MAX_VCPUS {
        return Err(DriverError::permanent(format!(
            "a VM has 1 to {MAX_VCPUS} processors, not {vcpus}"
        )));
    }
    if memory_mib < MIN_MEMORY_MIB {
        return Err(DriverError::permanent(format!(
            "a VM needs at least {MIN_MEMORY_MIB} MiB of memory, not {memory_mib}"
        )));
    }
    if disk_gib == 0 || disk_gib > MAX_DISK_GIB {
        return Err(DriverError::permanent(format!(
            "a VM's disk has 1 to {MAX_DISK_GIB} GiB, not {disk_gib}"
        )));
    }
    Ok(())
}

/// Whether the host has what the VM needs now. Memory is only taken as the guest touches it, so this is no reservation.
fn check_room(data_dir: &Path, shape: VmShape) -> Result<(), DriverError> {
    let memory = u64::from(shape.memory_mib);
    if let Some(available) = crate::host::available_memory_mib()
        && available < memory + MEMORY_RESERVE_MIB
    {
        return Err(DriverError::retry(format!(
            "not enough memory on this host: the VM needs {memory} MiB and {MEMORY_RESERVE_MIB} MiB must stay, {available} MiB \
             are available; end other VMs or programs, or choose a smaller VM size"
        )));
    }
    let free = crate::host::free_disk_mib(data_dir)
        .map_err(|error| error::io(format!("cannot look at the disk under {}", data_dir.display()), error))?;
    if free < DISK_RESERVE_MIB {
        return Err(DriverError::retry(format!(
            "not enough disk space under {}: {free} MiB are free, {DISK_RESERVE_MIB} MiB must stay; free some space",
            data_dir.display()
        )));
    }
    Ok(())
}

async fn accelerator(inner: &Inner, qemu: &str, image: &str) -> Result<Accelerator, DriverError> {
    if inner.options.accel == Accel::Tcg {
        return Ok(Accelerator::Tcg);
    }
    let key = kvm::Key {
        kernel: kvm::kernel_release(),
        qemu: qemu.to_owned(),
        image: image.to_owned(),
        user: inner.user.id(),
        device: kvm::device(),
    };
    let verdict = {
        let _one_at_a_time = inner.trial.lock().await;
        kvm::decide(
            &inner.options.data_dir,
            key,
            &inner.network,
            &inner.options.installation,
        )
        .await?
    };
    match (verdict.cpu, inner.options.accel) {
        (Some(cpu), _) if verdict.usable => Ok(Accelerator::Kvm { cpu }),
        (_, Accel::Kvm) => Err(DriverError::permanent(format!(
            "KVM was asked for and does not work here: {}",
            verdict.reason
        ))),
        _ => Ok(Accelerator::Tcg),
    }
}
