//! What one stage left in the record, kept with its checkpoint: a run that goes on from there shows it again.

use hearth_api::instance::StepName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One entry of the record, or one command's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Piece {
    /// Which step.
    pub step: StepName,
    /// What was printed, secrets masked.
    pub output: String,
    /// How long it took.
    pub duration_ms: u64,
    /// The entry's metadata; of a command its line in them.
    pub metadata: Value,
    /// It is one command of several that make one entry.
    pub is_command: bool,
}

/// Pieces that make one entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a>(pub &'a [Piece]);

/// The entries that these pieces make, in order.
pub fn entries(pieces: &[Piece]) -> impl Iterator<Item = Entry<'_>> {
    pieces
        .chunk_by(|one, next| one.is_command && next.is_command && one.step == next.step)
        .map(Entry)
}

impl Entry<'_> {
    /// Which step.
    #[must_use]
    pub fn step(&self) -> StepName {
        self.0[0].step
    }

    /// What was printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.0.iter().map(|piece| piece.output.as_str()).collect()
    }

    /// How long it took when it ran.
    #[must_use]
    pub fn duration_ms(&self) -> u64 {
        self.0.iter().map(|piece| piece.duration_ms).sum()
    }

    /// The metadata of an entry that did not run this time.
    #[must_use]
    pub fn metadata(&self) -> Value {
        let mut metadata = match self.0 {
            [whole] if !whole.is_command => whole.metadata.clone(),
            commands => json!({ "commands": commands.iter().map(Piece::cached_command).collect::<Vec<_>>() }),
        };
        metadata["cached"] = json!(true);
        metadata["originalDurationMs"] = json!(self.duration_ms());
        metadata
    }
}

impl Piece {
    /// The line of a command that did not run this time.
    #[must_use]
    pub fn cached_command(&self) -> Value {
        let mut line = self.metadata.clone();
        line["cached"] = json!(true);
        line
    }
}
