//! A folder that nothing leaves: every path is walked part by part from an open folder on, and no link is ever followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::beside;

/// Attempts to find a name that nobody has.
const ATTEMPTS: u32 = 1000;

/// The parts of a path below; `None` when it could lead outside.
pub(crate) fn parts(path: &Path) -> Option<Vec<&OsStr>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// Why a folder on the way could not be entered.
#[derive(Debug)]
pub(crate) enum WayError {
    /// A part of the way is a link, or something else that is no folder.
    NoFolder,
    Io(io::Error),
}

impl From<Errno> for WayError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The folder, and the one below it that was entered last.
#[derive(Debug)]
pub(crate) struct Below {
    top: OwnedFd,
    last: Option<(Vec<OsString>, OwnedFd)>,
    next_name: u32,
    /// Folders that are made get this owner.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Below {
    pub(crate) fn open(top: &Path) -> io::Result<Self> {
        Ok(Self {
            top: File::open(top)?.into(),
            last: None,
            next_name: 0,
            owner: None,
        })
    }

    /// The folder of these parts; what is missing of it is made.
    pub(crate) fn enter(&mut self, parts: &[&OsStr]) -> Result<&OwnedFd, WayError> {
        let is_last = self.last.as_ref().is_some_and(|(last, _)| last == parts);
        if !is_last {
            let mut at = self.top.try_clone().map_err(WayError::Io)?;
            for part in parts {
                at = match folder(&at, part) {
                    Err(Errno::NOENT) => {
                        self.make(&at, part)?;
                        folder(&at, part)?
                    }
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        return Err(WayError::NoFolder);
                    }
                    entered => entered?,
                };
            }
            self.last = Some((parts.iter().map(|part| (*part).to_owned()).collect(), at));
        }
        Ok(self.last.as_ref().map_or(&self.top, |(_, folder)| folder))
    }

    fn make(&self, at: &OwnedFd, name: &OsStr) -> Result<(), WayError> {
        match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
            // Somebody else was as fast; what it is shows when it is entered.
            Err(Errno::EXIST) => return Ok(()),
            made => made?,
        }
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
            rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Makes something under a name that nobody has, in a folder that was entered, then gives it its own name, over what is there.
    pub(crate) fn put<T>(
        &mut self,
        parents: &[&OsStr],
        name: &OsStr,
        mut make: impl FnMut(&OwnedFd, &str) -> Result<T, PutError>,
    ) -> Result<T, PutError> {
        let mut attempts = 0;
        loop {
            self.next_name = self.next_name.wrapping_add(1);
            let hidden = format!("{}{}-{}", beside::PREFIX, std::process::id(), self.next_name);
            let at = self.enter(parents).map_err(PutError::Way)?;
            let replaces = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            beside::note(OsStr::new(&hidden), replaces);
            let made = match make(at, &hidden) {
                Err(PutError::Taken) if attempts < ATTEMPTS => {
                    attempts += 1;
                    continue;
                }
                // Not ours.
                Err(PutError::Taken) => return Err(PutError::Io(io::ErrorKind::AlreadyExists.into())),
                made => made,
            };
            let placed = made.and_then(|made| {
                renameat(at, hidden.as_str(), at, name).map_err(|error| PutError::Io(error.into()))?;
                Ok(made)
            });
            // It is gone, unless something failed, or the name was one more of the same file already.
            let _ = unlinkat(at, hidden.as_str(), AtFlags::empty());
            return placed;
        }
    }
}

/// Why something could not be put in its place.
#[derive(Debug)]
pub(crate) enum PutError {
    /// The hidden name is somebody's.
    Taken,
    Way(WayError),
    /// The stream broke.
    Stream(io::Error),
    Io(io::Error),
}

impl PutError {
    /// Of what makes the hidden name.
    pub(crate) fn making(error: Errno) -> Self {
        match error {
            Errno::EXIST => Self::Taken,
            error => Self::Io(error.into()),
        }
    }
}

/// Opens a folder that is one itself.
fn folder(at: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}
