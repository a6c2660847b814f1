//! Words about checkpoints that every driver shares: what is asked for, what is known of one, what can be
//! wrong with one. Plain data: nothing here touches a VM or a file.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_core::checkpoint::CheckpointKey;
use serde::{Deserialize, Serialize};

use crate::{DriverError, VmShape};

/// What `checkpoint` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// Its name. A whole checkpoint that is already called so is kept and given back.
    pub key: CheckpointKey,
    /// The checkpoint that the VM itself was forked from, or last frozen as; `None` when it was made from an image and
    /// never frozen. Only a safeguard against a mix-up: another one than the driver knows of is refused.
    pub parent: Option<CheckpointKey>,
    /// The caller's own words about it (recipe, step); given back as they are, and never read by a driver.
    pub labels: BTreeMap<String, String>,
    /// How long to wait, at most, for the guest to become idle. Whatever a VM is in the middle of when it is frozen, each of
    /// its forks continues, and pays for in time and memory; one that never becomes idle is frozen all the same.
    pub idle: Duration,
}

/// What `snapshot` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Its name. A whole checkpoint that is already called so is kept and given back.
    pub key: CheckpointKey,
    /// The caller's own words about it; given back as they are, and never read by a driver.
    pub labels: BTreeMap<String, String>,
    /// It is kept for later, and so synced and summed. One that is only forked at once is neither: a host that ends takes it along, as it
    /// takes the forks.
    pub kept: bool,
}

/// What is known of a checkpoint that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointInfo {
    pub key: CheckpointKey,
    /// Its parent checkpoint, which stays for as long as this one exists.
    pub parent: Option<CheckpointKey>,
    /// As the caller gave them.
    pub labels: BTreeMap<String, String>,
    /// Full digest of the image at the bottom.
    pub image: String,
    /// What [`Driver::environment`](crate::Driver::environment) said when it was made: it can only be forked while that
    /// still holds.
    pub environment: String,
    /// The size of the VM, and of every fork.
    pub shape: VmShape,
    /// Version of what runs the VMs.
    pub engine: String,
    /// Version of the agent inside, as the image says.
    pub agent_version: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// When it was last forked; when it was made, before that.
    pub last_used: jiff::Timestamp,
    /// How long the VM was paused for it.
    pub paused_ms: u64,
    /// What it takes on the host's disk, without its parents.
    pub bytes: u64,
}

/// What a fork is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForkPurpose {
    /// To be used and then deleted. Shares its memory with the checkpoint until it writes; cannot be frozen again.
    Instance,
    /// To be worked on and frozen again. Costs a copy of the checkpoint's memory.
    Build,
}

/// How a fork comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForkStart {
    /// It is paused until `resume`.
    Paused,
    Running,
}

/// Everything a driver needs to fork one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkSpec {
    /// Our name for it; a second `fork` with the same id is the same VM.
    pub id: VmId,
    pub from: CheckpointKey,
    pub purpose: ForkPurpose,
    /// The size the caller expects; a checkpoint of another size is refused. `None` takes it as it is.
    pub shape: Option<VmShape>,
    pub start: ForkStart,
}

/// How closely a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckDepth {
    /// Sizes and times of its files and of its parents', as at every fork: microseconds.
    Quick,
    /// Besides, every byte of its own files against the checksums: about a second per gigabyte of data.
    Full,
}

/// What is wrong with a checkpoint. A driver gives it as the cause of a [`DriverError::Permanent`]:
/// [`DriverError::checkpoint_fault`] finds it there. In every case the checkpoint has to be built again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    #[error("there is no checkpoint {key}")]
    Missing { key: CheckpointKey },
    /// It is not as it was when it was made.
    #[error("the checkpoint {key} is damaged: {what}")]
    Damaged {
        key: CheckpointKey,
        /// The file, and what is wrong with it.
        what: String,
    },
    /// It was made by another version of what runs the VMs, or on other hardware.
    #[error(
        "the checkpoint {key} was made for another environment (program version, accelerator, devices or image) than this host has now"
    )]
    OtherEnvironment { key: CheckpointKey },
}

impl CheckpointFault {
    #[must_use]
    pub fn key(&self) -> &CheckpointKey {
        match self {
            Self::Missing { key } | Self::Damaged { key, .. } | Self::OtherEnvironment { key } => key,
        }
    }
}

impl From<CheckpointFault> for DriverError {
    fn from(fault: CheckpointFault) -> Self {
        let advice = match &fault {
            CheckpointFault::Missing { .. } => "make it first",
            _ => "it must be removed and built again",
        };
        Self::permanent(format!("{fault}; {advice}")).caused_by(fault)
    }
}

impl DriverError {
    /// What is wrong with a checkpoint, when that is what the error is about.
    #[must_use]
    pub fn checkpoint_fault(&self) -> Option<&CheckpointFault> {
        match self {
            Self::Permanent {
                source: Some(source), ..
            } => source.downcast_ref(),
            _ => None,
        }
    }
}

/// What a VM costs its host now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmUsage {
    /// Memory that is freed with the VM: what no other process shares and what cannot be read again from a file.
    pub private_bytes: u64,
    /// Memory that it maps besides: programs, and what it still shares with its checkpoint.
    pub shared_bytes: u64,
    /// What its own files take on the disk, without its parents'.
    pub disk_bytes: u64,
    /// The part of it that is its memory, of a VM that is paused to the disk.
    pub saved_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found_in_the_error_it_became() {
        let fault = CheckpointFault::Missing {
            key: "0123456789abcdef".parse().unwrap(),
        };
        let error = DriverError::from(fault.clone());
        assert_eq!(error.checkpoint_fault(), Some(&fault));
        assert!(matches!(error, DriverError::Permanent { .. }));
        assert_eq!(DriverError::permanent("other").checkpoint_fault(), None);
    }
}
