//! The one place that writes. Everything else in the store only says what: a statement that is run here, or a transaction that
//! begins and is committed here. Tests can make one write fail, or end the server at it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::postgres::PgPool;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Connection as _, Postgres, Transaction};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::away::named;
use super::db::{Done, Pool, Query, Tx};

/// How a transaction begins on SQLite: it has the database for itself from now on.
const BEGIN: &str = "BEGIN IMMEDIATE";
/// The same on PostgreSQL, in a transaction: all servers ask for this lock, and it goes with the transaction. (`hearth` in ASCII.)
const ALONE: &str = "SELECT pg_advisory_xact_lock(114784635876456)";
/// Beside others that begin so, and beside none that begins alone.
const SHARED: &str = "SELECT pg_advisory_xact_lock_shared(114784635876456)";
/// The same; its commit is not waited for on the disk.
const UNSYNCED: &str = "SET LOCAL synchronous_commit = off; SELECT pg_advisory_xact_lock_shared(114784635876456)";

/// What writes: the one connection of SQLite, or those of PostgreSQL.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pool: Pool,
    faults: Option<WriteFaults>,
    /// Changes with every commit that has written events.
    told: watch::Sender<u64>,
}

/// A transaction that writes. Dropped, it never was.
pub(super) struct Writing {
    tx: Tx,
    write: Write,
    /// Notified by the commit, when events are among what is written.
    told: watch::Sender<u64>,
    has_told: bool,
}

/// One write, and what a test has planned for it.
struct Write {
    faults: Option<WriteFaults>,
    site: &'static Location<'static>,
}

/// A statement that is a whole write of its own. On PostgreSQL it runs beside others: what it decides by must be in the rows that it writes.
pub(super) trait RunOn {
    /// Writes it.
    fn run_on(self, writer: &Writer) -> impl Future<Output = sqlx::Result<Done>> + Send;
}

impl RunOn for Query<'_> {
    #[track_caller]
    fn run_on(self, writer: &Writer) -> impl Future<Output = sqlx::Result<Done>> + Send {
        let write = writer.write();
        async move {
            let planned = write.before().await?;
            let done = self.execute(&writer.pool).await?;
            write.after(planned).await?;
            Ok(done)
        }
    }
}

impl Writer {
    pub(super) fn new(pool: Pool, faults: Option<WriteFaults>) -> Self {
        let told = watch::Sender::new(0);
        Self { pool, faults, told }
    }

    /// Changes whenever events were written.
    pub(super) fn told(&self) -> &watch::Sender<u64> {
        &self.told
    }

    #[track_caller]
    fn write(&self) -> Write {
        Write {
            faults: self.faults.clone(),
            site: Location::caller(),
        }
    }

    /// Begins a transaction; it has the database for itself from now on, whatever the database is.
    #[track_caller]
    pub(super) fn begin(&self) -> impl Future<Output = sqlx::Result<Writing>> + Send {
        self.begin_by(ALONE, self.write())
    }

    /// Begins a transaction that others may run beside, on PostgreSQL: for what is done often, and decides only by rows that it has
    /// locked or that it writes by compare-and-set. On SQLite there is one writer.
    #[track_caller]
    pub(super) fn begin_shared(&self) -> impl Future<Output = sqlx::Result<Writing>> + Send {
        self.begin_by(SHARED, self.write())
    }

    async fn begin_by(&self, lock: &'static str, write: Write) -> sqlx::Result<Writing> {
        let tx = match &self.pool {
            Pool::Sqlite(pool) => Tx::Sqlite(pool.begin_with(BEGIN).await?),
            Pool::Postgres(pool) => Tx::Postgres(named(begin_on_postgres(pool, lock).await)?),
        };
        let told = self.told.clone();
        Ok(Writing {
            tx,
            write,
            told,
            has_told: false,
        })
    }

