//! Removes what a data folder is and has on this machine: its VMs, their network, and its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_drivers::Driver;
use jiff::Timestamp;

use super::database::{self, MARKER, MOVED, marked};
use super::identity::label;
use super::{DATABASE, SECRET_KEY, ServeError, driver, lock};
use crate::options::{DriverKind, ServeOptions};
use crate::secrets::cipher::Cipher;
use crate::secrets::links::LinkKey;

/// What Hearth itself makes in a data folder; anything else is somebody else's.
const OURS: [&str; 18] = [
    "admin-token",
    "cache",
    "certificates",
    MARKER,
    "hearth.db",
    "hearth.db-shm",
    "hearth.db-wal",
    MOVED,
    "images",
    "kvm-verdict.json",
    "lock",
    "mirrors",
    "network",
    "reserve",
    "secret.key",
    "server-id",
    "templates",
    "vms",
];

/// What was removed, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// VMs that were ended.
    pub vms: u64,
    /// Files and folders in the data folder that Hearth did not make; they stay, and the folder with them.
    pub left: Vec<PathBuf>,
}

/// Whether something is a data folder, so that no other folder is ever removed.
#[must_use]
pub fn is_data_folder(folder: &Path) -> bool {
    (folder.join(DATABASE).is_file() || marked(folder).is_some()) && folder.join(SECRET_KEY).is_file()
}

/// Removes all checkpoints, from the top: one that is a parent stays until what is based on it is gone.
async fn remove_checkpoints(driver: &dyn Driver) -> Result<(), ServeError> {
    loop {
        let left = driver.checkpoints().await?;
        let mut last = None;
        let mut is_less = false;
        for info in &left {
            match driver.remove_checkpoint(&info.key).await {
                Ok(()) => is_less = true,
                Err(error) => last = Some(error),
            }
        }
        match last {
            None => return Ok(()),
            Some(error) if !is_less => return Err(error.into()),
            Some(_) => {}
        }
    }
}

/// Ends all VMs of a data folder whose server does not run, and removes the folder.
pub async fn uninstall(options: &ServeOptions) -> Result<Removed, ServeError> {
    let folder = options.data_dir.as_path();
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::DataDir { path, source }
    };
    let _lock = lock(folder).await?;
    let cipher = Arc::new(Cipher::open(&folder.join(SECRET_KEY))?);
    let options_of_store = ServeOptions {
        reserve_mib: 0,
        database: options.database.clone().filter(|_| marked(folder).is_some()),
        ..options.clone()
    };
    let (store, _alone) = database::open(&options_of_store, cipher).await?;
    let installation = store.meta_or_insert("installation", "none").await?;
    let label = match options.driver {
        DriverKind::Incus => installation,
        DriverKind::Qemu | DriverKind::Fake => {
            let key = LinkKey::open(&folder.join(SECRET_KEY))?;
            label(&store, &installation, &key, true).await?.0
        }
    };
    let driver: Arc<dyn Driver> = driver(options, label)?;
    let mut removed = Removed::default();
    for vm in driver.list().await? {
        driver.destroy(&vm.id).await?;
        removed.vms += 1;
    }
    remove_checkpoints(&*driver).await?;
    driver.stand_down().await?;
    drop(driver);
    // The others of a shared database would wait for it.
    store.forget_server(Timestamp::now()).await?;
    store.close().await;
    for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
        let entry = entry.map_err(fail(folder))?;
        let path = entry.path();
        if !OURS.iter().any(|name| entry.file_name() == *name) {
            removed.left.push(path);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path).map_err(fail(&path))?;
        } else {
            std::fs::remove_file(&path).map_err(fail(&path))?;
        }
    }
    removed.left.sort();
    if removed.left.is_empty() {
        std::fs::remove_dir(folder).map_err(fail(folder))?;
    }
    Ok(removed)
}
