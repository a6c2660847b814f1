//! Driver `fake`: VMs in memory, for tests of what stands above a driver. It passes the same contract suite as the real ones,
//! serves the real agent protocol, and delays and fails as planned and seeded. Never a default: it runs no command.

mod agent;
mod checkpoints;
mod script;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_api::agent::{Activate, ExecSpec};
use hearth_api::ids::VmId;
use tokio_util::sync::CancellationToken;

use crate::{
    ByteStream, Capabilities, CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, Driver, DriverError,
    ForkSpec, Locks, VmInfo, VmShape, VmSpec, VmState, VmUsage,
};
use agent::Guest;
use checkpoints::Checkpoint;
pub use script::{ExecRule, FakeOptions, Fault, FaultKind, FaultMoment, Verb};

/// How much the pipe between host and guest holds, as a virtio-serial port would.
const PIPE_BYTES: usize = 64 * 1024;
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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    vms: BTreeMap<VmId, FakeVm>,
    checkpoints: BTreeMap<CheckpointKey, Checkpoint>,
    calls: BTreeMap<Verb, u64>,
    created: u64,
}

#[derive(Debug)]
struct FakeVm {
    image: String,
    shape: VmShape,
    state: VmState,
    /// It can be frozen.
    checkpointable: bool,
    /// The checkpoint that it lies on.
    lies_on: Option<CheckpointKey>,
    guest: Arc<Guest>,
    answers_at: tokio::time::Instant,
    /// Ends the stream that is open now.
    connection: CancellationToken,
}

impl State {
    /// A VM that runs or stands still.
    fn need_alive(&mut self, id: &VmId) -> Result<&mut FakeVm, DriverError> {
        match self.vms.get_mut(id) {
            Some(vm) if vm.state != VmState::Stopped => Ok(vm),
            Some(_) => Err(DriverError::permanent(format!("{id} does not run any more"))),
            None => Err(DriverError::permanent(format!("there is no VM {id}"))),
        }
    }
}

