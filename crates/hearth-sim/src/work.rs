//! The hands: actions carried out as the server carries them out, with delays, failures, and calls whose end nobody knows.

use hearth_core::plan::Action;
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::Work;
use rand::RngExt;

use crate::sim::{Happens, Sim};
use crate::state::{FORK_MIB, Outcome, SECOND, pool_of};

/// Of forks: this share fails.
const FORK_FAILS: f64 = 0.003;
/// Of set-ups that are good: this share fails all the same.
const SET_UP_FAILS: f64 = 0.02;
/// Of calls: the end of this share is not known.
const END_UNKNOWN: f64 = 0.001;
/// Of VMs being torn down: this share is not at the first time.
const DESTROY_FAILS: f64 = 0.005;
/// Of boots under way when a server ends: the next one finds a driver that does not answer for this share, and leaves them to the
/// planner.
const LEFT_ALONE: f64 = 0.3;
/// Of these: the VM of this share appears only later.
const LATE: f64 = 0.5;
/// A boot that was interrupted so often is left to the planner as well.
const MOST_RESTARTS: u32 = 3;
/// A set-up is frozen so often on its way.
const STAGES: u64 = 5;

impl Sim {
    /// What the last pass decided, by the rows as they are now.
    pub(crate) fn act_all(&mut self) -> anyhow::Result<()> {
        let Some(decision) = self.pending.take() else {
            return Ok(());
        };
        for action in &decision.actions {
            self.act(action)?;
        }
        Ok(())
    }

    /// The server ended while it acted: only the first few were done.
    fn act_some(&mut self) -> anyhow::Result<()> {
        if let Some(mut decision) = self.pending.take() {
            let done = self.rng.random_range(0..=decision.actions.len());
            decision.actions.truncate(done);
            self.pending = Some(decision);
            self.act_all()?;
        }
        Ok(())
    }

