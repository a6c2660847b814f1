//! The promises, looked at by eyes of their own: nothing here asks the planner's code how it counts.

use std::collections::HashMap;

use hearth_core::plan::{Action, Decision, Reason};
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{FailureStreak, InstanceWorld, Work};
use jiff::SignedDuration;

use crate::sim::Sim;
use crate::state::{Micros, SECOND, pool_of};

/// Something under way must be over after this, when nothing goes wrong.
const ENDING: SignedDuration = SignedDuration::from_secs(60);

/// What there is and what is being made.
#[derive(Debug, Default)]
struct Count {
    vms: usize,
    memory_mib: u64,
    forks: usize,
    set_ups: usize,
}

impl Count {
    fn add(&mut self, forked: bool, memory_mib: u64) {
        self.vms += 1;
        self.memory_mib += memory_mib;
        if forked { self.forks += 1 } else { self.set_ups += 1 }
    }
}

fn has_vm(row: &InstanceWorld) -> bool {
    row.state != InstanceState::Archived && !(row.state == InstanceState::Provisioning && row.work == Work::Unstarted)
}

impl Sim {
    /// Of every decision.
    pub(crate) fn check_decision(&mut self, decision: &Decision) {
        let mut new = Count::default();
        let (mut refills, mut begun) = (0, 0_usize);
        let mut of_pools: HashMap<usize, usize> = HashMap::new();
        for action in &decision.actions {
            if let Err(what) = self.check_touch(action) {
                return self.break_promise(format!("{what}: {action:?}"));
            }
            let Some((pool, forked, memory_mib)) = self.begins(action) else {
                continue;
            };
            new.add(forked, memory_mib);
            begun += 1;
            refills += usize::from(forked && !matches!(action, Action::Start { .. }));
            *of_pools.entry(pool).or_default() += 1;
            if let Err(what) = self.check_pause(pool, action) {
                return self.break_promise(format!("{what}: {action:?}"));
            }
            if !matches!(action, Action::Start { .. }) {
                self.outage_begun += 1;
            }
        }
        if begun > 0 {
            self.check_limits(&new, begun, refills, &of_pools);
        }
    }

    /// Pool, whether it is forked, and its memory, of an action that begins a VM.
    fn begins(&self, action: &Action) -> Option<(usize, bool, u64)> {
        match action {
            Action::Create { project, recipe, .. } => {
                let pool = pool_of(project)?;
                let seen = &self.state.world.pools[pool];
                let last = seen
                    .previous
                    .as_ref()
                    .filter(|last| last.recipe == *recipe && seen.recipe != *recipe);
                Some((
                    pool,
                    last.is_some() || seen.prepared,
                    last.map_or(seen.memory_mib, |last| last.memory_mib),
                ))
            }
            Action::Build { project } => {
                let pool = pool_of(project)?;
                Some((pool, false, self.state.world.pools[pool].memory_mib))
            }
            Action::Start { instance } => {
                let slot = self.state.find(instance)?;
                let row = self.state.row(slot);
                Some((self.state.place(slot).0, row.forked, row.memory_mib))
            }
            _ => None,
        }
    }

