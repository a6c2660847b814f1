//! What there is: rows as the store would have them, VMs as the driver would have them, recipes and their templates. Rows are
//! kept in the planner's own form and changed in place, and an instance's id says where it is, so that nothing is searched.

use std::collections::VecDeque;

use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_core::claim::ClaimScope;
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{FailureStreak, InstanceWorld, Limits, PoolWorld, PreviousRecipe, VmPresence, Work, World};
use hearth_drivers::fake::Machines;
use jiff::{SignedDuration, Timestamp};

use crate::machines::IMAGE;

/// Simulated time since the beginning, microseconds.
pub(crate) type Micros = u64;
/// A second.
pub(crate) const SECOND: Micros = 1_000_000;
/// No slot, no claim.
pub(crate) const NOBODY: u32 = u32::MAX;
/// What a fork is taken for before it is measured, MiB.
pub(crate) const FORK_MIB: u64 = 64;
/// The whole size of a VM, MiB.
pub(crate) const WHOLE_MIB: u64 = 1024;
/// A store reads so many of a recipe's boots at most.
const STREAK_READ: u32 = 20;
/// Of the records whose VM is gone the planner is shown so many of each pool: it does nothing with them for a day, and an
/// outage under load would leave hundreds of thousands.
const RECORDS_SHOWN: usize = 4;
/// A pool remembers so many recipes.
const RECIPES_KEPT: usize = 8;

/// The moment that the simulation begins.
pub(crate) fn moment(at: Micros) -> Timestamp {
    let since = SignedDuration::from_micros(i64::try_from(at).unwrap_or(i64::MAX));
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 57) + since
}

/// How a boot under way will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Fails(FailureKind),
    /// The call's end is not known: the row fails, and the VM may be there all the same.
    Unknown {
        took_effect: bool,
    },
}

/// What belongs to an instance besides its row.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// Which instance lives here; 0: none.
    pub(crate) serial: u64,
    /// Its VM.
    pub(crate) vm: VmId,
    pub(crate) pool: u32,
    pub(crate) at: u32,
    /// Counts up whenever somebody else takes over: what an older task reports is void.
    pub(crate) job: u32,
    /// How often it was handed over.
    pub(crate) claims: u32,
    /// The claim that waits for it.
    pub(crate) claim: u32,
    pub(crate) outcome: Outcome,
    /// When its boot began, and how long that takes.
    pub(crate) boot: (Micros, Micros),
    /// What is left of a boot that was interrupted, after what of it was frozen; `None`: all of it.
    pub(crate) left: Option<Micros>,
    /// How often the end of a server interrupted its boot, and the next one continued with it.
    pub(crate) restarts: u32,
    /// The last pass that named it.
    pub(crate) named: u64,
}

/// A recipe of a pool.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    /// Its set-up fails, so.
    pub(crate) bad: Option<FailureKind>,
    /// The how many-eth template, as its row says; 0: none. The template itself is the driver's.
    pub(crate) template: u64,
    pub(crate) streak: FailureStreak,
}

/// What belongs to a pool besides its target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    pub(crate) set_up: u32,
    pub(crate) commit: u32,
    pub(crate) recipes: Vec<Recipe>,
    /// Ready, and free for any claim.
    pub(crate) ready: Vec<u32>,
    /// Records whose VM is gone, oldest first.
    pub(crate) records: VecDeque<(u32, u64)>,
    /// Claims that wait for whatever becomes ready, longest first.
    pub(crate) waiting: VecDeque<(u32, u64)>,
    /// Claims that wait for what is of the target recipe.
    pub(crate) waiting_strict: VecDeque<(u32, u64)>,
    /// As of the last pass, the target recipe is not built until somebody repairs something.
    pub(crate) needs_repair: bool,
}

impl Side {
    /// The queue of a scope.
    pub(crate) fn queue(&mut self, scope: ClaimScope) -> Option<&mut VecDeque<(u32, u64)>> {
        match scope {
            ClaimScope::Any => Some(&mut self.waiting),
            ClaimScope::Target => Some(&mut self.waiting_strict),
            ClaimScope::Own => None,
        }
    }
}

/// Everything that lasts.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) now: Micros,
    pub(crate) world: World,
    pub(crate) sides: Vec<Side>,
    pub(crate) slots: Vec<Slot>,
    free: Vec<u32>,
    pub(crate) made: u64,
    templates: u64,
    /// VMs and templates as they are.
    pub(crate) machines: Machines,
    /// Calls of the driver.
    pub(crate) calls: u64,
    /// Instances whose VM has changed since the last pass.
    pub(crate) unseen: Vec<u32>,
}

