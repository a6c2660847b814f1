//! Writes the entry of one step: what its commands printed goes live to clients and, when it ends, into the store.

use std::time::Instant;

use hearth_api::ids::InstanceId;
use hearth_api::instance::StepName;
use hearth_core::redact::{Bounded, Redacted, Redactor};
use hearth_core::redacted;
use hearth_core::stage_log::{StageLog, StepEntry};
use hearth_core::step_record::StepRecord;
use hearth_core::world::Failure;
use hearth_guest::client::{AgentClient, AgentError, ExecEvent, Upload};
use hearth_guest::{ExecEnd, ExecSpec};
use jiff::Timestamp;

use futures::StreamExt as _;
use hearth_core::time::millis;
use tracing::Instrument as _;

use super::Builder;
use super::advice::{Ended, advice};
use super::lost;
use super::output::CommandOutput;
use super::run::{Boot, vm_lost};
use crate::store::StoreError;
use crate::vms::lost::{Given, out_of_memory};

/// A step that is running.
pub struct Recorder<'a> {
    builder: &'a Builder,
    boot: &'a Boot,
    id: &'a InstanceId,
    redactor: &'a Redactor,
    name: StepName,
    subject: Option<String>,
    output: Bounded,
    /// What the latest command printed.
    command: Bounded,
    /// Which command failed, and how: the sentence for people.
    failure: Option<Redacted>,
    began: Instant,
    /// From its beginning to its end.
    span: tracing::Span,
}

/// How a command ended that did not end well.
#[derive(Debug)]
pub enum CommandFailure {
    /// It is the command's own fault.
    Command {
        /// One plain sentence.
        message: Redacted,
        /// Its exit code, if it had one.
        code: Option<i32>,
    },
    /// The whole boot ends: somebody wanted it to, or the VM or its agent is gone.
    Stopped(Failure),
}

impl<'a> Recorder<'a> {
    /// The step begins.
    pub fn begin(builder: &'a Builder, boot: &'a Boot, name: StepName, subject: Option<&str>) -> Self {
        builder.live_logs.started(&boot.id, name, subject);
        let span = tracing::info_span!("step", otel.name = name.as_str(), step = name.as_str());
        Self {
            span,
            builder,
            boot,
            id: &boot.id,
            redactor: &boot.plan.redactor,
            name,
            subject: subject.map(str::to_owned),
            output: Bounded::default(),
            command: Bounded::default(),
            failure: None,
            began: Instant::now(),
        }
    }

    /// Text that the step's output shows.
    pub fn print(&mut self, text: &str) {
        self.show(&self.redactor.redact(text));
    }

    /// Text of an earlier run's entry.
    pub fn replay(&mut self, text: &Redacted) {
        self.show(text);
    }

    /// From here on, what is printed belongs to the next command.
    pub fn next_command(&mut self) {
        self.command = Bounded::default();
    }

    /// What the command printed.
    #[must_use]
    pub fn of_command(&self) -> Redacted {
        self.command.text()
    }

    fn show(&mut self, text: &Redacted) {
        if !text.is_empty() {
            self.output.push(text);
            self.command.push(text);
            self.builder
                .live_logs
                .output(self.id, self.name, self.subject.as_deref(), text);
        }
    }

