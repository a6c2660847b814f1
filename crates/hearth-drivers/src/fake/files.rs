//! Files for people in a fake guest: the agent's `/v1/fs` over a map of paths. It knows no users, modes or links; a folder is what has
//! something below it, or a key that ends with a slash.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use bytes::Bytes;
use hearth_guest::files::{
    Change, ChangeKind, Entry, EntryKind, EntryList, FILE_HEADER, FaultCode, FileHead, Unpacked,
};
use hearth_guest::{AgentFault, paths};
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;

use super::agent::{Refusal, Reply, done, full, json, path_of, query, whole};

pub(super) type Files = BTreeMap<String, Bytes>;

const MODE: u32 = 0o644;

/// A request about files.
pub(super) struct Asked {
    route: String,
    method: Method,
    path: String,
    to: String,
    recursive: bool,
    replace: bool,
    depth: usize,
    limit: usize,
    offset: Option<usize>,
    length: Option<usize>,
    last: Option<usize>,
    body: Bytes,
}

impl Asked {
    pub(super) async fn of(request: Request<Incoming>) -> Result<Self, Refusal> {
        let is = |name: &str| query(&request, name).as_deref() == Some("true");
        let number = |name: &str| query(&request, name).and_then(|text| text.parse().ok());
        Ok(Self {
            route: request.uri().path().to_owned(),
            method: request.method().clone(),
            path: path_of(&request)?,
            to: query(&request, paths::TO).unwrap_or_default(),
            recursive: is(paths::RECURSIVE),
            replace: is(paths::REPLACE),
            depth: number(paths::DEPTH).unwrap_or(1),
            limit: number(paths::LIMIT).unwrap_or(usize::MAX),
            offset: number(paths::OFFSET),
            length: number(paths::LENGTH),
            last: number(paths::LAST),
            body: whole(request).await?,
        })
    }

    pub(super) fn answer(self, files: &mut Files) -> Reply {
        self.done(files).unwrap_or_else(Fault::into_reply)
    }

    fn done(self, files: &mut Files) -> Result<Reply, Fault> {
        match (self.route.as_str(), &self.method) {
            (paths::FS_FILE, &Method::GET) => self.read(files),
            (paths::FS_FILE, &Method::PUT) => {
                not_a_folder(files, &self.path)?;
                files.insert(self.path.clone(), self.body);
                entry(files, &self.path)
            }
            (paths::FS_ENTRY, &Method::GET) => entry(files, &self.path),
            (paths::FS_ENTRY, &Method::DELETE) => {
                entry(files, &self.path)?;
                let below = format!("{}/", self.path);
                if !self.recursive
                    && files
                        .keys()
                        .any(|key| key.len() > below.len() && key.starts_with(&below))
                {
                    let message = format!("the folder {} is not empty", self.path);
                    return Err(Fault::conflict(FaultCode::NotEmpty, message));
                }
                files.retain(|key, _| *key != self.path && !key.starts_with(&below));
                Ok(done())
            }
            (paths::FS_LIST, &Method::GET) => self.list(files),
            (paths::FS_FOLDER, &Method::POST) => {
                if kind(files, &self.path).is_some() {
                    let message = format!("{} exists already", self.path);
                    return Err(Fault::conflict(FaultCode::Exists, message));
                }
                files.insert(format!("{}/", self.path), Bytes::new());
                entry(files, &self.path)
            }
            (paths::FS_MOVE, &Method::POST) => {
                entry(files, &self.path)?;
                if !self.replace && kind(files, &self.to).is_some() {
                    let message = format!("{} exists already", self.to);
                    return Err(Fault::conflict(FaultCode::Exists, message));
                }
                let below = format!("{}/", self.path);
                let moved: Vec<String> = files
                    .keys()
                    .filter(|key| **key == self.path || key.starts_with(&below))
                    .cloned()
                    .collect();
                for key in moved {
                    if let Some(bytes) = files.remove(&key) {
                        files.insert(format!("{}{}", self.to, &key[self.path.len()..]), bytes);
                    }
                }
                entry(files, &self.to)
            }
            (paths::FS_TREE, &Method::GET) => self.pack(files),
            (paths::FS_TREE, &Method::PUT) => {
                let found = unpack(&self.path, &self.body)
                    .map_err(|error| Fault(StatusCode::BAD_REQUEST, Some(FaultCode::Invalid), error.to_string()))?;
                let done = Unpacked {
                    files: found.len() as u64,
                    bytes: found.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
                    ..Unpacked::default()
                };
                files.extend(found);
                Ok(json(StatusCode::OK, &done))
            }
            (paths::FS_WATCH, &Method::GET) => self.watch(files),
            (path, method) => Err(Fault(
                StatusCode::NOT_FOUND,
                None,
                format!("the fake agent does not know {method} {path}"),
            )),
        }
    }

    fn read(&self, files: &Files) -> Result<Reply, Fault> {
        not_a_folder(files, &self.path)?;
        let whole = files.get(&self.path).ok_or_else(|| Fault::missing(&self.path))?;
        let offset = match self.last {
            Some(last) => whole.len().saturating_sub(last),
            None => self.offset.unwrap_or(0),
        };
        if offset > 0 && offset >= whole.len() {
            let message = format!("{} has no such part", self.path);
            return Err(Fault(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Some(FaultCode::Range),
                message,
            ));
        }
        let length = self.length.unwrap_or(usize::MAX).min(whole.len() - offset);
        let head = FileHead {
            size: whole.len() as u64,
            offset: offset as u64,
            length: length as u64,
            tag: format!("fake-{}", whole.len()),
            mode: MODE,
            modified_unix_ms: 0,
        };
        let mut reply = hyper::Response::new(full(whole.slice(offset..offset + length)));
        let head = serde_json::to_string(&head).unwrap_or_default();
        if let Ok(head) = HeaderValue::try_from(head) {
            reply.headers_mut().insert(FILE_HEADER, head);
        }
        Ok(reply)
    }

