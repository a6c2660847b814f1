//! Several servers that share one PostgreSQL: each project is at home on one of them, any answers what is asked of it, and what one leaves
//! another takes up.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver as _;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{SOON, Server, bare_project, options, pause};

/// As long as another server needs to take over, and some.
const TAKE_OVER: Duration = Duration::from_secs(30);

/// A database, and servers that work with it.
struct House {
    url: String,
    first: Option<Arc<tempfile::TempDir>>,
}

impl House {
    fn new() -> Self {
        Self {
            url: hearth_test_postgres::shared().database(),
            first: None,
        }
    }

    async fn begin(&mut self) -> (Server, FakeDriver) {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        // The key that all secrets of the database are sealed with, and a token.
        if let Some(first) = &self.first {
            std::fs::create_dir(folder.path().join("data")).unwrap();
            for name in ["secret.key", "admin-token"] {
                let of = |folder: &tempfile::TempDir| folder.path().join("data").join(name);
                std::fs::copy(of(first), of(&folder)).unwrap();
            }
        }
        let driver = FakeDriver::new(1, FakeOptions::default());
        let mut options = options(folder.path());
        options.provision_concurrency = 4;
        options.database = Some(self.url.parse().unwrap());
        let server = Server::with_vms(&folder, &options, &driver).await.unwrap();
        self.first.get_or_insert(folder);
        (server, driver)
    }
}

/// The servers by whether they are alive, as one of them says it.
async fn alive(server: &Server) -> Vec<bool> {
    let servers = server.get("/servers").await;
    let items = servers["items"].as_array().unwrap().iter();
    items.map(|item| item["alive"] == true).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn any_server_answers_for_all_and_what_one_leaves_another_takes_up() {
    let mut house = House::new();
    let (one, _one_vms) = house.begin().await;
    let (other, other_vms) = house.begin().await;
    assert_eq!(alive(&one).await, [true, true]);
    // Projects are spread, and each is asked through the server that is not its home.
    let mut projects = Vec::new();
    for at in 0..4 {
        let asked = if at % 2 == 0 { &one } else { &other };
        let id = asked.project(bare_project()).await;
        let pool = format!("{id}/warm-pool");
        let (status, body) = asked
            .call(Method::PATCH, &pool, json!({ "enabled": true, "targetSize": 2 }))
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        projects.push((id, pool));
    }
    for (id, _) in &projects {
        one.until_full(SOON, id, 2).await;
        other.until_full(SOON, id, 2).await;
    }
    let servers = one.get("/servers").await;
    let pools: Vec<&Value> = servers["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["pools"])
        .collect();
    assert_eq!(pools, [&json!(2), &json!(2)]);
    let mut claims = Vec::new();
    for (at, (_, pool)) in projects.iter().enumerate() {
        let (body, claim) = (json!({ "taskId": format!("T-{at}") }), format!("{pool}/claim"));
        let (by_one, by_other) = tokio::join!(
            one.call(Method::POST, &claim, body.clone()),
            other.call(Method::POST, &claim, body),
        );
        // One claim, whichever way it is asked for.
        assert_eq!(
            (by_one.0, by_other.0),
            (StatusCode::OK, StatusCode::OK),
            "{by_one:?} {by_other:?}"
        );
        assert_eq!(by_one.1["id"], by_other.1["id"]);
        claims.push(by_one.1["id"].as_str().unwrap().to_owned());
    }
    // What is done in a VM is done on its server.
    for id in &claims {
        for server in [&one, &other] {
            let ran = server
                .post(&format!("/instances/{id}/exec"), json!({ "command": "echo here" }))
                .await;
            assert_eq!(ran["exitCode"], 0, "{ran}");
        }
    }

    // One ends. Its pools get the other's home, and are filled there.
    let (folder, other_options) = other.stop().await;
    let deadline = Instant::now() + TAKE_OVER;
    for (_, pool) in &projects {
        let took = loop {
            let (status, body) = one
                .call(
                    Method::POST,
                    &format!("{pool}/claim"),
                    json!({ "taskId": "after", "waitMs": 5000 }),
                )
                .await;
            if status == StatusCode::OK {
                break body;
            }
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
            assert!(Instant::now() < deadline, "{body}");
            pause().await;
        };
        assert!(!claims.contains(&took["id"].as_str().unwrap().to_owned()));
    }
    // A VM of the one that is gone is said to be there, and stays its claim's; what is about its row alone is still done.
    for id in &claims {
        let (status, body) = one
            .call(
                Method::POST,
                &format!("/instances/{id}/exec"),
                json!({ "command": "true" }),
            )
            .await;
        let message = body["error"]["message"].as_str().unwrap_or_default();
        let is_silent = status == StatusCode::SERVICE_UNAVAILABLE && message.contains("has not been heard of since");
        assert!(status == StatusCode::OK || is_silent, "{status} {body}");
        let (status, body) = one
            .call(Method::POST, &format!("/instances/{id}/heartbeat"), json!({}))
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    // It is back: its claimed VMs are reached again, and its ready ones go, for their pools are at home elsewhere.
    let other = Server::with_vms(&folder, &other_options, &other_vms).await.unwrap();
    for id in &claims {
        let ran = one
            .post(&format!("/instances/{id}/exec"), json!({ "command": "echo back" }))
            .await;
        assert_eq!(ran["exitCode"], 0, "{ran}");
    }
    let deadline = Instant::now() + SOON;
    while other_vms.list().await.unwrap().len() > claims.len() {
        assert!(Instant::now() < deadline, "{:?}", other_vms.list().await);
        pause().await;
    }
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn pool_moves_where_a_person_says_and_a_server_with_another_key_is_refused() {
    let mut house = House::new();
    let (one, _) = house.begin().await;
    let (other, _) = house.begin().await;
    let id = one.project(bare_project()).await;
    let pool = format!("{id}/warm-pool");
    one.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    one.until_full(SOON, &id, 1).await;
    let servers = one.get("/servers").await;
    let items = servers["items"].as_array().unwrap();
    let free = items.iter().find(|item| item["pools"] == 0).unwrap()["id"].clone();
    let moved = one.put(&format!("{pool}/home"), json!({ "server": free })).await;
    let now = moved["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["id"] == free)
        .unwrap();
    assert_eq!(now["pools"], 1);
    // The new home has its own VM, and the old one's goes.
    let deadline = Instant::now() + SOON;
    loop {
        let servers = one.get("/servers").await;
        let count = |item: &Value| (item["id"] == free, item["vms"].as_u64().unwrap());
        let mut counts: Vec<_> = servers["items"].as_array().unwrap().iter().map(count).collect();
        counts.sort_unstable();
        if counts == [(false, 0), (true, 1)] {
            break;
        }
        assert!(Instant::now() < deadline, "{servers}");
        pause().await;
    }
    let (status, body) = one
        .call(Method::PUT, &format!("{pool}/home"), json!({ "server": "srv_nobody" }))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");

    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.database = Some(house.url.parse().unwrap());
    let driver = FakeDriver::new(1, FakeOptions::default());
    let refused = Server::with_vms(&folder, &options, &driver).await.err().unwrap();
    assert!(refused.to_string().contains("copy that file"), "{refused}");
    one.stop().await;
    other.stop().await;
}
