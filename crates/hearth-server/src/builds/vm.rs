//! The VM of a run: made from the image or forked, reached, given an identity, checked, paused.

use std::time::{Duration, Instant, SystemTime};

use hearth_api::instance::{INTERRUPTED_KEY, StepName, interruption};
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_core::world::Failure;
use hearth_drivers::{CheckpointKey, DriverError, ForkPurpose, ForkSpec, ForkStart, VmShape, VmSpec, VmState};
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::{Activated, ExecEnd, ExecSpec};
use serde_json::json;

use super::plan::BuildPlan;
use super::run::{Run, Stop, command_failure, failure};
use super::step_log::{Named, Recorder};
use crate::secrets::git_config;
use crate::templates::gc::forget_checkpoint;
use crate::vms::connections::ConnectError;
use crate::vms::identity;

/// How long one try to reach the agent takes before the driver is asked whether the VM still runs.
const CONNECT_TRY: Duration = Duration::from_secs(5);
/// Time limit of Hearth's own small commands in a VM.
const HOUSEKEEPING_TIMEOUT: Duration = Duration::from_secs(120);
/// Writes what is not on the disk yet, then reads what most tasks run first. An image may be without some.
const BEFORE_FREEZE: &str = "sync; cd /bin && exec cat bash cat chmod cp env git grep head ln ls mkdir mv rm sed sh sleep tail true >/dev/null 2>&1";
/// Where systemd is, it waits until the boot is over. A degraded system (exit code 1) is still a system.
const AWAIT_SYSTEM: &str =
    "if [ -d /run/systemd/system ]; then systemctl is-system-running --wait >/dev/null || true; fi";
/// How much of the console an error quotes when a VM dies while it boots, bytes.
const CONSOLE_QUOTE: u64 = 600;
/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

