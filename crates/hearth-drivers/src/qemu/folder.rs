//! One VM's folder: `<data>/vms/<vm id>/`. Its existence is what makes a VM exist; the record in it is written before the
//! process, so a crash at any moment leaves something that `list` shows and `destroy` removes.
//!
//! ```text
//! vm.json       what it is and which process runs it        console.log   what the guest wrote to its console
//! disk.qcow2    its own layer over the image's disk          qemu.log      QEMU's own words
//! run/          qmp.sock, agent.sock                         paused        there while it is paused
//! ram           its memory, when it can be frozen            disk-1.qcow2  the layer above disk.qcow2 after it was frozen
//! memory        its memory, while it is paused to the disk   memory.part   the same, not whole yet
//! ```
//! When the server is root, the folder is root's and only disk, console and `run/` belong to the VMs' user: a QEMU that was
//! taken over can then not plant a link for root to follow. No other user of the host can enter it (`access.rs`).

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hearth_api::ids::VmId;
use hearth_host::files::bytes_on_disk;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::access;
use super::template::Layer;
use crate::network::INSIDE;
use crate::process::ProcessId;
use crate::vm_user::VmUser;
use crate::{CheckpointKey, VmShape};

/// A console log longer than this loses its beginning. A kernel's boot messages are 50 KiB.
const CONSOLE_CAP: u64 = 4 * 1024 * 1024;
/// How much of its end stays then.
const CONSOLE_KEEP: u64 = 1024 * 1024;
/// How much of QEMU's stderr goes into an error.
const OUTPUT_TAIL: u64 = 2048;

/// What `vm.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) id: VmId,
    /// Full digest of the image.
    pub(super) image: String,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_gib: u32,
    pub(super) qemu: String,
    pub(super) accelerator: String,
    pub(super) created_at: jiff::Timestamp,
    /// Absent until QEMU has been started.
    pub(super) process: Option<ProcessId>,
    #[serde(default)]
    pub(super) memory: MemoryKind,
    /// The checkpoint that it was forked from, or last frozen as.
    #[serde(default)]
    pub(super) template: Option<CheckpointKey>,
    /// The frozen layers between the image and its own, the lowest first.
    #[serde(default)]
    pub(super) chain: Vec<Layer>,
    /// Its own layers above those, by number; only the last is written to. More than one after a checkpoint that failed.
    #[serde(default = "first_disk")]
    pub(super) disks: Vec<usize>,
}

/// Where its memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum MemoryKind {
    /// Nowhere but in memory.
    #[default]
    Anonymous,
    /// In its own file: it can be frozen.
    Own,
    /// In its template's file, until it writes.
    Shared,
}

/// What a VM begins with.
pub(super) fn first_disk() -> Vec<usize> {
    vec![0]
}

impl Record {
    pub(super) fn shape(&self) -> VmShape {
        VmShape {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_gib: self.disk_gib,
        }
    }

    /// Whether the VM needs this checkpoint.
    pub(super) fn lies_on(&self, key: &CheckpointKey) -> bool {
        self.template.as_ref() == Some(key) || self.chain.iter().any(|layer| layer.template == *key)
    }
}

/// How much of a data folder is based on an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageUse {
    /// VMs.
    pub vms: usize,
    /// Checkpoints: the disks of their forks are based on this image's disk.
    pub templates: usize,
}

