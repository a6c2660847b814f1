//! A server that ends in the middle: the next one goes on, and nothing is left over or lost.

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
