//! How a statement is run, on SQLite and on PostgreSQL. The store writes each one once, with `$1`, `$2`, … for what is bound; the values
//! are kept here until it is known where they go, and rows are read by the same `FromRow` from both. Where the databases speak differently,
//! `dialect.rs` has the words.

use std::borrow::Cow;
use std::marker::PhantomData;

use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Arguments as _, FromRow, Postgres, SqlSafeStr, SqlStr, Sqlite, Transaction};

use super::away::named;
use super::dialect::Dialect;

/// Connections to one database.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction on one of its connections.
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// What a statement is run on.
pub(crate) enum On<'c> {
    SqlitePool(&'c SqlitePool),
    Sqlite(&'c mut SqliteConnection),
    PostgresPool(&'c PgPool),
    Postgres(&'c mut PgConnection),
}

impl Pool {
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => named(tx.commit().await),
        }
    }
}

impl<'c> From<&'c Pool> for On<'c> {
    fn from(pool: &'c Pool) -> Self {
        match pool {
            Pool::Sqlite(pool) => Self::SqlitePool(pool),
            Pool::Postgres(pool) => Self::PostgresPool(pool),
        }
    }
}

impl<'c> From<&'c mut Tx> for On<'c> {
    fn from(tx: &'c mut Tx) -> Self {
        match tx {
            Tx::Sqlite(tx) => Self::Sqlite(tx),
            Tx::Postgres(tx) => Self::Postgres(tx),
        }
    }
}

impl<'c> From<&'c mut SqliteConnection> for On<'c> {
    fn from(connection: &'c mut SqliteConnection) -> Self {
        Self::Sqlite(connection)
    }
}

impl<'c> From<&'c mut PgConnection> for On<'c> {
    fn from(connection: &'c mut PgConnection) -> Self {
        Self::Postgres(connection)
    }
}

/// Something that is bound.
pub(crate) enum Value<'q> {
    Int(Option<i64>),
    Bool(Option<bool>),
    Real(Option<f64>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
}

/// What can be bound.
pub(crate) trait Bind<'q> {
    fn value(self) -> Value<'q>;
    /// Nothing of this type: PostgreSQL wants to know of what.
    fn null() -> Value<'q>;
}

macro_rules! bind {
    ($($type:ty => $kind:ident: $make:expr;)+) => {$(
        impl<'q> Bind<'q> for $type {
            fn value(self) -> Value<'q> {
                Value::$kind(Some($make(self)))
            }
            fn null() -> Value<'q> {
                Value::$kind(None)
            }
        }
    )+};
}

bind! {
    i64 => Int: |value| value;
    &'q i64 => Int: |value: &i64| *value;
    u32 => Int: i64::from;
    &'q u32 => Int: |value: &u32| i64::from(*value);
    bool => Bool: |value| value;
    f64 => Real: |value| value;
    &'q str => Text: Cow::Borrowed;
    String => Text: Cow::Owned;
    &'q String => Text: |value: &'q String| Cow::Borrowed(value.as_str());
    Cow<'q, str> => Text: |value| value;
    &'q [u8] => Bytes: Cow::Borrowed;
    Vec<u8> => Bytes: Cow::Owned;
    &'q Vec<u8> => Bytes: |value: &'q Vec<u8>| Cow::Borrowed(value.as_slice());
}

impl<'q, T: Bind<'q>> Bind<'q> for Option<T> {
    fn value(self) -> Value<'q> {
        self.map_or_else(T::null, T::value)
    }
    fn null() -> Value<'q> {
        T::null()
    }
}

impl<'q, T> Bind<'q> for &'q Option<T>
where
    &'q T: Bind<'q>,
{
    fn value(self) -> Value<'q> {
        self.as_ref().value()
    }
    fn null() -> Value<'q> {
        <&'q T as Bind<'q>>::null()
    }
}

/// PostgreSQL has no room for a NUL in a text. What a guest says may have one.
pub(crate) fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        text
    }
}

