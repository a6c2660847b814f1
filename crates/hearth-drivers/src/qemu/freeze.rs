//! Freezing a running VM as a template. The VM is paused while its devices' state is written and its memory is saved;
//! the rest (checksums, syncing) happens after it is resumed. Whatever fails, the VM is resumed.
//!
//! A VM that was made to be frozen has its memory in a file, which is copied. That of any other VM is in its process alone: QEMU writes
//! it, together with the devices (`memory_file.rs`).

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use hearth_api::ids::VmId;
use hearth_host::files::bytes_on_disk;
use hearth_host::sparse;

use super::command::disk_node;
use super::folder::{MemoryKind, Record, VmFolder, give};
use super::monitor::Monitor;
use super::template::{Facts, Layer, Making, RAM, STATE};
use super::{Inner, environment, memory_file, qcow2, start, usage};
use crate::{
    CALL_TIMEOUT, CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, DriverError, SnapshotSpec, error,
};

/// Kept free on the disk besides what a checkpoint or a saved memory takes, bytes: running VMs would soon get write errors below it.
pub(super) const DISK_RESERVE: u64 = 512 * 1024 * 1024;
/// A guest is idle that used no more than [`IDLE_TICKS`] of this much time. An idle one has a few timers, and systemd answers them.
const IDLE_WINDOW: Duration = Duration::from_millis(100);
/// Clock ticks of 10 ms.
const IDLE_TICKS: u64 = 1;
/// So often the time that the guest used is read.
const IDLE_SAMPLE: Duration = Duration::from_millis(25);
/// Longest for the copy of the memory: a slow disk and a VM of many gigabytes.
const COPY_TIMEOUT: Duration = Duration::from_secs(600);
/// Disk layers of a VM, one on the other. Each time it is frozen adds one, and each makes its reads a little slower.
const MOST_LAYERS: usize = 100;
/// The first QEMU that writes the memory of a VM to places in a file.
const FIRST_QEMU: u32 = 9;

/// What is asked for, in either way.
struct Order<'a> {
    key: &'a CheckpointKey,
    labels: &'a BTreeMap<String, String>,
    kept: bool,
    /// Of a stage of a build: its VM, which was made for it, is to have this parent.
    stage: Option<&'a CheckpointSpec>,
}

/// Freezes a VM that was made for it, unless a whole checkpoint of that key is there.
pub(super) async fn checkpoint(inner: &Inner, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
    let order = Order {
        key: &spec.key,
        labels: &spec.labels,
        kept: true,
        stage: Some(spec),
    };
    make(inner, id, &order).await
}

/// Freezes a VM that is in use, unless a whole checkpoint of that key is there.
pub(super) async fn snapshot(inner: &Inner, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError> {
    let order = Order {
        key: &spec.key,
        labels: &spec.labels,
        kept: spec.kept,
        stage: None,
    };
    make(inner, id, &order).await
}

async fn make(inner: &Inner, id: &VmId, spec: &Order<'_>) -> Result<CheckpointInfo, DriverError> {
    // One maker per key, and one freezing per VM; neither blocks the VM's other calls once it is resumed.
    let _key = inner.key_gates.lock(spec.key.clone()).await;
    if let Ok(manifest) = inner.templates.read(spec.key)
        && inner.templates.check(&manifest, CheckDepth::Quick).is_ok()
    {
        return Ok(inner.templates.info(&manifest));
    }
    let _freezing = inner.freeze_gates.lock(id.clone()).await;
    if let Some(stage) = spec.stage {
        idle(inner, id, stage.idle).await?;
    }
    let gate = inner.gates.lock(id.clone()).await;
    let was_paused = inner.need_alive(id)?;
    let folder = inner.folder(id);
    let record = inner
        .record(id)?
        .ok_or_else(|| DriverError::permanent(format!("the record of {id} is torn: destroy it")))?;
    match spec.stage {
        Some(stage) => check(&record, stage)?,
        None => check_in_use(&record)?,
    }
    let now = environment::describe(inner, Some(&record.image), record.shape()).await?;
    check_room(inner, &folder, &record)?;
    let making = inner.templates.begin(spec.key);
    let mut making = making.map_err(|error| error::io(format!("cannot begin the checkpoint {}", spec.key), error))?;

    let frozen = freeze(inner, &folder, record, &mut making, was_paused).await;
    drop(gate);
    let Frozen { record, paused_for } = frozen?;
    let facts = Facts {
        parent: record.template.clone(),
        labels: spec.labels.clone(),
        image: record.image.clone(),
        environment: now.digest,
        shape: record.shape(),
        qemu: record.qemu.clone(),
        agent_version: now.image.manifest.agent_version.clone(),
        paused_ms: u64::try_from(paused_for.as_millis()).unwrap_or(u64::MAX),
        below: record.chain.clone(),
        memory_at: match record.memory {
            MemoryKind::Own => None,
            MemoryKind::Anonymous | MemoryKind::Shared => Some(split(&making, &record).await?),
        },
        kept: spec.kept,
    };
    // From here on nothing below may be removed, even if the VM is destroyed meanwhile.
    let manifest = {
        let _nothing_is_removed = inner.removals.read().await;
        for below in facts.below.iter().map(|layer| &layer.template) {
            inner.templates.read(below)?;
        }
        let templates = inner.templates.clone();
        tokio::task::spawn_blocking(move || templates.finish(making, facts))
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| full_or(format!("cannot keep the checkpoint {}", spec.key), error))?
    };
    let _gate = inner.gates.lock(id.clone()).await;
    rebase(&folder, record, &manifest.key, &manifest.chain)
        .map_err(|error| error::io(format!("cannot write the record of {id}"), error))?;
    Ok(inner.templates.info(&manifest))
}

