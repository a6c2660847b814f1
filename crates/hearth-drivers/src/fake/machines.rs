//! The machines behind the fake driver: which VMs and which checkpoints there are, by the rules that every driver keeps. Nothing
//! here waits, asks a clock, or fails on its own account: [`FakeDriver`](super::FakeDriver) adds delays, faults and agents, and
//! the simulator (`cargo xtask sim`) uses the machines as they are, under a clock and with faults of its own.

use std::collections::{BTreeMap, HashMap};

use hearth_api::ids::VmId;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::driver::no_such_image;
use crate::{
    CheckpointFault, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, DriverError, ForkPurpose, ForkSpec,
    ForkStart, SnapshotSpec, VmInfo, VmShape, VmSpec, VmState, VmUsage,
};

/// What every fake VM costs, and what it shares: made up, but not zero.
const USAGE: VmUsage = VmUsage {
    private_bytes: 40 << 20,
    shared_bytes: 200 << 20,
    disk_bytes: 1 << 20,
    saved_bytes: 0,
};
/// What a fake checkpoint takes.
const CHECKPOINT_BYTES: u64 = 200 << 20;

/// VMs and checkpoints. `G` is what a VM has inside, and a checkpoint of it too.
#[derive(Debug)]
pub struct Machines<G = ()> {
    images: Vec<String>,
    capacity: Option<usize>,
    vms: HashMap<VmId, Machine<G>>,
    checkpoints: BTreeMap<CheckpointKey, Checkpoint<G>>,
    /// VMs made so far.
    made: u64,
}

/// One VM.
#[derive(Debug)]
pub struct Machine<G> {
    image: String,
    shape: VmShape,
    state: VmState,
    /// It can be frozen.
    checkpointable: bool,
    /// Its parent checkpoint.
    lies_on: Option<CheckpointKey>,
    pub(super) inside: G,
}

#[derive(Debug)]
struct Checkpoint<G> {
    info: CheckpointInfo,
    /// Paused for ever; forks are copies of it.
    inside: G,
    /// It is of a VM that was in use.
    of_instance: bool,
    damage: Option<String>,
}

impl<G> Machines<G> {
    /// None yet. The first image is the newest; `create` and `fork` answer `Retry` when `capacity` VMs exist.
    #[must_use]
    pub fn new(images: Vec<String>, capacity: Option<usize>) -> Self {
        Self {
            images,
            capacity,
            vms: HashMap::new(),
            checkpoints: BTreeMap::new(),
            made: 0,
        }
    }

    /// What of a VM can be asked by anyone who knows its id.
    pub(super) fn get(&self, id: &VmId) -> Option<&Machine<G>> {
        self.vms.get(id)
    }

    /// As [`Driver::create`](crate::Driver::create); `inside` makes what is inside, of the how many-eth VM this is.
    pub fn create(&mut self, spec: &VmSpec, inside: impl FnOnce(u64) -> G) -> Result<Created, DriverError> {
        if let Some(there) = self.is_there(&spec.id) {
            return Ok(there);
        }
        if spec.shape.vcpus == 0 || spec.shape.memory_mib == 0 || spec.shape.disk_gib == 0 {
            return Err(DriverError::permanent(
                "a VM needs at least one processor, some memory and some disk",
            ));
        }
        let image = self.find_image(spec.image.as_deref())?.to_owned();
        self.make_room()?;
        let vm = Machine {
            image: image.clone(),
            shape: spec.shape,
            state: VmState::Running,
            checkpointable: spec.checkpointable,
            lies_on: None,
            inside: inside(self.made),
        };
        self.vms.insert(spec.id.clone(), vm);
        Ok(Created { image })
    }

    /// As [`Driver::fork`](crate::Driver::fork); `inside` copies what is inside the checkpoint, for the how many-eth VM.
    pub fn fork(
        &mut self,
        spec: &ForkSpec,
        now: Timestamp,
        inside: impl FnOnce(&G, u64) -> G,
    ) -> Result<Created, DriverError> {
        if let Some(there) = self.is_there(&spec.id) {
            return Ok(there);
        }
        self.make_room()?;
        let checkpoint = self
            .checkpoints
            .get_mut(&spec.from)
            .ok_or_else(|| CheckpointFault::Missing { key: spec.from.clone() })?;
        whole(checkpoint)?;
        let info = &mut checkpoint.info;
        if spec.shape.is_some_and(|shape| shape != info.shape) {
            return Err(DriverError::permanent("the checkpoint is of another VM size"));
        }
        if checkpoint.of_instance && spec.purpose == ForkPurpose::Build {
            return Err(DriverError::permanent("the checkpoint is not to be built on"));
        }
        info.last_used = now;
        let vm = Machine {
            image: info.image.clone(),
            shape: info.shape,
            state: match spec.start {
                ForkStart::Paused => VmState::Paused,
                ForkStart::Running => VmState::Running,
            },
            checkpointable: spec.purpose == ForkPurpose::Build,
            lies_on: Some(spec.from.clone()),
            inside: inside(&checkpoint.inside, self.made),
        };
        let image = vm.image.clone();
        self.vms.insert(spec.id.clone(), vm);
        Ok(Created { image })
    }

