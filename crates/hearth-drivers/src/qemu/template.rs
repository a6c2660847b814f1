//! Checkpoints on the disk: `<data>/templates/<key>/`, each written under another name, synced and then renamed, so that
//! there is a whole one or none. Read-only afterwards. Knows nothing of processes.
//!
//! ```text
//! ram             the VM's memory, sparse         manifest.json   what it is, with size, time and checksum of every file
//! state           its devices                     used            empty; its time says when it was last forked
//! disk-0.qcow2 …  its frozen disk layers, the lowest first
//! ```
//! Folders that begin with a dot are not (or no longer) templates: the process that makes or removes one holds a lock on it, and
//! those without a lock are swept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hearth_host::files::{bytes_on_disk, remove_all};
use hearth_host::sparse;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::access;
use crate::network::INSIDE;
use crate::vm_user::VmUser;
use crate::{CheckDepth, CheckpointFault, CheckpointInfo, CheckpointKey, DriverError, VmShape, error};

pub(super) const RAM: &str = "ram";
/// An empty file in a template whose checksums did not fit.
const FOUND_DAMAGED: &str = "damaged";
pub(super) const STATE: &str = "state";
const MANIFEST: &str = "manifest.json";
const USED: &str = "used";
/// Being made, and being removed.
const MAKING_PREFIX: &str = ".making-";
const REMOVING_PREFIX: &str = ".removing-";
/// Counts up when the files' meaning changes: an older one is then as good as damaged.
const MANIFEST_VERSION: u32 = 1;

/// One frozen disk layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layer {
    pub(super) template: CheckpointKey,
    pub(super) file: String,
    pub(super) stamp: Stamp,
}

/// Tells a file that was changed or cut: its size, and when it was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stamp {
    bytes: u64,
    seconds: i64,
    nanos: i64,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
        }
        Ok(Self {
            bytes: metadata.len(),
            seconds: metadata.mtime(),
            nanos: metadata.mtime_nsec(),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileFacts {
    stamp: Stamp,
    /// Absent in one that is not kept.
    sha256: Option<String>,
}

/// What `manifest.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    version: u32,
    pub(super) key: CheckpointKey,
    parent: Option<CheckpointKey>,
    labels: BTreeMap<String, String>,
    pub(super) image: String,
    pub(super) environment: String,
    pub(super) shape: VmShape,
    pub(super) qemu: String,
    agent_version: String,
    created: jiff::Timestamp,
    paused_ms: u64,
    bytes: u64,
    /// Every frozen layer above the image, the lowest first; the last ones are its own.
    pub(super) chain: Vec<Layer>,
    /// Where the memory begins in the file `ram`, when QEMU wrote it ([`memory_file`](super::memory_file)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) memory_at: Option<u64>,
    files: BTreeMap<String, FileFacts>,
}

/// What the maker of a template says about it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) parent: Option<CheckpointKey>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) image: String,
    pub(super) environment: String,
    pub(super) shape: VmShape,
    pub(super) qemu: String,
    pub(super) agent_version: String,
    pub(super) paused_ms: u64,
    /// The layers below its own.
    pub(super) below: Vec<Layer>,
    /// Where the memory begins in the file `ram`, when QEMU wrote it.
    pub(super) memory_at: Option<u64>,
    /// It is synced and summed: it outlives the host's end, and every byte can be checked.
    pub(super) kept: bool,
}

impl Manifest {
    /// The templates that are parents of its disk.
    pub(super) fn lies_on(&self) -> impl Iterator<Item = &CheckpointKey> {
        self.chain
            .iter()
            .map(|layer| &layer.template)
            .chain(&self.parent)
            .filter(|key| **key != self.key)
    }
}

/// The folder of templates.
#[derive(Debug)]
pub(super) struct Templates {
    folder: PathBuf,
    /// Who reads them besides us.
    user: VmUser,
}

/// A template that is being made; goes away unless it is finished.
#[derive(Debug)]
pub(super) struct Making {
    key: CheckpointKey,
    path: PathBuf,
    /// Locked: a sweep by another driver leaves the folder alone.
    _lock: File,
    disks: usize,
}

impl Templates {
    /// Makes the folder, sweeps what a crash has left in it, and closes what an older version has left open.
    pub(super) fn open(folder: PathBuf, user: VmUser) -> io::Result<Self> {
        access::make_folder(&folder, &user)?;
        let templates = Self { folder, user };
        templates.sweep()?;
        templates.close()?;
        Ok(templates)
    }

