//! Large files that are mostly holes (a VM's memory): copied and summed without reading the holes. Knows nothing of VMs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// What is tested for being all zeros at once: the size of a page of the guest's memory.
const PAGE: usize = 4096;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// Read and written at once; fits a processor's cache.
const BLOCK: usize = 1024 * 1024;
/// Summed by one thread at a time. Part of what a checksum means: another size gives other sums.
const CHUNK: u64 = 16 * 1024 * 1024;

/// Copies a file to a new one that only we can write: shares the blocks where the file system can, else copies what is
/// neither a hole nor zero. The source may be mapped by a process, if that does not write meanwhile. Not synced.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, length)? {
        at = start;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            let read = source.read_at(&mut buffer[..wanted], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_pages(&target, &buffer[..read], at)?;
            at += read as u64;
        }
    }
    Ok(())
}

/// Writes what is not zero, in runs as long as possible.
fn write_pages(target: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut run = 0;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        if *page == ZERO_PAGE[..page.len()] {
            target.write_all_at(&bytes[run..at], offset + run as u64)?;
            run = at + page.len();
        }
    }
    target.write_all_at(&bytes[run..], offset + run as u64)
}

/// The next stretch of data at or after `at`, at most up to `limit`.
fn next_data(file: &File, at: u64, limit: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= limit {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < limit => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, limit))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(limit))))
}

/// A SHA-256 over the length and everything that is not zero, the same however the holes lie. Uses every processor: the
/// file is cut into chunks, each summed on its own.
pub fn checksum(path: &Path) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    let count = length.div_ceil(CHUNK);
    let next = std::sync::atomic::AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || -> io::Result<Vec<(u64, [u8; 32])>> {
        // A handle of its own for each thread: looking for data moves a handle's position.
        let file = File::open(path)?;
        let mut sums = Vec::new();
        let mut buffer = vec![0; BLOCK];
        loop {
            let chunk = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if chunk >= count {
                return Ok(sums);
            }
            let end = (chunk + 1).saturating_mul(CHUNK).min(length);
            if let Some(sum) = sum_chunk(&file, chunk * CHUNK, end, &mut buffer)? {
                sums.push((chunk, sum));
            }
        }
    };
    let mut sums = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            sums.extend(thread.join().map_err(|_| io::Error::other("a thread died"))??);
        }
        Ok::<(), io::Error>(())
    })?;
    sums.sort_unstable();
    let mut whole = Sha256::new();
    whole.update(length.to_le_bytes());
    for (chunk, sum) in sums {
        whole.update(chunk.to_le_bytes());
        whole.update(sum);
    }
    Ok(hex::encode(whole.finalize()))
}

/// `None` when it is all zeros.
fn sum_chunk(file: &File, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<Option<[u8; 32]>> {
    let mut hash = Sha256::new();
    let mut is_empty = true;
    let mut at = start;
    while let Some((data, hole)) = next_data(file, at, end)? {
        // Holes may begin anywhere; what is summed begins and ends with pages.
        at = data - data % PAGE as u64;
        while at < hole {
            let wanted = usize::try_from(end - at).unwrap_or(buffer.len()).min(buffer.len());
            let block = &mut buffer[..wanted];
            file.read_exact_at(block, at)?;
            for (index, page) in block.chunks(PAGE).enumerate() {
                if *page != ZERO_PAGE[..page.len()] {
                    hash.update((at + (index * PAGE) as u64).to_le_bytes());
                    hash.update(page);
                    is_empty = false;
                }
            }
            at += wanted as u64;
        }
    }
    Ok((!is_empty).then(|| hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::bytes_on_disk;

    const MIB: u64 = 1024 * 1024;

    fn patched(folder: &Path, name: &str, length: u64, patches: &[(u64, &[u8])]) -> std::path::PathBuf {
        let path = folder.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in patches {
            file.write_all_at(bytes, *at).unwrap();
        }
        path
    }

    #[test]
    fn a_copy_is_equal_and_has_holes() {
        let folder = tempfile::tempdir().unwrap();
        let zeros = vec![0; 3 * usize::try_from(MIB).unwrap()];
        let patches: [(u64, &[u8]); 5] = [
            (0, b"begin"),
            (5 * MIB + 77, b"unaligned"),
            (20 * MIB, &zeros),
            (32 * MIB - 1, b"over a border"),
            (64 * MIB - 3, b"end"),
        ];
        let source = patched(folder.path(), "source", 64 * MIB, &patches);
        let target = folder.path().join("target");
        copy(&source, &target).unwrap();
        assert_eq!(std::fs::read(&source).unwrap(), std::fs::read(&target).unwrap());
        let taken = bytes_on_disk(&std::fs::metadata(&target).unwrap());
        assert!(taken < MIB, "{taken} bytes");
        assert_eq!(checksum(&source).unwrap(), checksum(&target).unwrap());
        assert!(copy(&source, &target).is_err(), "nothing is overwritten");
    }

    #[test]
    fn a_checksum_sees_every_byte_and_the_length() {
        let folder = tempfile::tempdir().unwrap();
        let base: [(u64, &[u8]); 2] = [(100, b"a"), (40 * MIB + 5, b"b")];
        let sum =
            |name, length, patches: &[(u64, &[u8])]| checksum(&patched(folder.path(), name, length, patches)).unwrap();
        let first = sum("1", 50 * MIB, &base);
        assert_eq!(first, sum("2", 50 * MIB, &base));
        assert_ne!(first, sum("3", 50 * MIB + 1, &base));
        assert_ne!(first, sum("4", 50 * MIB, &[(101, b"a"), (40 * MIB + 5, b"b")]));
        assert_ne!(first, sum("5", 50 * MIB, &[(100, b"a"), (40 * MIB + 5, b"c")]));
        assert_ne!(first, sum("6", 50 * MIB, &[(100, b"a")]));
        // A zero that is written is the same as a hole.
        assert_eq!(
            first,
            sum(
                "7",
                50 * MIB,
                &[(100, b"a"), (9 * MIB, &[0; 9000]), (40 * MIB + 5, b"b")]
            )
        );
        assert_eq!(sum("8", 0, &[]).len(), 64);
    }
}
