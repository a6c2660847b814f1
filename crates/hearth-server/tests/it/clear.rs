//! `clear`, and large or odd configurations.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project};

fn ids(list: &Value, status: &str) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    let of = items.filter(|item| item["status"] == status);
    of.map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn clear_takes_what_is_made_and_what_is_ready_and_leaves_what_is_claimed() {
    let hangs = ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("hang", "")
    };
    let (server, driver) = Server::fake(FakeOptions {
        no_checkpoints: true,
        ..FakeOptions::default()
    })
    .await;
    let (project, pool) = server.full_pool(3).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    server.until_full(SOON, &project, 3).await;
    // From here on every boot hangs in its set-up; the two ready ones are stale, and of the three more that a larger pool wants
    // one is tried first.
    server.patch(&pool, json!({ "targetSize": 2 })).await;
    server.until_full(SOON, &project, 2).await;
    driver.add_rule(hangs);
    let commands = json!([{ "name": "hang", "command": "hang" }]);
    server
        .patch(&pool, json!({ "targetSize": 5, "setupCommands": commands }))
        .await;
    let list = format!("{pool}/instances?limit=50");
    let before = server
        .until(SOON, &list, |list| {
            ids(list, "provisioning").len() == 1 && ids(list, "ready").len() == 2
        })
        .await;
    let (making, ready) = (ids(&before, "provisioning"), ids(&before, "ready"));
    let reply = server
        .post(&format!("{pool}/clear"), json!({ "replenish": true }))
        .await;
    assert_eq!(reply["cleared"], making.len() + ready.len());
    for id in making.iter().chain(&ready) {
        let (status, _) = server
            .call(Method::GET, &format!("{pool}/instances/{id}"), json!({}))
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let after = server
        .until(SOON, &list, |list| ids(list, "provisioning").len() >= making.len())
        .await;
    assert!(ids(&after, "provisioning").iter().all(|id| !making.contains(id)));
    assert_eq!(ids(&after, "claimed"), [claimed["id"].as_str().unwrap()]);
    let done = json!({ "command": "true" });
    server
        .post(&format!("/instances/{}/exec", claimed["id"].as_str().unwrap()), done)
        .await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let (status, reply) = server
        .call(Method::POST, &format!("{pool}/clear"), json!({ "replenish": true }))
        .await;
    assert_eq!(
        (status, &reply["error"]["details"][0]["path"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("replenish"))
    );
}

#[tokio::test]
async fn a_test_boot_saves_clears_or_keeps_commands_and_its_record_outlives_nothing_but_clear() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let saved = async || server.get(&pool).await["config"].clone();
    let commands = json!([{ "name": "a", "command": "true" }]);
    let boot = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands }))
        .await;
    let config = saved().await;
    assert_eq!(
        (
            &config["setupCommands"],
            &config["enabled"],
            &config["targetSize"],
            &config["maxAgeMinutes"]
        ),
        (&commands, &json!(false), &json!(1), &json!(60))
    );
    server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(saved().await["setupCommands"], commands);
    server
        .test_boot(SOON, &project, json!({ "setupCommands": null, "unknown": 1 }))
        .await;
    assert_eq!(saved().await["setupCommands"], Value::Null);
    let view = server.get(&pool).await;
    assert_eq!(view["status"], json!({ "ready": 0, "provisioning": 0, "failed": 0 }));
    assert_eq!(ids(&server.get(&format!("{pool}/instances")).await, "ready").len(), 3);
    for bad in ["cache=maybe", "cache=1"] {
        let (status, _) = server
            .call(Method::POST, &format!("{pool}/test?{bad}"), json!({}))
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
    }
    assert_eq!(server.post(&format!("{pool}/clear"), json!({})).await["cleared"], 3);
    let record = format!("{pool}/instances/{}", boot["id"].as_str().unwrap());
    assert_eq!(
        server.call(Method::GET, &record, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn each_field_alone_two_hundred_commands_and_a_hundred_kibibytes_are_kept_exactly() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let mut expected = server.patch(&pool, json!({})).await["config"].clone();
    let many: Vec<Value> = (0..200)
        .map(|at| json!({ "name": format!("größe {at} →"), "command": format!("echo {at}") }))
        .collect();
    let long = "x".repeat(100 * 1024);
    for (field, value) in [
        ("enabled", json!(true)),
        ("enabled", json!(false)),
        ("targetSize", json!(1)),
        ("targetSize", json!(20)),
        ("maxAgeMinutes", json!(30)),
        ("maxAgeMinutes", json!(180)),
        ("branch", json!("feature/ä-1")),
        ("branch", Value::Null),
        ("setupCommands", json!([])),
        ("setupCommands", json!(many)),
        (
            "setupCommands",
            json!([{ "name": "long", "command": long, "background": false }]),
        ),
        ("setupCommands", Value::Null),
    ] {
        let reply = server.patch(&pool, json!({ field: value })).await;
        expected[field] = value;
        expected["updatedAt"] = reply["config"]["updatedAt"].clone();
        assert_eq!(reply["config"], expected, "{field}");
    }
}

#[tokio::test]
async fn clear_takes_what_failed_for_a_claim_too() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    driver.add_rule(ExecRule::fails("broken", 3, "no"));
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let commands = json!([{ "name": "it", "command": "broken" }]);
    server.patch(&pool, json!({ "setupCommands": commands })).await;
    let (status, said) = server
        .call(Method::POST, &format!("{pool}/claim"), json!({ "waitMs": 20_000 }))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");
    let list = format!("{pool}/instances?limit=50");
    server.until(SOON, &list, |list| ids(list, "failed").len() == 1).await;
    let reply = server.post(&format!("{pool}/clear"), json!({})).await;
    assert_eq!((&reply["cleared"], &reply["status"]["failed"]), (&json!(1), &json!(0)));
    assert_eq!(server.get(&list).await["items"], json!([]));
}
