//! What is PostgreSQL's alone: several servers, one that is away, and a store that comes from SQLite.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::contract_tests::{project, ready, take};
use super::testing::{Database, Kind};
use super::{CopyError, EventFilter, PostgresUrl, RunOn as _, Store, StoreError, Taken, copy_to_postgres, db};
use crate::seal::tests::NoVariables;

/// How long something may take that needs no more than the other side to notice.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn servers_that_start_together_migrate_once_and_one_of_them_has_it_alone() {
    let database = Database::new(Kind::Postgres);
    let opening: Vec<_> = (0..6)
        .map(|_| {
            let url = database.url().clone();
            tokio::spawn(async move { Store::connect(&url, Arc::new(NoVariables), None).await })
        })
        .collect();
    let mut stores = Vec::new();
    for opened in opening {
        stores.push(opened.await.unwrap().unwrap());
    }
    let alone = database.url().hold_alone().await.unwrap();
    assert!(alone.is_some());
    assert!(database.url().hold_alone().await.unwrap().is_none());
    drop(alone);
    let next = database.url().hold_alone().await.unwrap();
    assert!(next.is_some());
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn change_of_one_server_wakes_another() {
    let database = Database::new(Kind::Postgres);
    let (one, other) = (database.open().await, database.open().await);
    let mut elsewhere = other.elsewhere().unwrap();
    let mut written = other.events_written();
    // The first says that it hears from now on.
    tokio::time::timeout(SOON, elsewhere.changed()).await.unwrap();
    let project = project(&one, "web").await;
    written.mark_unchanged();
    ready(&one, &project, 1).await;
    tokio::time::timeout(SOON, elsewhere.changed()).await.unwrap();
    tokio::time::timeout(SOON, written.changed()).await.unwrap().unwrap();
    assert_eq!(other.events_after(EventFilter::default(), 0, 9).await.unwrap().len(), 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn postgresql_that_is_away_is_said_to_be_and_is_used_again_when_it_is_back() {
    let cluster = hearth_test_postgres::Postgres::start();
    let url: PostgresUrl = cluster.database().parse().unwrap();
    let store = Store::connect(&url, Arc::new(NoVariables), None).await.unwrap();
    let alone = url.hold_alone().await.unwrap().unwrap();
    let mut elsewhere = store.elsewhere().unwrap();
    tokio::time::timeout(SOON, elsewhere.changed()).await.unwrap();
    let project = project(&store, "web").await;
    ready(&store, &project, 2).await;
    assert!(matches!(take(&store, &project, Some("T-1")).await, Taken::Instance(..)));
    cluster.end();
    let away = store.ping().await.unwrap_err();
    assert!(away.is_away(), "{away}");
    assert!(away.to_string().starts_with("PostgreSQL does not answer: "), "{away}");
    let away = store.retry_pool(&project, Timestamp::now()).await.unwrap_err();
    assert!(away.is_away(), "{away}");
    cluster.begin();
    let deadline = Instant::now() + SOON;
    while let Err(error) = store.ping().await {
        assert!(error.is_away() && Instant::now() < deadline, "{error}");
    }
    // What was answered is still so, what was not can be done now, and others are heard again.
    assert!(matches!(take(&store, &project, Some("T-1")).await, Taken::Before));
    assert!(store.retry_pool(&project, Timestamp::now()).await.unwrap());
    assert!(matches!(take(&store, &project, Some("T-2")).await, Taken::Instance(..)));
    tokio::time::timeout(SOON, elsewhere.changed()).await.unwrap();
    // The lock is taken again on a new connection.
    let deadline = Instant::now() + SOON;
    while url.hold_alone().await.unwrap().is_some() {
        assert!(Instant::now() < deadline);
    }
    drop(alone);
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn server_whose_lock_another_one_took_meanwhile_is_told() {
    let database = Database::new(Kind::Postgres);
    let other = database.open().await;
    let alone = database.url().hold_alone().await.unwrap().unwrap();
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()";
    let cut: i64 = db::query_scalar(cut).fetch_one(&other.read).await.unwrap();
    assert_eq!(cut, 1);
    let other = database.url().hold_alone().await.unwrap();
    assert!(other.is_some());
    tokio::time::timeout(SOON, alone.lost()).await.unwrap();
}

/// A store in SQLite with something in every table.
async fn full_store(file: &Path) {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .foreign_keys(false);
    let mut older = options.connect().await.unwrap();
    sqlx::raw_sql(include_str!("released/0023.sql"))
        .execute(&mut older)
        .await
        .unwrap();
    older.close().await.unwrap();
    let store = Store::open(file, Arc::new(NoVariables), None).await.unwrap();
    store.meta_or_insert("installation", "this-one").await.unwrap();
    let project = project(&store, "Tab\tand\nline \\ and 'quote' Ünicode").await;
    // More than one page.
    ready(&store, &project, 700).await;
    take(&store, &project, Some("T-1")).await;
    for statement in [
        "INSERT INTO tip VALUES ('acme', '', 'https://h/app', 'main', 'a1', 10)",
        "INSERT INTO credential VALUES ('prj_a1111111', 'h', 'token', NULL, 1, NULL, x'00ff0a5c', 1, NULL)",
        "INSERT INTO claim_history VALUES ('wpi_9', 'prj_a1111111', 1, NULL, NULL, NULL, NULL, 'ready', NULL, 3, 0.1, 'r')",
        "INSERT INTO boot_history VALUES ('wpi_9', 'prj_a1111111', 'pool', 'r', 1, 'nul ' || char(0) || ' in it', 2, 'ready', NULL, NULL, NULL, x'0102')",
        "INSERT INTO checkpoint_fault VALUES ('k', NULL, 'broken', 5), ('k', NULL, 'broken', 5)",
        "INSERT INTO audit (at, tenant, token_id, token_name, owner, operation, status) VALUES (1, 'acme', 't', 't', 'o', 'op', 200)",
        "INSERT INTO webhook VALUES ('wh_1', 'acme', NULL, 'https://r', NULL, x'01', 0, 1)",
        "INSERT INTO webhook_delivery VALUES ('dl_1', 'wh_1', 1, 'k', '{}', 'failed', 1, NULL, NULL, NULL, 1)",
        "INSERT INTO stopped_vm VALUES ('vm-1', '')",
    ] {
        db::query(statement).run_on(&store.write).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn store_of_sqlite_is_copied_whole_compared_and_copied_but_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    full_store(&file).await;
    let database = Database::new(Kind::Postgres);
    let mut last = None;
    let copied = copy_to_postgres(&file, database.url(), |progress| last = Some(progress))
        .await
        .unwrap();
    let progress = last.unwrap();
    assert_eq!(progress.done, progress.all);
    let rows = |name| copied.iter().find(|table| table.name == name).unwrap().sum.rows;
    assert_eq!(
        (rows("boot_history"), rows("checkpoint_fault"), rows("webhook_delivery")),
        (1, 2, 1)
    );
    assert!(rows("event") > 1400, "{}", rows("event"));
    // Once more, as after an interruption at the very end: it is found there.
    assert_eq!(copy_to_postgres(&file, database.url(), |_| {}).await.unwrap(), copied);

    let (before, after) = (
        Store::open(&file, Arc::new(NoVariables), None).await.unwrap(),
        database.open().await,
    );
    let all = async |store: &Store| {
        let projects = store.all_projects().await.unwrap();
        let projects: Vec<_> = projects.into_iter().map(|project| project.to_view()).collect();
        let events = store.events_after(EventFilter::default(), 0, 5000).await.unwrap();
        (projects, events, store.event_span().await.unwrap())
    };
    let (was, is) = (all(&before).await, all(&after).await);
    assert_eq!((was.0, was.2), (is.0, is.2));
    assert_eq!(was.1, is.1);
    // Ids continue after those that were copied.
    let new = project(&after, "new").await;
    ready(&after, &new, 1).await;
    assert_eq!(after.event_span().await.unwrap().newest, is.2.newest + 2);
    // From now on it is another store than SQLite's.
    let refused = copy_to_postgres(&file, database.url(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, CopyError::Taken), "{refused}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn database_with_another_store_is_not_copied_to_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    full_store(&file).await;
    let database = Database::new(Kind::Postgres);
    let other = database.open().await;
    project(&other, "web").await;
    let refused = copy_to_postgres(&file, database.url(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, CopyError::Taken), "{refused}");
    assert_eq!(other.all_projects().await.unwrap().len(), 1);
    let nowhere = "postgres://hearth@localhost/x?host=/nowhere".parse().unwrap();
    let refused = copy_to_postgres(&file, &nowhere, |_| {}).await.unwrap_err();
    assert!(
        matches!(&refused, CopyError::Store(error) if StoreError::is_away(error)),
        "{refused}"
    );
}