/// What is based on each image, in a data folder, by the image's full digest: such an image must stay. Asks no server; a data
/// folder without VMs has none.
pub fn images_in_use(data_dir: &Path) -> io::Result<BTreeMap<String, ImageUse>> {
    /// What the record of a VM and the manifest of a checkpoint both say.
    #[derive(Deserialize)]
    struct LiesOn {
        image: String,
    }
    let mut used: BTreeMap<String, ImageUse> = BTreeMap::new();
    for (folder, file) in [("vms", "vm.json"), ("templates", "manifest.json")] {
        let entries = match fs::read_dir(data_dir.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let text = match fs::read(entry?.path().join(file)) {
                Ok(text) => text,
                // It was removed just now, or is not whole yet.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            match serde_json::from_slice::<LiesOn>(&text) {
                Ok(LiesOn { image }) => {
                    let lies_on = used.entry(image).or_default();
                    if folder == "vms" {
                        lies_on.vms += 1;
                    } else {
                        lies_on.templates += 1;
                    }
                }
                // A checkpoint that cannot be read is of no use to anybody.
                Err(_) if folder == "templates" => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(used)
}

/// A place for one VM; need not exist.
#[derive(Debug, Clone)]
pub(super) struct VmFolder {
    path: PathBuf,
    id: VmId,
}

impl VmFolder {
    pub(super) fn new(vms: &Path, id: &VmId) -> Self {
        Self {
            path: vms.join(id.as_str()),
            id: id.clone(),
        }
    }

    /// An error is no "no": a VM would be given up that is there.
    pub(super) fn exists(&self) -> io::Result<bool> {
        self.path.try_exists()
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.disk_number(0)
    }

    /// One of its own disk layers.
    pub(super) fn disk_number(&self, number: usize) -> PathBuf {
        self.path.join(disk_file(number))
    }

    /// The same as QEMU sees it.
    pub(super) fn disk_number_inside(&self, number: usize) -> String {
        format!("{}/{}", self.inside(), disk_file(number))
    }

    /// Its memory, when that lies in a file of its own.
    pub(super) fn ram(&self) -> PathBuf {
        self.path.join("ram")
    }

    /// The same as QEMU sees it.
    pub(super) fn ram_inside(&self) -> String {
        format!("{}/ram", self.inside())
    }

    /// Where QEMU writes its devices' state to, and where it goes from there.
    pub(super) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The same as QEMU sees it.
    pub(super) fn state_inside(&self) -> String {
        format!("{}/state", self.inside())
    }

    /// Makes an empty file of a size that QEMU may write.
    pub(super) fn make_for_qemu(&self, path: &Path, bytes: u64, user: &VmUser) -> io::Result<()> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(bytes)?;
        give(path, user)
    }

    /// A file of it, by name.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn paused(&self) -> PathBuf {
        self.path.join("paused")
    }

    /// Records that it is paused, or is not any more.
    pub(super) fn set_paused(&self, paused: bool) -> io::Result<()> {
        if paused {
            return File::create(self.paused()).map(drop);
        }
        match fs::remove_file(self.paused()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn is_paused(&self) -> io::Result<bool> {
        self.paused().try_exists()
    }

    /// What its own files take on the disk.
    pub(super) fn bytes_on_disk(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.path)? {
            bytes += bytes_on_disk(&entry?.metadata()?);
        }
        Ok(bytes)
    }

    /// The folder as QEMU sees it.
    pub(super) fn inside(&self) -> String {
        format!("{INSIDE}/vms/{}", self.id)
    }

    /// Makes the folder with its record and empty logs. `record.process` is still absent.
    pub(super) fn make(&self, record: &Record, user: &VmUser) -> io::Result<()> {
        access::make_folder(&self.path, user)?;
        self.write(record)?;
        for log in [self.log_path(), self.console_path()] {
            File::create(&log)?;
            access::keep_file(&log)?;
        }
        access::make_folder(&self.path.join("run"), &VmUser::Same)
    }

    /// Closes what an older version has left open to other users of the host.
    pub(super) fn close(&self, user: &VmUser) -> io::Result<()> {
        access::close_files_of_vm(&self.path)?;
        access::close_folder(&self.path, user)
    }

    fn log_path(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    /// Gives QEMU's user what QEMU writes to.
    pub(super) fn hand_over(&self, user: &VmUser) -> io::Result<()> {
        for path in [self.disk(), self.console_path()] {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        for path in [self.disk(), self.console_path(), self.path.join("run")] {
            give(&path, user)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        hearth_host::files::write_json(&self.path.join("vm.json"), record)
    }

    /// `None` when there is none or it is torn: half made, either way.
    pub(super) fn read(&self) -> io::Result<Option<Record>> {
        match fs::read(self.path.join("vm.json")) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For QEMU's stdout and stderr.
    pub(super) fn open_log(&self) -> io::Result<File> {
        File::options().append(true).create(true).open(self.log_path())
    }

    /// The end of QEMU's own log, on one line.
    pub(super) fn last_output(&self) -> String {
        let tail = File::open(self.log_path()).and_then(|mut file| tail(&mut file, OUTPUT_TAIL));
        let text = String::from_utf8_lossy(&tail.unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            "QEMU printed no reason".into()
        } else {
            lines.join("; ")
        }
    }

    fn console_path(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The last bytes of the console.
    pub(super) fn console(&self, max_bytes: u64) -> io::Result<Vec<u8>> {
        tail(&mut File::open(self.console_path())?, max_bytes)
    }

    /// Gives the disk space of an overlong console log back, all but the end. The file keeps its length and QEMU its
    /// position in it: the beginning becomes a hole.
    pub(super) fn trim_console(&self) -> io::Result<()> {
        let file = File::options().write(true).open(self.console_path())?;
        let metadata = file.metadata()?;
        if bytes_on_disk(&metadata) <= CONSOLE_CAP {
            return Ok(());
        }
        let hole = metadata.len().saturating_sub(CONSOLE_KEEP);
        match rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, hole) {
            // A file system without holes: losing the text is better than losing the disk. QEMU appends, so it continues at 0.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(0),
            other => Ok(other?),
        }
    }

    /// Connects to one of QEMU's sockets. Through a handle on the folder, because the path to it may be longer than a
    /// socket's address can hold; and only to a socket that the VMs' user listens on.
    pub(super) async fn connect(&self, socket: &str, user: &VmUser) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder: OwnedFd = rustix::fs::open(self.path.join("run"), flags, Mode::empty())?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd())).await?;
        if stream.peer_cred()?.uid() != user.id() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the socket belongs to another user's process",
            ));
        }
        Ok(stream)
    }

    /// Removes all of it.
    pub(super) fn remove(&self) -> io::Result<()> {
        hearth_host::files::remove_all(&self.path)
    }
}

