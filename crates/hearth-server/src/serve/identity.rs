//! Who a server is among those that share a database: its id, what its VMs are labelled with, and where others reach it.

use std::path::{Path, PathBuf};

use hearth_store::{Store, StoreError};

use crate::options::{Address, ServeOptions};
use crate::secrets::cipher::write_private;
use crate::secrets::links::LinkKey;

/// The file with a server's id, in its data folder.
const ID_FILE: &str = "server-id";

/// Why a server cannot be one of several.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file with its id.
    #[error("the server's id cannot be read from {}, or written there: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// Secrets of the database could not be read.
    #[error(
        "the database's secrets are sealed with another key than this data folder's secret.key: copy that file from the data folder of a server that works with this database"
    )]
    OtherKey,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The id of the server with this data folder, made on first use.
pub(super) fn own_id(data_dir: &Path) -> Result<String, IdentityError> {
    let path = data_dir.join(ID_FILE);
    let read = std::fs::read_to_string(&path);
    let fail = |source| IdentityError::File {
        path: path.clone(),
        source,
    };
    match read {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let id = format!("srv_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    write_private(&path, format!("{id}\n").as_bytes()).map_err(fail)?;
    Ok(id)
}

/// What this server's VMs are labelled with, so that two servers of one machine do not take each other's for their own: the installation's
/// name for the first one of a store, or the only one; and whether it gets what was there before servers had names. That is the first one's,
/// and where there is something, the first one is a server whose folder was `known` to belong to the store. Fails where this server could not read
/// the secrets of the others.
pub(super) async fn label(
    store: &Store,
    installation: &str,
    key: &LinkKey,
    known: bool,
) -> Result<(String, bool), IdentityError> {
    if !store.is_shared() {
        return Ok((installation.to_owned(), false));
    }
    let own = key.secret_of("the key of an installation");
    if store.meta_or_insert("keyCheck", &own).await? != own {
        return Err(IdentityError::OtherKey);
    }
    let first = match known || !store.has_unnamed().await? {
        true => Some(store.meta_or_insert("firstServer", store.server()).await?),
        false => store.meta("firstServer").await?,
    };
    let is_first = first.as_deref() == Some(store.server());
    let label = if is_first { installation } else { store.server() };
    Ok((label.to_owned(), is_first))
}

/// Host and data folder: where a server is, for people. Two servers of one place are one after the other.
pub(super) fn place(folder: &Path) -> String {
    let host = nix::unistd::gethostname();
    let host = host.map_or_else(|_| "localhost".to_owned(), |host| host.to_string_lossy().into_owned());
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    format!("{host}:{}", folder.display())
}

/// Where other servers reach this one: as it was told, or at the first port that has an address.
pub(super) fn advertised(options: &ServeOptions, addresses: &[Address]) -> Option<String> {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let usual = || {
        let mut ports = addresses.iter().filter_map(Address::tcp);
        let port = ports.find(|port| !port.ip().is_unspecified())?;
        Some(format!("{scheme}://{port}"))
    };
    options.advertise.clone().or_else(usual)
}
