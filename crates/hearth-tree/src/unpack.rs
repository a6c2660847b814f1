//! A tar stream becomes what a folder holds. Whatever the stream says, nothing outside of that folder is made, changed or removed.
//!
//! A file is written under another name and then renamed: half of one is never seen under its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, chownat, fchmod, fchown, futimens, linkat, openat, statat,
    symlinkat,
};
use rustix::process::{Gid, Uid};
use tar::{Archive, Entry, EntryType};

use super::Skipped;
use super::below::{Below, PutError, WayError, parts};

/// How much is copied at once.
const CHUNK: usize = 64 * 1024;
/// More levels than any path that Linux takes has.
const MAX_PARTS: usize = 2048;

/// Which symbolic links are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// All, wherever they lead: nothing is ever written through one.
    All,
    /// Those that stay below the folder; the others are skipped.
    Inside,
}

/// How it is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which symbolic links are made.
    pub links: Links,
    /// Permission bits that files may have.
    pub mode_mask: u32,
    /// User and group of what is made; the unpacking process's when absent.
    pub owner: Option<(u32, u32)>,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is missing: here, or since it was packed.
    pub skipped: Skipped,
}

/// Why not all was unpacked. What was unpacked before stays.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry that would land outside. It is refused and not skipped: the sender is wrong about something.
    #[error("the tar entry {0:?} would land outside of the folder")]
    Outside(PathBuf),
    /// The stream is no tar stream, or broke off.
    #[error("the tar stream could not be read: {}", innermost(.0))]
    Stream(#[source] io::Error),
    /// The system refused something here.
    #[error("{}: {error}", path.display())]
    Here {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Unpacks below `folder`, which is made when it is missing.
pub fn unpack(folder: &Path, from: impl Read, options: Options) -> Result<Unpacked, UnpackError> {
    let here = |error| UnpackError::Here {
        path: folder.to_owned(),
        error,
    };
    fs::create_dir_all(folder).map_err(here)?;
    let mut below = Below::open(folder).map_err(here)?;
    below.owner = options.owner;
    let mut unpacker = Unpacker {
        folder,
        below,
        options,
        folders: Vec::new(),
        done: Unpacked::default(),
    };
    let mut archive = Archive::new(from);
    for entry in archive.entries().map_err(UnpackError::Stream)? {
        unpacker.entry(&mut entry.map_err(UnpackError::Stream)?)?;
    }
    // Some writers pad the end; one that is not read to its end would look broken off to them.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Stream)?;
    unpacker.end()
}

struct Unpacker<'a> {
    folder: &'a Path,
    below: Below,
    options: Options,
    /// New folders get their modes last: one may forbid to write into it.
    folders: Vec<(PathBuf, u32)>,
    done: Unpacked,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            let skipped = Skipped::read(entry).map_err(UnpackError::Stream)?;
            self.done.skipped.join(skipped);
            return Ok(());
        }
        let path = entry.path().map_err(UnpackError::Stream)?.into_owned();
        let outside = || UnpackError::Outside(path.clone());
        let all = parts(&path)
            .filter(|parts| parts.len() <= MAX_PARTS)
            .ok_or_else(outside)?;
        // The folder itself: it is there.
        let Some((name, parents)) = all.split_last() else {
            return Ok(());
        };
        let mode = entry.header().mode().map_err(UnpackError::Stream)? & self.options.mode_mask;
        let put = match kind {
            EntryType::Directory => self.make_folder(&all, &path, mode),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.write(parents, name, entry, mode),
            EntryType::Symlink => {
                let target = entry.link_name().map_err(UnpackError::Stream)?;
                let target = target.ok_or_else(outside)?.into_owned();
                if self.options.links == Links::Inside && !stays_inside(&target, parents.len()) {
                    let why = format!("it is a link to {}, outside of the folder", target.display());
                    self.done.skipped.leave_out(&path, why);
                    return Ok(());
                }
                self.link(parents, name, &target)
            }
            EntryType::Link => {
                let source = entry.link_name().map_err(UnpackError::Stream)?;
                let source = source.ok_or_else(outside)?.into_owned();
                let source = parts(&source).ok_or_else(outside)?;
                let (of, from) = source.split_last().ok_or_else(outside)?;
                self.hard_link(parents, name, from, of)
            }
            _ => {
                self.done.skipped.leave_out(&path, "it is a device or a pipe");
                Ok(())
            }
        };
        put.map_err(|error| match error {
            PutError::Stream(error) => UnpackError::Stream(error),
            PutError::Way(WayError::NoFolder) => outside(),
            PutError::Io(error) | PutError::Way(WayError::Io(error)) => self.here(&path, error),
            PutError::Taken => self.here(&path, io::ErrorKind::AlreadyExists.into()),
        })
    }

    fn here(&self, path: &Path, error: io::Error) -> UnpackError {
        UnpackError::Here {
            path: self.folder.join(path),
            error,
        }
    }

    /// A folder that is there already stays as it is.
    fn make_folder(&mut self, all: &[&OsStr], path: &Path, mode: u32) -> Result<(), PutError> {
        let Some((name, parents)) = all.split_last() else {
            return Ok(());
        };
        let at = self.below.enter(parents).map_err(PutError::Way)?;
        let is_there = statat(at, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        self.below.enter(all).map_err(PutError::Way)?;
        if !is_there {
            self.folders.push((path.to_owned(), mode));
        }
        Ok(())
    }

    fn write<R: Read>(
        &mut self,
        parents: &[&OsStr],
        name: &OsStr,
        entry: &mut Entry<'_, R>,
        mode: u32,
    ) -> Result<(), PutError> {
        let modified = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok());
        let (size, owner) = (entry.size(), self.options.owner);
        let copied = self.below.put(parents, name, |at, hidden| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(at, hidden, flags, Mode::from_raw_mode(0o600)).map_err(PutError::making)?;
            let mut file = File::from(file);
            let copied = copy(entry, &mut file)?;
            if copied != size && entry.header().entry_type() != EntryType::GNUSparse {
                return Err(PutError::Stream(io::ErrorKind::UnexpectedEof.into()));
            }
            finish(&file, mode, owner, modified).map_err(PutError::Io)?;
            Ok(copied)
        })?;
        self.done.files += 1;
        self.done.bytes += copied;
        Ok(())
    }

    fn link(&mut self, parents: &[&OsStr], name: &OsStr, target: &Path) -> Result<(), PutError> {
        let owner = self.options.owner;
        self.below.put(parents, name, |at, hidden| {
            symlinkat(target, at, hidden).map_err(PutError::making)?;
            if let Some((uid, gid)) = owner {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                chownat(at, hidden, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| PutError::Io(error.into()))?;
            }
            Ok(())
        })
    }

    fn hard_link(&mut self, parents: &[&OsStr], name: &OsStr, from: &[&OsStr], of: &OsStr) -> Result<(), PutError> {
        let source: OwnedFd = self
            .below
            .enter(from)
            .and_then(|at| at.try_clone().map_err(WayError::Io))
            .map_err(PutError::Way)?;
        self.below.put(parents, name, |at, hidden| {
            // A link itself would be linked, and not what it leads to.
            linkat(&source, of, at, hidden, AtFlags::empty()).map_err(PutError::making)
        })
    }

    /// The folders get their modes, inner ones first.
    fn end(mut self) -> Result<Unpacked, UnpackError> {
        for (path, mode) in std::mem::take(&mut self.folders).into_iter().rev() {
            let all = parts(&path).unwrap_or_default();
            let Some((name, parents)) = all.split_last() else {
                continue;
            };
            let set = match self.below.enter(parents) {
                // A folder cannot have become a link: the way to it was walked just now, and its name is not followed either.
                Ok(at) => chmod_folder(at, name, mode),
                Err(_) => Ok(()),
            };
            set.map_err(|error| self.here(&path, error))?;
        }
        Ok(self.done)
    }
}

