//! What the agent says of files in its VM: entries, lists, changes, and why something was refused.

use serde::{Deserialize, Serialize};

/// One thing that a folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its own name; what is no UTF-8 in it is replaced.
    pub name: String,
    /// The name's bytes, base64, where they are no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// Where it is: below the path that was asked for.
    pub path: String,
    /// What it is; links are not followed.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The owner's name, or the number where it has none.
    pub owner: String,
    /// The group's name, or the number where it has none.
    pub group: String,
    /// When its content was last changed, milliseconds since the Unix epoch.
    pub modified_unix_ms: i64,
    /// Where a symbolic link leads, as it is written in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryKind {
    /// A plain file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

/// Reply of `GET /v1/fs/list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryList {
    /// What was found, sorted by path.
    pub items: Vec<Entry>,
    /// True when there is more than was asked for.
    pub truncated: bool,
    /// Folders below that could not be read.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

/// The most entries of one list.
pub const MAX_ENTRIES: usize = 10_000;

/// What the reply to a read says of the file, in its header [`FILE_HEADER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileHead {
    /// Bytes of the whole file.
    pub size: u64,
    /// The first byte of the reply's body.
    pub offset: u64,
    /// How many bytes the body has.
    pub length: u64,
    /// Differs whenever the file does.
    pub tag: String,
    /// Permission bits.
    pub mode: u32,
    /// When its content was last changed, milliseconds since the Unix epoch.
    pub modified_unix_ms: i64,
}

/// Header of the reply to a read: a [`FileHead`] as JSON.
pub const FILE_HEADER: &str = "hearth-file";

/// Reply of `PUT /v1/fs/tree`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unpacked {
    /// Files that were written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that are no files, folders or links.
    pub left_out: u64,
    /// Entries that could not be read where the stream was made.
    pub failed: u64,
    /// The first of both, with the reason.
    #[serde(default)]
    pub named: Vec<String>,
}

/// One thing that happened to what is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// Where, below the path that is watched; empty for that itself.
    pub path: String,
    /// What it was called before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a folder.
    #[serde(default)]
    pub is_folder: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// From now on changes are said. Always the first one.
    Started,
    /// It was made, or moved here from elsewhere. In a new folder the same thing may be said twice.
    Created,
    /// Its content was changed.
    Written,
    /// It was removed, or moved elsewhere.
    Removed,
    /// It was renamed within what is watched.
    Renamed,
    /// Its mode, owner or time was changed.
    Attributes,
    /// More happened than could be kept, or than can be watched: look anew.
    Overflow,
    /// What is watched is gone. Nothing follows.
    Ended,
    /// Something that is newer than this reader.
    #[serde(other)]
    Unknown,
}

/// Which part of a file is read. The agent answers with what there is of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// From this byte on, at most so many.
    From(u64, Option<u64>),
    /// This many at the end.
    Last(u64),
}

/// Why a request about files was refused, for programs; the message beside it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultCode {
    /// It does not exist.
    NotFound,
    /// The user may not.
    Denied,
    /// Something is there already.
    Exists,
    /// It is a folder.
    IsFolder,
    /// It is not a folder.
    NotFolder,
    /// It is neither a file nor a folder.
    NotFile,
    /// The folder is not empty.
    NotEmpty,
    /// It conflicts with what is there in another way.
    Conflict,
    /// The disk is full.
    NoSpace,
    /// The file has no such part.
    Range,
    /// The request itself is wrong.
    Invalid,
    /// A reason that is newer than this reader.
    #[serde(other)]
    Unknown,
}
