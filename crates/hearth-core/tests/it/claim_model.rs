//! A small model of everything around a claim: a pool, its VMs, its queue, and claims that do what the pure function says. After
//! everything that happens the claims that it concerns look again, as in the server; what must always hold is asserted here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hearth_api::claim::ClaimSource;
use hearth_api::ids::InstanceId;
use hearth_core::claim::{
    Cause, ClaimOrder, ClaimScope, ClaimView, Earlier, Failure, Held, Next, PoolView, QueueView, Ready, Refusal,
    Reserved, Take, next,
};

/// A claim does no more than this many things before it waits or ends, and as many more as there are VMs that may be unfit.
const MOST_STEPS: usize = 8;

/// What a VM is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Making,
    Ready,
    /// By the claim of this number.
    Claimed(usize),
    Gone,
}

/// What is wrong with a VM, which only a claim finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not answer.
    Silent,
    /// Its checkout cannot be moved.
    Stuck,
}

#[derive(Debug, Clone)]
pub struct Vm {
    pub id: InstanceId,
    pub recipe: String,
    pub state: State,
    pub reserved: bool,
    pub fault: Option<Fault>,
    /// How its making failed.
    pub failed: Option<Cause>,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Waits,
    Has(InstanceId),
    Refused(Refusal),
    WentAway,
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub name: String,
    pub key: Option<String>,
    /// Two claims with one key and different requests are different claims.
    pub request: u32,
    pub order: ClaimOrder,
    pub began: Duration,
    pub fate: Fate,
    pub ticket: Option<u64>,
    reserved: Vec<InstanceId>,
    ordered: Option<ClaimSource>,
    has_waited: bool,
    unfit: usize,
    failures: Vec<Failure>,
    until: Duration,
}

/// One pool, its VMs and its claims.
#[derive(Debug, Clone)]
pub struct ClaimModel {
    pub now: Duration,
    pub pool: PoolView,
    pub max_claims: Option<u64>,
    /// In the order in which they were made.
    pub vms: Vec<Vm>,
    pub claims: Vec<Claim>,
    /// The key's claim, by number.
    keys: BTreeMap<String, usize>,
    tickets: u64,
    /// What was done, as text.
    pub told: String,
}

impl ClaimModel {
    pub fn new() -> Self {
        Self {
            now: Duration::ZERO,
            pool: PoolView {
                enabled: true,
                target: "a1".to_owned(),
                template: None,
                ready: Ready::default(),
                needs_repair: false,
            },
            max_claims: None,
            vms: Vec::new(),
            claims: Vec::new(),
            keys: BTreeMap::new(),
            tickets: 0,
            told: String::new(),
        }
    }

    pub fn add_vm(&mut self, recipe: &str, state: State) -> InstanceId {
        let id: InstanceId = format!("i{}", self.vms.len() + 1).parse().unwrap();
        self.vms.push(Vm {
            id: id.clone(),
            recipe: recipe.to_owned(),
            state,
            reserved: false,
            fault: None,
            failed: None,
        });
        id
    }

    pub fn vm(&mut self, id: &InstanceId) -> &mut Vm {
        let found = self.vms.iter_mut().find(|vm| vm.id == *id);
        found.unwrap_or_else(|| panic!("there is no VM {id}"))
    }

    pub fn add_claim(&mut self, name: &str, key: Option<&str>, request: u32, order: ClaimOrder) {
        self.claims.push(Claim {
            name: name.to_owned(),
            key: key.map(str::to_owned),
            request,
            order,
            began: self.now,
            fate: Fate::Waits,
            ticket: None,
            reserved: Vec::new(),
            ordered: None,
            has_waited: false,
            unfit: 0,
            failures: Vec::new(),
            until: Duration::ZERO,
        });
        self.advance(self.claims.len() - 1);
        self.check();
    }

    /// A VM changed: the claim that it is made for looks, and so does the first in each queue.
    pub fn changed(&mut self, id: &InstanceId) {
        let owner = self.claims.iter().position(|claim| claim.reserved.contains(id));
        owner.into_iter().for_each(|at| self.advance(at));
        self.notify_first();
        self.check();
    }

