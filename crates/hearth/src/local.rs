//! How a client on the server's own machine finds it: each server leaves a small file in a private folder of its user and
//! holds a lock on it for as long as it lives. The lock, not the process id, says whether the server is alive: ids come back.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Names another folder for the files.
pub(crate) const RUNTIME_DIR_VARIABLE: &str = "HEARTH_RUNTIME_DIR";
/// Names of the files: this, the process id, `.json`.
const FILE_PREFIX: &str = "server-";
const FILE_SUFFIX: &str = ".json";
/// And that of its private socket.
const SOCKET_SUFFIX: &str = ".sock";
/// The folder of a server that runs as a service.
const SERVICE: &str = "/run/hearth";
/// Longest entry: two paths and an address.
const MAX_ENTRY_BYTES: u64 = 64 * 1024;
/// Bits that let another user put a file into the folder.
const OTHERS_WRITE_BITS: u32 = 0o022;

/// What a server says about itself to clients of the same user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LocalServer {
    /// Its address.
    pub(crate) url: String,
    /// The file that holds the admin token.
    pub(crate) token_file: PathBuf,
    /// Its process id, for people.
    pub(crate) pid: u32,
    /// Its data folder.
    pub(crate) data_dir: PathBuf,
}

/// A server's entry; it goes away when this is dropped, and counts as dead when the process dies without dropping it.
#[derive(Debug)]
pub(crate) struct Registration {
    path: PathBuf,
    _lock: File,
}

impl Registration {
    /// Writes the entry and locks it.
    pub(crate) fn create(server: &LocalServer) -> io::Result<Self> {
        let folder = runtime_dir();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        check_folder(&folder)?;
        remove_dead(&folder);
        let path = folder.join(format!("{FILE_PREFIX}{}{FILE_SUFFIX}", server.pid));
        let unready = folder.join(format!(".{FILE_PREFIX}{}", server.pid));
        // A leftover under our own process id belongs to a process that is gone.
        let _ = fs::remove_file(&unready);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unready)?;
        file.lock()?;
        file.write_all(&serde_json::to_vec(server)?)?;
        // Only a whole and locked file gets the name that clients look for.
        fs::rename(&unready, &path)?;
        Ok(Self { path, _lock: file })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // If it fails, the lock still says that we are gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where a server listens for clients of its own user, besides where it was told to.
pub(crate) fn private_socket() -> io::Result<PathBuf> {
    let folder = runtime_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    check_folder(&folder)?;
    Ok(folder.join(format!("{FILE_PREFIX}{}{SOCKET_SUFFIX}", std::process::id())))
}

/// Forgets servers that are gone, and the folder of their entries when there is none left.
pub(crate) fn forget_dead() {
    let folder = runtime_dir();
    if check_folder(&folder).is_ok() {
        remove_dead(&folder);
        // It is not empty while a server lives.
        let _ = fs::remove_dir(&folder);
    }
}

/// Every living server of this user on this machine.
pub(crate) fn servers() -> io::Result<Vec<LocalServer>> {
    let folder = runtime_dir();
    match fs::metadata(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // Another user's folder (the server runs as root, say) is not used.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(_) => check_folder(&folder)?,
    }
    let mut found: Vec<LocalServer> = entries(&folder)
        .into_iter()
        .filter_map(|path| {
            let file = File::open(&path).ok()?;
            if is_dead(&file) {
                return None;
            }
            serde_json::from_reader(file.take(MAX_ENTRY_BYTES)).ok()
        })
        .collect();
    found.sort_by_key(|server| server.pid);
    Ok(found)
}

/// The folder of the entries: private to one user.
fn runtime_dir() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(folder) = set(RUNTIME_DIR_VARIABLE) {
        return folder;
    }
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return PathBuf::from(SERVICE);
    }
    // The user of the service has it, made by the service manager.
    if fs::metadata(SERVICE).is_ok_and(|meta| meta.uid() == user.as_raw()) {
        return PathBuf::from(SERVICE);
    }
    match set("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("hearth"),
        None => PathBuf::from(format!("/tmp/hearth-{user}")),
    }
}

/// A folder that others can write to could name a server that collects tokens.
fn check_folder(folder: &Path) -> io::Result<()> {
    let refuse = |what: &str| {
        let text = format!(
            "the folder {} {what}; make it private to you (`chmod 700`) or name another in {RUNTIME_DIR_VARIABLE}",
            folder.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    let meta = fs::symlink_metadata(folder)?;
    if !meta.is_dir() {
        return refuse("is no folder");
    }
    let user = nix::unistd::geteuid();
    if meta.uid() != user.as_raw() {
        if user.is_root() && folder == Path::new(SERVICE) {
            let owner = nix::unistd::User::from_uid(meta.uid().into()).ok().flatten();
            let owner = owner.map_or_else(|| meta.uid().to_string(), |owner| owner.name);
            let text = format!(
                "the server on this machine is the service of the user {owner}: run `sudo -u {owner} hearth …`, or set HEARTH_URL and HEARTH_TOKEN"
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        return refuse("belongs to another user");
    }
    if meta.permissions().mode() & OTHERS_WRITE_BITS != 0 {
        return refuse("can be changed by others");
    }
    Ok(())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(FILE_PREFIX) && name.ends_with(FILE_SUFFIX)
    };
    read.filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(named)
        .collect()
}

/// The server keeps its lock until it is gone, however it goes.
fn is_dead(file: &File) -> bool {
    file.try_lock_shared().is_ok()
}

fn remove_dead(folder: &Path) {
    for path in entries(folder) {
        if File::open(&path).is_ok_and(|file| is_dead(&file)) {
            let _ = fs::remove_file(path.with_extension("sock"));
            let _ = fs::remove_file(path);
        }
    }
}