    fn pack(&self, files: &Files) -> Result<Reply, Fault> {
        if kind(files, &self.path) == Some(EntryKind::File) {
            let message = format!("{} is not a folder", self.path);
            return Err(Fault::conflict(FaultCode::NotFolder, message));
        }
        entry(files, &self.path)?;
        let below = format!("{}/", self.path.trim_end_matches('/'));
        let mut tar = tar::Builder::new(Vec::new());
        let packed = files
            .iter()
            .filter(|(path, _)| !path.ends_with('/'))
            .filter_map(|(path, bytes)| Some((path.strip_prefix(&below)?, bytes)))
            .try_for_each(|(path, bytes)| {
                let mut header = tar::Header::new_gnu();
                header.set_mode(MODE);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, &bytes[..])
            });
        let tar = packed.and_then(|()| tar.into_inner());
        let tar = tar.map_err(|error| Fault(StatusCode::INTERNAL_SERVER_ERROR, None, error.to_string()))?;
        Ok(hyper::Response::new(full(tar.into())))
    }

    /// Says that it watches, what is there as if it had just come, one rename, and that it is gone.
    fn watch(&self, files: &Files) -> Result<Reply, Fault> {
        entry(files, &self.path)?;
        let below = format!("{}/", self.path.trim_end_matches('/'));
        let change = |kind, path: &str, from: Option<&str>| Change {
            kind,
            path: path.to_owned(),
            from: from.map(str::to_owned),
            is_folder: false,
        };
        let found = files.keys().filter_map(|path| path.strip_prefix(&below));
        let mut changes = vec![change(ChangeKind::Started, "", None)];
        changes.extend(found.map(|path| change(ChangeKind::Created, path, None)));
        changes.push(change(ChangeKind::Renamed, "new", Some("old")));
        changes.push(change(ChangeKind::Ended, "", None));
        let lines = changes
            .iter()
            .map(|change| serde_json::to_string(change).unwrap_or_default() + "\n");
        Ok(hyper::Response::new(full(lines.collect::<String>().into())))
    }

    fn list(&self, files: &Files) -> Result<Reply, Fault> {
        match kind(files, &self.path) {
            Some(EntryKind::Directory) => {}
            Some(_) => {
                let message = format!("{} is not a folder", self.path);
                return Err(Fault::conflict(FaultCode::NotFolder, message));
            }
            None => return Err(Fault::missing(&self.path)),
        }
        let below = format!("{}/", self.path.trim_end_matches('/'));
        let mut found: Vec<String> = Vec::new();
        for key in files.keys().filter_map(|key| key.strip_prefix(&below)) {
            let parts: Vec<&str> = key.split('/').filter(|part| !part.is_empty()).collect();
            for depth in 1..=parts.len().min(self.depth) {
                found.push(format!("{below}{}", parts[..depth].join("/")));
            }
        }
        found.sort();
        found.dedup();
        let list = EntryList {
            truncated: found.len() > self.limit,
            items: found
                .iter()
                .take(self.limit)
                .filter_map(|path| look(files, path))
                .collect(),
            unreadable: Vec::new(),
        };
        Ok(json(StatusCode::OK, &list))
    }
}

/// Why not.
struct Fault(StatusCode, Option<FaultCode>, String);

impl Fault {
    fn conflict(code: FaultCode, message: String) -> Self {
        Self(StatusCode::CONFLICT, Some(code), message)
    }

    fn missing(path: &str) -> Self {
        let message = format!("{path} does not exist");
        Self(StatusCode::NOT_FOUND, Some(FaultCode::NotFound), message)
    }

    fn into_reply(self) -> Reply {
        let Self(status, code, message) = self;
        json(status, &AgentFault { message, code })
    }
}

fn not_a_folder(files: &Files, path: &str) -> Result<(), Fault> {
    if kind(files, path) == Some(EntryKind::Directory) {
        return Err(Fault::conflict(FaultCode::IsFolder, format!("{path} is a folder")));
    }
    Ok(())
}

fn kind(files: &Files, path: &str) -> Option<EntryKind> {
    let below = format!("{}/", path.trim_end_matches('/'));
    if files.contains_key(path) {
        Some(EntryKind::File)
    } else if files.keys().any(|key| key.starts_with(&below)) {
        Some(EntryKind::Directory)
    } else {
        None
    }
}

fn look(files: &Files, path: &str) -> Option<Entry> {
    Some(Entry {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        name_base64: None,
        path: path.to_owned(),
        kind: kind(files, path)?,
        size: files.get(path).map_or(0, |bytes| bytes.len() as u64),
        mode: MODE,
        uid: 0,
        gid: 0,
        owner: "root".to_owned(),
        group: "root".to_owned(),
        modified_unix_ms: 0,
        target: None,
    })
}

fn entry(files: &Files, path: &str) -> Result<Reply, Fault> {
    let found = look(files, path).ok_or_else(|| Fault::missing(path))?;
    Ok(json(StatusCode::OK, &found))
}

/// The files of a tar stream, with their paths below a folder.
pub(super) fn unpack(below: &str, tar: &[u8]) -> io::Result<Vec<(String, Bytes)>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = format!("{}/{}", below.trim_end_matches('/'), entry.path()?.display());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.push((name, bytes.into()));
        }
    }
    Ok(files)
}
