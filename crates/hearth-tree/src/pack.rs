//! A folder becomes a tar stream. What cannot be read is named at the end instead of breaking the stream; a file that changes while it
//! is read has the length that it had.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::Skipped;

/// The bits that travel.
const MODE_BITS: u32 = 0o7777;

/// Writes what `folder` holds, by paths below it. Links are not followed, other file systems (`/proc`, mounts) not entered. An error is
/// one of the folder itself, or of the writer.
pub fn pack(folder: &Path, to: impl Write) -> io::Result<Skipped> {
    let top = fs::metadata(folder)?;
    // That it can be read at all is known before the first byte.
    let mut waiting = vec![(PathBuf::new(), fs::read_dir(folder)?)];
    let mut packer = Packer {
        folder,
        device: top.dev(),
        out: Builder::new(to),
        skipped: Skipped::default(),
    };
    while let Some((path, entries)) = waiting.last_mut() {
        let Some(entry) = entries.next() else {
            waiting.pop();
            continue;
        };
        let path = match entry {
            Ok(entry) => path.join(entry.file_name()),
            Err(error) => {
                packer.skipped.fail(path, error);
                waiting.pop();
                continue;
            }
        };
        if let Some(inner) = packer.add(&path)? {
            waiting.push((path, inner));
        }
    }
    packer.skipped.write(&mut packer.out)?;
    packer.out.into_inner()?.flush()?;
    Ok(packer.skipped)
}

struct Packer<'a, W: Write> {
    folder: &'a Path,
    device: u64,
    out: Builder<W>,
    skipped: Skipped,
}

impl<W: Write> Packer<'_, W> {
    /// Adds one; a folder's entries follow it. An error is the writer's.
    fn add(&mut self, path: &Path) -> io::Result<Option<fs::ReadDir>> {
        let place = self.folder.join(path);
        let found = match fs::symlink_metadata(&place) {
            Ok(found) => found,
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                self.skipped.fail(path, error);
                return Ok(None);
            }
        };
        let kind = found.file_type();
        if kind.is_dir() {
            if found.dev() != self.device {
                self.skipped.leave_out(path, "another file system is mounted there");
                return Ok(None);
            }
            self.out
                .append_data(&mut header(EntryType::Directory, &found, 0), path, io::empty())?;
            return match fs::read_dir(&place) {
                Ok(inner) => Ok(Some(inner)),
                Err(error) => {
                    self.skipped.fail(path, error);
                    Ok(None)
                }
            };
        }
        if kind.is_file() {
            match open(&place) {
                Ok((file, found)) => self.add_file(path, file, &found)?,
                Err(error) => self.skipped.fail(path, error),
            }
        } else if kind.is_symlink() {
            match fs::read_link(&place) {
                Ok(target) => self
                    .out
                    .append_link(&mut header(EntryType::Symlink, &found, 0), path, target)?,
                Err(error) => self.skipped.fail(path, error),
            }
        } else {
            self.skipped.leave_out(path, "it is a device, a pipe or a socket");
        }
        Ok(None)
    }

    fn add_file(&mut self, path: &Path, file: File, found: &Metadata) -> io::Result<()> {
        let mut exact = Exact {
            file,
            left: found.len(),
            fault: None,
        };
        let mut header = header(EntryType::Regular, found, found.len());
        self.out.append_data(&mut header, path, &mut exact)?;
        if let Some(fault) = exact.fault {
            self.skipped.fail(path, fault);
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // What is there now may be something else than a moment ago.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no plain file any more"));
    }
    Ok((file, found))
}

fn header(kind: EntryType, found: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(found.mode() & MODE_BITS);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header.set_size(size);
    header
}

/// Exactly as many bytes as the header says: the file may grow, shrink or break.
struct Exact {
    file: File,
    left: u64,
    fault: Option<String>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..most];
        let read = if self.fault.is_some() {
            buffer.fill(0);
            most
        } else {
            match self.file.read(buffer) {
                Ok(0) => {
                    self.fault = Some("it became shorter while it was read; zeros stand for the rest".to_owned());
                    return self.read(buffer);
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    self.fault = Some(format!("{error}; zeros stand for what could not be read"));
                    return self.read(buffer);
                }
            }
        };
        self.left -= read as u64;
        Ok(read)
    }
}
