//! Pausing a VM to the disk: its memory and its devices' state go to the file `memory` in its folder, and its process ends. Resuming starts
//! another process from that file.
//!
//! While `memory` is there, the VM has not run since it was written, and its disk has not changed: whatever process it has then can be
//! ended, and the VM is whole. The file gets its name when it is whole, before the process ends, and is removed before the VM runs again.
//! A server that is killed anywhere in between leaves a VM that is paused, or paused to the disk.

use std::fs;
use std::io;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_host::files::bytes_on_disk;

use super::folder::{MemoryKind, Record, VmFolder};
use super::freeze::DISK_RESERVE;
use super::launch::{self, Restore};
use super::monitor::{AFTER_A_SAVE, Monitor, RunState};
use super::template::RAM;
use super::{END_DEADLINE, Inner, start, usage as measure};
use crate::{CALL_TIMEOUT, DriverError, VmState, VmUsage, error};

/// Its memory, whole.
const MEMORY: &str = "memory";
/// The same while it is written.
const PART: &str = "memory.part";
/// Longest for writing or reading it: a slow disk and a VM of many gigabytes.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// What QEMU takes besides the guest's memory, MiB.
const QEMU_MIB: u64 = 64;
const MIB: u64 = 1 << 20;

impl VmFolder {
    fn has(&self, name: &str) -> io::Result<bool> {
        self.file(name).try_exists()
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file_inside(&self, name: &str) -> String {
        format!("{}/{name}", self.inside())
    }
}

impl Inner {
    /// A VM whose process was not found: paused to the disk, or ended.
    pub(super) fn without_process(&self, id: &VmId) -> Result<VmState, DriverError> {
        let folder = self.folder(id);
        let read = || {
            if folder.has(MEMORY)? {
                return Ok(VmState::Saved);
            }
            // It may have been resumed since its process was looked for.
            let process = folder.read()?.and_then(|record| record.process);
            Ok(match process {
                Some(process) if process.is_alive()? && folder.is_paused()? => VmState::Paused,
                Some(process) if process.is_alive()? => VmState::Running,
                _ => VmState::Stopped,
            })
        };
        read().map_err(|error: io::Error| error::io(format!("cannot read the folder of {id}"), error))
    }