    fn act(&mut self, action: &Action) -> anyhow::Result<()> {
        let found = action.instance().and_then(|id| self.state.find(id));
        match action {
            Action::Create { project, recipe, .. } => {
                if let Some(pool) = pool_of(project) {
                    let slot = self.state.add_row(pool, recipe.clone())?;
                    self.tell_ordered(slot);
                    self.begin_boot(slot)?;
                }
            }
            Action::Build { project } => {
                if let Some(pool) = pool_of(project) {
                    let recipe = self.state.world.pools[pool].recipe.clone();
                    let slot = self.state.add_row(pool, recipe)?;
                    self.tell_ordered(slot);
                    self.figures.beside += 1;
                    self.begin_boot(slot)?;
                }
            }
            Action::Start { .. } => {
                if let Some(slot) = found
                    && self.state.row(slot).state == InstanceState::Provisioning
                    && self.state.row(slot).work == Work::Unstarted
                {
                    let (pool, _) = self.state.place(slot);
                    let wanted = self.state.world.pools[pool].recipe.clone();
                    let ordered = self.state.row(slot).recipe.clone();
                    let goes_on =
                        self.state.slots[slot as usize].restarts > 0 && !self.state.has_template(pool, &ordered);
                    let takes_wanted =
                        goes_on || !self.state.row(slot).purpose.is_test() && self.state.has_template(pool, &wanted);
                    if takes_wanted && ordered != wanted {
                        self.state.row_mut(slot).recipe = wanted;
                        // What was frozen of another recipe is of no use.
                        self.state.slots[slot as usize].left = None;
                    }
                    self.begin_boot(slot)?;
                }
            }
            Action::Fail {
                generation, failure, ..
            } => {
                if let Some(slot) = found {
                    let alive = self.state.is_alive(slot);
                    let asked_in_vain = failure.kind == FailureKind::VmLost && alive;
                    if !asked_in_vain && self.state.move_row(slot, InstanceState::Failed, Some(*generation)) {
                        self.state.row_mut(slot).failure = Some(failure.kind);
                        self.tell_boot(slot, Some(failure.kind.as_str()));
                        self.disappoint(slot);
                        self.wake();
                    }
                }
            }
            Action::Retire { generation, .. } => self.end(found, InstanceState::Retiring, *generation),
            Action::Delete { generation, .. } => self.end(found, InstanceState::Deleting, *generation),
            Action::Teardown { .. } => {
                if let Some(slot) = found {
                    self.tear_down(slot);
                }
            }
            Action::Pause { .. } => {
                if let Some(slot) = found
                    && self.state.row(slot).state == InstanceState::Ready
                {
                    self.pause(slot);
                }
            }
            Action::DestroyOrphan { vm } => {
                if !self.chance(DESTROY_FAILS) {
                    self.state.remove_vm(vm);
                    self.state.world.orphans.retain(|orphan| orphan != vm);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, found: Option<u32>, to: InstanceState, generation: i64) {
        let was_claimed = found.is_some_and(|slot| self.state.row(slot).state == InstanceState::Claimed);
        if let Some(slot) = found
            && self.state.move_row(slot, to, Some(generation))
        {
            self.tell_gone(slot, was_claimed);
            self.disappoint(slot);
            self.tear_down(slot);
            self.wake();
        }
    }

    /// It is paused and measured.
    fn pause(&mut self, slot: u32) {
        let measured = self.between(FORK_MIB / 2, FORK_MIB * 5 / 4);
        if self.state.set_paused(slot, true) {
            self.state.row_mut(slot).memory_mib = measured;
        }
    }

    fn begin_boot(&mut self, slot: u32) -> anyhow::Result<()> {
        let (pool, _) = self.state.place(slot);
        self.figures.begun += 1;
        self.spend_token();
        let name = self.state.row(slot).recipe.clone();
        let has_template = self.has_whole_template(pool, &name)?;
        let bad = self.state.recipe(pool, &name).and_then(|recipe| recipe.bad);
        let is_test = self.state.row(slot).purpose.is_test();
        self.figures.beside += u64::from(is_test);
        let row = self.state.row_mut(slot);
        // As the observation says it: what is forked once it begins counts as a fork.
        row.forked = has_template;
        row.work = Work::Here;
        let forked = row.forked;
        let took = if forked {
            self.between(SECOND * 6 / 100, SECOND * 18 / 100)
        } else if let Some(left) = self.state.slots[slot as usize].left {
            left
        } else {
            self.between(20 * SECOND, 90 * SECOND)
        };
        let outcome = if self.state.now < self.outage_until {
            Outcome::Fails(FailureKind::Host)
        } else if self.chance(END_UNKNOWN) {
            Outcome::Unknown {
                took_effect: self.chance(0.5),
            }
        } else if forked {
            self.fork_outcome()
        } else if let Some(kind) = bad {
            Outcome::Fails(kind)
        } else if self.chance(SET_UP_FAILS) {
            Outcome::Fails(FailureKind::Setup)
        } else {
            Outcome::Good
        };
        let calm = self.calm && bad.is_none();
        let outcome = if calm { Outcome::Good } else { outcome };
        if !matches!(outcome, Outcome::Unknown { took_effect: false }) {
            let birth = self.state.birth(slot)?;
            self.state.give_birth(&birth)?;
        }
        self.state.unseen.push(slot);
        let entry = &mut self.state.slots[slot as usize];
        entry.outcome = outcome;
        entry.boot = (self.state.now, took);
        entry.job = entry.job.wrapping_add(1);
        let (job, serial) = (entry.job, entry.serial);
        self.note("begun", pool, serial);
        self.later(took, Happens::BootEnds { slot, job });
        Ok(())
    }

    /// A damaged template is found before it is used, and its row goes: what was to be forked is set up.
    fn has_whole_template(&mut self, pool: usize, name: &str) -> anyhow::Result<bool> {
        if !self.state.has_template(pool, name) {
            return Ok(false);
        }
        let whole = self.state.is_whole(name)?;
        if !whole {
            self.note("damaged template found", pool, 0);
            self.figures.damaged += 1;
            self.state.set_template(pool, name, false);
        }
        Ok(whole)
    }

    fn fork_outcome(&mut self) -> Outcome {
        const KINDS: [FailureKind; 3] = [FailureKind::Host, FailureKind::Identity, FailureKind::VmLost];
        if self.chance(FORK_FAILS) {
            Outcome::Fails(KINDS[self.rng.random_range(0..KINDS.len())])
        } else {
            Outcome::Good
        }
    }

    pub(crate) fn boot_ends(&mut self, slot: u32, job: u32) -> anyhow::Result<()> {
        let entry = &self.state.slots[slot as usize];
        if entry.job != job || entry.serial == 0 || self.state.row(slot).state != InstanceState::Provisioning {
            return Ok(());
        }
        let (outcome, serial) = (entry.outcome, entry.serial);
        let (pool, _) = self.state.place(slot);
        let failure = match outcome {
            Outcome::Unknown { .. } => Some(FailureKind::Host),
            _ if !self.state.is_alive(slot) => Some(FailureKind::VmLost),
            Outcome::Good => None,
            Outcome::Fails(kind) => Some(kind),
        };
        self.count(slot, failure);
        match failure {
            None => {
                self.note("ready", pool, serial);
                let reserved = self.state.row(slot).purpose == Purpose::Claim;
                let row = self.state.row(slot);
                if !row.forked && !self.state.has_template(pool, &row.recipe) {
                    self.state.freeze(slot)?;
                    self.notify_all(pool);
                }
                self.tell_boot(slot, None);
                self.state.move_row(slot, InstanceState::Ready, None);
                // A VM that a claim waited for keeps running; the planner pauses it if that claim is gone.
                if !reserved && self.chance(0.9) {
                    self.pause(slot);
                }
                self.offer(slot);
            }
            Some(kind) => {
                self.note(kind.as_str(), pool, serial);
                self.state.move_row(slot, InstanceState::Failed, None);
                self.state.row_mut(slot).failure = Some(kind);
                self.tell_boot(slot, Some(kind.as_str()));
                self.disappoint(slot);
            }
        }
        self.wake();
        Ok(())
    }

    /// The streak of its recipe.
    fn count(&mut self, slot: u32, failure: Option<FailureKind>) {
        let (pool, _) = self.state.place(slot);
        let row = self.state.row(slot);
        if row.purpose.is_test() {
            return;
        }
        let name = row.recipe.clone();
        let now = crate::state::moment(self.state.now);
        if let Some(recipe) = self.state.recipe(pool, &name) {
            recipe.streak = match failure {
                None => recipe.streak.succeeded(),
                Some(kind) => recipe.streak.failed(kind, now),
            };
            self.state.refresh(pool);
        }
    }

    fn tear_down(&mut self, slot: u32) {
        if self.state.row(slot).work == Work::Here {
            return;
        }
        self.state.row_mut(slot).work = Work::Here;
        let entry = &mut self.state.slots[slot as usize];
        entry.job = entry.job.wrapping_add(1);
        let job = entry.job;
        let took = self.between(SECOND / 50, SECOND / 5);
        self.later(took, Happens::TornDown { slot, job });
    }

    pub(crate) fn torn_down(&mut self, slot: u32, job: u32) {
        if self.state.slots[slot as usize].job != job {
            return;
        }
        self.wake();
        if self.chance(DESTROY_FAILS) {
            // Whether it took effect or not: asked again in the next pass.
            self.state.row_mut(slot).work = Work::Idle;
            if self.chance(0.5) {
                self.state.remove_vm_of(slot);
            }
            return;
        }
        self.state.remove_vm_of(slot);
        if self.state.row(slot).state == InstanceState::Retiring {
            self.state.archive(slot);
        } else {
            self.state.remove_row(slot);
        }
    }

    /// The server ends in the middle of everything, and another one begins a little later.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.figures.restarts += 1;
        self.note("restart", usize::MAX, 0);
        self.act_some()?;
        self.drop_claims();
        for slot in 0..u32::try_from(self.state.slots.len())? {
            if self.state.slots[slot as usize].serial > 0 {
                self.abandon(slot)?;
            }
        }
        let downtime = self.between(SECOND / 2, 5 * SECOND);
        self.down_until = self.state.now + downtime;
        self.wake();
        Ok(())
    }

    fn abandon(&mut self, slot: u32) -> anyhow::Result<()> {
        if self.state.row(slot).work != Work::Here {
            return Ok(());
        }
        let entry = &mut self.state.slots[slot as usize];
        entry.job = entry.job.wrapping_add(1);
        let serial = entry.serial;
        if self.state.row(slot).state == InstanceState::Provisioning {
            if self.state.slots[slot as usize].restarts < MOST_RESTARTS && !self.chance(LEFT_ALONE) {
                self.take_over(slot);
                return Ok(());
            }
            self.state.row_mut(slot).work = Work::Abandoned;
            if self.state.is_alive(slot) && self.chance(LATE) {
                self.late_births.insert(serial, self.state.birth(slot)?);
                self.state.remove_vm_of(slot);
                let after = self.between(1, 20 * SECOND);
                self.later(after, Happens::LateBirth { slot, serial });
            }
        } else {
            self.state.row_mut(slot).work = Work::Idle;
            if self.chance(0.5) {
                self.state.remove_vm_of(slot);
            }
        }
        Ok(())
    }

    /// The next server removes what is half made, and the boot waits for its turn again: the same instance, from the last stage
    /// that was frozen.
    fn take_over(&mut self, slot: u32) {
        self.state.remove_vm_of(slot);
        let row = self.state.row_mut(slot);
        row.work = Work::Unstarted;
        let (was_forked, recipe) = (row.forked, row.recipe.clone());
        let (pool, _) = self.state.place(slot);
        self.state.row_mut(slot).forked = self.state.has_template(pool, &recipe);
        let now = self.state.now;
        let entry = &mut self.state.slots[slot as usize];
        entry.restarts += 1;
        let (began, took) = entry.boot;
        let stage = (took / STAGES).max(1);
        let frozen = (now.saturating_sub(began) / stage * stage).min(took);
        entry.left = (!was_forked).then_some(took - frozen);
        let serial = entry.serial;
        self.figures.went_on += 1;
        self.note("continues", pool, serial);
    }

    /// A call of a server that is gone takes effect at last. Its row may be gone.
    pub(crate) fn late_birth(&mut self, slot: u32, serial: u64) {
        let birth = self.late_births.remove(&serial);
        // Its template may be gone by now.
        let Some(birth) = birth.filter(|birth| self.state.give_birth(birth).is_ok()) else {
            return;
        };
        if self.state.slots[slot as usize].serial == serial {
            self.state.unseen.push(slot);
        } else {
            self.state.world.orphans.push(birth.vm);
        }
        self.wake();
    }
}
