//! The eight steps, in order. The first that fails ends the run.

use std::time::{Duration, SystemTime};

use hearth_api::agent::client::{AgentClient, AgentError};
use hearth_api::agent::{Detach, ExecEnd, ExecSpec};
use hearth_api::claim::ClaimedRepo;
use hearth_api::ids::{InstanceId, VmId};
use hearth_api::instance::{RepoSettings, StepName};
use hearth_api::pool::SetupCommand;
use hearth_core::state::FailureKind;
use hearth_core::world::Failure;
use hearth_drivers::{DriverError, VmSpec, VmState};
use serde_json::json;

use super::Context;
use super::agents::ConnectError;
use super::blueprint::Blueprint;
use super::envfile;
use super::recorder::{CommandFailure, Recorder};
use super::scripts::Phase;
use crate::store::StoreError;

/// A background command has this long to crash.
const BACKGROUND_GRACE: Duration = Duration::from_secs(1);
/// How long one try to reach the agent takes before the driver is asked whether the VM still runs.
const CONNECT_TRY: Duration = Duration::from_secs(5);
/// Time limit of Hearth's own small commands in a VM.
const HOUSEKEEPING_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of the console an error quotes when a VM dies while it boots, bytes.
const CONSOLE_QUOTE: u64 = 600;

/// One run.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The row.
    pub id: InstanceId,
    /// Its VM.
    pub vm: VmId,
    /// What to do.
    pub blueprint: Blueprint,
}

/// What a finished run leaves behind.
#[derive(Debug, Clone, Default)]
pub struct Provisioned {
    /// The checkouts.
    pub repos: Vec<ClaimedRepo>,
    /// What the repositories' settings files say.
    pub settings: Vec<RepoSettings>,
}

/// Why a step ended the run.
pub(super) enum Stop {
    Failure(Failure),
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) fn failure(kind: FailureKind, reason: impl Into<String>) -> Failure {
    Failure {
        kind,
        reason: reason.into(),
    }
}

/// Makes the VM ready, or says why not. Dropping the future ends what is running; the VM stays as it is.
pub async fn provision(context: &Context, boot: &Boot) -> Result<Provisioned, Failure> {
    Run { context, boot }.all().await.map_err(|stop| match stop {
        Stop::Failure(failure) => failure,
        Stop::Store(error) => failure(FailureKind::Host, error.to_string()),
    })
}

pub(super) struct Run<'a> {
    pub(super) context: &'a Context,
    pub(super) boot: &'a Boot,
}

