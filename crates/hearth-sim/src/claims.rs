//! Claims: each does what `hearth_core::claim` says, the function that the server's loop follows too. Here are only its eyes (what a
//! claim sees of this world), its hands, and the queue of those that wait; and what must hold of both, looked at independently.

use std::time::Duration;

use hearth_api::claim::{ClaimSource, Miss};
use hearth_api::ids::InstanceId;
use hearth_core::claim::{
    Cause, ClaimOrder, ClaimScope, ClaimView, Failure, MissFacts, Next, PoolView, QueueView, Ready, Refusal, Reserved,
    Take, next,
};
use hearth_core::memory::counts_in_use;
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use jiff::SignedDuration;
use rand::RngExt;

use crate::sim::{Happens, Sim};
use crate::state::{FORK_MIB, Micros, NOBODY, SECOND, WHOLE_MIB, moment};
use crate::tale::Served;

/// Who has a cold one made knows that it takes so many times as long.
const COLD_PATIENCE: u32 = 5;
/// Of claims: this share takes a ready VM or none.
const REQUIRES: f64 = 0.25;
/// Leaves the pool alone and has one made.
const BYPASSES: f64 = 0.02;
/// Takes none of an older recipe.
const STRICT: f64 = 0.1;
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
/// A claim that waits looks this often even without a notification, as in the server.
const CHECK_EVERY: Micros = SECOND;
/// A claim does no more than so many things before it waits or ends; dumb VMs are few.
const MOST_STEPS: usize = 100;

