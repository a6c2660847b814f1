//! Making one VM from an image: checks, folder, disk, process. What goes wrong on the way is taken back before the error is
//! given.

use std::path::Path;

use hearth_host::program;
use tokio::sync::OnceCell;

use super::command::{self, Accelerator, PROGRAM};
use super::folder::{MemoryKind, Record, VmFolder, first_disk};
use super::{Accel, Inner, VmState, images, kvm, launch, qcow2};
use crate::{Created, DriverError, VmShape, VmSpec, error};

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
/// The version of the installed QEMU, asked once per run of the server.
pub(crate) async fn version() -> Result<String, DriverError> {
    static VERSION: OnceCell<String> = OnceCell::const_new();
    let ask = || async {
        let path = error::need(PROGRAM, "qemu-system-x86")?;
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
    if matches!(
        inner.inspect(&spec.id)?,
        Some(VmState::Running | VmState::Paused | VmState::Saved)
    ) && let Some(record) = inner.record(&spec.id)?
    {
        return Ok(Created { image: record.image });
    }
    let _making = inner.mark_making(&spec.id);
    check_shape(spec.shape)?;
    let found = images::find(&inner.stores, spec.image.as_deref()).await?;
    let image = found.manifest.digest.clone();
    let least = images::least_disk_gib(&found);
    if u64::from(spec.shape.disk_gib) < least {
        return Err(DriverError::permanent(format!(
            "the image {image} needs a disk of at least {least} GiB, not {}: choose a larger VM size",
            spec.shape.disk_gib
        )));
    }
    let qemu = version().await?;
    check_room(&inner.options.data_dir, u64::from(spec.shape.memory_mib))?;
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
        memory: if spec.checkpointable {
            MemoryKind::Own
        } else {
            MemoryKind::Anonymous
        },
        template: None,
        chain: Vec::new(),
        disks: first_disk(),
    };
    let making = async {
        prepare(inner, &folder, &record).map_err(|error| error::io("cannot make the VM's files", error))?;
        launch::launch(inner, &folder, &mut record, &accelerator, None, holder).await?;
        Ok(Created { image })
    };
    inner.make_or_remove(&spec.id, making).await
}

/// The folder, and everything in it that QEMU needs.
fn prepare(inner: &Inner, folder: &VmFolder, record: &Record) -> std::io::Result<()> {
    folder.make(record, &inner.user)?;
    let base = format!("{}/rootfs.ext4", command::image_inside(&record.image));
    qcow2::create_layer(&folder.disk(), disk_bytes(record.shape()), &base, "raw")?;
    if record.memory == MemoryKind::Own {
        folder.make_for_qemu(&folder.ram(), memory_bytes(record.shape()), &inner.user)?;
    }
    folder.hand_over(&inner.user)
}

/// What the guest sees as its disk.
pub(super) fn disk_bytes(shape: VmShape) -> u64 {
    u64::from(shape.disk_gib) * 1024 * 1024 * 1024
}

/// What the guest sees as its memory.
pub(super) fn memory_bytes(shape: VmShape) -> u64 {
    u64::from(shape.memory_mib) * 1024 * 1024
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

/// Whether the host has what a VM that will take so many MiB of memory needs now. Memory is only taken as the guest touches it, so this is no reservation.
pub(super) fn check_room(data_dir: &Path, memory: u64) -> Result<(), DriverError> {
    check_memory(memory)?;
    check_disk(data_dir)
}

/// The same of memory alone.
pub(super) fn check_memory(memory: u64) -> Result<(), DriverError> {
    if let Some(available) = crate::host::available_memory_mib()
        && available < memory + MEMORY_RESERVE_MIB
    {
        return Err(DriverError::retry(format!(
            "not enough memory on this host: the VM needs {memory} MiB and {MEMORY_RESERVE_MIB} MiB must stay, {available} MiB \
             are available; end other VMs or programs, or choose a smaller VM size"
        )));
    }
    Ok(())
}

fn check_disk(data_dir: &Path) -> Result<(), DriverError> {
    let free = crate::host::free_disk_mib(data_dir)
        .map_err(|error| error::io(format!("cannot read the disk under {}", data_dir.display()), error))?;
    if free < DISK_RESERVE_MIB {
        return Err(DriverError::retry(format!(
            "not enough disk space under {}: {free} MiB are free, {DISK_RESERVE_MIB} MiB must stay; free some space",
            data_dir.display()
        )));
    }
    Ok(())
}

/// What VMs of this image run on here.
pub(super) async fn accelerator(inner: &Inner, qemu: &str, image: &str) -> Result<Accelerator, DriverError> {
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
