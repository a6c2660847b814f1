//! A run: simulated time, what happens when, and the loop of passes. Nothing here asks a real clock but the measurement of how
//! long the planner takes, which changes nothing of what happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Instant;

use hearth_core::plan::{Blocker, Decision, decide};
use hearth_core::world::{Limits, VmPresence};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::weighted::WeightedAliasIndex;
use rand_distr::{Distribution as _, Exp};

use crate::claims::Claim;
use crate::figures::Figures;
use crate::machines::Birth;
use crate::state::{Micros, SECOND, State, WHOLE_MIB, moment, pool_of};
use crate::tale::Telling;

/// A pass begins this long after the one before at the latest, as in the server.
const TICK: Micros = 3 * SECOND;
/// Everything is checked that a pass does not look at, this often.
const AUDIT: Micros = 60 * SECOND;
/// One round of storm, calm and stillness.
const ROUND: Micros = 3600 * SECOND;
/// Faults and changes end this long after a round's beginning.
const CALM_FROM: Micros = 2160 * SECOND;
/// Claims end this long after a round's beginning; what there is settles until the next.
const STILL_FROM: Micros = 2880 * SECOND;
/// Events that are told when a promise is broken.
const RECENT: usize = 40;
/// How unequal pools are: the weight of the n-th is n to the power of minus this.
const SKEW: f64 = 0.7;

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) pools: usize,
    pub(crate) claims_per_second: f64,
    pub(crate) length: Micros,
    pub(crate) seed: u64,
    /// Two passes begin at least this far apart.
    pub(crate) pause: Micros,
    /// How long a task keeps its VM on average, seconds.
    pub(crate) hold_seconds: f64,
    /// Says how far it is.
    pub(crate) tells: bool,
}

/// A broken promise.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) seed: u64,
    pub(crate) at: Micros,
    pub(crate) what: String,
    pub(crate) recent: Vec<String>,
}

/// Something that will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happens {
    BootEnds { slot: u32, job: u32 },
    TornDown { slot: u32, job: u32 },
    Release { slot: u32, serial: u64 },
    GivesUp { claim: u32, number: u64 },
    Looks { claim: u32, number: u64, turn: u64 },
    LateBirth { slot: u32, serial: u64 },
    Chaos,
    Mended { pool: u32 },
    OutageOver,
    Calm,
    Still,
    Round,
    Audit,
}

/// One line of what happened lately.
#[derive(Debug, Clone, Copy)]
struct Note {
    at: Micros,
    what: &'static str,
    pool: u32,
    number: u64,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) plan: Plan,
    pub(crate) state: State,
    pub(crate) rng: StdRng,
    pub(crate) figures: Figures,
    /// As configured; a restart may bring tighter ones for a while.
    pub(crate) limits: Limits,
    queue: BinaryHeap<Reverse<(Micros, u64, Happens)>>,
    queued: u64,
    /// Calls of servers that are gone, under way still, by instance.
    pub(crate) late_births: BTreeMap<u64, Birth>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) free_claims: Vec<u32>,
    pub(crate) claims_made: u64,
    next_arrival: Micros,
    next_pass: Micros,
    last_pass: Micros,
    pub(crate) pending: Option<Decision>,
    act_at: Micros,
    tokens: f64,
    pub(crate) down_until: Micros,
    pub(crate) silent_until: Micros,
    pub(crate) outage_until: Micros,
    /// VMs begun by the pool since the outage began, and how many the pauses allow.
    pub(crate) outage_begun: u64,
    pub(crate) outage_allowed: u64,
    pub(crate) still: bool,
    pub(crate) calm: bool,
    pick: WeightedAliasIndex<f64>,
    recent: VecDeque<Note>,
    pub(crate) broken: Option<String>,
    /// What is told of it, if anything.
    pub(crate) tale: Option<Telling>,
}

impl Sim {
    pub(crate) fn new(plan: Plan) -> anyhow::Result<Self> {
        let limits = limits_for(&plan);
        let weights = (1..=plan.pools).map(|rank| (rank as f64).powf(-SKEW)).collect();
        let mut sim = Self {
            state: State::new(limits),
            rng: StdRng::seed_from_u64(plan.seed),
            figures: Figures::new()?,
            limits,
            queue: BinaryHeap::new(),
            queued: 0,
            late_births: BTreeMap::new(),
            claims: Vec::new(),
            free_claims: Vec::new(),
            claims_made: 0,
            next_arrival: SECOND,
            next_pass: 0,
            last_pass: 0,
            pending: None,
            act_at: Micros::MAX,
            tokens: 0.0,
            down_until: 0,
            silent_until: 0,
            outage_until: 0,
            outage_begun: 0,
            outage_allowed: 0,
            still: false,
            calm: false,
            pick: WeightedAliasIndex::new(weights)?,
            recent: VecDeque::new(),
            broken: None,
            tale: None,
            plan,
        };
        sim.populate()?;
        sim.begin_round();
        sim.later(AUDIT, Happens::Audit);
        Ok(sim)
    }

