//! Folders made, entries renamed and removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use hearth_guest::files::FaultCode;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::fault;
use super::write::Attributes;
use crate::files::{FOLDER_MODE, make_folders};
use crate::reply::Fault;
use crate::users::Identity;

/// Makes a folder with all that is missing above it.
pub(super) fn make_folder(path: &Path, attributes: &Attributes, user: &Identity) -> Result<(), Fault> {
    let refused = |error: io::Error| match (error.kind(), fs::metadata(path)) {
        (ErrorKind::AlreadyExists, Ok(found)) if found.is_dir() => fault::conflict(
            FaultCode::Exists,
            format!("the folder {} exists already", path.display()),
        ),
        (ErrorKind::AlreadyExists, _) => fault::conflict(
            FaultCode::NotFolder,
            format!("{} exists already and is not a folder", path.display()),
        ),
        _ => fault::of(path, user, &error),
    };
    if let Some(above) = path.parent() {
        make_folders(above, attributes.owner).map_err(refused)?;
    }
    fs::create_dir(path).map_err(refused)?;
    attributes
        .apply(path, attributes.mode.unwrap_or(FOLDER_MODE))
        .map_err(refused)
}

/// Renames, and makes what is missing above the new place.
pub(super) fn rename(from: &Path, to: &Path, replace: bool, user: &Identity) -> Result<(), Fault> {
    fs::symlink_metadata(from).map_err(|error| fault::of(from, user, &error))?;
    let refused = |error: io::Error| match error.kind() {
        ErrorKind::InvalidInput => fault::conflict(
            FaultCode::Conflict,
            format!("{} cannot be moved into itself", from.display()),
        ),
        // The old place was there just now.
        _ => fault::of(to, user, &error),
    };
    if let Some(above) = to.parent() {
        make_folders(above, None).map_err(refused)?;
    }
    let renamed = if replace {
        fs::rename(from, to)
    } else {
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(Into::into)
    };
    renamed.map_err(refused)
}

/// Removes an entry; a folder with what it holds only when that is wanted.
pub(super) fn remove(path: &Path, recursive: bool, user: &Identity) -> Result<(), Fault> {
    let refused = |error: io::Error| match error.kind() {
        ErrorKind::DirectoryNotEmpty => fault::conflict(
            FaultCode::NotEmpty,
            format!("the folder {} is not empty: ask for it recursively", path.display()),
        ),
        _ => fault::of(path, user, &error),
    };
    let named = path.components().next_back();
    if !matches!(named, Some(Component::Normal(_))) {
        return Err(fault::invalid(format!(
            "{} is nothing that can be removed",
            path.display()
        )));
    }
    let found = fs::symlink_metadata(path).map_err(refused)?;
    let removed = match (found.is_dir(), recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    };
    removed.map_err(refused)
}
