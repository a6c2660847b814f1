//! The store of a data folder, moved from SQLite to PostgreSQL while no server runs on it. VMs keep running meanwhile: the next server
//! takes them over as after any restart.

use std::path::{Path, PathBuf};

use hearth_store::{CopiedTable, CopyError, CopyProgress, PostgresUrl, StoreError, copy_to_postgres, installation_of};

use super::database::{MOVED, Marked, mark};
use super::{DATABASE, ServeError, lock};

/// Why a store was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is no store in SQLite.
    #[error("{} holds no {DATABASE}; name the server's data folder with --data-dir", .0.display())]
    NoStore(PathBuf),
    /// A server works with the database.
    #[error("a Hearth server works with this PostgreSQL database; name an empty one")]
    InUse,
    /// A file in the data folder.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data folder, or the server that runs on it.
    #[error(transparent)]
    Folder(#[from] ServeError),
}

/// Moves the store. Whenever it is interrupted, nothing is lost, and the same again brings it to its end.
pub async fn move_store(
    data_dir: &Path,
    to: &PostgresUrl,
    progress: impl FnMut(CopyProgress) + Send,
) -> Result<Vec<CopiedTable>, MoveError> {
    let database = data_dir.join(DATABASE);
    if !database.is_file() {
        return Err(MoveError::NoStore(data_dir.to_owned()));
    }
    let _lock = lock(data_dir).await?;
    let _alone = to.hold_alone().await?.ok_or(MoveError::InUse)?;
    let copied = copy_to_postgres(&database, to, progress).await?;
    // First where the store is from now on: a server that starts in between refuses, and says to move again.
    let marked = Marked {
        url: to.to_string(),
        installation: installation_of(&database).await?,
    };
    mark(data_dir, &marked).map_err(|(path, source)| MoveError::File { path, source })?;
    let moved = data_dir.join(MOVED);
    std::fs::rename(&database, &moved).map_err(|source| MoveError::File { path: moved, source })?;
    Ok(copied)
}
