//! Where the images of this machine lie: the data folder's own folder, and folders that all data folders share. An image that a
//! data folder starts VMs from is always in its own folder: one that was found in a shared folder is **adopted** first, with hard
//! links where that is possible (no time, no space) and else as a copy. So nobody who removes an image from a shared folder takes
//! away what the VMs of another data folder are based on. A shared folder notes who adopted from it; this module knows nothing of VMs.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::manifest::{self, Image, Listed};
use super::{ImageError, copy};

/// In a shared folder: a file per data folder that adopted from it, which holds that folder's path.
const USERS: &str = "used-by";
/// Held while an image is adopted.
const LOCK: &str = ".adopt.lock";
/// A half-made adoption; what an earlier process left of one is removed under the lock.
const UNFINISHED: &str = ".adopt-";
/// Everybody may look at an image; nobody writes to it.
const FOLDER_MODE: u32 = 0o755;

/// The folders in which one data folder finds images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stores {
    data_dir: PathBuf,
    own: PathBuf,
    shared: Vec<PathBuf>,
}

impl Stores {
    /// The data folder's own images and those of the shared folders. Where the data folder's `images` is a link, somebody has put
    /// them elsewhere, and only those count.
    pub fn new(data_dir: impl Into<PathBuf>, shared: Vec<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        let own = data_dir.join("images");
        Self::with_own(data_dir, own, shared)
    }

    /// The same with another folder for the data folder's own images.
    #[must_use]
    pub fn with_own(data_dir: PathBuf, own: PathBuf, shared: Vec<PathBuf>) -> Self {
        let is_elsewhere = own.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let shared = if is_elsewhere { Vec::new() } else { shared };
        Self { data_dir, own, shared }
    }

    /// The real path of the data folder's own images.
    pub fn resolve_own(&mut self, own: &Path) {
        own.clone_into(&mut self.own);
    }

    /// The data folder's own images.
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// Where a build puts an image: where every data folder finds it.
    pub fn build_dir(&self) -> &Path {
        self.shared.first().map_or(&self.own, PathBuf::as_path)
    }

    /// Every folder, the data folder's own first, none twice.
    pub fn places(&self) -> Vec<&Path> {
        let mut places: Vec<&Path> = vec![&self.own];
        for place in &self.shared {
            if places.iter().all(|other| !is_same(other, place)) {
                places.push(place);
            }
        }
        places
    }

    /// Every image once, the one that was built (or asked for again) last first; of several copies the data folder's own.
    pub fn list(&self) -> Result<Listed, ImageError> {
        let mut broken = Vec::new();
        let mut found: BTreeMap<String, (SystemTime, Image)> = BTreeMap::new();
        for place in self.places() {
            let listed = match manifest::list(place) {
                // Somebody else's folder may be closed for us.
                Err(ImageError::Io { source, .. })
                    if source.kind() == io::ErrorKind::PermissionDenied && place != self.own =>
                {
                    continue;
                }
                listed => listed?,
            };
            broken.extend(listed.broken);
            for image in listed.images {
                let at = image.last_used_at();
                found
                    .entry(image.manifest.digest.clone())
                    .and_modify(|(latest, _)| *latest = at.max(*latest))
                    .or_insert((at, image));
            }
        }
        let mut found: Vec<_> = found.into_values().collect();
        found.sort_by_cached_key(|(at, image)| std::cmp::Reverse((*at, image.manifest.digest.clone())));
        Ok(Listed {
            images: found.into_iter().map(|(_, image)| image).collect(),
            broken,
        })
    }

    /// The image with this name or digest (or beginning of one); the newest when nothing is given.
    pub fn find(&self, wanted: Option<&str>) -> Result<Image, ImageError> {
        // The whole digest is what every fork asks for: nothing else needs to be looked at.
        if let Some(wanted) = wanted.filter(|wanted| manifest::is_digest(wanted))
            && let Ok(image) = Image::read(&self.own.join(wanted))
        {
            return Ok(image);
        }
        manifest::choose(self.list()?, wanted)
    }

    /// Whether an image that was found lies in the data folder's own folder.
    #[must_use]
    pub fn is_own(&self, image: &Image) -> bool {
        image.folder.parent().is_some_and(|folder| folder == self.own)
    }

    /// Brings an image of a shared folder into the data folder's own. Instant on one file system; a copy takes seconds and blocks.
    pub fn adopt(&self, image: &Image) -> Result<Image, ImageError> {
        let failed = || {
            ImageError::io(format!(
                "the image {} could not be copied into {}",
                image.folder.display(),
                self.own.display()
            ))
        };
        fs::create_dir_all(&self.own).map_err(failed())?;
        let lock = File::create(self.own.join(LOCK)).map_err(failed())?;
        lock.lock().map_err(failed())?;
        let place = self.own.join(&image.manifest.digest);
        if let Ok(there) = Image::read(&place) {
            return Ok(there);
        }
        remove_unfinished(&self.own).map_err(failed())?;
        hearth_host::files::remove_all(&place).map_err(failed())?;
        let work = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.own)
            .map_err(failed())?;
        for entry in fs::read_dir(&image.folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            link_or_copy(&entry.path(), &work.path().join(entry.file_name())).map_err(failed())?;
        }
        fs::set_permissions(work.path(), Permissions::from_mode(FOLDER_MODE)).map_err(failed())?;
        fs::rename(work.path(), &place).map_err(failed())?;
        if let Some(store) = image.folder.parent() {
            // A shared folder of another user need not take notes for us: what we adopted is ours.
            if let Err(error) = note_user(store, &self.data_dir) {
                tracing::debug!(store = %store.display(), %error, "a shared image folder could not note its user");
            }
        }
        Image::read(&place).map_err(|reason| ImageError::Broken { folder: place, reason })
    }
}