fn chmod_folder(at: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, name, flags, Mode::empty()) {
        Ok(folder) => Ok(fchmod(folder, Mode::from_raw_mode(mode))?),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Owner, mode and time of a file that is written.
fn finish(file: &File, mode: u32, owner: Option<(u32, u32)>, modified: Option<i64>) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // After the owner: changing that may take bits away.
    fchmod(file, Mode::from_raw_mode(mode))?;
    if let Some(seconds) = modified {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            },
        };
        futimens(file, &times)?;
    }
    Ok(())
}

/// Copies, and tells who failed.
fn copy(from: &mut impl Read, to: &mut File) -> Result<u64, PutError> {
    let mut chunk = vec![0; CHUNK];
    let mut copied = 0;
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(copied),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PutError::Stream(error)),
        };
        to.write_all(&chunk[..read]).map_err(PutError::Io)?;
        copied += read as u64;
    }
}

/// Whether a link in a folder that is so deep stays below the top: it goes up first, not too far, and never again. Later steps up would
/// start from wherever other links lead.
fn stays_inside(target: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut has_descended = false;
    for part in target.components() {
        match part {
            Component::ParentDir if has_descended => return false,
            Component::ParentDir => up += 1,
            Component::Normal(_) => has_descended = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth
}

/// The tar crate wraps what the system said in sentences of its own; the innermost one says why.
fn innermost(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_inside_when_it_goes_up_first_and_not_too_far() {
        for (target, depth, stays) in [
            ("a/b", 0, true),
            ("./a", 0, true),
            ("..", 1, true),
            ("../../x", 2, true),
            ("..", 0, false),
            ("../../x", 1, false),
            ("/etc/passwd", 5, false),
            // Where `a` leads is not known.
            ("a/..", 3, false),
            ("../a/../..", 3, false),
        ] {
            assert_eq!(stays_inside(Path::new(target), depth), stays, "{target} {depth}");
        }
    }
}