/// A claim that is not answered yet.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// 0: none.
    number: u64,
    pool: u32,
    began: Micros,
    order: ClaimOrder,
    /// It waits in the queue of its scope.
    queued: bool,
    /// What is reserved for it.
    slots: Vec<u32>,
    ordered: Option<ClaimSource>,
    has_waited: bool,
    failures: Vec<Failure>,
    /// From which follows why it was not warm.
    facts: MissFacts,
    /// Counts up with every look: a notification from before it says nothing new.
    turn: u64,
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
        let strict = self.chance(STRICT);
        let mut patience = if self.chance(PATIENT) {
            Duration::from_micros(self.between(SECOND, 60 * SECOND))
        } else {
            Duration::ZERO
        };
        if miss == Miss::Bypass || !self.state.world.pools[pool].enabled {
            patience *= COLD_PATIENCE;
        }
        let claim = Claim {
            number: self.claims_made,
            pool: u32::try_from(pool)?,
            began: self.state.now,
            order: ClaimOrder { strict, miss, patience },
            queued: false,
            slots: Vec::new(),
            ordered: None,
            has_waited: false,
            failures: Vec::new(),
            facts: MissFacts::default(),
            turn: 0,
        };
        let number = claim.number;
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
        if self.chance(GOES_AWAY) {
            let after = self.between(1, 60 * SECOND);
            self.later(after, Happens::GivesUp { claim: at, number });
        }
        self.advance(at)
    }

    /// It was notified, or its time has come.
    pub(crate) fn checks(&mut self, at: u32, number: u64, turn: u64) -> anyhow::Result<()> {
        let claim = &self.claims[at as usize];
        if claim.number == number && claim.turn == turn {
            return self.advance(at);
        }
        Ok(())
    }

    /// Does what the function says until the claim waits or ends.
    fn advance(&mut self, at: u32) -> anyhow::Result<()> {
        self.claims[at as usize].turn += 1;
        for _ in 0..MOST_STEPS {
            let view = self.view(at);
            let claim = &self.claims[at as usize];
            let (pool, order, began) = (claim.pool as usize, claim.order, claim.began);
            let now = Duration::from_micros(self.state.now - began);
            let step = next(&view, &order, now);
            self.claims[at as usize].facts.note_view(&view, &order, &step);
            match step {
                Next::Take(which) => {
                    if self.take(at, &which) {
                        return Ok(());
                    }
                }
                Next::GiveBack(id) => {
                    let slot = self.own(at, &id);
                    self.claims[at as usize].slots.retain(|own| Some(*own) != slot);
                    slot.into_iter().for_each(|slot| self.free(slot));
                }
                Next::Make { how, recipe } => {
                    let slot = self.state.add_row(pool, recipe)?;
                    self.state.row_mut(slot).purpose = Purpose::Claim;
                    self.state.slots[slot as usize].claim = at;
                    self.tell_ordered(slot);
                    let claim = &mut self.claims[at as usize];
                    if !claim.slots.is_empty() {
                        let what = format!("claim {} has a second VM made", claim.number);
                        self.break_promise(what);
                        return Ok(());
                    }
                    claim.slots.push(slot);
                    (claim.ordered, claim.has_waited) = (Some(how), true);
                    self.wake();
                }
                Next::Join => {
                    let claim = &mut self.claims[at as usize];
                    (claim.queued, claim.has_waited) = (true, true);
                    let number = claim.number;
                    if let Some(queue) = self.state.sides[pool].queue(order.scope()) {
                        queue.push_back((at, number));
                    }
                }
                Next::Wait { until } => {
                    let left = u64::try_from((until - now).as_micros()).unwrap_or(CHECK_EVERY);
                    let claim = &self.claims[at as usize];
                    let (number, turn) = (claim.number, claim.turn);
                    self.later(
                        left.min(CHECK_EVERY),
                        Happens::Looks {
                            claim: at,
                            number,
                            turn,
                        },
                    );
                    return Ok(());
                }
                Next::Refuse(why) => {
                    match why {
                        Refusal::SetUpFailed(_) | Refusal::VmFailed(_) => self.figures.failed += 1,
                        _ => self.figures.refused += 1,
                    }
                    self.end_claim(at, None);
                    return Ok(());
                }
                Next::Repeat => {
                    self.break_promise("a claim without a key is repeated".to_owned());
                    return Ok(());
                }
            }
        }
        self.break_promise(format!("{:?} neither waits nor ends", self.claims[at as usize]));
        Ok(())
    }

    /// What a claim sees.
    fn view(&self, at: u32) -> ClaimView {
        let claim = &self.claims[at as usize];
        let (pool, scope) = (claim.pool as usize, claim.order.scope());
        let (seen, side) = (&self.state.world.pools[pool], &self.state.sides[pool]);
        let (waiting, first) = match scope {
            ClaimScope::Any => (side.waiting.len(), side.waiting.front()),
            ClaimScope::Target => (side.waiting_strict.len(), side.waiting_strict.front()),
            ClaimScope::Own => (0, None),
        };
        let overtaken = first.is_some_and(|(first, _)| *first != at);
        let of_target = |slot: &&u32| self.state.row(**slot).recipe == seen.recipe;
        let reserved = claim.slots.iter().map(|slot| {
            let row = self.state.row(*slot);
            Reserved {
                id: row.id.clone(),
                recipe: row.recipe.clone(),
                ready: row.state == InstanceState::Ready,
            }
        });
        let template = seen.previous.as_ref().map(|last| &last.recipe);
        ClaimView {
            earlier: None,
            held: None,
            pool: PoolView {
                enabled: seen.enabled,
                target: seen.recipe.clone(),
                template: template.or(seen.prepared.then_some(&seen.recipe)).cloned(),
                ready: Ready {
                    any: side.ready.len(),
                    target: side.ready.iter().filter(of_target).count(),
                },
                needs_repair: side.needs_repair,
            },
            queue: if claim.queued {
                QueueView::Inside {
                    ahead: usize::from(overtaken),
                }
            } else {
                QueueView::Outside { waiting }
            },
            reserved: reserved.collect(),
            ordered: claim.ordered,
            has_waited: claim.has_waited,
            // Every VM of the simulation is fit.
            unfit: 0,
            failures: claim.failures.clone(),
        }
    }

    fn own(&self, at: u32, id: &InstanceId) -> Option<u32> {
        let mut slots = self.claims[at as usize].slots.iter().copied();
        slots.find(|slot| self.state.row(*slot).id == *id)
    }

    /// Takes a VM. False when it does not answer.
    fn take(&mut self, at: u32, which: &Take) -> bool {
        let (slot, source) = match which {
            Take::Pool { only, source } => (self.best(at, only.as_ref()), *source),
            Take::Reserved { id, source } => (self.own(at, id), *source),
            Take::Unfinished(_) => (None, ClaimSource::Ready),
        };
        let Some(slot) = slot else {
            self.break_promise(format!("{which:?} is not there"));
            return true;
        };
        if self.state.is_alive(slot) && !self.chance(DUMB) {
            self.hand_over(at, slot, source);
            return true;
        }
        // It does not answer: it was claimed for a moment, and goes.
        let claim = &self.claims[at as usize];
        let (pool, age) = (claim.pool as usize, self.state.now - claim.began);
        self.note("does not answer", pool, self.state.slots[slot as usize].serial);
        self.state.move_row(slot, InstanceState::Claimed, None);
        self.state.move_row(slot, InstanceState::Deleting, None);
        self.tell_gone(slot, false);
        self.claims[at as usize].facts.note_unfit();
        if matches!(which, Take::Reserved { .. }) {
            self.state.slots[slot as usize].claim = NOBODY;
            self.state.row_mut(slot).release();
            let claim = &mut self.claims[at as usize];
            claim.slots.retain(|own| *own != slot);
            claim.failures.push(Failure {
                at: Duration::from_micros(age),
                cause: Cause::Host,
                reason: "it does not answer".to_owned(),
            });
        }
        self.wake();
        false
    }

    /// The best of what is ready: by the target recipe first, then the oldest.
    fn best(&mut self, at: u32, only: Option<&String>) -> Option<u32> {
        let claim = &self.claims[at as usize];
        let (pool, number, scope) = (claim.pool as usize, claim.number, claim.order.scope());
        let first = self.state.sides[pool]
            .queue(scope)
            .and_then(|queue| queue.front().copied());
        if first.is_some_and(|(_, first)| first != number) {
            self.break_promise(format!("claim {number} overtakes {first:?}"));
        }
        let target = &self.state.world.pools[pool].recipe;
        let ready = self.state.sides[pool].ready.iter().copied();
        let fitting = ready.filter(|slot| only.is_none_or(|recipe| self.state.row(*slot).recipe == *recipe));
        fitting.min_by_key(|slot| {
            let row = self.state.row(*slot);
            (
                row.recipe != *target,
                row.state_since,
                self.state.slots[*slot as usize].serial,
            )
        })
    }

    fn hand_over(&mut self, at: u32, slot: u32, source: ClaimSource) {
        let (pool, _) = self.state.place(slot);
        let claim = &self.claims[at as usize];
        let (began, strict) = (claim.began, claim.order.strict);
        let serial = self.state.slots[slot as usize].serial;
        if strict && self.state.row(slot).recipe != self.state.world.pools[pool].recipe {
            self.break_promise(format!("#{serial} is old and was handed to a strict claim"));
        }
        if !matches!(self.state.slots[slot as usize].claim, owner if owner == NOBODY || owner == at) {
            self.break_promise(format!("#{serial} was another claim's"));
        }
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
        row.release();
        (row.lease_ends_at, row.memory_mib) = (Some(ends), counts_in_use(WHOLE_MIB, used, CLAIMED_RESERVE));
        let activation = self.between(SECOND / 200, SECOND / 50);
        self.figures
            .waits
            .saturating_record(self.state.now - began + activation);
        let claim = &self.claims[at as usize];
        let waited = self.state.now - began;
        let served = Served {
            source,
            cause: (source != ClaimSource::Ready).then(|| claim.facts.cause(&claim.order)),
            waited,
            total: waited + activation,
        };
        self.tell_handed_over(slot, served);
        match source {
            ClaimSource::Ready => self.figures.warm += 1,
            ClaimSource::Fork => self.figures.fork += 1,
            ClaimSource::Joined => self.figures.joined += 1,
            ClaimSource::Cold => self.figures.cold += 1,
        }
        self.note("claimed", pool, serial);
        if !self.chance(FORGOTTEN) {
            let blocker = self.until_next(1.0 / self.plan.hold_seconds);
            self.later(blocker, Happens::Release { slot, serial });
        }
        self.end_claim(at, Some(slot));
        self.wake();
    }

    /// An instance became ready, or free: the claim that it is made for looks, and the first of each queue.
    pub(crate) fn offer(&mut self, slot: u32) {
        let row = self.state.row(slot);
        let free = row.purpose == Purpose::Pool;
        let (pool, _) = self.state.place(slot);
        let claim = self.state.slots[slot as usize].claim;
        if claim != NOBODY {
            self.notify(claim);
        } else if free {
            self.state.sides[pool].ready.push(slot);
        }
        self.notify_first(pool);
    }

    /// What instances are made by changed: all look.
    pub(crate) fn notify_all(&mut self, pool: usize) {
        let side = &self.state.sides[pool];
        let all: Vec<_> = side.waiting.iter().chain(&side.waiting_strict).copied().collect();
        all.into_iter().for_each(|(at, _)| self.notify(at));
    }

    fn notify_first(&mut self, pool: usize) {
        let side = &self.state.sides[pool];
        let first = [side.waiting.front().copied(), side.waiting_strict.front().copied()];
        first.into_iter().flatten().for_each(|(at, _)| self.notify(at));
    }

    fn notify(&mut self, at: u32) {
        let claim = &self.claims[at as usize];
        let (number, turn) = (claim.number, claim.turn);
        self.later(
            0,
            Happens::Looks {
                claim: at,
                number,
                turn,
            },
        );
    }

    /// Nobody has an instance reserved any more.
    fn free(&mut self, slot: u32) {
        self.state.slots[slot as usize].claim = NOBODY;
        self.state.row_mut(slot).release();
        if self.state.row(slot).state == InstanceState::Ready {
            self.offer(slot);
        }
    }

    /// A claim leaves with this VM, or with none. What else it has goes back to the pool, or to the next claim.
    fn end_claim(&mut self, at: u32, with: Option<u32>) {
        let claim = &mut self.claims[at as usize];
        let (number, pool, scope) = (claim.number, claim.pool as usize, claim.order.scope());
        let slots = std::mem::take(&mut claim.slots);
        claim.number = 0;
        self.free_claims.push(at);
        if let Some(queue) = self.state.sides[pool].queue(scope) {
            queue.retain(|(_, waiting)| *waiting != number);
        }
        for slot in slots {
            self.state.slots[slot as usize].claim = NOBODY;
            if with == Some(slot) {
                continue;
            }
            if scope == ClaimScope::Own {
                self.state.row_mut(slot).release();
                self.state.move_row(slot, InstanceState::Deleting, None);
                self.tell_gone(slot, false);
                continue;
            }
            let side = &self.state.sides[pool];
            let heir = side.waiting.front().or(side.waiting_strict.front()).copied();
            match heir.filter(|_| !self.state.world.pools[pool].enabled) {
                Some((heir, _)) => {
                    self.state.slots[slot as usize].claim = heir;
                    self.claims[heir as usize].slots.push(slot);
                    self.notify(heir);
                }
                None => self.free(slot),
            }
        }
        self.notify_first(pool);
        self.wake();
    }

    /// The VM that was made for a claim failed, or was removed.
    pub(crate) fn disappoint(&mut self, slot: u32) {
        let at = std::mem::replace(&mut self.state.slots[slot as usize].claim, NOBODY);
        if at == NOBODY {
            return;
        }
        self.state.row_mut(slot).release();
        let failure = self.state.row(slot).failure;
        let claim = &mut self.claims[at as usize];
        claim.slots.retain(|own| *own != slot);
        claim.failures.extend(failure.map(|kind| Failure {
            at: Duration::from_micros(self.state.now - claim.began),
            cause: if kind.blames_recipe() {
                Cause::SetUp
            } else {
                Cause::Host
            },
            reason: kind.as_str().to_owned(),
        }));
        self.notify(at);
    }

    /// The client goes away before the answer.
    pub(crate) fn gives_up(&mut self, at: u32, number: u64) {
        let claim = &self.claims[at as usize];
        if claim.number == number {
            self.note("gave up", claim.pool as usize, number);
            self.figures.refused += 1;
            self.end_claim(at, None);
        }
    }

    pub(crate) fn release(&mut self, slot: u32, serial: u64) {
        if self.state.slots[slot as usize].serial == serial
            && self.state.row(slot).state == InstanceState::Claimed
            && self.state.move_row(slot, InstanceState::Deleting, None)
        {
            self.tell_gone(slot, true);
            self.wake();
        }
    }

    /// The server ended: nobody waits any more, and nothing is reserved.
    pub(crate) fn drop_claims(&mut self) {
        for side in &mut self.state.sides {
            side.waiting.clear();
            side.waiting_strict.clear();
        }
        for at in 0..self.claims.len() {
            if self.claims[at].number == 0 {
                continue;
            }
            self.claims[at].number = 0;
            self.free_claims.push(u32::try_from(at).unwrap_or(NOBODY));
            self.figures.down += 1;
            for slot in std::mem::take(&mut self.claims[at].slots) {
                self.free(slot);
            }
        }
    }

    /// Nobody waits for what is there, and nothing is kept for nobody.
    pub(crate) fn check_claims(&mut self) {
        for pool in 0..self.state.sides.len() {
            let side = &self.state.sides[pool];
            // Somebody who was notified this very moment has not looked yet.
            let waits = side.waiting.front().filter(|(at, _)| {
                let began = self.claims[*at as usize].began;
                self.state.now > began + CHECK_EVERY
            });
            let longest = side.ready.iter().map(|slot| self.state.row(*slot).state_since).min();
            let ready_long = longest.is_some_and(|since| since + SignedDuration::from_secs(1) < moment(self.state.now));
            if let Some((_, number)) = waits.filter(|_| ready_long) {
                let what = format!("claim {number} of p{pool} waits although something is ready");
                return self.break_promise(what);
            }
        }
    }
}
