//! The one trait every driver implements. Verbs are idempotent and keyed by *our* VM id, so that a caller who lost an answer simply asks again.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::ids::VmId;
use tokio::io::{AsyncRead, AsyncWrite};

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
    /// Nobody knows whether it happened (a timeout, a lost connection): look before acting again.
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
    /// Processes that ran in a VM when it became ready still run when it is handed over.
    pub live_processes: bool,
}

/// The size of a VM as the driver must make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// What a driver sees of a VM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Its processor runs (or could run).
    Running,
    /// It is there (files, a record) but does not run: crashed, killed or half made. Only `destroy` makes sense.
    Stopped,
}

/// One line of `list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    /// Our id.
    pub id: VmId,
    /// What it is doing.
    pub state: VmState,
}

/// What `create` did, for the metadata of the step `create_vm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Full digest of the image the VM was made from.
    pub image: String,
}

/// The hands: makes, finds and destroys VMs.
#[async_trait]
pub trait Driver: Send + Sync + fmt::Debug {
    /// What this driver can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes the VM and starts it; returns when its processor runs, not when its agent answers.
    async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError>;

    /// What is known of one VM; `None` when nothing of it exists.
    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError>;

    /// Every VM that carries this installation's label, half-made ones included.
    async fn list(&self) -> Result<Vec<VmInfo>, DriverError>;

    /// A fresh byte stream to the agent. At most one is open per VM: a new one ends the one before it.
    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError>;

    /// The last `max_bytes` of what the VM wrote to its console.
    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError>;

    /// Ends the VM and removes everything of it, whatever state it is in; success when there is nothing (left).
    async fn destroy(&self, id: &VmId) -> Result<(), DriverError>;

    /// The server is about to end. VMs go on running; helper processes that only VMs need are ended when there is no VM.
    async fn stand_down(&self) -> Result<(), DriverError> {
        Ok(())
    }
}

/// How long a driver lets one call to a helper program or the VM's monitor take before it says `Unknown`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
