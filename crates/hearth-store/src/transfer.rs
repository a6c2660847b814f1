//! A whole store copied from SQLite to PostgreSQL: all tables in one transaction there, so that an interruption leaves nothing, and
//! compared afterwards, row by row, before that transaction ends.

use std::borrow::Cow;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::away::named;
use super::db::without_nul;
use super::postgres::{PostgresUrl, migrate};
use super::{BUSY_TIMEOUT, StoreError};

/// All tables; one that refers to another comes after it.
pub(super) const TABLES: [&str; 30] = [
    "meta",
    "token",
    "project",
    "server",
    "home",
    "variable",
    "pool",
    "instance",
    "step",
    "claim",
    "checkpoint",
    "template",
    "checkpoint_fault",
    "controller",
    "set_up",
    "credential",
    "tip",
    "stopped_vm",
    "named_checkpoint",
    "egress",
    "event",
    "audit",
    "claim_history",
    "boot_history",
    "webhook",
    "webhook_delivery",
    "web_session",
    "e2b_sandbox",
    "e2b_tag",
    "claim_egress",
];
/// Rows that are read at a time.
const PAGE: i64 = 1000;
/// What PostgreSQL counts up by itself continues after what was copied.
const CONTINUE: &str = "SELECT setval('event_id', coalesce((SELECT max(id) FROM event), 1), EXISTS (SELECT 1 FROM event));
    SELECT setval(pg_get_serial_sequence('audit', 'id'), coalesce((SELECT max(id) FROM audit), 1), EXISTS (SELECT 1 FROM audit))";

/// What is in a table: how many rows, and a sum over all of them that no other rows have, in whatever order they are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSum {
    pub rows: u64,
    pub sum: u128,
}

/// A table that was copied and compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedTable {
    pub name: &'static str,
    pub sum: TableSum,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    pub table: &'static str,
    /// Rows of all tables.
    pub done: u64,
    pub all: u64,
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is something else in the database.
    #[error("the PostgreSQL database holds a Hearth store already, and it is another one; name an empty database")]
    Taken,
    /// What arrived is not what was sent.
    #[error("the table {table} has other rows in PostgreSQL than in SQLite; nothing was changed there")]
    Differs { table: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Bool,
    Real,
    Text,
    Bytes,
}

/// A column, as PostgreSQL's schema has it.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: Kind,
}

