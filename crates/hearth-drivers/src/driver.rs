//! The one trait every driver implements. Verbs are idempotent and keyed by *our* VM id, so that a caller who lost an answer simply asks again.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::egress::{EgressPolicy, RefusedAttempt};
use hearth_api::ids::VmId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, ForkSpec, SnapshotSpec, VmUsage};

/// A byte stream to the agent in a VM.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What a driver call can end in besides success. Three kinds, because a caller can do three different things.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It did not happen and may work later: the host is short of something, a helper is restarting.
    #[error("{reason}")]
    Retry {
        /// What happened and what to do, for a person.
        reason: String,
        /// What lies beneath.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It did not happen and will not, however often it is asked: the image does not exist, the size is impossible.
    #[error("{reason}")]
    Permanent {
        /// What happened and what to do, for a person.
        reason: String,
        /// What lies beneath.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It is not known whether it happened (a timeout, a lost connection): check before acting again.
    #[error("{reason}")]
    Unknown {
        /// What happened and what to do, for a person.
        reason: String,
        /// What lies beneath.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// What a driver can do beyond the verbs every driver has; the provisioner uses the best declared way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver's name as it appears in `create_vm`'s metadata.
    pub name: &'static str,
    /// A checkpoint keeps the VM's memory: a fork continues where the VM was, without booting.
    pub memory_checkpoints: bool,
    /// A checkpoint keeps the VM's disk.
    pub disk_checkpoints: bool,
    /// A VM can be paused without costing processor time.
    pub pause: bool,
    /// A VM can be paused without costing memory: see [`Driver::save`].
    pub pause_to_disk: bool,
    /// Processes that ran in a VM when it became ready (or was frozen) still run when it (or its fork) is handed over; where
    /// they do not, they must be started again where they are needed.
    pub live_processes: bool,
}

/// The size of a VM as the driver must make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmShape {
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the root disk in GiB; the root file system grows to it.
    pub disk_gib: u32,
}

/// Everything a driver needs to make one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Our name for it; a second `create` with the same id is the same VM.
    pub id: VmId,
    /// Digest or unique prefix of the image to start from; the newest one when absent.
    pub image: Option<String>,
    /// CPU, memory, disk.
    pub shape: VmShape,
    /// It will be frozen. Costs a little: its memory must lie where it can be copied from.
    pub checkpointable: bool,
}

/// What a driver sees of a VM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Its processor runs (or could run).
    Running,
    /// It is paused until `resume`.
    Paused,
    /// It is paused, and its memory is in a file: it has no process until `resume`.
    Saved,
    /// It is whole, but something outside of the driver stopped it (a signal to its process). Only that program can resume
    /// it; until then nothing in it answers. `destroy` works.
    Halted,
    /// It is there (files, a record) but does not run: crashed, killed or half made. Only `destroy` makes sense.
    Stopped,
}

/// The host's disk below a VM is full: the hypervisor has stopped the VM's processors because a write found no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullDisk {
    /// What is free there now, bytes.
    pub free_bytes: u64,
}

impl FullDisk {
    /// From so much on it is worth letting the VM write again: less would stop it at once, again and again.
    const ROOM_BYTES: u64 = 16 << 20;

    /// Whether the VM can continue.
    #[must_use]
    pub fn has_room_again(&self) -> bool {
        self.free_bytes >= Self::ROOM_BYTES
    }
}

impl fmt::Display for FullDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.free_bytes >> 20;
        write!(
            f,
            "the disk of the host is full ({mib} MiB are free), so the VM's writes have no room"
        )
    }
}

/// One line of `list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    /// Our id.
    pub id: VmId,
    /// What it is doing.
    pub state: VmState,
}

/// What `create` or `fork` did, for the metadata of the step `create_vm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Full digest of the image the VM was made from.
    pub image: String,
}

/// What a VM may reach, and what it was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// What it is held to.
    pub policy: EgressPolicy,
    /// What it was refused, the latest first.
    pub refused: Vec<RefusedAttempt>,
    /// Whether there were more different attempts than are kept.
    pub more: bool,
}

/// The hands: makes, finds and destroys VMs.
#[async_trait]
pub trait Driver: Send + Sync + fmt::Debug {
    /// What this driver can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes the VM and starts it; returns when its processor runs, not when its agent answers.
    async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError>;

    /// Makes a VM that continues from a checkpoint, with a disk of its own. Looks at the checkpoint first
    /// ([`CheckDepth::Quick`]) and never uses one that is damaged: see [`DriverError::checkpoint_fault`]. The fork still has
    /// the identity (host name, random pool, clock) of the VM that was frozen: see the agent's `activate`.
    async fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError>;

    /// Freezes a VM that was made `checkpointable`, or forked for [a build](crate::ForkPurpose::Build), under a key. The VM continues
    /// as soon as its memory is copied (a paused one stays paused); what is left of the call is the host's own work, and the VM
    /// may be used meanwhile. A caller that gives up leaves a whole checkpoint or none. After an error the VM may be paused: the caller
    /// resumes it.
    async fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError>;

