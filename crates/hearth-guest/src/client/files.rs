//! Files for people: read in parts, written with what they had, listed, moved, removed; each as one of the VM's users. An agent
//! before protocol 9 knows none of it and refuses with 404 and no code.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::Method;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::transfer::{Download, Upload};
use super::{AgentClient, AgentError, with_query};
use crate::files::{Change, Entry, EntryList, FILE_HEADER, FileHead, Part, Unpacked};
use crate::paths;

/// The most that is read of a list of entries: ten thousand of them with long names.
const LIST_BYTES: usize = 32 * 1024 * 1024;
/// The most that is read of one entry.
const ENTRY_BYTES: usize = 256 * 1024;

/// The most that one change is long: two paths with every character escaped.
const CHANGE_BYTES: usize = 64 * 1024;

/// A file that is being read.
#[derive(Debug)]
pub struct ReadFile {
    /// What is known of it.
    pub head: FileHead,
    /// Its bytes, or those of the part.
    pub body: Download,
}

/// How a file, or a folder, is to be made. What is not given stays as it is, or is as usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewFile<'a> {
    /// By this user: a name or `uid[:gid]`; root when absent.
    pub user: Option<&'a str>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// The owner, like `user`.
    pub owner: Option<&'a str>,
}

/// A request's query: what is there.
struct Asked<'a>(Vec<(&'a str, String)>);

impl<'a> Asked<'a> {
    fn of(path: &str, user: Option<&str>) -> Self {
        Self(vec![(paths::PATH, path.to_owned())]).and(paths::USER, user)
    }

    fn and(mut self, name: &'a str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (name, value.to_string())));
        self
    }

    fn new_file(path: &str, wanted: NewFile<'_>) -> Self {
        Self::of(path, wanted.user)
            .and(paths::MODE, wanted.mode.map(|mode| format!("{mode:o}")))
            .and(paths::OWNER, wanted.owner)
    }

    fn at(&self, path: &str) -> String {
        let pairs: Vec<(&str, &str)> = self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        with_query(path, &pairs)
    }
}

impl AgentClient {
    /// Reads a file, or a part of it: the whole file when it is not the one of this tag any more.
    pub async fn read_part(
        &self,
        path: &str,
        user: Option<&str>,
        part: Part,
        tag: Option<&str>,
    ) -> Result<ReadFile, AgentError> {
        let asked = Asked::of(path, user).and(paths::TAG, tag);
        let asked = match part {
            Part::Whole => asked,
            Part::From(offset, length) => asked.and(paths::OFFSET, Some(offset)).and(paths::LENGTH, length),
            Part::Last(bytes) => asked.and(paths::LAST, Some(bytes)),
        };
        let reply = self.call(Method::GET, &asked.at(paths::FS_FILE), None).await?;
        let head = reply.headers().get(FILE_HEADER).map(|head| head.as_bytes());
        let head = serde_json::from_slice(head.unwrap_or_default());
        let head = head.map_err(|error| AgentError::Protocol(format!("a file without its size: {error}")))?;
        Ok(ReadFile {
            head,
            body: Download::new(reply.into_body()),
        })
    }

    /// Writes a file, whole or not at all; one that is there keeps its mode and owner unless others are wanted.
    pub async fn replace_file(
        &self,
        path: &str,
        wanted: NewFile<'_>,
        body: impl Into<Upload>,
    ) -> Result<Entry, AgentError> {
        let target = Asked::new_file(path, wanted).at(paths::FS_FILE);
        self.entry_of(Method::PUT, &target, Some(body.into())).await
    }

    /// What is at a path. Links are not followed.
    pub async fn entry(&self, path: &str, user: Option<&str>) -> Result<Entry, AgentError> {
        let target = Asked::of(path, user).at(paths::FS_ENTRY);
        self.entry_of(Method::GET, &target, None).await
    }

    /// What a folder holds, this many levels deep; at most `limit` entries.
    pub async fn list_folder(
        &self,
        path: &str,
        user: Option<&str>,
        depth: u32,
        limit: usize,
    ) -> Result<EntryList, AgentError> {
        let asked = Asked::of(path, user)
            .and(paths::DEPTH, Some(depth))
            .and(paths::LIMIT, Some(limit));
        let reply = self.call(Method::GET, &asked.at(paths::FS_LIST), None).await?;
        let body = Download::new(reply.into_body()).collect(LIST_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))
    }

    /// Makes a folder, and what is missing above it. What is there already is a fault.
    pub async fn make_folder(&self, path: &str, wanted: NewFile<'_>) -> Result<Entry, AgentError> {
        let target = Asked::new_file(path, wanted).at(paths::FS_FOLDER);
        self.entry_of(Method::POST, &target, None).await
    }

    /// Renames, over what is there only when `replace`.
    pub async fn move_entry(
        &self,
        path: &str,
        to: &str,
        user: Option<&str>,
        replace: bool,
    ) -> Result<Entry, AgentError> {
        let asked = Asked::of(path, user)
            .and(paths::TO, Some(to))
            .and(paths::REPLACE, Some(replace));
        self.entry_of(Method::POST, &asked.at(paths::FS_MOVE), None).await
    }

    /// Removes; a folder with what it holds only when `recursive`.
    pub async fn remove_entry(&self, path: &str, user: Option<&str>, recursive: bool) -> Result<(), AgentError> {
        let asked = Asked::of(path, user).and(paths::RECURSIVE, Some(recursive));
        let target = asked.at(paths::FS_ENTRY);
        self.call(Method::DELETE, &target, None).await.map(drop)
    }

    /// A folder as a tar stream. What could not be read is named at its end.
    pub async fn read_tree(&self, path: &str, user: Option<&str>) -> Result<Download, AgentError> {
        let target = Asked::of(path, user).at(paths::FS_TREE);
        let reply = self.call(Method::GET, &target, None).await?;
        Ok(Download::new(reply.into_body()))
    }

    /// Unpacks a tar stream below a folder, which is made when it is missing.
    pub async fn write_tree(
        &self,
        path: &str,
        user: Option<&str>,
        owner: Option<&str>,
        tar: impl Into<Upload>,
    ) -> Result<Unpacked, AgentError> {
        let target = Asked::of(path, user).and(paths::OWNER, owner).at(paths::FS_TREE);
        let reply = self.call(Method::PUT, &target, Some(tar.into())).await?;
        let body = Download::new(reply.into_body()).collect(ENTRY_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))
    }

    /// What happens at a path, and below it when `recursive`. Comes back when changes are watched.
    pub async fn watch_files(
        &self,
        path: &str,
        user: Option<&str>,
        recursive: bool,
    ) -> Result<BoxStream<'static, Result<Change, AgentError>>, AgentError> {
        let asked = Asked::of(path, user).and(paths::RECURSIVE, Some(recursive));
        let reply = self.call(Method::GET, &asked.at(paths::FS_WATCH), None).await?;
        let body = Download::new(reply.into_body()).map(|chunk| chunk.map_err(std::io::Error::other));
        let lines = FramedRead::new(StreamReader::new(body), LinesCodec::new_with_max_length(CHANGE_BYTES));
        let changes = lines.map(|line| {
            let line = line.map_err(|error| AgentError::Lost {
                reason: error.to_string(),
            })?;
            serde_json::from_str(&line).map_err(|error| AgentError::Protocol(error.to_string()))
        });
        Ok(changes.boxed())
    }

    async fn entry_of(&self, method: Method, target: &str, body: Option<Upload>) -> Result<Entry, AgentError> {
        let reply = self.call(method, target, body).await?;
        let body = Download::new(reply.into_body()).collect(ENTRY_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))
    }
}
