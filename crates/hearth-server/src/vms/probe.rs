//! VMs are asked now and then whether they still answer, and whether their guest is the one that was made. A paused one is
//! resumed for it.
//!
//! What a miss means depends on whose VM it is. One of the pool is taken out of it before a claim finds it. One that is being set
//! up fails. A VM that is claimed, or kept for debugging, stays: it is said that it does not answer, and calls that would wait for
//! it for ever end.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hearth_api::ids::{InstanceId, VmId};
use hearth_api::instance::Unresponsive;
use hearth_core::redact::Redacted;
use hearth_core::redacted;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::Failure;
use hearth_drivers::{Driver, FullDisk, host};
use hearth_guest::client::AgentClient;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::secrets::redactors;
use crate::store::{InstanceRow, Store, StoreError};
use crate::vms::connections::{Connections, RESTARTED};
use crate::vms::ended::{VmEnds, ended_message};
use crate::vms::pause::Pause;
use crate::vms::probe_states::{ProbeStates, RUNNING_INTERVAL, SOONER, Whose, whose};
use crate::wake::Wake;

/// A VM of the pool has this long to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Misses in a row before a VM of the pool is given up: a host can be busy.
const MISSES: u32 = 3;
/// The same of a VM in which a user may be at work: a guest that compiles on a busy host answers late, and what it does is lost
/// when it is given up.
const MISSES_AT_WORK: u32 = 4;
/// The last time a VM of the pool is asked before it is given up it has so many times as long to answer: one that answers late is good.
const LAST_CHANCE: f64 = 6.0;
/// A VM that missed an answer on a busy host has no more than so many times as long for the next ones: else one that hangs is not
/// noticed for a quarter of an hour.
const OVERLOAD_AFTER_MISS: f64 = 1.5;
/// How long it is tried to set the clock of a guest that has restarted exactly.
const CLOCK_PATIENCE: Duration = Duration::from_secs(1);
/// VMs of the pool that are asked at once: each is resumed for it, and takes the processor from others.
const AT_ONCE: usize = 2;
/// VMs that run anyway and are asked at once: one that does not answer delays no other.
const RUNNING_AT_ONCE: usize = 32;
/// When a client calls a VM it is asked so much later: a call to one that hangs ends sooner.
const AFTER_CALL: Duration = Duration::from_secs(10);
/// How long a VM that did not answer has to answer the next call.
const SECOND_CHANCE: Duration = Duration::from_secs(2);
/// How long the host may take to say what keeps a VM from answering, or to resume it.
const HOST_CHECK: Duration = Duration::from_secs(5);

/// What becomes of an instance whose VM is lost.
#[async_trait]
pub trait GiveUp: Debug + Send + Sync {
    /// It has failed, unless another task has decided about it since this row was read.
    async fn give_up(&self, row: &InstanceRow, failure: &Failure) -> Result<(), StoreError>;
}

/// Why a VM cannot be reached.
#[derive(Debug)]
pub enum OutOfReach {
    /// It has ended: it will never answer.
    Ended(String),
    /// It does not answer, and may again.
    Silent(String),
}

/// How often VMs are asked, and how long they have to answer.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// How often a ready VM is asked whether it answers; zero: never.
    pub interval: Duration,
    /// How long a VM that runs has to answer.
    pub patience: Duration,
}

/// Asks VMs whether they answer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Probes {
    store: Store,
    driver: Arc<dyn Driver>,
    connections: Connections,
    pause: Pause,
    wake: Wake,
    ends: VmEnds,
    instances: Arc<dyn GiveUp>,
    rhythm: Rhythm,
    states: Arc<Mutex<ProbeStates>>,
}

impl Probes {
    /// No VM was asked yet.
    #[must_use]
    pub fn new(
        store: Store,
        driver: Arc<dyn Driver>,
        connections: Connections,
        pause: Pause,
        wake: Wake,
        instances: Arc<dyn GiveUp>,
        rhythm: Rhythm,
    ) -> Self {
        let ends = VmEnds::new(store.clone(), driver.clone(), connections.clone(), wake.clone());
        Self {
            store,
            driver,
            connections,
            pause,
            wake,
            ends,
            instances,
            rhythm,
            states: Arc::default(),
        }
    }