    /// As [`Driver::checkpoint`](crate::Driver::checkpoint).
    pub fn checkpoint(
        &mut self,
        id: &VmId,
        spec: &CheckpointSpec,
        now: Timestamp,
        inside: impl FnOnce(&G) -> G,
    ) -> Result<CheckpointInfo, DriverError> {
        if let Some(kept) = self.kept(&spec.key) {
            return Ok(kept);
        }
        let vm = need_alive(&mut self.vms, id)?;
        if !vm.checkpointable {
            return Err(DriverError::permanent(format!("{id} was not made to be frozen")));
        }
        if vm.lies_on != spec.parent {
            return Err(DriverError::permanent(format!(
                "{id} has another checkpoint as its parent"
            )));
        }
        self.freeze(id, (&spec.key, &spec.labels, false), now, inside)
    }

    /// As [`Driver::snapshot`](crate::Driver::snapshot).
    pub fn snapshot(
        &mut self,
        id: &VmId,
        spec: &SnapshotSpec,
        now: Timestamp,
        inside: impl FnOnce(&G) -> G,
    ) -> Result<CheckpointInfo, DriverError> {
        match self.kept(&spec.key) {
            Some(kept) => Ok(kept),
            None => self.freeze(id, (&spec.key, &spec.labels, true), now, inside),
        }
    }

    /// A whole checkpoint of that key.
    fn kept(&self, key: &CheckpointKey) -> Option<CheckpointInfo> {
        let kept = self.checkpoints.get(key).filter(|kept| kept.damage.is_none());
        kept.map(|kept| kept.info.clone())
    }

    fn freeze(
        &mut self,
        id: &VmId,
        (key, labels, of_instance): (&CheckpointKey, &BTreeMap<String, String>, bool),
        now: Timestamp,
        inside: impl FnOnce(&G) -> G,
    ) -> Result<CheckpointInfo, DriverError> {
        let vm = need_alive(&mut self.vms, id)?;
        let info = CheckpointInfo {
            key: key.clone(),
            parent: vm.lies_on.replace(key.clone()),
            labels: labels.clone(),
            image: vm.image.clone(),
            environment: environment_of(&vm.image, vm.shape),
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
            inside: inside(&vm.inside),
            of_instance,
            damage: None,
        };
        self.checkpoints.insert(key.clone(), checkpoint);
        Ok(info)
    }

