//! What befalls the pools and the host: pushes, some of them bad, other set-ups, other targets; VMs that die, templates that are
//! damaged, a host in trouble, a driver that does not answer, servers that end.

use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use jiff::SignedDuration;
use rand::RngExt;

use crate::sim::{Happens, Sim};
use crate::state::{SECOND, moment};

/// Most VMs that a pool keeps ready.
const TARGET_MOST: usize = 6;
/// Of pools: this share has its first set-up still before it.
const NEW: f64 = 0.05;
/// Of pools: this share is disabled from the beginning, and has no template.
const UNUSED: f64 = 0.03;
/// Of projects: this share has a limit of its own.
const LIMITED: f64 = 0.5;
/// Of pushes: this share breaks the set-up.
const BAD: f64 = 0.15;
/// Of pools whose set-up is broken: this share is mended before everything is to settle.
const MENDED: f64 = 0.8;

/// One VM for so many pools dies when claims have ended.
const DIE_LAST: usize = 10;

/// What may befall one pool, and how often an hour.
const OF_A_POOL: [(Befalls, f64); 8] = [
    (Befalls::Push, 0.25),
    (Befalls::SetUp, 0.05),
    (Befalls::Switched, 0.03),
    (Befalls::Resized, 0.1),
    (Befalls::Limited, 0.2),
    (Befalls::Tested, 0.05),
    (Befalls::VmDies, 0.1),
    (Befalls::TemplateDamaged, 0.01),
];
/// What may befall the host, and how often an hour.
const OF_THE_HOST: [(Befalls, f64); 4] = [
    (Befalls::Restart, 4.0),
    (Befalls::Silence, 5.0),
    (Befalls::Outage, 2.0),
    (Befalls::Tightened, 2.0),
];

#[derive(Debug, Clone, Copy)]
enum Befalls {
    Push,
    SetUp,
    Switched,
    Resized,
    Limited,
    Tested,
    VmDies,
    TemplateDamaged,
    Restart,
    Silence,
    Outage,
    Tightened,
}

impl Sim {
    /// The pools as they are at the beginning.
    pub(crate) fn populate(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.plan.pools {
            let target = self.rng.random_range(1..=5);
            let age = self.rng.random_range(1800..8 * 3600);
            let pool = self.state.add_pool(target, age)?;
            let bad = self.badness(BAD / 10.0);
            self.state.want(pool, false, bad);
            let unused = self.chance(UNUSED);
            self.limit(pool, LIMITED);
            self.state.world.pools[pool].enabled = !unused;
            if !unused && !self.chance(NEW) && bad.is_none() {
                self.state.prepare(pool)?;
            }
        }
        Ok(())
    }

    fn badness(&mut self, share: f64) -> Option<FailureKind> {
        const KINDS: [FailureKind; 4] = [
            FailureKind::Setup,
            FailureKind::Setup,
            FailureKind::Repository,
            FailureKind::Image,
        ];
        let which = self.rng.random_range(0..KINDS.len());
        self.chance(share).then(|| KINDS[which])
    }

    fn rate() -> (f64, f64) {
        let sum = |all: &[(Befalls, f64)]| all.iter().map(|(_, rate)| rate).sum();
        (sum(&OF_A_POOL), sum(&OF_THE_HOST))
    }

    pub(crate) fn next_chaos(&mut self) {
        let (pool, host) = Self::rate();
        let per_second = (pool * self.plan.pools as f64 + host) / 3600.0;
        let after = self.until_next(per_second);
        self.later(after, Happens::Chaos);
    }

    pub(crate) fn chaos(&mut self) -> anyhow::Result<()> {
        if self.calm {
            return Ok(());
        }
        self.next_chaos();
        self.figures.faults += 1;
        let (pool, host) = Self::rate();
        let pool = pool * self.plan.pools as f64;
        let drawn = self.rng.random_range(0.0..pool + host);
        let (from, mut left): (&[_], _) = if drawn < pool {
            (&OF_A_POOL, drawn / self.plan.pools as f64)
        } else {
            (&OF_THE_HOST, drawn - pool)
        };
        for (what, rate) in from {
            left -= rate;
            if left < 0.0 {
                return self.befall(*what);
            }
        }
        Ok(())
    }

