//! Lists of set-up commands: one entry for the list, a checkpoint after each command.

use std::time::{Duration, Instant};

use hearth_api::instance::StepName;
use hearth_api::pool::SetupCommand;
use hearth_core::stage_log::StageLog;
use hearth_core::stages::Stage;
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_core::world::Failure;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::{Detach, ExecEnd, ExecSpec};
use serde_json::json;

use super::checkpoints::Freezer;
use super::run::{Run, Stop, command_failure};
use super::step_log::{CommandFailure, Named};

/// A background command has this long to crash.
const BACKGROUND_GRACE: Duration = Duration::from_secs(1);
/// In the VM: the commands that were started in the background, where forks have no memory.
const BACKGROUND_FILE: &str = "/var/lib/hearth/background.json";
/// For root in the VM alone: commands are the project's.
const OWNER_ALONE: u32 = 0o600;
/// The most that is read of it.
const BACKGROUND_BYTES: usize = 1 << 20;

impl Run<'_> {
    /// The commands of a step from the one at `from` on, in `/home`; how many there were. `begun` are those before them, which
    /// ran before the VM was frozen. `stages` begins with those of these commands and goes to the end of the chain.
    pub(super) async fn run_commands(
        &self,
        agent: &AgentClient,
        (step, commands, from): (StepName, &[SetupCommand], usize),
        stages: &[Stage],
        begun: Vec<StageLog>,
        freezer: &mut Option<Freezer>,
    ) -> Result<usize, Stop> {
        let mut recorder = self.begin(step, None);
        let mut lines: Vec<_> = begun.iter().map(StageLog::cached_command).collect();
        for log in &begun {
            recorder.replay(&log.output);
        }
        let mut result = Ok(());
        let left = commands.get(from..).unwrap_or_default();
        for (at, command) in left.iter().enumerate() {
            let background = command.background.unwrap_or_default();
            let spec = match background {
                true => self.background(command),
                false => ExecSpec {
                    timeout_ms: command.limit(self.builder.timeouts.command).map(millis),
                    ..self.shell(&command.command, "/home")
                },
            };
            recorder.next_command();
            // A command that does not end well says itself why.
            self.last.lock().await.take();
            let began = Instant::now();
            let ended = recorder.run(agent, &spec, &Named::Command(&command.name)).await;
            let duration_ms = millis(began.elapsed());
            let line = json!({
                "name": self.redactor().redact(&command.name),
                "exitCode": exit_code(&ended),
                "durationMs": duration_ms,
                "background": background,
            });
            lines.push(line.clone());
            if let Err(error) = ended {
                result = Err(command_failure(FailureKind::Setup, error));
                break;
            }
            self.keep(StageLog {
                step,
                output: recorder.of_command(),
                duration_ms,
                metadata: line,
                is_command: true,
            });
            let kept = async {
                if background {
                    self.note_background(agent, command).await?;
                }
                self.freeze(agent, &stages[at..], freezer).await
            };
            self.note_last(&command.name, &command.command, began).await;
            if let Err(stop) = kept.await {
                // It has told the guest to restart or to go off, and has ended before that.
                result = Err(self.what_it_did(&stop).await.ok_or(stop)?);
                break;
            }
        }
        self.end_apart(recorder, result, json!({ "commands": lines })).await?;
        Ok(left.len())
    }

    /// How a command in the background is started.
    fn background(&self, command: &SetupCommand) -> ExecSpec {
        ExecSpec {
            timeout_ms: None,
            detach: Some(Detach {
                log_path: format!("/var/log/hearth/{}.log", file_name(&command.name)),
                grace_ms: millis(BACKGROUND_GRACE),
            }),
            ..self.shell(&command.command, "/home")
        }
    }

    /// Where a fork has a disk and no memory, the VM itself keeps what runs in the background: whatever a fork is made of knows what to
    /// start again.
    async fn note_background(&self, agent: &AgentClient, command: &SetupCommand) -> Result<(), Failure> {
        if self.builder.driver.capabilities().memory_checkpoints {
            return Ok(());
        }
        let mut all = self.noted_background(agent).await?;
        all.push(command.clone());
        let text = serde_json::to_vec(&all).map_err(|error| self.failure(FailureKind::Host, &error.to_string()))?;
        let written = agent.write_file(BACKGROUND_FILE, OWNER_ALONE, text).await;
        written.map_err(|error| self.vm_lost(&error))
    }

    /// What ran in the background when the VM was frozen, in the order of its start.
    async fn noted_background(&self, agent: &AgentClient) -> Result<Vec<SetupCommand>, Failure> {
        let file = match agent.read_file(BACKGROUND_FILE).await {
            Ok(file) => file,
            Err(AgentError::Refused { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(self.vm_lost(&error)),
        };
        let text = file.collect(BACKGROUND_BYTES).await;
        let text = text.map_err(|error| self.vm_lost(&error))?;
        // A set-up may have written there: then it has started nothing that we know of.
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Starts again what ran in the background when the VM was frozen. One that ends at once fails the run, as in the set-up.
    pub(super) async fn start_background_again(&self, agent: &AgentClient) -> Result<(), Failure> {
        for command in self.noted_background(agent).await? {
            let output = agent.exec_collect(&self.background(&command), BACKGROUND_BYTES).await;
            let output = output.map_err(|error| self.vm_lost(&error))?;
            if let ExecEnd::Exited { code, .. } = output.end {
                let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
                let text = format!(
                    "the background command `{}` ended at once ({code}) when it was started again in a copy of the prepared VM",
                    command.name
                );
                return Err(self.failure(FailureKind::Setup, &text));
            }
        }
        Ok(())
    }
}

/// The exit code for the metadata: `null` while it runs, or when there is none.
fn exit_code(ended: &Result<ExecEnd, CommandFailure>) -> Option<i32> {
    match ended {
        Ok(ExecEnd::Exited { code, .. }) => *code,
        Ok(_) => None,
        Err(CommandFailure::Command { code, .. }) => *code,
        Err(CommandFailure::Stopped(_)) => None,
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
