//! Driver `incus`: VMs are instances of Incus, containers or virtual machines, on one machine or on the members of a cluster.
//!
//! Truth is in Incus, never in this struct: what an instance is stands in its labels (`model.rs`), so a driver opened by the next
//! server, or by another one beside it, sees and handles the same VMs. Incus brings placement's facts, copies, storage and its own
//! Raft-kept database; nothing of a cluster is made here.
//!
//! | Hearth | Incus |
//! |---|---|
//! | installation | a project |
//! | VM | an instance, named by its id |
//! | checkpoint | a stopped copy of an instance, with a snapshot |
//! | fork | a copy of that snapshot, which boots |
//! | stream to the agent | the streams of a command in the instance (`stream.rs`) |

mod api;
mod checkpoints;
mod cluster;
mod doctor;
mod images;
mod instances;
mod model;
mod options;
mod place;
mod stream;
mod tls;
mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use hearth_api::egress::{EgressMode, EgressPolicy};
use hearth_api::ids::VmId;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::call::{check_installation, to_the_end};
use crate::{
    ByteStream, Capabilities, CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, Driver, DriverError,
    Egress, ForkSpec, FullDisk, Locks, SnapshotSpec, VmInfo, VmShape, VmSpec, VmState, VmUsage,
};
use api::{Api, ApiError};
use checkpoints::Wanted;
use cluster::Cluster;
use instances::Known;
pub use options::{AgentBinary, IncusAddress, IncusKind, IncusOptions, IncusSettings, IncusTls, USUAL_SOCKET};
use place::Pool;
use stream::{Prospect, Streams};

/// Counts up when checkpoints of before mean something else.
const VERSION: u32 = 1;
/// What an instance's connection to the network is called, outside and inside.
const NETWORK_DEVICE: &str = "eth0";
/// A checkpoint that is not whole at this age never will be.
const UNFINISHED_AGE: SignedDuration = SignedDuration::from_mins(30);
/// How a project of our own is named, before the installation.
const PROJECT_PREFIX: &str = "hearth-";

/// Makes VMs with Incus. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IncusDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: IncusOptions,
    project: String,
    api: Api,
    pool: OnceCell<Pool>,
    cluster: Cluster,
    streams: Streams,
    cached: tokio::sync::Mutex<usage::Cached>,
    /// Incus' version.
    engine: OnceCell<String>,
    /// When checkpoints were last forked, as far as we did it.
    used: Mutex<HashMap<CheckpointKey, Timestamp>>,
    /// One call that changes something per VM at a time.
    gates: Locks<VmId>,
    /// One checkpoint per VM at a time; it does not hold up the VM's other calls.
    freeze_gates: Locks<VmId>,
    /// One maker per checkpoint.
    key_gates: Locks<CheckpointKey>,
    /// One maker per copy of one on a member.
    copy_gates: Locks<String>,
    /// One import per image.
    image_gates: Locks<String>,
    /// Held for writing while a checkpoint is removed; for reading until a label says that one is a parent.
    removals: tokio::sync::RwLock<()>,
}

/// Everything that a checkpoint holds for. Incus' version is not among it: a disk is a disk.
fn environment(image: &str, kind: IncusKind, shape: VmShape) -> String {
    let VmShape {
        vcpus,
        memory_mib,
        disk_gib,
    } = shape;
    let text = format!(
        "incus {VERSION} {image} {} {vcpus} {memory_mib} {disk_gib}",
        kind.as_str()
    );
    hex::encode(Sha256::digest(text))
}