    /// A client goes away before the answer.
    pub fn go_away(&mut self, at: usize) {
        if self.claims[at].fate == Fate::Waits {
            self.end(at, Fate::WentAway);
        }
        self.check();
    }

    /// A VM ends, whatever it was at.
    pub fn remove(&mut self, id: &InstanceId, failed: Option<Cause>) {
        let vm = self.vm(id);
        (vm.state, vm.failed) = (State::Gone, failed);
        self.changed(id);
    }

    /// Time goes by; every waiting claim looks now and then even when nothing changes.
    pub fn look_again(&mut self) {
        for at in 0..self.claims.len() {
            self.advance(at);
        }
        self.check();
        for claim in self.claims.iter().filter(|claim| claim.fate == Fate::Waits) {
            let fits = self.vms.iter().any(|vm| self.is_free(vm) && self.fits(vm, claim));
            assert!(!fits, "{} waits although something is ready", claim.name);
        }
    }

    pub fn is_free(&self, vm: &Vm) -> bool {
        vm.state == State::Ready && !vm.reserved
    }

    fn fits(&self, vm: &Vm, claim: &Claim) -> bool {
        match claim.order.scope() {
            ClaimScope::Any => true,
            ClaimScope::Target => vm.recipe == self.pool.target,
            ClaimScope::Own => false,
        }
    }

    /// Waiting claims of a scope, longest first.
    fn queue(&self, scope: ClaimScope) -> Vec<usize> {
        let all = self.claims.iter().enumerate();
        let waiting = all.filter(|(_, claim)| claim.fate == Fate::Waits && claim.order.scope() == scope);
        let mut tickets: Vec<_> = waiting.filter_map(|(at, claim)| Some((claim.ticket?, at))).collect();
        tickets.sort_unstable();
        tickets.into_iter().map(|(_, at)| at).collect()
    }

    fn notify_first(&mut self) {
        for scope in ClaimScope::ALL {
            if let Some(first) = self.queue(scope).first() {
                self.advance(*first);
            }
        }
    }

    fn view(&mut self, at: usize) -> ClaimView {
        let (now, began) = (self.now, self.claims[at].began);
        let queue = self.queue(self.claims[at].order.scope());
        let queue = match queue.iter().position(|other| *other == at) {
            Some(ahead) => QueueView::Inside { ahead },
            None => QueueView::Outside { waiting: queue.len() },
        };
        let mut reserved = Vec::new();
        for id in std::mem::take(&mut self.claims[at].reserved) {
            let vm = self.vm(&id).clone();
            if vm.state == State::Gone {
                self.claims[at].failures.extend(vm.failed.map(|cause| Failure {
                    at: now - began,
                    cause,
                    reason: format!("{id} failed"),
                }));
                continue;
            }
            self.claims[at].reserved.push(id.clone());
            reserved.push(Reserved {
                id,
                recipe: vm.recipe,
                ready: vm.state == State::Ready,
            });
        }
        let of_target = |vm: &&Vm| vm.recipe == self.pool.target;
        let free = || self.vms.iter().filter(|vm| self.is_free(vm));
        let ready = Ready {
            any: free().count(),
            target: free().filter(of_target).count(),
        };
        let held = self
            .vms
            .iter()
            .filter(|vm| matches!(vm.state, State::Claimed(_)))
            .count();
        let held = self.max_claims.map(|most| Held {
            now: u64::try_from(held).unwrap(),
            most,
        });
        let claim = &self.claims[at];
        ClaimView {
            held,
            earlier: self.earlier(claim),
            pool: PoolView {
                ready,
                ..self.pool.clone()
            },
            queue,
            reserved,
            ordered: claim.ordered,
            has_waited: claim.has_waited,
            unfit: claim.unfit,
            failures: claim.failures.clone(),
        }
    }

    fn earlier(&self, claim: &Claim) -> Option<Earlier> {
        let number = *self.keys.get(claim.key.as_ref()?)?;
        let before = &self.claims[number];
        let held = self.vms.iter().any(|vm| vm.state == State::Claimed(number));
        Some(match () {
            () if before.request != claim.request => Earlier::OtherRequest,
            () if held => Earlier::Answered,
            () => Earlier::Ended,
        })
    }