impl State {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            now: 0,
            world: World {
                now: moment(0),
                limits,
                pools: Vec::new(),
                can_pause: true,
                orphans: Vec::new(),
                drivers_observed: true,
            },
            sides: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            made: 0,
            templates: 0,
            machines: Machines::new(vec![IMAGE.to_owned()], None),
            calls: 0,
            unseen: Vec::new(),
        }
    }

    pub(crate) fn add_pool(&mut self, target: usize, max_age_seconds: i64) -> anyhow::Result<usize> {
        let pool = self.sides.len();
        let project = ProjectId::try_from(format!("p{pool}")).map_err(|error| anyhow::anyhow!("{error}"))?;
        self.sides.push(Side::default());
        self.world.pools.push(PoolWorld {
            project,
            tenant: 0,
            enabled: true,
            target,
            max_vms: None,
            max_age_seconds,
            recipe: String::new(),
            memory_mib: WHOLE_MIB,
            build_mib: WHOLE_MIB,
            prepared: false,
            streak: FailureStreak::default(),
            previous: None,
            instances: Vec::new(),
        });
        Ok(pool)
    }

    /// The pool wants something else from now on: another commit, or another set-up.
    pub(crate) fn want(&mut self, pool: usize, new_set_up: bool, bad: Option<FailureKind>) {
        let side = &mut self.sides[pool];
        side.commit += 1;
        side.set_up += u32::from(new_set_up);
        let name = format!("{pool:06x}{:06x}{:012x}", side.set_up, side.commit);
        self.world.pools[pool].recipe.clone_from(&name);
        side.recipes.push(Recipe {
            name,
            bad,
            template: 0,
            streak: FailureStreak::default(),
        });
        if side.recipes.len() > RECIPES_KEPT {
            let newest = side.recipes.iter().map(|recipe| recipe.template).max();
            let old = side
                .recipes
                .iter()
                .position(|recipe| Some(recipe.template) != newest || newest == Some(0));
            side.recipes.remove(old.unwrap_or_default());
        }
        self.refresh(pool);
    }

    pub(crate) fn recipe(&mut self, pool: usize, name: &str) -> Option<&mut Recipe> {
        self.sides[pool]
            .recipes
            .iter_mut()
            .rev()
            .find(|recipe| recipe.name == name)
    }

    pub(crate) fn wanted(&self, pool: usize) -> Option<&Recipe> {
        let name = &self.world.pools[pool].recipe;
        self.sides[pool]
            .recipes
            .iter()
            .rev()
            .find(|recipe| recipe.name == *name)
    }

    /// The recipe that new instances come from: the wanted one, or the newest that there is a template of.
    pub(crate) fn serving(&self, pool: usize) -> &str {
        let pool = &self.world.pools[pool];
        match &pool.previous {
            Some(last) if !pool.prepared => &last.recipe,
            _ => &pool.recipe,
        }
    }

    pub(crate) fn has_template(&self, pool: usize, name: &str) -> bool {
        self.sides[pool]
            .recipes
            .iter()
            .any(|recipe| recipe.name == name && recipe.template > 0)
    }

    pub(crate) fn set_template(&mut self, pool: usize, name: &str, there: bool) {
        self.templates += 1;
        let number = if there { self.templates } else { 0 };
        if let Some(recipe) = self.recipe(pool, name) {
            recipe.template = number;
        }
        self.refresh(pool);
    }

    /// What an observation would read anew: what is prepared, what serves until then, how the latest boots ended.
    pub(crate) fn refresh(&mut self, pool: usize) {
        let (side, seen) = (&self.sides[pool], &mut self.world.pools[pool]);
        let read = |streak: FailureStreak| FailureStreak {
            successes: streak.successes.min(STREAK_READ),
            recipe: streak.recipe.min(STREAK_READ),
            host: streak.host.min(STREAK_READ),
            ..streak
        };
        let wanted = side.recipes.iter().rev().find(|recipe| recipe.name == seen.recipe);
        let Some(wanted) = wanted else { return };
        seen.prepared = wanted.template > 0;
        seen.streak = read(wanted.streak);
        seen.memory_mib = if seen.prepared { FORK_MIB } else { WHOLE_MIB };
        let last = side
            .recipes
            .iter()
            .filter(|recipe| recipe.template > 0)
            .max_by_key(|recipe| recipe.template);
        seen.previous = match (last, seen.previous.take()) {
            (Some(last), Some(before)) if !seen.prepared && before.recipe == last.name => Some(PreviousRecipe {
                streak: read(last.streak),
                ..before
            }),
            (Some(last), _) if !seen.prepared => Some(PreviousRecipe {
                recipe: last.name.clone(),
                memory_mib: FORK_MIB,
                streak: read(last.streak),
            }),
            _ => None,
        };
    }

    /// A new row; nobody has begun.
    pub(crate) fn add_row(&mut self, pool: usize, recipe: String) -> anyhow::Result<u32> {
        self.made += 1;
        let forked = self.has_template(pool, &recipe);
        let now = moment(self.now);
        let rows = &mut self.world.pools[pool].instances;
        let vm = VmId::try_from(format!("vm-{:x}", self.made));
        let mut fresh = Slot {
            serial: self.made,
            vm: vm.map_err(|error| anyhow::anyhow!("{error}"))?,
            pool: u32::try_from(pool)?,
            at: u32::try_from(rows.len())?,
            job: 0,
            claims: 0,
            claim: NOBODY,
            outcome: Outcome::Good,
            boot: (0, 0),
            left: None,
            restarts: 0,
            named: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                let before = &mut self.slots[slot as usize];
                fresh.job = before.job.wrapping_add(1);
                *before = fresh;
                slot
            }
            None => {
                self.slots.push(fresh);
                u32::try_from(self.slots.len() - 1)?
            }
        };
        let id = InstanceId::try_from(format!("i{:012x}-{slot:x}", self.made));
        rows.push(InstanceWorld {
            id: id.map_err(|error| anyhow::anyhow!("{error}"))?,
            state: InstanceState::Provisioning,
            generation: 1,
            purpose: Purpose::Pool,
            recipe,
            forked,
            failure: None,
            memory_mib: if forked { FORK_MIB } else { WHOLE_MIB },
            created_at: now,
            state_since: now,
            lease_ends_at: None,
            vm: VmPresence::Absent,
            work: Work::Unstarted,
        });
        Ok(slot)
    }

    pub(crate) fn remove_row(&mut self, slot: u32) {
        self.leave_ready(slot);
        let (pool, at) = self.place(slot);
        let rows = &mut self.world.pools[pool].instances;
        rows.swap_remove(at);
        let moved = rows.get(at).map(|row| row.id.clone());
        if let Some(moved) = moved.and_then(|id| slot_of(&id)) {
            self.slots[moved as usize].at = u32::try_from(at).unwrap_or_default();
        }
        let slot_ref = &mut self.slots[slot as usize];
        (slot_ref.serial, slot_ref.job) = (0, slot_ref.job.wrapping_add(1));
        self.free.push(slot);
    }

    pub(crate) fn place(&self, slot: u32) -> (usize, usize) {
        let slot = &self.slots[slot as usize];
        (slot.pool as usize, slot.at as usize)
    }

    /// Whose instance it is.
    pub(crate) fn project(&self, slot: u32) -> &ProjectId {
        &self.world.pools[self.place(slot).0].project
    }

    pub(crate) fn row(&self, slot: u32) -> &InstanceWorld {
        let (pool, at) = self.place(slot);
        &self.world.pools[pool].instances[at]
    }

    pub(crate) fn row_mut(&mut self, slot: u32) -> &mut InstanceWorld {
        let (pool, at) = self.place(slot);
        &mut self.world.pools[pool].instances[at]
    }

    /// The slot of an id, while that instance is there.
    pub(crate) fn find(&self, id: &InstanceId) -> Option<u32> {
        let slot = slot_of(id)?;
        let there = self.slots.get(slot as usize).is_some_and(|slot| slot.serial > 0);
        (there && self.row(slot).id == *id).then_some(slot)
    }

    /// The one move of a row: legal, or lost.
    pub(crate) fn move_row(&mut self, slot: u32, to: InstanceState, generation: Option<i64>) -> bool {
        let now = moment(self.now);
        let row = self.row_mut(slot);
        let lost = generation.is_some_and(|generation| generation != row.generation);
        if lost || !to.legal_sources().contains(&row.state) {
            return false;
        }
        let was_ready = row.state == InstanceState::Ready;
        (row.state, row.state_since) = (to, now);
        row.generation += 1;
        row.work = Work::Idle;
        if was_ready {
            self.leave_ready(slot);
        }
        true
    }

    /// An instance's VM, whether there is one or not.
    pub(crate) fn vm(&self, slot: u32) -> &VmId {
        &self.slots[slot as usize].vm
    }

    /// Only the record is left.
    pub(crate) fn archive(&mut self, slot: u32) {
        self.move_row(slot, InstanceState::Archived, None);
        let entry = &self.slots[slot as usize];
        let (pool, serial) = (entry.pool as usize, entry.serial);
        self.sides[pool].records.push_back((slot, serial));
        if self.sides[pool].records.len() > RECORDS_SHOWN
            && let Some((slot, serial)) = self.sides[pool].records.pop_front()
            && self.slots[slot as usize].serial == serial
            && self.row(slot).state == InstanceState::Archived
        {
            self.remove_row(slot);
        }
    }

    fn leave_ready(&mut self, slot: u32) {
        let (pool, _) = self.place(slot);
        let ready = &mut self.sides[pool].ready;
        if let Some(at) = ready.iter().position(|other| *other == slot) {
            ready.swap_remove(at);
        }
    }
}

fn slot_of(id: &InstanceId) -> Option<u32> {
    u32::from_str_radix(id.as_str().rsplit_once('-')?.1, 16).ok()
}

/// The pool of a recipe, by its name.
pub(crate) fn pool_of_recipe(name: &str) -> Option<usize> {
    usize::from_str_radix(name.get(..6)?, 16).ok()
}

/// The pool of a project's id.
pub(crate) fn pool_of(project: &ProjectId) -> Option<usize> {
    project.as_str().strip_prefix('p')?.parse().ok()
}