/// Waits until the guest's processors have next to nothing to do, or the time is up.
async fn idle(inner: &Inner, id: &VmId, longest: Duration) -> Result<(), DriverError> {
    let Some(process) = inner.recorded_process(id)? else {
        return Ok(());
    };
    let read = || {
        let used = process.ticks_used();
        used.map_err(|error| error::io(format!("cannot read the process of {id}"), error))
    };
    let begin = Instant::now();
    // When it had used how much, oldest first; the window ends now.
    let mut samples = VecDeque::new();
    loop {
        let Some(used) = read()? else { return Ok(()) };
        let now = Instant::now();
        samples.push_back((now, used));
        while samples.get(1).is_some_and(|(at, _)| now - *at >= IDLE_WINDOW) {
            samples.pop_front();
        }
        let idles =
            |(at, before): &(Instant, u64)| now - *at >= IDLE_WINDOW && used.saturating_sub(*before) <= IDLE_TICKS;
        if samples.front().is_some_and(idles) {
            tracing::debug!(%id, after_ms = begin.elapsed().as_millis(), "the guest is idle");
            return Ok(());
        }
        if begin.elapsed() + IDLE_SAMPLE > longest {
            break;
        }
        tokio::time::sleep(IDLE_SAMPLE).await;
    }
    if !longest.is_zero() {
        tracing::debug!(%id, tried_ms = longest.as_millis(), "the guest does not become idle: its forks will continue what it is doing");
    }
    Ok(())
}

fn check(record: &Record, spec: &CheckpointSpec) -> Result<(), DriverError> {
    let id = &record.id;
    if record.memory != MemoryKind::Own {
        return Err(DriverError::permanent(format!(
            "{id} cannot be frozen: it was not made to be; create it with `checkpointable`, or fork it to build on"
        )));
    }
    if record.template != spec.parent {
        let is = |key: &Option<CheckpointKey>| key.as_ref().map_or("nothing".to_owned(), ToString::to_string);
        return Err(DriverError::permanent(format!(
            "the parent of {id} is {}, not {}: its checkpoint would have the wrong name",
            is(&record.template),
            is(&spec.parent)
        )));
    }
    Ok(())
}

/// Whether a VM that is in use can be frozen.
fn check_in_use(record: &Record) -> Result<(), DriverError> {
    let id = &record.id;
    let major = record.qemu.split('.').next().and_then(|major| major.parse().ok());
    if record.memory != MemoryKind::Own && major.is_some_and(|major: u32| major < FIRST_QEMU) {
        return Err(DriverError::permanent(format!(
            "{id} cannot be frozen while it is in use: it runs on QEMU {}, and that needs {FIRST_QEMU}.0 or newer",
            record.qemu
        )));
    }
    if record.chain.len() + record.disks.len() >= MOST_LAYERS {
        return Err(DriverError::permanent(format!(
            "{id} was frozen too often: its disk is {MOST_LAYERS} layers, and no more are allowed; continue in another VM"
        )));
    }
    Ok(())
}

