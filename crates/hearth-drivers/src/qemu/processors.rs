//! A VM's processors: paused, resumed, and what keeps them (or what runs on them) from answering.

use std::io;
use std::time::Duration;

use hearth_api::ids::VmId;

use super::Inner;
use super::monitor::{Monitor, RunState};
use crate::host::free_disk_bytes;
use crate::{CALL_TIMEOUT, DriverError, FullDisk, VmState, error};

/// How long QEMU's monitor has to say what a silent VM's processors do.
const SILENCE_CHECK: Duration = Duration::from_secs(3);

impl Inner {
    /// Pauses or resumes a VM's processors. The caller holds its gate.
    pub(super) async fn set_paused(&self, id: &VmId, wanted: bool) -> Result<(), DriverError> {
        // Asked of QEMU even when the note says that it is so: a server may have been killed between the two.
        self.need_alive(id)?;
        let folder = self.folder(id);
        let ask = async {
            let mut monitor = Monitor::open(&folder, &self.user, CALL_TIMEOUT).await?;
            if wanted {
                monitor.stop().await
            } else {
                // A server that was killed while it froze the VM: QEMU may still write, and would stop the VM when it is done.
                if folder.state().try_exists()? {
                    monitor.end_save().await?;
                    std::fs::remove_file(folder.state())?;
                }
                monitor.cont().await
            }
        };
        ask.await.map_err(|error| {
            DriverError::unknown(format!("QEMU's monitor does not answer for {id}: {error}")).caused_by(error)
        })?;
        folder
            .set_paused(wanted)
            .map_err(|error| error::io(format!("cannot note the state of {id}"), error))
    }

    /// Says which process of a halted VM it is about.
    pub(super) fn halted(&self, id: &VmId) -> String {
        match self.recorded_process(id) {
            Ok(Some(process)) => format!(
                "its QEMU process {pid} was stopped by a signal; `kill -CONT {pid}` on the host lets it run again",
                pid = process.pid
            ),
            _ => "its QEMU process was stopped by a signal".to_owned(),
        }
    }

    /// Looks at the process, and asks QEMU what the processors do.
    pub(super) async fn why_silent(&self, id: &VmId) -> Result<Option<String>, DriverError> {
        Ok(match self.inspect(id)? {
            None => Some("it is gone".to_owned()),
            Some(VmState::Stopped) => Some("its QEMU process has ended".to_owned()),
            Some(VmState::Halted) => Some(self.halted(id)),
            Some(VmState::Paused) => Some("it is paused".to_owned()),
            Some(VmState::Saved) => Some("it is paused to the disk".to_owned()),
            Some(VmState::Running) => match self.run_state(id).await {
                Ok(RunState::Running) => None,
                Ok(RunState::IoError) => {
                    Some("QEMU has stopped its processors because the host's disk was full when it wrote".to_owned())
                }
                Ok(state) => Some(format!("QEMU has stopped its processors ({})", state.name())),
                Err(error) => Some(format!("its QEMU process does not answer either ({error})")),
            },
        })
    }

    /// What QEMU says that the machine does.
    async fn run_state(&self, id: &VmId) -> io::Result<RunState> {
        let mut monitor = Monitor::open(&self.folder(id), &self.user, SILENCE_CHECK).await?;
        monitor.state().await
    }

    /// See [`Driver::full_disk`](crate::Driver::full_disk). Only a full disk is an I/O error that stops a VM: see `werror` of its disk.
    pub(super) async fn full_disk(&self, id: &VmId) -> Result<Option<FullDisk>, DriverError> {
        if !matches!(self.inspect(id)?, Some(VmState::Running | VmState::Paused)) {
            return Ok(None);
        }
        let state = self.run_state(id).await;
        let state = state.map_err(|error| {
            DriverError::unknown(format!("QEMU's monitor does not answer for {id}: {error}")).caused_by(error)
        })?;
        if state != RunState::IoError {
            return Ok(None);
        }
        let free_bytes = free_disk_bytes(&self.vms);
        let free_bytes = free_bytes.map_err(|error| error::io(format!("cannot measure the disk of {id}"), error))?;
        Ok(Some(FullDisk { free_bytes }))
    }
}