/// The name of one of a VM's own disk layers.
pub(super) fn disk_file(number: usize) -> String {
    if number == 0 {
        "disk.qcow2".into()
    } else {
        format!("disk-{number}.qcow2")
    }
}

/// Makes QEMU's user the owner, when that is another one than ours.
pub(super) fn give(path: &Path, user: &VmUser) -> io::Result<()> {
    match user.owner() {
        Some(owner) => chown(path, Some(owner), Some(owner)),
        None => Ok(()),
    }
}

fn tail(file: &mut File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;
    let mut bytes = Vec::new();
    // A guest may write faster than we read; `take` keeps the promise of `max_bytes`.
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_overlong_console_gives_its_space_back_and_goes_on() {
        let data = tempfile::tempdir().unwrap();
        let folder = VmFolder::new(data.path(), &VmId::generate());
        fs::create_dir(&folder.path).unwrap();
        let mut log = File::options()
            .append(true)
            .create(true)
            .open(folder.console_path())
            .unwrap();
        log.write_all(&vec![b'x'; usize::try_from(CONSOLE_CAP).unwrap() + 100_000])
            .unwrap();
        log.write_all(b"the end").unwrap();
        folder.trim_console().unwrap();
        assert!(log.metadata().unwrap().blocks() * 512 <= 2 * CONSOLE_KEEP);
        log.write_all(b" and more").unwrap();
        assert_eq!(folder.console(16).unwrap(), b"the end and more");
        assert!(!folder.console(CONSOLE_KEEP / 2).unwrap().contains(&0));
    }

    #[test]
    fn a_torn_record_is_none_and_an_unreadable_one_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        let folder = VmFolder::new(data.path(), &VmId::generate());
        assert!(!folder.exists().unwrap());
        fs::create_dir(&folder.path).unwrap();
        fs::write(folder.path.join("vm.json"), "{\"id\":").unwrap();
        assert_eq!(folder.read().unwrap(), None);
        fs::remove_file(folder.path.join("vm.json")).unwrap();
        fs::create_dir(folder.path.join("vm.json")).unwrap();
        assert!(folder.read().is_err());
    }

    #[test]
    fn an_image_is_in_use_while_a_vm_or_a_checkpoint_lies_on_it() {
        let data = tempfile::tempdir().unwrap();
        assert!(images_in_use(data.path()).unwrap().is_empty());
        for name in ["vm-1", "vm-2"] {
            let folder = VmFolder::new(&data.path().join("vms"), &name.parse().unwrap());
            fs::create_dir_all(&folder.path).unwrap();
            folder
                .write(&Record {
                    id: folder.id.clone(),
                    image: "digest".into(),
                    vcpus: 1,
                    memory_mib: 1,
                    disk_gib: 1,
                    qemu: String::new(),
                    accelerator: String::new(),
                    created_at: jiff::Timestamp::UNIX_EPOCH,
                    process: None,
                    memory: MemoryKind::Anonymous,
                    template: None,
                    chain: Vec::new(),
                    disks: first_disk(),
                })
                .unwrap();
        }
        for (name, text) in [
            ("a", r#"{"image":"digest"}"#),
            ("b", r#"{"image":"other"}"#),
            ("torn", "{"),
        ] {
            let folder = data.path().join("templates").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("manifest.json"), text).unwrap();
        }
        let used = images_in_use(data.path()).unwrap();
        let lies_on = |vms, templates| ImageUse { vms, templates };
        assert_eq!(
            used,
            BTreeMap::from([
                ("digest".to_owned(), lies_on(2, 1)),
                ("other".to_owned(), lies_on(0, 1))
            ])
        );
    }
}
