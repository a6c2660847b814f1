//! Room on the disk that is kept for what makes room: when the disk under the data folder is full, not even a deletion could be
//! written. A part of it is given up for each such write that finds no room, and made again when there is some.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

/// Its folder in the data folder.
const FOLDER: &str = "reserve";
/// Chunks that it is made of: VMs that write take what was given up, too, so not all of it is given up at once.
const PARTS: u64 = 4;
/// It is made again only where so many times its size is free: else it would itself be what fills the disk.
const FREE_BESIDE: u64 = 4;
/// How often it is looked whether something of it is missing.
const LOOK: Duration = Duration::from_secs(30);

/// The room that is kept. Clones are of one.
#[derive(Debug, Clone)]
pub struct Reserve(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// Of one part.
    bytes: u64,
    looked: Mutex<Option<Instant>>,
}

impl Reserve {
    /// Of so many bytes, below this folder; what is missing is made if there is room. The server works without it.
    #[must_use]
    pub fn open(data_dir: &Path, bytes: u64) -> Self {
        let reserve = Self(Arc::new(Inner {
            folder: data_dir.join(FOLDER),
            bytes: bytes / PARTS,
            looked: Mutex::default(),
        }));
        reserve.refill();
        reserve
    }

    /// Makes what is missing, if it is time to look and there is room.
    pub fn refill(&self) {
        {
            let mut looked = self.0.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|at| at.elapsed() < LOOK) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let missing: Vec<_> = self.parts().filter(|part| !part.exists()).collect();
        if missing.is_empty() || self.0.bytes == 0 {
            return;
        }
        for part in &missing {
            match self.make(part) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(
                        folder = %self.0.folder.display(),
                        "the disk under the data folder is nearly full: no room can be kept for deletions; free some space"
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, folder = %self.0.folder.display(), "no room can be kept for deletions");
                    return;
                }
            }
        }
        tracing::debug!(parts = missing.len(), "room is kept for deletions");
    }

    /// One part; false where it would take too much of what is left.
    fn make(&self, part: &Path) -> io::Result<bool> {
        std::fs::create_dir_all(&self.0.folder)?;
        let free = statvfs(&self.0.folder)?;
        let free = free.blocks_available().saturating_mul(free.fragment_size());
        if free < self.0.bytes.saturating_mul(PARTS * FREE_BESIDE) {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
        let length = i64::try_from(self.0.bytes).unwrap_or(i64::MAX);
        let made = posix_fallocate(&file, 0, length).map_err(io::Error::from);
        if made.is_err() {
            drop(std::fs::remove_file(part));
        }
        made.map(|()| true)
    }

    /// Gives a part up; false when none is left.
    pub(super) fn release(&self) -> bool {
        let Some(part) = self.parts().find(|part| part.exists()) else {
            return false;
        };
        let removed = std::fs::remove_file(&part);
        match &removed {
            Ok(()) => tracing::warn!(
                bytes = self.0.bytes,
                "the disk under the data folder is full: room that was kept is given up, so that things can be deleted; free some space"
            ),
            Err(error) => tracing::error!(%error, part = %part.display(), "room that was kept cannot be given up"),
        }
        removed.is_ok()
    }

    fn parts(&self) -> impl Iterator<Item = PathBuf> {
        (0..PARTS).map(|number| self.0.folder.join(number.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_given_up_one_by_one_and_made_again() {
        let data = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(data.path(), 64 * 1024);
        let there = || reserve.parts().filter(|part| part.exists()).count();
        assert_eq!(there(), 4);
        assert!(reserve.release() && reserve.release());
        assert_eq!(there(), 2);
        assert!(reserve.release() && reserve.release() && !reserve.release());
        // Not yet time to look.
        reserve.refill();
        assert_eq!(there(), 0);
        *reserve.0.looked.lock().unwrap() = None;
        reserve.refill();
        assert_eq!(there(), 4);
        let part = reserve.parts().next().unwrap();
        assert_eq!(part.metadata().unwrap().len(), 16 * 1024);
    }
}
