//! Backup of a data folder while its server runs, and a new data folder from one. A backup is a tar file: a description, the
//! database, and what opens its secrets, sealed by a passphrase. VMs, templates, images and mirrors are made anew.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hearth_store::{Holdings, StoreError};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::database::marked;
use super::{ADMIN_TOKEN, DATABASE, OWNER_ALONE, SECRET_KEY};
use crate::secrets::cipher::write_private;
use crate::secrets::passphrase::{PassphraseError, SealedByPassphrase};

/// The members of the tar file, in their order.
const DESCRIPTION: &str = "hearth-backup.json";
const SEALED: &str = "secrets.sealed";
/// The form of the file; a newer one is refused.
const FORMAT: u32 = 1;
/// Longest description and sealed secrets.
const MOST_TEXT_BYTES: u64 = 64 * 1024;
/// Only the owner reads it.
const PRIVATE: u32 = 0o600;
/// What a key's digest is for.
const KEY_CHECK: &[u8] = b"hearth: which key a backup needs, version 1";

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// It is there already.
    #[error("{} exists already; a backup replaces nothing", .0.display())]
    Exists(PathBuf),
    /// There is something in the new data folder.
    #[error("the data folder {} is not empty; a backup is restored into a new one", .0.display())]
    NotEmpty(PathBuf),
    /// Nothing was ever served from there.
    #[error("{} is no data folder of a Hearth server: it holds no {DATABASE}", .0.display())]
    NoDataFolder(PathBuf),
    /// PostgreSQL has its own ways.
    #[error(
        "the store of this data folder is in PostgreSQL ({0}): back it up with pg_dump, and {SECRET_KEY} of the data folder with it"
    )]
    InPostgres(String),
    /// The file is something else, or is cut off.
    #[error("{} is no whole backup of Hearth: {why}", path.display())]
    NoBackup { path: PathBuf, why: String },
    /// The key is not in it.
    #[error(
        "the backup was made without its key; name the file {SECRET_KEY} of the data folder that it was made of with --key-file"
    )]
    KeyMissing,
    /// The key that was named is another one.
    #[error("this is not the key that the backup's secrets were sealed with")]
    WrongKey,
    /// The passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a backup says of itself, in plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// The form of the file.
    pub format: u32,
    /// The program that made it.
    pub version: String,
    /// When.
    pub created_at: Timestamp,
    /// Whether what opens its secrets is in it, sealed by a passphrase.
    pub has_key: bool,
    /// A digest of the key, which tells it from others.
    pub key_check: String,
    /// SHA-256 of the database, hexadecimal; backups made before 30 November 2026 have none.
    #[serde(default)]
    pub database_sha256: Option<String>,
    pub projects: u64,
    pub variables: u64,
    pub credentials: u64,
    pub tokens: u64,
}

/// What opens the database's secrets, and the first token.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secrets {
    /// Hexadecimal.
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_token: Option<String>,
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::File { path, source }
}

fn check_of(key: &[u8]) -> String {
    hex::encode(Sha256::new().chain_update(KEY_CHECK).chain_update(key).finalize())
}

/// Writes a backup of the data folder to a new file. Without a passphrase what opens its secrets is left out.
pub async fn back_up(
    data_dir: &Path,
    file: &Path,
    passphrase: Option<&SecretString>,
) -> Result<Description, BackupError> {
    let database = data_dir.join(DATABASE);
    if let Some(marked) = marked(data_dir) {
        return Err(BackupError::InPostgres(marked.url));
    }
    if !database.exists() {
        return Err(BackupError::NoDataFolder(data_dir.to_owned()));
    }
    if file.exists() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let key_file = data_dir.join(SECRET_KEY);
    let key = std::fs::read(&key_file).map_err(at(&key_file))?;
    // Beside the backup: there must be room for it there anyway.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let work = tempfile::Builder::new()
        .prefix(".hearth-backup-")
        .tempdir_in(folder)
        .map_err(at(folder))?;
    let copy = work.path().join(DATABASE);
    let holdings = hearth_store::copy_database(&database, &copy).await?;
    let digest = digest_of(&copy).map_err(at(&copy))?;
    let description = description(&key, passphrase.is_some(), digest, holdings);
    let sealed = match passphrase {
        Some(passphrase) => {
            let token = std::fs::read_to_string(data_dir.join(ADMIN_TOKEN)).ok();
            let secrets = Secrets {
                key: hex::encode(&key),
                admin_token: token.map(|token| token.trim().to_owned()),
            };
            let secrets = serde_json::to_vec(&secrets).map_err(|error| at(file)(error.into()))?;
            Some(SealedByPassphrase::seal(passphrase.expose_secret(), &secrets)?)
        }
        None => None,
    };
    let whole = work.path().join("backup.tar");
    write(&whole, &description, &copy, sealed.as_ref()).map_err(at(file))?;
    // Not a rename: what is there by now stays.
    std::fs::hard_link(&whole, file).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => BackupError::Exists(file.to_owned()),
        _ => at(file)(source),
    })?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at(folder))?;
    Ok(description)
}

