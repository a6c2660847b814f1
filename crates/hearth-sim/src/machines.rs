//! The fake driver's machines under simulated time: every VM and every template is one of theirs, made, frozen, paused and removed
//! by their rules. What the planner is shown of a VM is read off them, for a pass, and never written by anybody else.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hearth_api::ids::VmId;
use hearth_core::state::InstanceState;
use hearth_core::world::VmPresence;
use hearth_drivers::{
    CheckpointKey, CheckpointSpec, ForkPurpose, ForkSpec, ForkStart, VmInfo, VmShape, VmSpec, VmState,
};

use crate::state::{State, WHOLE_MIB, moment, pool_of_recipe};

/// The image of every VM.
pub(crate) const IMAGE: &str = "simulated";

/// What a VM is made from.
#[derive(Debug, Clone)]
pub(crate) struct Birth {
    pub(crate) vm: VmId,
    /// The template; the image when there is none.
    pub(crate) from: Option<CheckpointKey>,
}

fn shape() -> VmShape {
    VmShape {
        vcpus: 2,
        memory_mib: u32::try_from(WHOLE_MIB).unwrap_or(u32::MAX),
        disk_gib: 10,
    }
}

/// A recipe's name is its template's key.
fn key_of(recipe: &str) -> anyhow::Result<CheckpointKey> {
    recipe.parse().with_context(|| format!("recipe {recipe}"))
}

fn presence(found: Option<VmState>) -> VmPresence {
    match found {
        None => VmPresence::Absent,
        Some(VmState::Running) => VmPresence::Running,
        Some(VmState::Paused | VmState::Saved) => VmPresence::Paused,
        Some(VmState::Halted) => VmPresence::Halted,
        Some(VmState::Stopped) => VmPresence::Stopped,
    }
}

impl State {
    /// What an instance's VM is to be made from.
    pub(crate) fn birth(&self, slot: u32) -> anyhow::Result<Birth> {
        let row = self.row(slot);
        Ok(Birth {
            vm: self.vm(slot).clone(),
            from: row.forked.then(|| key_of(&row.recipe)).transpose()?,
        })
    }

    /// Makes a VM.
    pub(crate) fn give_birth(&mut self, birth: &Birth) -> anyhow::Result<()> {
        match &birth.from {
            Some(from) => {
                let fork = ForkSpec {
                    id: birth.vm.clone(),
                    from: from.clone(),
                    purpose: ForkPurpose::Instance,
                    shape: Some(shape()),
                    start: ForkStart::Running,
                };
                self.calls += 1;
                self.machines.fork(&fork, moment(self.now), |(), _| ())?;
            }
            None => {
                let new = VmSpec {
                    id: birth.vm.clone(),
                    image: Some(IMAGE.to_owned()),
                    shape: shape(),
                    checkpointable: true,
                };
                self.calls += 1;
                self.machines.create(&new, |_| ())?;
            }
        }
        Ok(())
    }

    /// The template is there as it was made: looked at before every use.
    pub(crate) fn is_whole(&mut self, recipe: &str) -> anyhow::Result<bool> {
        self.calls += 1;
        let looked = self.machines.check_checkpoint(&key_of(recipe)?);
        match looked {
            Err(error) if error.checkpoint_fault().is_none() => Err(error.into()),
            looked => Ok(looked.is_ok()),
        }
    }

    /// Freezes an instance's VM as the template of its recipe.
    pub(crate) fn freeze(&mut self, slot: u32) -> anyhow::Result<()> {
        let recipe = self.row(slot).recipe.clone();
        let vm = self.vm(slot).clone();
        self.freeze_as(&vm, &recipe)?;
        let (pool, _) = self.place(slot);
        self.set_template(pool, &recipe, true);
        Ok(())
    }

    /// A template from before the beginning.
    pub(crate) fn prepare(&mut self, pool: usize) -> anyhow::Result<()> {
        let recipe = self.world.pools[pool].recipe.clone();
        let vm = VmId::try_from(format!("before-{pool}")).map_err(|error| anyhow!("{error}"))?;
        let birth = Birth {
            vm: vm.clone(),
            from: None,
        };
        self.give_birth(&birth)?;
        self.freeze_as(&vm, &recipe)?;
        self.remove_vm(&vm);
        self.set_template(pool, &recipe, true);
        Ok(())
    }

    fn freeze_as(&mut self, vm: &VmId, recipe: &str) -> anyhow::Result<()> {
        let spec = CheckpointSpec {
            key: key_of(recipe)?,
            parent: None,
            labels: BTreeMap::new(),
            idle: Duration::ZERO,
        };
        self.calls += 1;
        self.machines.checkpoint(vm, &spec, moment(self.now), |()| ())?;
        Ok(())
    }