    /// Runs a statement, and in the same transaction one that writes an event, whose effect must outlive this process and need not
    /// outlive the host: it is not synced, and a hundred times as fast. The sync of the next write takes it along.
    #[track_caller]
    pub(super) fn run_unsynced(
        &self,
        query: Query<'static>,
        event: Query<'static>,
    ) -> impl Future<Output = sqlx::Result<Done>> + Send {
        let (write, pool, told) = (self.write(), self.pool.clone(), self.told.clone());
        let running = async move {
            let planned = write.before().await?;
            let done = match &pool {
                Pool::Sqlite(pool) => run_unsynced_on_sqlite(pool, query, event).await?,
                Pool::Postgres(pool) => {
                    let mut tx = Tx::Postgres(named(begin_on_postgres(pool, UNSYNCED).await)?);
                    let done = query.execute(&mut tx).await?;
                    event.execute(&mut tx).await?;
                    tx.commit().await?;
                    done
                }
            };
            told.send_modify(|count| *count += 1);
            write.after(planned).await?;
            Ok(done)
        };
        // Runs to its end even when its caller stops waiting: others sync their writes on this connection.
        async move {
            let joined = tokio::spawn(running.in_current_span()).await;
            joined.unwrap_or_else(|error| Err(sqlx::Error::Io(std::io::Error::other(error))))
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A transaction that has this lock. It begins by a statement of its own: who stops waiting for the lock gives the connection back, and it must
/// be known then that a transaction is to be rolled back.
async fn begin_on_postgres(pool: &PgPool, lock: &'static str) -> sqlx::Result<Transaction<'static, Postgres>> {
    let mut tx = match pool.begin().await {
        // The first statement tells a connection that broke meanwhile; nothing was done yet, so another one may begin.
        Err(sqlx::Error::Io(_)) => pool.begin().await?,
        begun => begun?,
    };
    sqlx::raw_sql(lock).execute(&mut *tx).await?;
    Ok(tx)
}

/// Whether a connection that comes back can begin a transaction again. SQLite ends one on its own when the disk is full, the connection
/// still believes in it, and then none could ever begin on it.
pub(super) async fn can_begin(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // What was dropped is rolled back by then.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

async fn run_unsynced_on_sqlite(pool: &SqlitePool, query: Query<'static>, event: Query<'static>) -> sqlx::Result<Done> {
    let mut connection = pool.acquire().await?;
    let done = async {
        let unsynced = sqlx::query("PRAGMA synchronous = NORMAL");
        unsynced.execute(&mut *connection).await?;
        // By hand: what the connection believes of a transaction that SQLite ended on its own is of no interest here.
        sqlx::query(BEGIN).execute(&mut *connection).await?;
        let both = async {
            let done = query.execute(&mut *connection).await?;
            event.execute(&mut *connection).await?;
            sqlx::query("COMMIT").execute(&mut *connection).await?;
            Ok(done)
        };
        let both: sqlx::Result<_> = both.await;
        if both.is_err() {
            // After some errors SQLite has done it already.
            drop(sqlx::query("ROLLBACK").execute(&mut *connection).await);
        }
        both
    };
    let done = done.await;
    let synced = sqlx::query("PRAGMA synchronous = FULL");
    if let Err(error) = synced.execute(&mut *connection).await {
        // Whatever is wrong with it, no other write may have it.
        drop(connection.detach());
        return Err(error);
    }
    done
}

impl Deref for Writing {
    type Target = Tx;
    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}

impl Writing {
    /// Events are among what this transaction writes.
    pub(super) fn has_told(&mut self) {
        self.has_told = true;
    }

    /// On disk when it returns.
    pub(super) async fn commit(self) -> sqlx::Result<()> {
        let planned = self.write.before().await?;
        self.tx.commit().await?;
        if self.has_told {
            self.told.send_modify(|count| *count += 1);
        }
        self.write.after(planned).await
    }
}

/// Where a planned fault hits its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMoment {
    /// Nothing was written.
    Before,
    /// It was, and the writer gets an error.
    After,
}

/// One planned fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteFault {
    /// The place in the code, `file:line` as [`WriteFaults::counts`] names it.
    pub site: String,
    /// Its how many-eth write, counted from 1.
    pub write: u64,
    /// Whether it took effect.
    pub moment: WriteMoment,
    /// The server ends there, as by `kill -9`; otherwise the write fails.
    pub kills: bool,
}

/// For tests: counts the writes of each place in the code, and lets one of them fail. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct WriteFaults {
    shared: Arc<Mutex<Shared>>,
    /// Cancelled when the server is to be taken for dead: then no write returns.
    killed: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    counts: BTreeMap<String, u64>,
    planned: Option<WriteFault>,
    has_fired: bool,
}

impl WriteFaults {
    /// Plans a fault, or none.
    #[must_use]
    pub fn new(planned: Option<WriteFault>) -> Self {
        let shared = Shared {
            planned,
            ..Shared::default()
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            killed: CancellationToken::new(),
        }
    }

    /// The same for a server that is dead when this is cancelled, which a fault that kills does.
    #[must_use]
    pub fn of_server(&self, killed: CancellationToken) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared, killed }
    }

    /// Nothing fails from now on. Whether something had.
    #[must_use]
    pub fn disarm(&self) -> bool {
        let mut shared = self.shared();
        shared.planned = None;
        shared.has_fired
    }

    /// How often each place has written.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.shared().counts.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a write; the fault that is planned for it.
    fn next(&self, site: &Location<'_>) -> Option<WriteFault> {
        let file = site.file().rsplit('/').next().unwrap_or_default();
        let site = format!("{file}:{}", site.line());
        let mut shared = self.shared();
        let count = shared.counts.entry(site.clone()).or_default();
        *count += 1;
        let count = *count;
        let fault = shared.planned.take_if(|it| it.site == site && it.write == count);
        shared.has_fired |= fault.is_some();
        fault
    }

    async fn strike(&self, fault: &WriteFault) -> sqlx::Error {
        if fault.kills {
            self.killed.cancel();
            std::future::pending::<()>().await;
        }
        sqlx::Error::Io(std::io::Error::other("a fault that the test planned"))
    }
}

impl Write {
    async fn before(&self) -> sqlx::Result<Option<WriteFault>> {
        let Some(faults) = &self.faults else { return Ok(None) };
        if faults.killed.is_cancelled() {
            std::future::pending::<()>().await;
        }
        match faults.next(self.site) {
            Some(fault) if fault.moment == WriteMoment::Before => Err(faults.strike(&fault).await),
            planned => Ok(planned),
        }
    }

    async fn after(&self, planned: Option<WriteFault>) -> sqlx::Result<()> {
        match (&self.faults, planned) {
            (Some(faults), Some(fault)) => Err(faults.strike(&fault).await),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::super::seal::tests::NoVariables;
    use super::super::{Store, db};

    #[tokio::test]
    async fn transaction_that_sqlite_ended_on_its_own_harms_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hearth.db");
        let store = Store::open(&file, Arc::new(NoVariables), None).await.unwrap();
        // As when the disk is full; several wait for the connection meanwhile.
        let mut writes = JoinSet::new();
        for number in 0..20 {
            let store = store.clone();
            writes.spawn(async move {
                let mut tx = store.write.begin().await?;
                if number % 2 == 1 {
                    return tx.commit().await;
                }
                db::query("ROLLBACK").execute(&mut *tx).await?;
                Ok::<(), sqlx::Error>(())
            });
        }
        for done in writes.join_all().await {
            assert!(done.is_ok(), "{done:?}");
        }
    }
}