    fn close(&self) -> io::Result<()> {
        access::each(&self.folder, |path, found| {
            let is_key = path
                .file_name()
                .and_then(|name| name.to_str()?.parse::<CheckpointKey>().ok());
            if !found.is_dir() || is_key.is_none() {
                return Ok(());
            }
            access::each(path, |file, found| {
                match file.file_name().and_then(|name| name.to_str()) {
                    _ if !found.is_file() => Ok(()),
                    Some(MANIFEST | USED | FOUND_DAMAGED) => access::keep_file(file),
                    _ => access::freeze_file(file, &self.user),
                }
            })?;
            access::close_folder(path, &self.user)
        })
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_rubbish = name
                .to_str()
                .is_some_and(|name| name.starts_with(MAKING_PREFIX) || name.starts_with(REMOVING_PREFIX));
            if is_rubbish && lock(&entry.path()).is_ok_and(|lock| lock.is_some()) {
                tracing::info!(folder = %entry.path().display(), "sweeping an unfinished checkpoint");
                remove_all(&entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self, key: &CheckpointKey) -> PathBuf {
        self.folder.join(key.as_str())
    }

    /// A template's file as QEMU sees it.
    pub(super) fn inside(key: &CheckpointKey, file: &str) -> String {
        format!("{INSIDE}/templates/{key}/{file}")
    }

    /// The templates that are there, by their folders' names.
    pub(super) fn keys(&self) -> io::Result<Vec<CheckpointKey>> {
        let names = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        let mut keys: Vec<CheckpointKey> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Reads one. A [`CheckpointFault`] when there is none or its manifest is not what it should be.
    pub(super) fn read(&self, key: &CheckpointKey) -> Result<Manifest, DriverError> {
        let path = self.path(key).join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fault = if self.path(key).exists() {
                    damaged(key, MANIFEST, "it is gone")
                } else {
                    CheckpointFault::Missing { key: key.clone() }
                };
                return Err(fault.into());
            }
            Err(error) => return Err(error::io(format!("cannot read {}", path.display()), error)),
        };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged(key, MANIFEST, &error.to_string()))?;
        if manifest.key != *key || manifest.version != MANIFEST_VERSION {
            return Err(damaged(
                key,
                MANIFEST,
                "it is that of another checkpoint or of another version of Hearth",
            )
            .into());
        }
        Ok(manifest)
    }

    /// What a driver tells of a template.
    pub(super) fn info(&self, manifest: &Manifest) -> CheckpointInfo {
        let used = fs::metadata(self.path(&manifest.key).join(USED)).and_then(|metadata| metadata.modified());
        let used = used.ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
        CheckpointInfo {
            key: manifest.key.clone(),
            parent: manifest.parent.clone(),
            labels: manifest.labels.clone(),
            image: manifest.image.clone(),
            environment: manifest.environment.clone(),
            shape: manifest.shape,
            engine: manifest.qemu.clone(),
            agent_version: manifest.agent_version.clone(),
            created: manifest.created,
            last_used: used.unwrap_or(manifest.created),
            paused_ms: manifest.paused_ms,
            bytes: manifest.bytes,
        }
    }

