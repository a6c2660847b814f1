//! What the driver needs of an image besides finding it: how large its disk is, and that QEMU's user may read it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hearth_image::{Image, ImageError, Stores};

use crate::DriverError;
use crate::driver::no_such_image;

/// As much of a digest as a person needs to tell images apart.
const SHORT_DIGEST_CHARS: usize = 12;
const BYTES_PER_GIB: u64 = 1024 * 1024 * 1024;

/// The image with this digest, beginning of one, or name; the newest one when none is named. In the data folder's own
/// folder, whichever it was found in.
pub(super) async fn find(stores: &Stores, wanted: Option<&str>) -> Result<Image, DriverError> {
    let found = stores.find(wanted).map_err(driver_error)?;
    if stores.is_own(&found) {
        return Ok(found);
    }
    let stores = stores.clone();
    tokio::task::spawn_blocking(move || stores.adopt(&found))
        .await
        .map_err(|error| DriverError::retry(format!("an image could not be copied into the data folder: {error}")))?
        .map_err(driver_error)
}

/// Whether there is an image that is called so. Nothing is copied for it.
pub(super) async fn check(stores: &Stores, wanted: &str) -> Result<(), DriverError> {
    let (stores, wanted) = (stores.clone(), wanted.to_owned());
    let look = move || match stores.find(Some(&wanted)) {
        Ok(_) => Ok(()),
        Err(ImageError::NotFound { .. }) => {
            let listed = stores.list().map_err(driver_error)?;
            let names: Vec<_> = listed.images.iter().map(shown).collect();
            Err(no_such_image(&wanted, &names))
        }
        Err(error) => Err(driver_error(error)),
    };
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|error| Err(DriverError::retry(format!("the images could not be listed: {error}"))))
}

/// An image's name and the beginning of its digest: both are understood.
fn shown(image: &Image) -> String {
    let manifest = &image.manifest;
    let digest: String = manifest.digest.chars().take(SHORT_DIGEST_CHARS).collect();
    format!("{} ({digest})", manifest.name)
}

fn driver_error(error: ImageError) -> DriverError {
    match error {
        ImageError::Io { .. } | ImageError::DiskFull => DriverError::retry(error.to_string()).caused_by(error),
        _ => DriverError::permanent(error.to_string()).caused_by(error),
    }
}

/// The least disk a VM of this image can have, GiB: a layer smaller than its base would cut the file system off.
pub(super) fn least_disk_gib(image: &Image) -> u64 {
    image.manifest.sizes.rootfs.div_ceil(BYTES_PER_GIB)
}

/// The name of the kernel's file that VMs of an image are started with.
pub(super) fn kernel_file(images: &Path, digest: &str) -> &'static str {
    if images.join(digest).join("vmlinux").exists() {
        "vmlinux"
    } else {
        "vmlinuz"
    }
}

/// Lets the VMs' user read an image; its files are no secrets. Only needed when that is another user than ours.
pub(super) fn open_up(images: &Path, image: &Image) -> io::Result<()> {
    let add = |path: &Path, bits: u32| {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & bits == bits {
            Ok(())
        } else {
            fs::set_permissions(path, fs::Permissions::from_mode(mode | bits))
        }
    };
    add(images, 0o511)?;
    add(&image.folder, 0o555)?;
    let files = [&image.rootfs, &image.kernel, &image.initrd];
    files
        .into_iter()
        .chain(&image.unpacked_kernel)
        .try_for_each(|file| add(file, 0o444))
}