    /// Asks until the server stops. Each VM is asked by itself: one that does not answer delays no other.
    pub async fn run(&self, stop: CancellationToken) {
        if self.rhythm.interval.is_zero() {
            return;
        }
        let tick = self.rhythm.interval.min(RUNNING_INTERVAL) / SOONER;
        let (pooled, running) = (Semaphore::new(AT_ONCE), Semaphore::new(RUNNING_AT_ONCE));
        let (mut probes, mut asked) = (FuturesUnordered::new(), HashSet::new());
        loop {
            match self.due().await {
                Ok(due) => {
                    for row in due {
                        // Its last answer is still waited for.
                        if !asked.insert(row.vm.clone()) {
                            continue;
                        }
                        let turn = match whose(&row) {
                            Whose::Pool => &pooled,
                            Whose::Build | Whose::Owner => &running,
                        };
                        probes.push(self.probe_in_turn(row, turn));
                    }
                }
                Err(error) => tracing::warn!(%error, "VMs could not be probed; it is tried again"),
            }
            let mut pause = std::pin::pin!(tokio::time::sleep(tick));
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut pause => break,
                    Some(vm) = probes.next() => drop(asked.remove(&vm)),
                }
            }
        }
    }

    /// Who notes the ends of claimed VMs.
    #[must_use]
    pub fn ends(&self) -> &VmEnds {
        &self.ends
    }

    /// How often a VM has not answered in a row.
    #[must_use]
    pub fn misses(&self, vm: &VmId) -> u32 {
        self.states(|states| states.0.get(vm).map_or(0, |probe| probe.misses))
    }

    /// Since when a VM does not answer, and why; `None` for one that does, as far as is known.
    #[must_use]
    pub fn unresponsive(&self, vm: &VmId) -> Option<Unresponsive> {
        self.states(|states| states.0.get(vm)?.silent.clone())
    }

    /// A client begins to work in a VM: if it hangs, that is to be noticed soon.
    pub fn expect_answer(&self, vm: &VmId) {
        self.states(|states| {
            if let Some(probe) = states.0.get_mut(vm) {
                probe.due = probe.due.min(Instant::now() + AFTER_CALL);
            }
        });
    }

    /// Why no one can work in this VM now: it has ended, something on the host has stopped it, or it has not answered for long and
    /// does not do so now.
    pub async fn out_of_reach(&self, row: &InstanceRow) -> Option<OutOfReach> {
        use hearth_drivers::VmState::{Halted, Paused, Running, Saved, Stopped};
        match self.ends.check(row).await {
            Ok(Some(end)) => return Some(OutOfReach::Ended(ended_message(row, &end))),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, instance = %row.id, "whether a VM has ended could not be noted"),
        }
        let seen = self.driver.inspect(&row.vm);
        let advice = advice(row);
        match tokio::time::timeout(HOST_CHECK, seen).await {
            // It may be about to be made.
            Ok(Ok(Some(Stopped) | None)) if row.state == InstanceState::Provisioning => None,
            Ok(Ok(Some(Stopped) | None)) => Some(OutOfReach::Ended(format!(
                "the VM has ended: its process on the host is gone, and so is what ran in it{advice}"
            ))),
            Ok(Ok(Some(Halted))) => {
                let why = self.why_silent(&row.vm).await;
                Some(OutOfReach::Silent(format!("the VM does not answer: {why}{advice}")))
            }
            Ok(Ok(Some(Running | Paused | Saved)) | Err(_)) | Err(_) => {
                if let Some(full) = self.still_full(row).await {
                    return Some(OutOfReach::Silent(format!(
                        "the VM is stopped: {full}. Nothing in it is lost, and it resumes by itself when there is room: free some space \
                         on the host"
                    )));
                }
                let silent = self.unresponsive(&row.vm)?;
                let answer = self.ask(row, SECOND_CHANCE).await;
                self.note(row, answer.as_ref().err());
                answer.err().map(|_| {
                    OutOfReach::Silent(format!(
                        "the VM does not answer since {:.0}: {}{advice}",
                        silent.since, silent.reason
                    ))
                })
            }
        }
    }

    /// The instances whose VMs are to be asked now.
    async fn due(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let mut rows = self.store.instances_with_guests().await?;
        let due = self.states(|states| states.due(&rows, self.rhythm.interval));
        rows.retain(|row| due.contains(&row.vm));
        Ok(rows)
    }

    async fn probe_in_turn(&self, row: InstanceRow, turn: &Semaphore) -> VmId {
        // It is never closed.
        let _turn = turn.acquire().await;
        if let Err(error) = self.probe_one(&row).await {
            tracing::warn!(%error, instance = %row.id, "what a probe found could not be written");
        }
        row.vm
    }

    async fn probe_one(&self, row: &InstanceRow) -> Result<(), StoreError> {
        let whose = whose(row);
        let patience = match whose {
            Whose::Pool => PATIENCE.min(self.rhythm.patience),
            _ if !self.is_to_answer(row).await => {
                self.leave_alone(row);
                return self.ends.check(row).await.map(drop);
            }
            _ => self.rhythm.patience,
        };
        // One of the pool wrote nothing while it was paused.
        if (whose != Whose::Pool || self.misses(&row.vm) > 0) && self.waits_for_room(row).await {
            return Ok(());
        }
        // Where more wants to run than there are processors, everything answers later; how much later, the first miss has shown.
        let overload = host::load().map_or(1.0, |load| load.overload());
        let overload = match self.misses(&row.vm) {
            0 => overload,
            _ => overload.min(OVERLOAD_AFTER_MISS),
        };
        let is_last = whose == Whose::Pool && self.misses(&row.vm) + 1 >= MISSES;
        let longer = if is_last { overload.max(LAST_CHANCE) } else { overload };
        let answer = self.ask(row, patience.mul_f64(longer)).await;
        let fault = match answer {
            Ok(boot) => {
                self.note(row, None);
                return self.note_boot(row, &boot).await;
            }
            Err(fault) => fault,
        };
        if self.waits_for_room(row).await {
            return Ok(());
        }
        if whose != Whose::Pool && self.pause.is_paused(&row.vm).await {
            // Its owner has paused it meanwhile, or its checkpoint is written, which takes long on a busy disk. One that is set up is to run
            // when that is done: the driver resumes none whose checkpoint is being written.
            if whose == Whose::Build {
                self.let_go_on(row).await;
            }
            self.leave_alone(row);
            return Ok(());
        }
        if whose == Whose::Pool {
            // The next caller makes a new connection. In a VM that a user has, that would end what is under way.
            self.connections.renew(&row.vm);
        }
        let misses = self.note(row, Some(&fault));
        if whose == Whose::Pool {
            if misses < MISSES {
                return Ok(());
            }
            let failure = Failure {
                kind: FailureKind::VmLost,
                reason: redacted![
                    "it did not answer ",
                    misses,
                    " times in a row while it was ready: ",
                    fault,
                ],
            };
            return self.instances.give_up(row, &failure).await;
        }
        if misses < MISSES_AT_WORK {
            return Ok(());
        }
        let why = self.why_silent(&row.vm).await;
        let reason = self.redacted(row, &why).await;
        let silent = self.states(|states| states.silence(&row.vm, reason));
        let Some(silent) = silent else { return Ok(()) };
        let message = format!("the VM does not answer since {:.0}: {why}", silent.since);
        let message = self.redacted(row, &message).await;
        tracing::error!(instance = %row.id, project = %row.project, "{message}");
        // A set-up fails by this; a client's call ends with it.
        self.connections.give_up(&row.vm, message).await;
        if whose == Whose::Owner {
            self.let_go_on(row).await;
        }
        self.wake.wake();
        Ok(())
    }

    /// Whether the host's disk is still too full for a VM that was stopped by it. One that has room again is resumed.
    async fn still_full(&self, row: &InstanceRow) -> Option<FullDisk> {
        let full = tokio::time::timeout(HOST_CHECK, self.driver.full_disk(&row.vm)).await;
        let full = full.ok().and_then(Result::ok).flatten()?;
        if !full.has_room_again() {
            return Some(full);
        }
        self.let_go_on(row).await;
        self.states(|states| states.note(&row.vm, false, self.interval(row)));
        tracing::info!(instance = %row.id, project = %row.project, "the host's disk has room again; a VM that waited for it resumes");
        if whose(row) == Whose::Owner {
            // It was stopped too.
            self.set_clock(row).await;
        }
        None
    }

    /// Whether a VM waits for room on the host's disk, which is said at once and forgiven: no calls of its owner end by it. A set-up
    /// fails: nobody would see what it waits for.
    async fn waits_for_room(&self, row: &InstanceRow) -> bool {
        let Some(full) = self.still_full(row).await else {
            return false;
        };
        let whose = whose(row);
        let reason = format!("{full}; it resumes by itself when there is room again");
        let reason = self.redacted(row, &reason).await;
        let silent = self.states(|states| {
            states.note(&row.vm, true, self.interval(row));
            states.silence(&row.vm, reason)
        });
        if let Some(silent) = silent {
            let message = format!("the VM is stopped since {:.0}: {}", silent.since, silent.reason);
            let message = self.redacted(row, &message).await;
            tracing::error!(instance = %row.id, project = %row.project, "{message}");
            if whose == Whose::Build {
                self.connections.give_up(&row.vm, message).await;
            }
            self.wake.wake();
        }
        true
    }

    /// Whether a VM that is not of the pool is far enough, and still there, to answer. How long a boot may take has a limit of its own.
    async fn is_to_answer(&self, row: &InstanceRow) -> bool {
        use hearth_drivers::VmState::{Halted, Running};
        match row.state {
            InstanceState::Provisioning => self.connections.current(&row.vm).is_some(),
            _ => {
                let seen = tokio::time::timeout(HOST_CHECK, self.driver.inspect(&row.vm)).await;
                matches!(seen, Ok(Ok(Some(Running | Halted))))
            }
        }
    }

    /// Asks a VM; the boot of its guest, or what was wrong.
    async fn ask(&self, row: &InstanceRow, patience: Duration) -> Result<String, Redacted> {
        let answers = async {
            let agent = match whose(row) {
                Whose::Build => self.connections.current(&row.vm).ok_or("it has no connection")?,
                Whose::Pool => {
                    let _awake = self
                        .pause
                        .keep_resumed(&row.vm)
                        .await
                        .map_err(|error| error.to_string())?;
                    return self.ask_agent(row, patience).await;
                }
                Whose::Owner => return self.ask_agent(row, patience).await,
            };
            let health = agent.health().await.map_err(|error| error.to_string())?;
            Ok(health.boot_id)
        };
        let fault = match tokio::time::timeout(patience, answers).await {
            Ok(Ok(boot)) => return Ok(boot),
            Ok(Err(fault)) => fault,
            Err(_) => format!("no answer within {} s", patience.as_secs_f64()),
        };
        Err(self.redacted(row, &fault).await)
    }

    /// What a guest said, or somebody who quotes it, without the values of its project's variables.
    async fn redacted(&self, row: &InstanceRow, said: &str) -> Redacted {
        match redactors::of_project(&self.store, &row.project).await {
            Ok(redactor) => redactor.redact(said),
            Err(error) => {
                tracing::debug!(%error, instance = %row.id, "what a VM said cannot be shown");
                "why is not shown, because its project's variables could not be read".into()
            }
        }
    }

    async fn ask_agent(&self, row: &InstanceRow, patience: Duration) -> Result<String, String> {
        let agent = self.connections.get(&row.vm, patience).await;
        let agent = agent.map_err(|error| error.to_string())?;
        let health = agent.health().await.map_err(|error| error.to_string())?;
        Ok(health.boot_id)
    }

    /// A guest has said in which boot it is. One of the pool that has restarted since it was made ready is none that was set up;
    /// of a claimed one it is recorded, and its clock set.
    async fn note_boot(&self, row: &InstanceRow, boot: &str) -> Result<(), StoreError> {
        if row.state == InstanceState::Provisioning || row.boot_id.as_deref().is_none_or(|known| known == boot) {
            return Ok(());
        }
        if whose(row) == Whose::Pool {
            let failure = Failure {
                kind: FailureKind::VmLost,
                reason: RESTARTED.into(),
            };
            return self.instances.give_up(row, &failure).await;
        }
        if self.store.note_reboot(&row.id, boot, Timestamp::now()).await? {
            tracing::warn!(instance = %row.id, project = %row.project, "the guest has restarted");
            // Its other names and variables are on its disk. A clock that could not be set is set by its own time service.
            self.set_clock(row).await;
        }
        Ok(())
    }

    /// Sets the clock of a guest. One that could not be set is set by its own time service.
    pub async fn set_clock(&self, row: &InstanceRow) {
        let in_time = async {
            let agent = self.connections.get(&row.vm, SECOND_CHANCE).await.ok()?;
            agent.sync_clock(CLOCK_PATIENCE).await.ok()
        };
        let _ = tokio::time::timeout(HOST_CHECK, in_time).await;
    }

    /// Somebody begins to work in a VM: notes whether its guest has restarted. Costs nothing while the connection lasts.
    pub async fn meet(&self, row: &InstanceRow, agent: &AgentClient) -> Result<(), StoreError> {
        let boot = tokio::time::timeout(HOST_CHECK, self.connections.boot(&row.vm, agent)).await;
        match boot {
            Ok(Ok(boot)) if whose(row) == Whose::Owner => self.note_boot(row, &boot).await,
            // The next client that works in it learns of it.
            _ => Ok(()),
        }
    }

    async fn why_silent(&self, vm: &VmId) -> String {
        match tokio::time::timeout(HOST_CHECK, self.driver.why_silent(vm)).await {
            Ok(Ok(Some(why))) => why,
            Ok(Ok(None)) => "its processors run, but nothing in it answers".to_owned(),
            Ok(Err(error)) => format!("the host cannot say why ({error})"),
            Err(_) => "the host does not say why in time".to_owned(),
        }
    }

    /// A VM that is to run and does not, because its disk was full or its processors were stopped, is resumed.
    async fn let_go_on(&self, row: &InstanceRow) {
        match tokio::time::timeout(HOST_CHECK, self.pause.resume(&row.vm)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, instance = %row.id, "a silent VM cannot be resumed"),
            Err(_) => tracing::debug!(instance = %row.id, "a silent VM cannot be resumed in time"),
        }
    }

    /// Notes how a poll ended, and says what is news; the misses in a row.
    fn note(&self, row: &InstanceRow, fault: Option<&Redacted>) -> u32 {
        let interval = self.interval(row);
        let (before, misses) = self.states(|states| states.note(&row.vm, fault.is_some(), interval));
        match fault {
            Some(fault) if before == 0 => {
                tracing::warn!(instance = %row.id, project = %row.project, %fault, "a VM did not answer; it is asked again");
            }
            None if before > 0 => {
                tracing::info!(instance = %row.id, project = %row.project, misses = before, "a VM answers again");
            }
            _ => {}
        }
        misses
    }

    /// A VM that need not answer now is none that is silent.
    fn leave_alone(&self, row: &InstanceRow) {
        let interval = self.interval(row);
        self.states(|states| states.note(&row.vm, false, interval));
    }

    fn interval(&self, row: &InstanceRow) -> Duration {
        match whose(row) {
            Whose::Pool => self.rhythm.interval,
            _ => self.rhythm.interval.min(RUNNING_INTERVAL),
        }
    }

    fn states<T>(&self, act: impl FnOnce(&mut ProbeStates) -> T) -> T {
        act(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The instances of these rows that are known not to answer.
    pub fn all_unresponsive(&self, rows: &[InstanceRow]) -> Vec<(InstanceId, Unresponsive)> {
        let silent = rows.iter().filter(|row| row.status().is_some());
        silent
            .filter_map(|row| Some((row.id.clone(), self.unresponsive(&row.vm)?)))
            .collect()
    }
}

/// What its owner can do about a VM that is out of reach.
fn advice(row: &InstanceRow) -> String {
    match row.state {
        InstanceState::Claimed => format!(
            "; nothing brings its work back by itself: release it with `hearth release {}` and claim another one",
            row.id
        ),
        _ => String::new(),
    }
}