    fn befall(&mut self, what: Befalls) -> anyhow::Result<()> {
        let pool = self.rng.random_range(0..self.plan.pools);
        match what {
            Befalls::Push | Befalls::SetUp => {
                let bad = self.badness(BAD);
                self.note(if bad.is_some() { "bad push" } else { "push" }, pool, 0);
                self.state.want(pool, matches!(what, Befalls::SetUp), bad);
                if bad.is_some() {
                    let after = self.between(300 * SECOND, 2400 * SECOND);
                    let pool = u32::try_from(pool)?;
                    self.later(after, Happens::Mended { pool });
                }
            }
            Befalls::Switched => {
                self.note("switched", pool, 0);
                self.state.world.pools[pool].enabled ^= true;
            }
            Befalls::Resized => {
                let target = self.rng.random_range(0..=TARGET_MOST);
                self.note("resized", pool, target as u64);
                self.resize(pool, target);
            }
            Befalls::Limited => self.limit(pool, LIMITED),
            Befalls::Tested => {
                let wanted = self.state.world.pools[pool].recipe.clone();
                let slot = self.state.add_row(pool, wanted)?;
                self.state.row_mut(slot).purpose = Purpose::Test { use_cache: true };
                self.tell_ordered(slot);
            }
            Befalls::VmDies => self.kill_one(pool),
            Befalls::TemplateDamaged => self.damage(pool)?,
            Befalls::Restart => self.restart()?,
            Befalls::Silence => {
                self.note("driver silent", usize::MAX, 0);
                self.silent_until = self.state.now + self.between(SECOND, 40 * SECOND);
            }
            Befalls::Outage => self.outage(),
            Befalls::Tightened => self.tighten()?,
        }
        self.wake();
        Ok(())
    }

    /// A limit of its own, with room for a replacement and for a VM that is kept to look into; or none.
    fn limit(&mut self, pool: usize, share: f64) {
        let room = self.rng.random_range(2..5);
        let limited = self.chance(share);
        let seen = &mut self.state.world.pools[pool];
        seen.max_vms = limited.then_some(seen.target + room);
    }

    fn resize(&mut self, pool: usize, target: usize) {
        let seen = &mut self.state.world.pools[pool];
        seen.target = target;
        seen.max_vms = seen.max_vms.map(|most| most.max(target + 2));
    }

    /// A VM of the pool ends: ready, or still being made.
    fn kill_one(&mut self, pool: usize) {
        let rows = &self.state.world.pools[pool].instances;
        if rows.is_empty() {
            return;
        }
        let row = &rows[self.rng.random_range(0..rows.len())];
        if matches!(row.state, InstanceState::Ready | InstanceState::Provisioning)
            && let Some(slot) = self.state.find(&row.id)
        {
            self.state.crash(slot);
        }
    }

    /// No claims from here on: nobody but the planner finds the VMs that die now.
    pub(crate) fn fall_still(&mut self) {
        self.still = true;
        for _ in 0..self.plan.pools.div_ceil(DIE_LAST) {
            let pool = self.rng.random_range(0..self.plan.pools);
            self.kill_one(pool);
        }
    }

    /// The template of what is wanted is damaged, and every VM that is based on it dies. The next one to be forked finds it.
    fn damage(&mut self, pool: usize) -> anyhow::Result<()> {
        let name = self.state.world.pools[pool].recipe.clone();
        if !self.state.has_template(pool, &name) {
            return Ok(());
        }
        self.note("template damaged", pool, 0);
        self.state.damage_template(&name)?;
        let rows = &self.state.world.pools[pool].instances;
        let on_it = rows
            .iter()
            .filter(|row| row.state == InstanceState::Ready && row.recipe == name);
        let on_it: Vec<_> = on_it.filter_map(|row| self.state.find(&row.id)).collect();
        for slot in on_it {
            self.state.crash(slot);
        }
        Ok(())
    }

    pub(crate) fn mend(&mut self, pool: u32) {
        let pool = pool as usize;
        if self.state.wanted(pool).is_some_and(|recipe| recipe.bad.is_some()) {
            self.note("mended", pool, 0);
            self.state.want(pool, false, None);
            self.wake();
        }
    }

    /// A server with a smaller share of the host: about what there is now, of VMs or of memory.
    fn tighten(&mut self) -> anyhow::Result<()> {
        let (vms, memory_mib) = self.there();
        self.state.world.limits = self.limits;
        if self.chance(0.5) {
            self.state.world.limits.max_vms = vms * 9 / 10;
        } else {
            self.state.world.limits.memory_mib = memory_mib * 9 / 10;
        }
        self.restart()
    }

    fn outage(&mut self) {
        if self.state.now < self.outage_until {
            return;
        }
        self.figures.outages += 1;
        self.note("outage", usize::MAX, 0);
        let length = self.between(20 * SECOND, 200 * SECOND);
        self.outage_until = self.state.now + length;
        self.begin_outage_count(length);
        self.later(length, Happens::OutageOver);
    }

    /// From here on nothing befalls anybody; most that is broken is mended.
    pub(crate) fn calm_down(&mut self) {
        self.note("calm", usize::MAX, 0);
        self.calm = true;
        if self.state.now < self.outage_until {
            // Its own end is still to come, and counts nothing any more.
            self.end_outage_count();
            (self.outage_until, self.outage_allowed) = (self.state.now, u64::MAX);
        }
        self.silent_until = 0;
        self.state.world.limits = self.limits;
        for pool in 0..self.plan.pools {
            if self.chance(MENDED) {
                self.mend(u32::try_from(pool).unwrap_or_default());
            }
        }
        self.wake();
    }

    pub(crate) fn outage_over(&mut self) {
        self.end_outage_count();
    }

    /// Seconds since a moment of the world.
    pub(crate) fn since(&self, at: jiff::Timestamp) -> SignedDuration {
        moment(self.state.now).duration_since(at)
    }
}