    /// To the end, or to the first broken promise.
    pub(crate) fn run(mut self) -> Result<Figures, Box<Broken>> {
        self.run_through()?;
        self.figures.calls = self.state.calls;
        Ok(self.figures)
    }

    /// The same of a run that is told: the pools' targets in the end, and the tale.
    pub(crate) fn run_told(mut self) -> Result<(Vec<usize>, Telling), Box<Broken>> {
        self.run_through()?;
        let targets = self.state.world.pools.iter().map(|pool| pool.target).collect();
        let tale = self.tale.take();
        tale.map(|tale| (targets, tale))
            .ok_or_else(|| self.as_broken("nothing was told".to_owned()))
    }

    fn run_through(&mut self) -> Result<(), Box<Broken>> {
        if let Err(error) = self.go() {
            self.broken.get_or_insert(format!("the simulation itself: {error:#}"));
        }
        match self.broken.take() {
            None => Ok(()),
            Some(what) => Err(self.as_broken(what)),
        }
    }

    fn as_broken(&self, what: String) -> Box<Broken> {
        Box::new(Broken {
            seed: self.plan.seed,
            at: self.state.now,
            what,
            recent: self.recent.iter().map(describe).collect(),
        })
    }

    fn go(&mut self) -> anyhow::Result<()> {
        while self.broken.is_none() {
            let queued = self.queue.peek().map_or(Micros::MAX, |Reverse((at, ..))| *at);
            let next = queued.min(self.next_arrival).min(self.next_pass).min(self.act_at);
            if next > self.plan.length {
                return Ok(());
            }
            self.state.now = next;
            if next == self.act_at {
                self.act_at = Micros::MAX;
                self.act_all()?;
                self.last_pass = self.state.now;
                self.next_pass = self.next_pass.max(self.state.now + self.plan.pause);
            } else if next == self.next_pass {
                self.pass();
            } else if next == self.next_arrival {
                self.next_arrival = next + self.until_next(self.plan.claims_per_second);
                if self.still {
                    continue;
                }
                let pool = self.pick.sample(&mut self.rng);
                self.arrive(pool)?;
            } else if let Some(Reverse((_, _, happens))) = self.queue.pop() {
                self.happen(happens)?;
            }
        }
        Ok(())
    }

    fn happen(&mut self, happens: Happens) -> anyhow::Result<()> {
        match happens {
            Happens::BootEnds { slot, job } => self.boot_ends(slot, job)?,
            Happens::TornDown { slot, job } => self.torn_down(slot, job),
            Happens::Release { slot, serial } => self.release(slot, serial),
            Happens::GivesUp { claim, number } => self.gives_up(claim, number),
            Happens::Looks { claim, number, turn } => self.checks(claim, number, turn)?,
            Happens::LateBirth { slot, serial } => self.late_birth(slot, serial),
            Happens::Chaos => self.chaos()?,
            // What is not mended by then stays broken for this round.
            Happens::Mended { pool } if !self.calm => self.mend(pool),
            Happens::Mended { .. } => {}
            Happens::OutageOver => self.outage_over(),
            Happens::Calm => self.calm_down(),
            Happens::Still => self.fall_still(),
            Happens::Round => {
                self.check_settled();
                self.figures.settled += 1;
                if self.plan.tells {
                    eprintln!("seed {}: {} settled", self.plan.seed, clock(self.state.now));
                }
                self.begin_round();
            }
            Happens::Audit => {
                self.audit();
                self.check_claims();
                self.state.sweep_templates();
                self.later(AUDIT, Happens::Audit);
            }
        }
        Ok(())
    }

    fn begin_round(&mut self) {
        (self.still, self.calm) = (false, false);
        self.later(CALM_FROM, Happens::Calm);
        self.later(STILL_FROM, Happens::Still);
        self.later(ROUND, Happens::Round);
        self.next_chaos();
    }

    /// Exponential time until the next of so many a second.
    pub(crate) fn until_next(&mut self, per_second: f64) -> Micros {
        let Ok(times) = Exp::new(per_second) else {
            return Micros::MAX / 4;
        };
        (times.sample(&mut self.rng) * SECOND as f64) as Micros + 1
    }

    pub(crate) fn later(&mut self, after: Micros, happens: Happens) {
        self.queued += 1;
        self.queue.push(Reverse((self.state.now + after, self.queued, happens)));
    }

