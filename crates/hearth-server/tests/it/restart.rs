//! A server that ends in the middle: the next one continues, and nothing is left over or lost.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeOptions};
use hearth_server::ServeError;
use serde_json::json;

use crate::harness::{SOON, Server};

#[tokio::test]
async fn ready_and_claimed_instances_survive_and_half_made_ones_are_made_anew() {
    let rules = vec![ExecRule {
        takes: Duration::from_secs(600),
        times: Some(1),
        ..ExecRule::prints("slow", "")
    }];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let (project, pool) = server.full_pool(2).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await;
    server.until_full(SOON, &project, 2).await;
    server
        .patch(
            &pool,
            json!({ "targetSize": 3, "setupCommands": [{ "name": "s", "command": "slow" }] }),
        )
        .await;
    server.until(SOON, &pool, |it| it["status"]["provisioning"] == 1).await;
    // Its command has begun: only the first one takes that long.
    let runs = |it: &serde_json::Value| it["conditions"].to_string().contains("s has run for");
    server.until(SOON, &format!("{pool}/explain"), runs).await;
    let test = server.post(&format!("{pool}/test"), json!({})).await;
    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    server.until_full(SOON, &project, 3).await;
    assert_eq!(
        server.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await,
        claimed
    );
    let done = server
        .post(
            &format!("/instances/{}/exec", claimed["id"].as_str().unwrap()),
            json!({ "argv": ["x"] }),
        )
        .await;
    assert_eq!(done["exitCode"], 0);
    let detail = format!("{pool}/instances/{}", test["id"].as_str().unwrap());
    // Either it had not begun and is made now, or it says why it failed.
    let test = server.until(SOON, &detail, |it| it["status"] != "provisioning").await;
    assert!(
        test["status"] == "ready" || test["failureReason"].as_str().unwrap().contains("restarted"),
        "{test}"
    );
    let rows = server.get(&format!("{pool}/instances?limit=50")).await["items"]
        .as_array()
        .unwrap()
        .len();
    server.until(SOON, &pool, |_| true).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while driver.list().await.unwrap().len() > rows {
        assert!(tokio::time::Instant::now() < deadline, "VMs without a row are left");
        crate::harness::pause().await;
    }
}

#[tokio::test]
async fn interrupted_boots_go_on_from_what_was_frozen_as_the_same_instance() {
    let hang = ExecRule {
        takes: Duration::from_secs(3600),
        times: Some(2),
        ..ExecRule::prints("hang", "")
    };
    let rules = vec![hang];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let commands = json!([{ "name": "first", "command": "echo" }, { "name": "second", "command": "hang" }]);
    let mut boots = Vec::new();
    // A test boot in one project, the first VM of the pool in another.
    for is_test in [true, false] {
        let name = if is_test { "tested" } else { "pooled" };
        let project = server.project(json!({ "name": name })).await;
        let pool = format!("{project}/warm-pool");
        let wish = json!({ "enabled": !is_test, "targetSize": 1, "setupCommands": commands });
        server.patch(&pool, wish).await;
        if is_test {
            server.post(&format!("{pool}/test"), json!({})).await;
        }
        let runs = |it: &serde_json::Value| it["conditions"].to_string().contains("second has run for");
        server.until(SOON, &format!("{pool}/explain"), runs).await;
        let id = server.get(&format!("{pool}/instances")).await["items"][0]["id"].clone();
        boots.push(format!("{pool}/instances/{}", id.as_str().unwrap()));
    }
    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    for boot in boots {
        let record = server.until(SOON, &boot, |it| it["status"] != "provisioning").await;
        assert_eq!(record["status"], "ready", "{record:#}");
        let steps = record["steps"].as_array().unwrap();
        let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["create_vm", "ensure_server", "warm_pool_setup"]);
        assert_eq!(steps[0]["metadata"]["from"], "checkpoint");
        assert!(steps[0]["metadata"]["interruptedAt"].is_string(), "{record:#}");
        let said = steps[0]["output"].as_str().unwrap();
        assert!(said.contains("the server was restarted during this boot"), "{said}");
        let ran = &steps[2]["metadata"]["commands"];
        assert_eq!((&ran[0]["cached"], &ran[1]["name"]), (&json!(true), &json!("second")));
        assert_eq!(ran[1].get("cached"), None);
    }
}

#[tokio::test]
async fn a_boot_that_every_server_ended_in_is_given_up() {
    let hang = ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("hang", "")
    };
    let rules = vec![hang];
    let (mut server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(json!({ "name": "demo" })).await;
    let pool = format!("{project}/warm-pool");
    let body = json!({ "setupCommands": [{ "name": "it", "command": "hang" }] });
    let id = server.post(&format!("{pool}/test"), body).await["id"].clone();
    for _ in 0..4 {
        let runs = |it: &serde_json::Value| it["conditions"].to_string().contains("it has run for");
        server.until(SOON, &format!("{pool}/explain"), runs).await;
        let (folder, options) = server.stop().await;
        let again: Arc<dyn Driver> = Arc::new(driver.reopen());
        server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    }
    let path = format!("{pool}/instances/{}", id.as_str().unwrap());
    let record = server.until(SOON, &path, |it| it["status"] == "failed").await;
    assert!(
        record["failureReason"].as_str().unwrap().contains("restarted"),
        "{record}"
    );
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_refuses_to_start() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let second: Arc<dyn Driver> = Arc::new(driver.reopen());
    let folder = server.folder.clone();
    let refused = Server::start(folder, server.options.clone(), move |_| Ok(second))
        .await
        .err()
        .unwrap();
    assert!(matches!(refused, ServeError::InUse(_)), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("another Hearth server uses the data folder")
    );
}
