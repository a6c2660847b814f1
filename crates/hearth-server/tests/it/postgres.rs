//! A server whose store is in PostgreSQL: which folder and database go together, what it says while PostgreSQL is away, and a store that
//! moves there from SQLite.

use std::sync::Arc;

use hearth_drivers::Driver as _;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::{MoveError, ServeError, move_store};
use hearth_test_postgres::Postgres;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, options, pause};

fn folder() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn requests_are_refused_with_a_sentence_while_postgresql_is_away_and_nothing_is_lost() {
    let cluster = Postgres::start();
    let (folder, driver) = (folder(), FakeDriver::new(1, FakeOptions::default()));
    let mut options = options(folder.path());
    options.database = Some(cluster.database().parse().unwrap());
    let server = Server::with_vms(&folder, &options, &driver).await.unwrap();
    let (_, pool) = server.full_pool(2).await;
    let claim = format!("{pool}/claim");
    let first = server.post(&claim, json!({ "taskId": "T-1" })).await;
    cluster.end();
    let (status, body) = server.call(Method::POST, &claim, json!({ "taskId": "T-2" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("nothing is lost: see that PostgreSQL runs"),
        "{message}"
    );
    cluster.begin();
    let deadline = tokio::time::Instant::now() + SOON;
    let second = loop {
        let (status, body) = server.call(Method::POST, &claim, json!({ "taskId": "T-2" })).await;
        if status == StatusCode::OK {
            break body;
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(tokio::time::Instant::now() < deadline, "{body}");
        pause().await;
    };
    assert_ne!(first["id"], second["id"]);
    // What was answered before is answered so again, and the pool is filled again by itself.
    let again = server.post(&claim, json!({ "taskId": "T-1" })).await;
    assert_eq!(first["id"], again["id"]);
    let full = |pool: &Value| pool["status"]["ready"] == 2;
    server.until(SOON, &pool, full).await;
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn folder_and_database_that_do_not_belong_together_are_refused() {
    let (one, other) = (folder(), folder());
    let driver = FakeDriver::new(1, FakeOptions::default());
    let url = hearth_test_postgres::shared().database();
    let with = |folder: &Arc<tempfile::TempDir>, url: Option<&str>| {
        let mut options = options(folder.path());
        options.database = url.map(|url| url.parse().unwrap());
        options
    };
    let server = Server::with_vms(&one, &with(&one, Some(&url)), &driver).await.unwrap();
    let second = Server::with_vms(&other, &with(&other, Some(&url)), &driver)
        .await
        .err()
        .unwrap();
    assert!(second.to_string().contains("copy that file"), "{second}");
    server.stop().await;
    // SQLite would begin with nothing.
    let forgotten = Server::with_vms(&one, &with(&one, None), &driver).await.err().unwrap();
    assert!(
        matches!(&forgotten, ServeError::StoreElsewhere(there) if url.starts_with(there.split('?').next().unwrap()))
    );
    assert!(!one.path().join("data/hearth.db").exists());
    // And so would another database.
    let empty = hearth_test_postgres::shared().database();
    let other_store = Server::with_vms(&one, &with(&one, Some(&empty)), &driver)
        .await
        .err()
        .unwrap();
    assert!(matches!(other_store, ServeError::OtherStore), "{other_store}");
    Server::with_vms(&one, &with(&one, Some(&url)), &driver)
        .await
        .unwrap()
        .stop()
        .await;
    // And PostgreSQL without what is in SQLite.
    let third = folder();
    Server::with_vms(&third, &with(&third, None), &driver)
        .await
        .unwrap()
        .stop()
        .await;
    let refused = Server::with_vms(&third, &with(&third, Some(&url)), &driver)
        .await
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("`hearth store move --to URL`"),
        "{refused}"
    );
    let nowhere = "postgres://hearth:s3cret@localhost/x?host=/nowhere";
    let away = Server::with_vms(&other, &with(&other, Some(nowhere)), &driver)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        away.starts_with("PostgreSQL does not answer") && !away.contains("s3cret"),
        "{away}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn store_that_moves_to_postgresql_keeps_claims_pools_and_vms() {
    let (folder, driver) = (folder(), FakeDriver::new(1, FakeOptions::default()));
    let mut options = options(folder.path());
    options.database = None;
    let url = hearth_test_postgres::shared().database().parse().unwrap();
    let server = Server::with_vms(&folder, &options, &driver).await.unwrap();
    let (project, pool) = server.full_pool(3).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({ "taskId": "T-1" })).await;
    server.until_full(SOON, &project, 3).await;
    let instances = server.get(&format!("{pool}/instances")).await;
    let running = move_store(&options.data_dir, &url, |_| {}).await.unwrap_err();
    assert!(matches!(running, MoveError::Folder(ServeError::InUse(_))), "{running}");
    server.stop().await;
    let before = driver.list().await.unwrap().len();

    let moved = move_store(&options.data_dir, &url, |_| {}).await.unwrap();
    assert!(moved.iter().any(|table| table.name == "claim" && table.sum.rows == 1));
    let data = &options.data_dir;
    assert!(!data.join("hearth.db").exists() && data.join("hearth.db.moved").exists());
    let twice = move_store(data, &url, |_| {}).await.unwrap_err();
    assert!(matches!(twice, MoveError::NoStore(_)), "{twice}");
    // As if it had been interrupted just before its end.
    std::fs::rename(data.join("hearth.db.moved"), data.join("hearth.db")).unwrap();
    assert_eq!(move_store(data, &url, |_| {}).await.unwrap(), moved);

    options.database = Some(url);
    let server = Server::with_vms(&folder, &options, &driver).await.unwrap();
    assert_eq!(server.get(&format!("{pool}/instances")).await, instances);
    let again = server.post(&format!("{pool}/claim"), json!({ "taskId": "T-1" })).await;
    assert_eq!(again["id"], claimed["id"]);
    server.until_full(SOON, &project, 3).await;
    assert_eq!(driver.list().await.unwrap().len(), before);
    server.stop().await;
}