    /// Freezes a VM that is in use, however it was made, under a key. The VM continues as soon as its memory is saved (a paused one stays
    /// paused), on the streams that are open; forks of the checkpoint continue from the same moment. The checkpoint's parent is what the
    /// VM was based on, and the VM is based on the checkpoint from then on. It is forked as an [instance](crate::ForkPurpose::Instance)
    /// only. A caller that gives up leaves a whole checkpoint or none. After an error the VM may be paused: the caller resumes it.
    async fn snapshot(&self, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError>;

    /// Everything that a checkpoint of such a VM holds for (image, engine, accelerator, devices, size), as a digest: belongs
    /// into every checkpoint's key.
    async fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError>;

    /// Whether a VM could be made of the image that is called so: by its name, its digest or the beginning of one. A permanent error
    /// says why not, and which images there are.
    async fn check_image(&self, wanted: &str) -> Result<(), DriverError>;

    /// Every checkpoint that is there, sorted by key. Does not look whether they are whole.
    async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError>;

    /// Looks whether a checkpoint is as it was when it was made; [`DriverError::checkpoint_fault`] says what is wrong.
    async fn check_checkpoint(&self, key: &CheckpointKey, depth: CheckDepth) -> Result<(), DriverError>;

    /// Removes a checkpoint; success when there is none. `Retry` while it is the parent of a VM or of another checkpoint.
    async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError>;

    /// Pauses the VM, with every process in it. Success when it is paused already.
    async fn pause(&self, id: &VmId) -> Result<(), DriverError>;

    /// Pauses the VM and moves its memory to a file beside its disk. Success when that is done already. What goes wrong leaves the VM as it was.
    /// The stream to its agent ends. A server that is killed in the middle leaves a VM that can be resumed.
    async fn save(&self, id: &VmId) -> Result<(), DriverError> {
        let name = self.capabilities().name;
        Err(DriverError::permanent(format!(
            "the driver `{name}` cannot pause {id} to the disk"
        )))
    }

    /// Resumes it. Success when it runs already. Its clock did not advance meanwhile. One whose memory is in a file needs memory of the host
    /// again: `Retry` when there is not enough, and it stays as it is.
    async fn resume(&self, id: &VmId) -> Result<(), DriverError>;

    /// What it costs now, measured.
    async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError>;

    /// What is known of one VM; `None` when nothing of it exists.
    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError>;

    /// What keeps a VM from answering, as far as it can be seen from outside: a sentence for a person. `None` when its processors
    /// run, and what hangs is inside.
    async fn why_silent(&self, id: &VmId) -> Result<Option<String>, DriverError> {
        Ok(match self.inspect(id).await? {
            Some(VmState::Running) => None,
            Some(VmState::Paused) => Some("it is paused".to_owned()),
            Some(VmState::Saved) => Some("it is paused to the disk".to_owned()),
            Some(VmState::Halted) => Some("something on the host has stopped it".to_owned()),
            Some(VmState::Stopped) => Some("it has ended".to_owned()),
            None => Some("it is gone".to_owned()),
        })
    }

    /// Whether a VM is stopped because the host's disk was full when it wrote; `resume` lets it try that write again. `None`
    /// for every other VM.
    async fn full_disk(&self, id: &VmId) -> Result<Option<FullDisk>, DriverError>;

    /// Every VM that carries this installation's label, half-made ones included.
    async fn list(&self) -> Result<Vec<VmInfo>, DriverError>;

    /// A fresh byte stream to the agent. At most one is open per VM: a new one ends the one before it. A paused VM's agent
    /// answers once it is resumed; an open stream lasts over `pause`, `resume` and `checkpoint`.
    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError>;

    /// The last `max_bytes` of what the VM wrote to its console.
    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError>;

    /// Holds a VM to a policy: from now on it connects to nothing else, and connections that it has to anything else end. A VM that was
    /// just made may reach everything public. Success when it is held to it already.
    async fn hold_egress(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError>;

    /// What a VM may reach, and what it was refused.
    async fn egress(&self, id: &VmId) -> Result<Egress, DriverError>;

    /// Ends the VM and removes everything of it, whatever state it is in; success when there is nothing (left).
    async fn destroy(&self, id: &VmId) -> Result<(), DriverError>;

    /// The server is about to end. VMs keep running; helper processes that only VMs need are ended when there is no VM.
    async fn stand_down(&self) -> Result<(), DriverError> {
        Ok(())
    }
}

/// A project names an image that is not there; `names`: those that are.
pub(crate) fn no_such_image(wanted: &str, names: &[String]) -> DriverError {
    let there = match names {
        [] => "none is there".to_owned(),
        [one] => format!("there is only {one}"),
        many => format!("there are {}", many.join(", ")),
    };
    DriverError::permanent(format!(
        "no image on the server is called `{wanted}`: {there}; `hearth image build --name NAME` makes one"
    ))
}

/// How long a driver lets one call to a helper program or the VM's monitor take before it says `Unknown`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
