//! The record of a step that ended: what the step log and the live log take. All that a guest may have said in it is redacted.

use hearth_api::instance::{FAILURE_KEY, Step, StepName, StepStatus};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::redact::Redacted;

/// One step that ended.
#[derive(Debug, Clone)]
pub struct StepRecord {
    pub name: StepName,
    /// Why it failed; else it did what it should.
    pub error: Option<Redacted>,
    /// What its commands printed; nothing where that is empty.
    pub output: Redacted,
    /// Which of its commands failed and how, as a message for people.
    pub failure: Option<Redacted>,
    /// How long it took, milliseconds.
    pub duration_ms: Option<u64>,
    pub timestamp: Timestamp,
    /// Facts by step. A text in it that a guest has said is a [`Redacted`] one before it comes here.
    pub metadata: Option<Value>,
}

impl StepRecord {
    /// The entry, as clients see it.
    #[must_use]
    pub fn to_step(&self) -> Step {
        let mut metadata = self.metadata.clone();
        if let Some(failure) = &self.failure {
            metadata.get_or_insert_with(|| json!({}))[FAILURE_KEY] = json!(failure);
        }
        Step {
            name: self.name.as_str().to_owned(),
            status: if self.error.is_some() {
                StepStatus::Error
            } else {
                StepStatus::Success
            },
            error: self.error.clone().map(String::from),
            output: (!self.output.is_empty()).then(|| self.output.to_string()),
            duration_ms: self.duration_ms,
            timestamp: self.timestamp,
            metadata,
        }
    }
}
