//! Which database a data folder's store is in, and that one server works with it. A folder whose store is in PostgreSQL says so in a file:
//! a server that is started on it without that would begin with nothing, and take the VMs for orphans.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_store::{Alone, PostgresUrl, Reserve, Store};

use super::{DATABASE, ServeError};
use crate::options::ServeOptions;
use crate::secrets::cipher::{Cipher, write_private};

/// Says where the store is, without the password, in a data folder whose store is in PostgreSQL.
pub(super) const MARKER: &str = "database";

/// What a store that was moved to PostgreSQL is called from then on: it is kept, and no server uses it.
pub(super) const MOVED: &str = "hearth.db.moved";

/// What the file in a data folder says, if there is one.
pub(super) fn marked(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(MARKER)).ok()?;
    text.lines().next().map(str::to_owned)
}

/// Writes that a folder's store is there from now on.
pub(super) fn mark(folder: &Path, url: &PostgresUrl) -> Result<(), (PathBuf, std::io::Error)> {
    let path = folder.join(MARKER);
    write_private(&path, format!("{url}\n").as_bytes()).map_err(|error| (path, error))
}

/// Opens the store of a data folder, whose lock the caller has, for this process alone.
pub(super) async fn open(options: &ServeOptions, cipher: Arc<Cipher>) -> Result<(Store, Alone), ServeError> {
    let folder = options.data_dir.as_path();
    let faults = options.write_faults.clone();
    match &options.database {
        None => {
            if let Some(url) = marked(folder) {
                return Err(ServeError::StoreElsewhere(url));
            }
            let reserve = Reserve::open(folder, options.reserve_mib << 20);
            let store = Store::open_with(&folder.join(DATABASE), cipher, faults, reserve).await?;
            Ok((store, Alone::of_folder()))
        }
        Some(url) => {
            if folder.join(DATABASE).exists() {
                return Err(ServeError::StoreHere(folder.to_owned()));
            }
            // First: a newer program must not bring the schema up to date under a server that runs.
            let alone = url.hold_alone().await?.ok_or(ServeError::DatabaseInUse)?;
            let store = Store::connect(url, cipher, faults).await?;
            if marked(folder).as_deref() != Some(url.to_string().as_str()) {
                mark(folder, url).map_err(|(path, source)| ServeError::DataDir { path, source })?;
            }
            tracing::info!(database = %url, "the store is in PostgreSQL");
            Ok((store, alone))
        }
    }
}