impl IncusDriver {
    /// Prepares to speak to Incus; asks it nothing yet. Needs a tokio runtime.
    pub fn open(options: IncusOptions) -> Result<Self, DriverError> {
        let label = &options.installation;
        check_installation(label)?;
        let project = options.settings.project.clone();
        let inner = Inner {
            project: project.unwrap_or_else(|| format!("{PROJECT_PREFIX}{label}")),
            api: Api::new(&options.settings)?,
            options,
            pool: OnceCell::new(),
            cluster: Cluster::default(),
            streams: Streams::default(),
            cached: tokio::sync::Mutex::default(),
            engine: OnceCell::new(),
            used: Mutex::default(),
            gates: Locks::default(),
            freeze_gates: Locks::default(),
            key_gates: Locks::default(),
            copy_gates: Locks::default(),
            image_gates: Locks::default(),
            removals: tokio::sync::RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Removes the images that were brought into Incus. For a deliberate end of the installation.
    pub async fn remove_images(&self) -> Result<(), DriverError> {
        self.inner.remove_images().await
    }

    /// What Incus and its members are, and what is missing of what VMs need. Changes nothing.
    pub async fn findings(&self) -> Vec<crate::host::Finding> {
        self.inner.findings().await
    }
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, HashMap<CheckpointKey, Timestamp>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs the VMs, with its version; without a version when it does not say it now.
    async fn engine(&self) -> String {
        let asked = self.engine.get_or_try_init(|| async {
            let server: serde_json::Value = self.api.get("/1.0").await?;
            let version = server["environment"]["server_version"].as_str().unwrap_or_default();
            Ok::<_, ApiError>(format!("incus {version}"))
        });
        asked.await.cloned().unwrap_or_else(|_| "incus".to_owned())
    }

    async fn hold_egress(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let seen = self.need_alive(id).await?;
        if let Some(network) = &self.options.settings.network {
            let is_nothing = policy.hosts.is_empty() && policy.cidrs.is_empty();
            let device = match policy.mode {
                EgressMode::Open => instances::network_device(network),
                EgressMode::Allow if is_nothing => json!({ "type": "none" }),
                EgressMode::Allow => {
                    return Err(DriverError::permanent(
                        "the driver `incus` cannot hold a VM to a list of hosts: a project's egress policy is `open`, or names nothing",
                    ));
                }
            };
            let change = json!({ "devices": { NETWORK_DEVICE: device } });
            if seen.instance.egress() != *policy {
                self.label(id.as_str(), &change).await?;
            }
        }
        // Without a network a VM reaches nothing, which is within every policy.
        self.label(id.as_str(), &model::held_to(policy)).await
    }
}

#[async_trait]
impl Driver for IncusDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "incus",
            memory_checkpoints: false,
            disk_checkpoints: true,
            pause: true,
            pause_to_disk: false,
            live_processes: false,
        }
    }

    async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        let (inner, spec) = (self.inner.clone(), spec.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(spec.id.clone()).await;
            inner.create(&spec).await
        })
        .await
    }

    async fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError> {
        let (inner, spec) = (self.inner.clone(), spec.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(spec.id.clone()).await;
            inner.fork(&spec).await
        })
        .await
    }

    async fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
        let (inner, id, spec) = (self.inner.clone(), id.clone(), spec.clone());
        to_the_end(async move {
            let wanted = Wanted {
                key: &spec.key,
                labels: &spec.labels,
                of_instance: false,
                parent: spec.parent.as_ref(),
            };
            inner.freeze(&id, &wanted).await
        })
        .await
    }

    async fn snapshot(&self, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError> {
        let (inner, id, spec) = (self.inner.clone(), id.clone(), spec.clone());
        to_the_end(async move {
            let wanted = Wanted {
                key: &spec.key,
                labels: &spec.labels,
                of_instance: true,
                parent: None,
            };
            inner.freeze(&id, &wanted).await
        })
        .await
    }

    async fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        let found = self.inner.find_image(image).await?;
        Ok(environment(&found.digest, found.kind, shape))
    }

    async fn check_image(&self, wanted: &str) -> Result<(), DriverError> {
        self.inner.check_image(wanted).await
    }

    async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError> {
        self.inner.checkpoints().await
    }

    async fn check_checkpoint(&self, key: &CheckpointKey, _depth: CheckDepth) -> Result<(), DriverError> {
        // Bytes are the storage pool's affair: what has checksums there looks at them itself.
        self.inner.check_checkpoint(key).await
    }

    async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        to_the_end(async move {
            let _key = inner.key_gates.lock(key.clone()).await;
            inner.remove_checkpoint(&key).await
        })
        .await
    }

    async fn pause(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            inner.set_paused(&id, true).await
        })
        .await
    }

    async fn resume(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            inner.set_paused(&id, false).await
        })
        .await
    }

    async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        self.inner.need_alive(id).await?;
        self.inner.usage(id).await
    }

    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError> {
        let Some(seen) = self.inner.see(id.as_str()).await? else {
            return Ok(None);
        };
        match seen.state {
            Known::Unanswered => Err(DriverError::unknown(format!(
                "the member {} of the cluster, which runs {id}, does not answer at the moment",
                seen.instance.location
            ))),
            state => Ok(Some(state.listed())),
        }
    }

    async fn why_silent(&self, id: &VmId) -> Result<Option<String>, DriverError> {
        let seen = self.inner.see(id.as_str()).await?;
        Ok(match seen.map(|seen| (seen.state, seen.instance.location)) {
            Some((Known::Is(VmState::Paused), _)) => Some("it is paused".to_owned()),
            Some((Known::Is(VmState::Stopped), _)) => Some("it has ended".to_owned()),
            Some((Known::Is(_), _)) => None,
            Some((Known::Unanswered, member)) => Some(format!(
                "the member {member} of the cluster, which runs it, does not answer"
            )),
            Some((Known::Lost, member)) => Some(format!("the member {member} of the cluster, which runs it, is lost")),
            None => Some("it is gone".to_owned()),
        })
    }

    async fn full_disk(&self, _id: &VmId) -> Result<Option<FullDisk>, DriverError> {
        // A full pool is an error of the write in the guest: nothing is stopped by it.
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<VmInfo>, DriverError> {
        let inner = &self.inner;
        let mut all = inner.all().await?;
        all.retain(|instance| instance.vm().is_some());
        let seen = inner.see_all(all).await;
        let info = |seen: instances::Seen| {
            let id = seen.instance.vm()?;
            let state = seen.state.listed();
            Some(VmInfo { id, state })
        };
        Ok(seen.into_iter().filter_map(info).collect())
    }

    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        let inner = &self.inner;
        let _gate = inner.gates.lock(id.clone()).await;
        // Of one that cannot be reached now, too: what came over it comes no more.
        inner.streams.end(id);
        inner.need_alive(id).await?;
        let (weak, vm) = (Arc::downgrade(inner), id.clone());
        let prospect = move || {
            let (weak, vm) = (weak.clone(), vm.clone());
            async move {
                let Some(inner) = weak.upgrade() else {
                    return Prospect::Ended;
                };
                match inner.see(vm.as_str()).await {
                    Ok(Some(seen)) if matches!(seen.state, Known::Is(VmState::Stopped) | Known::Lost) => {
                        Prospect::Ended
                    }
                    Ok(None) => Prospect::Ended,
                    Ok(Some(_)) | Err(_) => Prospect::Wait,
                }
            }
        };
        let stream = stream::open(&inner.streams, inner.api.clone(), id, inner.project.clone(), prospect);
        Ok(Box::new(stream))
    }

    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        self.inner.console(id, max_bytes).await
    }

    async fn hold_egress(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let (inner, id, policy) = (self.inner.clone(), id.clone(), policy.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            inner.hold_egress(&id, &policy).await
        })
        .await
    }

    async fn egress(&self, id: &VmId) -> Result<Egress, DriverError> {
        let seen = self.inner.need_alive(id).await?;
        Ok(Egress {
            policy: seen.instance.egress(),
            ..Egress::default()
        })
    }

    async fn destroy(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            inner.streams.end(&id);
            inner.remove(id.as_str()).await
        })
        .await
    }
}
