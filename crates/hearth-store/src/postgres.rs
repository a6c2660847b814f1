//! The store on PostgreSQL: how it is reached, and what its servers tell each other.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use url::Url;

use super::away::named;
use super::db::Pool;
use super::writer::Writer;
use super::{Seal, Store, StoreError, WriteFaults};

/// Transactions at once of one server. More than processors, since most of their time is the disk's.
const WRITERS: u32 = 16;
/// Readers at once.
const READERS: u32 = 8;
/// How long a request waits for a connection: then PostgreSQL is away, and that is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// A connection that was not used for so long is tried before it is used.
const DOUBTFUL: Duration = Duration::from_secs(1);
/// All statements of the store, each prepared once per connection.
const STATEMENTS: usize = 400;
/// What every connection is set to. A server whose host is gone without a word must not keep others from writing for long: it is noticed
/// before they give up.
const SETTINGS: &str =
    "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '20s'; SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET client_min_messages = warning";
/// And those that only read.
const READ_ONLY: &str = "SET default_transaction_read_only = on";
/// Where servers tell each other that something changed. The message is who tells; it carries nothing else.
const CHANNEL: &str = "hearth";
/// Changes that come close together are told together.
const GATHER: Duration = Duration::from_millis(10);
/// Between two attempts to hear again.
const RETRY: Duration = Duration::from_millis(500);
/// The lock of servers that work with a database, each with a session of its own. (`server` in ASCII.)
const SERVER_LOCK: i64 = 0x7365_7276_6572;
/// How it is taken beside others, and alone.
const SHARED: &str = "SELECT pg_try_advisory_lock_shared($1)";
const ALONE: &str = "SELECT pg_try_advisory_lock($1)";
/// So long a server waits for it: PostgreSQL needs a moment to notice that the one before has ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often the lock is tried, and later whether it is still there.
const LOCK_CHECK: Duration = Duration::from_millis(200);
const LOCK_PULSE: Duration = Duration::from_secs(2);

/// Why a text names no PostgreSQL. None of it is quoted: there may be a password in it.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("it begins with neither postgres:// nor postgresql://")]
    Scheme,
    #[error("it is no URL ({0}); a character that has a meaning in URLs is written as % and two digits")]
    Url(#[from] url::ParseError),
    #[error("`{0}` is nothing that can be said in it")]
    Parameter(String),
    #[error("what it says cannot be used; see sslmode, port and the other parameters")]
    Value,
}

/// Where a PostgreSQL is, and how to be let in. Shown without its password.
#[derive(Clone)]
pub struct PostgresUrl {
    options: PgConnectOptions,
    shown: String,
}

impl FromStr for PostgresUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        /// What may be said after the question mark. Not a password: that is in one place only, so that it is never shown.
        const PARAMETERS: [&str; 11] = [
            "application_name",
            "dbname",
            "host",
            "hostaddr",
            "options",
            "port",
            "sslcert",
            "sslkey",
            "sslmode",
            "sslrootcert",
            "user",
        ];
        if !is_postgres(text) {
            return Err(UrlError::Scheme);
        }
        let mut url = Url::parse(text)?;
        if let Some((other, _)) = url.query_pairs().find(|(name, _)| !PARAMETERS.contains(&&**name)) {
            return Err(UrlError::Parameter(other.into_owned()));
        }
        let options = PgConnectOptions::from_str(text).map_err(|_| UrlError::Value)?;
        let options = options.statement_cache_capacity(STATEMENTS);
        // A URL of this scheme may have one, so taking it away does not fail.
        let _ = url.set_password(None);
        Ok(Self {
            options,
            shown: url.to_string(),
        })
    }
}

