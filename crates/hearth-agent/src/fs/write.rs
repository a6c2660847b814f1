//! A file written whole or not at all: beside its place first, then renamed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use hearth_guest::files::FaultCode;
use hearth_tree::beside;

use super::fault;
use crate::files::{ALL_MODE_BITS, DEFAULT_MODE, make_folders};
use crate::reply::Fault;
use crate::users::Identity;

/// Mode of a file that is not whole yet.
const OWNER_ALONE: u32 = 0o600;

/// How what is made is to be; what is not given is as it was, or as usual.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: Option<u32>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
}

impl Attributes {
    /// Gives what was made its owner and mode.
    pub(super) fn apply(&self, path: &Path, mode: u32) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            let found = fs::symlink_metadata(path)?;
            if (found.uid(), found.gid()) != (uid, gid) {
                chown(path, Some(uid), Some(gid))?;
            }
        }
        // After the owner: changing that may take bits away.
        fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// Writes it; answers with where it is, which is elsewhere when the path is a link.
pub(super) fn replace(
    path: &Path,
    attributes: &Attributes,
    body: &mut impl Read,
    user: &Identity,
) -> Result<PathBuf, Fault> {
    let path = follow(path, user)?;
    let refused = |error: io::Error| fault::of(&path, user, &error);
    let existing = existing(&path, user)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folders(folder, attributes.owner).map_err(refused)?;
    let make = |path: &Path| {
        // Before it is there: watchers look.
        if let Some(name) = path.file_name() {
            beside::note(name, existing.is_some());
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(OWNER_ALONE)
            .open(path)
    };
    // Removed when anything below fails. No fsync: a VM that crashes is deleted.
    let mut file = tempfile::Builder::new()
        .prefix(beside::PREFIX)
        .make_in(folder, make)
        .map_err(|error| not_beside(folder, user, &error))?;
    io::copy(body, file.as_file_mut()).map_err(refused)?;
    let kept = Attributes {
        owner: attributes.owner.or(existing.map(|(owner, _)| owner)),
        ..*attributes
    };
    let mode = attributes
        .mode
        .or(existing.map(|(_, mode)| mode))
        .unwrap_or(DEFAULT_MODE);
    kept.apply(file.path(), mode).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => fault::coded(
            http::StatusCode::FORBIDDEN,
            FaultCode::Denied,
            format!(
                "the user {} may not write {} so that it has the owner and mode it is to have",
                user.name,
                path.display()
            ),
        ),
        _ => refused(error),
    })?;
    file.persist(&path).map_err(|error| refused(error.error))?;
    Ok(path)
}

/// Where a link leads in the end; the path itself when it is none. The kernel follows it, by its own rules.
fn follow(path: &Path, user: &Identity) -> Result<PathBuf, Fault> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_symlink());
    if path.file_name().is_none() {
        return Err(fault::conflict(
            FaultCode::IsFolder,
            format!("{} is a folder", path.display()),
        ));
    }
    if !is_link {
        return Ok(path.to_owned());
    }
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH)
        .open(path)
        .and_then(|file| fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))));
    place.map_err(|error| match error.kind() {
        ErrorKind::NotFound => fault::conflict(
            FaultCode::Conflict,
            format!(
                "{} is a link to something that does not exist: write there",
                path.display()
            ),
        ),
        _ => fault::of(path, user, &error),
    })
}

/// User and group, and the permission bits.
type Kept = ((u32, u32), u32);

/// Owner and mode of the file that is there; it must be one that the user may write.
fn existing(path: &Path, user: &Identity) -> Result<Option<Kept>, Fault> {
    let refused = |error: io::Error| fault::of(path, user, &error);
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.map_err(refused)?,
    };
    if found.is_dir() {
        return Err(fault::conflict(
            FaultCode::IsFolder,
            format!("{} is a folder", path.display()),
        ));
    }
    if !found.is_file() {
        let message = format!(
            "{} is a device, a pipe or a socket: write to it with a command",
            path.display()
        );
        return Err(fault::conflict(FaultCode::NotFile, message));
    }
    let may_write: io::Result<File> = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path);
    match may_write {
        // A program that runs is not written to; another file takes its place. Its permissions were looked at before.
        Err(error) if error.kind() != ErrorKind::ExecutableFileBusy => Err(refused(error)),
        _ => Ok(Some(((found.uid(), found.gid()), found.mode() & ALL_MODE_BITS))),
    }
}

/// Why no file can be made in a folder that is there.
fn not_beside(folder: &Path, user: &Identity, error: &io::Error) -> Fault {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::NotFound => fault::coded(
            http::StatusCode::FORBIDDEN,
            FaultCode::Denied,
            format!(
                "a file is written beside its place first, and the user {} can make none in {}: write with a command",
                user.name,
                folder.display()
            ),
        ),
        _ => fault::of(folder, user, error),
    }
}
