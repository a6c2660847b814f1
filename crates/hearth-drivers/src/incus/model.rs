//! An instance as Incus tells it, and the labels (`user.hearth.*`) with which we say what it is. Truth is in Incus: what the driver
//! needs to know of a VM or a checkpoint stands in its labels.

use std::collections::BTreeMap;

use hearth_api::egress::EgressPolicy;
use hearth_api::ids::VmId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::options::IncusKind;
use crate::{CheckpointInfo, CheckpointKey, VmShape, VmState};

/// Whose it is.
pub(super) const INSTALLATION: &str = "user.hearth.installation";
/// A VM's id.
const VM: &str = "user.hearth.vm";
/// A VM as its record: JSON of [`VmRecord`].
const RECORD: &str = "user.hearth.record";
/// A checkpoint's key. The instance that has it is never started.
const CHECKPOINT: &str = "user.hearth.checkpoint";
/// A checkpoint as its record: JSON of [`CheckpointRecord`]. Written last: one without it is not whole.
const CHECKPOINT_RECORD: &str = "user.hearth.checkpoint-record";
/// When it was last forked.
const LAST_USED: &str = "user.hearth.last-used";
/// What a VM is held to: JSON of an [`EgressPolicy`].
const EGRESS: &str = "user.hearth.egress";

/// The snapshot in a checkpoint's instance: what forks are copies of.
pub(super) const SNAPSHOT: &str = "frozen";
/// Digits of the digests in names: Incus allows 63 characters in all.
const NAME_DIGITS: usize = 24;
/// Enough to tell members apart.
const MEMBER_DIGITS: usize = 8;

/// As much of an instance as we read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Instance {
    pub(super) name: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) location: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) created_at: String,
    #[serde(default, rename = "type")]
    pub(super) kind: Option<IncusKind>,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
}

/// As much of a snapshot as we read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Snapshot {
    #[serde(default)]
    pub(super) created_at: String,
}

/// What a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VmRecord {
    /// Full digest of the image at the bottom.
    pub(super) image: String,
    pub(super) agent_version: String,
    pub(super) shape: VmShape,
    /// It may be frozen as a step of a build.
    pub(super) checkpointable: bool,
    /// What it was copied from, or last frozen as.
    pub(super) parent: Option<CheckpointKey>,
}

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckpointRecord {
    pub(super) info: CheckpointInfo,
    /// It is of a VM that was in use: nothing is built on it.
    pub(super) of_instance: bool,
    /// When its snapshot was made, as Incus says it: another one of that name is not ours.
    pub(super) frozen_at: String,
}

impl Instance {
    fn label(&self, name: &str) -> Option<&str> {
        self.config
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.label(name)?).ok()
    }

    pub(super) fn is_of(&self, installation: &str) -> bool {
        self.label(INSTALLATION) == Some(installation)
    }

    /// Which VM it is. A checkpoint is none.
    pub(super) fn vm(&self) -> Option<VmId> {
        self.label(VM)?.parse().ok()
    }

    pub(super) fn vm_record(&self) -> Option<VmRecord> {
        self.json(RECORD)
    }

    /// Which checkpoint it is (a copy of).
    pub(super) fn checkpoint(&self) -> Option<CheckpointKey> {
        self.label(CHECKPOINT)?.parse().ok()
    }

    /// What it is, of a whole one.
    pub(super) fn checkpoint_record(&self) -> Option<CheckpointRecord> {
        self.json(CHECKPOINT_RECORD)
    }

    pub(super) fn last_used(&self) -> Option<jiff::Timestamp> {
        self.label(LAST_USED)?.parse().ok()
    }

    pub(super) fn egress(&self) -> EgressPolicy {
        self.json(EGRESS).unwrap_or_default()
    }

    /// What it does; `None` when the daemon that runs it cannot be asked.
    pub(super) fn state(&self) -> Option<VmState> {
        match self.status.as_str() {
            "Running" | "Ready" | "Starting" => Some(VmState::Running),
            "Frozen" | "Freezing" => Some(VmState::Paused),
            // One that ends passes through both before it has ended.
            "Stopped" | "Aborting" | "Stopping" => Some(VmState::Stopped),
            _ => None,
        }
    }
}

