//! A copy of the database while a server works on it, and what becomes of a copy that is restored.

use std::path::Path;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::{BUSY_TIMEOUT, StoreError, millis};

/// What belongs to the machine and its VMs, and not to what a person set up: none of it is there when a backup is restored. A
/// record without its VM would be taken for one that was lost, and a label that two data folders have for one installation.
const OF_THE_MACHINE: [&str; 13] = [
    "DELETE FROM instance",
    "DELETE FROM claim",
    "DELETE FROM template",
    "DELETE FROM checkpoint",
    "DELETE FROM checkpoint_fault",
    "DELETE FROM named_checkpoint",
    "DELETE FROM stopped_vm",
    "DELETE FROM controller",
    "DELETE FROM home",
    "DELETE FROM server",
    // The server that was backed up delivers them.
    "DELETE FROM webhook_delivery WHERE status = 'pending'",
    // Browsers sign in again: it is another address.
    "DELETE FROM web_session",
    // The mirrors that they were seen in are fetched anew.
    "DELETE FROM tip",
];
/// What the history of VMs that were there ends with; `?1` is the time, `?2` the reason.
const HISTORY_ENDS: [&str; 2] = [
    "UPDATE claim_history SET ended_at = ?1, ended_because = ?2 WHERE ended_at IS NULL",
    "UPDATE boot_history SET gone_at = ?1, gone_because = ?2 WHERE gone_at IS NULL",
];
/// Why, for people.
const RESTORED: &str = "restored from a backup";
/// And its name.
const INSTALLATION: &str = "DELETE FROM meta WHERE key = 'installation'";

/// What a database holds, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Projects of all tenants.
    pub projects: u64,
    /// Variables, shared and personal.
    pub variables: u64,
    /// Git credentials.
    pub credentials: u64,
    /// API tokens.
    pub tokens: u64,
}

/// Copies the database to a new file: whole, as it is at one moment, and without what was deleted. Writers do not wait.
pub async fn copy_database(database: &Path, copy: &Path) -> Result<Holdings, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(database)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT);
    let mut connection = options.connect().await?;
    let path = copy.to_string_lossy().into_owned();
    sqlx::query("VACUUM INTO ?1")
        .bind(path)
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    let mut copied = SqliteConnectOptions::new()
        .filename(copy)
        .read_only(true)
        .connect()
        .await?;
    let holdings = holdings(&mut copied).await?;
    copied.close().await?;
    Ok(holdings)
}

/// Makes a copy one that a server can begin with: checked, in this version's schema, without what belongs to the machine that it
/// was copied on. A damaged one, or one of a newer version, is refused.
pub async fn adopt_copy(copy: &Path) -> Result<Holdings, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(copy)
        .foreign_keys(true)
        .pragma("secure_delete", "ON");
    let mut connection = options.connect().await?;
    let checked: String = sqlx::query_scalar("PRAGMA integrity_check(1)")
        .fetch_one(&mut connection)
        .await?;
    if checked != "ok" {
        return Err(StoreError::corrupt("the backup's database", checked));
    }
    sqlx::migrate!("./migrations").run(&mut connection).await?;
    let mut tx = connection.begin().await?;
    for statement in OF_THE_MACHINE.into_iter().chain([INSTALLATION]) {
        sqlx::query(statement).execute(&mut *tx).await?;
    }
    for statement in HISTORY_ENDS {
        let ends = sqlx::query(statement).bind(millis(Timestamp::now())).bind(RESTORED);
        ends.execute(&mut *tx).await?;
    }
    tx.commit().await?;
    let holdings = holdings(&mut connection).await?;
    connection.close().await?;
    Ok(holdings)
}

async fn holdings(connection: &mut SqliteConnection) -> Result<Holdings, StoreError> {
    let (projects, variables, credentials, tokens): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM project), (SELECT count(*) FROM variable), (SELECT count(*) FROM credential),
                (SELECT count(*) FROM token)",
    )
    .fetch_one(connection)
    .await?;
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(Holdings {
        projects: count(projects),
        variables: count(variables),
        credentials: count(credentials),
        tokens: count(tokens),
    })
}