/// One value of a row.
#[derive(Debug)]
enum Cell {
    Null,
    Int(i64),
    Bool(bool),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Cell {
    fn of_sqlite(row: &SqliteRow, at: usize, kind: Kind) -> sqlx::Result<Self> {
        Ok(match kind {
            Kind::Int => row.try_get::<Option<i64>, _>(at)?.map(Self::Int),
            Kind::Bool => row.try_get::<Option<bool>, _>(at)?.map(Self::Bool),
            Kind::Real => row.try_get::<Option<f64>, _>(at)?.map(Self::Real),
            Kind::Text => {
                let text = row.try_get::<Option<String>, _>(at)?;
                text.map(|text| Self::Text(without_nul(Cow::Owned(text)).into_owned()))
            }
            Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map(Self::Bytes),
        }
        .unwrap_or(Self::Null))
    }

    fn of_postgres(row: &PgRow, at: usize, kind: Kind) -> sqlx::Result<Self> {
        Ok(match kind {
            Kind::Int => row.try_get::<Option<i64>, _>(at)?.map(Self::Int),
            Kind::Bool => row.try_get::<Option<bool>, _>(at)?.map(Self::Bool),
            Kind::Real => row.try_get::<Option<f64>, _>(at)?.map(Self::Real),
            Kind::Text => row.try_get::<Option<String>, _>(at)?.map(Self::Text),
            Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map(Self::Bytes),
        }
        .unwrap_or(Self::Null))
    }

    /// Into the sum of its row: what it is, how long it is, and its bytes.
    fn sum_into(&self, sum: &mut Sha256) {
        let mut add = |kind: u8, bytes: &[u8]| {
            sum.update([kind]);
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        match self {
            Self::Null => add(0, &[]),
            Self::Int(value) => add(1, &value.to_le_bytes()),
            Self::Bool(value) => add(2, &[u8::from(*value)]),
            Self::Real(value) => add(3, &value.to_bits().to_le_bytes()),
            Self::Text(value) => add(4, value.as_bytes()),
            Self::Bytes(value) => add(5, value),
        }
    }

    /// As COPY reads it: <https://www.postgresql.org/docs/current/sql-copy.html>, text format.
    fn copy_into(&self, line: &mut String) {
        use std::fmt::Write as _;
        // Writing to a String does not fail.
        let _ = match self {
            Self::Null => write!(line, "\\N"),
            Self::Int(value) => write!(line, "{value}"),
            Self::Bool(value) => write!(line, "{}", if *value { 't' } else { 'f' }),
            Self::Real(value) => write!(line, "{value}"),
            Self::Text(value) => {
                for character in value.chars() {
                    match character {
                        '\\' => line.push_str("\\\\"),
                        '\n' => line.push_str("\\n"),
                        '\r' => line.push_str("\\r"),
                        '\t' => line.push_str("\\t"),
                        other => line.push(other),
                    }
                }
                Ok(())
            }
            Self::Bytes(value) => {
                line.push_str("\\\\x");
                value.iter().try_for_each(|byte| write!(line, "{byte:02x}"))
            }
        };
    }
}

impl TableSum {
    fn add(&mut self, row: &[Cell]) {
        let mut sum = Sha256::new();
        row.iter().for_each(|cell| cell.sum_into(&mut sum));
        let digest = sum.finalize();
        let half = digest
            .iter()
            .take(16)
            .fold(0, |number, byte| number << 8 | u128::from(*byte));
        self.sum = self.sum.wrapping_add(half);
        self.rows += 1;
    }
}

/// Copies the store of this file, which no server works with, to an empty PostgreSQL database; or finds that it is there already.
pub async fn copy_to_postgres(
    file: &Path,
    url: &PostgresUrl,
    mut progress: impl FnMut(CopyProgress) + Send,
) -> Result<Vec<CopiedTable>, CopyError> {
    let mut connection = open(file).await?;
    migrate(url).await?;
    let mut to = url.connect().await?;
    let mut from = connection.begin().await?;
    let all = count_all(&mut from).await?;
    let mut to = to.begin().await?;
    // Nobody else writes meanwhile.
    let everything = TABLES.join(", ");
    to.execute(AssertSqlSafe(format!("LOCK TABLE {everything} IN EXCLUSIVE MODE")))
        .await?;
    let is_there = is_there(&mut from, &mut to).await?;
    let mut done = 0;
    let mut copied = Vec::with_capacity(TABLES.len());
    for table in TABLES {
        let columns = columns(&mut to, table).await?;
        let sum = {
            let tell = |rows| {
                progress(CopyProgress {
                    table,
                    done: done + rows,
                    all,
                })
            };
            let to = (!is_there).then_some(&mut *to);
            read_sqlite(&mut from, to, table, &columns, tell).await?
        };
        if sum_of_postgres(&mut to, table, &columns).await? != sum {
            return Err(if is_there {
                CopyError::Taken
            } else {
                CopyError::Differs { table }
            });
        }
        done += sum.rows;
        copied.push(CopiedTable { name: table, sum });
    }
    if !is_there {
        to.execute(CONTINUE).await?;
    }
    named(to.commit().await)?;
    from.rollback().await?;
    // Or files beside the database would stay.
    connection.close().await?;
    Ok(copied)
}

/// Opens a store in this version's schema.
async fn open(file: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    let mut connection = options.connect().await?;
    sqlx::migrate!("./migrations").run(&mut connection).await?;
    Ok(connection)
}

async fn count_all(from: &mut SqliteConnection) -> Result<u64, StoreError> {
    let counts = TABLES
        .map(|table| format!("(SELECT count(*) FROM {table})"))
        .join(" + ");
    let all: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {counts}")))
        .fetch_one(from)
        .await?;
    Ok(u64::try_from(all).unwrap_or_default())
}

/// What a store is called by, in SQLite and in PostgreSQL.
const INSTALLATION: &str = "SELECT value FROM meta WHERE key = 'installation'";

/// The name of the installation whose store this file is, if it has one.
pub async fn installation_of(file: &Path) -> Result<Option<String>, StoreError> {
    let mut connection = open(file).await?;
    let name = sqlx::query_scalar(INSTALLATION).fetch_optional(&mut connection).await?;
    connection.close().await?;
    Ok(name)
}

/// Whether the database holds this very installation already: an earlier copy was interrupted after its end.
async fn is_there(from: &mut SqliteConnection, to: &mut PgConnection) -> Result<bool, CopyError> {
    let rows = TABLES
        .map(|table| format!("EXISTS (SELECT 1 FROM {table})"))
        .join(" OR ");
    let holds_any: bool = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {rows}")))
        .fetch_one(&mut *to)
        .await?;
    if !holds_any {
        return Ok(false);
    }
    let ours: Option<String> = sqlx::query_scalar(INSTALLATION).fetch_optional(from).await?;
    let theirs: Option<String> = sqlx::query_scalar(INSTALLATION).fetch_optional(to).await?;
    if ours.is_some() && ours == theirs {
        Ok(true)
    } else {
        Err(CopyError::Taken)
    }
}

/// The columns that are written; not those that follow from others.
async fn columns(to: &mut PgConnection, table: &str) -> Result<Vec<Column>, StoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT CAST(attname AS text), CAST(coalesce(nullif(typbasetype, 0), pg_type.oid)::regtype AS text)
         FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
         WHERE attrelid = CAST($1 AS regclass) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
    )
    .bind(table)
    .fetch_all(to)
    .await?;
    let column = |(name, kind): (String, String)| {
        let kind = match kind.as_str() {
            "bigint" => Kind::Int,
            "boolean" => Kind::Bool,
            "double precision" => Kind::Real,
            "text" => Kind::Text,
            "bytea" => Kind::Bytes,
            other => {
                return Err(StoreError::corrupt(
                    "a column's type",
                    format!("{table}.{name} is {other}"),
                ));
            }
        };
        Ok(Column { name, kind })
    };
    rows.into_iter().map(column).collect()
}

