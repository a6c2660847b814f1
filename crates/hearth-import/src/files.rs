//! The repository's files: what the caller hands in, and a reader over it that is bounded in number and size and never leaves the
//! repository.

use std::collections::BTreeMap;

use crate::Fault;

/// A longer file is not read, bytes.
pub const MAX_FILE: u64 = 256 * 1024;
/// So many files are read of a repository.
pub const MAX_FILES: usize = 100;
/// So many entries of one folder are read.
pub const MAX_ENTRIES: usize = 10_000;

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file, with its length in bytes.
    File(u64),
    Folder,
    /// A symbolic link: none is followed.
    Link,
    /// A submodule, or something that is no file.
    Other,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
}

/// A repository's files at one commit. Paths are relative to its root, of plain names separated by `/`.
pub trait Files {
    /// What a folder holds, at most [`MAX_ENTRIES`]; the root is `""`. The error is a sentence.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, String>;
    /// The content of a file that `list` named. The error is a sentence.
    fn read(&self, path: &str) -> Result<Vec<u8>, String>;
}

/// Reads files, each folder listed once.
pub(crate) struct Reader<'a> {
    files: &'a dyn Files,
    folders: BTreeMap<String, BTreeMap<String, Kind>>,
    read: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            folders: BTreeMap::new(),
            read: 0,
        }
    }

    /// What a folder that is there holds.
    fn folder(&mut self, folder: &str) -> Result<&BTreeMap<String, Kind>, Fault> {
        if !self.folders.contains_key(folder) {
            let shown = if folder.is_empty() { "." } else { folder };
            let entries = self.files.list(folder).map_err(|what| Fault::new(shown, "", what))?;
            let entries = entries.into_iter().take(MAX_ENTRIES);
            let entries = entries.map(|entry| (entry.name, entry.kind)).collect();
            self.folders.insert(folder.to_owned(), entries);
        }
        Ok(&self.folders[folder])
    }

    /// What is at a path; `None` when nothing is, or when the way there is no folder.
    fn kind(&mut self, path: &str) -> Result<Option<Kind>, Fault> {
        let mut folder = String::new();
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let kind = self.folder(&folder)?.get(name).copied();
            if names.peek().is_none() {
                return Ok(kind);
            }
            match kind {
                Some(Kind::Folder) => {}
                Some(Kind::Link) => return Ok(Some(Kind::Link)),
                _ => return Ok(None),
            }
            if !folder.is_empty() {
                folder.push('/');
            }
            folder.push_str(name);
        }
        Ok(None)
    }

    /// Whether there is a file, or a link in its place.
    pub(crate) fn has(&mut self, path: &str) -> Result<bool, Fault> {
        Ok(matches!(self.kind(path)?, Some(Kind::File(_) | Kind::Link)))
    }

    /// Whether there is a folder.
    pub(crate) fn has_folder(&mut self, path: &str) -> Result<bool, Fault> {
        Ok(matches!(self.kind(path)?, Some(Kind::Folder)))
    }

    /// The first of these that is there.
    pub(crate) fn first(&mut self, paths: &[&str]) -> Result<Option<String>, Fault> {
        for path in paths {
            if self.has(path)? {
                return Ok(Some((*path).to_owned()));
            }
        }
        Ok(None)
    }

    /// The folders in a folder, sorted; none when it is not there.
    pub(crate) fn folders_in(&mut self, path: &str) -> Result<Vec<String>, Fault> {
        if !self.has_folder(path)? {
            return Ok(Vec::new());
        }
        let entries = self.folder(path)?.iter();
        Ok(entries
            .filter(|(_, kind)| **kind == Kind::Folder)
            .map(|(name, _)| name.clone())
            .collect())
    }

    /// The names in the root.
    pub(crate) fn root(&mut self) -> Result<Vec<String>, Fault> {
        Ok(self.folder("")?.keys().cloned().collect())
    }

    /// The text of a file; `None` when there is none.
    pub(crate) fn text(&mut self, path: &str) -> Result<Option<String>, Fault> {
        let fault = |what: String| Fault::new(path, "", what);
        let length = match self.kind(path)? {
            None => return Ok(None),
            Some(Kind::File(length)) => length,
            Some(Kind::Link) => return Err(fault("is a symbolic link, or behind one; none is followed".to_owned())),
            Some(Kind::Folder | Kind::Other) => return Err(fault("is no file".to_owned())),
        };
        if length > MAX_FILE {
            let limit = MAX_FILE / 1024;
            return Err(fault(format!(
                "is {} KiB long; at most {limit} KiB are read",
                length.div_ceil(1024)
            )));
        }
        self.read += 1;
        if self.read > MAX_FILES {
            return Err(fault(format!("more than {MAX_FILES} files would have to be read")));
        }
        let content = self.files.read(path).map_err(fault)?;
        text_of(&content).map(Some).map_err(fault)
    }
}

fn text_of(content: &[u8]) -> Result<String, String> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err("is in UTF-16; save it as UTF-8".to_owned());
    }
    if content.contains(&0) {
        return Err("holds a zero byte, so it is no text".to_owned());
    }
    match std::str::from_utf8(content) {
        Ok(text) => Ok(text.replace("\r\n", "\n")),
        Err(error) => {
            let before = &content[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Err(format!("is not UTF-8: line {line} holds other bytes"))
        }
    }
}

/// A path that a file names, relative to the folder it is meant from; `None` when it leads out of the repository.
pub(crate) fn join(folder: &str, path: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    let absolute = path.starts_with('/');
    let all = if absolute { "" } else { folder }.split('/').chain(path.split('/'));
    for name in all {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    (!absolute).then(|| names.join("/"))
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}