/// Whether a text names a PostgreSQL, and not a file.
fn is_postgres(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl PostgresUrl {
    /// Takes the database for this process alone, before anything in it is touched; `None` when a server works with it.
    pub async fn hold_alone(&self) -> Result<Option<Alone>, StoreError> {
        self.hold(ALONE).await
    }

    /// Works with the database beside other servers; `None` when one process has it alone: a store that is moved there, or a server of a
    /// version that knew no others.
    pub async fn hold_shared(&self) -> Result<Option<Alone>, StoreError> {
        self.hold(SHARED).await
    }

    async fn hold(&self, lock: &'static str) -> Result<Option<Alone>, StoreError> {
        let mut connection = self.connect().await?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        while !try_lock(&mut connection, lock).await? {
            if Instant::now() > deadline {
                return Ok(None);
            }
            sleep(LOCK_CHECK).await;
        }
        let url = self.clone();
        let (lose, lost) = watch::channel(false);
        let task = tokio::spawn(async move {
            keep_lock(connection, url, lock).await;
            lose.send_replace(true);
        });
        let _task = Some(Arc::new(Keeping(task)));
        Ok(Some(Alone { lost, _task }))
    }

    fn options(&self) -> PgConnectOptions {
        self.options.clone().application_name("hearth")
    }

    /// One connection with the store's settings.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let connecting = async {
            let mut connection = self.options().connect().await?;
            connection.execute(SETTINGS).await?;
            Ok(connection)
        };
        let connected = tokio::time::timeout(PATIENCE, connecting);
        Ok(named(connected.await.unwrap_or(Err(sqlx::Error::PoolTimedOut)))?)
    }

    pub(super) fn pool(&self, most: u32) -> PgPool {
        self.pool_options(most).connect_lazy_with(self.options())
    }

    /// Whose connections write nothing.
    fn readers(&self) -> PgPool {
        self.pool_options(READERS)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(SETTINGS).await?;
                    connection.execute(READ_ONLY).await.map(drop)
                })
            })
            .connect_lazy_with(self.options())
    }

    fn pool_options(&self, most: u32) -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(PATIENCE)
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(SETTINGS).await.map(drop) }))
            .before_acquire(|connection, seen| {
                Box::pin(async move {
                    if seen.idle_for > DOUBTFUL {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
    }
}

/// What runs beside a store on PostgreSQL, for as long as it is open.
#[derive(Debug)]
pub(super) struct Messenger {
    me: String,
    /// Changes when events were written, here or by another server.
    written: watch::Sender<u64>,
    /// Changes when another server says that something changed.
    elsewhere: watch::Sender<u64>,
}

/// The tasks of it, ended with the store.
#[derive(Debug)]
pub(super) struct Messages {
    messenger: Arc<Messenger>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.end();
    }
}

impl Messages {
    fn begin(writer: &Writer, write: &PgPool, url: &PostgresUrl) -> Self {
        let me = format!("{:016x}", rand_id());
        let messenger = Arc::new(Messenger {
            me,
            written: watch::Sender::new(0),
            elsewhere: watch::Sender::new(0),
        });
        let telling = messenger.clone().tell(writer.told().subscribe(), write.clone());
        let hearing = messenger.clone().hear(url.clone());
        Self {
            messenger,
            tasks: [tokio::spawn(telling), tokio::spawn(hearing)],
        }
    }

    pub(super) fn end(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    pub(super) fn written(&self) -> watch::Receiver<u64> {
        self.messenger.written.subscribe()
    }
}

/// Names a store of a process.
fn rand_id() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl Messenger {
    /// Tells the other servers of what is written here, apart from the transactions: a message in one would let all of them wait for
    /// each other's disk. One that is lost is made up for by the others' own clocks.
    async fn tell(self: Arc<Self>, mut told: watch::Receiver<u64>, pool: PgPool) {
        while told.changed().await.is_ok() {
            self.written.send_modify(|count| *count += 1);
            let message = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(&self.me);
            if let Err(error) = message.execute(&pool).await {
                tracing::debug!(%error, "the other servers could not be told of a change");
            }
            sleep(GATHER).await;
        }
    }

    /// Hears of what others write. Whenever it begins again something may have been missed.
    async fn hear(self: Arc<Self>, url: PostgresUrl) {
        loop {
            let heard = self.hear_until_it_breaks(&url).await;
            if let Err(error) = heard {
                tracing::debug!(%error, "other servers are not heard; tried again");
            }
            sleep(RETRY).await;
        }
    }

    async fn hear_until_it_breaks(&self, url: &PostgresUrl) -> sqlx::Result<()> {
        let pool = url.pool(1);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        self.changed_elsewhere();
        loop {
            match listener.try_recv().await? {
                Some(message) if message.payload() == self.me => {}
                Some(_) | None => self.changed_elsewhere(),
            }
        }
    }

    fn changed_elsewhere(&self) {
        self.written.send_modify(|count| *count += 1);
        self.elsewhere.send_modify(|count| *count += 1);
    }
}

/// Says when another server says that something changed; what it was, the store says.
#[derive(Debug)]
pub struct Elsewhere(watch::Receiver<u64>);

impl Elsewhere {
    /// Resolves when something changed since the last time.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The store is closed: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// A store is held until this and its clones are dropped.
#[derive(Debug, Clone)]
pub struct Alone {
    lost: watch::Receiver<bool>,
    _task: Option<Arc<Keeping>>,
}

/// The task that keeps the lock. The connection goes with it, and the lock with the connection.
#[derive(Debug)]
struct Keeping(JoinHandle<()>);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Alone {
    /// Of a store in SQLite: that is its folder's, which has a lock of its own.
    #[must_use]
    pub fn of_folder() -> Self {
        let (_, lost) = watch::channel(false);
        Self { lost, _task: None }
    }

    /// Resolves when another process has the store: while PostgreSQL was away, it was quicker.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        if lost.wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn try_lock(connection: &mut PgConnection, lock: &'static str) -> sqlx::Result<bool> {
    let lock = sqlx::query_scalar(lock).bind(SERVER_LOCK);
    named(lock.fetch_one(connection).await)
}

/// Looks whether the lock is still there; where its connection broke, takes it again on a new one. Ends when another process has it.
async fn keep_lock(mut connection: PgConnection, url: PostgresUrl, lock: &'static str) {
    loop {
        sleep(LOCK_PULSE).await;
        if matches!(tokio::time::timeout(PATIENCE, connection.ping()).await, Ok(Ok(()))) {
            continue;
        }
        let again = async {
            let mut again = url.connect().await?;
            let deadline = Instant::now() + LOCK_PATIENCE;
            loop {
                if try_lock(&mut again, lock).await? {
                    return Ok::<_, StoreError>(Some(again));
                }
                if Instant::now() > deadline {
                    return Ok(None);
                }
                sleep(LOCK_CHECK).await;
            }
        };
        match again.await {
            Ok(Some(again)) => connection = again,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the server's lock on the database is gone with its connection; it is taken again when it can be")
            }
        }
    }
}

impl Store {
    /// Opens (and migrates) the store in a PostgreSQL database. `faults`: those that a test has planned.
    pub async fn connect(
        url: &PostgresUrl,
        cipher: Arc<dyn Seal>,
        faults: Option<WriteFaults>,
    ) -> Result<Self, StoreError> {
        migrate(url).await?;
        let write = url.pool(WRITERS);
        let read = url.readers();
        let writer = Writer::new(Pool::Postgres(write.clone()), faults);
        let messages = Messages::begin(&writer, &write, url);
        Ok(Self {
            write: writer,
            read: Pool::Postgres(read),
            cipher,
            reserve: None,
            messages: Some(Arc::new(messages)),
            server: Arc::default(),
        })
    }

    /// Says when another server says that something changed; `None` where there can be none, on SQLite.
    #[must_use]
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        let messages = self.messages.as_ref()?;
        let mut elsewhere = messages.messenger.elsewhere.subscribe();
        // What changed before this began may have been missed.
        elsewhere.mark_changed();
        Some(Elsewhere(elsewhere))
    }
}

/// Brings the schema up to date. sqlx has a lock around it, so servers that start together wait for each other.
pub(super) async fn migrate(url: &PostgresUrl) -> Result<(), StoreError> {
    // By its own words where it is away.
    url.connect().await?.close().await?;
    let pool = url.pool(1);
    sqlx::migrate!("./postgres").run(&pool).await?;
    pool.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_shown_without_its_password_and_a_wrong_one_is_not_quoted() {
        let url: PostgresUrl = "postgres://hearth:s3cret@db.example:5433/hearth?sslmode=require"
            .parse()
            .unwrap();
        assert_eq!(
            url.to_string(),
            "postgres://hearth@db.example:5433/hearth?sslmode=require"
        );
        assert_eq!(format!("{url:?}"), url.to_string());
        for wrong in [
            "s3cret",
            "mysql://hearth:s3cret@h/d",
            "postgres://hearth:s3cret@h:port/d",
            "postgres://hearth@h/d?password=s3cret",
            "postgres://hearth@h/d?sslmode=s3cret",
        ] {
            let error = wrong.parse::<PostgresUrl>().unwrap_err();
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