/// The state of what QEMU wrote with all of the memory; where the memory begins.
async fn split(making: &Making, record: &Record) -> Result<u64, DriverError> {
    let (ram, state, memory) = (
        making.path(RAM),
        making.path(STATE),
        start::memory_bytes(record.shape()),
    );
    tokio::task::spawn_blocking(move || memory_file::split(&ram, &state, memory))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| full_or(format!("cannot keep the memory of {}", record.id), error))
}

/// What the memory of a VM takes in a file, bytes; at most.
fn memory_on_disk(inner: &Inner, folder: &VmFolder, record: &Record) -> io::Result<u64> {
    let on_disk = |path: &std::path::Path| std::fs::metadata(path).map(|metadata| bytes_on_disk(&metadata));
    if record.memory == MemoryKind::Own {
        return on_disk(&folder.ram());
    }
    let template = record.template.as_ref().map(|key| inner.templates.path(key).join(RAM));
    let shared = template.map_or(0, |ram| on_disk(&ram).unwrap_or_default());
    let own = match &record.process {
        Some(process) => usage::of_process(process)?.private_bytes,
        None => 0,
    };
    Ok((shared + own).min(start::memory_bytes(record.shape())))
}

/// Whether the copy of the memory fits. The disk layers are there already.
fn check_room(inner: &Inner, folder: &VmFolder, record: &Record) -> Result<(), DriverError> {
    let needed =
        memory_on_disk(inner, folder, record).map_err(|error| error::io("cannot read the VM's memory", error))?;
    let data = &inner.options.data_dir;
    let free = crate::host::free_disk_mib(data)
        .map_err(|error| error::io(format!("cannot read the disk under {}", data.display()), error))?;
    let free = free.saturating_mul(1024 * 1024);
    if free < needed.saturating_add(DISK_RESERVE) {
        const MIB: u64 = 1024 * 1024;
        return Err(DriverError::retry(format!(
            "not enough disk space under {} for a checkpoint: it needs {} MiB and {} MiB must stay, {} MiB are free; remove \
             templates that nothing needs, or free some space",
            data.display(),
            needed / MIB,
            DISK_RESERVE / MIB,
            free / MIB
        )));
    }
    Ok(())
}

/// A VM that was frozen and is resumed.
struct Frozen {
    /// Already written; its own disks still include the frozen ones.
    record: Record,
    paused_for: Duration,
}

