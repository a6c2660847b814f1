//! Which database a data folder's store is in, and that no other process has it alone. A folder whose store is in PostgreSQL says so in a file:
//! a server that is started on it without that would begin with nothing, and take the VMs for orphans.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_store::{Alone, Reserve, Store};

use super::identity::own_id;
use super::{DATABASE, ServeError};
use crate::options::ServeOptions;
use crate::secrets::cipher::{Cipher, write_private};

/// Says where the store is, without the password, in a data folder whose store is in PostgreSQL.
pub(super) const MARKER: &str = "database";

/// What a store that was moved to PostgreSQL is called from then on: it is kept, and no server uses it.
pub(super) const MOVED: &str = "hearth.db.moved";

/// What the file in a data folder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marked {
    /// Where the store is.
    pub url: String,
    /// Which installation's it is.
    pub installation: Option<String>,
}

/// What is said in a data folder whose store is in PostgreSQL.
pub(super) fn marked(folder: &Path) -> Option<Marked> {
    let text = std::fs::read_to_string(folder.join(MARKER)).ok()?;
    let mut lines = text.lines().map(str::to_owned);
    Some(Marked {
        url: lines.next()?,
        installation: lines.next(),
    })
}

/// Writes that a folder's store is there from now on.
pub(super) fn mark(folder: &Path, marked: &Marked) -> Result<(), (PathBuf, std::io::Error)> {
    let path = folder.join(MARKER);
    let lines = [Some(&marked.url), marked.installation.as_ref()];
    let text: String = lines.into_iter().flatten().map(|line| format!("{line}\n")).collect();
    write_private(&path, text.as_bytes()).map_err(|error| (path, error))
}

/// Whether the folder said before this start that its store is in PostgreSQL.
pub(super) fn is_known(options: &ServeOptions) -> bool {
    marked(&options.data_dir).is_some_and(|marked| marked.installation.is_some())
}

/// Writes it where the server begins to work with PostgreSQL.
pub(super) fn note(options: &ServeOptions, installation: &str) -> Result<(), ServeError> {
    let Some(url) = &options.database else { return Ok(()) };
    let now = Marked {
        url: url.to_string(),
        installation: Some(installation.to_owned()),
    };
    if marked(&options.data_dir).as_ref() == Some(&now) {
        return Ok(());
    }
    mark(&options.data_dir, &now).map_err(|(path, source)| ServeError::DataDir { path, source })
}

/// Opens the store of a data folder, whose lock the caller has.
pub(super) async fn open(options: &ServeOptions, cipher: Arc<Cipher>) -> Result<(Store, Alone), ServeError> {
    let folder = options.data_dir.as_path();
    let faults = options.write_faults.clone();
    match (&options.database, marked(folder)) {
        (None, Some(marked)) => Err(ServeError::StoreElsewhere(marked.url)),
        (None, None) => {
            let reserve = Reserve::open(folder, options.reserve_mib << 20);
            let store = Store::open_with(&folder.join(DATABASE), cipher, faults, reserve).await?;
            Ok((store, Alone::of_folder()))
        }
        (Some(_), _) if folder.join(DATABASE).exists() => Err(ServeError::StoreHere(folder.to_owned())),
        (Some(url), marked) => {
            // First: nothing is touched while somebody has it alone.
            let held = url.hold_shared().await?.ok_or(ServeError::DatabaseInUse)?;
            let store = Store::connect(url, cipher, faults).await?.of_server(&own_id(folder)?);
            let ours = marked.and_then(|marked| marked.installation);
            if ours.is_some() && ours != store.meta("installation").await? {
                return Err(ServeError::OtherStore);
            }
            tracing::info!(database = %url, "the store is in PostgreSQL");
            Ok((store, held))
        }
    }
}
