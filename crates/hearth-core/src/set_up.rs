//! A project's set-up, as it is kept for VMs that were made by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A project's set-up as it is now, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetUp {
    /// The first half of the names of its recipes.
    pub name: String,
    /// A digest of each part.
    pub parts: BTreeMap<String, String>,
    /// The named commands that are offered in its VMs.
    pub commands: Vec<OwnCommand>,
}

/// A named command of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnCommand {
    /// `org/name`.
    pub repo_full_name: String,
    pub name: String,
    /// What it runs.
    pub command: String,
}
