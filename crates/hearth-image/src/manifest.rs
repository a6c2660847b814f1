//! What lies in the folder of images: reading, listing, finding, removing. Only whole images count; what is broken is reported.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ImageError;

pub(super) const ROOTFS: &str = "rootfs.ext4";
pub(super) const KERNEL: &str = "vmlinuz";
/// The same kernel unpacked, where that is possible.
pub(super) const UNPACKED_KERNEL: &str = "vmlinux";
pub(super) const INITRD: &str = "initrd";
pub(super) const MANIFEST: &str = "manifest.json";
/// Every package of the image with its version, a line each.
pub(super) const PACKAGES: &str = "packages.txt";

/// Folders of bases begin with this, unfinished ones with the next.
pub(super) const BASE_PREFIX: &str = "base-";
pub(super) const UNFINISHED_PREFIX: &str = "tmp-";

/// Hexadecimal digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// What an image is, as `manifest.json` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Names the image: SHA-256 over everything that went into it. Also the folder's name.
    pub digest: String,
    /// A name for people; several images may share it, the newest is meant.
    pub name: String,
    /// Debian release.
    pub suite: String,
    /// Version of the kernel, as `uname -r` says it.
    pub kernel_version: String,
    /// The packages that were asked for; everything installed, with versions, is in `packages.txt`.
    pub packages: Vec<String>,
    /// SHA-256 of the agent's binary.
    pub agent_sha256: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Digest of the base it was made from.
    pub base: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Sizes of its files.
    pub sizes: Sizes,
}

/// Sizes of an image's files in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sizes {
    /// The root disk as the VM sees it before it grows.
    pub rootfs: u64,
    /// What the root disk takes on the host (the file is sparse).
    pub rootfs_on_disk: u64,
    /// The kernel.
    pub vmlinuz: u64,
    /// The initial RAM disk.
    pub initrd: u64,
    /// The kernel unpacked, if the image holds it so too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmlinux: Option<u64>,
}

/// A whole image and where its parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its folder.
    pub folder: PathBuf,
    /// The root disk: a raw, sparse ext4 file system without partitions. Read-only to everybody.
    pub rootfs: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The kernel unpacked, if the image holds it so too: what VMs are started with then.
    pub unpacked_kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    pub manifest: Manifest,
}

/// What [`list`] found.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Whole images; the one built (or asked for again) last comes first.
    pub images: Vec<Image>,
    /// Folders that look like images and are not whole, and why.
    pub broken: Vec<(PathBuf, String)>,
}