fn for_sqlite(values: Vec<Value<'_>>) -> sqlx::Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(values.len(), 0);
    for value in values {
        let added = match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Real(value) => arguments.add(value),
            Value::Text(Some(Cow::Borrowed(value))) => arguments.add(value),
            Value::Text(value) => arguments.add(value.map(Cow::into_owned)),
            Value::Bytes(Some(Cow::Borrowed(value))) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value.map(Cow::into_owned)),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn for_postgres(values: Vec<Value<'_>>) -> sqlx::Result<PgArguments> {
    let mut arguments = PgArguments::default();
    arguments.reserve(values.len(), 0);
    for value in values {
        let added = match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Real(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value.map(without_nul)),
            Value::Bytes(value) => arguments.add(value.as_deref()),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// A statement with what is bound to it.
#[must_use]
pub(crate) struct Query<'q> {
    sql: SqlStr,
    values: Vec<Value<'q>>,
}

/// How many rows a statement wrote.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done(u64);

impl Done {
    pub(crate) fn rows_affected(self) -> u64 {
        self.0
    }
}

/// A statement.
pub(crate) fn query<'q>(sql: impl SqlSafeStr) -> Query<'q> {
    Query {
        sql: sql.into_sql_str(),
        values: Vec::new(),
    }
}

impl<'q> Query<'q> {
    pub(crate) fn bind(mut self, value: impl Bind<'q>) -> Self {
        self.values.push(value.value());
        self
    }

    pub(crate) async fn execute<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Done> {
        let on = on.into();
        let Self { sql, values } = self;
        let rows = match on {
            On::SqlitePool(_) | On::Sqlite(_) => {
                let query = sqlx::query_with(sql, for_sqlite(values)?);
                match on {
                    On::SqlitePool(pool) => query.execute(pool).await?,
                    On::Sqlite(connection) => query.execute(connection).await?,
                    _ => return Err(sqlx::Error::WorkerCrashed),
                }
                .rows_affected()
            }
            On::PostgresPool(pool) => {
                let query = sqlx::query_with(sql, for_postgres(values)?);
                named(query.execute(pool).await)?.rows_affected()
            }
            On::Postgres(connection) => {
                let query = sqlx::query_with(sql, for_postgres(values)?);
                named(query.execute(connection).await)?.rows_affected()
            }
        };
        Ok(Done(rows))
    }
}

/// A row that is read alike from both.
pub(crate) trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin> Row for T {}

/// A statement whose rows are read as this type.
#[must_use]
pub(crate) struct QueryAs<'q, T> {
    query: Query<'q>,
    row: PhantomData<fn() -> T>,
}

/// A statement of whose rows the first column is read.
#[must_use]
pub(crate) struct QueryScalar<'q, T>(QueryAs<'q, (T,)>);

pub(crate) fn query_as<'q, T>(sql: impl SqlSafeStr) -> QueryAs<'q, T> {
    QueryAs {
        query: query(sql),
        row: PhantomData,
    }
}

pub(crate) fn query_scalar<'q, T>(sql: impl SqlSafeStr) -> QueryScalar<'q, T> {
    QueryScalar(query_as(sql))
}

/// Runs a statement by this method of sqlx, wherever it is run.
macro_rules! fetch {
    ($self:ident, $on:ident, $method:ident) => {{
        let Query { sql, values } = $self.query;
        match $on.into() {
            On::SqlitePool(pool) => sqlx::query_as_with(sql, for_sqlite(values)?).$method(pool).await,
            On::Sqlite(connection) => sqlx::query_as_with(sql, for_sqlite(values)?).$method(connection).await,
            On::PostgresPool(pool) => named(sqlx::query_as_with(sql, for_postgres(values)?).$method(pool).await),
            On::Postgres(connection) => named(
                sqlx::query_as_with(sql, for_postgres(values)?)
                    .$method(connection)
                    .await,
            ),
        }
    }};
}

impl<'q, T: Row> QueryAs<'q, T> {
    pub(crate) fn bind(mut self, value: impl Bind<'q>) -> Self {
        self.query = self.query.bind(value);
        self
    }

    pub(crate) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Vec<T>> {
        fetch!(self, on, fetch_all)
    }

    pub(crate) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<T> {
        fetch!(self, on, fetch_one)
    }

    pub(crate) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Option<T>> {
        fetch!(self, on, fetch_optional)
    }
}

impl<'q, T> QueryScalar<'q, T>
where
    (T,): Row,
{
    pub(crate) fn bind(self, value: impl Bind<'q>) -> Self {
        Self(self.0.bind(value))
    }

    pub(crate) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Vec<T>> {
        Ok(self.0.fetch_all(on).await?.into_iter().map(|(value,)| value).collect())
    }

    pub(crate) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<T> {
        Ok(self.0.fetch_one(on).await?.0)
    }

    pub(crate) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Option<T>> {
        Ok(self.0.fetch_optional(on).await?.map(|(value,)| value))
    }
}
