//! Who is in which namespace and what it may reach: the gateway's state. A few namespaces are kept ready, because a fork waits for one.
//! The namespace of a VM ends with its QEMU; what is left of it here is then removed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_api::egress::{EgressMode, EgressPolicy};
use hearth_api::ids::VmId;
use hearth_host::program;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::protocol::{Known, Reply, Request};
use super::refused::{self, RefusedNames};
use super::{filter, namespaces};

/// Namespaces that are kept ready: as many as the largest pool has VMs, and some.
const SPARES: usize = 24;
/// Others are made when none was given out for so long.
const QUIET: Duration = Duration::from_secs(1);
/// How often what is left of VMs that are gone is removed.
const ROUND: Duration = Duration::from_secs(20);
/// A namespace that was given out is kept for so long; QEMU is in it a moment later, or never.
const KEPT: Duration = Duration::from_secs(120);
/// What a name was resolved to may be connected to for so long at least, whatever the answer says: programs keep addresses for longer than
/// they should.
const SHORTEST: Duration = Duration::from_secs(300);
/// And so long at most.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// So many names and their addresses are known of one VM at a time; no more are resolved until some are forgotten.
const MOST_LEARNED: usize = 8192;
/// Beyond the time that is left to an answer.
const GRACE: Duration = Duration::from_secs(60);

/// One namespace.
#[derive(Debug, Default)]
struct Slot {
    /// Whether a VM got it.
    given_out: bool,
    vm: Option<VmId>,
    /// Keeps it while QEMU is not in it, with the time when it was given out.
    namespace: Option<(File, Instant)>,
    policy: EgressPolicy,
    /// Until when the addresses of names may be connected to.
    learned: HashMap<(Ipv4Addr, String), Instant>,
    names: RefusedNames,
}

#[derive(Debug, Default)]
struct State {
    closed: Vec<Ipv4Net>,
    upstream: Option<SocketAddrV4>,
    slots: BTreeMap<u16, Slot>,
}

impl State {
    fn of_vm(&mut self, vm: &VmId) -> Option<(u16, &mut Slot)> {
        let mut slots = self.slots.iter_mut();
        let found = slots.find(|(_, slot)| slot.vm.as_ref() == Some(vm));
        found.map(|(number, slot)| (*number, slot))
    }
}

/// What becomes of a name query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is asked upstream, and its answer is passed on.
    Pass(SocketAddrV4),
    /// The same, and the addresses in its answer may be connected to.
    Learn(SocketAddrV4),
    /// There is no such name for this VM.
    Refuse,
    /// Nobody that we know asks.
    Ignore,
}

/// All namespaces.
#[derive(Debug, Default)]
pub(super) struct Slots {
    state: Mutex<State>,
    /// One change of the packet rules at a time; what it says is then so in the state too.
    rules: tokio::sync::Mutex<()>,
    /// A namespace was given out.
    taken: Notify,
}

impl Slots {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the driver asks.
    pub(super) async fn answer(&self, request: Request) -> Reply {
        let done = match request {
            Request::Configure { closed, upstream, vms } => {
                self.configure(closed, upstream, vms).await.map(|()| Reply::Done)
            }
            Request::Take { vm } => self.take(vm).await,
            Request::Hold { vm, policy } => self.hold(&vm, policy).await,
            Request::Refused { vm } => self.refused(&vm).await,
        };
        done.unwrap_or_else(|error| Reply::Failed {
            reason: error.to_string(),
        })
    }

