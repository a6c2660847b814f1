//! One entry of a folder as the host is told of it.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_guest::files::{Entry, EntryKind};

use super::fault;
use crate::files::ALL_MODE_BITS;
use crate::reply::Fault;
use crate::users::{Identity, group_names, user_names};

const MS_PER_S: i64 = 1000;
const NS_PER_MS: i64 = 1_000_000;

/// The names of users and groups, read when the first one is needed.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: OnceCell<HashMap<u32, String>>,
    groups: OnceCell<HashMap<u32, String>>,
}

impl Names {
    fn user(&self, uid: u32) -> String {
        let known = self.users.get_or_init(user_names).get(&uid);
        known.cloned().unwrap_or_else(|| uid.to_string())
    }

    fn group(&self, gid: u32) -> String {
        let known = self.groups.get_or_init(group_names).get(&gid);
        known.cloned().unwrap_or_else(|| gid.to_string())
    }
}

pub(super) fn at(path: &Path, user: &Identity) -> Result<Entry, Fault> {
    read(path, &Names::default()).map_err(|error| fault::of(path, user, &error))
}

/// The same, for many.
pub(super) fn read(path: &Path, names: &Names) -> io::Result<Entry> {
    let found = fs::symlink_metadata(path)?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let is_link = found.file_type().is_symlink();
    let target = is_link.then(|| fs::read_link(path)).transpose()?;
    Ok(Entry {
        name: name.to_string_lossy().into_owned(),
        name_base64: name.to_str().is_none().then(|| STANDARD.encode(name.as_bytes())),
        path: path.to_string_lossy().into_owned(),
        kind: kind(&found),
        size: found.len(),
        mode: found.mode() & ALL_MODE_BITS,
        uid: found.uid(),
        gid: found.gid(),
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        modified_unix_ms: modified_unix_ms(&found),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    })
}

pub(super) fn modified_unix_ms(found: &Metadata) -> i64 {
    // A file system may hold any number.
    found
        .mtime()
        .saturating_mul(MS_PER_S)
        .saturating_add(found.mtime_nsec() / NS_PER_MS)
}

fn kind(found: &Metadata) -> EntryKind {
    let kind = found.file_type();
    if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Directory
    } else if kind.is_symlink() {
        EntryKind::Symlink
    } else {
        EntryKind::Other
    }
}