impl FakeDriver {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64, mut options: FakeOptions) -> Self {
        let rules = Arc::new(Mutex::new(std::mem::take(&mut options.rules)));
        let faults = Mutex::new(std::mem::take(&mut options.faults));
        let world = World {
            seed,
            options,
            faults,
            rules,
            state: Mutex::default(),
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

    /// Ends a VM as `kill -9` of its process would. False when it does not run.
    pub fn crash(&self, id: &VmId) -> bool {
        let mut state = self.world.state();
        let Some(vm) = state.vms.get_mut(id).filter(|vm| vm.state != VmState::Stopped) else {
            return false;
        };
        vm.state = VmState::Stopped;
        vm.connection.cancel();
        true
    }

    /// Adds a rule in front of all others.
    pub fn add_rule(&self, rule: ExecRule) {
        self.world
            .rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(0, rule);
    }

    /// The commands that a VM was asked to run, oldest first.
    #[must_use]
    pub fn commands(&self, id: &VmId) -> Vec<ExecSpec> {
        self.guest(id).map(|guest| guest.commands()).unwrap_or_default()
    }

    /// A file that was written into a VM.
    #[must_use]
    pub fn file(&self, id: &VmId, path: &str) -> Option<Bytes> {
        self.guest(id)?.file(path)
    }

    /// The clock that was set in a VM, nanoseconds since the Unix epoch.
    #[must_use]
    pub fn clock(&self, id: &VmId) -> Option<i64> {
        self.guest(id)?.clock()
    }

    /// The identity that a VM was last given.
    #[must_use]
    pub fn activated(&self, id: &VmId) -> Option<Activate> {
        self.guest(id)?.activated()
    }

    /// How often a verb has been called.
    #[must_use]
    pub fn calls(&self, verb: Verb) -> u64 {
        self.world.state().calls.get(&verb).copied().unwrap_or_default()
    }

    /// The same of every verb.
    #[must_use]
    pub fn all_calls(&self) -> BTreeMap<Verb, u64> {
        self.world.state().calls.clone()
    }

    fn guest(&self, id: &VmId) -> Option<Arc<Guest>> {
        self.world.state().vms.get(id).map(|vm| Arc::clone(&vm.guest))
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
        tokio::spawn(work)
            .await
            .unwrap_or_else(|error| Err(DriverError::unknown("broken off").caused_by(error)))
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
        self.stand_still_if_dead().await;
        let done = work.await?;
        self.strike(fault.filter(|fault| fault.moment == FaultMoment::After))
            .await?;
        Ok(done)
    }

    async fn strike(&self, fault: Option<Fault>) -> Result<(), DriverError> {
        let Some(fault) = fault else { return Ok(()) };
        if fault.kind == FaultKind::Kill {
            self.killed.cancel();
            self.stand_still_if_dead().await;
        }
        Err(fault.kind.error())
    }

    async fn stand_still_if_dead(&self) {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_image(&self, wanted: Option<&str>) -> Result<String, DriverError> {
        let found = self
            .options
            .images
            .iter()
            .find(|image| wanted.is_none_or(|wanted| !wanted.is_empty() && image.starts_with(wanted)));
        found
            .cloned()
            .ok_or_else(|| DriverError::permanent(format!("there is no image \"{}\"", wanted.unwrap_or_default())))
    }

    fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        let mut state = self.state();
        if let Some(vm) = state.vms.get(&spec.id).filter(|vm| vm.state != VmState::Stopped) {
            return Ok(Created {
                image: vm.image.clone(),
            });
        }
        if spec.shape.vcpus == 0 || spec.shape.memory_mib == 0 || spec.shape.disk_gib == 0 {
            return Err(DriverError::permanent(
                "a VM needs at least one processor, some memory and some disk",
            ));
        }
        let image = self.find_image(spec.image.as_deref())?;
        self.check_capacity(&state)?;
        state.created += 1;
        let boot = script::draw(self.seed, BOOT_DRAW, state.created, &self.options.boot_delay);
        let boot_id = format!("fake-{:016x}-{}", self.seed, state.created);
        let vm = FakeVm {
            image: image.clone(),
            shape: spec.shape,
            state: VmState::Running,
            checkpointable: spec.checkpointable,
            lies_on: None,
            guest: Arc::new(Guest::new(boot_id, Arc::clone(&self.rules))),
            answers_at: tokio::time::Instant::now() + boot,
            connection: CancellationToken::new(),
        };
        state.vms.insert(spec.id.clone(), vm);
        Ok(Created { image })
    }

    fn check_capacity(&self, state: &State) -> Result<(), DriverError> {
        if self
            .options
            .capacity
            .is_some_and(|capacity| state.vms.len() >= capacity)
        {
            return Err(DriverError::retry("not enough memory on this (fake) host"));
        }
        Ok(())
    }

    fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        let mut state = self.state();
        let vm = state.need_alive(id)?;
        vm.connection.cancel();
        vm.connection = CancellationToken::new();
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (ended, guest, answers_at) = (vm.connection.clone(), Arc::clone(&vm.guest), vm.answers_at);
        tokio::spawn(async move {
            let serve = async {
                tokio::time::sleep_until(answers_at).await;
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
        let vm = state
            .vms
            .get(id)
            .ok_or_else(|| DriverError::permanent(format!("there is no VM {id}")))?;
        let text = format!("[    0.000000] Linux version 0.0.0-fake (image {})\n", vm.image).into_bytes();
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
        self.change(Verb::Checkpoint, id, move |world| world.checkpoint(&of, &spec))
            .await
    }

    async fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        self.call(Verb::Environment, async { self.world.environment(image, shape) })
            .await
    }

    async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError> {
        self.call(Verb::Checkpoints, async { Ok(self.world.checkpoints()) })
            .await
    }

    async fn check_checkpoint(&self, key: &CheckpointKey, _depth: CheckDepth) -> Result<(), DriverError> {
        self.call(Verb::CheckCheckpoint, async { self.world.check_checkpoint(key) })
            .await
    }

    async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        self.call(Verb::RemoveCheckpoint, async { self.world.remove_checkpoint(key) })
            .await
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

    async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        self.call(Verb::Usage, async { self.world.usage(id) }).await
    }

    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError> {
        self.call(Verb::Inspect, async {
            Ok(self.world.state().vms.get(id).map(|vm| vm.state))
        })
        .await
    }

    async fn list(&self) -> Result<Vec<VmInfo>, DriverError> {
        let work = async {
            let state = self.world.state();
            Ok(state
                .vms
                .iter()
                .map(|(id, vm)| VmInfo {
                    id: id.clone(),
                    state: vm.state,
                })
                .collect())
        };
        self.call(Verb::List, work).await
    }

    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        self.call(Verb::Connect, async { self.world.connect(id) }).await
    }

    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        self.call(Verb::Console, async { self.world.console(id, max_bytes) })
            .await
    }

    async fn destroy(&self, id: &VmId) -> Result<(), DriverError> {
        let of = id.clone();
        let remove = move |world: &World| {
            if let Some(vm) = world.state().vms.remove(&of) {
                vm.connection.cancel();
            }
            Ok(())
        };
        self.change(Verb::Destroy, id, remove).await
    }
}
