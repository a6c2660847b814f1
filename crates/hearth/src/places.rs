//! Paths on this machine: the data folder, and the images that all data folders share.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hearth_image::{Stores, users};

use crate::args::Globals;
use crate::{connect, local};

/// Names the folders of shared images instead of the usual ones; several are separated by `:`.
pub(crate) const IMAGES_VARIABLE: &str = "HEARTH_IMAGES";
/// Names the data folder where no option does.
pub(crate) const DATA_DIR_VARIABLE: &str = "HEARTH_DATA_DIR";
/// The data folder of a server that runs as root or as the service's user.
const ROOTS_DATA: &str = "/var/lib/hearth";

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The data folder that is named, by the option or else in the environment.
pub(crate) fn named_data_dir(globals: &Globals) -> Option<PathBuf> {
    globals.data_dir.clone().or_else(|| set(DATA_DIR_VARIABLE))
}

/// The data folder of this machine's server, unless another one is named.
pub(crate) fn data_dir(globals: &Globals) -> PathBuf {
    match named_data_dir(globals) {
        Some(folder) => connect::absolute(&folder),
        None => usual_data_dir(),
    }
}

fn usual_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from(ROOTS_DATA);
    }
    // The service's own user has it.
    if std::fs::metadata(ROOTS_DATA).is_ok_and(|meta| meta.uid() == nix::unistd::geteuid().as_raw()) {
        return PathBuf::from(ROOTS_DATA);
    }
    match (set("XDG_DATA_HOME"), set("HOME")) {
        (Some(folder), _) if folder.is_absolute() => folder.join("hearth"),
        (_, Some(home)) => home.join(".local/share/hearth"),
        _ => connect::absolute(Path::new("hearth-data")),
    }
}

/// The folders of images that every data folder of this user finds: the user's own, then those that root has built.
pub(crate) fn shared_images() -> Vec<PathBuf> {
    if let Some(named) = set(IMAGES_VARIABLE) {
        let folders = std::env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty());
        return folders.map(|folder| connect::absolute(&folder)).collect();
    }
    let mut folders = vec![usual_data_dir().join("images")];
    if !nix::unistd::geteuid().is_root() {
        folders.push(Path::new(ROOTS_DATA).join("images"));
    }
    folders
}

/// The images of a data folder.
pub(crate) fn images(data_dir: &Path) -> Stores {
    Stores::new(data_dir, shared_images())
}

/// Every data folder that is known here: their VMs may use an image.
pub(crate) fn data_folders(stores: &Stores, data_dir: &Path) -> Vec<PathBuf> {
    let running = local::servers().unwrap_or_default();
    let mut all: Vec<PathBuf> = std::iter::once(data_dir.to_owned())
        .chain(running.into_iter().map(|server| server.data_dir))
        .chain(stores.places().into_iter().flat_map(users))
        .map(|folder| connect::absolute(&folder))
        .collect();
    all.sort();
    all.dedup();
    all
}
