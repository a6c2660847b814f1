//! The fake's checkpoints: copies of what a fake guest holds. They follow the same rules as real ones (what lies on what,
//! what can be frozen) and can be damaged by a test.

use std::sync::Arc;

use hearth_api::ids::VmId;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::agent::Guest;
use super::{FakeDriver, FakeVm, World};
use crate::{
    CheckpointFault, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, DriverError, ForkPurpose, ForkSpec,
    ForkStart, VmShape, VmState, VmUsage,
};

/// What every fake VM costs, and what it shares: made up, but not zero.
const USAGE: VmUsage = VmUsage {
    private_bytes: 40 << 20,
    shared_bytes: 200 << 20,
    disk_bytes: 1 << 20,
};
/// What a fake checkpoint takes.
const CHECKPOINT_BYTES: u64 = 200 << 20;

#[derive(Debug)]
pub(super) struct Checkpoint {
    info: CheckpointInfo,
    /// Stands still for ever; forks are copies of it.
    guest: Guest,
    damage: Option<String>,
}

impl FakeDriver {
    /// Damages a checkpoint. False when there is none.
    pub fn damage(&self, key: &CheckpointKey) -> bool {
        let mut state = self.world.state();
        let found = state.checkpoints.get_mut(key);
        found
            .map(|checkpoint| checkpoint.damage = Some("state: a test has damaged it".into()))
            .is_some()
    }
}

impl World {
    pub(super) fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        let image = self.find_image(image)?;
        Ok(hex::encode(Sha256::digest(format!("fake {image} {shape:?}"))))
    }

    pub(super) fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
        let mut state = self.state();
        if let Some(kept) = state.checkpoints.get(&spec.key).filter(|kept| kept.damage.is_none()) {
            return Ok(kept.info.clone());
        }
        let vm = state.need_alive(id)?;
        if !vm.checkpointable {
            return Err(DriverError::permanent(format!("{id} was not made to be frozen")));
        }
        if vm.lies_on != spec.parent {
            return Err(DriverError::permanent(format!("{id} lies on another checkpoint")));
        }
        let now = jiff::Timestamp::now();
        let info = CheckpointInfo {
            key: spec.key.clone(),
            parent: vm.lies_on.replace(spec.key.clone()),
            labels: spec.labels.clone(),
            image: vm.image.clone(),
            environment: self.environment(Some(&vm.image), vm.shape)?,
            shape: vm.shape,
            engine: "fake".into(),
            agent_version: "fake".into(),
            created: now,
            last_used: now,
            paused_ms: 0,
            bytes: CHECKPOINT_BYTES,
        };
        let checkpoint = Checkpoint {
            info: info.clone(),
            guest: vm.guest.copy(String::new()),
            damage: None,
        };
        state.checkpoints.insert(spec.key.clone(), checkpoint);
        Ok(info)
    }

    pub(super) fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError> {
        let mut state = self.state();
        if let Some(vm) = state.vms.get(&spec.id).filter(|vm| vm.state != VmState::Stopped) {
            return Ok(Created {
                image: vm.image.clone(),
            });
        }
        self.check_capacity(&state)?;
        state.created += 1;
        let boot_id = format!("fake-{:016x}-{}", self.seed, state.created);
        let checkpoint = state
            .checkpoints
            .get_mut(&spec.from)
            .ok_or_else(|| CheckpointFault::Missing { key: spec.from.clone() })?;
        whole(checkpoint)?;
        let info = &mut checkpoint.info;
        if spec.shape.is_some_and(|shape| shape != info.shape) {
            return Err(DriverError::permanent("the checkpoint is of another VM size"));
        }
        info.last_used = jiff::Timestamp::now();
        let guest = checkpoint.guest.copy(boot_id);
        guest.set_running(spec.start == ForkStart::Running);
        let vm = FakeVm {
            image: checkpoint.info.image.clone(),
            shape: checkpoint.info.shape,
            state: match spec.start {
                ForkStart::Paused => VmState::Paused,
                ForkStart::Running => VmState::Running,
            },
            checkpointable: spec.purpose == ForkPurpose::Build,
            lies_on: Some(spec.from.clone()),
            guest: Arc::new(guest),
            // It has booted long ago.
            answers_at: tokio::time::Instant::now(),
            connection: CancellationToken::new(),
        };
        let image = vm.image.clone();
        state.vms.insert(spec.id.clone(), vm);
        Ok(Created { image })
    }

    pub(super) fn checkpoints(&self) -> Vec<CheckpointInfo> {
        let state = self.state();
        state
            .checkpoints
            .values()
            .map(|checkpoint| checkpoint.info.clone())
            .collect()
    }

    pub(super) fn check_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let state = self.state();
        let missing = || CheckpointFault::Missing { key: key.clone() };
        whole(state.checkpoints.get(key).ok_or_else(missing)?)
    }

    pub(super) fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let mut state = self.state();
        let is_below_vm = state.vms.values().any(|vm| vm.lies_on.as_ref() == Some(key));
        let mut others = state.checkpoints.values();
        if is_below_vm || others.any(|other| other.info.parent.as_ref() == Some(key)) {
            return Err(DriverError::retry(format!("the checkpoint {key} is in use")));
        }
        state.checkpoints.remove(key);
        Ok(())
    }

    pub(super) fn set_paused(&self, id: &VmId, wanted: bool) -> Result<(), DriverError> {
        let mut state = self.state();
        let vm = state.need_alive(id)?;
        vm.state = if wanted { VmState::Paused } else { VmState::Running };
        vm.guest.set_running(!wanted);
        Ok(())
    }

    pub(super) fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        self.state().need_alive(id).map(|_| USAGE)
    }
}

fn whole(checkpoint: &Checkpoint) -> Result<(), DriverError> {
    match &checkpoint.damage {
        None => Ok(()),
        Some(what) => Err(CheckpointFault::Damaged {
            key: checkpoint.info.key.clone(),
            what: what.clone(),
        }
        .into()),
    }
}
