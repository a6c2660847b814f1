//! A file, or a part of it, as a stream.
//!
//! The reply says how long it is before the first byte. Files that do not know their own length, as in `/proc`, are read first;
//! those that do not end are refused.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use bytes::Bytes;
use hearth_guest::files::{FILE_HEADER, FaultCode, FileHead, Part};
use hearth_guest::paths;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::{Asked, entry, fault, user};
use crate::files::ALL_MODE_BITS;
use crate::reply::{self, Fault, Reply};
use crate::users::Identity;

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// The most that is read of a file that does not know its own length: the largest ones of `/proc` that end are shorter.
const UNSIZED_BYTES: usize = 16 * 1024 * 1024;

enum Content {
    /// From the first byte of the part on.
    File(File),
    Bytes(Bytes),
}

/// `GET /v1/fs/file`
pub(super) async fn read(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let part = match (
        asked.number(paths::OFFSET)?,
        asked.number(paths::LENGTH)?,
        asked.number(paths::LAST)?,
    ) {
        (None, None, None) => Part::Whole,
        (None, None, Some(last)) => Part::Last(last),
        (offset, length, None) => Part::From(offset.unwrap_or(0), length),
        _ => return Err(fault::invalid("give offset and length, or last")),
    };
    let tag = asked.query.value(paths::TAG).map(str::to_owned);
    let Asked { user, path, .. } = asked;
    let named = user.clone();
    let (content, head) = user::run(Some(&user), move || open(&path, part, tag.as_deref(), &named)).await?;
    let mut reply = match content {
        Content::File(file) => {
            // Not more than was promised, also of a file that grows.
            let file = tokio::fs::File::from_std(file).take(head.length);
            reply::stream(ReaderStream::with_capacity(file, READ_BYTES))
        }
        Content::Bytes(bytes) => reply::stream(futures::stream::iter([Ok(bytes)])),
    };
    // Numbers and letters: it always is a header.
    let head = serde_json::to_string(&head).unwrap_or_default();
    if let Ok(head) = HeaderValue::try_from(head) {
        reply.headers_mut().insert(FILE_HEADER, head);
    }
    Ok(reply)
}

fn open(path: &Path, part: Part, tag: Option<&str>, user: &Identity) -> Result<(Content, FileHead), Fault> {
    let refused = |error: io::Error| fault::of(path, user, &error);
    // Before it is opened: opening a device may do something, and opening a pipe waits for a writer.
    check_plain(path, &fs::metadata(path).map_err(refused)?)?;
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path);
    let mut file = opened.map_err(refused)?;
    let found = file.metadata().map_err(refused)?;
    check_plain(path, &found)?;
    let whole = if found.len() == 0 {
        Some(read_unsized(&mut file, path)?)
    } else {
        None
    };
    let size = whole.as_ref().map_or(found.len(), |whole| whole.len() as u64);
    let head = FileHead {
        size,
        offset: 0,
        length: size,
        tag: format!(
            "{:x}-{size:x}-{:x}.{:x}",
            found.ino(),
            found.mtime(),
            found.mtime_nsec()
        ),
        mode: found.mode() & ALL_MODE_BITS,
        modified_unix_ms: entry::modified_unix_ms(&found),
    };
    let is_other = tag.is_some_and(|tag| tag != head.tag);
    let part = if is_other { Part::Whole } else { part };
    let (offset, length) = bounds(part, size).ok_or_else(|| {
        let message = format!("{} has {size} bytes and no such part", path.display());
        fault::coded(StatusCode::RANGE_NOT_SATISFIABLE, FaultCode::Range, message)
    })?;
    let head = FileHead { offset, length, ..head };
    let content = match whole {
        Some(whole) => {
            // Both are within what is in memory.
            let at = |bytes: u64| usize::try_from(bytes).unwrap_or(whole.len());
            Content::Bytes(whole.slice(at(offset)..at(offset + length)))
        }
        None => {
            file.seek(SeekFrom::Start(offset)).map_err(refused)?;
            Content::File(file)
        }
    };
    Ok((content, head))
}

fn check_plain(path: &Path, found: &Metadata) -> Result<(), Fault> {
    if found.is_dir() {
        let message = format!("{} is a folder: list it, or read it as a tar stream", path.display());
        return Err(fault::conflict(FaultCode::IsFolder, message));
    }
    if found.is_file() {
        return Ok(());
    }
    let message = format!(
        "{} is a device, a pipe or a socket, which may have no end: read it with a command",
        path.display()
    );
    Err(fault::conflict(FaultCode::NotFile, message))
}

/// All of a file that says it is empty, which those of the kernel do.
fn read_unsized(file: &mut File, path: &Path) -> Result<Bytes, Fault> {
    let mut whole = Vec::new();
    let read = file.take(UNSIZED_BYTES as u64 + 1).read_to_end(&mut whole);
    let endless = || {
        let message = format!(
            "{} does not say how long it is and has no end within {} MiB: read what you need of it with a command",
            path.display(),
            UNSIZED_BYTES / 1024 / 1024
        );
        fault::conflict(FaultCode::NotFile, message)
    };
    match read {
        Ok(length) if length > UNSIZED_BYTES => Err(endless()),
        Ok(_) => Ok(whole.into()),
        // It waits for what comes next.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(endless()),
        Err(error) => {
            let message = format!(
                "{} cannot be read like a file: {}",
                path.display(),
                fault::words(&error)
            );
            Err(fault::conflict(FaultCode::NotFile, message))
        }
    }
}

/// First byte and length; `None` when the file has no such part.
fn bounds(part: Part, size: u64) -> Option<(u64, u64)> {
    match part {
        Part::Whole => Some((0, size)),
        Part::From(offset, length) if offset < size => {
            let rest = size - offset;
            Some((offset, length.map_or(rest, |length| length.min(rest))))
        }
        Part::From(..) => None,
        Part::Last(bytes) if bytes > 0 && size > 0 => {
            let length = bytes.min(size);
            Some((size - length, length))
        }
        Part::Last(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_there_is_of_it() {
        assert_eq!(bounds(Part::Whole, 0), Some((0, 0)));
        assert_eq!(bounds(Part::From(2, None), 5), Some((2, 3)));
        assert_eq!(bounds(Part::From(2, Some(1)), 5), Some((2, 1)));
        assert_eq!(bounds(Part::From(4, Some(u64::MAX)), 5), Some((4, 1)));
        assert_eq!(bounds(Part::From(5, None), 5), None);
        assert_eq!(bounds(Part::Last(2), 5), Some((3, 2)));
        assert_eq!(bounds(Part::Last(9), 5), Some((0, 5)));
        assert_eq!(bounds(Part::Last(0), 5), None);
        assert_eq!(bounds(Part::Last(1), 0), None);
    }
}
