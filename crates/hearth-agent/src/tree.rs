//! Whole folders: a tar stream is unpacked below a path, keeping modes and symbolic links, owned by root.
//!
//! An entry that would land outside is refused, not skipped: the sender is wrong about something. What was unpacked
//! before it stays.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path};

use http::Request;
use hyper::body::Incoming;

use crate::files::Query;
use crate::reply::{self, Fault, Reply};
use crate::upload::with_reader;

const FOLDER_MODE: u32 = 0o755;

/// `PUT /v1/tree`
pub(crate) async fn write(request: Request<Incoming>) -> Result<Reply, Fault> {
    let target = Query::of(&request).path()?;
    with_reader(request.into_body(), move |body| unpack(&target, body)).await?;
    Ok(reply::done())
}

fn unpack(target: &Path, body: impl io::Read) -> Result<(), Fault> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof => {
            Fault::bad(format!("the tar stream could not be unpacked: {}", innermost(&error)))
        }
        _ => Fault::from_io("the tar stream could not be unpacked", &error),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(target)
        .map_err(broken)?;
    let mut archive = tar::Archive::new(body);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        if !stays_inside(&path) {
            return Err(escapes(&path));
        }
        if entry.header().entry_type().is_hard_link() {
            let link = entry.link_name().map_err(broken)?;
            if link.is_none_or(|link| !stays_inside(&link)) {
                return Err(escapes(&path));
            }
        }
        // It answers false, or fails, when a symbolic link on the way points outside.
        let mut unpacked = entry.unpack_in(target);
        if entry.header().entry_type().is_hard_link()
            && unpacked
                .as_ref()
                .is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
        {
            // Everything else replaces what is there. That the way to it stays inside has been looked at just now.
            fs::remove_file(target.join(&path)).map_err(broken)?;
            unpacked = entry.unpack_in(target);
        }
        if !unpacked.map_err(broken)? {
            return Err(escapes(&path));
        }
    }
    // Some writers pad the end; a body that is not read to its end would look broken off to them.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

fn stays_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn escapes(path: &Path) -> Fault {
    Fault::bad(format!("the tar entry {:?} would land outside of the folder", path))
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
