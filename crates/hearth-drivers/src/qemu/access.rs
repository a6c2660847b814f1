//! Who may open the files of VMs and templates. They hold what projects keep secret: a VM's memory and disk have its variables and
//! repositories in them. So they are open to the server's user and to the id that QEMU runs under, and to no other user of the
//! host; their names are no protection, since a template's key stands in replies and logs. When the server is root, QEMU's id gets at them as
//! a *group*, which can read and not change; it is an id that no other process has (`program.rs`). Data folders that an older
//! version has made are closed when a driver opens them.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use hearth_api::ids::VmId;

use super::folder::VmFolder;
use crate::vm_user::VmUser;

/// We list and change it; QEMU opens what it knows the name of.
const FOLDER: u32 = 0o700;
const FOLDER_FOR_QEMU: u32 = 0o710;
/// Frozen files are read-only.
const FROZEN: u32 = 0o400;
const FROZEN_FOR_QEMU: u32 = 0o440;
/// What only we read and write.
const OURS: u32 = 0o600;
/// The bits of all other users.
const OTHERS: u32 = 0o007;

/// Makes a folder, unless it is there, that no other user can enter.
pub(super) fn make_folder(path: &Path, user: &VmUser) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)?;
    close_folder(path, user)
}

/// Makes the folder of VMs, which no other user of the host can enter, and closes what an older version has left open in it.
pub(super) fn close_vms(vms: &Path, user: &VmUser) -> io::Result<()> {
    make_folder(vms, user)?;
    each(vms, |path, found| {
        let id = path.file_name().and_then(|name| name.to_str()?.parse::<VmId>().ok());
        match id.filter(|_| found.is_dir()) {
            Some(id) => VmFolder::new(vms, &id).close(user),
            None => Ok(()),
        }
    })
}

/// Only the server and QEMU can enter the folder, and only the server can list or change it.
pub(super) fn close_folder(path: &Path, user: &VmUser) -> io::Result<()> {
    set(path, user, FOLDER, FOLDER_FOR_QEMU)
}

/// Only the server and QEMU can read the file, and no user can write to it.
pub(super) fn freeze_file(path: &Path, user: &VmUser) -> io::Result<()> {
    set(path, user, FROZEN, FROZEN_FOR_QEMU)
}

/// Only we can open the file.
pub(super) fn keep_file(path: &Path) -> io::Result<()> {
    set(path, &VmUser::Same, OURS, OURS)
}

fn set(path: &Path, user: &VmUser, ours: u32, for_qemu: u32) -> io::Result<()> {
    let us = nix::unistd::geteuid().as_raw();
    let group = user.owner().unwrap_or_else(|| nix::unistd::getegid().as_raw());
    let mode = if user.owner().is_some() { for_qemu } else { ours };
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is a link"));
    }
    // Closed first: its next owner must not find it open to others.
    if bits(&found) != mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    if (found.uid(), found.gid()) != (us, group) {
        chown(path, Some(us), Some(group))?;
    }
    Ok(())
}

/// Takes away what all other users may do with the files of a VM, and nothing of what QEMU may do.
pub(super) fn close_files_of_vm(folder: &Path) -> io::Result<()> {
    each(folder, |path, found| {
        let mode = bits(found);
        if found.is_symlink() || mode & OTHERS == 0 {
            return Ok(());
        }
        fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS))
    })
}

/// Does something with everything in a folder. What goes away meanwhile is left out.
pub(super) fn each(folder: &Path, act: impl Fn(&Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
    let there = |result: io::Result<()>| match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        there(fs::symlink_metadata(&path).and_then(|found| act(&path, &found)))?;
    }
    Ok(())
}

fn bits(found: &Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}
