//! Driver `qemu`: real VMs on this one machine, each a QEMU process of its own that outlives the server.
//!
//! Truth is on the disk and in the process table, never in this struct: a driver opened on the same data folder by the next
//! server sees and handles the same VMs. What the driver keeps in memory (who is being made, which stream is open) only
//! matters while its own calls run. It decides nothing: which VMs should exist is its caller's business.

mod access;
mod command;
mod environment;
mod folder;
mod fork;
mod freeze;
mod images;
mod inspect;
mod kvm;
mod launch;
mod memory_file;
mod monitor;
mod options;
mod processors;
mod qcow2;
mod qmp;
mod save;
mod start;
mod stream;
mod template;
mod time_stamp;
mod usage;

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hearth_api::egress::EgressPolicy;
use hearth_api::ids::VmId;
use hearth_host::background;
use hearth_image::Stores;

use crate::call::{check_installation, to_the_end};
use crate::network::VmNetwork;
use crate::process::ProcessId;
use crate::vm_user::VmUser;
use crate::{
    ByteStream, Capabilities, CheckDepth, CheckpointInfo, CheckpointKey, CheckpointSpec, Created, Driver, DriverError,
    Egress, ForkSpec, FullDisk, Locks, SnapshotSpec, VmInfo, VmShape, VmSpec, VmState, VmUsage, error,
};
use async_trait::async_trait;
use folder::VmFolder;
use stream::Streams;
use template::Templates;

pub(crate) use command::PROGRAM;
pub use folder::{ImageUse, images_in_use};
pub use kvm::Verdict;
pub(crate) use kvm::{device_exists, kept as kept_verdict};
pub use options::{Accel, QemuOptions};
pub(crate) use start::version;

/// Longest wait for a killed QEMU to be gone: the kernel has to give its memory back first.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// How long a VM's folder may keep filling while it is removed.
const STRAGGLER_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts to remove it.
const STRAGGLER_PAUSE: Duration = Duration::from_millis(10);
/// How often console logs are trimmed and the network is looked after. A guest can write a few MiB to its console meanwhile.
const CARE_INTERVAL: Duration = Duration::from_secs(15);

/// Makes VMs with QEMU on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QemuDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    vms: PathBuf,
    options: QemuOptions,
    stores: Stores,
    user: VmUser,
    network: VmNetwork,
    streams: Streams,
    templates: Arc<Templates>,
    /// One call that changes something per VM at a time.
    gates: Locks<VmId>,
    /// One checkpoint per VM at a time; it lasts longer than it holds up the VM's other calls.
    freeze_gates: Locks<VmId>,
    /// One maker per checkpoint.
    key_gates: Locks<CheckpointKey>,
    /// Held for writing while a checkpoint is removed; for reading until a record says that one is a parent.
    removals: tokio::sync::RwLock<()>,
    /// VMs that a running `create` of ours is making: they count as running, not as left half made.
    making: Mutex<BTreeSet<VmId>>,
    /// One KVM trial at a time.
    trial: tokio::sync::Mutex<()>,
}