    /// Does what the function says until the claim waits or ends.
    fn advance(&mut self, at: usize) {
        let most = MOST_STEPS + self.vms.len();
        for _ in 0..most {
            if self.claims[at].fate != Fate::Waits {
                return;
            }
            let view = self.view(at);
            let claim = &self.claims[at];
            let (now, order) = (self.now - claim.began, claim.order);
            let next = next(&view, &order, now);
            if !matches!(next, Next::Wait { until } if until == claim.until) {
                writeln!(self.told, "  {}: {}", claim.name, text(&next)).unwrap();
            }
            match next {
                Next::Take(which) => self.take(at, &which),
                Next::GiveBack(id) => {
                    self.claims[at].reserved.retain(|own| *own != id);
                    self.vm(&id).reserved = false;
                    self.notify_first();
                }
                Next::Make { recipe, .. } if self.claims[at].reserved.is_empty() => {
                    let id = self.add_vm(&recipe, State::Making);
                    self.vm(&id).reserved = true;
                    let claim = &mut self.claims[at];
                    claim.reserved.push(id);
                    claim.has_waited = true;
                    let forked = self.pool.template.as_ref() == Some(&recipe);
                    claim.ordered = Some(if forked { ClaimSource::Fork } else { ClaimSource::Cold });
                }
                Next::Make { .. } => panic!("a second VM is made"),
                Next::Join => {
                    self.tickets += 1;
                    let claim = &mut self.claims[at];
                    assert_eq!(claim.ticket, None);
                    (claim.ticket, claim.has_waited) = (Some(self.tickets), true);
                }
                Next::Wait { until } => {
                    assert!(until > now, "it would wait for what is past");
                    self.claims[at].until = until;
                    return;
                }
                Next::Repeat => {
                    let key = self.claims[at].key.clone().unwrap();
                    let before = self.claims[self.keys[&key]].fate.clone();
                    self.end(at, before);
                    return;
                }
                Next::Refuse(why) => {
                    self.end(at, Fate::Refused(why));
                    return;
                }
            }
        }
        panic!("{} neither waits nor ends\n{}", self.claims[at].name, self.told);
    }

    fn take(&mut self, at: usize, which: &Take) {
        let claim = &self.claims[at];
        let (name, scope) = (claim.name.clone(), claim.order.scope());
        let vm = match which {
            Take::Unfinished(_) => panic!("nothing here is interrupted"),
            Take::Reserved { id, .. } => {
                assert!(claim.reserved.contains(id), "{name} takes what is another's");
                self.vms.iter().position(|vm| vm.id == *id).unwrap()
            }
            Take::Pool { only, .. } => {
                let before = |other: &&Claim| other.fate == Fate::Waits && other.order.scope() == scope;
                let mut waiting = self.claims.iter().filter(before).filter_map(|other| other.ticket);
                let own = claim.ticket.unwrap_or(u64::MAX);
                assert!(waiting.all(|ticket| ticket >= own), "{name} overtakes");
                let fits = |vm: &Vm| only.as_ref().is_none_or(|recipe| vm.recipe == *recipe);
                let free = self.vms.iter().enumerate();
                let free = free.filter(|(_, vm)| self.is_free(vm) && fits(vm));
                let best = free.min_by_key(|(number, vm)| (vm.recipe != self.pool.target, *number));
                best.expect("there is none to take").0
            }
        };
        let (target, now) = (self.pool.target.clone(), self.now);
        let taken = &mut self.vms[vm];
        assert_eq!(taken.state, State::Ready);
        let (id, fault) = (taken.id.clone(), taken.fault);
        if let Some(fault) = fault {
            taken.state = State::Gone;
            let claim = &mut self.claims[at];
            claim.unfit += 1;
            writeln!(self.told, "  {name}: {id} is unfit").unwrap();
            let own = claim.reserved.contains(&id);
            claim.reserved.retain(|own| *own != id);
            let cause = match fault {
                Fault::Stuck => Cause::Checkout,
                Fault::Silent if own => Cause::Host,
                Fault::Silent => return,
            };
            claim.failures.push(Failure {
                at: now - claim.began,
                cause,
                reason: format!("{id} failed"),
            });
            return;
        }
        taken.state = State::Claimed(at);
        taken.reserved = false;
        let strict = self.claims[at].order.strict;
        assert!(!strict || taken.recipe == target, "{name} gets an old one");
        if let Some(key) = &self.claims[at].key {
            let before = self.keys.insert(key.clone(), at);
            assert_eq!(before, None, "two VMs for one key");
        }
        writeln!(self.told, "  {name}: gets {id} of {}", self.vms[vm].recipe).unwrap();
        self.end(at, Fate::Has(id));
    }