    /// Nobody's VM is touched, nothing is named twice, every move is legal, and only what the target asks for is made.
    fn check_touch(&mut self, action: &Action) -> Result<(), &'static str> {
        let Some(id) = action.instance() else {
            return match action {
                Action::Create { project, .. } | Action::Build { project } => {
                    let pool = pool_of(project).ok_or("for no pool")?;
                    let enabled = self.state.world.pools[pool].enabled;
                    enabled.then_some(()).ok_or("a disabled pool makes a VM")
                }
                _ => Ok(()),
            };
        };
        let slot = self.state.find(id).ok_or("names what is not there")?;
        let pass = self.figures.passes;
        if std::mem::replace(&mut self.state.slots[slot as usize].named, pass) == pass {
            return Err("named twice in a pass");
        }
        let row = self.state.row(slot);
        let over = row.lease_ends_at.is_some_and(|end| end <= self.state.world.now);
        let lease_ended = matches!(
            action,
            Action::Delete {
                reason: Reason::LeaseEnded,
                ..
            }
        );
        if row.state == InstanceState::Claimed && !(over && lease_ended) {
            return Err("a claimed VM is touched");
        }
        if row.purpose == Purpose::Claim && matches!(row.state, InstanceState::Provisioning | InstanceState::Ready) {
            match action {
                Action::Start { .. } if row.work == Work::Unstarted => {}
                _ => return Err("a reserved VM is touched"),
            }
        }
        let lost = row.state == InstanceState::Ready && matches!(action, Action::Fail { .. });
        if lost && (!self.state.world.drivers_observed || row.vm.is_alive()) {
            return Err("a VM is called lost that is not");
        }
        let to = match action {
            Action::Fail { .. } => InstanceState::Failed,
            Action::Retire { .. } => InstanceState::Retiring,
            Action::Delete { .. } => InstanceState::Deleting,
            _ => return Ok(()),
        };
        let legal = to.legal_sources().contains(&row.state);
        legal.then_some(()).ok_or("an illegal move")
    }

    fn check_limits(&mut self, new: &Count, begun: usize, refills: usize, of_pools: &HashMap<usize, usize>) {
        let mut there = Count::default();
        let mut making = Count::default();
        let rows = self.state.world.pools.iter().flat_map(|pool| &pool.instances);
        for row in rows.filter(|row| has_vm(row)) {
            there.add(row.forked, row.memory_mib);
            if row.state == InstanceState::Provisioning && row.work == Work::Here {
                making.add(row.forked, row.memory_mib);
            }
        }
        self.figures.most = self.figures.most.max(there.vms);
        let limits = self.state.world.limits;
        let forks = making.forks + new.forks;
        let spared = usize::from(refills > 0 && limits.concurrent_forks > 1);
        let broken = [
            (
                there.vms + self.state.world.orphans.len() + new.vms > limits.max_vms,
                "VMs",
            ),
            (there.memory_mib + new.memory_mib > limits.memory_mib, "memory"),
            (
                new.set_ups > 0 && making.set_ups + new.set_ups > limits.concurrent_provisions,
                "set-ups at once",
            ),
            (
                new.forks > 0 && forks + spared > limits.concurrent_forks,
                "forks at once",
            ),
            (begun > limits.tokens, "VMs begun in a pass"),
        ];
        if let Some((_, which)) = broken.into_iter().find(|(broken, _)| *broken) {
            return self.break_promise(format!(
                "above a limit: {which}: {there:?} {making:?} {new:?} {limits:?}"
            ));
        }
        for (pool, more) in of_pools {
            let seen = &self.state.world.pools[*pool];
            let own = seen.instances.iter().filter(|row| has_vm(row)).count();
            if let Some(most) = seen.max_vms.filter(|most| own + more > *most) {
                return self.break_promise(format!("p{pool} is above its own limit: {own} + {more} of {most}"));
            }
        }
    }

    /// VMs that count, and their memory in MiB.
    pub(crate) fn there(&self) -> (usize, u64) {
        let all = self.state.world.pools.iter().flat_map(|pool| &pool.instances);
        let mut count = Count::default();
        all.filter(|row| has_vm(row))
            .for_each(|row| count.add(row.forked, row.memory_mib));
        (count.vms, count.memory_mib)
    }

    /// What has failed waits as long as its failures say before the pool tries again.
    fn check_pause(&self, pool: usize, action: &Action) -> Result<(), String> {
        let seen = &self.state.world.pools[pool];
        let name = match action {
            Action::Create { recipe, .. } => recipe,
            Action::Build { .. } => &seen.recipe,
            _ => return Ok(()),
        };
        let recipe = self.state.sides[pool]
            .recipes
            .iter()
            .find(|recipe| recipe.name == *name);
        let Some(streak) = recipe.map(|recipe| recipe.streak) else {
            return Err("by an unknown recipe".to_owned());
        };
        let Some(last) = streak.last_at else { return Ok(()) };
        let (since, least) = (self.since(last), least_pause(&streak));
        if since < least {
            return Err(format!(
                "p{pool} tries again after {since:?} instead of {least:?}, {streak:?}"
            ));
        }
        Ok(())
    }

    /// Everything fails from now on: so often may be tried.
    pub(crate) fn begin_outage_count(&mut self, length: Micros) {
        self.outage_begun = 0;
        let (mut tries, mut at, mut pause) = (0, 0, 5 * SECOND);
        while at <= length {
            tries += 1;
            at += pause;
            pause = (pause * 2).min(300 * SECOND);
        }
        // What was full before may ask for all that it misses at once; then it is the pauses' turn, for what serves and for
        // what is built beside it.
        let of_pool = |pool: &hearth_core::world::PoolWorld| pool.target as u64 + 1 + 2 * tries;
        self.outage_allowed = self.state.world.pools.iter().map(of_pool).sum();
    }

    pub(crate) fn end_outage_count(&mut self) {
        if self.outage_begun > self.outage_allowed {
            let (begun, allowed) = (self.outage_begun, self.outage_allowed);
            self.break_promise(format!(
                "{begun} VMs were begun while everything failed, {allowed} are allowed"
            ));
        }
    }

    /// The simulation's own books, now and then.
    pub(crate) fn audit(&mut self) {
        let mut wrong = None;
        for (slot, entry) in self
            .state
            .slots
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.serial > 0)
        {
            let row = self.state.world.pools[entry.pool as usize]
                .instances
                .get(entry.at as usize);
            let same = row.is_some_and(|row| row.id.as_str().ends_with(&format!("-{slot:x}")));
            if !same {
                wrong = Some(format!("slot {slot} is not where it says"));
            }
        }
        let rows: usize = self.state.world.pools.iter().map(|pool| pool.instances.len()).sum();
        let slots = self.state.slots.iter().filter(|entry| entry.serial > 0).count();
        if rows != slots {
            wrong = Some(format!("{rows} rows in {slots} slots"));
        }
        wrong = wrong.or(self.state.agrees().err());
        if let Some(what) = wrong {
            self.break_promise(what);
        }
    }

    /// After a time without faults, changes and claims everything is as the targets say.
    pub(crate) fn check_settled(&mut self) {
        self.state.sweep_templates();
        if let Err(what) = self.state.agrees() {
            return self.break_promise(what);
        }
        let without_row = self.state.templates_without_row();
        if without_row > 0 {
            return self.break_promise(format!("{without_row} templates have no owner"));
        }
        if !self.state.world.orphans.is_empty() {
            self.break_promise(format!("{} orphans are left", self.state.world.orphans.len()));
        }
        for pool in 0..self.plan.pools {
            if let Err(what) = self.check_pool(pool) {
                let rows = self.state.world.pools[pool]
                    .instances
                    .iter()
                    .map(describe)
                    .collect::<Vec<_>>();
                return self.break_promise(format!("p{pool} has not settled: {what}: {}", rows.join("; ")));
            }
        }
    }

    fn check_pool(&self, pool: usize) -> Result<(), String> {
        let seen = &self.state.world.pools[pool];
        let serves = self.state.serving(pool);
        let good = self.state.wanted(pool).is_some_and(|recipe| recipe.bad.is_none());
        let mut ready = 0;
        for row in &seen.instances {
            let for_long = self.since(row.state_since) > ENDING;
            let ordinary = row.purpose.serves_claims();
            match row.state {
                InstanceState::Ready if ordinary => {
                    ready += 1;
                    if row.recipe != serves {
                        return Err(format!("{} is by an older recipe", row.id));
                    }
                    if !row.vm.is_alive() {
                        return Err(format!("{} is ready and dead", row.id));
                    }
                }
                InstanceState::Provisioning if self.since(row.created_at) > SignedDuration::from_mins(5) => {
                    return Err(format!("{} is never made", row.id));
                }
                InstanceState::Claimed => return Err(format!("{} is still claimed", row.id)),
                InstanceState::Retiring | InstanceState::Deleting if for_long => {
                    return Err(format!("{} does not go", row.id));
                }
                _ => {}
            }
            if row.purpose == Purpose::Claim || row.work == Work::Abandoned || row.work == Work::Unstarted {
                return Err(format!("{} is forgotten", row.id));
            }
        }
        let most = if seen.enabled { seen.target + 1 } else { 0 };
        if ready > most {
            return Err(format!("{ready} ready"));
        }
        if seen.enabled && good && !seen.prepared {
            return Err("what is wanted is not prepared".to_owned());
        }
        let serves_something = self.state.has_template(pool, serves);
        if seen.enabled && serves_something && ready < seen.target {
            return Err(format!("{ready} ready of {}", seen.target));
        }
        Ok(())
    }
}

fn describe(row: &InstanceWorld) -> String {
    format!(
        "{} {}{}{} {} {:?} {:?}",
        row.id,
        row.state.as_str(),
        if row.purpose.is_test() { " test" } else { "" },
        if row.purpose == Purpose::Renewal { " build" } else { "" },
        row.recipe,
        row.work,
        row.vm
    )
}

/// The pauses as they are written down in the invariants, without what spreads them.
fn least_pause(streak: &FailureStreak) -> SignedDuration {
    let doubled = |first: i64, times: u32, most: i64| (0..times).fold(first, |pause, _| (pause * 2).min(most));
    let seconds = match streak.last_kind {
        Some(FailureKind::Repository | FailureKind::Image) => doubled(15, streak.recipe - 1, 3600),
        _ if streak.recipe >= 3 => doubled(300, streak.recipe - 3, 3600),
        _ if streak.host > 0 => doubled(5, streak.host - 1, 300),
        _ => 0,
    };
    SignedDuration::from_secs(seconds)
}
