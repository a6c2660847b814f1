//! The only SQL of Hearth, and the only truth: memory is a cache that may be lost at any moment.
//!
//! On SQLite: one write connection (it has one writer anyway, and a queue in front of it is fairer than its busy loop) and a few
//! readers. On PostgreSQL, for more than one machine: some of each, and a lock that a transaction has alone, or shared (`writer.rs`).
//! Each statement is written once, for both (`db.rs`, `dialect.rs`). Every commit is on disk when it returns: what was promised survives
//! a power cut.

mod audit;
mod away;
mod backup;
mod branch_heads;
mod census;
mod checkpoints;
mod claim_rules;
mod claims;
#[cfg(test)]
mod contract_tests;
mod controller;
mod course;
mod credentials;
mod db;
mod dialect;
mod e2b;
mod e2b_tags;
mod egress;
#[cfg(test)]
mod event_tests;
mod events;
mod figures;
mod find;
mod forks;
mod history;
mod instances;
mod marks;
#[cfg(test)]
mod migration_tests;
mod moves;
mod named_checkpoints;
mod overview;
mod pools;
mod postgres;
mod projects;
mod release_sessions;
mod reserve;
mod seal;
#[cfg(test)]
mod server_tests;
mod servers;
mod set_ups;
mod steps;
mod streaks;
#[cfg(test)]
mod testing;
mod tokens;
mod transfer;
mod variables;
mod web_sessions;
mod webhooks;
mod writer;

use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::ProjectId;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub use audit::{AuditFilter, AuditedBy, NewAuditEntry};
pub use backup::{Holdings, adopt_copy, copy_database};
pub use branch_heads::BranchHeads;
pub use census::Census;
pub use checkpoints::{CheckpointRow, TemplateRow};
pub use claim_rules::{ClaimRules, Holder, IdleRule};
pub use claims::{AskedFields, ClaimRow, Extended, NewClaim, ReadyCount, Taken};
pub use course::{PoolCourse, Span};
pub use credentials::{ClaimedVm, CredentialRow};
pub use e2b::{E2bRow, SandboxSeen};
pub use e2b_tags::E2bTag;
pub use events::{EventFilter, EventRow, EventSpan, EventsKept};
pub use figures::{InstanceFigure, PoolFigure, ProjectFigure};
pub use find::Sight;
pub use forks::{BegunForks, ForksOrder, MadeFork, NewFork};
pub use history::{HistoryFilter, HistoryKept, PoolUse};
pub use instances::{InstanceRow, NewInstance};
pub use moves::{End, Moved};
pub use named_checkpoints::{NamedCheckpoint, NamedKey};
pub use overview::{ClaimSeen, FailureSeen, ProjectOverview};
pub use pools::{PoolRow, PoolSize};
pub use postgres::{Alone, Elsewhere, PostgresUrl, UrlError};
pub use projects::{ProjectRow, RepoSource, images_of_data_folder};
pub use reserve::Reserve;
pub use seal::{Seal, SealError};
pub use servers::{Homes, NewServer, Registered, ServerRow};
pub use streaks::Streaks;
pub use tokens::{NewToken, SIGN_IN_PREFIX, TokenReach, TokenRow};
pub use transfer::{CopiedTable, CopyError, CopyProgress, TableSum, copy_to_postgres, installation_of};
pub use variables::{VariableOwner, VariableRow};
pub use webhooks::{Attempt, DueDelivery, NewDelivery, NewWebhook, WebhookReach, WebhookRow};
use writer::{RunOn, Writer, can_begin};
pub use writer::{WriteFault, WriteFaults, WriteMoment};

use db::Pool;
use dialect::Dialect;
use postgres::Messages;

/// Readers at once; more would only wait for the disk.
const READERS: u32 = 4;
/// How long a statement waits for a lock that another process holds (a backup, an inspecting shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the store can say no with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error: disk full, file damaged, locked for too long.
    #[error("the database could not do it: {0}; check free disk space and the folder's permissions")]
    Database(sqlx::Error),
    /// PostgreSQL does not answer.
    #[error(
        "PostgreSQL does not answer: {0}; see that it runs and can be reached where --database says, nothing is lost meanwhile"
    )]
    Away(sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database could not be migrated to this version's schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row holds something that this version does not understand.
    #[error("the database holds something this version does not understand: {what}")]
    Corrupt {
        /// Which row and column.
        what: String,
    },
    /// Another project of the tenant has this name.
    #[error("the name is taken by the project {project}")]
    NameTaken {
        /// That project.
        project: ProjectId,
    },
    /// What is asked of a data folder is in PostgreSQL.
    #[error("the store of {} is in PostgreSQL ({url}), where only its server looks", folder.display())]
    Elsewhere {
        folder: std::path::PathBuf,
        /// Without its password.
        url: String,
    },
    /// Another server has the project's pool since a moment ago.
    #[error("another server of this installation looks after the project's pool since a moment ago; ask again")]
    NotAtHome,
    /// A secret could not be sealed or opened.
    #[error(transparent)]
    Secret(#[from] SealError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if away::is_named(&error) {
            Self::Away(error)
        } else {
            Self::Database(error)
        }
    }
}

impl StoreError {
    /// Whether the database does not answer now; it may soon.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }

