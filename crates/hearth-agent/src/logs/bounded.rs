//! A log that keeps the newest of what is written: a file of at most [`SEGMENT_BYTES`] and the one before it. What had to go is
//! counted. It is a plain file all the time, so a user in the VM can read it, too.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The newest of these, and up to as much before them, are kept.
pub(super) const SEGMENT_BYTES: u64 = 1024 * 1024;

/// Commands print secrets.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// What is known of a log besides its text, in a file beside it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct About {
    /// What was run, for a person.
    pub(super) command: String,
    /// Bytes that are not kept any more.
    pub(super) dropped: u64,
}

/// One log. Knows its files only; one writer at a time.
#[derive(Debug)]
pub(super) struct Bounded {
    path: PathBuf,
    about: About,
    /// Open once something was written.
    file: Option<File>,
    newest: u64,
    before: u64,
}

impl Bounded {
    /// A new one at `path`. Its files are made when something is written.
    pub(super) fn new(path: PathBuf, command: String) -> Self {
        Self {
            path,
            about: About { command, dropped: 0 },
            file: None,
            newest: 0,
            before: 0,
        }
    }

    /// One that an earlier agent has written.
    pub(super) fn of_earlier(path: PathBuf) -> Self {
        let length = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        let about = fs::read(about_path(&path)).ok();
        Self {
            about: about
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default(),
            file: None,
            newest: length(&path),
            before: length(&before_path(&path)),
            path,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// Bytes that are kept.
    pub(super) fn kept(&self) -> u64 {
        self.before + self.newest
    }

    /// Bytes that were ever written.
    pub(super) fn written(&self) -> u64 {
        self.about.dropped + self.kept()
    }

    /// Adds to the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.newest >= SEGMENT_BYTES {
            self.turn_over()?;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        file.write_all(bytes)?;
        self.newest += bytes.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Counts what could not be written.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.about.dropped += bytes;
    }

    fn open(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        self.note()?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(FILE_MODE)
            .open(&self.path)
    }

    fn turn_over(&mut self) -> io::Result<()> {
        fs::rename(&self.path, before_path(&self.path))?;
        self.about.dropped += self.before;
        (self.before, self.newest, self.file) = (self.newest, 0, None);
        Ok(())
    }

    fn note(&self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(about_path(&self.path))?;
        file.write_all(&serde_json::to_vec(&self.about)?)
    }

    /// Up to `most` bytes from `position` on, counted from the first byte ever written, and where they really begin: later, when
    /// what was there is gone.
    pub(super) fn read(&self, position: u64, most: usize) -> io::Result<(u64, Vec<u8>)> {
        let position = position.max(self.about.dropped);
        let within = position - self.about.dropped;
        let mut bytes = Vec::new();
        if within < self.before {
            read_at(&before_path(&self.path), within, most, &mut bytes)?;
        } else if within < self.kept() {
            read_at(&self.path, within - self.before, most, &mut bytes)?;
        }
        Ok((position, bytes))
    }

    /// Takes its files away.
    pub(super) fn remove(&mut self) {
        self.file = None;
        for path in [&self.path, &before_path(&self.path), &about_path(&self.path)] {
            // One that was never written has none.
            drop(fs::remove_file(path));
        }
    }
}

fn read_at(path: &Path, position: u64, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    file.take(most as u64).read_to_end(into)?;
    Ok(())
}

fn before_path(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn about_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_and_the_rest_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exec/1.log");
        let mut log = Bounded::new(path.clone(), "yes".to_owned());
        assert!(!path.exists());
        let chunk = vec![b'x'; 300_000];
        for _ in 0..20 {
            log.write(&chunk).unwrap();
        }
        log.write(b"the end").unwrap();
        assert_eq!(log.written(), 20 * 300_000 + 7);
        assert!(
            (SEGMENT_BYTES..3 * SEGMENT_BYTES).contains(&log.kept()),
            "{}",
            log.kept()
        );
        assert_eq!(log.written() - log.kept(), log.about().dropped);
        // Reading from the start begins where something is.
        let (mut position, mut all) = (0, Vec::new());
        loop {
            let (begin, bytes) = log.read(position, 100_000).unwrap();
            if bytes.is_empty() {
                break;
            }
            assert!(position == 0 || begin == position);
            position = begin + bytes.len() as u64;
            all.extend(bytes);
        }
        assert!(all.ends_with(b"the end") && all.len() as u64 == log.kept());
        // The next agent finds it as it was.
        let found = Bounded::of_earlier(path.clone());
        assert_eq!((found.kept(), found.about().command.as_str()), (log.kept(), "yes"));
        assert_eq!(found.written(), log.written());
        log.remove();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
