//! Single files: read as a stream, written whole or not at all.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hearth_guest::paths;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio_util::io::ReaderStream;

use crate::reply::{self, Fault, Reply};
use crate::upload::with_reader;
use crate::users::Identity;

const DEFAULT_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// Every bit that `chmod` knows.
const ALL_MODE_BITS: u32 = 0o7777;

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

    fn mode(&self) -> Result<u32, Fault> {
        let Some(text) = self.0.get(paths::MODE) else {
            return Ok(DEFAULT_MODE);
        };
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= ALL_MODE_BITS);
        mode.ok_or_else(|| Fault::bad(format!("{text:?} is not an octal mode")))
    }

    fn owner(&self) -> Result<Option<Identity>, Fault> {
        self.0
            .get(paths::OWNER)
            .map(|owner| Identity::find(Some(owner)).map_err(Fault::bad))
            .transpose()
    }
}

/// `PUT /v1/files`
pub(crate) async fn write(request: Request<Incoming>) -> Result<Reply, Fault> {
    let query = Query::of(&request);
    let (path, mode, owner) = (query.path()?, query.mode()?, query.owner()?);
    with_reader(request.into_body(), move |mut body| {
        store(&path, mode, owner.as_ref(), &mut body)
            .map_err(|error| Fault::from_io(&path.display().to_string(), &error))
    })
    .await?;
    Ok(reply::done())
}

fn store(path: &Path, mode: u32, owner: Option<&Identity>, body: &mut impl io::Read) -> io::Result<()> {
    if path.file_name().is_none() || path.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folders(folder, owner)?;
    // Removed when anything below fails. No fsync: a VM that crashes is thrown away.
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
fn make_folders(folder: &Path, owner: Option<&Identity>) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    if let Some(owner) = owner {
        for folder in missing {
            chown(folder, Some(owner.uid), Some(owner.gid))?;
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
            status: StatusCode::BAD_REQUEST,
            message: format!("{} is not a file", path.display()),
        });
    }
    let file = tokio::fs::File::open(&path).await.map_err(refused)?;
    Ok(reply::stream(ReaderStream::with_capacity(file, READ_BYTES)))
}