    /// Whether its files, and its parents' disks, are what they were.
    pub(super) fn check(&self, manifest: &Manifest, depth: CheckDepth) -> Result<(), DriverError> {
        let key = &manifest.key;
        if self.path(key).join(FOUND_DAMAGED).exists() {
            return Err(damaged(key, RAM, "an earlier check of every byte found it changed").into());
        }
        let own = manifest.files.iter().map(|(name, facts)| (key, name, facts.stamp));
        let below = manifest.chain.iter().filter(|layer| layer.template != *key);
        let below = below.map(|layer| (&layer.template, &layer.file, layer.stamp));
        for (of, name, stamp) in own.chain(below) {
            let path = self.path(of).join(name);
            let what = match Stamp::of(&path) {
                Ok(found) if found == stamp => continue,
                Ok(found) if found.bytes != stamp.bytes => {
                    format!("it has {} bytes instead of {}", found.bytes, stamp.bytes)
                }
                Ok(_) => "it was written to after it was made".to_owned(),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                    error.to_string()
                }
                // Anything else (no file handles left) says nothing about the file.
                Err(error) => return Err(error::io(format!("cannot look at {}", path.display()), error)),
            };
            let file = if of == key {
                name.clone()
            } else {
                format!("{of}/{name}")
            };
            return Err(damaged(key, &file, &what).into());
        }
        if depth == CheckDepth::Full {
            for (name, facts) in &manifest.files {
                let path = self.path(key).join(name);
                let Some(wanted) = &facts.sha256 else { continue };
                let sum = sparse::checksum(&path);
                let sum = sum.map_err(|error| damaged(key, name, &format!("it cannot be read: {error}")))?;
                if sum != *wanted {
                    // Sizes and times still fit: without this mark the next fork would use it.
                    if let Err(error) = File::create(self.path(key).join(FOUND_DAMAGED)) {
                        tracing::warn!(%error, %key, "a damaged checkpoint could not be marked");
                    }
                    return Err(damaged(key, name, "its checksum is another one").into());
                }
            }
        }
        Ok(())
    }

    /// Notes that it was used now.
    pub(super) fn touch(&self, key: &CheckpointKey) -> io::Result<()> {
        let file = File::options().append(true).open(self.path(key).join(USED))?;
        file.set_modified(SystemTime::now())
    }

    /// Begins a new one.
    pub(super) fn begin(&self, key: &CheckpointKey) -> io::Result<Making> {
        let path = self.folder.join(format!("{MAKING_PREFIX}{key}"));
        // Of a crashed maker; a living one in this process is excluded by the caller.
        remove_all(&path)?;
        access::make_folder(&path, &VmUser::Same)?;
        let lock = lock(&path)?.ok_or_else(|| io::Error::other("another server is making it"))?;
        Ok(Making {
            key: key.clone(),
            path,
            _lock: lock,
            disks: 0,
        })
    }

    /// Puts a template whose files are all there into its place. Slow: reads and syncs all of it.
    pub(super) fn finish(&self, making: Making, facts: Facts) -> io::Result<Manifest> {
        let mut files = BTreeMap::new();
        let mut chain = facts.below;
        let mut bytes = 0;
        let disks = (0..making.disks).map(disk_name);
        for name in [RAM.to_owned(), STATE.to_owned()].into_iter().chain(disks) {
            let path = making.path.join(&name);
            let file = File::open(&path)?;
            // What QEMU's user owned is ours from here on.
            access::freeze_file(&path, &self.user)?;
            bytes += bytes_on_disk(&file.metadata()?);
            let sha256 = match facts.kept {
                true => Some(sync_and_sum(&file, &path)?),
                false => None,
            };
            let stamp = Stamp::of(&path)?;
            if name != RAM && name != STATE {
                chain.push(Layer {
                    template: making.key.clone(),
                    file: name.clone(),
                    stamp,
                });
            }
            files.insert(name, FileFacts { stamp, sha256 });
        }
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            key: making.key.clone(),
            parent: facts.parent,
            labels: facts.labels,
            image: facts.image,
            environment: facts.environment,
            shape: facts.shape,
            qemu: facts.qemu,
            agent_version: facts.agent_version,
            created: jiff::Timestamp::now(),
            paused_ms: facts.paused_ms,
            bytes,
            chain,
            memory_at: facts.memory_at,
            files,
        };
        let used = making.path.join(USED);
        File::create(&used)?;
        access::keep_file(&used)?;
        let path = making.path.join(MANIFEST);
        let file = File::create(&path)?;
        serde_json::to_writer_pretty(&file, &manifest)?;
        file.sync_all()?;
        access::keep_file(&path)?;
        access::close_folder(&making.path, &self.user)?;
        File::open(&making.path)?.sync_all()?;
        // A damaged one of this name is what the caller wants replaced.
        self.remove(&making.key)?;
        fs::rename(&making.path, self.path(&making.key))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(manifest)
    }

    /// Removes one. The caller knows that it is no parent.
    pub(super) fn remove(&self, key: &CheckpointKey) -> io::Result<()> {
        self.take_away(key)?.map_or(Ok(()), |away| remove_all(&away))
    }

    /// Moves one out of sight, so that a crash leaves no half of it: where its files are now, which are to be removed. That can take
    /// seconds, because a memory file has thousands of extents and some file systems discard each on the disk. The caller knows that it
    /// is no parent.
    pub(super) fn take_away(&self, key: &CheckpointKey) -> io::Result<Option<PathBuf>> {
        let away = self.folder.join(format!("{REMOVING_PREFIX}{key}"));
        remove_all(&away)?;
        match fs::rename(self.path(key), &away) {
            Ok(()) => Ok(Some(away)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Making {
    /// Where the next file of this name goes.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A layer that it will hold, as QEMU will see it.
    pub(super) fn disk_inside(&self, index: usize) -> String {
        Templates::inside(&self.key, &disk_name(index))
    }

    /// Takes a frozen disk layer in, above those it has. It keeps its old name too, so that nothing is lost when this
    /// template never gets finished.
    pub(super) fn add_disk(&mut self, from: &Path) -> io::Result<()> {
        fs::hard_link(from, self.path.join(disk_name(self.disks)))?;
        self.disks += 1;
        Ok(())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // After `finish` it has another name and this finds nothing.
        if let Err(error) = remove_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "an unfinished checkpoint is left; it is swept at the next start");
        }
    }
}

/// The disk works while the processors sum.
fn sync_and_sum(file: &File, path: &Path) -> io::Result<String> {
    let (synced, sum) = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync_all());
        let sum = sparse::checksum(path);
        (syncing.join(), sum)
    });
    synced.map_err(|_| io::Error::other("a thread died"))??;
    sum
}

/// The name of a template's own layer.
fn disk_name(index: usize) -> String {
    format!("disk-{index}.qcow2")
}

fn damaged(key: &CheckpointKey, file: &str, what: &str) -> CheckpointFault {
    CheckpointFault::Damaged {
        key: key.clone(),
        what: format!("{file}: {what}"),
    }
}

/// A lock on a folder that ends with its holder; `None` when another process has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