    /// Runs a command in the VM to its end; its output becomes part of the step's.
    pub async fn run(
        &mut self,
        agent: &AgentClient,
        spec: &ExecSpec,
        command: &Named<'_>,
    ) -> Result<ExecEnd, CommandFailure> {
        let redactor = self.redactor;
        let lost = |error| CommandFailure::Stopped(vm_lost(redactor, &error));
        let begins = command_name(spec, redactor);
        let name = match command {
            Named::Command(name) => redactor.redact(name),
            Named::Own(name) => Redacted::from(*name),
            Named::Imported(_, source) => redacted![redactor.redact(source), ": ", begins.clone()],
            Named::Hook(_) | Named::Script(..) | Named::Checkout(_) => begins.clone(),
        };
        let subject = self.subject.as_deref();
        let followers = &self.builder.live_logs;
        followers.command_started(self.id, self.name, subject, &name);
        let boot_id = agent
            .health()
            .instrument(self.span.clone())
            .await
            .map_err(lost)?
            .boot_id;
        let mut output = CommandOutput::new(redactor);
        let given = Given {
            at: tokio::time::Instant::now(),
            boot: Some(boot_id),
            text: spec.shell.clone().unwrap_or_default(),
        };
        let mut events = agent
            .exec(spec, Upload::empty())
            .instrument(self.span.clone())
            .await
            .map_err(lost)?;
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
                    return Err(self.lost(&name, &given, error).await);
                }
                None => {
                    return Err(lost(AgentError::Protocol("the command had no end".to_owned())));
                }
            }
        };
        self.show(&output.finish());
        match message(&end, spec, &output.last_error_lines(), redactor) {
            None => Ok(end),
            Some(message) => {
                let code = if let ExecEnd::Exited { code, .. } = end {
                    code
                } else {
                    None
                };
                let variables = match spec.env_file {
                    Some(_) => self.boot.plan.variables.as_slice(),
                    None => &[],
                };
                let advice = advice(&Ended {
                    end: &end,
                    command: spec.shell.as_deref().unwrap_or_default(),
                    last_lines: output.last_lines(),
                    variables,
                    redactor,
                });
                let named = command.failed(&name, &end, &message, redactor);
                self.failure = Some(with_advice(named, advice.as_ref()));
                let message = with_advice(message, advice.as_ref());
                Err(CommandFailure::Command { message, code })
            }
        }
    }

    /// Why a command did not come to its end.
    async fn lost(&self, name: &Redacted, given: &Given, error: AgentError) -> CommandFailure {
        if let AgentError::Overdue { limit } = error {
            let message = redacted![
                "timed out after ",
                limit.as_secs(),
                " s; the agent in the VM was to end the command, and has not confirmed that: the VM is very busy, or hangs",
            ];
            return CommandFailure::Command { message, code: None };
        }
        let failure = lost::explain(
            &self.builder.connections,
            &self.boot.vm,
            name,
            given,
            &error,
            self.redactor,
        )
        .await;
        CommandFailure::Stopped(failure)
    }

    /// The step ended: its entry is in the store when this returns. What a checkpoint keeps of it.
    pub async fn end(self, error: Option<Redacted>, metadata: serde_json::Value) -> Result<StageLog, StoreError> {
        let record = StepRecord {
            name: self.name,
            failure: self.failure.filter(|_| error.is_some()),
            error,
            output: self.output.text(),
            duration_ms: Some(millis(self.began.elapsed())),
            timestamp: Timestamp::now(),
            metadata: Some(metadata),
        };
        self.builder.store.append_step(self.id, &record).await?;
        self.builder
            .live_logs
            .step_ended(self.id, self.subject.as_deref(), &record);
        Ok(StageLog {
            step: record.name,
            output: record.output,
            duration_ms: record.duration_ms.unwrap_or_default(),
            metadata: record.metadata.unwrap_or_default(),
            is_command: false,
        })
    }
}

/// Writes the entry of a step that did not run this time, because the VM continues from after it.
pub async fn replay(builder: &Builder, id: &InstanceId, entry: &StepEntry<'_>) -> Result<(), StoreError> {
    let record = StepRecord {
        name: entry.step(),
        error: None,
        output: entry.output(),
        failure: None,
        duration_ms: Some(0),
        timestamp: Timestamp::now(),
        metadata: Some(entry.metadata()),
    };
    builder.store.append_step(id, &record).await?;
    builder.live_logs.step_ended(id, None, &record);
    Ok(())
}