    /// Keeps namespaces ready, and removes what is left of VMs that are gone.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            if let Err(error) = self.sweep().await {
                eprintln!("what is left of VMs that are gone was not removed: {error}");
            }
            let missing = SPARES.saturating_sub(self.spares());
            if self.state().upstream.is_some()
                && missing > 0
                && let Err(error) = self.add_spares(missing).await
            {
                eprintln!("no namespace could be made ready: {error}");
            }
            let _ = tokio::time::timeout(ROUND, self.taken.notified()).await;
            // A pool is being filled, or a task has just begun: both need the processor more.
            while tokio::time::timeout(QUIET, self.taken.notified()).await.is_ok() {}
        }
    }

    fn spares(&self) -> usize {
        self.state().slots.values().filter(|slot| !slot.given_out).count()
    }

    async fn configure(&self, closed: Vec<Ipv4Net>, upstream: SocketAddrV4, vms: Vec<Known>) -> io::Result<()> {
        let rules = self.rules.lock().await;
        let links = namespaces::links().await?;
        nft(filter::base(&closed)).await?;
        let changed = {
            let mut state = self.state();
            let changed = state.closed != closed && !state.slots.is_empty();
            state.closed.clone_from(&closed);
            state.upstream = Some(upstream);
            changed
        };
        for Known { vm, slot, policy } in vms {
            if self.state().slots.contains_key(&slot) || !links.contains(&slot) {
                continue;
            }
            // What it has learned is lost with the gateway before: names are asked for again.
            let text = [filter::prepare(slot), filter::hold(slot, &policy, &closed, &[])].concat();
            nft(text + &filter::attach(slot)).await?;
            let known = Slot {
                given_out: true,
                vm: Some(vm),
                policy,
                ..Slot::default()
            };
            self.state().slots.insert(slot, known);
        }
        if changed {
            // Which networks of a policy open something depends on what is closed.
            let all: Vec<(u16, EgressPolicy)> = {
                let state = self.state();
                let slots = state.slots.iter();
                slots.map(|(number, slot)| (*number, slot.policy.clone())).collect()
            };
            for (number, policy) in all {
                self.hold_slot(number, policy).await?;
            }
        }
        drop(rules);
        self.taken.notify_one();
        Ok(())
    }

    async fn take(&self, vm: VmId) -> io::Result<Reply> {
        if self.state().upstream.is_none() {
            return Err(io::Error::other("the gateway does not know yet what is closed"));
        }
        loop {
            if let Some(reply) = self.take_spare(&vm) {
                self.taken.notify_one();
                return Ok(reply);
            }
            self.add_spares(1).await?;
        }
    }

    fn take_spare(&self, vm: &VmId) -> Option<Reply> {
        let mut state = self.state();
        // A VM that is made again under its name: its name means the new one.
        if let Some((_, before)) = state.of_vm(vm) {
            before.vm = None;
        }
        let mut slots = state.slots.iter_mut();
        let (number, slot) = slots.find(|(_, slot)| !slot.given_out)?;
        slot.vm = Some(vm.clone());
        slot.given_out = true;
        let (file, taken) = slot.namespace.as_mut()?;
        *taken = Instant::now();
        Some(Reply::Taken {
            slot: *number,
            namespace: format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()),
        })
    }

    /// Makes so many namespaces ready, with one change of the packet rules.
    async fn add_spares(&self, count: usize) -> io::Result<()> {
        let _rules = self.rules.lock().await;
        let links = namespaces::links().await?;
        let (numbers, closed) = {
            let state = self.state();
            let is_free = |number: &u16| !state.slots.contains_key(number) && !links.contains(number);
            let free = (1..=namespaces::MOST).filter(is_free).take(count);
            (free.collect::<Vec<u16>>(), state.closed.clone())
        };
        if numbers.is_empty() {
            return Err(io::Error::other("no more namespaces are free in the VM network"));
        }
        let policy = EgressPolicy::default();
        let rules = numbers.iter().map(|&number| {
            let begin = [filter::prepare(number), filter::forget(number)].concat();
            let held = filter::hold(number, &policy, &closed, &[]);
            [begin, held, filter::attach(number)].concat()
        });
        nft(rules.collect()).await?;
        for number in numbers {
            let namespace = namespaces::make(number).await?;
            let spare = Slot {
                namespace: Some((namespace, Instant::now())),
                ..Slot::default()
            };
            self.state().slots.insert(number, spare);
        }
        Ok(())
    }

    async fn hold(&self, vm: &VmId, policy: EgressPolicy) -> io::Result<Reply> {
        let _rules = self.rules.lock().await;
        let Some(number) = self.state().of_vm(vm).map(|(number, _)| number) else {
            return Ok(Reply::NoSuchVm);
        };
        self.hold_slot(number, policy).await?;
        Ok(Reply::Done)
    }

    /// The caller holds the lock of the rules.
    async fn hold_slot(&self, number: u16, policy: EgressPolicy) -> io::Result<()> {
        let now = Instant::now();
        let text = {
            let mut state = self.state();
            let closed = state.closed.clone();
            let Some(slot) = state.slots.get_mut(&number) else {
                return Ok(());
            };
            // What names were resolved to in the mode `open` was not learned: they are asked for again.
            slot.learned
                .retain(|(_, name), end| *end > now && policy.mode == EgressMode::Allow && policy.allows_name(name));
            let mut left: BTreeMap<Ipv4Addr, Duration> = BTreeMap::new();
            for ((address, _), end) in &slot.learned {
                let time = left.entry(*address).or_default();
                *time = (*time).max(end.duration_since(now));
            }
            filter::hold(number, &policy, &closed, &left.into_iter().collect::<Vec<_>>())
        };
        nft(text).await?;
        if let Some(slot) = self.state().slots.get_mut(&number) {
            slot.policy = policy;
        }
        Ok(())
    }

    async fn refused(&self, vm: &VmId) -> io::Result<Reply> {
        let Some(number) = self.state().of_vm(vm).map(|(number, _)| number) else {
            return Ok(Reply::NoSuchVm);
        };
        let mut listed = Vec::new();
        for set in ["first", "refused"] {
            let mut command = program::clean("nft");
            command.args(["--json", "list", "set", "inet", "egress", &format!("{set}_{number}")]);
            let output = program::run(command, b"").await?;
            if !output.status.success() {
                return Err(io::Error::other(program::last_output(&output.stderr)));
            }
            listed.push(refused::elements(&output.stdout)?);
        }
        let (last, first) = (listed.pop().unwrap_or_default(), listed.pop().unwrap_or_default());
        let mut more = last.len() >= filter::MOST_REFUSED;
        let mut attempts = refused::attempts(&first, last, Timestamp::now());
        if let Some(slot) = self.state().slots.get(&number) {
            attempts.extend(slot.names.attempts());
            more |= slot.names.more();
        }
        attempts.sort_by(|one, other| {
            other
                .last_at
                .cmp(&one.last_at)
                .then_with(|| one.target.cmp(&other.target))
        });
        Ok(Reply::Refused { attempts, more })
    }

    /// What becomes of a query for a name, in small letters and without a dot at its end, from an address.
    pub(super) fn judge(&self, from: Ipv4Addr, name: &str) -> Verdict {
        let mut state = self.state();
        let Some(upstream) = state.upstream else {
            return Verdict::Ignore;
        };
        let slot = namespaces::slot(from).and_then(|number| state.slots.get_mut(&number));
        let Some(slot) = slot else { return Verdict::Ignore };
        match slot.policy.mode {
            EgressMode::Open => Verdict::Pass(upstream),
            EgressMode::Allow if slot.policy.allows_name(name) => Verdict::Learn(upstream),
            EgressMode::Allow => {
                slot.names.note(name, Timestamp::now());
                Verdict::Refuse
            }
        }
    }

    /// A name was resolved for the VM at an address: it may connect there. False when it may not (any more).
    pub(super) async fn learn(
        &self,
        from: Ipv4Addr,
        name: &str,
        addresses: &[(Ipv4Addr, Duration)],
    ) -> io::Result<bool> {
        let _rules = self.rules.lock().await;
        let now = Instant::now();
        let (number, new) = {
            let mut state = self.state();
            let State { closed, slots, .. } = &mut *state;
            let slot = namespaces::slot(from).and_then(|number| slots.get_mut(&number).map(|slot| (number, slot)));
            let Some((number, slot)) = slot else { return Ok(false) };
            if slot.policy.mode == EgressMode::Open {
                return Ok(true);
            }
            if !slot.policy.allows_name(name) {
                return Ok(false);
            }
            slot.learned.retain(|_, end| *end > now);
            if slot.learned.len() >= MOST_LEARNED {
                return Err(io::Error::other("too many names were resolved for one VM"));
            }
            // An answer that points into a closed network opens nothing.
            let is_open = |address: &Ipv4Addr| !closed.iter().any(|net| net.contains(address));
            let new: Vec<(Ipv4Addr, Duration)> = addresses
                .iter()
                .filter(|(address, _)| is_open(address))
                .filter(|(address, time)| {
                    let known = slot.learned.get(&(*address, name.to_owned()));
                    known.is_none_or(|end| *end < now + (*time).min(LONGEST))
                })
                .map(|(address, time)| (*address, (*time).clamp(SHORTEST, LONGEST) + GRACE))
                .collect();
            (number, new)
        };
        if new.is_empty() {
            return Ok(true);
        }
        nft(filter::learn(number, &new)).await?;
        if let Some(slot) = self.state().slots.get_mut(&number) {
            let learned = new
                .into_iter()
                .map(|(address, time)| ((address, name.to_owned()), now + time));
            slot.learned.extend(learned);
        }
        Ok(true)
    }

    async fn sweep(&self) -> io::Result<()> {
        let _rules = self.rules.lock().await;
        let links = namespaces::links().await?;
        let gone: Vec<u16> = {
            let mut state = self.state();
            for slot in state.slots.values_mut().filter(|slot| slot.given_out) {
                slot.namespace.take_if(|(_, taken)| taken.elapsed() > KEPT);
            }
            let gone = |(number, slot): &(&u16, &Slot)| slot.namespace.is_none() && !links.contains(*number);
            state.slots.iter().filter(gone).map(|(number, _)| *number).collect()
        };
        for number in gone {
            nft(filter::remove(number)).await?;
            self.state().slots.remove(&number);
        }
        Ok(())
    }
}

/// Applies packet rules, all of them or none.
async fn nft(text: String) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut command = program::clean("nft");
    command.args(["--file", "-"]);
    let output = program::run(command, text.as_bytes()).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "nft refused packet rules: {}",
        String::from_utf8_lossy(&output.stderr)
            .lines()
            .next()
            .unwrap_or("it printed no reason")
    )))
}