/// What must happen while the VM is paused; afterwards it is resumed.
async fn freeze(
    inner: &Inner,
    folder: &VmFolder,
    mut record: Record,
    making: &mut Making,
    was_paused: bool,
) -> Result<Frozen, DriverError> {
    let id = record.id.clone();
    let failed = |what: &str, error: io::Error| full_or(format!("cannot freeze {id}: {what}"), error);
    let next = record.disks.last().map_or(0, |last| last + 1);
    // Whatever can be done while the VM still runs.
    let below = making.disk_inside(record.disks.len().saturating_sub(1));
    let layer = folder.disk_number(next);
    drop(std::fs::remove_file(&layer));
    drop(std::fs::remove_file(folder.state()));
    qcow2::create_layer(&layer, start::disk_bytes(record.shape()), &below, "qcow2")
        .and_then(|()| give(&layer, &inner.user))
        .and_then(|()| folder.make_for_qemu(&folder.state(), 0, &inner.user))
        .map_err(|error| failed("its next disk layer", error))?;
    let mut monitor = Monitor::open(folder, &inner.user, CALL_TIMEOUT)
        .await
        .map_err(|error| failed("QEMU's monitor", error))?;
    let has_file = record.memory == MemoryKind::Own;
    let mut begin = Instant::now();
    let still = async {
        monitor.extend(COPY_TIMEOUT);
        if !has_file {
            // The VM continues while most of it is written.
            let begun = monitor.begin_save_all(&folder.state_inside()).await;
            begun.map_err(|error| failed("its memory", error))?;
        }
        // If the server is killed now, the next one finds a paused VM.
        folder.set_paused(true).map_err(|error| failed("its record", error))?;
        begin = Instant::now();
        if has_file {
            monitor.stop().await.map_err(|error| failed("stopping it", error))?;
        }
        let (top, below) = (disk_node(next), disk_node(next.saturating_sub(1)));
        monitor
            .add_layer(&folder.disk_number_inside(next), &top, &below)
            .await
            .map_err(|error| failed("its disk", error))?;
        let frozen = record.disks.clone();
        record.disks.push(next);
        folder.write(&record).map_err(|error| failed("its record", error))?;
        save(&mut monitor, folder, &record, making, &failed).await?;
        for number in frozen {
            making
                .add_disk(&folder.disk_number(number))
                .map_err(|error| failed("its disk", error))?;
        }
        Ok(())
    };
    let still = tokio::time::timeout(COPY_TIMEOUT, still)
        .await
        .unwrap_or_else(|_| Err(DriverError::unknown(format!("freezing {id} did not end"))));
    monitor.extend(CALL_TIMEOUT);
    if still.is_err() {
        // Else QEMU might end the save later, and stop the VM for it; and until then it refuses `cont`.
        if let Err(error) = monitor.end_save().await {
            tracing::warn!(%id, %error, "a save that failed could not be broken off");
        }
    }
    let goes_on = if was_paused {
        Ok(())
    } else {
        let goes_on = monitor.cont().await;
        goes_on.and_then(|()| folder.set_paused(false))
    };
    let paused_for = if was_paused { Duration::ZERO } else { begin.elapsed() };
    drop(std::fs::remove_file(folder.state()));
    if still.is_err() && record.disks.last() != Some(&next) {
        drop(std::fs::remove_file(&layer));
    }
    let goes_on = goes_on.map_err(|error| {
        DriverError::unknown(format!("{id} does not resume after it was frozen: {error}; destroy it")).caused_by(error)
    });
    if let (Err(_), Err(error)) = (&still, &goes_on) {
        tracing::warn!(%id, %error, "a VM that could not be frozen stays paused");
    }
    still?;
    goes_on?;
    Ok(Frozen { record, paused_for })
}

/// The devices and the memory of a VM that is stopped.
async fn save(
    monitor: &mut Monitor,
    folder: &VmFolder,
    record: &Record,
    making: &Making,
    failed: &impl Fn(&str, io::Error) -> DriverError,
) -> Result<(), DriverError> {
    let written = folder.state();
    if record.memory != MemoryKind::Own {
        let saved = monitor.end_save_all().await;
        saved.map_err(|error| failed("its memory and devices", error))?;
        return std::fs::rename(written, making.path(RAM)).map_err(|error| failed("its memory", error));
    }
    let saved = monitor.save_state(&folder.state_inside()).await;
    saved.map_err(|error| failed("its devices", error))?;
    let (ram, copy) = (folder.ram(), making.path(RAM));
    let copied = tokio::task::spawn_blocking(move || sparse::copy(&ram, &copy)).await;
    let copied = copied.map_err(io::Error::other).flatten();
    copied.map_err(|error| failed("its memory", error))?;
    std::fs::rename(written, making.path(STATE)).map_err(|error| failed("its devices", error))
}

/// The VM's frozen layers are the template's from now on.
fn rebase(folder: &VmFolder, frozen: Record, key: &CheckpointKey, chain: &[Layer]) -> io::Result<()> {
    // Destroyed meanwhile, or even made again: nothing to do.
    let Some(mut record) = folder.read()?.filter(|record| *record == frozen) else {
        return Ok(());
    };
    let Some(own) = record.disks.pop() else { return Ok(()) };
    let given = std::mem::replace(&mut record.disks, vec![own]);
    record.template = Some(key.clone());
    record.chain = chain.to_vec();
    folder.write(&record)?;
    for number in given {
        std::fs::remove_file(folder.disk_number(number))?;
    }
    Ok(())
}

/// A full disk said as such: what to do about it is something else than about other errors.
fn full_or(what: String, error: io::Error) -> DriverError {
    let advice = if error::is_full_disk(&error) {
        ": the disk is full; remove templates that nothing needs, or free some space"
    } else {
        ""
    };
    DriverError::retry(format!("{what}: {error}{advice}")).caused_by(error)
}
