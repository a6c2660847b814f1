//! Files for people: everything under `/v1/fs`. Each request is done as one of the VM's users and with that user's permissions, on a
//! thread that is that user's ([`user`]); a fault says what it is about in a sentence and has a code.
//!
//! The host's own files (variables, identity) take the simpler way of [`crate::files`].

use std::path::PathBuf;

use hearth_guest::files::{EntryList, FaultCode, MAX_ENTRIES};
use hearth_guest::paths;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use crate::files::Query;
use crate::reply::{self, Fault, Reply};
use crate::tree;
use crate::upload::with_reader;
use crate::users::Identity;

mod change;
mod entry;
pub(crate) mod fault;
mod list;
mod read;
pub(crate) mod user;
mod watch;
mod write;

/// Levels of a list that does not say.
const DEFAULT_DEPTH: u32 = 1;

/// Who asks, and about which path.
struct Asked {
    query: Query,
    user: Identity,
    path: PathBuf,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Result<Self, Fault> {
        let query = Query::of(request);
        let user = Identity::find_or_own(query.value(paths::USER)).map_err(fault::invalid)?;
        let path = absolute(query.value(paths::PATH), &user)?;
        Ok(Self { query, user, path })
    }

    fn is_set(&self, name: &str) -> bool {
        self.query.value(name) == Some("true")
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        let Some(text) = self.query.value(name) else {
            return Ok(None);
        };
        let wrong = |_| fault::invalid(format!("{name} must be a number, not {text:?}"));
        text.parse().map(Some).map_err(wrong)
    }

    /// How what is made is to be.
    fn attributes(&self) -> Result<write::Attributes, Fault> {
        let owner = self.query.owner()?;
        Ok(write::Attributes {
            mode: self.query.mode()?,
            owner: owner.map(|owner| (owner.uid, owner.gid)),
        })
    }
}

/// An absolute path, or one in the user's home.
fn absolute(path: Option<&str>, user: &Identity) -> Result<PathBuf, Fault> {
    let path = path.ok_or_else(|| fault::invalid("the query must name a path"))?;
    if path.contains('\0') {
        return Err(fault::invalid("a path cannot hold a zero byte"));
    }
    if path == "~" {
        return Ok(PathBuf::from(&user.home));
    }
    if let Some(rest) = path.strip_prefix("~/") {
        return Ok(PathBuf::from(&user.home).join(rest.trim_start_matches('/')));
    }
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(fault::invalid(format!(
        "{path:?} is neither an absolute path nor one that begins with ~/"
    )))
}

/// Everything whose path begins with [`paths::FS`].
pub(crate) async fn answer(request: Request<Incoming>) -> Result<Reply, Fault> {
    match (request.uri().path(), request.method()) {
        (paths::FS_FILE, &Method::GET) => read::read(request).await,
        (paths::FS_FILE, &Method::PUT) => write(request).await,
        (paths::FS_ENTRY, &Method::GET) => stat(request).await,
        (paths::FS_ENTRY, &Method::DELETE) => remove(request).await,
        (paths::FS_LIST, &Method::GET) => list(request).await,
        (paths::FS_FOLDER, &Method::POST) => make_folder(request).await,
        (paths::FS_MOVE, &Method::POST) => rename(request).await,
        (paths::FS_WATCH, &Method::GET) => watch_path(request).await,
        (paths::FS_TREE, &Method::GET) => read_tree(request).await,
        (paths::FS_TREE, &Method::PUT) => write_tree(request).await,
        (path, _) => Err(Fault::unknown(path)),
    }
}

/// `PUT /v1/fs/file`
async fn write(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    if asked.query.value(paths::PATH).is_some_and(|path| path.ends_with('/')) {
        return Err(fault::coded(
            StatusCode::CONFLICT,
            FaultCode::IsFolder,
            "the path ends with a slash: name the file",
        ));
    }
    let (attributes, user, path) = (asked.attributes()?, asked.user, asked.path);
    let named = user.clone();
    let entry = with_reader(request.into_body(), Some(&user), move |mut body| {
        let path = write::replace(&path, &attributes, &mut body, &named)?;
        entry::at(&path, &named)
    })
    .await?;
    Ok(reply::json(StatusCode::OK, &entry))
}

/// `GET /v1/fs/entry`
async fn stat(request: Request<Incoming>) -> Result<Reply, Fault> {
    let Asked { user, path, .. } = Asked::of(&request)?;
    let named = user.clone();
    let entry = user::run(Some(&user), move || entry::at(&path, &named)).await?;
    Ok(reply::json(StatusCode::OK, &entry))
}

/// `GET /v1/fs/list`
async fn list(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let depth = asked.number(paths::DEPTH)?.unwrap_or(DEFAULT_DEPTH).max(1);
    let limit = asked.number(paths::LIMIT)?.unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
    let Asked { user, path, .. } = asked;
    let named = user.clone();
    let found: EntryList = user::run(Some(&user), move || list::list(&path, depth, limit, &named)).await?;
    Ok(reply::json(StatusCode::OK, &found))
}

/// `POST /v1/fs/folder`
async fn make_folder(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let (attributes, user, path) = (asked.attributes()?, asked.user, asked.path);
    let named = user.clone();
    let entry = user::run(Some(&user), move || {
        change::make_folder(&path, &attributes, &named)?;
        entry::at(&path, &named)
    })
    .await?;
    Ok(reply::json(StatusCode::OK, &entry))
}

/// `POST /v1/fs/move`
async fn rename(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let to = absolute(asked.query.value(paths::TO), &asked.user)?;
    let replace = asked.is_set(paths::REPLACE);
    let Asked { user, path, .. } = asked;
    let named = user.clone();
    let entry = user::run(Some(&user), move || {
        change::rename(&path, &to, replace, &named)?;
        entry::at(&to, &named)
    })
    .await?;
    Ok(reply::json(StatusCode::OK, &entry))
}

/// `DELETE /v1/fs/entry`
async fn remove(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let recursive = asked.is_set(paths::RECURSIVE);
    let Asked { user, path, .. } = asked;
    let named = user.clone();
    user::run(Some(&user), move || change::remove(&path, recursive, &named)).await?;
    Ok(reply::done())
}

/// `GET /v1/fs/watch`
async fn watch_path(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let recursive = asked.is_set(paths::RECURSIVE);
    watch::watch(asked.path, recursive, asked.user).await
}

/// `GET /v1/fs/tree`
async fn read_tree(request: Request<Incoming>) -> Result<Reply, Fault> {
    let Asked { user, path, .. } = Asked::of(&request)?;
    tree::read(path, user).await
}

/// `PUT /v1/fs/tree`
async fn write_tree(request: Request<Incoming>) -> Result<Reply, Fault> {
    let asked = Asked::of(&request)?;
    let (attributes, user, path) = (asked.attributes()?, asked.user, asked.path);
    let named = user.clone();
    let done = with_reader(request.into_body(), Some(&user), move |body| {
        tree::unpack(&path, body, attributes.owner, Some(&named))
    })
    .await?;
    Ok(reply::json(StatusCode::OK, &done))
}
