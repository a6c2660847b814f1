//! Writes the entry of one step: what its commands printed goes live to clients and, when it ends, into the store.

use std::time::Instant;

use hearth_api::ids::InstanceId;
use hearth_api::instance::{FAILURE_KEY, Step, StepName, StepStatus};
use hearth_core::stage_log::{StageLog, StepEntry};
use hearth_core::world::Failure;
use hearth_guest::client::{AgentClient, AgentError, ExecEvent, Upload};
use hearth_guest::{ExecEnd, ExecSpec};
use jiff::Timestamp;

use futures::StreamExt as _;
use hearth_core::time::millis;

use super::Builder;
use super::advice::{Ended, advice};
use super::lost;
use super::output::{Capped, CommandOutput};
use crate::builds::run::Boot;
use crate::secrets::mask::Masker;
use crate::store::StoreError;
use crate::vms::lost::Given;

/// A step that is running.
pub struct Recorder<'a> {
    builder: &'a Builder,
    boot: &'a Boot,
    id: &'a InstanceId,
    masker: &'a Masker,
    name: StepName,
    subject: Option<String>,
    output: Capped,
    /// What the latest command printed.
    command: Capped,
    /// Which command failed, and how: the sentence for people.
    failure: Option<String>,
    began: Instant,
}

/// How a command ended that did not end well.
#[derive(Debug)]
pub enum CommandFailure {
    /// It is the command's own fault.
    Command {
        /// One plain sentence.
        sentence: String,
        /// Its exit code, if it had one.
        code: Option<i32>,
    },
    /// The VM or its agent is gone.
    Lost(AgentError),
    /// The whole boot ends: a person asked for it, or the VM is gone.
    Stopped(Failure),
}

impl<'a> Recorder<'a> {
    /// The step begins.
    pub fn begin(builder: &'a Builder, boot: &'a Boot, name: StepName, subject: Option<&str>) -> Self {
        builder.live_logs.started(&boot.id, name.as_str(), subject);
        Self {
            builder,
            boot,
            id: &boot.id,
            masker: &boot.blueprint.masker,
            name,
            subject: subject.map(str::to_owned),
            output: Capped::default(),
            command: Capped::default(),
            failure: None,
            began: Instant::now(),
        }
    }

    /// Text that the step's output shows: already free of secrets, or made so here.
    pub fn print(&mut self, text: &str) {
        self.show(&self.masker.mask(text));
    }

    /// Text of an earlier run's entry: it was masked then.
    pub fn replay(&mut self, text: &str) {
        self.show(text);
    }

    /// From here on, what is printed belongs to the next command.
    pub fn next_command(&mut self) {
        self.command = Capped::default();
    }

    /// What the command printed.
    #[must_use]
    pub fn of_command(&self) -> String {
        self.command.text()
    }

    fn show(&mut self, text: &str) {
        if !text.is_empty() {
            self.output.push(text);
            self.command.push(text);
            self.builder
                .live_logs
                .output(self.id, self.name.as_str(), self.subject.as_deref(), text);
        }
    }

    /// Runs a command in the VM to its end; its output becomes part of the step's.
    pub async fn run(
        &mut self,
        agent: &AgentClient,
        spec: &ExecSpec,
        command: &Named<'_>,
    ) -> Result<ExecEnd, CommandFailure> {
        let begins = command_name(spec);
        let name = match command {
            Named::Command(name) | Named::Own(name) => name,
            Named::Hook(_) | Named::Script(..) | Named::Checkout(_) => begins.as_str(),
        };
        let subject = self.subject.as_deref();
        let followers = &self.builder.live_logs;
        followers.command_started(self.id, self.name.as_str(), subject, &self.masker.mask(name));
        let boot_id = agent.health().await.map_err(CommandFailure::Lost)?.boot_id;
        let mut output = CommandOutput::new(self.masker);
        let given = Given {
            at: tokio::time::Instant::now(),
            boot: Some(boot_id),
            text: spec.shell.clone().unwrap_or_default(),
        };
        let mut events = agent.exec(spec, Upload::empty()).await.map_err(CommandFailure::Lost)?;
        let end = loop {
            let event = tokio::select! {
                event = events.next() => event,
                failure = self.boot.end.asked() => {
                    self.show(&output.finish());
                    return Err(CommandFailure::Stopped(failure));
                }
            };
            match event {
                Some(Ok(ExecEvent::Stdout(bytes))) => self.show(&output.stdout(&bytes)),
                Some(Ok(ExecEvent::Stderr(bytes))) => self.show(&output.stderr(&bytes)),
                Some(Ok(ExecEvent::End(end))) => break end,
                Some(Err(error)) => {
                    self.show(&output.finish());
                    return Err(self.lost(name, &given, error).await);
                }
                None => {
                    return Err(CommandFailure::Lost(AgentError::Protocol(
                        "the command had no end".to_owned(),
                    )));
                }
            }
        };
        self.show(&output.finish());
        match sentence(&end, spec, &output.last_error_lines()) {
            None => Ok(end),
            Some(sentence) => {
                let code = if let ExecEnd::Exited { code, .. } = end {
                    code
                } else {
                    None
                };
                let variables = match spec.env_file {
                    Some(_) => self.boot.blueprint.variables.as_slice(),
                    None => &[],
                };
                let advice = advice(&Ended {
                    end: &end,
                    command: spec.shell.as_deref().unwrap_or_default(),
                    last_lines: output.last_lines(),
                    variables,
                });
                let named = self.masker.mask(&command.failed(&begins, &end, &sentence));
                self.failure = Some(with_advice(named, advice.clone()));
                let sentence = with_advice(self.masker.mask(&sentence), advice);
                Err(CommandFailure::Command { sentence, code })
            }
        }
    }

