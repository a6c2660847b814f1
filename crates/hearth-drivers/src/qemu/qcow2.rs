//! An empty qcow2 layer, written directly: starting `qemu-img` for it takes 10 to 20 ms, which is a third of a fork.
//! Only this one case, by the format's own description (QEMU's docs/interop/qcow2): version 3, no options. Reads nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// 64 KiB, as `qemu-img` chooses.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// A table's entry is 8 bytes.
const ENTRY: u64 = 8;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_LENGTH: u32 = 104;
/// The header extension that names the format of what lies below.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The most that the format allows.
const LONGEST_BACKING_NAME: usize = 1023;
/// The file's clusters, in order.
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;

/// Makes an empty layer of `bytes` over the file `backing` (as QEMU will see it) of the format `format`, for its owner alone.
pub(super) fn create_layer(path: &Path, bytes: u64, backing: &str, format: &str) -> io::Result<()> {
    if backing.len() > LONGEST_BACKING_NAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of the layer below is too long",
        ));
    }
    // One entry of the first table points to a cluster of entries of the second.
    let per_entry = CLUSTER * (CLUSTER / ENTRY);
    let l1_entries = bytes.div_ceil(per_entry).max(1);
    let l1_clusters = (l1_entries * ENTRY).div_ceil(CLUSTER);
    let clusters = L1_TABLE / CLUSTER + l1_clusters;

    let mut extensions = Vec::new();
    extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
    extensions.extend(length(format)?.to_be_bytes());
    extensions.extend(format.as_bytes());
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    // The end of the extensions: type and length are zero.
    extensions.extend([0; 8]);
    let backing_at = u64::from(HEADER_LENGTH) + extensions.len() as u64;

    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_be_bytes());
    header.extend(backing_at.to_be_bytes());
    header.extend(length(backing)?.to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    // No encryption.
    header.extend(0_u32.to_be_bytes());
    header.extend(u32::try_from(l1_entries).map_err(io::Error::other)?.to_be_bytes());
    header.extend(L1_TABLE.to_be_bytes());
    header.extend(REFCOUNT_TABLE.to_be_bytes());
    // One cluster of reference table; no snapshots, at no place.
    header.extend(1_u32.to_be_bytes());
    header.extend(0_u32.to_be_bytes());
    header.extend(0_u64.to_be_bytes());
    // Features: incompatible, compatible, auto-clear.
    header.extend([0; 24]);
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(extensions);
    header.extend(backing.as_bytes());

    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(clusters * CLUSTER)?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&REFCOUNT_BLOCK.to_be_bytes(), REFCOUNT_TABLE)?;
    file.write_all_at(&counts, REFCOUNT_BLOCK)
}

fn length(text: &str) -> io::Result<u32> {
    u32::try_from(text.len()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn qemu_img(arguments: &[&str], path: &Path) -> String {
        let output = Command::new("qemu-img").args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    #[ignore = "needs system packages (all: cargo xtask test; alone: cargo xtask test NAME)"]
    fn qemu_finds_our_layer_whole_and_like_its_own() {
        const GIB: u64 = 1 << 30;
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        File::create(&base).unwrap().set_len(GIB).unwrap();
        for gib in [1, 7, 100, 16 * 1024] {
            let (ours, theirs) = (
                folder.path().join(format!("o{gib}")),
                folder.path().join(format!("t{gib}")),
            );
            create_layer(&ours, gib * GIB, base.to_str().unwrap(), "raw").unwrap();
            let backing = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap()];
            let made = Command::new("qemu-img")
                .args(backing)
                .arg(&theirs)
                .arg(format!("{gib}G"))
                .status();
            assert!(made.unwrap().success());
            qemu_img(&["check", "-q"], &ours);
            let facts = |path: &Path| {
                let mut facts: serde_json::Value =
                    serde_json::from_str(&qemu_img(&["info", "--output=json"], path)).unwrap();
                let facts = facts.as_object_mut().unwrap();
                // What may differ: names, and the file's place on the disk.
                for key in ["filename", "actual-size", "children"] {
                    facts.remove(key);
                }
                facts.clone()
            };
            assert_eq!(facts(&ours), facts(&theirs));
        }
        // And can be written.
        let layer = folder.path().join("o7");
        let io = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write -P 7 3G 1M"])
            .arg(&layer)
            .output();
        assert!(io.unwrap().status.success());
        qemu_img(&["check", "-q"], &layer);
    }

    #[test]
    fn nothing_is_overwritten_and_names_have_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        create_layer(&path, 1, "x", "raw").unwrap();
        assert!(create_layer(&path, 1, "x", "raw").is_err());
        assert!(create_layer(&folder.path().join("other"), 1, &"x".repeat(1024), "raw").is_err());
    }
}