    /// Ends every process of a VM.
    async fn end_processes(&self, id: &VmId) -> Result<(), DriverError> {
        let recorded = self.recorded_process(id)?.into_iter();
        let found = self.processes()?.into_iter().filter(|(_, of)| of == id);
        for process in recorded.chain(found.map(|(process, _)| process)) {
            process.kill(END_DEADLINE).await.map_err(|error| {
                DriverError::unknown(format!("the QEMU process {} of {id} does not end", process.pid)).caused_by(error)
            })?;
        }
        Ok(())
    }
}

/// Pauses the VM to the disk, unless it is so already. The caller holds its gates.
pub(super) async fn save(inner: &Inner, id: &VmId) -> Result<(), DriverError> {
    if inner.inspect(id)? == Some(VmState::Saved) {
        return Ok(());
    }
    let was_paused = inner.need_alive(id)?;
    let folder = inner.folder(id);
    let failed = |what: &str, error: io::Error| full_or(format!("cannot pause {id} to the disk: {what}"), error);
    let is_written = folder.has(MEMORY).map_err(|error| failed("its folder", error))?;
    if !is_written {
        let record = inner
            .record(id)?
            .ok_or_else(|| DriverError::permanent(format!("the record of {id} is torn: destroy it")))?;
        check_disk(inner, &record)?;
        let mut monitor = Monitor::open(&folder, &inner.user, TRANSFER_TIMEOUT)
            .await
            .map_err(|error| failed("QEMU's monitor", error))?;
        // If the server is killed now, the next one finds a paused VM.
        folder.set_paused(true).map_err(|error| failed("its record", error))?;
        let written = write(inner, &folder, &mut monitor).await;
        if let Err(error) = written {
            drop(folder.remove_file(PART));
            if !was_paused {
                monitor.extend(CALL_TIMEOUT);
                let resumed = monitor.cont().await.and_then(|()| folder.set_paused(false));
                resumed.map_err(|error| {
                    DriverError::unknown(format!(
                        "{id} does not resume after it could not be paused to the disk: {error}"
                    ))
                    .caused_by(error)
                })?;
            }
            return Err(failed("its memory", error));
        }
    }
    inner.streams.end(id);
    inner.end_processes(id).await?;
    inner.network.leave(id)
}

async fn write(inner: &Inner, folder: &VmFolder, monitor: &mut Monitor) -> io::Result<()> {
    end_other_save(folder, monitor).await?;
    monitor.stop().await?;
    folder.make_for_qemu(&folder.file(PART), 0, &inner.user)?;
    monitor.save_stopped(&folder.file_inside(PART)).await?;
    fs::rename(folder.file(PART), folder.file(MEMORY))
}

/// A server was killed while it saved the VM: QEMU may still write, and would stop the VM at the end of that.
async fn end_other_save(folder: &VmFolder, monitor: &mut Monitor) -> io::Result<()> {
    if folder.has(PART)? {
        monitor.end_save().await?;
        folder.remove_file(PART)?;
    }
    Ok(())
}

/// Whether the memory fits on the disk. Where it lies in a file of its own it is there already.
fn check_disk(inner: &Inner, record: &Record) -> Result<(), DriverError> {
    if record.memory == MemoryKind::Own {
        return Ok(());
    }
    let id = &record.id;
    let measure_it = || {
        let own = match &record.process {
            Some(process) => measure::of_process(process)?.private_bytes,
            None => 0,
        };
        // What it has not written since it was forked is in the file of its checkpoint.
        let shared = match &record.template {
            Some(key) => fs::metadata(inner.templates.path(key).join(RAM)).map(|found| bytes_on_disk(&found))?,
            None => 0,
        };
        Ok((own + shared).min(start::memory_bytes(record.shape())))
    };
    let needed =
        measure_it().map_err(|error: io::Error| error::io(format!("cannot measure the memory of {id}"), error))?;
    let data = &inner.options.data_dir;
    let free = crate::host::free_disk_bytes(data)
        .map_err(|error| error::io(format!("cannot read the disk under {}", data.display()), error))?;
    if free < needed.saturating_add(DISK_RESERVE) {
        return Err(DriverError::retry(format!(
            "not enough disk space under {} to pause {id} to the disk: its memory takes up to {} MiB and {} MiB must stay, {} MiB are free; \
             the VM runs as before. Free some space, or pause it in memory",
            data.display(),
            needed / MIB,
            DISK_RESERVE / MIB,
            free / MIB
        )));
    }
    Ok(())
}

/// Gives a VM whose memory is in a file a process again, paused, and clears what killed servers have left. The caller holds its gate.
pub(super) async fn before_resume(inner: &Inner, id: &VmId) -> Result<(), DriverError> {
    let folder = inner.folder(id);
    let failed = |error: io::Error| error::io(format!("cannot resume {id}"), error);
    match inner.inspect(id)? {
        Some(VmState::Saved) => return start_again(inner, id).await,
        Some(VmState::Running | VmState::Paused) => {}
        _ => return Ok(()),
    }
    if folder.has(MEMORY).map_err(failed)? {
        let state = async { Monitor::open(&folder, &inner.user, CALL_TIMEOUT).await?.state().await };
        if !matches!(state.await, Ok(RunState::Other(name)) if name == AFTER_A_SAVE) {
            // It was being started from the file.
            return start_again(inner, id).await;
        }
        return folder.remove_file(MEMORY).map_err(failed);
    }
    if folder.has(PART).map_err(failed)? {
        let clear = async {
            let mut monitor = Monitor::open(&folder, &inner.user, CALL_TIMEOUT).await?;
            end_other_save(&folder, &mut monitor).await
        };
        clear.await.map_err(failed)?;
    }
    Ok(())
}

async fn start_again(inner: &Inner, id: &VmId) -> Result<(), DriverError> {
    let _making = inner.mark_making(id);
    // One that was started by a server killed before it could write the number down.
    inner.end_processes(id).await?;
    let started = start_process(inner, id).await;
    if let Err(error) = started {
        if let Err(left) = inner.end_processes(id).await {
            tracing::warn!(vm = %id, error = %left, "a process of a VM that was not resumed is left");
        }
        return Err(
            error.with_reason(|reason| format!("{reason}; the VM stays paused to the disk, and nothing of it is lost"))
        );
    }
    let removed = inner.folder(id).remove_file(MEMORY);
    removed.map_err(|error| error::io(format!("cannot remove the file of the memory of {id}"), error))
}

async fn start_process(inner: &Inner, id: &VmId) -> Result<(), DriverError> {
    let folder = inner.folder(id);
    let mut record = inner
        .record(id)?
        .ok_or_else(|| DriverError::permanent(format!("the record of {id} is torn: destroy it")))?;
    let qemu = start::version().await?;
    let accelerator = start::accelerator(inner, &qemu, &record.image).await?;
    if (record.qemu.as_str(), record.accelerator.as_str()) != (&qemu, accelerator.name()) {
        return Err(DriverError::permanent(format!(
            "{id} was paused to the disk by QEMU {} ({}), which cannot be continued by QEMU {qemu} ({}); install that version again to \
             resume it",
            record.qemu,
            record.accelerator,
            accelerator.name()
        )));
    }
    let usage = usage(&folder).map_err(|error| error::io(format!("cannot read the memory of {id}"), error))?;
    start::check_memory(usage.saved_bytes.div_ceil(MIB) + QEMU_MIB)?;
    let holder = inner.network.ensure().await?;
    let restore = Restore {
        state: folder.file_inside(MEMORY),
        // All of the memory is in that file, and replaces what the VM was once forked from.
        memory_at: None,
        runs: false,
    };
    launch::launch_within(
        inner,
        &folder,
        &mut record,
        &accelerator,
        Some(&restore),
        holder,
        TRANSFER_TIMEOUT,
    )
    .await
}

/// What a VM costs that is paused to the disk.
pub(super) fn usage(folder: &VmFolder) -> io::Result<VmUsage> {
    let mut saved_bytes = bytes_on_disk(&fs::metadata(folder.file(MEMORY))?);
    if folder.ram().try_exists()? {
        saved_bytes += bytes_on_disk(&fs::metadata(folder.ram())?);
    }
    Ok(VmUsage {
        private_bytes: 0,
        shared_bytes: 0,
        disk_bytes: folder.bytes_on_disk()?,
        saved_bytes,
    })
}

/// A full disk said as such.
fn full_or(what: String, error: io::Error) -> DriverError {
    let advice = match error::is_full_disk(&error) {
        true => ": the disk is full; the VM is as it was. Free some space, or pause it in memory",
        false => "; the VM is as it was",
    };
    DriverError::retry(format!("{what}: {error}{advice}")).caused_by(error)
}