    /// Why a command did not come to its end.
    async fn lost(&self, name: &str, given: &Given, error: AgentError) -> CommandFailure {
        if let AgentError::Overdue { limit } = error {
            let sentence = format!(
                "timed out after {} s; the agent in the VM was to end the command, and has not confirmed that: the VM is very busy, or \
                 hangs",
                limit.as_secs()
            );
            return CommandFailure::Command { sentence, code: None };
        }
        let failure = lost::explain(&self.builder.connections, &self.boot.vm, name, given, error).await;
        CommandFailure::Stopped(failure)
    }

    /// The step ended: its entry is in the store when this returns. What a checkpoint keeps of it.
    pub async fn end(self, error: Option<&str>, mut metadata: serde_json::Value) -> Result<StageLog, StoreError> {
        if let (Some(_), Some(failure)) = (error, self.failure) {
            metadata[FAILURE_KEY] = failure.into();
        }
        let step = Step {
            name: self.name.as_str().to_owned(),
            status: if error.is_some() {
                StepStatus::Error
            } else {
                StepStatus::Success
            },
            error: error.map(|error| self.masker.mask(error)),
            output: (!self.output.is_empty()).then(|| self.output.text()),
            duration_ms: Some(millis(self.began.elapsed())),
            timestamp: Timestamp::now(),
            metadata: Some(metadata),
        };
        self.builder.store.append_step(self.id, &step).await?;
        self.builder
            .live_logs
            .step_ended(self.id, self.subject.as_deref(), &step);
        Ok(StageLog {
            step: self.name,
            output: step.output.unwrap_or_default(),
            duration_ms: step.duration_ms.unwrap_or_default(),
            metadata: step.metadata.unwrap_or_default(),
            is_command: false,
        })
    }
}

/// Writes the entry of a step that did not run this time, because the VM continues from after it.
pub async fn replay(builder: &Builder, id: &InstanceId, entry: &StepEntry<'_>) -> Result<(), StoreError> {
    let output = entry.output();
    let step = Step {
        name: entry.step().as_str().to_owned(),
        status: StepStatus::Success,
        error: None,
        output: (!output.is_empty()).then_some(output),
        duration_ms: Some(0),
        timestamp: Timestamp::now(),
        metadata: Some(entry.metadata()),
    };
    builder.store.append_step(id, &step).await?;
    builder.live_logs.step_ended(id, None, &step);
    Ok(())
}

/// What people call a command: its failure names it.
#[derive(Debug)]
pub enum Named<'a> {
    /// One of a list, by its name.
    Command(&'a str),
    /// One of a repository's own hooks.
    Hook(&'a str),
    /// A script of the setup object, and its repository.
    Script(&'static str, &'a str),
    /// What git does in the VM for a repository.
    Checkout(&'a str),
    /// What Hearth itself does in the VM.
    Own(&'a str),
}

impl Named<'_> {
    /// How it ended, as a sentence that names it. `begins` is the beginning of its text.
    fn failed(&self, begins: &str, end: &ExecEnd, sentence: &str) -> String {
        let what = match self {
            Self::Command(name) => format!("the command `{name}`"),
            Self::Hook(repo) => format!("the hook `{begins}` of {repo}"),
            Self::Script(script, repo) => format!("the script {script} of {repo}"),
            Self::Checkout(repo) => format!("git in the VM, for {repo},"),
            Self::Own(name) => (*name).to_owned(),
        };
        let own = |begins| sentence.strip_prefix(begins).map(|rest| format!("{what} {rest}"));
        let named = own("the command ").or_else(|| own("the background command "));
        named.unwrap_or_else(|| match end {
            ExecEnd::Exited { code: None, .. } => format!("{what} was {sentence}"),
            ExecEnd::Exited { .. } => format!("{what} ended with {sentence}"),
            _ => format!("{what} {sentence}"),
        })
    }
}

/// What to do stands on a line of its own, unless there is no line before it.
fn with_advice(sentence: String, advice: Option<String>) -> String {
    match advice {
        None => sentence,
        Some(advice) if sentence.contains(':') => format!("{sentence}\n{advice}"),
        Some(advice) => format!("{sentence}: {advice}"),
    }
}

/// How a command begins: as much of its first line as tells it from others.
fn command_name(spec: &ExecSpec) -> String {
    /// Characters of it.
    const SHOWN: usize = 60;
    let words = || spec.argv.as_ref().map(|argv| argv.join(" "));
    let text = spec.shell.clone().or_else(words).unwrap_or_default();
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line.to_owned(),
    }
}

/// What is wrong with the way a command ended; `None` when it ended well.
pub fn sentence(end: &ExecEnd, spec: &ExecSpec, last_error_lines: &str) -> Option<String> {
    let quote = if last_error_lines.is_empty() {
        String::new()
    } else {
        format!(": {last_error_lines}")
    };
    match end {
        ExecEnd::Exited { code: Some(0), .. } if spec.detach.is_some() => {
            Some("the background command ended at once (exit code 0) instead of going on".to_owned())
        }
        ExecEnd::Exited { code: Some(0), .. } | ExecEnd::Detached { .. } => None,
        ExecEnd::Exited { code: Some(code), .. } => Some(format!("exit code {code}{quote}")),
        ExecEnd::Exited { code: None, signal, .. } => Some(format!(
            "ended by signal {}{quote}",
            signal.map_or("?".to_owned(), |signal| signal.to_string())
        )),
        ExecEnd::TimedOut { .. } => {
            let seconds = spec.timeout_ms.unwrap_or_default() / 1000;
            Some(format!(
                "timed out after {seconds} s; the command and every process it had started were ended{quote}"
            ))
        }
        ExecEnd::NotStarted { reason, .. } => Some(format!("the command could not be started: {reason}")),
    }
}