fn digest_of(file: &Path) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    let mut reader = BufReader::new(File::open(file)?);
    loop {
        let read = reader.fill_buf()?;
        if read.is_empty() {
            break;
        }
        digest.update(read);
        let length = read.len();
        reader.consume(length);
    }
    Ok(hex::encode(digest.finalize()))
}

fn description(key: &[u8], has_key: bool, digest: String, holdings: Holdings) -> Description {
    Description {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at: Timestamp::now(),
        has_key,
        key_check: check_of(key),
        database_sha256: Some(digest),
        projects: holdings.projects,
        variables: holdings.variables,
        credentials: holdings.credentials,
        tokens: holdings.tokens,
    }
}

fn write(
    whole: &Path,
    description: &Description,
    database: &Path,
    sealed: Option<&SealedByPassphrase>,
) -> std::io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(PRIVATE).open(whole)?;
    let mut tar = tar::Builder::new(file);
    let mut add = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(PRIVATE);
        header.set_mtime(u64::try_from(description.created_at.as_second()).unwrap_or_default());
        tar.append_data(&mut header, name, content)
    };
    let text = serde_json::to_vec_pretty(description)?;
    add(DESCRIPTION, text.len() as u64, &mut text.as_slice())?;
    if let Some(sealed) = sealed {
        let text = serde_json::to_vec_pretty(sealed)?;
        add(SEALED, text.len() as u64, &mut text.as_slice())?;
    }
    let mut copy = File::open(database)?;
    let size = copy.metadata()?.len();
    add(DATABASE, size, &mut copy)?;
    let mut file = tar.into_inner()?;
    file.flush()?;
    file.sync_all()
}

/// Where the key comes from that opens the backup's secrets.
#[derive(Debug)]
pub enum KeySource {
    /// From the backup, by its passphrase.
    Passphrase(SecretString),
    /// From a copy of the data folder's key.
    File(PathBuf),
}

/// What a backup says of itself.
pub fn describe(file: &Path) -> Result<Description, BackupError> {
    let mut tar = tar::Archive::new(File::open(file).map_err(at(file))?);
    let no_backup = |why: String| BackupError::NoBackup {
        path: file.to_owned(),
        why,
    };
    let mut entries = tar.entries().map_err(|error| no_backup(error.to_string()))?;
    let first = entries
        .next()
        .transpose()
        .map_err(|_| no_backup("it is no tar file".to_owned()))?;
    let first = first.ok_or_else(|| no_backup("it is empty".to_owned()))?;
    if first.path_bytes() != DESCRIPTION.as_bytes() {
        return Err(no_backup(format!("it does not begin with {DESCRIPTION}")));
    }
    let description: Description = text(first).map_err(|error| no_backup(error.to_string()))?;
    if description.format > FORMAT {
        return Err(no_backup(format!(
            "Hearth {} made it, in a form that is newer than this program",
            description.version
        )));
    }
    Ok(description)
}

fn text<T: serde::de::DeserializeOwned>(entry: impl Read) -> std::io::Result<T> {
    Ok(serde_json::from_reader(entry.take(MOST_TEXT_BYTES))?)
}