fn names(columns: &[Column]) -> String {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    names.join(", ")
}

/// Reads a table of SQLite, and writes it where it is copied to.
async fn read_sqlite(
    from: &mut SqliteConnection,
    to: Option<&mut PgConnection>,
    table: &str,
    columns: &[Column],
    mut tell: impl FnMut(u64),
) -> Result<TableSum, StoreError> {
    let names = names(columns);
    let page = format!("SELECT {names}, rowid AS place FROM {table} WHERE rowid > ?1 ORDER BY rowid LIMIT ?2");
    let mut copy = match to {
        Some(to) => Some(to.copy_in_raw(&format!("COPY {table} ({names}) FROM STDIN")).await?),
        None => None,
    };
    let (mut sum, mut place) = (TableSum::default(), i64::MIN);
    loop {
        tell(sum.rows);
        let rows = sqlx::query(AssertSqlSafe(page.clone()))
            .bind(place)
            .bind(PAGE)
            .fetch_all(&mut *from)
            .await?;
        let Some(last) = rows.last() else { break };
        place = last.try_get("place")?;
        let mut lines = String::new();
        for row in &rows {
            let cells = columns
                .iter()
                .enumerate()
                .map(|(at, column)| Cell::of_sqlite(row, at, column.kind));
            let cells: Vec<Cell> = cells.collect::<sqlx::Result<_>>()?;
            sum.add(&cells);
            for (at, cell) in cells.iter().enumerate() {
                if at > 0 {
                    lines.push('\t');
                }
                cell.copy_into(&mut lines);
            }
            lines.push('\n');
        }
        if let Some(copy) = &mut copy {
            named(copy.send(lines.into_bytes()).await.map(drop))?;
        }
    }
    if let Some(copy) = copy {
        named(copy.finish().await)?;
    }
    Ok(sum)
}

/// Reads a table of PostgreSQL, within the transaction.
async fn sum_of_postgres(on: &mut PgConnection, table: &str, columns: &[Column]) -> Result<TableSum, StoreError> {
    let names = names(columns);
    on.execute(AssertSqlSafe(format!(
        "DECLARE reader NO SCROLL CURSOR FOR SELECT {names} FROM {table}"
    )))
    .await?;
    let mut sum = TableSum::default();
    loop {
        let rows = sqlx::query(AssertSqlSafe(format!("FETCH {PAGE} FROM reader"))).persistent(false);
        let rows = named(rows.fetch_all(&mut *on).await)?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let cells = columns
                .iter()
                .enumerate()
                .map(|(at, column)| Cell::of_postgres(row, at, column.kind));
            sum.add(&cells.collect::<sqlx::Result<Vec<_>>>()?);
        }
    }
    on.execute("CLOSE reader").await?;
    Ok(sum)
}
