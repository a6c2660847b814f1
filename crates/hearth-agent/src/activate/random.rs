//! Randomness: the kernel's generator, and the seeds that are kept for the next boot.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{Part, at};
use crate::container;

/// Where systems keep a seed over a boot: systemd's, and two of before.
const SEEDS: [&str; 3] = [
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
    "var/lib/misc/random-seed",
];
/// As long as the kernel's pool.
const SEED_BYTES: usize = 512;

/// What one call adds at most; longer entropy is added in parts.
const POOL_BYTES: usize = 64;
const BITS_PER_BYTE: i32 = 8;

/// What the kernel's RNDADDENTROPY reads (`struct rand_pool_info`, with a buffer of a fixed size).
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; POOL_BYTES],
}

/// The calls of `linux/random.h`. The first one's number holds the size of the struct without its buffer.
mod calls {
    #![expect(
        unsafe_code,
        reason = "the kernel has no other door to its random pool that counts what it is given"
    )]

    use std::os::fd::RawFd;

    use super::PoolInfo;

    const ADD_ENTROPY: u64 = nix::request_code_write!(b'R', 0x03, 2 * size_of::<i32>());

    nix::ioctl_write_ptr_bad!(rnd_add_entropy, ADD_ENTROPY, PoolInfo);
    nix::ioctl_none!(rnd_reseed, b'R', 0x07);

    /// Mixes bytes in and counts them as random.
    pub(super) fn add(device: RawFd, info: &PoolInfo) -> nix::Result<()> {
        // SAFETY: `info` lives through the call, and says its buffer's true length.
        unsafe { rnd_add_entropy(device, info) }.map(drop)
    }

    /// Draws a new key from the pool, at once and on every processor.
    pub(super) fn reseed(device: RawFd) -> nix::Result<()> {
        // SAFETY: this call takes no argument.
        unsafe { rnd_reseed(device) }.map(drop)
    }
}

/// Gives the kernel's generator new randomness, so that its numbers differ from every other fork's. A container draws on its host's,
/// which no fork has a copy of.
pub(super) fn reseed(entropy: &[u8]) -> Part<()> {
    if container::shares_kernel() {
        return Ok(());
    }
    let path = Path::new("/dev/random");
    let device = File::options().write(true).open(path).map_err(at(path))?;
    let failed = |error: nix::errno::Errno| format!("the random generator: {}", error.desc());
    for part in entropy.chunks(POOL_BYTES) {
        let mut buffer = [0; POOL_BYTES];
        buffer[..part.len()].copy_from_slice(part);
        let bytes = i32::try_from(part.len()).unwrap_or_default();
        let info = PoolInfo {
            entropy_bits: bytes * BITS_PER_BYTE,
            bytes,
            buffer,
        };
        calls::add(device.as_raw_fd(), &info).map_err(failed)?;
    }
    calls::reseed(device.as_raw_fd()).map_err(failed)
}

/// Random bytes of the kernel.
pub(super) fn bytes<const N: usize>() -> Part<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| format!("random bytes: {error}"))?;
    Ok(bytes)
}

/// Replaces the seeds that are there.
pub(super) fn replace_seeds(root: &Path) -> Part<()> {
    for seed in SEEDS {
        let path = root.join(seed);
        if path.exists() {
            // In place: a file that is cut is written to the disk at once.
            let mut file = File::options().write(true).open(&path).map_err(at(&path))?;
            file.write_all(&bytes::<SEED_BYTES>()?).map_err(at(&path))?;
            file.set_len(SEED_BYTES as u64).map_err(at(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_are_there_are_replaced_and_others_not_made() {
        let root = tempfile::tempdir().unwrap();
        let seed = root.path().join(SEEDS[0]);
        std::fs::create_dir_all(seed.parent().unwrap()).unwrap();
        std::fs::write(&seed, "old").unwrap();
        replace_seeds(root.path()).unwrap();
        assert_eq!(std::fs::read(&seed).unwrap().len(), SEED_BYTES);
        assert!(!root.path().join(SEEDS[1]).exists());
    }
}
