//! Single files: read as a stream, written whole or not at all.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hearth_guest::{ShortFile, paths};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio_util::io::ReaderStream;

use crate::reply::{self, Fault, Reply};
use crate::upload::with_reader;
use crate::users::Identity;

/// Of a file whose mode nobody says.
pub(crate) const DEFAULT_MODE: u32 = 0o644;
/// Of a folder that is made.
pub(crate) const FOLDER_MODE: u32 = 0o755;

/// Every bit that `chmod` knows.
pub(crate) const ALL_MODE_BITS: u32 = 0o7777;

/// How much of a file is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The query of a request about files.
#[derive(Debug)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let text = request.uri().query().unwrap_or_default();
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The absolute path that every one of them must name.
    pub(crate) fn path(&self) -> Result<PathBuf, Fault> {
        match self.0.get(paths::PATH) {
            Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
            Some(path) => Err(Fault::bad(format!("{path:?} is not an absolute path"))),
            None => Err(Fault::bad("the query must name a path")),
        }
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn mode(&self) -> Result<Option<u32>, Fault> {
        let Some(text) = self.0.get(paths::MODE) else {
            return Ok(None);
        };
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= ALL_MODE_BITS);
        mode.map(Some)
            .ok_or_else(|| Fault::bad(format!("{text:?} is not an octal mode")))
    }

    pub(crate) fn owner(&self) -> Result<Option<Identity>, Fault> {
        self.0
            .get(paths::OWNER)
            .map(|owner| Identity::find(Some(owner)).map_err(Fault::bad))
            .transpose()
    }
}

/// `PUT /v1/files`
pub(crate) async fn write(request: Request<Incoming>) -> Result<Reply, Fault> {
    let query = Query::of(&request);
    let (path, mode, owner) = (query.path()?, query.mode()?.unwrap_or(DEFAULT_MODE), query.owner()?);
    with_reader(request.into_body(), None, move |mut body| {
        store(&path, mode, owner.as_ref(), &mut body)
            .map_err(|error| Fault::from_io(&path.display().to_string(), &error))
    })
    .await?;
    Ok(reply::done())
}

/// Writes a file of root's: into the one that is there if it is a plain one, else a new one takes its place.
pub(crate) fn write_short(file: &ShortFile) -> Result<(), Fault> {
    let ShortFile { path, mode, text } = file;
    let is_path = path.starts_with('/') && !path.contains('\0');
    if !is_path || *mode > ALL_MODE_BITS {
        return Err(Fault::bad(format!(
            "{path:?} with the mode {mode:o} is no file's path and mode"
        )));
    }
    let place = Path::new(path);
    overwrite(place, *mode, text.as_bytes())
        .or_else(|_| store(place, *mode, None, &mut text.as_bytes()))
        .map_err(|error| Fault::from_io(path, &error))
}

/// Overwrites a plain file of root that has this mode and no other name; creates nothing.
fn overwrite(path: &Path, mode: u32, body: &[u8]) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    let is_plain = found.is_file() && found.nlink() == 1 && found.uid() == 0 && found.gid() == 0;
    if !is_plain || found.mode() & ALL_MODE_BITS != mode {
        return Err(ErrorKind::Unsupported.into());
    }
    let length = u64::try_from(body.len()).map_err(|_| ErrorKind::FileTooLarge)?;
    file.write_all_at(body, 0)?;
    if found.len() > length {
        file.set_len(length)?;
    }
    Ok(())
}

fn store(path: &Path, mode: u32, owner: Option<&Identity>, body: &mut impl io::Read) -> io::Result<()> {
    if path.file_name().is_none() || path.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder"));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folders(folder, owner.map(|owner| (owner.uid, owner.gid)))?;
    // Removed when anything below fails. No fsync: a VM that crashes is deleted.
    let mut file = tempfile::Builder::new().prefix(".hearth-").tempfile_in(folder)?;
    io::copy(body, file.as_file_mut())?;
    if let Some(owner) = owner {
        chown(file.path(), Some(owner.uid), Some(owner.gid))?;
    }
    // After the owner: changing that may take bits away.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Makes what is missing of a folder; only that gets the owner.
pub(crate) fn make_folders(folder: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    for above in folder.ancestors() {
        match fs::metadata(above) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(above),
            Err(error) => return Err(error),
        }
    }
    while let Some(folder) = missing.pop() {
        match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Ok(()) => {}
            // Somebody else was as fast.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => continue,
            Err(error) => return Err(error),
        }
        if let Some((uid, gid)) = owner {
            chown(folder, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// `GET /v1/files`
pub(crate) async fn read(request: Request<Incoming>) -> Result<Reply, Fault> {
    let path = Query::of(&request).path()?;
    let refused = |error: io::Error| Fault::from_io(&path.display().to_string(), &error);
    let kind = tokio::fs::metadata(&path).await.map_err(refused)?.file_type();
    // Opening a fifo would wait for a writer.
    if !kind.is_file() {
        return Err(Fault {
            code: None,
            status: StatusCode::BAD_REQUEST,
            message: format!("{} is not a file", path.display()),
        });
    }
    let file = tokio::fs::File::open(&path).await.map_err(refused)?;
    Ok(reply::stream(ReaderStream::with_capacity(file, READ_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_overwritten_and_anything_else_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let write = |mode, text: &str| {
            let path_text = path.to_str().unwrap().to_owned();
            let written = write_short(&ShortFile {
                path: path_text,
                mode,
                text: text.to_owned(),
            });
            assert!(written.is_ok());
            let found = fs::symlink_metadata(&path).unwrap();
            assert_eq!(found.mode() & ALL_MODE_BITS, mode);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            found.ino()
        };
        let is_roots = fs::metadata(folder.path()).unwrap().uid() == 0;
        let first = write(0o600, "a longer text");
        assert_eq!(write(0o600, "short") == first, is_roots);
        // A reader that has the old one open must not get what only the new mode lets it read.
        assert_ne!(write(0o644, "another mode"), first);
        // Neither another name of the file nor what a link points to is written to.
        let (other, linked) = (folder.path().join("other"), folder.path().join("linked"));
        fs::hard_link(&path, &other).unwrap();
        write(0o644, "two names");
        assert_eq!(fs::read_to_string(&other).unwrap(), "another mode");
        fs::rename(&path, &linked).unwrap();
        std::os::unix::fs::symlink(&linked, &path).unwrap();
        write(0o644, "no link");
        assert_eq!(fs::read_to_string(&linked).unwrap(), "two names");
    }

    #[test]
    fn a_short_file_with_a_senseless_place_is_refused() {
        for (path, mode) in [
            ("relative", 0o644),
            ("/a\0b", 0o644),
            ("/tmp", 0o644),
            ("/tmp/x", 0o1_0000),
        ] {
            let file = ShortFile {
                path: path.to_owned(),
                mode,
                text: String::new(),
            };
            assert!(write_short(&file).is_err(), "{path}");
        }
    }
}
