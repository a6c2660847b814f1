//! Claims as the server answers them: a ready VM, else a fork of one's own where there is a template, else what is being made,
//! else a cold one where waiting alone would be in vain. Who waits stands in a line: what becomes ready for the pool is the first
//! one's, whatever is made for it.

use hearth_core::memory::counts_in_use;
use hearth_core::plan::FORK_BUDGET;
use hearth_core::state::InstanceState;
use jiff::SignedDuration;
use rand::RngExt;

use crate::sim::{Happens, Sim};
use crate::state::{FORK_MIB, Micros, NOBODY, SECOND, WHOLE_MIB, moment};

/// Who has a cold one made knows that it takes so many times as long.
const COLD_PATIENCE: Micros = 5;
/// Of claims: this share takes a ready VM or none.
const REQUIRES: f64 = 0.25;
/// Leaves the pool alone and has one made.
const BYPASSES: f64 = 0.02;
/// Has some patience.
const PATIENT: f64 = 0.5;
/// A ready VM does not answer when it is handed over.
const DUMB: f64 = 0.0005;
/// Is never released: its lease ends.
const FORGOTTEN: f64 = 0.02;
/// Goes away while it waits, for its own reasons.
const GOES_AWAY: f64 = 0.02;
/// Length of a lease, as a multiple of how long a VM is kept on average.
const LEASE: f64 = 4.0;
/// Of what a claimed VM may still take, the share that it counts with, percent.
const CLAIMED_RESERVE: u8 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miss {
    Prefer,
    Require,
    Bypass,
}

/// How a claim got its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Warm,
    Fork,
    Joined,
    Cold,
}

/// A claim that waits.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// 0: none.
    number: u64,
    pool: u32,
    began: Micros,
    slot: u32,
    source: Source,
    pooled: bool,
}

impl Sim {
    pub(crate) fn arrive(&mut self, pool: usize) -> anyhow::Result<()> {
        self.claims_made += 1;
        if self.state.now < self.down_until {
            self.figures.down += 1;
            return Ok(());
        }
        let miss = match self.rng.random::<f64>() {
            drawn if drawn < REQUIRES => Miss::Require,
            drawn if drawn < REQUIRES + BYPASSES => Miss::Bypass,
            _ => Miss::Prefer,
        };
        let patience = if self.chance(PATIENT) {
            self.between(SECOND, 60 * SECOND)
        } else {
            0
        };
        if miss != Miss::Bypass
            && let Some(slot) = self.take_ready(pool)
        {
            self.hand_over(slot, Source::Warm, self.state.now);
            return Ok(());
        }
        let serves = self.state.serving(pool).to_owned();
        let forks = self.state.has_template(pool, &serves);
        let in_vain = miss == Miss::Bypass || !self.state.world.pools[pool].enabled;
        let source = match miss {
            Miss::Require => Source::Joined,
            _ if forks => Source::Fork,
            _ if in_vain => Source::Cold,
            _ => Source::Joined,
        };
        let patience = match source {
            Source::Fork => patience.max(FORK_BUDGET.as_secs() * SECOND),
            Source::Cold => patience * COLD_PATIENCE,
            _ => patience,
        };
        if patience == 0 {
            self.figures.refused += 1;
            return Ok(());
        }
        let mut claim = Claim {
            number: self.claims_made,
            pool: u32::try_from(pool)?,
            began: self.state.now,
            slot: NOBODY,
            source,
            pooled: miss != Miss::Bypass,
        };
        if source != Source::Joined {
            claim.slot = self.state.add_row(pool, serves)?;
            self.state.row_mut(claim.slot).reserved = true;
            self.wake();
        }
        self.wait(claim, patience)
    }

    fn wait(&mut self, claim: Claim, patience: Micros) -> anyhow::Result<()> {
        let (number, pool, slot) = (claim.number, claim.pool as usize, claim.slot);
        let at = match self.free_claims.pop() {
            Some(at) => {
                self.claims[at as usize] = claim;
                at
            }
            None => {
                self.claims.push(claim);
                u32::try_from(self.claims.len() - 1)?
            }
        };
        if self.claims[at as usize].pooled {
            self.state.sides[pool].waiting.push_back((at, number));
        }
        if slot != NOBODY {
            self.state.slots[slot as usize].claim = at;
        }
        let patience = if self.chance(GOES_AWAY) {
            self.between(1, patience)
        } else {
            patience
        };
        self.later(patience, Happens::GivesUp { claim: at, number });
        Ok(())
    }

    /// The best of what is ready: by the wanted recipe first, then the oldest.
    fn take_ready(&mut self, pool: usize) -> Option<u32> {
        loop {
            let wanted = &self.state.world.pools[pool].recipe;
            let ready = self.state.sides[pool].ready.iter().copied();
            let best = ready.min_by_key(|slot| {
                let row = self.state.row(*slot);
                (
                    row.recipe != *wanted,
                    row.state_since,
                    self.state.slots[*slot as usize].serial,
                )
            })?;
            if self.state.is_alive(best) && !self.chance(DUMB) {
                return Some(best);
            }
            // It does not answer: it was claimed for a moment, and goes.
            self.note("does not answer", pool, self.state.slots[best as usize].serial);
            self.state.move_row(best, InstanceState::Claimed, None);
            self.state.move_row(best, InstanceState::Deleting, None);
            self.wake();
        }
    }