    /// The claim leaves; what it had reserved goes back to the pool, or to the next claim, and that one looks.
    fn end(&mut self, at: usize, fate: Fate) {
        let claim = &mut self.claims[at];
        let taken = match &fate {
            Fate::Has(id) => Some(id.clone()),
            _ => None,
        };
        (claim.fate, claim.ticket) = (fate, None);
        let scope = claim.order.scope();
        for id in std::mem::take(&mut claim.reserved) {
            if taken.as_ref() == Some(&id) {
                continue;
            }
            if scope == ClaimScope::Own {
                self.vm(&id).state = State::Gone;
                continue;
            }
            let pooled = [ClaimScope::Any, ClaimScope::Target];
            let heir = pooled.into_iter().find_map(|scope| self.queue(scope).first().copied());
            match heir.filter(|_| !self.pool.enabled) {
                Some(heir) => self.claims[heir].reserved.push(id),
                None => self.vm(&id).reserved = false,
            }
        }
        self.notify_first();
    }

    /// What must hold whenever everybody has looked.
    pub fn check(&self) {
        let waits = |claim: &&Claim| claim.fate == Fate::Waits;
        for claim in self.claims.iter().filter(waits) {
            let longest = claim.order.patience.max(Duration::from_secs(50));
            assert!(claim.until <= longest, "{} waits too long", claim.name);
            assert!(claim.ticket.is_some(), "{} waits outside the queue", claim.name);
        }
        // A claim that takes any VM does not wait while one is there, for which claim it may have been made.
        if let Some(vm) = self.vms.iter().find(|vm| self.is_free(vm)) {
            let waiting = self.queue(ClaimScope::Any);
            assert!(waiting.is_empty(), "{} is ready and {waiting:?} wait", vm.id);
        }
        for vm in self.vms.iter().filter(|vm| vm.reserved && vm.state != State::Gone) {
            let owners = self.claims.iter().filter(|claim| claim.reserved.contains(&vm.id));
            assert_eq!(owners.filter(waits).count(), 1, "{} is reserved for nobody", vm.id);
        }
    }
}

/// A step in words.
fn text(next: &Next) -> String {
    let seconds = |length: &Duration| format!("{}s", length.as_secs_f64());
    match next {
        Next::Repeat => "answer as before".to_owned(),
        Next::Take(Take::Unfinished(id)) => format!("finish {id}"),
        Next::Take(Take::Reserved { id, source }) => format!("take its own {id} ({source:?})"),
        Next::Take(Take::Pool { only: None, source }) => format!("take any from the pool ({source:?})"),
        Next::Take(Take::Pool {
            only: Some(recipe),
            source,
        }) => {
            format!("take one of {recipe} from the pool ({source:?})")
        }
        Next::GiveBack(id) => format!("give {id} back to the pool"),
        Next::Make { how, recipe } => format!("make one of {recipe} ({how:?})"),
        Next::Join => "join the queue".to_owned(),
        Next::Wait { until } => format!("wait until {}", seconds(until)),
        Next::Refuse(why) => format!("refused: {}", refused(why)),
    }
}

fn refused(why: &Refusal) -> String {
    match why {
        Refusal::OtherRequest => "the key was used for another request".to_owned(),
        Refusal::TooManyHeld => "the project's claims hold as many VMs as they may".to_owned(),
        Refusal::Ended => "the key's VM is gone".to_owned(),
        Refusal::SetUpFailed(reason) => format!("the set-up fails: {reason}"),
        Refusal::VmFailed(reason) => format!("its VM failed: {reason}"),
        Refusal::Stuck(reason) => format!("no VM could be moved to its branch: {reason}"),
        Refusal::Disabled => "the pool is disabled".to_owned(),
        Refusal::NothingReady => "nothing is ready".to_owned(),
    }
}
