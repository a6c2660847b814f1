//! Files inside a VM, over the public API.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;
use crate::values::{FileMode, GuestPath, Name};

/// One file, folder or link in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Its name, without the folders above it. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// The name's exact bytes, base64, when they are not UTF-8; else `null`. Such a file can be copied with its folder, or reached by a command.
    #[schema(required)]
    pub name_base64: Option<String>,
    /// Its path in the VM.
    pub path: String,
    /// What it is. Links are not followed.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, octal: `0644`.
    #[schema(value_type = FileMode)]
    pub mode: String,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The owner's name, or its number when it has no name.
    pub owner: String,
    /// The group's name, or its number when it has no name.
    pub group: String,
    /// When its content changed last.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub modified_at: Timestamp,
    /// Where a link leads, as it is written in it; `null` for everything else.
    #[schema(required)]
    pub symlink_target: Option<String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

/// Reply of `GET /instances/{id}/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// The entries, sorted by path. A list that is cut has those of the upper levels.
    pub items: Vec<FileEntry>,
    /// Whether there are more than `limit`.
    pub truncated: bool,
    /// Folders below that the user may not read; at most 100 are named.
    pub unreadable: Vec<String>,
}

/// Body of `POST /instances/{id}/files/mkdir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "path": "/home/app/dist", "mode": "0755" }))]
pub struct MakeDirectory {
    /// The folder; absolute, `~/…`, or relative to `/home`. What is missing above it is made.
    pub path: GuestPath,
    /// The user who makes it, root by default: a name or `uid[:gid]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Name>,
    /// Permission bits, octal; 0755 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// Its owner, `user` by default: a name or `uid[:gid]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Name>,
}

/// Body of `POST /instances/{id}/files/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "path": "/home/app/dist", "to": "/home/app/dist.old" }))]
pub struct MoveFile {
    /// What is moved; absolute, `~/…`, or relative to `/home`.
    pub path: GuestPath,
    /// Its new path. What is missing above it is made.
    pub to: GuestPath,
    /// Whether a file at the new path, or an empty folder, is replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// The user who moves it, root by default: a name or `uid[:gid]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Name>,
}

/// Reply of `DELETE /instances/{id}/files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileRemoved {
    /// Always true: what is not there is 404.
    pub removed: bool,
    /// What was removed, as it was asked for.
    pub path: String,
}

/// Reply of `PUT /instances/{id}/files/tar`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TarUnpacked {
    /// Files that were written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that are no files, folders or links, and were left out.
    pub left_out: u64,
    /// Entries that could not be read where the stream was made, as its end says.
    pub failed: u64,
    /// The first 50 of both, each with the reason.
    pub named: Vec<String>,
}

/// One thing that happened to what is watched: the data of an event of `GET /instances/{id}/files/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileChange {
    /// What happened; also the event's name.
    pub kind: FileChangeKind,
    /// Where, relative to the path that is watched; empty for that path itself.
    pub path: String,
    /// The path before a `rename`; else `null`.
    #[schema(required)]
    pub from: Option<String>,
    /// Whether it is a folder.
    pub is_directory: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileChangeKind {
    /// Changes are watched from now on. Always the first event.
    Start,
    /// It was made, or moved here from elsewhere. What is in a new folder may be said twice.
    Create,
    /// Its content changed.
    Write,
    /// It was removed, or moved elsewhere.
    Remove,
    /// It was renamed.
    Rename,
    /// Its mode, owner or time changed.
    Chmod,
    /// Some changes are lost: look at the folder anew.
    Overflow,
    /// What is watched is gone. Always the last event.
    End,
}

impl FileChangeKind {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Create => "create",
            Self::Write => "write",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Chmod => "chmod",
            Self::Overflow => "overflow",
            Self::End => "end",
        }
    }
}

/// Header of the reply to a read: the file's permission bits, octal.
pub const MODE_HEADER: &str = "hearth-file-mode";