impl QemuDriver {
    /// Prepares the folders. Needs a tokio runtime; starts no process.
    pub fn open(mut options: QemuOptions) -> Result<Self, DriverError> {
        check_installation(&options.installation)?;
        let user = VmUser::detect(options.vm_user);
        options.data_dir = prepare(&options.data_dir)?;
        // Before the path is resolved: a link says that the images lie elsewhere, and only there.
        let mut stores = Stores::with_own(
            options.data_dir.clone(),
            options.images_dir.clone(),
            options.shared_images.clone(),
        );
        options.images_dir = prepare(&options.images_dir)?;
        stores.resolve_own(&options.images_dir);
        let vms = options.data_dir.join("vms");
        access::close_vms(&vms, &user)
            .map_err(|error| error::io(format!("cannot prepare the folder {}", vms.display()), error))?;
        let templates = options.data_dir.join("templates");
        let templates = Templates::open(templates.clone(), user.clone())
            .map_err(|error| error::io(format!("cannot prepare the folder {}", templates.display()), error))?;
        let network = VmNetwork::new(
            options.data_dir.clone(),
            options.images_dir.clone(),
            &options.installation,
            user.clone(),
            options.gateway.clone(),
            options.dns_upstream,
        );
        let inner = Arc::new(Inner {
            vms,
            options,
            stores,
            user,
            network,
            streams: Streams::default(),
            templates: Arc::new(templates),
            gates: Locks::default(),
            freeze_gates: Locks::default(),
            key_gates: Locks::default(),
            removals: tokio::sync::RwLock::default(),
            making: Mutex::default(),
            trial: tokio::sync::Mutex::default(),
        });
        tokio::spawn(care(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What is known of KVM on this host; `None` when it has not been tried yet (the first `create` tries it).
    #[must_use]
    pub fn kvm_verdict(&self) -> Option<Verdict> {
        kvm::kept(&self.inner.options.data_dir)
    }

    /// Ends the VM network's helper processes. For a deliberate end of the installation, when no VM is left: refused otherwise.
    pub async fn shutdown_network(&self) -> Result<(), DriverError> {
        if !self.list().await?.is_empty() {
            return Err(DriverError::permanent(
                "the VM network is still in use: destroy every VM first",
            ));
        }
        kvm::end_strays(&self.inner.options.installation).await;
        self.inner.network.shutdown().await
    }
}

/// Makes a folder and gives its absolute path.
fn prepare(folder: &Path) -> Result<PathBuf, DriverError> {
    fs::create_dir_all(folder)
        .and_then(|()| fs::canonicalize(folder))
        .map_err(|error| error::io(format!("cannot make the folder {}", folder.display()), error))
}

/// Looks after what VMs need from the outside while the driver lives.
async fn care(inner: Weak<Inner>) {
    let mut tick = tokio::time::interval(CARE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let ids = inner.folders().unwrap_or_default();
        for id in &ids {
            if let Err(error) = inner.folder(id).trim_console()
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(vm = %id, %error, "cannot trim a console log");
            }
        }
        if !ids.is_empty()
            && let Err(error) = inner.network.ensure().await
        {
            tracing::warn!(%error, "the VM network is not in order");
        }
    }
}

/// Marks a VM as being made for as long as it lives.
struct Making<'a>(&'a Inner, VmId);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0
            .making
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.1);
    }
}

impl Inner {
    fn folder(&self, id: &VmId) -> VmFolder {
        VmFolder::new(&self.vms, id)
    }

    fn mark_making(&self, id: &VmId) -> Making<'_> {
        self.making
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone());
        Making(self, id.clone())
    }

    fn is_making(&self, id: &VmId) -> bool {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// What needs a checkpoint, as a message for people; `None` when nothing does.
    fn user_of(&self, key: &CheckpointKey) -> Result<Option<String>, DriverError> {
        for id in self.folders()? {
            let record = self.record(&id)?;
            if record.is_some_and(|record| record.lies_on(key)) {
                return Ok(Some(format!("the VM {id}")));
            }
        }
        let keys = self.templates.keys();
        for other in keys.map_err(|error| error::io("cannot list the checkpoints", error))? {
            // One whose manifest is unreadable cannot be used, so it needs nothing.
            if let Ok(manifest) = self.templates.read(&other)
                && manifest.lies_on().any(|below| below == key)
            {
                return Ok(Some(format!("the checkpoint {other}")));
            }
        }
        Ok(None)
    }

    /// Makes a VM; what a failure has left of it is removed. The caller holds its gate.
    async fn make_or_remove(
        &self,
        id: &VmId,
        making: impl Future<Output = Result<Created, DriverError>>,
    ) -> Result<Created, DriverError> {
        let made = making.await;
        if made.is_err() {
            // If even this fails, the folder stays and the next `create`, `fork` or `destroy` finds it.
            if let Err(left) = self.remove(id).await {
                tracing::warn!(vm = %id, error = %left, "parts of a VM that was not made are left");
            }
        }
        made
    }

    /// Ends and removes everything of a VM. The caller holds its gate.
    async fn remove(&self, id: &VmId) -> Result<(), DriverError> {
        self.streams.end(id);
        self.network.forget(id);
        let folder = self.folder(id);
        let mut processes: Vec<ProcessId> = self.recorded_process(id)?.into_iter().collect();
        // One that was started by a server killed before it could write the number down.
        let found = self.processes()?.into_iter().filter(|(_, of)| of == id);
        processes.extend(found.map(|(process, _)| process));
        for process in processes {
            // Its disk is deleted: a gentler end would save nothing.
            process.kill(END_DEADLINE).await.map_err(|error| {
                DriverError::unknown(format!("the QEMU process {} of {id} does not end", process.pid)).caused_by(error)
            })?;
        }
        // A `qemu-img` that a killed server had started may still be writing; it takes milliseconds and cannot create the folder again.
        let begin = Instant::now();
        loop {
            let folder = folder.clone();
            match remove_files(move || folder.remove()).await {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && begin.elapsed() < STRAGGLER_DEADLINE => {
                    tokio::time::sleep(STRAGGLER_PAUSE).await;
                }
                result => {
                    return result.map_err(|error| error::io(format!("cannot remove the files of {id}"), error));
                }
            }
        }
    }
}

