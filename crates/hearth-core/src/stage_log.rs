//! Stage logs: what a stage printed and how long it took, kept with its checkpoint. A build that starts from that checkpoint
//! replays them.

use hearth_api::instance::StepName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::redact::Redacted;

/// The key in the metadata of what belongs to one repository.
const REPO: &str = "repo";

/// One step entry, or one command's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageLog {
    pub step: StepName,
    #[serde(deserialize_with = "crate::redact::stored")]
    pub output: Redacted,
    /// How long it took.
    pub duration_ms: u64,
    /// The entry's metadata; of a command its line in them.
    pub metadata: Value,
    /// It is one command of several that make one entry.
    pub is_command: bool,
}

/// Stage logs that make one entry.
#[derive(Debug, PartialEq, Eq)]
pub struct StepEntry<'a>(pub &'a [StageLog]);

/// The step entries that these logs make, in order.
pub fn step_entries(logs: &[StageLog]) -> impl Iterator<Item = StepEntry<'_>> {
    let of = |log: &StageLog| log.metadata.get(REPO).cloned();
    logs.chunk_by(move |one, next| one.is_command && next.is_command && one.step == next.step && of(one) == of(next))
        .map(StepEntry)
}

impl StepEntry<'_> {
    #[must_use]
    pub fn step(&self) -> StepName {
        self.0[0].step
    }

    #[must_use]
    pub fn output(&self) -> Redacted {
        let mut output = Redacted::default();
        for log in self.0 {
            output.push(&log.output);
        }
        output
    }

    /// How long it took when it ran.
    #[must_use]
    pub fn duration_ms(&self) -> u64 {
        self.0.iter().map(|log| log.duration_ms).sum()
    }

    /// The metadata of an entry that did not run this time.
    #[must_use]
    pub fn metadata(&self) -> Value {
        let mut metadata = match self.0 {
            [whole] if !whole.is_command => whole.metadata.clone(),
            hooks if hooks[0].step == StepName::InitRepo => hooks_metadata(&hooks[0].metadata, hooks.len()),
            commands => json!({ "commands": commands.iter().map(StageLog::cached_command).collect::<Vec<_>>() }),
        };
        metadata["cached"] = json!(true);
        metadata["originalDurationMs"] = json!(self.duration_ms());
        metadata
    }
}

/// The metadata of an entry of hooks: what those of its first hook say, and how many there are.
#[must_use]
pub fn hooks_metadata(first: &Value, count: usize) -> Value {
    let mut metadata = first.clone();
    metadata["commands"] = json!(count);
    metadata
}

impl StageLog {
    /// The line of a command that did not run this time.
    #[must_use]
    pub fn cached_command(&self) -> Value {
        let mut line = self.metadata.clone();
        line["cached"] = json!(true);
        line
    }
}