/// What people call a command: its failure names it.
#[derive(Debug)]
pub enum Named<'a> {
    /// One of a list, by its name.
    Command(&'a str),
    /// One of a repository's own hooks.
    Hook(&'a str),
    /// What a file of a repository says that was not written for Hearth: the repository, and the place in the file.
    Imported(&'a str, &'a str),
    /// A script of the setup object, and its repository.
    Script(&'static str, &'a str),
    /// What git does in the VM for a repository.
    Checkout(&'a str),
    /// What Hearth itself does in the VM.
    Own(&'static str),
}

impl Named<'_> {
    /// How it ended, as a sentence that names it. `shown`: its name, or how its text begins.
    fn failed(&self, shown: &Redacted, end: &ExecEnd, message: &Redacted, redactor: &Redactor) -> Redacted {
        let what = match self {
            Self::Command(_) => redacted!["the command `", shown, "`"],
            Self::Hook(repo) => redacted!["the hook `", shown, "` of ", redactor.redact(repo)],
            Self::Imported(repo, source) => {
                redacted![redactor.redact(source), " in ", redactor.redact(repo)]
            }
            Self::Script(script, repo) => redacted!["the script ", *script, " of ", redactor.redact(repo)],
            Self::Checkout(repo) => redacted!["git in the VM, for ", redactor.redact(repo), ","],
            Self::Own(name) => Redacted::from(*name),
        };
        for begins in ["the command ", "the background command "] {
            if message.starts_with(begins) {
                return redacted![what, " ", message.part(|text| &text[begins.len()..])];
            }
        }
        let ended = match end {
            ExecEnd::Exited { code: None, .. } => " was ",
            ExecEnd::Exited { .. } => " ended with ",
            _ => " ",
        };
        redacted![what, ended, message]
    }
}

/// What to do stands on a line of its own, unless there is no line before it.
fn with_advice(message: Redacted, advice: Option<&Redacted>) -> Redacted {
    match advice {
        None => message,
        Some(advice) if message.contains(':') => redacted![message, "\n", advice],
        Some(advice) => redacted![message, ": ", advice],
    }
}

/// How a command begins: as much of its first line as tells it from others.
fn command_name(spec: &ExecSpec, redactor: &Redactor) -> Redacted {
    /// Characters of it.
    const SHOWN: usize = 60;
    let words = || spec.argv.as_ref().map(|argv| argv.join(" "));
    let text = redactor.redact(&spec.shell.clone().or_else(words).unwrap_or_default());
    let line = text.part(|text| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| !line.is_empty()).unwrap_or_default()
    });
    match line.char_indices().nth(SHOWN) {
        Some((cut, _)) => redacted![line.part(|line| &line[..cut]), "…"],
        None => line,
    }
}

/// What is wrong with the way a command ended; `None` when it ended well.
pub fn message(end: &ExecEnd, spec: &ExecSpec, last_error_lines: &Redacted, redactor: &Redactor) -> Option<Redacted> {
    let quote = if last_error_lines.is_empty() {
        Redacted::default()
    } else {
        redacted![": ", last_error_lines]
    };
    let quote = match end {
        ExecEnd::Exited {
            out_of_memory: Some(whom),
            ..
        } => redacted!["; ", redactor.redact(&out_of_memory(whom)), quote],
        _ => quote,
    };
    match end {
        ExecEnd::Exited { code: Some(0), .. } if spec.detach.is_some() => {
            Some("the background command ended at once (exit code 0) instead of running on".into())
        }
        ExecEnd::Exited { code: Some(0), .. } | ExecEnd::Detached { .. } => None,
        ExecEnd::Exited { code: Some(code), .. } => Some(redacted!["exit code ", *code, quote]),
        ExecEnd::Exited { code: None, signal, .. } => {
            let signal = signal.map_or_else(|| "?".into(), |signal| redacted![signal]);
            Some(redacted!["ended by signal ", signal, quote])
        }
        ExecEnd::TimedOut { .. } => Some(redacted![
            "timed out after ",
            spec.timeout_ms.unwrap_or_default() / 1000,
            " s; the command and every process it had started were ended",
            quote,
        ]),
        ExecEnd::NotStarted { reason, .. } => {
            Some(redacted!["the command could not be started: ", redactor.redact(reason)])
        }
    }
}