impl Run<'_> {
    pub(super) fn driver_failure(&self, error: &DriverError) -> Failure {
        match error {
            DriverError::Permanent { reason, .. } => self.failure(FailureKind::Image, reason),
            DriverError::Retry { reason, .. } | DriverError::Unknown { reason, .. } => {
                self.failure(FailureKind::Host, reason)
            }
        }
    }

    /// A VM from the image, booted and idle: the steps `create_vm` and `ensure_server`.
    pub(super) async fn create(&self) -> Result<AgentClient, Stop> {
        self.create_vm().await?;
        self.ensure_server().await
    }

    /// A VM that continues from a checkpoint, with an identity of its own: the same steps. `None` when the checkpoint turned out to
    /// be damaged.
    pub(super) async fn fork(
        &self,
        from: &CheckpointKey,
        purpose: ForkPurpose,
        shape: Option<VmShape>,
        word: &str,
    ) -> Result<Option<AgentClient>, Stop> {
        let mut recorder = self.begin(StepName::CreateVm, None);
        self.say_interrupted(&mut recorder, word);
        let mut metadata = self.create_metadata(word);
        metadata["cached"] = json!(true);
        match self.fork_vm(from, purpose, shape).await {
            Ok(Some(image)) => metadata["image"] = json!(image),
            Ok(None) => return Ok(None),
            Err(failure) => {
                return self
                    .end_apart(recorder, Err(failure), metadata)
                    .await
                    .map(|(none, _)| none);
            }
        }
        self.end_apart(recorder, Ok(()), metadata).await?;
        let recorder = self.begin(StepName::EnsureServer, None);
        let reached = self.assign_identity().await;
        let agent = self.end_reached(recorder, reached, json!({ "cached": true })).await?;
        Ok(Some(agent))
    }

    /// The same without entries: the VM of a finished build becomes the instance.
    pub(super) async fn fork_again(&self, from: &CheckpointKey) -> Result<Option<AgentClient>, Stop> {
        let shape = Some(self.boot.plan.shape);
        if self.fork_vm(from, ForkPurpose::Instance, shape).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(self.assign_identity().await?.0))
    }

    /// Full digest of the image below; `None` when the checkpoint is damaged: then it is forgotten.
    async fn fork_vm(
        &self,
        from: &CheckpointKey,
        purpose: ForkPurpose,
        shape: Option<VmShape>,
    ) -> Result<Option<String>, Failure> {
        let spec = ForkSpec {
            id: self.boot.vm.clone(),
            from: from.clone(),
            purpose,
            shape,
            start: ForkStart::Running,
        };
        match self.builder.driver.fork(&spec).await {
            Ok(created) => Ok(Some(created.image)),
            Err(error) if error.checkpoint_fault().is_some() => {
                let (store, driver) = (&self.builder.store, &*self.builder.driver);
                let forgotten = forget_checkpoint(store, driver, from, &error.to_string()).await;
                forgotten.map_err(|error| self.failure(FailureKind::Host, &error.to_string()))?;
                Ok(None)
            }
            Err(error) => Err(self.driver_failure(&error)),
        }
    }

    /// Reaches the agent of a fork and gives the VM an identity of its own.
    async fn assign_identity(&self) -> Result<(AgentClient, String), Failure> {
        let begin = Instant::now();
        let agent = self.connect().await?;
        let connected = begin.elapsed();
        let activated = match self.activate(&agent).await {
            Ok(activated) => activated,
            Err(failure) => {
                // It may still have part of its sibling's identity: it must not be handed out.
                if let Err(error) = self.builder.driver.destroy(&self.boot.vm).await {
                    tracing::warn!(%error, vm = %self.boot.vm, "a fork without an identity could not be destroyed yet");
                }
                self.builder.connections.forget(&self.boot.vm);
                return Err(failure);
            }
        };
        tracing::debug!(
            vm = %self.boot.vm,
            connect_ms = millis(connected),
            activate_ms = millis(begin.elapsed() - connected),
            in_the_vm_ms = activated.duration_ms,
            "a fork has an identity of its own"
        );
        self.boot_fork(&agent).await?;
        let version = match activated.agent_version {
            Some(version) => version,
            // An older agent says it when it is asked.
            None => agent.health().await.map_err(|error| self.vm_lost(&error))?.version,
        };
        Ok((agent, version))
    }

    /// What a fork lacks that has a disk and no memory: it boots, and what the set-up had left running runs again.
    async fn boot_fork(&self, agent: &AgentClient) -> Result<(), Failure> {
        if self.builder.driver.capabilities().memory_checkpoints {
            return Ok(());
        }
        let spec = ExecSpec {
            shell: Some(AWAIT_SYSTEM.to_owned()),
            timeout_ms: Some(millis(HOUSEKEEPING_TIMEOUT)),
            ..ExecSpec::default()
        };
        let booted = agent.exec_collect(&spec, 0).await;
        booted.map_err(|error| self.vm_lost(&error))?;
        self.start_background_again(agent).await
    }

    /// Gives the VM an identity of its own.
    pub(super) async fn activate(&self, agent: &AgentClient) -> Result<Activated, Failure> {
        let (connections, keys) = (&self.builder.connections, &self.builder.host_keys);
        let assigned = identity::assign(connections, keys, &self.boot.vm, agent).await;
        assigned.map_err(|error| self.failure(FailureKind::Identity, &error.to_string()))
    }

    fn create_metadata(&self, from: &str) -> serde_json::Value {
        let shape = self.boot.plan.shape;
        let mut metadata = json!({
            "driver": self.builder.driver.capabilities().name,
            "vcpus": shape.vcpus,
            "memoryMib": shape.memory_mib,
            "from": from,
        });
        if let Some(at) = self.boot.interrupted_at {
            metadata[INTERRUPTED_KEY] = json!(hearth_api::time::format(at));
        }
        metadata
    }

    /// The record says that a restart of the server interrupted the boot, and where it continues.
    fn say_interrupted(&self, recorder: &mut Recorder<'_>, from: &str) {
        let Some(at) = self.boot.interrupted_at else { return };
        recorder.print(&format!("{}\n", interruption(from, at)));
    }

    async fn create_vm(&self) -> Result<(), Stop> {
        let BuildPlan { shape, image, .. } = &self.boot.plan;
        let mut recorder = self.begin(StepName::CreateVm, None);
        self.say_interrupted(&mut recorder, "image");
        let spec = VmSpec {
            id: self.boot.vm.clone(),
            image: image.clone(),
            shape: *shape,
            checkpointable: self.boot.purpose.uses_cache() && self.builder.driver.capabilities().disk_checkpoints,
        };
        let created = self.builder.driver.create(&spec).await;
        let mut metadata = self.create_metadata("image");
        if let Ok(created) = &created {
            metadata["image"] = json!(created.image);
        }
        let result = created.map(drop).map_err(|error| self.driver_failure(&error));
        self.end_apart(recorder, result, metadata).await.map(drop)
    }

    async fn ensure_server(&self) -> Result<AgentClient, Stop> {
        let mut recorder = self.begin(StepName::EnsureServer, None);
        let result = self.await_system(&mut recorder).await;
        self.end_reached(recorder, result, json!({})).await
    }

    /// Ends the step `ensure_server`, with the version of what answers.
    async fn end_reached(
        &self,
        recorder: Recorder<'_>,
        reached: Result<(AgentClient, String), Failure>,
        mut metadata: serde_json::Value,
    ) -> Result<AgentClient, Stop> {
        if let Ok((_, version)) = &reached {
            metadata["agentVersion"] = json!(self.redactor().redact(version));
        }
        let (agent, _) = self
            .end_apart(recorder, reached.map(|(agent, _)| agent), metadata)
            .await?;
        Ok(agent)
    }

    /// Waits for the agent, then until the guest is idle, and sets its time and its name.
    async fn await_system(&self, recorder: &mut Recorder<'_>) -> Result<(AgentClient, String), Failure> {
        let (agent, version) = self.reach().await?;
        let set = agent.set_clock(SystemTime::now()).await;
        set.map_err(|error| self.vm_lost(&error))?;
        let await_system = ExecSpec {
            // Whatever starts later would disturb the steps.
            shell: Some(format!(
                "{AWAIT_SYSTEM}\n\
                 command -v udevadm >/dev/null && udevadm settle && udevadm control --reload || true\n\
                 echo \"$HEARTH_NAME\" >/etc/hostname\n\
                 hostname \"$HEARTH_NAME\" 2>/dev/null || echo \"$HEARTH_NAME\" >/proc/sys/kernel/hostname\n\
                 grep -qs \"$HEARTH_NAME\" /etc/hosts || echo \"127.0.1.1 $HEARTH_NAME\" >>/etc/hosts\n\
                 {}",
                git_config::INCLUDE
            )),
            env: vec![("HEARTH_NAME".to_owned(), self.boot.vm.to_string())],
            timeout_ms: Some(millis(HOUSEKEEPING_TIMEOUT)),
            ..ExecSpec::default()
        };
        recorder
            .run(&agent, &await_system, &Named::Own("the boot of the guest's system"))
            .await
            .map_err(|error| command_failure(FailureKind::Image, error))?;
        let identity = git_config::render(&git_config::placeholder());
        let written = agent.write_file(git_config::PATH, git_config::MODE, identity).await;
        written.map_err(|error| self.vm_lost(&error))?;
        Ok((agent, version))
    }

    /// The agent and its version.
    async fn reach(&self) -> Result<(AgentClient, String), Failure> {
        let agent = self.connect().await?;
        let health = agent.health().await.map_err(|error| self.vm_lost(&error))?;
        self.builder.connections.note_boot(&self.boot.vm, &health.boot_id).await;
        Ok((agent, health.version))
    }

    async fn connect(&self) -> Result<AgentClient, Failure> {
        let deadline = tokio::time::Instant::now() + self.builder.timeouts.boot;
        loop {
            match self.builder.connections.get(&self.boot.vm, CONNECT_TRY).await {
                Ok(agent) => return Ok(agent),
                Err(ConnectError::Driver(DriverError::Permanent { reason, .. })) => {
                    return Err(self.failure(FailureKind::VmLost, &reason));
                }
                Err(error) => {
                    self.still_runs().await?;
                    if tokio::time::Instant::now() >= deadline {
                        let seconds = self.builder.timeouts.boot.as_secs();
                        let console = self.console().await;
                        let reason =
                            format!("the server inside the VM did not answer within {seconds} s: {error}{console}");
                        return Err(self.failure(FailureKind::Image, &reason));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn still_runs(&self) -> Result<(), Failure> {
        match self.builder.driver.inspect(&self.boot.vm).await {
            Ok(Some(VmState::Running | VmState::Paused)) | Err(_) => Ok(()),
            Ok(Some(VmState::Halted)) => {
                let why = self.builder.driver.why_silent(&self.boot.vm).await;
                let why = why.ok().flatten().unwrap_or_default();
                let reason = format!("the VM was stopped while it booted: {why}");
                Err(self.failure(FailureKind::VmLost, &reason))
            }
            Ok(_) => {
                let console = self.console().await;
                let reason = format!("the VM ended while it booted{console}");
                Err(self.failure(FailureKind::VmLost, &reason))
            }
        }
    }

    async fn console(&self) -> String {
        let tail = self
            .builder
            .driver
            .console(&self.boot.vm, CONSOLE_QUOTE)
            .await
            .unwrap_or_default();
        let tail = String::from_utf8_lossy(&tail);
        let tail = tail.trim();
        if tail.is_empty() {
            String::new()
        } else {
            format!("; its console ends with: {tail}")
        }
    }

    /// Ready means: a command ran in this VM after everything else. In one that will be paused a shell starts it, as most tasks do with
    /// theirs: under emulation that code is translated before the claim, and nothing else, because all of it takes memory.
    pub(super) async fn check_ready(&self, agent: &AgentClient) -> Result<(), Stop> {
        let begin = Instant::now();
        let warm = ["bash", "-c", "exec /bin/true"];
        // An image may be without bash.
        let is_ready = self.boot.pauses() && self.runs(agent, &warm).await.map_err(|error| self.vm_lost(&error))?
            || self
                .runs(agent, &["/bin/true"])
                .await
                .map_err(|error| self.vm_lost(&error))?;
        tracing::debug!(vm = %self.boot.vm, prove_ms = millis(begin.elapsed()), "a command ran");
        if is_ready {
            return Ok(());
        }
        let reason = "after its set-up the VM cannot run /bin/true";
        Err(failure(FailureKind::Setup, reason).into())
    }

    /// Does once what a claim does in the VM, with what the VM holds already: under emulation code is translated when it first runs,
    /// and a page becomes the VM's own when it is first written, which then need not happen while a task waits.
    pub(super) async fn rehearse_hand_over(&self, agent: &AgentClient) -> Result<(), Stop> {
        let identity = &self.boot.plan.git_identity;
        let committer = identity.as_ref().map_or_else(git_config::placeholder, Into::into);
        let rehearsed = agent.hand_over(vec![git_config::file(&committer)]).await;
        rehearsed.map_err(|error| self.vm_lost(&error))?;
        Ok(())
    }

    /// Whether a command runs, and ends well.
    async fn runs(&self, agent: &AgentClient, argv: &[&str]) -> Result<bool, AgentError> {
        let spec = ExecSpec {
            argv: Some(argv.iter().map(|word| (*word).to_owned()).collect()),
            timeout_ms: Some(millis(HOUSEKEEPING_TIMEOUT)),
            ..ExecSpec::default()
        };
        let output = agent.exec_collect(&spec, 0).await?;
        Ok(matches!(output.end, ExecEnd::Exited { code: Some(0), .. }))
    }

    /// Before the VM is frozen: what is not on the disk yet would be written again by every fork, what tasks usually run would be read
    /// by each into memory of its own, and what the agent has prepared they all have. A guest that cannot do it is frozen as it is.
    pub(super) async fn prepare_to_freeze(&self, agent: &AgentClient) {
        if let Err(error) = self.runs(agent, &["sh", "-c", BEFORE_FREEZE]).await {
            tracing::debug!(%error, "the guest does not write everything to its disk, or read what tasks usually run");
        }
        match tokio::time::timeout(HOUSEKEEPING_TIMEOUT, agent.quiesce()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the agent does not quiesce"),
            Err(_) => tracing::debug!("the agent does not quiesce in time"),
        }
    }

    /// Pauses the VM until it is claimed; gives the memory that it takes then, MiB.
    pub(super) async fn pause(&self) -> Result<Option<u64>, Stop> {
        let driver = &self.builder.driver;
        if !driver.capabilities().pause {
            return Ok(None);
        }
        let paused = driver.pause(&self.boot.vm).await;
        paused.map_err(|error| self.driver_failure(&error))?;
        // Only a figure: without it the VM counts with its whole size.
        let usage = driver.usage(&self.boot.vm).await.ok();
        Ok(usage.map(|usage| usage.private_bytes.div_ceil(MIB)))
    }
}