    fn hand_over(&mut self, slot: u32, source: Source, began: Micros) {
        let (pool, _) = self.state.place(slot);
        let serial = self.state.slots[slot as usize].serial;
        let goes_on = self.state.set_paused(slot, false);
        if !self.state.move_row(slot, InstanceState::Claimed, None) || !goes_on {
            self.break_promise(format!("#{serial} was handed over and could not be"));
        }
        let times = &mut self.state.slots[slot as usize].claims;
        *times += 1;
        if *times > 1 {
            self.break_promise(format!("#{serial} was handed over twice"));
        }
        let lease = SignedDuration::from_secs((self.plan.hold_seconds * LEASE) as i64);
        let ends = moment(self.state.now) + lease;
        // Anything between what a fork takes and all of it.
        let used = self.between(FORK_MIB, WHOLE_MIB);
        let row = self.state.row_mut(slot);
        row.reserved = false;
        (row.lease_ends_at, row.memory_mib) = (Some(ends), counts_in_use(WHOLE_MIB, used, CLAIMED_RESERVE));
        let activation = self.between(SECOND / 200, SECOND / 50);
        self.figures
            .waits
            .saturating_record(self.state.now - began + activation);
        match source {
            Source::Warm => self.figures.warm += 1,
            Source::Fork => self.figures.fork += 1,
            Source::Joined => self.figures.joined += 1,
            Source::Cold => self.figures.cold += 1,
        }
        self.note("claimed", pool, serial);
        if !self.chance(FORGOTTEN) {
            let hold = self.until_next(1.0 / self.plan.hold_seconds);
            self.later(hold, Happens::Release { slot, serial });
        }
        self.wake();
    }

    /// An instance became ready, or free: who waits for it?
    pub(crate) fn offer(&mut self, slot: u32) {
        let claim = self.state.slots[slot as usize].claim;
        if claim != NOBODY {
            let claim = self.end_claim(claim);
            return self.hand_over(slot, claim.source, claim.began);
        }
        let row = self.state.row(slot);
        if row.is_test || row.is_build || row.reserved {
            return;
        }
        let (pool, _) = self.state.place(slot);
        self.state.sides[pool].ready.push(slot);
        while let Some((claim, number)) = self.state.sides[pool].waiting.front().copied() {
            if self.claims[claim as usize].number != number {
                self.state.sides[pool].waiting.pop_front();
                continue;
            }
            let Some(slot) = self.take_ready(pool) else { return };
            self.state.sides[pool].waiting.pop_front();
            let claim = self.end_claim(claim);
            if claim.slot != NOBODY {
                // What was begun for it is the pool's now, and serves the next.
                self.state.row_mut(claim.slot).reserved = false;
            }
            let source = match claim.source {
                Source::Cold => Source::Joined,
                source => source,
            };
            self.hand_over(slot, source, claim.began);
        }
    }

    fn end_claim(&mut self, at: u32) -> Claim {
        let claim = self.claims[at as usize].clone();
        self.claims[at as usize].number = 0;
        self.free_claims.push(at);
        if claim.slot != NOBODY {
            self.state.slots[claim.slot as usize].claim = NOBODY;
        }
        claim
    }

    /// The VM that was made for a claim failed, or was removed.
    pub(crate) fn disappoint(&mut self, slot: u32) {
        let claim = self.state.slots[slot as usize].claim;
        if claim != NOBODY {
            self.end_claim(claim);
            self.state.row_mut(slot).reserved = false;
            self.figures.failed += 1;
        }
    }

    /// Patience is at its end, or the client went away: what it waited for joins the pool, or goes.
    pub(crate) fn gives_up(&mut self, at: u32, number: u64) -> anyhow::Result<()> {
        if self.claims[at as usize].number != number {
            return Ok(());
        }
        let claim = self.end_claim(at);
        self.figures.refused += 1;
        self.note("gave up", claim.pool as usize, number);
        if claim.slot == NOBODY {
            return Ok(());
        }
        self.state.row_mut(claim.slot).reserved = false;
        if !claim.pooled {
            self.state.move_row(claim.slot, InstanceState::Deleting, None);
        }
        self.wake();
        Ok(())
    }

    pub(crate) fn release(&mut self, slot: u32, serial: u64) {
        if self.state.slots[slot as usize].serial == serial
            && self.state.row(slot).state == InstanceState::Claimed
            && self.state.move_row(slot, InstanceState::Deleting, None)
        {
            self.wake();
        }
    }

    /// The server ended: nobody waits any more.
    pub(crate) fn drop_claims(&mut self) {
        for at in 0..self.claims.len() {
            if self.claims[at].number > 0 {
                self.end_claim(u32::try_from(at).unwrap_or(NOBODY));
                self.figures.down += 1;
            }
        }
    }
}
