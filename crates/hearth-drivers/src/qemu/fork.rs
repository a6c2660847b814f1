//! Forking a template: a new VM that continues where the frozen one was. This path is short on purpose: no namespaces are
//! made, no helper programs run, nothing is synced.

use hearth_host::sparse;

use super::environment;
use super::folder::{MemoryKind, Record, VmFolder, first_disk, give};
use super::launch::{self, Restore};
use super::template::{Manifest, RAM, STATE, Templates};
use super::{Inner, VmState, qcow2, start};
use crate::{CheckDepth, CheckpointFault, Created, DriverError, ForkPurpose, ForkSpec, ForkStart, error};

/// What a fork needs of the host's memory before it has done anything, MiB: QEMU's own, and the pages it writes at once.
const INSTANCE_MIB: u64 = 64;

/// Makes the VM, unless it is there. The caller holds its gate.
pub(super) async fn fork(inner: &Inner, spec: &ForkSpec) -> Result<Created, DriverError> {
    let folder = inner.folder(&spec.id);
    match (inner.inspect(&spec.id)?, inner.record(&spec.id)?) {
        (Some(VmState::Running | VmState::Paused | VmState::Saved), Some(record)) => {
            return Ok(Created { image: record.image });
        }
        // What a crashed call or a crashed VM left under this id.
        (Some(_), _) => inner.remove(&spec.id).await?,
        (None, _) => {}
    }
    let _making = inner.mark_making(&spec.id);
    inner.make_or_remove(&spec.id, make(inner, &folder, spec)).await
}

async fn make(inner: &Inner, folder: &VmFolder, spec: &ForkSpec) -> Result<Created, DriverError> {
    let (manifest, mut record, accelerator) = {
        // Until the record says that it is the VM's parent.
        let _nothing_is_removed = inner.removals.read().await;
        let manifest = inner.templates.read(&spec.from)?;
        inner.templates.check(&manifest, CheckDepth::Quick)?;
        if spec.shape.is_some_and(|shape| shape != manifest.shape) {
            return Err(DriverError::permanent(format!(
                "the checkpoint {} is of another VM size than the one asked for",
                spec.from
            )));
        }
        let now = environment::describe(inner, Some(&manifest.image), manifest.shape).await?;
        if now.digest != manifest.environment {
            return Err(CheckpointFault::OtherEnvironment { key: spec.from.clone() }.into());
        }
        if manifest.memory_at.is_some() && spec.purpose == ForkPurpose::Build {
            return Err(DriverError::permanent(format!(
                "the checkpoint {} is of a VM that was in use: it can be forked for use, not to be built on",
                spec.from
            )));
        }
        let memory = match spec.purpose {
            ForkPurpose::Instance => INSTANCE_MIB,
            ForkPurpose::Build => u64::from(manifest.shape.memory_mib),
        };
        start::check_room(&inner.options.data_dir, memory)?;
        let record = Record {
            id: spec.id.clone(),
            image: manifest.image.clone(),
            vcpus: manifest.shape.vcpus,
            memory_mib: manifest.shape.memory_mib,
            disk_gib: manifest.shape.disk_gib,
            qemu: now.qemu,
            accelerator: now.accelerator.name().to_owned(),
            created_at: jiff::Timestamp::now(),
            process: None,
            memory: match spec.purpose {
                ForkPurpose::Instance => MemoryKind::Shared,
                ForkPurpose::Build => MemoryKind::Own,
            },
            template: Some(spec.from.clone()),
            chain: manifest.chain.clone(),
            disks: first_disk(),
        };
        folder
            .make(&record, &inner.user)
            .map_err(|error| error::io("cannot make the VM's folder", error))?;
        (manifest, record, now.accelerator)
    };
    fill(inner, folder, &manifest, &record, spec.start)
        .await
        .map_err(|error| error::io("cannot make the VM's files", error))?;
    let restore = Restore {
        state: Templates::inside(&manifest.key, STATE),
        memory_at: manifest.memory_at,
        runs: spec.start == ForkStart::Running,
    };
    let holder = inner.network.ensure().await?;
    launch::launch(inner, folder, &mut record, &accelerator, Some(&restore), holder).await?;
    if let Err(error) = inner.templates.touch(&manifest.key) {
        tracing::warn!(key = %manifest.key, %error, "cannot note that a checkpoint was used");
    }
    Ok(Created { image: manifest.image })
}

async fn fill(
    inner: &Inner,
    folder: &VmFolder,
    manifest: &Manifest,
    record: &Record,
    start: ForkStart,
) -> std::io::Result<()> {
    let (below, format) = match manifest.chain.last() {
        Some(layer) => (Templates::inside(&layer.template, &layer.file), "qcow2"),
        None => return Err(std::io::Error::other("the checkpoint has no disk")),
    };
    qcow2::create_layer(&folder.disk(), start::disk_bytes(record.shape()), &below, format)?;
    if record.memory == MemoryKind::Own {
        let (from, to) = (inner.templates.path(&manifest.key).join(RAM), folder.ram());
        tokio::task::spawn_blocking(move || sparse::copy(&from, &to))
            .await
            .map_err(std::io::Error::other)??;
        give(&folder.ram(), &inner.user)?;
    }
    folder.set_paused(start == ForkStart::Paused)?;
    folder.hand_over(&inner.user)
}
