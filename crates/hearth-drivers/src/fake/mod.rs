//! Driver `fake`: VMs in memory, for tests of what stands above a driver. It passes the same contract suite as the real ones,
//! serves the real agent protocol, and delays and fails as planned and seeded. Never a default: it runs no command.

mod agent;
mod controls;
mod egress;
mod files;
mod lateness;
mod machines;
mod ports;
mod questions;
mod script;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use hearth_api::egress::EgressPolicy;
use hearth_api::ids::VmId;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    ByteStream, Capabilities, CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, Driver, DriverError,
    Egress, ForkSpec, ForkStart, FullDisk, Locks, SnapshotSpec, VmInfo, VmShape, VmSpec, VmState, VmUsage,
};
use agent::Guest;
use lateness::Lateness;
pub use machines::Machines;
pub use script::{ExecRule, FakeOptions, Fault, FaultKind, FaultMoment, Special, Verb};

/// How much the pipe between host and guest holds, as a virtio-serial port would.
const PIPE_BYTES: usize = 64 * 1024;
/// What is free on the disk of a fake host that is not full.
const FREE_BYTES: u64 = 100 << 30;
/// What the draws are for, besides the verbs' own numbers.
const BOOT_DRAW: u64 = 1000;

/// VMs in memory. Clones share them; [`FakeDriver::reopen`] is what a restarted server would open.
#[derive(Debug, Clone)]
pub struct FakeDriver {
    world: Arc<World>,
    gates: Locks<VmId>,
    killed: CancellationToken,
}

#[derive(Debug)]
struct World {
    seed: u64,
    options: FakeOptions,
    faults: Mutex<Vec<Fault>>,
    rules: Arc<Mutex<Vec<script::ExecRule>>>,
    lateness: Lateness,
    ports: ports::Ports,
    disk: Mutex<HostDisk>,
    state: Mutex<State>,
}

/// The disk of the fake host.
#[derive(Debug)]
struct HostDisk {
    free_bytes: u64,
    /// VMs that are stopped because it was full.
    waiting: BTreeSet<VmId>,
}

#[derive(Debug)]
struct State {
    machines: Machines<Inhabited>,
    calls: BTreeMap<Verb, u64>,
}

/// What is inside a fake VM, and how it is reached.
#[derive(Debug)]
struct Inhabited {
    guest: Arc<Guest>,
    answers_at: tokio::time::Instant,
    /// Ends the stream that is open now.
    connection: CancellationToken,
    /// What it may reach, and what it was refused.
    egress: Egress,
}

impl Inhabited {
    /// With an agent that answers from then on.
    fn new(guest: Guest, answers_at: tokio::time::Instant) -> Self {
        Self {
            guest: Arc::new(guest),
            answers_at,
            connection: CancellationToken::new(),
            egress: Egress::default(),
        }
    }
}

impl Machines<Inhabited> {
    /// Ends the stream that is open, whether or not there can be another one now.
    fn end_connection(&self, id: &VmId) {
        if let Some(vm) = self.get(id) {
            vm.inside.connection.cancel();
        }
    }
}

