//! Live boots: what is happening in a provisioning run right now, for whoever follows it. A cache: the record is in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::InstanceId;
use hearth_api::instance::{FollowEvent, InstanceStatus, Step};
use tokio::sync::broadcast;

/// Events a slow follower may lag behind before it loses some.
const CHANNEL_EVENTS: usize = 1024;
/// Output of the running step that a late follower still sees, bytes.
const BACKLOG_BYTES: usize = 64 * 1024;

/// All boots under way.
#[derive(Debug, Clone, Default)]
pub struct Followers(Arc<Mutex<HashMap<InstanceId, Boot>>>);

#[derive(Debug)]
struct Boot {
    ended: Vec<Step>,
    running: Option<(String, Option<String>)>,
    output: String,
    events: broadcast::Sender<FollowEvent>,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            ended: Vec::new(),
            running: None,
            output: String::new(),
            events: broadcast::channel(CHANNEL_EVENTS).0,
        }
    }
}

impl Followers {
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
            if let Some((name, subject)) = boot.running.clone() {
                before.push(FollowEvent::StepStarted { name, subject });
                if !boot.output.is_empty() {
                    before.push(FollowEvent::Output {
                        text: boot.output.clone(),
                    });
                }
            }
            (before, boot.events.subscribe())
        })
    }

    /// A step began.
    pub fn started(&self, id: &InstanceId, name: &str, subject: Option<&str>) {
        let (name, subject) = (name.to_owned(), subject.map(str::to_owned));
        self.with(|boots| {
            let boot = boots.entry(id.clone()).or_default();
            boot.running = Some((name.clone(), subject.clone()));
            boot.output.clear();
            // Nobody listening is normal.
            let _ = boot.events.send(FollowEvent::StepStarted { name, subject });
        });
    }

    /// The running step printed something.
    pub fn output(&self, id: &InstanceId, text: &str) {
        self.with(|boots| {
            if let Some(boot) = boots.get_mut(id) {
                boot.output.push_str(text);
                if boot.output.len() > BACKLOG_BYTES {
                    let mut at = boot.output.len() - BACKLOG_BYTES / 2;
                    while !boot.output.is_char_boundary(at) {
                        at += 1;
                    }
                    boot.output.drain(..at);
                }
                let _ = boot.events.send(FollowEvent::Output { text: text.to_owned() });
            }
        });
    }

    /// The running step ended.
    pub fn step_ended(&self, id: &InstanceId, step: &Step) {
        self.with(|boots| {
            if let Some(boot) = boots.get_mut(id) {
                boot.running = None;
                boot.output.clear();
                boot.ended.push(step.clone());
                let _ = boot.events.send(FollowEvent::StepEnded { step: step.clone() });
            }
        });
    }

    /// The boot is over.
    pub fn ended(&self, id: &InstanceId, status: Option<InstanceStatus>, failure_reason: Option<String>) {
        if let Some(boot) = self.with(|boots| boots.remove(id)) {
            let _ = boot.events.send(FollowEvent::Ended { status, failure_reason });
        }
    }
}