/// Removes files where it holds up nothing else: the disk may take seconds for it.
async fn remove_files(remove: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(remove).await.map_err(io::Error::other)?
}

#[async_trait]
impl Driver for QemuDriver {
    async fn stand_down(&self) -> Result<(), DriverError> {
        if self.list().await?.is_empty() {
            self.shutdown_network().await?;
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "qemu",
            memory_checkpoints: true,
            disk_checkpoints: true,
            pause: true,
            pause_to_disk: true,
            live_processes: true,
        }
    }

    async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        let (inner, spec) = (self.inner.clone(), spec.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(spec.id.clone()).await;
            start::create(&inner, &spec).await
        })
        .await
    }

    async fn fork(&self, spec: &ForkSpec) -> Result<Created, DriverError> {
        let (inner, spec) = (self.inner.clone(), spec.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(spec.id.clone()).await;
            fork::fork(&inner, &spec).await
        })
        .await
    }

    async fn checkpoint(&self, id: &VmId, spec: &CheckpointSpec) -> Result<CheckpointInfo, DriverError> {
        let (inner, id, spec) = (self.inner.clone(), id.clone(), spec.clone());
        to_the_end(async move { freeze::checkpoint(&inner, &id, &spec).await }).await
    }

    async fn snapshot(&self, id: &VmId, spec: &SnapshotSpec) -> Result<CheckpointInfo, DriverError> {
        let (inner, id, spec) = (self.inner.clone(), id.clone(), spec.clone());
        to_the_end(async move { freeze::snapshot(&inner, &id, &spec).await }).await
    }

    async fn environment(&self, image: Option<&str>, shape: VmShape) -> Result<String, DriverError> {
        // The first look may boot a tiny guest, which needs the network.
        let now = environment::describe(&self.inner, image, shape).await?;
        Ok(now.digest)
    }

    async fn check_image(&self, wanted: &str) -> Result<(), DriverError> {
        images::check(&self.inner.stores, wanted).await
    }

    async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError> {
        let templates = &self.inner.templates;
        let keys = templates.keys();
        let keys = keys.map_err(|error| error::io("cannot list the checkpoints", error))?;
        let mut found = Vec::new();
        for key in keys {
            match templates.read(&key) {
                Ok(manifest) => found.push(templates.info(&manifest)),
                // `check_checkpoint` and `fork` say what is wrong; here it must not hide the others.
                Err(error) => tracing::warn!(%key, %error, "a checkpoint cannot be read"),
            }
        }
        Ok(found)
    }

    async fn check_checkpoint(&self, key: &CheckpointKey, depth: CheckDepth) -> Result<(), DriverError> {
        let (templates, key) = (self.inner.templates.clone(), key.clone());
        let check = move || {
            let manifest = templates.read(&key)?;
            templates.check(&manifest, depth)
        };
        match depth {
            CheckDepth::Quick => check(),
            // Nobody waits for it, and it reads whole memories: claims go first.
            CheckDepth::Full => background::run("checkpoint-check", check)
                .await
                .unwrap_or_else(|error| Err(DriverError::unknown("the check was broken off").caused_by(error))),
        }
    }

    async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        to_the_end(async move {
            let _key = inner.key_gates.lock(key.clone()).await;
            let failed = |error| error::io(format!("cannot remove the checkpoint {key}"), error);
            let nobody_begins_to_use_it = inner.removals.write().await;
            if let Some(user) = inner.user_of(&key)? {
                return Err(DriverError::retry(format!(
                    "the checkpoint {key} is in use: it is a parent of {user}; it can be removed when that is gone"
                )));
            }
            let away = inner.templates.take_away(&key).map_err(failed)?;
            // Forks of other checkpoints need not wait for the disk.
            drop(nobody_begins_to_use_it);
            match away {
                Some(away) => remove_files(move || hearth_host::files::remove_all(&away))
                    .await
                    .map_err(failed),
                None => Ok(()),
            }
        })
        .await
    }

    async fn pause(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            match inner.inspect(&id)? {
                Some(VmState::Saved) => Ok(()),
                _ => inner.set_paused(&id, true).await,
            }
        })
        .await
    }

    async fn save(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _freezing = inner.freeze_gates.lock(id.clone()).await;
            let _gate = inner.gates.lock(id.clone()).await;
            save::save(&inner, &id).await
        })
        .await
    }

    async fn resume(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            save::before_resume(&inner, &id).await?;
            inner.set_paused(&id, false).await
        })
        .await
    }

    async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        let process = self.inner.recorded_process(id)?;
        let Some(process) = process else {
            return Err(DriverError::permanent(format!("there is no VM {id} that runs")));
        };
        let measure = || {
            let usage = usage::of_process(&process)?;
            let disk_bytes = self.inner.folder(id).bytes_on_disk()?;
            Ok::<_, io::Error>(VmUsage { disk_bytes, ..usage })
        };
        if self.inner.inspect(id)? == Some(VmState::Saved) {
            return save::usage(&self.inner.folder(id))
                .map_err(|error| error::io(format!("cannot measure the files of {id}"), error));
        }
        let alive = process.is_alive();
        match alive.map_err(|error| error::io(format!("cannot read the process of {id}"), error))? {
            true => measure().map_err(|error| error::io(format!("cannot measure {id}"), error)),
            false => Err(DriverError::permanent(format!("{id} does not run any more"))),
        }
    }

    async fn inspect(&self, id: &VmId) -> Result<Option<VmState>, DriverError> {
        self.inner.inspect(id)
    }

    async fn why_silent(&self, id: &VmId) -> Result<Option<String>, DriverError> {
        self.inner.why_silent(id).await
    }

    async fn full_disk(&self, id: &VmId) -> Result<Option<FullDisk>, DriverError> {
        self.inner.full_disk(id).await
    }

    async fn list(&self) -> Result<Vec<VmInfo>, DriverError> {
        self.inner.list()
    }

    async fn connect(&self, id: &VmId) -> Result<Box<dyn ByteStream>, DriverError> {
        let inner = &self.inner;
        let _gate = inner.gates.lock(id.clone()).await;
        // Of one that cannot be reached now, too: what came over it comes no more.
        inner.streams.end(id);
        inner.need_alive(id)?;
        let stream = inner.folder(id).connect("agent.sock", &inner.user).await;
        let stream = stream.and_then(|stream| inner.streams.wrap(id, stream));
        let stream = stream.map_err(|error| {
            DriverError::retry(format!("cannot connect to the agent's port of {id}: {error}")).caused_by(error)
        })?;
        Ok(Box::new(stream))
    }

    async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        match self.inner.folder(id).console(max_bytes) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => match self.inner.inspect(id)? {
                Some(_) => Ok(Vec::new()),
                None => Err(DriverError::permanent(format!("there is no VM {id}"))),
            },
            Err(error) => Err(error::io(format!("cannot read the console of {id}"), error)),
        }
    }

    async fn hold_egress(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let (inner, id, policy) = (self.inner.clone(), id.clone(), policy.clone());
        to_the_end(async move {
            if inner.inspect(&id)? == Some(VmState::Saved) {
                return inner.network.hold_later(&id, &policy);
            }
            inner.need_alive(&id)?;
            inner.network.hold(&id, &policy).await
        })
        .await
    }

    async fn egress(&self, id: &VmId) -> Result<Egress, DriverError> {
        if self.inner.inspect(id)? != Some(VmState::Saved) {
            self.inner.need_alive(id)?;
        }
        let place = self.inner.network.place(id)?;
        let (refused, more) = self.inner.network.refused(id).await?;
        let policy = place.map(|place| place.policy).unwrap_or_default();
        Ok(Egress { policy, refused, more })
    }

    async fn destroy(&self, id: &VmId) -> Result<(), DriverError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        to_the_end(async move {
            let _gate = inner.gates.lock(id.clone()).await;
            inner.remove(&id).await
        })
        .await
    }
}