/// The data folders that adopted images from a shared folder and still exist. The folder that a shared one lies in counts, too:
/// it may itself be a data folder.
pub fn users(store: &Path) -> Vec<PathBuf> {
    let noted = fs::read_dir(store.join(USERS)).into_iter().flatten().flatten();
    let noted = noted.filter_map(|entry| {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&fs::read(entry.path()).ok()?));
        if !path.is_dir() {
            // It is gone, and so is what it used.
            let _ = fs::remove_file(entry.path());
            return None;
        }
        Some(path)
    });
    let around = store.parent().map(Path::to_owned);
    let mut all: Vec<PathBuf> = noted.chain(around).collect();
    all.sort();
    all.dedup();
    all
}

fn note_user(store: &Path, data_dir: &Path) -> io::Result<()> {
    let folder = store.join(USERS);
    fs::create_dir_all(&folder)?;
    let path = data_dir.as_os_str().as_bytes();
    fs::write(folder.join(hex::encode(Sha256::digest(path))), path)
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    // Another file system, another owner's file, a file system without links: the copy works for all of them.
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(from, to)?;
    let metadata = fs::metadata(from)?;
    let target = File::open(to)?;
    target.set_permissions(metadata.permissions())?;
    target.set_modified(metadata.modified()?)
}

fn remove_unfinished(own: &Path) -> io::Result<()> {
    for entry in fs::read_dir(own)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(UNFINISHED.as_bytes()) && entry.path().is_dir() {
            hearth_host::files::remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether two paths are one folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::fake_image;

    fn stores(folder: &Path, data: &str) -> Stores {
        Stores::new(folder.join(data), vec![folder.join("shared")])
    }

    #[test]
    fn image_of_the_shared_folder_is_found_adopted_and_kept_by_every_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        let image = fake_image(&shared, 'a', "one", "x", 10);
        for data in ["first", "second"] {
            let stores = stores(folder.path(), data);
            let found = stores.find(None).unwrap();
            assert!(!stores.is_own(&found));
            let adopted = stores.adopt(&found).unwrap();
            assert!(stores.is_own(&adopted) && adopted.manifest == image);
            assert_eq!(stores.find(None).unwrap(), adopted);
            // A second time it is there already.
            assert_eq!(stores.adopt(&found).unwrap(), adopted);
        }
        let data = |name: &str| folder.path().join(name);
        assert_eq!(
            users(&shared),
            [folder.path().to_owned(), data("first"), data("second")]
        );
        fs::remove_dir_all(data("second")).unwrap();
        assert_eq!(users(&shared), [folder.path().to_owned(), data("first")]);
        manifest::remove(&shared, "one").unwrap();
        assert_eq!(
            stores(folder.path(), "first").find(Some("one")).unwrap().manifest,
            image
        );
    }

    #[test]
    fn newest_image_of_all_folders_is_the_usual_one() {
        let folder = tempfile::tempdir().unwrap();
        let stores = stores(folder.path(), "data");
        let own = fake_image(stores.own(), 'a', "own", "x", 10);
        let shared = fake_image(stores.build_dir(), 'b', "shared", "x", 5);
        assert_eq!(stores.find(None).unwrap().manifest, shared);
        assert_eq!(stores.list().unwrap().images.len(), 2);
        // Asked for again where everybody finds it, the first one is the newest.
        fake_image(stores.build_dir(), 'a', "own", "x", 0);
        let found = stores.find(None).unwrap();
        assert_eq!(found.manifest, own);
        assert!(stores.is_own(&found), "of two copies its own one");
    }

    #[test]
    fn linked_folder_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        fake_image(&folder.path().join("shared"), 'a', "shared", "x", 1);
        let elsewhere = fake_image(&folder.path().join("elsewhere"), 'b', "elsewhere", "x", 9);
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), data.join("images")).unwrap();
        let stores = stores(folder.path(), "data");
        assert_eq!(stores.find(None).unwrap().manifest, elsewhere);
        assert_eq!(stores.build_dir(), data.join("images"));
    }

    #[test]
    fn copy_keeps_content_mode_and_age() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "content").unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o444)).unwrap();
        copy(&from, &to).unwrap();
        fs::remove_file(&to).unwrap();
        link_or_copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"content");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o444);
    }
}