    /// Whether the disk under the database is full, as SQLite's result codes (<https://sqlite.org/rescode.html>), PostgreSQL or the system
    /// say it.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        /// `SQLITE_FULL`, `SQLITE_IOERR_SHMSIZE` (the index of the log cannot grow), and PostgreSQL's `disk_full`.
        const FULL: [&str; 3] = ["13", "4874", "53100"];
        let error = match self {
            Self::Database(error) | Self::Migrate(sqlx::migrate::MigrateError::Execute(error)) => error,
            _ => return false,
        };
        match error {
            sqlx::Error::Database(error) => error.code().is_some_and(|code| FULL.contains(&code.as_ref())),
            sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    fn corrupt(what: &str, cause: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            what: format!("{what}: {cause}"),
        }
    }
}

/// Gives one of the installation's own values, whatever it was before.
async fn set_meta(tx: &mut writer::Writing, key: &str, value: &str) -> Result<(), StoreError> {
    db::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(key)
        .bind(value)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    write: Writer,
    read: Pool,
    cipher: Arc<dyn Seal>,
    /// Room for what makes room.
    reserve: Option<Reserve>,
    /// What servers tell each other, on PostgreSQL.
    messages: Option<Arc<Messages>>,
    /// The server whose VMs and checkpoints these are, where several share a database.
    server: Arc<str>,
}

impl Store {
    /// The same, with room for what makes room: on a full disk some of it is given up for that.
    pub async fn open_with(
        file: &Path,
        cipher: Arc<dyn Seal>,
        faults: Option<WriteFaults>,
        reserve: Reserve,
    ) -> Result<Self, StoreError> {
        loop {
            match Self::open(file, cipher.clone(), faults.clone()).await {
                Err(error) if error.is_disk_full() && reserve.release() => {}
                opened => {
                    let reserve = Some(reserve);
                    return opened.map(|store| Self { reserve, ..store });
                }
            }
        }
    }

    /// Runs a write that makes room, or is part of making room: on a full disk with the room that was kept for that.
    async fn freeing<T, F>(&self, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        loop {
            match write().await {
                Err(error) if error.is_disk_full() && self.reserve.as_ref().is_some_and(Reserve::release) => {}
                done => return done,
            }
        }
    }

    /// Keeps room for deletions again, where there is enough.
    pub fn refill_reserve(&self) {
        if let Some(reserve) = &self.reserve {
            reserve.refill();
        }
    }

    /// Opens (and makes, and migrates) the database in a file. `faults`: those that a test has planned.
    pub async fn open(file: &Path, cipher: Arc<dyn Seal>, faults: Option<WriteFaults>) -> Result<Self, StoreError> {
        make_private(file)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Deleted rows are overwritten with zeros: a removed variable leaves no trace.
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_TIMEOUT);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .after_release(|connection, _| Box::pin(can_begin(connection)))
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self {
            write: Writer::new(Pool::Sqlite(write), faults),
            read: Pool::Sqlite(read),
            cipher,
            reserve: None,
            messages: None,
            server: Arc::default(),
        })
    }

    /// The same for the server of this name: what it writes of VMs and checkpoints is this server's, and so is what it finds.
    #[must_use]
    pub fn of_server(self, name: &str) -> Self {
        let server = name.into();
        Self { server, ..self }
    }

    /// The server whose VMs and checkpoints these are; empty where there can be only one.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    fn dialect(&self) -> Dialect {
        self.read.dialect()
    }

    /// A value that belongs to the whole installation, made on first use.
    pub async fn meta_or_insert(&self, key: &str, value: &str) -> Result<String, StoreError> {
        self.freeing(|| self.meta_or_insert_once(key, value)).await
    }

    async fn meta_or_insert_once(&self, key: &str, value: &str) -> Result<String, StoreError> {
        let mut tx = self.write.begin().await?;
        db::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        let value = db::query_scalar("SELECT value FROM meta WHERE key = $1")
            .bind(key)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(value)
    }

    /// The same, if it was ever made.
    pub async fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        let value = db::query_scalar("SELECT value FROM meta WHERE key = $1");
        Ok(value.bind(key).fetch_optional(&self.read).await?)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        db::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Ends all connections after what is under way.
    pub async fn close(&self) {
        if let Some(messages) = &self.messages {
            messages.end();
        }
        self.read.close().await;
        self.write.close().await;
    }
}

/// Makes the database's files readable by their owner alone, whatever the folder's mode is. SQLite gives the files beside the
/// database its own mode, so it is there before SQLite makes it.
fn make_private(file: &Path) -> Result<(), StoreError> {
    const OWNER_ONLY: u32 = 0o600;
    let io = |error| StoreError::Database(sqlx::Error::Io(error));
    let mut options = std::fs::OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(OWNER_ONLY)
        .open(file)
        .map_err(io)?;
    for beside in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(beside);
        match std::fs::set_permissions(&path, std::fs::Permissions::from_mode(OWNER_ONLY)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    Ok(())
}

/// A time as the database keeps it.
fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

/// A time from the database.
fn timestamp(millis: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|error| StoreError::corrupt("a time", error))
}

fn optional_timestamp(millis: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
    millis.map(timestamp).transpose()
}

/// JSON for a column. Wire types have string keys and no failing serialisers, so this cannot fail in practice.
fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt("a value for a JSON column", error))
}

fn from_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::corrupt(what, error))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error| StoreError::corrupt(what, error))
}