impl FakeDriver {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64, mut options: FakeOptions) -> Self {
        let rules = Arc::new(Mutex::new(std::mem::take(&mut options.rules)));
        let faults = Mutex::new(std::mem::take(&mut options.faults));
        let state = State {
            machines: Machines::new(options.images.clone(), options.capacity),
            calls: BTreeMap::new(),
        };
        let world = World {
            seed,
            options,
            faults,
            rules,
            lateness: Lateness::default(),
            ports: ports::Ports::default(),
            disk: Mutex::new(HostDisk {
                free_bytes: FREE_BYTES,
                waiting: BTreeSet::new(),
            }),
            state: Mutex::new(state),
        };
        Self {
            world: Arc::new(world),
            gates: Locks::default(),
            killed: CancellationToken::new(),
        }
    }

    /// Another driver on the same VMs, as after a restart of the server.
    #[must_use]
    pub fn reopen(&self) -> Self {
        Self {
            world: Arc::clone(&self.world),
            gates: Locks::default(),
            killed: CancellationToken::new(),
        }
    }

    /// Cancelled when the process that has this driver is to be taken for dead, by a test or by [`FaultKind::Kill`]: from then
    /// on no call of it returns. The test ends the process; another one may [`FakeDriver::reopen`].
    #[must_use]
    pub fn killed(&self) -> CancellationToken {
        self.killed.clone()
    }

    /// No planned failure happens from now on.
    pub fn disarm(&self) {
        self.world.faults().clear();
    }

    fn guest(&self, id: &VmId) -> Option<Arc<Guest>> {
        self.world
            .state()
            .machines
            .get(id)
            .map(|vm| Arc::clone(&vm.inside.guest))
    }

    /// A call that changes a VM: one at a time, and to its end even when the caller stops waiting, as the real drivers do.
    async fn change<T: Send + 'static>(
        &self,
        verb: Verb,
        id: &VmId,
        work: impl FnOnce(&World) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (driver, id) = (self.clone(), id.clone());
        let work = async move {
            let _gate = driver.gates.lock(id).await;
            driver.call(verb, async { work(&driver.world) }).await
        };
        tokio::spawn(work.in_current_span())
            .await
            .unwrap_or_else(|error| Err(DriverError::unknown("broken off").caused_by(error)))
    }

    /// A call that freezes a VM. One that fails in the middle leaves it paused, which is the worst that a real driver does; a refused one has
    /// not begun.
    async fn freeze(
        &self,
        verb: Verb,
        id: &VmId,
        work: impl FnOnce(&World) -> Result<CheckpointInfo, DriverError> + Send + 'static,
    ) -> Result<CheckpointInfo, DriverError> {
        let frozen = self.change(verb, id, work).await;
        if matches!(frozen, Err(DriverError::Retry { .. } | DriverError::Unknown { .. })) {
            // There may be no VM.
            drop(self.world.set_paused(id, true));
        }
        frozen
    }

    /// One call: its delay, its planned failure, its work.
    async fn call<T>(&self, verb: Verb, work: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
        let count = {
            let mut state = self.world.state();
            let count = state.calls.entry(verb).or_default();
            *count += 1;
            *count
        };
        let options = &self.world.options;
        tokio::time::sleep(script::draw(self.world.seed, verb as u64, count, &options.call_delay)).await;
        let fault = self.world.fault(verb, count);
        let moment = fault.as_ref().map(|fault| fault.moment);
        if moment == Some(FaultMoment::Before) {
            self.strike(fault.clone()).await?;
        }
        self.block_if_dead().await;
        let done = work.await?;
        self.strike(fault.filter(|fault| fault.moment == FaultMoment::After))
            .await?;
        Ok(done)
    }

    async fn strike(&self, fault: Option<Fault>) -> Result<(), DriverError> {
        let Some(fault) = fault else { return Ok(()) };
        if fault.kind == FaultKind::Kill {
            self.killed.cancel();
            self.block_if_dead().await;
        }
        Err(fault.kind.error())
    }

    async fn block_if_dead(&self) {
        if self.killed.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

impl World {
    fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is planned for a call.
    fn fault(&self, verb: Verb, call: u64) -> Option<Fault> {
        let faults = self.faults();
        faults
            .iter()
            .find(|fault| fault.verb == verb && fault.call == call)
            .cloned()
    }

    fn disk(&self) -> MutexGuard<'_, HostDisk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full_disk(&self, id: &VmId) -> Option<FullDisk> {
        let disk = self.disk();
        disk.waiting.contains(id).then_some(FullDisk {
            free_bytes: disk.free_bytes,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn boot_id(&self, made: u64) -> String {
        format!("fake-{:016x}-{made}", self.seed)
    }

    fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        self.state().machines.create(spec, |made| {
            let boot = script::draw(self.seed, BOOT_DRAW, made, &self.options.boot_delay);
            let (rules, lateness, ports) = (Arc::clone(&self.rules), self.lateness.clone(), self.ports.clone());
            let guest = Guest::new(self.boot_id(made), rules, lateness, ports);
            if self.options.has_rsa_host_key {
                guest.install_ssh_server();
            }
            Inhabited::new(guest, tokio::time::Instant::now() + boot)
        })
    }

    fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError> {
        self.state().machines.fork(spec, jiff::Timestamp::now(), |from, made| {
            let guest = from.guest.copy(self.boot_id(made));
            guest.set_running(spec.start == ForkStart::Running);
            // It has booted long ago.
            Inhabited::new(guest, tokio::time::Instant::now())
        })
    }

    fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
        let copy = |inside: &Inhabited| Inhabited::new(inside.guest.copy(String::new()), inside.answers_at);
        self.state().machines.checkpoint(id, spec, jiff::Timestamp::now(), copy)
    }

    fn snapshot(&self, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError> {
        let copy = |inside: &Inhabited| Inhabited::new(inside.guest.copy(String::new()), inside.answers_at);
        self.state().machines.snapshot(id, spec, jiff::Timestamp::now(), copy)
    }

    fn set_paused(&self, id: &VmId, wanted: bool) -> Result<(), DriverError> {
        let mut state = self.state();
        state.machines.set_paused(id, wanted)?;
        if state.machines.inspect(id) == Some(VmState::Saved) {
            return Ok(());
        }
        let guest = &state.machines.inside_mut(id)?.guest;
        guest.set_running(!wanted);
        let mut disk = self.disk();
        if !wanted && disk.free_bytes > 0 && disk.waiting.remove(id) {
            guest.set_hanging(false);
        }
        Ok(())
    }

    fn save(&self, id: &VmId) -> Result<(), DriverError> {
        let mut state = self.state();
        state.machines.save(id)?;
        if let Some(vm) = state.machines.get(id) {
            vm.inside.guest.set_running(false);
            vm.inside.connection.cancel();
        }
        Ok(())
    }

    fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        let mut state = self.state();
        state.machines.end_connection(id);
        let vm = state.machines.inside_mut(id)?;
        vm.connection = CancellationToken::new();
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (ended, guest, answers_at) = (vm.connection.clone(), Arc::clone(&vm.guest), vm.answers_at);
        tokio::spawn(async move {
            let serve = async {
                tokio::time::sleep_until(answers_at).await;
                guest.answers().await;
                guest.serve(theirs).await;
            };
            // Dropping the guest's end is what the host sees as the end.
            tokio::select! {
                () = ended.cancelled() => {}
                () = serve => {}
            }
        });
        Ok(Box::new(ours))
    }

    fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        let state = self.state();
        let mut text = state.machines.console(id)?;
        if let Some(vm) = state.machines.get(id) {
            text.push_str(&vm.inside.guest.console());
        }
        let text = text.into_bytes();
        let keep = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(text.len());
        Ok(text[text.len() - keep..].to_vec())
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "fake",
            memory_checkpoints: !self.world.options.no_checkpoints,
            disk_checkpoints: !self.world.options.no_checkpoints,
            pause: true,
            pause_to_disk: true,
            live_processes: !self.world.options.loses_processes,
        }
    }

    async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        let wanted = spec.clone();
        self.change(Verb::Create, &spec.id, move |world| world.create(&wanted))
            .await
    }

    async fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError> {
        let wanted = spec.clone();
        self.change(Verb::Fork, &spec.id, move |world| world.fork(&wanted))
            .await
    }

    async fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
        let (of, spec) = (id.clone(), spec.clone());
        self.freeze(Verb::Checkpoint, id, move |world| world.checkpoint(&of, &spec))
            .await
    }

    async fn snapshot(&self, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError> {
        let (of, spec) = (id.clone(), spec.clone());
        self.freeze(Verb::Snapshot, id, move |world| world.snapshot(&of, &spec))
            .await
    }

    async fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        let work = async { self.world.state().machines.environment(image, shape) };
        self.call(Verb::Environment, work).await
    }

    async fn check_image(&self, wanted: &str) -> Result<(), DriverError> {
        self.world.state().machines.check_image(wanted)
    }

    async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError> {
        let work = async { Ok(self.world.state().machines.checkpoints().cloned().collect()) };
        self.call(Verb::Checkpoints, work).await
    }

    async fn check_checkpoint(&self, key: &CheckpointKey, _depth: CheckDepth) -> Result<(), DriverError> {
        let work = async { self.world.state().machines.check_checkpoint(key) };
        self.call(Verb::CheckCheckpoint, work).await
    }

    async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let work = async { self.world.state().machines.remove_checkpoint(key) };
        self.call(Verb::RemoveCheckpoint, work).await
    }

    async fn pause(&self, id: &VmId) -> Result<(), DriverError> {
        let of = id.clone();
        self.change(Verb::Pause, id, move |world| world.set_paused(&of, true))
            .await
    }

    async fn resume(&self, id: &VmId) -> Result<(), DriverError> {
        let of = id.clone();
        self.change(Verb::Resume, id, move |world| world.set_paused(&of, false))
            .await
    }

    async fn save(&self, id: &VmId) -> Result<(), DriverError> {
        let of = id.clone();
        self.change(Verb::Save, id, move |world| world.save(&of)).await
    }

    async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        let work = async { self.world.state().machines.usage(id) };
        self.call(Verb::Usage, work).await
    }

    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError> {
        let work = async { Ok(self.world.state().machines.inspect(id)) };
        self.call(Verb::Inspect, work).await
    }

    async fn full_disk(&self, id: &VmId) -> Result<Option<FullDisk>, DriverError> {
        Ok(self.world.full_disk(id))
    }

    async fn list(&self) -> Result<Vec<VmInfo>, DriverError> {
        let work = async { Ok(self.world.state().machines.list().collect()) };
        self.call(Verb::List, work).await
    }

    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        self.call(Verb::Connect, async { self.world.connect(id) }).await
    }

    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        self.call(Verb::Console, async { self.world.console(id, max_bytes) })
            .await
    }

    async fn hold_egress(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        self.hold(id, policy).await
    }

    async fn egress(&self, id: &VmId) -> Result<Egress, DriverError> {
        self.egress_of(id)
    }

    async fn destroy(&self, id: &VmId) -> Result<(), DriverError> {
        let of = id.clone();
        let remove = move |world: &World| {
            if let Some(inside) = world.state().machines.destroy(&of) {
                inside.connection.cancel();
            }
            Ok(())
        };
        self.change(Verb::Destroy, id, remove).await
    }
}