impl Run<'_> {
    async fn all(&self) -> Result<Provisioned, Stop> {
        let blueprint = &self.boot.blueprint;
        self.create_vm().await?;
        let agent = self.ensure_server().await?;
        if !blueprint.variables.is_empty() {
            self.set_env_vars(&agent).await?;
        }
        let mut cloned = Vec::new();
        for checkout in &blueprint.checkouts {
            cloned.push((checkout, self.clone_repo(&agent, checkout).await?));
        }
        let mut settings = Vec::new();
        for (checkout, tip) in &cloned {
            settings.extend(self.init_repo(&agent, checkout, tip).await?);
        }
        self.run_setup(&agent, StepName::ProjectSetup, &blueprint.project_setup)
            .await?;
        self.run_scripts(&agent, Phase::Initialize).await?;
        self.run_setup(&agent, StepName::WarmPoolSetup, &blueprint.pool_setup)
            .await?;
        self.run_scripts(&agent, Phase::Startup).await?;
        self.prove_ready(&agent).await?;
        let repos = cloned
            .into_iter()
            .map(|(checkout, tip)| ClaimedRepo {
                repo_full_name: checkout.repo_full_name.clone(),
                branch: checkout.branch.clone(),
                commit: tip.commit,
                path: checkout.path.clone(),
            })
            .collect();
        Ok(Provisioned { repos, settings })
    }

    pub(super) fn begin(&self, name: StepName, subject: Option<&str>) -> Recorder<'_> {
        Recorder::begin(self.context, &self.boot.id, &self.boot.blueprint.masker, name, subject)
    }

    /// Writes the entry and passes the failure on, if it was one.
    pub(super) async fn end<T>(
        &self,
        recorder: Recorder<'_>,
        result: Result<T, Failure>,
        metadata: serde_json::Value,
    ) -> Result<T, Stop> {
        let masker = &self.boot.blueprint.masker;
        let result = result.map_err(|failure| Failure {
            reason: masker.mask(&failure.reason),
            ..failure
        });
        recorder
            .end(result.as_ref().err().map(|failure| failure.reason.as_str()), metadata)
            .await?;
        result.map_err(Stop::Failure)
    }

    async fn create_vm(&self) -> Result<(), Stop> {
        let Blueprint { shape, image, .. } = &self.boot.blueprint;
        let recorder = self.begin(StepName::CreateVm, None);
        let spec = VmSpec {
            id: self.boot.vm.clone(),
            image: image.clone(),
            shape: *shape,
            checkpointable: false,
        };
        let created = self.context.driver.create(&spec).await;
        let mut metadata = json!({
            "driver": self.context.driver.capabilities().name,
            "vcpus": shape.vcpus,
            "memoryMib": shape.memory_mib,
            "from": "image",
        });
        if let Ok(created) = &created {
            metadata["image"] = json!(created.image);
        }
        let result = created.map(drop).map_err(|error| match error {
            DriverError::Permanent { reason, .. } => failure(FailureKind::Image, reason),
            DriverError::Retry { reason, .. } | DriverError::Unknown { reason, .. } => {
                failure(FailureKind::Host, reason)
            }
        });
        self.end(recorder, result, metadata).await
    }

    async fn ensure_server(&self) -> Result<AgentClient, Stop> {
        let mut recorder = self.begin(StepName::EnsureServer, None);
        let result = self.reach_agent(&mut recorder).await;
        let version = result.as_ref().map(|(_, version)| version.clone()).unwrap_or_default();
        let metadata = if version.is_empty() {
            json!({})
        } else {
            json!({ "agentVersion": version })
        };
        self.end(recorder, result.map(|(agent, _)| agent), metadata).await
    }

    /// Waits for the agent, then until the guest has settled, and gives it its time and its name.
    async fn reach_agent(&self, recorder: &mut Recorder<'_>) -> Result<(AgentClient, String), Failure> {
        let deadline = tokio::time::Instant::now() + self.context.boot_timeout;
        let agent = loop {
            match self.context.agents.get(&self.boot.vm, CONNECT_TRY).await {
                Ok(agent) => break agent,
                Err(ConnectError::Driver(DriverError::Permanent { reason, .. })) => {
                    return Err(failure(FailureKind::VmLost, reason));
                }
                Err(error) => {
                    self.still_runs().await?;
                    if tokio::time::Instant::now() >= deadline {
                        let seconds = self.context.boot_timeout.as_secs();
                        let console = self.console().await;
                        let reason =
                            format!("the server inside the VM did not answer within {seconds} s: {error}{console}");
                        return Err(failure(FailureKind::Image, reason));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let lost = |error: AgentError| failure(FailureKind::VmLost, error.to_string());
        let health = agent.health().await.map_err(lost)?;
        agent.set_clock(SystemTime::now()).await.map_err(lost)?;
        let settle = ExecSpec {
            // Where systemd is, wait until the boot is over: whatever starts later would disturb the steps. A degraded
            // system (exit code 1) is still a system.
            shell: Some(
                "if [ -d /run/systemd/system ]; then systemctl is-system-running --wait >/dev/null || true; fi\n\
                 echo \"$HEARTH_NAME\" >/etc/hostname\n\
                 hostname \"$HEARTH_NAME\" 2>/dev/null || echo \"$HEARTH_NAME\" >/proc/sys/kernel/hostname\n\
                 grep -qs \"$HEARTH_NAME\" /etc/hosts || echo \"127.0.1.1 $HEARTH_NAME\" >>/etc/hosts"
                    .to_owned(),
            ),
            env: vec![("HEARTH_NAME".to_owned(), self.boot.vm.to_string())],
            timeout_ms: Some(millis(HOUSEKEEPING_TIMEOUT)),
            ..ExecSpec::default()
        };
        recorder
            .run(&agent, &settle)
            .await
            .map_err(|error| command_failure(FailureKind::Image, error))?;
        Ok((agent, health.version))
    }

    async fn still_runs(&self) -> Result<(), Failure> {
        match self.context.driver.inspect(&self.boot.vm).await {
            Ok(Some(VmState::Running | VmState::Paused)) | Err(_) => Ok(()),
            Ok(_) => {
                let console = self.console().await;
                Err(failure(
                    FailureKind::VmLost,
                    format!("the VM ended while it booted{console}"),
                ))
            }
        }
    }

    async fn console(&self) -> String {
        let tail = self
            .context
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

    async fn set_env_vars(&self, agent: &AgentClient) -> Result<(), Stop> {
        let recorder = self.begin(StepName::SetEnvVars, None);
        let variables = &self.boot.blueprint.variables;
        let written = agent
            .write_file(envfile::PATH, envfile::MODE, envfile::render(variables))
            .await;
        let result = written.map_err(|error| failure(FailureKind::VmLost, error.to_string()));
        self.end(recorder, result, json!({ "count": variables.len() })).await
    }

    /// A list of set-up commands, in order, from `/home`; no entry when the list is empty.
    async fn run_setup(&self, agent: &AgentClient, step: StepName, commands: &[SetupCommand]) -> Result<(), Stop> {
        if commands.is_empty() {
            return Ok(());
        }
        let mut recorder = self.begin(step, None);
        let mut entries = Vec::new();
        let mut result = Ok(());
        for command in commands {
            let background = command.background.unwrap_or_default();
            let mut spec = self.shell(&command.command, "/home");
            if background {
                spec.timeout_ms = None;
                spec.detach = Some(Detach {
                    log_path: format!("/var/log/hearth/{}.log", file_name(&command.name)),
                    grace_ms: millis(BACKGROUND_GRACE),
                });
            }
            let began = std::time::Instant::now();
            let ended = recorder.run(agent, &spec).await;
            entries.push(json!({
                "name": self.boot.blueprint.masker.mask(&command.name),
                "exitCode": exit_code(&ended),
                "durationMs": millis(began.elapsed()),
                "background": background,
            }));
            if let Err(error) = ended {
                result = Err(command_failure(FailureKind::Setup, error));
                break;
            }
        }
        self.end(recorder, result, json!({ "commands": entries })).await
    }

    /// Ready means: a command ran in this VM after everything else.
    async fn prove_ready(&self, agent: &AgentClient) -> Result<(), Stop> {
        let spec = ExecSpec {
            argv: Some(vec!["/bin/true".to_owned()]),
            timeout_ms: Some(millis(HOUSEKEEPING_TIMEOUT)),
            ..ExecSpec::default()
        };
        match agent.exec_collect(&spec, 0).await {
            Ok(output) if matches!(output.end, ExecEnd::Exited { code: Some(0), .. }) => Ok(()),
            Ok(_) => Err(Stop::Failure(failure(
                FailureKind::Setup,
                "after its set-up the VM cannot run /bin/true",
            ))),
            Err(error) => Err(Stop::Failure(failure(FailureKind::VmLost, error.to_string()))),
        }
    }

    /// A set-up command as CONTRACT.md wants it run.
    pub(super) fn shell(&self, command: &str, cwd: &str) -> ExecSpec {
        ExecSpec {
            shell: Some(command.to_owned()),
            cwd: Some(cwd.to_owned()),
            env_file: Some(envfile::PATH.to_owned()),
            timeout_ms: Some(millis(self.context.command_timeout)),
            ..ExecSpec::default()
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn command_failure(kind: FailureKind, error: CommandFailure) -> Failure {
    match error {
        CommandFailure::Command { sentence, .. } => failure(kind, sentence),
        CommandFailure::Lost(error) => failure(FailureKind::VmLost, error.to_string()),
    }
}

/// The exit code for the metadata: `null` while it runs, or when there is none.
fn exit_code(ended: &Result<ExecEnd, CommandFailure>) -> Option<i32> {
    match ended {
        Ok(ExecEnd::Exited { code, .. }) => *code,
        Ok(_) => None,
        Err(CommandFailure::Command { code, .. }) => *code,
        Err(CommandFailure::Lost(_)) => None,
    }
}

/// A command's name as a file name.
fn file_name(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let safe = safe.trim_start_matches('.');
    if safe.is_empty() {
        "command".to_owned()
    } else {
        safe.chars().take(100).collect()
    }
}
