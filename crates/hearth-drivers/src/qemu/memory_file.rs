//! The file that QEMU writes with the state of a VM and all of its memory (its capability `mapped-ram`), taken apart: the memory stays where
//! it is in that file, from where each fork maps it, and the rest becomes a state that says that no page of the memory is in it.
//!
//! ```text
//! … length of the block · version · page size · where its bitmap is · where its pages are │ bitmap │ … │ pages │ … devices
//! ```
//! The numbers are big-endian. The bitmap says which pages were written; the others are zero, and holes in the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The machine's memory is the largest block, and the largest comes first.
const HEAD: usize = 1024 * 1024;
/// The only version of a block's header.
const VERSION: u32 = 1;
/// A page of the guest.
const PAGE: u64 = 4096;
/// Pages begin at a multiple of this.
const ALIGNED: u64 = 1024 * 1024;
/// From a block's length to its bitmap: length, version, page size and two places.
const HEADER: u64 = 8 + 4 + 8 + 8 + 8;
/// Copied at once.
const CHUNK: usize = 64 * 1024;

/// Where the memory is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    bitmap: u64,
    bitmap_bytes: u64,
    pages: u64,
}

/// Makes the state `to`, without the memory, of what QEMU wrote to `from`, and gives where in `from` the `memory` bytes of memory begin.
/// `from` stays as it is.
pub(super) fn split(from: &Path, to: &Path, memory: u64) -> io::Result<u64> {
    let source = File::open(from)?;
    let length = source.metadata()?.len();
    let mut head = vec![0; HEAD.min(usize::try_from(length).unwrap_or(HEAD))];
    source.read_exact_at(&mut head, 0)?;
    let block = find(&head, memory)
        .filter(|block| block.pages + memory <= length)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "QEMU's file does not say where the memory is",
            )
        })?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_len(length)?;
    copy(&source, &target, 0, block.bitmap)?;
    copy(&source, &target, block.bitmap + block.bitmap_bytes, block.pages)?;
    copy(&source, &target, block.pages + memory, length)?;
    Ok(block.pages)
}

/// The header of a block of so many bytes, whose places are as QEMU makes them.
fn find(head: &[u8], memory: u64) -> Option<Block> {
    let mut begins = memory.to_be_bytes().to_vec();
    begins.extend(VERSION.to_be_bytes());
    begins.extend(PAGE.to_be_bytes());
    let number = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let at = head.windows(begins.len()).position(|window| window == begins)?;
    let bitmap_bytes = (memory / PAGE).div_ceil(64) * 8;
    let bitmap = at as u64 + HEADER;
    let block = Block {
        bitmap,
        bitmap_bytes,
        pages: (bitmap + bitmap_bytes).next_multiple_of(ALIGNED),
    };
    let said = (number(at + begins.len())?, number(at + begins.len() + 8)?);
    (said == (block.bitmap, block.pages)).then_some(block)
}

/// Copies what is not zero; the target is all zeros.
fn copy(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..wanted];
        source.read_exact_at(chunk, at)?;
        if chunk.iter().any(|byte| *byte != 0) {
            target.write_all_at(chunk, at)?;
        }
        at += wanted as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 2 * ALIGNED;

    /// As QEMU writes it: two blocks, the larger first, and the devices behind them.
    fn written(pages: u64) -> Vec<u8> {
        let mut file = b"QEVM and more\x03mem".to_vec();
        let bitmap = file.len() as u64 + HEADER;
        file.extend(MEMORY.to_be_bytes());
        file.extend(VERSION.to_be_bytes());
        for number in [PAGE, bitmap, pages] {
            file.extend(number.to_be_bytes());
        }
        file.extend([0xff; 64]);
        file.resize(usize::try_from(ALIGNED).unwrap(), 0);
        file.extend(vec![7; usize::try_from(MEMORY).unwrap()]);
        file.extend(b"devices");
        file
    }

    #[test]
    fn a_state_without_the_memory_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (ram, state) = (folder.path().join("ram"), folder.path().join("state"));
        let whole = written(ALIGNED);
        std::fs::write(&ram, &whole).unwrap();
        assert_eq!(split(&ram, &state, MEMORY).unwrap(), ALIGNED);
        let made = std::fs::read(&state).unwrap();
        assert_eq!(std::fs::read(&ram).unwrap(), whole);
        assert_eq!(made.len(), whole.len());
        let header = b"QEVM and more\x03mem".len() + usize::try_from(HEADER).unwrap();
        assert_eq!(made[..header], whole[..header]);
        let devices = whole.len() - 7;
        assert!(made[header..devices].iter().all(|byte| *byte == 0));
        assert_eq!(made[devices..], *b"devices");
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (ram, state) = (folder.path().join("ram"), folder.path().join("state"));
        // Pages elsewhere than QEMU puts them, a file that was cut, and no file of QEMU at all.
        let mut cut = written(ALIGNED);
        cut.truncate(usize::try_from(ALIGNED + MEMORY).unwrap() - 1);
        for bad in [written(2 * ALIGNED), cut, b"QEVM".to_vec(), Vec::new()] {
            std::fs::write(&ram, bad).unwrap();
            assert!(split(&ram, &state, MEMORY).is_err());
            assert!(!state.exists());
        }
    }
}