    /// Damages a recipe's template on its disk; nobody is told.
    pub(crate) fn damage_template(&mut self, recipe: &str) -> anyhow::Result<()> {
        self.machines.damage(&key_of(recipe)?);
        Ok(())
    }

    /// What Garbage collection of checkpoints does: those without a row go, unless something is based on them.
    pub(crate) fn sweep_templates(&mut self) {
        let has_row = |key: &&CheckpointKey| {
            pool_of_recipe(key.as_str()).is_some_and(|pool| self.has_template(pool, key.as_str()))
        };
        let keys = self.machines.checkpoints().map(|info| &info.key);
        let without: Vec<_> = keys.filter(|key| !has_row(key)).cloned().collect();
        for key in without {
            self.calls += 1;
            // It refuses for as long as something is based on it: the next sweep asks again.
            let _ = self.machines.remove_checkpoint(&key);
        }
    }

    /// Whether an instance's VM runs or is paused, asked now.
    pub(crate) fn is_alive(&self, slot: u32) -> bool {
        self.presence_of(slot).is_alive()
    }

    fn presence_of(&self, slot: u32) -> VmPresence {
        presence(self.machines.inspect(self.vm(slot)))
    }

    /// Pauses or resumes the VM of an instance. False when it can do neither.
    pub(crate) fn set_paused(&mut self, slot: u32, wanted: bool) -> bool {
        self.calls += 1;
        let done = self.machines.set_paused(&self.slots[slot as usize].vm, wanted).is_ok();
        self.unseen.push(slot);
        done
    }

    /// Ends an instance's VM as a crash does.
    pub(crate) fn crash(&mut self, slot: u32) {
        self.machines.crash(&self.slots[slot as usize].vm);
        self.unseen.push(slot);
    }

    /// Removes an instance's VM.
    pub(crate) fn remove_vm_of(&mut self, slot: u32) {
        let vm = self.vm(slot).clone();
        self.remove_vm(&vm);
        self.unseen.push(slot);
    }

    pub(crate) fn remove_vm(&mut self, vm: &VmId) {
        self.calls += 1;
        self.machines.destroy(vm);
    }

    /// What a pass sees of the VMs: what changed since the last one is looked at anew. That nothing else did, [`State::agrees`] finds.
    pub(crate) fn observe(&mut self) {
        for slot in std::mem::take(&mut self.unseen) {
            if self.slots[slot as usize].serial > 0 {
                self.row_mut(slot).vm = self.presence_of(slot);
            }
        }
    }

    /// Rows, orphans and the driver's list name the same VMs, in the same states, and every template that a row names is there.
    pub(crate) fn agrees(&mut self) -> Result<(), String> {
        self.observe();
        let mut listed: BTreeMap<VmId, VmState> =
            self.machines.list().map(|VmInfo { id, state }| (id, state)).collect();
        for entry in self.slots.iter().filter(|entry| entry.serial > 0) {
            let vm = &entry.vm;
            let row = &self.world.pools[entry.pool as usize].instances[entry.at as usize];
            let there = presence(listed.remove(vm));
            if there != row.vm {
                return Err(format!("{vm} is {there:?}, and {:?} by its row", row.vm));
            }
            if row.state == InstanceState::Archived && there != VmPresence::Absent {
                return Err(format!("the VM of {} is still there", row.id));
            }
        }
        for orphan in &self.world.orphans {
            if listed.remove(orphan).is_none() {
                return Err(format!("the orphan {orphan} is not there"));
            }
        }
        if let Some((vm, _)) = listed.pop_first() {
            return Err(format!("{vm} has no owner"));
        }
        let recipes = self.sides.iter().flat_map(|side| &side.recipes);
        for recipe in recipes.filter(|recipe| recipe.template > 0) {
            let key = key_of(&recipe.name).map_err(|error| error.to_string())?;
            let found = self.machines.check_checkpoint(&key);
            let fault = found.as_ref().err().and_then(|error| error.checkpoint_fault());
            if let Some(hearth_drivers::CheckpointFault::Missing { .. }) = fault {
                return Err(format!("the template of {} is gone", recipe.name));
            }
        }
        Ok(())
    }

    /// Templates that no row names.
    pub(crate) fn templates_without_row(&self) -> usize {
        let with = self.sides.iter().flat_map(|side| &side.recipes);
        let with = with.filter(|recipe| recipe.template > 0).count();
        self.machines.checkpoints().count().saturating_sub(with)
    }
}
