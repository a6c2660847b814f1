//! What is there: VMs with a folder, their processes, and the state of each.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use hearth_api::ids::VmId;

use super::folder::Record;
use super::{Inner, command};
use crate::process::{self, ProcessId};
use crate::{DriverError, VmInfo, VmState, error};

impl Inner {
    /// The VMs that have a folder.
    pub(super) fn folders(&self) -> Result<Vec<VmId>, DriverError> {
        let names = fs::read_dir(&self.vms).and_then(|entries| {
            let names = entries.map(|entry| Ok(entry?.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        let names = names.map_err(|error| error::io(format!("cannot read {}", self.vms.display()), error))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// This installation's QEMU processes, whether or not anything else is left of their VM.
    pub(super) fn processes(&self) -> Result<Vec<(ProcessId, VmId)>, DriverError> {
        let prefix = command::name_prefix(&self.options.installation);
        let mut found = process::find_by_argument("-name", |name| name.strip_prefix(&prefix)?.parse::<VmId>().ok())
            .map_err(|error| error::io("cannot list QEMU processes", error))?;
        // A process of another user with the same arguments must not be counted or killed.
        let ours = [self.user.id(), nix::unistd::geteuid().as_raw()];
        found.retain(|(process, _)| {
            fs::metadata(format!("/proc/{}", process.pid)).is_ok_and(|metadata| ours.contains(&metadata.uid()))
        });
        Ok(found)
    }

    /// A VM's record; `None` when there is none or it is torn.
    pub(super) fn record(&self, id: &VmId) -> Result<Option<Record>, DriverError> {
        let record = self.folder(id).read();
        record.map_err(|error| error::io(format!("cannot read the record of {id}"), error))
    }

    /// The process that a VM's record names.
    pub(super) fn recorded_process(&self, id: &VmId) -> Result<Option<ProcessId>, DriverError> {
        Ok(self.record(id)?.and_then(|record| record.process))
    }

    /// A VM that has a folder.
    pub(super) fn state_of_folder(&self, id: &VmId) -> Result<VmState, DriverError> {
        if self.is_making(id) {
            return Ok(VmState::Running);
        }
        let process = self.recorded_process(id)?;
        let look = || match &process {
            Some(process) if process.is_alive()? => process.is_halted().map(Some),
            _ => Ok(None),
        };
        match look().map_err(|error| error::io(format!("cannot read the process of {id}"), error))? {
            Some(true) => Ok(VmState::Halted),
            Some(false) => {
                let paused = self.folder(id).is_paused();
                let paused = paused.map_err(|error| error::io(format!("cannot read the folder of {id}"), error))?;
                Ok(if paused { VmState::Paused } else { VmState::Running })
            }
            None => self.without_process(id),
        }
    }

    pub(super) fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError> {
        let exists = self.folder(id).exists();
        if exists.map_err(|error| error::io(format!("cannot read the folder of {id}"), error))? {
            return self.state_of_folder(id).map(Some);
        }
        Ok(self
            .processes()?
            .iter()
            .any(|(_, of)| of == id)
            .then_some(VmState::Stopped))
    }

    /// Whether a VM is paused; an error when it does not run.
    pub(super) fn need_alive(&self, id: &VmId) -> Result<bool, DriverError> {
        match self.inspect(id)? {
            Some(VmState::Running) => Ok(false),
            Some(VmState::Paused) => Ok(true),
            Some(VmState::Saved) => Err(DriverError::retry(format!(
                "{id} is paused to the disk: resume it first"
            ))),
            Some(VmState::Halted) => Err(DriverError::retry(format!("{id} is stopped: {}", self.halted(id)))),
            Some(VmState::Stopped) => Err(DriverError::permanent(format!("{id} does not run any more"))),
            None => Err(DriverError::permanent(format!("there is no VM {id}"))),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<VmInfo>, DriverError> {
        // A process whose folder is gone has no record and no socket: there is nothing to do with it but to destroy it.
        let orphans = self.processes()?.into_iter().map(|(_, id)| (id, VmState::Stopped));
        let mut all: BTreeMap<VmId, VmState> = orphans.collect();
        for id in self.folders()? {
            let state = self.state_of_folder(&id)?;
            all.insert(id, state);
        }
        Ok(all.into_iter().map(|(id, state)| VmInfo { id, state }).collect())
    }
}
