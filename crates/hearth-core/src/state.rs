//! The states of an instance and the one table of legal moves.
//!
//! ```text
//! (row) ──► provisioning ──► ready ──► claimed
//!                │             │ │
//!                ▼             │ ▼
//!              failed ◄────────┘ │
//!                │               ▼
//!                └──────────► retiring ──► archived
//!
//! every state ──► deleting ──► (row removed)
//! ```
//!
//! A fork of a claimed VM is claimed from its beginning: its row is made in that state, before its VM exists.
//!
//! * **provisioning**: the row exists; the VM may not yet, or may be half made.
//! * **ready**: a command ran in this VM after its identity was fixed; it can be claimed (a test boot: it succeeded).
//! * **claimed**: a task has it; pool logic never touches it again.
//! * **failed**: a step failed or the VM was lost; its VM may still exist.
//! * **retiring**: the VM is being destroyed, the record stays readable.
//! * **archived**: only the record is left.
//! * **deleting**: the VM is being destroyed and the record goes with it; invisible to clients.

use hearth_api::instance::InstanceStatus;
use serde::{Deserialize, Serialize};

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Being made.
    Provisioning,
    /// Can be claimed.
    Ready,
    /// A task has it.
    Claimed,
    /// A step failed or the VM was lost.
    Failed,
    /// VM being destroyed, record stays.
    Retiring,
    /// Only the record is left.
    Archived,
    /// VM being destroyed, record goes with it.
    Deleting,
}

impl InstanceState {
    pub const ALL: [Self; 7] = [
        Self::Provisioning,
        Self::Ready,
        Self::Claimed,
        Self::Failed,
        Self::Retiring,
        Self::Archived,
        Self::Deleting,
    ];

    /// The name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Failed => "failed",
            Self::Retiring => "retiring",
            Self::Archived => "archived",
            Self::Deleting => "deleting",
        }
    }

    /// The states from which a move to `self` is legal. This is the whole table.
    #[must_use]
    pub fn legal_sources(self) -> &'static [Self] {
        match self {
            // A new row has this state; nothing returns to it.
            Self::Provisioning => &[],
            Self::Ready => &[Self::Provisioning],
            // Single use: only from the pool, never back. A fork of a claimed VM begins with it.
            Self::Claimed => &[Self::Ready],
            // A ready instance fails when its VM is lost.
            Self::Failed => &[Self::Provisioning, Self::Ready],
            Self::Retiring => &[Self::Ready, Self::Failed],
            Self::Archived => &[Self::Retiring],
            Self::Deleting => &[
                Self::Provisioning,
                Self::Ready,
                Self::Claimed,
                Self::Failed,
                Self::Retiring,
                Self::Archived,
            ],
        }
    }

    /// What a client sees; `None` for an instance that is as good as gone. A retired or archived instance keeps showing
    /// how its boot ended: `failed` when it has a failure reason.
    #[must_use]
    pub fn status(self, has_failure: bool) -> Option<InstanceStatus> {
        match self {
            Self::Provisioning => Some(InstanceStatus::Provisioning),
            Self::Ready => Some(InstanceStatus::Ready),
            Self::Claimed => Some(InstanceStatus::Claimed),
            Self::Failed => Some(InstanceStatus::Failed),
            Self::Retiring | Self::Archived if has_failure => Some(InstanceStatus::Failed),
            Self::Retiring | Self::Archived => Some(InstanceStatus::Ready),
            Self::Deleting => None,
        }
    }

    /// Whether a VM may exist for an instance in this state, and so counts against the limits.
    #[must_use]
    pub fn may_have_vm(self) -> bool {
        self != Self::Archived
    }
}

/// A text in the database that is no state: the database was written by a newer Hearth or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownState(pub String);

impl std::fmt::Display for UnknownState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is no instance state that this version knows", self.0)
    }
}

impl std::error::Error for UnknownState {}

impl std::str::FromStr for InstanceState {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Whose fault a failure is; decides whether the pool tries again at once, later, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A command or hook of the project failed.
    Setup,
    /// A repository could not be fetched, or a branch does not exist.
    Repository,
    /// The guest image is missing or does not boot.
    Image,
    /// The host lacks memory, disk or a program.
    Host,
    /// The VM died or stopped answering.
    VmLost,
    /// A fork could not be given an identity of its own.
    Identity,
    /// The server ended in the middle.
    Interrupted,
    /// A person ended it.
    Cancelled,
}

impl FailureKind {
    pub const ALL: [Self; 8] = [
        Self::Setup,
        Self::Repository,
        Self::Image,
        Self::Host,
        Self::VmLost,
        Self::Identity,
        Self::Interrupted,
        Self::Cancelled,
    ];

    /// The name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Repository => "repository",
            Self::Image => "image",
            Self::Host => "host",
            Self::VmLost => "vm_lost",
            Self::Identity => "identity",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it speaks against the recipe: repeating it unchanged will most likely fail again.
    #[must_use]
    pub fn blames_recipe(self) -> bool {
        matches!(self, Self::Setup | Self::Repository | Self::Image)
    }

    /// Whether it speaks against the host: repeating it at once will most likely fail again. A server that ended in the
    /// middle, or a person who ended it, says nothing about either.
    #[must_use]
    pub fn blames_host(self) -> bool {
        matches!(self, Self::Host | Self::VmLost | Self::Identity)
    }
}

impl std::str::FromStr for FailureKind {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for state in InstanceState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        for kind in FailureKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
    }

    #[test]
    fn a_claimed_instance_can_only_be_deleted() {
        let reachable: Vec<_> = InstanceState::ALL
            .into_iter()
            .filter(|to| to.legal_sources().contains(&InstanceState::Claimed))
            .collect();
        assert_eq!(reachable, [InstanceState::Deleting]);
    }

    #[test]
    fn nothing_comes_back_from_deleting_and_nothing_returns_to_provisioning() {
        assert!(
            InstanceState::ALL
                .into_iter()
                .all(|to| !to.legal_sources().contains(&InstanceState::Deleting))
        );
        assert!(InstanceState::Provisioning.legal_sources().is_empty());
    }
}