/// Makes a new data folder of a backup. Whatever does not work, nothing is left of it.
pub async fn restore(file: &Path, data_dir: &Path, key: KeySource) -> Result<Description, BackupError> {
    let description = describe(file)?;
    let is_empty = std::fs::read_dir(data_dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        return Err(BackupError::NotEmpty(data_dir.to_owned()));
    }
    let is_there = data_dir.is_dir();
    let near = match data_dir.parent() {
        Some(parent) if !is_there => parent,
        _ => data_dir,
    };
    std::fs::create_dir_all(near).map_err(at(near))?;
    let work = tempfile::Builder::new()
        .prefix(".hearth-restore-")
        .tempdir_in(near)
        .map_err(at(near))?;
    let new = work.path().join("data");
    std::fs::DirBuilder::new()
        .mode(OWNER_ALONE)
        .create(&new)
        .map_err(at(&new))?;
    let sealed = unpack(file, &new.join(DATABASE))?;
    let digest = digest_of(&new.join(DATABASE)).map_err(at(&new))?;
    if description
        .database_sha256
        .as_ref()
        .is_some_and(|written| *written != digest)
    {
        return Err(BackupError::NoBackup {
            path: file.to_owned(),
            why: "its database is damaged: it is not what was written".to_owned(),
        });
    }
    let (bytes, admin_token) = match key {
        KeySource::File(path) => (std::fs::read(&path).map_err(at(&path))?, None),
        KeySource::Passphrase(passphrase) => {
            let opened = sealed
                .ok_or(BackupError::KeyMissing)?
                .open(passphrase.expose_secret())?;
            let secrets: Secrets = serde_json::from_slice(&opened).map_err(|_| PassphraseError::Damaged)?;
            let key = hex::decode(&secrets.key).map_err(|_| PassphraseError::Damaged)?;
            (key, secrets.admin_token)
        }
    };
    if check_of(&bytes) != description.key_check {
        return Err(BackupError::WrongKey);
    }
    hearth_store::adopt_copy(&new.join(DATABASE)).await?;
    write_private(&new.join(SECRET_KEY), &bytes).map_err(at(&new))?;
    if let Some(token) = admin_token {
        write_private(&new.join(ADMIN_TOKEN), format!("{token}\n").as_bytes()).map_err(at(&new))?;
    }
    File::open(&new)
        .and_then(|folder| folder.sync_all())
        .map_err(at(&new))?;
    if is_there {
        move_into(&new, data_dir).map_err(at(data_dir))?;
    } else {
        std::fs::rename(&new, data_dir).map_err(at(data_dir))?;
    }
    Ok(description)
}

/// Moves what was restored into a folder that was made for it, and gives it to that folder's owner. The database comes last: without it
/// there is no server's data.
fn move_into(new: &Path, data_dir: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(data_dir)?;
    let mut names: Vec<_> = std::fs::read_dir(new)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()?;
    names.sort_by_key(|name| name == DATABASE);
    for name in names {
        let file = new.join(&name);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        std::fs::rename(file, data_dir.join(name))?;
    }
    std::fs::set_permissions(data_dir, std::fs::Permissions::from_mode(OWNER_ALONE))
}

/// Unpacks the database, and gives what is sealed. Other members are not written anywhere.
fn unpack(file: &Path, database: &Path) -> Result<Option<SealedByPassphrase>, BackupError> {
    let no_backup = |error: std::io::Error| BackupError::NoBackup {
        path: file.to_owned(),
        why: error.to_string(),
    };
    let mut tar = tar::Archive::new(File::open(file).map_err(at(file))?);
    let mut sealed = None;
    let mut has_database = false;
    for entry in tar.entries().map_err(no_backup)? {
        let mut entry = entry.map_err(no_backup)?;
        let name = entry.path_bytes().into_owned();
        if name == SEALED.as_bytes() {
            sealed = Some(text(entry).map_err(no_backup)?);
        } else if name == DATABASE.as_bytes() && !has_database {
            let mut options = File::options();
            let mut copy = options
                .write(true)
                .create_new(true)
                .mode(PRIVATE)
                .open(database)
                .map_err(at(database))?;
            let size = entry.size();
            let copied = std::io::copy(&mut entry, &mut copy).map_err(no_backup)?;
            if copied != size {
                return Err(no_backup(std::io::ErrorKind::UnexpectedEof.into()));
            }
            copy.sync_all().map_err(at(database))?;
            has_database = true;
        }
    }
    if has_database {
        return Ok(sealed);
    }
    Err(BackupError::NoBackup {
        path: file.to_owned(),
        why: format!("it holds no {DATABASE}"),
    })
}