impl Image {
    /// Reads and checks one folder.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let text = fs::read(folder.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
        if folder.file_name().is_none_or(|name| name != manifest.digest.as_str()) {
            return Err(format!("its {MANIFEST} is that of another image"));
        }
        let Sizes {
            rootfs,
            vmlinuz,
            initrd,
            vmlinux,
            ..
        } = manifest.sizes;
        let unpacked = vmlinux.map(|size| (UNPACKED_KERNEL, size));
        let files = [(ROOTFS, rootfs), (KERNEL, vmlinuz), (INITRD, initrd)];
        for (name, size) in files.into_iter().chain(unpacked) {
            let found = fs::metadata(folder.join(name))
                .map_err(|error| format!("{name}: {error}"))?
                .len();
            if found != size {
                return Err(format!("{name} has {found} bytes instead of {size}"));
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            rootfs: folder.join(ROOTFS),
            kernel: folder.join(KERNEL),
            unpacked_kernel: vmlinux.map(|_| folder.join(UNPACKED_KERNEL)),
            initrd: folder.join(INITRD),
            manifest,
        })
    }

    /// When it was built or asked for again.
    pub(super) fn last_used_at(&self) -> SystemTime {
        let modified = fs::metadata(self.folder.join(MANIFEST)).and_then(|metadata| metadata.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Makes it the newest, for a build that found it already there.
    pub(super) fn touch(&self) -> io::Result<()> {
        fs::File::options()
            .append(true)
            .open(self.folder.join(MANIFEST))?
            .set_modified(SystemTime::now())
    }
}

/// Whether it is a whole digest, and so the name of an image's folder.
pub(super) fn is_digest(name: &str) -> bool {
    name.len() == DIGEST_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Everything that lies in the folder; nothing when the folder does not exist.
pub fn list(images_dir: &Path) -> Result<Listed, ImageError> {
    let mut listed = Listed::default();
    let failed = || ImageError::io(format!("the images in {} could not be listed", images_dir.display()));
    let entries = match fs::read_dir(images_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
        Err(error) => return Err(failed()(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed())?;
        if entry.file_name().to_str().is_none_or(|name| !is_digest(name)) {
            continue;
        }
        match Image::read(&entry.path()) {
            Ok(image) => listed.images.push(image),
            Err(reason) => listed.broken.push((entry.path(), reason)),
        }
    }
    listed
        .images
        .sort_by_cached_key(|image| std::cmp::Reverse((image.last_used_at(), image.manifest.digest.clone())));
    listed.broken.sort();
    Ok(listed)
}

/// The image with this name or digest (or beginning of one); the newest when nothing is given.
pub fn find(images_dir: &Path, wanted: Option<&str>) -> Result<Image, ImageError> {
    choose(list(images_dir)?, wanted)
}

/// The same among what was listed.
pub(super) fn choose(listed: Listed, wanted: Option<&str>) -> Result<Image, ImageError> {
    let images = listed.images;
    let Some(newest) = images.first() else {
        // What is there and cannot be used is the reason, whichever image was asked for.
        return Err(match listed.broken.into_iter().next() {
            Some((folder, reason)) => ImageError::Broken { folder, reason },
            None => ImageError::None,
        });
    };
    let Some(wanted) = wanted else {
        return Ok(newest.clone());
    };
    if let Some(image) = images
        .iter()
        .find(|image| image.manifest.name == wanted || image.manifest.digest == wanted)
    {
        return Ok(image.clone());
    }
    let mut matching = images
        .iter()
        .filter(|image| !wanted.is_empty() && image.manifest.digest.starts_with(wanted));
    match (matching.next(), matching.count()) {
        (None, _) => Err(ImageError::NotFound {
            wanted: wanted.to_owned(),
        }),
        (Some(image), 0) => Ok(image.clone()),
        (Some(_), more) => Err(ImageError::Ambiguous {
            wanted: wanted.to_owned(),
            count: more + 1,
        }),
    }
}

/// Removes one image and, when no other image was made from it, its base. Whether a VM still uses it is the caller's to know:
/// its disk is based on the image's.
pub fn remove(images_dir: &Path, wanted: &str) -> Result<Manifest, ImageError> {
    let image = find(images_dir, Some(wanted))?;
    let failed = || ImageError::io(format!("{} could not be removed", image.folder.display()));
    discard(
        &image.folder,
        &images_dir.join(format!("{UNFINISHED_PREFIX}{}", image.manifest.digest)),
    )
    .map_err(failed())?;
    remove_unused_bases(images_dir, None)?;
    Ok(image.manifest)
}

/// Removes a folder, first under a name that the next build sweeps: half an image must never look like one.
fn discard(folder: &Path, rubbish: &Path) -> io::Result<()> {
    if rubbish.exists() {
        fs::remove_dir_all(rubbish)?;
    }
    fs::rename(folder, rubbish)?;
    fs::remove_dir_all(rubbish)
}

/// Removes bases that no image was made from, except the one to keep.
pub(super) fn remove_unused_bases(images_dir: &Path, keep: Option<&str>) -> Result<(), ImageError> {
    let used: Vec<String> = list(images_dir)?
        .images
        .into_iter()
        .map(|image| image.manifest.base)
        .collect();
    let failed = || ImageError::io(format!("old bases in {} could not be removed", images_dir.display()));
    for entry in fs::read_dir(images_dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        let Some(digest) = name.to_str().and_then(|name| name.strip_prefix(BASE_PREFIX)) else {
            continue;
        };
        if keep == Some(digest) || used.iter().any(|base| base == digest) {
            continue;
        }
        discard(&entry.path(), &images_dir.join(format!("{UNFINISHED_PREFIX}{digest}"))).map_err(failed())?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder that counts as an image; `age` in seconds says how long ago it was built.
    pub(crate) fn fake_image(images: &Path, digit: char, name: &str, base: &str, age: u64) -> Manifest {
        let digest = digit.to_string().repeat(DIGEST_DIGITS);
        let folder = images.join(&digest);
        fs::create_dir_all(&folder).unwrap();
        for file in [ROOTFS, KERNEL, INITRD] {
            fs::write(folder.join(file), "1234").unwrap();
        }
        let manifest = Manifest {
            digest,
            name: name.to_owned(),
            suite: "bookworm".to_owned(),
            kernel_version: "6.1".to_owned(),
            packages: vec!["git".to_owned()],
            agent_sha256: "a".to_owned(),
            agent_version: "0.1.0".to_owned(),
            base: base.to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            sizes: Sizes {
                rootfs: 4,
                rootfs_on_disk: 4,
                vmlinuz: 4,
                vmlinux: None,
                initrd: 4,
            },
        };
        fs::write(folder.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let file = fs::File::options().append(true).open(folder.join(MANIFEST)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age))
            .unwrap();
        fs::create_dir_all(images.join(format!("{BASE_PREFIX}{base}"))).unwrap();
        manifest
    }

    #[test]
    fn newest_name_prefix_and_ambiguity() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path();
        assert!(matches!(find(images, None), Err(ImageError::None)));
        // A name changes nothing about that: one cause, one sentence.
        assert!(matches!(find(images, Some("debian")), Err(ImageError::None)));
        assert!(list(&images.join("missing")).unwrap().images.is_empty());
        let old = fake_image(images, 'a', "debian", "x", 100);
        let new = fake_image(images, 'b', "debian", "x", 50);
        let other = fake_image(images, 'c', "big", "y", 200);
        assert_eq!(find(images, None).unwrap().manifest, new);
        assert_eq!(find(images, Some("debian")).unwrap().manifest, new);
        assert_eq!(find(images, Some("aaa")).unwrap().manifest, old);
        assert_eq!(find(images, Some("big")).unwrap().manifest, other);
        assert!(matches!(find(images, Some("zzz")), Err(ImageError::NotFound { .. })));
        assert!(matches!(find(images, Some("")), Err(ImageError::NotFound { .. })));
        find(images, Some("aaa")).unwrap().touch().unwrap();
        assert_eq!(find(images, None).unwrap().manifest, old);
    }

    #[test]
    fn two_images_with_the_same_beginning_are_ambiguous() {
        let folder = tempfile::tempdir().unwrap();
        let first = fake_image(folder.path(), 'a', "one", "x", 1);
        let similar = format!("{}b", &first.digest[..DIGEST_DIGITS - 1]);
        let second = Manifest {
            digest: similar.clone(),
            ..first.clone()
        };
        fs::create_dir(folder.path().join(&similar)).unwrap();
        for file in [ROOTFS, KERNEL, INITRD] {
            fs::write(folder.path().join(&similar).join(file), "1234").unwrap();
        }
        fs::write(
            folder.path().join(&similar).join(MANIFEST),
            serde_json::to_vec(&second).unwrap(),
        )
        .unwrap();
        assert!(matches!(
            find(folder.path(), Some("aa")),
            Err(ImageError::Ambiguous { count: 2, .. })
        ));
        assert_eq!(find(folder.path(), Some(&similar)).unwrap().manifest, second);
    }

    #[test]
    fn broken_folders_are_reported_and_the_rest_still_works() {
        let folder = tempfile::tempdir().unwrap();
        let good = fake_image(folder.path(), 'a', "good", "x", 1);
        let cut = fake_image(folder.path(), 'b', "cut", "x", 0);
        fs::write(folder.path().join(&cut.digest).join(ROOTFS), "1").unwrap();
        let empty = fake_image(folder.path(), 'c', "empty", "x", 0);
        fs::remove_file(folder.path().join(&empty.digest).join(MANIFEST)).unwrap();
        let moved = fake_image(folder.path(), 'd', "moved", "x", 0);
        fs::rename(
            folder.path().join(&moved.digest),
            folder.path().join("e".repeat(DIGEST_DIGITS)),
        )
        .unwrap();
        fs::create_dir(folder.path().join("tmp-1")).unwrap();
        let listed = list(folder.path()).unwrap();
        assert_eq!(listed.images.len(), 1);
        assert_eq!(listed.broken.len(), 3);
        assert_eq!(find(folder.path(), None).unwrap().manifest, good);
        fs::remove_dir_all(folder.path().join(&good.digest)).unwrap();
        assert!(matches!(find(folder.path(), None), Err(ImageError::Broken { .. })));
    }

    #[test]
    fn removing_the_last_image_of_a_base_removes_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base-x");
        fake_image(folder.path(), 'a', "one", "x", 1);
        fake_image(folder.path(), 'b', "two", "x", 2);
        remove(folder.path(), "one").unwrap();
        assert!(base.exists());
        remove(folder.path(), "two").unwrap();
        assert!(!base.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