    /// As [`Driver::environment`](crate::Driver::environment).
    pub fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        self.find_image(image).map(|image| environment_of(image, shape))
    }

    /// Every checkpoint, by key.
    pub fn checkpoints(&self) -> impl Iterator<Item = &CheckpointInfo> {
        self.checkpoints.values().map(|checkpoint| &checkpoint.info)
    }

    /// As [`Driver::check_checkpoint`](crate::Driver::check_checkpoint).
    pub fn check_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let missing = || CheckpointFault::Missing { key: key.clone() };
        whole(self.checkpoints.get(key).ok_or_else(missing)?)
    }

    /// As [`Driver::remove_checkpoint`](crate::Driver::remove_checkpoint).
    pub fn remove_checkpoint(&mut self, key: &CheckpointKey) -> Result<(), DriverError> {
        let is_below_vm = self.vms.values().any(|vm| vm.lies_on.as_ref() == Some(key));
        let mut others = self.checkpoints.values();
        if is_below_vm || others.any(|other| other.info.parent.as_ref() == Some(key)) {
            return Err(DriverError::retry(format!("the checkpoint {key} is in use")));
        }
        self.checkpoints.remove(key);
        Ok(())
    }

    /// Damages a checkpoint, as a disk would. False when there is none.
    pub fn damage(&mut self, key: &CheckpointKey) -> bool {
        let found = self.checkpoints.get_mut(key);
        found
            .map(|checkpoint| checkpoint.damage = Some("state: it was damaged".into()))
            .is_some()
    }

    /// As `pause` and `resume` of [`Driver`](crate::Driver).
    pub fn set_paused(&mut self, id: &VmId, wanted: bool) -> Result<(), DriverError> {
        let saved = self.vms.get_mut(id).filter(|vm| vm.state == VmState::Saved);
        let vm = match saved {
            Some(_) if wanted => return Ok(()),
            Some(vm) => vm,
            None => need_alive(&mut self.vms, id)?,
        };
        vm.state = if wanted { VmState::Paused } else { VmState::Running };
        Ok(())
    }

    /// As [`Driver::save`](crate::Driver::save).
    pub fn save(&mut self, id: &VmId) -> Result<(), DriverError> {
        let saved = self.vms.get(id).is_some_and(|vm| vm.state == VmState::Saved);
        if !saved {
            need_alive(&mut self.vms, id)?.state = VmState::Saved;
        }
        Ok(())
    }

    /// Stops a VM as `kill -STOP` of its process would, or resumes it. False when there is none.
    pub fn set_halted(&mut self, id: &VmId, halted: bool) -> bool {
        let running = |state| matches!(state, VmState::Running | VmState::Paused | VmState::Halted);
        let vm = self.vms.get_mut(id).filter(|vm| running(vm.state));
        vm.map(|vm| vm.state = if halted { VmState::Halted } else { VmState::Running })
            .is_some()
    }

    /// As [`Driver::usage`](crate::Driver::usage).
    pub fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        if self.inspect(id) == Some(VmState::Saved) {
            return Ok(VmUsage {
                private_bytes: 0,
                shared_bytes: 0,
                saved_bytes: USAGE.private_bytes,
                disk_bytes: USAGE.disk_bytes + USAGE.private_bytes,
            });
        }
        self.alive(id).map(|_| USAGE)
    }

    /// As [`Driver::inspect`](crate::Driver::inspect).
    #[must_use]
    pub fn inspect(&self, id: &VmId) -> Option<VmState> {
        self.vms.get(id).map(|vm| vm.state)
    }

    /// As [`Driver::list`](crate::Driver::list), in any order.
    pub fn list(&self) -> impl Iterator<Item = VmInfo> {
        self.vms.iter().map(|(id, vm)| VmInfo {
            id: id.clone(),
            state: vm.state,
        })
    }

    /// What a VM's console would show.
    pub(super) fn console(&self, id: &VmId) -> Result<String, DriverError> {
        let vm = self.vms.get(id).ok_or_else(|| no_vm(id))?;
        Ok(format!(
            "[    0.000000] Linux version 0.0.0-fake (image {})\n",
            vm.image
        ))
    }

    /// Ends a VM as `kill -9` of its process would; what is inside, when it ran or was paused.
    pub fn crash(&mut self, id: &VmId) -> Option<&G> {
        let vm = need_alive(&mut self.vms, id).ok()?;
        vm.state = VmState::Stopped;
        Some(&vm.inside)
    }

    /// As [`Driver::destroy`](crate::Driver::destroy); what was inside.
    pub fn destroy(&mut self, id: &VmId) -> Option<G> {
        self.vms.remove(id).map(|vm| vm.inside)
    }

    /// What is inside a VM that runs or is paused.
    pub(super) fn inside_mut(&mut self, id: &VmId) -> Result<&mut G, DriverError> {
        need_alive(&mut self.vms, id).map(|vm| &mut vm.inside)
    }

    fn alive(&self, id: &VmId) -> Result<&Machine<G>, DriverError> {
        look(id, self.vms.get(id).map(|vm| (vm.state, vm)))
    }

    fn is_there(&self, id: &VmId) -> Option<Created> {
        let saved = self.vms.get(id).filter(|vm| vm.state == VmState::Saved);
        let vm = saved.or_else(|| self.alive(id).ok())?;
        Some(Created {
            image: vm.image.clone(),
        })
    }

    fn make_room(&mut self) -> Result<(), DriverError> {
        if self.capacity.is_some_and(|capacity| self.vms.len() >= capacity) {
            return Err(DriverError::retry("not enough memory on this (fake) host"));
        }
        self.made += 1;
        Ok(())
    }

    /// As [`Driver::check_image`](crate::Driver::check_image).
    pub fn check_image(&self, wanted: &str) -> Result<(), DriverError> {
        match self.find_image(Some(wanted)) {
            Ok(_) => Ok(()),
            Err(_) => Err(no_such_image(wanted, &self.images)),
        }
    }

    fn find_image(&self, wanted: Option<&str>) -> Result<&str, DriverError> {
        let is_wanted = |image: &&String| wanted.is_none_or(|wanted| !wanted.is_empty() && image.starts_with(wanted));
        let found = self.images.iter().find(is_wanted).map(String::as_str);
        found.ok_or_else(|| DriverError::permanent(format!("there is no image \"{}\"", wanted.unwrap_or_default())))
    }
}

/// A VM that runs or is paused.
fn need_alive<'a, G>(vms: &'a mut HashMap<VmId, Machine<G>>, id: &VmId) -> Result<&'a mut Machine<G>, DriverError> {
    look(id, vms.get_mut(id).map(|vm| (vm.state, vm)))
}

fn look<T>(id: &VmId, found: Option<(VmState, T)>) -> Result<T, DriverError> {
    match found {
        Some((VmState::Stopped, _)) => Err(DriverError::permanent(format!("{id} does not run any more"))),
        Some((VmState::Halted, _)) => Err(DriverError::retry(format!("{id} was stopped by a signal"))),
        Some((VmState::Saved, _)) => Err(DriverError::retry(format!(
            "{id} is paused to the disk: resume it first"
        ))),
        Some((_, vm)) => Ok(vm),
        None => Err(no_vm(id)),
    }
}

fn no_vm(id: &VmId) -> DriverError {
    DriverError::permanent(format!("there is no VM {id}"))
}

fn environment_of(image: &str, shape: VmShape) -> String {
    hex::encode(Sha256::digest(format!("fake {image} {shape:?}")))
}

fn whole<G>(checkpoint: &Checkpoint<G>) -> Result<(), DriverError> {
    match &checkpoint.damage {
        None => Ok(()),
        Some(what) => Err(CheckpointFault::Damaged {
            key: checkpoint.info.key.clone(),
            what: what.clone(),
        }
        .into()),
    }
}
