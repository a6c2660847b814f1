//! Live boots: what is happening in a provisioning run right now, for the clients that follow it. A cache: the record is in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use std::time::{Duration, Instant};

use hearth_api::ids::InstanceId;
use hearth_api::instance::{FollowEvent, InstanceStatus, Step, StepName};
use hearth_core::redact::Redacted;
use hearth_core::step_record::StepRecord;
use hearth_core::time::millis;
use tokio::sync::broadcast;

/// Events a slow client may lag behind before it loses some.
const CHANNEL_EVENTS: usize = 1024;
/// Output of the running step that a client still sees that comes late, bytes.
const BACKLOG_BYTES: usize = 64 * 1024;

/// All boots under way.
#[derive(Debug, Clone, Default)]
pub struct LiveLogs(Arc<Mutex<HashMap<InstanceId, Boot>>>);

#[derive(Debug)]
struct Boot {
    ended: Vec<Step>,
    /// Usually one; scripts of several repositories run at the same time.
    running: Vec<Running>,
    events: broadcast::Sender<FollowEvent>,
}

/// A step under way.
#[derive(Debug)]
struct Running {
    name: StepName,
    subject: Option<String>,
    output: Redacted,
    began: Instant,
    /// The command that runs, and since when.
    command: Option<(Redacted, Instant)>,
    /// When it last printed something.
    printed: Option<Instant>,
}

/// What runs right now in a boot.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The step.
    pub step: StepName,
    /// What it works on.
    pub subject: Option<String>,
    /// Its command that runs, if it has one.
    pub command: Option<Redacted>,
    /// How long that has run, or the step.
    pub ran: Duration,
    /// Since it last printed something; `None` when it has not.
    pub silent: Option<Duration>,
    /// What it printed, as far as it is kept.
    pub output: Redacted,
}

impl Running {
    fn is(&self, name: StepName, subject: Option<&str>) -> bool {
        self.name == name && self.subject.as_deref() == subject
    }
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            ended: Vec::new(),
            running: Vec::new(),
            events: broadcast::channel(CHANNEL_EVENTS).0,
        }
    }
}

impl LiveLogs {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<InstanceId, Boot>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What happened so far and what will: nothing between the two is lost.
    #[must_use]
    pub fn follow(&self, id: &InstanceId) -> (Vec<FollowEvent>, broadcast::Receiver<FollowEvent>) {
        self.with(|boots| {
            let boot = boots.entry(id.clone()).or_default();
            let mut before: Vec<_> = boot
                .ended
                .iter()
                .cloned()
                .map(|step| FollowEvent::StepEnded { step })
                .collect();
            for running in &boot.running {
                before.push(FollowEvent::StepStarted {
                    name: running.name.as_str().to_owned(),
                    subject: running.subject.clone(),
                    ran_ms: millis(running.began.elapsed()),
                });
                if !running.output.is_empty() {
                    before.push(FollowEvent::Output {
                        subject: running.subject.clone(),
                        text: running.output.to_string(),
                    });
                }
                if let Some((command, since)) = &running.command {
                    before.push(FollowEvent::CommandStarted {
                        subject: running.subject.clone(),
                        command: command.to_string(),
                        ran_ms: millis(since.elapsed()),
                        silent_ms: running.printed.map(|at| millis(at.elapsed())),
                    });
                }
            }
            (before, boot.events.subscribe())
        })
    }

    /// A step began.
    pub fn started(&self, id: &InstanceId, name: StepName, subject: Option<&str>) {
        let subject = subject.map(str::to_owned);
        self.with(|boots| {
            let boot = boots.entry(id.clone()).or_default();
            boot.running.push(Running {
                name,
                subject: subject.clone(),
                output: Redacted::default(),
                began: Instant::now(),
                command: None,
                printed: None,
            });
            // It is normal that no client listens.
            let _ = boot.events.send(FollowEvent::StepStarted {
                name: name.as_str().to_owned(),
                subject,
                ran_ms: 0,
            });
        });
    }

    /// A running step began a command.
    pub fn command_started(&self, id: &InstanceId, name: StepName, subject: Option<&str>, command: &Redacted) {
        self.with(|boots| {
            let Some(boot) = boots.get_mut(id) else { return };
            if let Some(running) = boot.running.iter_mut().find(|running| running.is(name, subject)) {
                running.command = Some((command.clone(), Instant::now()));
                running.printed = None;
            }
            let _ = boot.events.send(FollowEvent::CommandStarted {
                subject: subject.map(str::to_owned),
                command: command.to_string(),
                ran_ms: 0,
                silent_ms: None,
            });
        });
    }

    /// What runs right now; empty between steps, and when nothing is made.
    #[must_use]
    pub fn progress(&self, id: &InstanceId) -> Vec<Progress> {
        self.with(|boots| {
            let running = boots.get(id).map(|boot| boot.running.as_slice()).unwrap_or_default();
            let progress = running.iter().map(|running| Progress {
                step: running.name,
                subject: running.subject.clone(),
                command: running.command.as_ref().map(|(command, _)| command.clone()),
                ran: running
                    .command
                    .as_ref()
                    .map_or(running.began, |(_, since)| *since)
                    .elapsed(),
                silent: running.printed.map(|at| at.elapsed()),
                output: running.output.clone(),
            });
            progress.collect()
        })
    }

    /// A running step printed something.
    pub fn output(&self, id: &InstanceId, name: StepName, subject: Option<&str>, text: &Redacted) {
        self.with(|boots| {
            let Some(boot) = boots.get_mut(id) else { return };
            if let Some(running) = boot.running.iter_mut().find(|running| running.is(name, subject)) {
                running.printed = Some(Instant::now());
                running.output.push(text);
                if running.output.len() > BACKLOG_BYTES {
                    running.output = running.output.last(BACKLOG_BYTES / 2);
                }
            }
            let _ = boot.events.send(FollowEvent::Output {
                subject: subject.map(str::to_owned),
                text: text.to_string(),
            });
        });
    }

    /// A running step ended.
    pub fn step_ended(&self, id: &InstanceId, subject: Option<&str>, record: &StepRecord) {
        self.with(|boots| {
            if let Some(boot) = boots.get_mut(id) {
                boot.running.retain(|running| !running.is(record.name, subject));
                let step = record.to_step();
                boot.ended.push(step.clone());
                let _ = boot.events.send(FollowEvent::StepEnded { step });
            }
        });
    }

    /// The boot is over.
    pub fn ended(&self, id: &InstanceId, status: Option<InstanceStatus>, failure_reason: Option<Redacted>) {
        let failure_reason = failure_reason.map(String::from);
        if let Some(boot) = self.with(|boots| boots.remove(id)) {
            let _ = boot.events.send(FollowEvent::Ended { status, failure_reason });
        }
    }
}
