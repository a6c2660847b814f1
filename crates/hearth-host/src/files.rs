//! Small file helpers shared by images and drivers.

use std::io;
use std::path::Path;

use serde::Serialize;

/// What a file truly takes on the disk, holes left out.
pub fn bytes_on_disk(metadata: &std::fs::Metadata) -> u64 {
    /// `st_blocks` counts in these, whatever the file system's own blocks are (stat(2)).
    const STAT_BLOCK: u64 = 512;
    std::os::unix::fs::MetadataExt::blocks(metadata) * STAT_BLOCK
}

/// Removes a folder with everything in it; one that is not there is removed already.
pub fn remove_all(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces a small JSON file so that a reader sees the old or the new text, never a part. Not synced to the disk: what it
/// describes are processes, and those do not survive a power cut either.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(file.as_file(), value)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
