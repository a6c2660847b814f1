//! Lists of set-up commands: one entry for the list, a checkpoint after each command.

use std::time::{Duration, Instant};

use hearth_api::instance::StepName;
use hearth_api::pool::SetupCommand;
use hearth_core::stage_log::StageLog;
use hearth_core::stages::Stage;
use hearth_core::state::FailureKind;
use hearth_core::time::millis;
use hearth_guest::client::AgentClient;
use hearth_guest::{Detach, ExecEnd};
use serde_json::json;

use super::checkpoints::Freezer;
use super::run::{Run, Stop, command_failure};
use super::step_log::{CommandFailure, Named};

/// A background command has this long to crash.
const BACKGROUND_GRACE: Duration = Duration::from_secs(1);

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
            let mut spec = self.shell(&command.command, "/home");
            if background {
                spec.timeout_ms = None;
                spec.detach = Some(Detach {
                    log_path: format!("/var/log/hearth/{}.log", file_name(&command.name)),
                    grace_ms: millis(BACKGROUND_GRACE),
                });
            }
            recorder.next_command();
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
            self.freeze(agent, &stages[at..], freezer).await?;
        }
        self.end_apart(recorder, result, json!({ "commands": lines })).await?;
        Ok(left.len())
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