    /// Evenly drawn.
    pub(crate) fn between(&mut self, least: Micros, most: Micros) -> Micros {
        self.rng.random_range(least..=most)
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    pub(crate) fn note(&mut self, what: &'static str, pool: usize, number: u64) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let pool = u32::try_from(pool).unwrap_or(u32::MAX);
        self.recent.push_back(Note {
            at: self.state.now,
            what,
            pool,
            number,
        });
    }

    pub(crate) fn break_promise(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// Something changed: look soon.
    pub(crate) fn wake(&mut self) {
        let soonest = self
            .state
            .now
            .max(self.last_pass + self.plan.pause)
            .max(self.down_until);
        self.next_pass = self.next_pass.min(soonest);
    }

    fn pass(&mut self) {
        let now = self.state.now;
        self.next_pass = now.max(self.down_until) + TICK;
        if now < self.down_until || self.pending.is_some() {
            return;
        }
        self.fill_bucket(now);
        self.state.world.now = moment(now);
        self.state.observe();
        let silent = now < self.silent_until;
        let hidden = silent.then(|| self.hide());
        let began = Instant::now();
        let decision = decide(&self.state.world);
        let took = began.elapsed();
        self.figures.passes += 1;
        self.figures
            .plan
            .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.check_decision(&decision);
        if let Some(hidden) = hidden {
            self.show(hidden);
        }
        self.note_repairs(&decision);
        self.last_pass = now;
        if !decision.actions.is_empty() {
            self.pending = Some(decision);
            self.act_at = now + self.between(SECOND / 50, SECOND / 10);
        }
    }

    /// What claims are told of the pools that wait for a person.
    fn note_repairs(&mut self, decision: &Decision) {
        self.state.sides.iter_mut().for_each(|side| side.needs_repair = false);
        for (project, blocker) in &decision.blockers {
            if let Some(pool) = pool_of(project) {
                self.state.sides[pool].needs_repair |=
                    matches!(blocker, Blocker::BreakerOpen { .. } | Blocker::Missing { .. });
            }
        }
    }

    /// The bucket that VMs are begun from.
    fn fill_bucket(&mut self, now: Micros) {
        let per_second = self.plan.claims_per_second * 2.0 + self.plan.pools as f64 / 50.0 + 1.0;
        let since = (now - self.last_pass) as f64 / SECOND as f64;
        self.tokens = (self.tokens + since * per_second).min(per_second * 3.0);
        self.state.world.limits.tokens = self.tokens as usize;
    }

    pub(crate) fn spend_token(&mut self) {
        self.tokens -= 1.0;
    }

    /// The driver does not answer: nothing is known of any VM.
    fn hide(&mut self) -> (Vec<VmPresence>, Vec<hearth_api::ids::VmId>) {
        let world = &mut self.state.world;
        world.drivers_observed = false;
        let rows = world.pools.iter_mut().flat_map(|pool| &mut pool.instances);
        let seen = rows
            .map(|row| std::mem::replace(&mut row.vm, VmPresence::Absent))
            .collect();
        (seen, std::mem::take(&mut world.orphans))
    }

    fn show(&mut self, (seen, orphans): (Vec<VmPresence>, Vec<hearth_api::ids::VmId>)) {
        let world = &mut self.state.world;
        world.drivers_observed = true;
        world.orphans = orphans;
        let rows = world.pools.iter_mut().flat_map(|pool| &mut pool.instances);
        for (row, vm) in rows.zip(seen) {
            row.vm = vm;
        }
    }
}

/// Limits that fit: a host that is as large as what is asked of it, with some room, but not with as much as one could want.
fn limits_for(plan: &Plan) -> Limits {
    let in_use = (plan.claims_per_second * plan.hold_seconds * 2.0) as usize;
    let pause = plan.pause as f64 / SECOND as f64 + 0.2;
    let max_vms = plan.pools * 8 + in_use * 2 + 50;
    Limits {
        max_vms,
        tenant_vms: None,
        memory_mib: (plan.pools as u64 * 1024) + in_use as u64 * 2 * WHOLE_MIB + 64 * WHOLE_MIB,
        concurrent_provisions: (plan.pools / 60).max(4),
        concurrent_forks: (plan.claims_per_second * pause * 3.0) as usize + plan.pools / 50 + 8,
        tokens: 0,
    }
}

fn describe(note: &Note) -> String {
    format!("{} {} p{} #{}", clock(note.at), note.what, note.pool, note.number)
}

/// `1:02:03.456`
pub(crate) fn clock(at: Micros) -> String {
    let seconds = at / SECOND;
    let millis = at % SECOND / 1000;
    format!(
        "{}:{:02}:{:02}.{millis:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}