/// The labels of a VM; those that a copy brought along are emptied.
pub(super) fn vm_labels(installation: &str, id: &VmId, record: &VmRecord) -> BTreeMap<String, String> {
    labels([
        (INSTALLATION, installation.to_owned()),
        (VM, id.to_string()),
        (RECORD, text(record)),
        (CHECKPOINT, String::new()),
        (CHECKPOINT_RECORD, String::new()),
        (LAST_USED, String::new()),
        (EGRESS, String::new()),
    ])
}

/// The labels of a checkpoint that is being made, of whichever instance.
pub(super) fn unfinished_labels(installation: &str, key: &CheckpointKey) -> BTreeMap<String, String> {
    labels([
        (INSTALLATION, installation.to_owned()),
        (CHECKPOINT, key.to_string()),
        (VM, String::new()),
        (RECORD, String::new()),
        (CHECKPOINT_RECORD, String::new()),
        (LAST_USED, String::new()),
        (EGRESS, String::new()),
    ])
}

/// What changes when it is whole.
pub(super) fn whole(record: &CheckpointRecord) -> Value {
    json!({ "config": { CHECKPOINT_RECORD: text(record) } })
}

/// What changes when it is forked.
pub(super) fn used(at: jiff::Timestamp) -> Value {
    json!({ "config": { LAST_USED: at.to_string() } })
}

/// What changes when a VM is frozen: its parent.
pub(super) fn frozen_as(record: &VmRecord) -> Value {
    json!({ "config": { RECORD: text(record) } })
}

/// What changes when a VM is held to a policy.
pub(super) fn held_to(policy: &EgressPolicy) -> Value {
    json!({ "config": { EGRESS: text(policy) } })
}

fn text(value: &impl Serialize) -> String {
    // Our own types, all of whose keys are texts.
    serde_json::to_string(value).unwrap_or_default()
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn digits(text: &str, count: usize) -> String {
    let mut digest = hex::encode(Sha256::digest(text));
    digest.truncate(count);
    digest
}

/// The name of the instance that is a checkpoint, on one member. Names are one space for all installations in a project.
pub(super) fn checkpoint_name(installation: &str, key: &CheckpointKey, member: &str) -> String {
    let own = digits(&format!("{installation} {key}"), NAME_DIGITS);
    format!("cp-{own}-{}", digits(member, MEMBER_DIGITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(status: &str, config: BTreeMap<String, String>) -> Instance {
        Instance {
            name: "x".to_owned(),
            status: status.to_owned(),
            location: "none".to_owned(),
            architecture: "x86_64".to_owned(),
            created_at: String::new(),
            kind: Some(IncusKind::Container),
            config,
        }
    }

    #[test]
    fn a_copy_is_what_its_own_labels_say() {
        let (id, key): (VmId, CheckpointKey) = (VmId::generate(), "ab".repeat(16).parse().unwrap());
        let record = VmRecord {
            image: "i".to_owned(),
            agent_version: "1".to_owned(),
            shape: VmShape {
                vcpus: 1,
                memory_mib: 2,
                disk_gib: 3,
            },
            checkpointable: true,
            parent: None,
        };
        let vm = instance("Running", vm_labels("one", &id, &record));
        assert_eq!((vm.vm(), vm.vm_record()), (Some(id), Some(record)));
        assert!(vm.is_of("one") && !vm.is_of("other") && vm.checkpoint().is_none());
        let mut config = vm.config.clone();
        config.extend(unfinished_labels("one", &key));
        let copy = instance("Stopped", config);
        assert_eq!((copy.vm(), copy.checkpoint()), (None, Some(key)));
        assert_eq!(copy.checkpoint_record(), None, "it is not whole yet");
    }

    #[test]
    fn a_daemon_that_cannot_be_asked_says_nothing_of_a_vm() {
        for (status, state) in [
            ("Running", Some(VmState::Running)),
            ("Frozen", Some(VmState::Paused)),
            ("Stopped", Some(VmState::Stopped)),
            ("Error", None),
        ] {
            assert_eq!(instance(status, BTreeMap::new()).state(), state);
        }
    }

    #[test]
    fn names_fit_and_differ() {
        let key: CheckpointKey = "f".repeat(128).parse().unwrap();
        let names = [
            checkpoint_name("a", &key, "n1"),
            checkpoint_name("a", &key, "n2"),
            checkpoint_name("b", &key, "n1"),
        ];
        assert!(names.iter().all(|name| name.len() <= 63));
        assert!(names[0] != names[1] && names[0] != names[2]);
    }
}
