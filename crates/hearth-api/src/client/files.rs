//! Files inside a VM.

use std::io;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use reqwest::header::{ETAG, IF_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::Client;
use super::call::Call;
use super::error::{self, ClientError};
use super::stream::{self, ChangeStream};
use crate::file::{FileEntry, FileList, FileRemoved, MODE_HEADER, MakeDirectory, MoveFile, TarUnpacked};
use crate::ids::InstanceId;

type Chunks = BoxStream<'static, Result<Bytes, ClientError>>;

/// A file's bytes as they come, and what is known of it.
pub struct FileContent {
    /// How many bytes come; none when the server does not say.
    pub length: Option<u64>,
    /// The first of them, counted in the file: 0 unless a part was asked for and the file is still the same.
    pub offset: u64,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Names this version of the file.
    pub etag: Option<String>,
    /// The bytes. A body that ends early is an error.
    pub body: Chunks,
}

/// A folder's tar stream as it comes.
pub type TarContent = Chunks;

/// How a file is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// By this user; root when absent.
    pub user: Option<String>,
    /// Permission bits; as they were, or 0644, when absent.
    pub mode: Option<u32>,
    /// The owner; as it was, or the user, when absent.
    pub owner: Option<String>,
}

impl Client {
    fn files(&self, method: Method, id: &InstanceId, rest: &[&str], path: &str, user: Option<&str>) -> Call<'_> {
        let mut segments = vec!["instances", id.as_str(), "files"];
        segments.extend(rest);
        let call = self.call(method, &segments).query("path", path);
        match user {
            Some(user) => call.query("user", user),
            None => call,
        }
    }

    /// A file, from a byte on: `from` is that byte and the version of the file that it belongs to.
    ///
    /// # Errors
    /// As every call; 409 for what is no plain file.
    pub async fn read_file(
        &self,
        id: &InstanceId,
        path: &str,
        user: Option<&str>,
        from: Option<(u64, &str)>,
    ) -> Result<FileContent, ClientError> {
        let mut call = self.files(Method::GET, id, &[], path, user).timeout(None);
        if let Some((offset, etag)) = from {
            call = call
                .header(RANGE, format!("bytes={offset}-"))
                .header(IF_RANGE, etag.to_owned());
        }
        let response = call.open().await?;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        Ok(FileContent {
            length: response.content_length(),
            offset: from.filter(|_| is_part).map_or(0, |(offset, _)| offset),
            mode: header(MODE_HEADER).and_then(|mode| u32::from_str_radix(mode, 8).ok()),
            etag: header(ETAG.as_str()).map(str::to_owned),
            body: self.chunks(response),
        })
    }

    /// A file becomes what the stream holds, whole or not at all.
    ///
    /// # Errors
    /// As every call; [`ClientError::Interrupted`] when the stream has an error.
    pub async fn write_file(
        &self,
        id: &InstanceId,
        path: &str,
        options: &WriteOptions,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<FileEntry, ClientError> {
        let mut call = self
            .files(Method::PUT, id, &[], path, options.user.as_deref())
            .timeout(None);
        if let Some(mode) = options.mode {
            call = call.query("mode", &format!("{mode:04o}"));
        }
        if let Some(owner) = &options.owner {
            call = call.query("owner", owner);
        }
        call.upload(reqwest::Body::wrap_stream(body)).await
    }

    /// What is at a path.
    ///
    /// # Errors
    /// As every call.
    pub async fn stat_file(&self, id: &InstanceId, path: &str, user: Option<&str>) -> Result<FileEntry, ClientError> {
        self.files(Method::GET, id, &["stat"], path, user).read().await
    }

    /// What a folder holds, some levels deep.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_files(
        &self,
        id: &InstanceId,
        path: &str,
        user: Option<&str>,
        depth: Option<u32>,
        limit: Option<usize>,
    ) -> Result<FileList, ClientError> {
        let mut call = self.files(Method::GET, id, &["list"], path, user);
        if let Some(depth) = depth {
            call = call.query("depth", &depth.to_string());
        }
        if let Some(limit) = limit {
            call = call.query("limit", &limit.to_string());
        }
        call.read().await
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// As every call; 409 when something is there.
    pub async fn make_directory(&self, id: &InstanceId, body: &MakeDirectory) -> Result<FileEntry, ClientError> {
        let call = self.post(&["instances", id.as_str(), "files", "mkdir"]);
        call.json(body)?.read().await
    }

    /// Moves or renames.
    ///
    /// # Errors
    /// As every call; 409 when something is at the new path.
    pub async fn move_file(&self, id: &InstanceId, body: &MoveFile) -> Result<FileEntry, ClientError> {
        let call = self.post(&["instances", id.as_str(), "files", "move"]);
        call.json(body)?.read().await
    }

    /// Removes a file, or a folder with what it holds.
    ///
    /// # Errors
    /// As every call.
    pub async fn remove_file(
        &self,
        id: &InstanceId,
        path: &str,
        user: Option<&str>,
        recursive: bool,
    ) -> Result<FileRemoved, ClientError> {
        let call = self.files(Method::DELETE, id, &[], path, user);
        call.query("recursive", &recursive.to_string()).read().await
    }

    /// What happens at a path, and below it when `recursive`. Comes back when changes are watched.
    ///
    /// # Errors
    /// As every call.
    pub async fn watch_files(
        &self,
        id: &InstanceId,
        path: &str,
        user: Option<&str>,
        recursive: bool,
    ) -> Result<ChangeStream, ClientError> {
        let call = self.files(Method::GET, id, &["watch"], path, user).timeout(None);
        let call = call
            .query("recursive", &recursive.to_string())
            .accept("text/event-stream");
        Ok(stream::change_events(self.address(), call.open().await?))
    }

    /// A folder as a tar stream.
    ///
    /// # Errors
    /// As every call; 409 for what is no folder.
    pub async fn read_tar(&self, id: &InstanceId, path: &str, user: Option<&str>) -> Result<TarContent, ClientError> {
        let call = self.files(Method::GET, id, &["tar"], path, user).timeout(None);
        let response = call.open().await?;
        Ok(self.chunks(response))
    }

    /// Unpacks a tar stream below a folder.
    ///
    /// # Errors
    /// As [`Client::write_file`].
    pub async fn write_tar(
        &self,
        id: &InstanceId,
        path: &str,
        options: &WriteOptions,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<TarUnpacked, ClientError> {
        let mut call = self
            .files(Method::PUT, id, &["tar"], path, options.user.as_deref())
            .timeout(None);
        if let Some(owner) = &options.owner {
            call = call.query("owner", owner);
        }
        call.upload(reqwest::Body::wrap_stream(body)).await
    }

    fn chunks(&self, response: Response) -> Chunks {
        let url = self.address();
        let chunks = response.bytes_stream().map(move |chunk| {
            chunk.map_err(|fault| ClientError::Interrupted {
                url: url.clone(),
                reason: error::chain(&fault.without_url()),
            })
        });
        chunks.boxed()
    }
}
