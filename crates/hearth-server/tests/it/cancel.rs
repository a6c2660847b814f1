//! One boot is ended by a person, and one that hangs is looked into while it runs.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guests::{vm, watchful};
use crate::harness::{SOON, Server, bare_project, pause};

/// What a record says that the first token ended.
const BY_WHOM: &str = "cancelled by default (token `first admin token`)";

/// A server on which the command `hang` never ends.
async fn hanging() -> Server {
    let rules = vec![ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("hang", "")
    }];
    let fake = FakeOptions {
        rules,
        ..FakeOptions::default()
    };
    Server::fake(fake).await.0
}

fn commands() -> Value {
    json!([{ "name": "first", "command": "echo" }, { "name": "npm ci", "command": "hang" }])
}

/// A test boot whose command hangs: its server, its pool's path and its id.
async fn hanging_boot() -> (Server, String, String) {
    let server = hanging().await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let begun = server
        .post(&format!("{pool}/test"), json!({ "setupCommands": commands() }))
        .await;
    until_it_hangs(&server, &pool).await;
    (server, pool, begun["id"].as_str().unwrap().to_owned())
}

/// Waits until the hanging command runs.
async fn until_it_hangs(server: &Server, pool: &str) {
    let works = |it: &Value| {
        let all = it["conditions"].as_array().unwrap();
        let building = all.iter().find(|one| one["type"] == "Building").unwrap();
        building["status"] == true && building["message"].as_str().unwrap().contains("npm ci has run for")
    };
    server.until(SOON, &format!("{pool}/explain"), works).await;
}

#[tokio::test]
async fn a_test_boot_that_hangs_is_ended_and_keeps_its_record_and_log() {
    let (server, pool, id) = hanging_boot().await;
    let (status, ended) = server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
    assert_eq!((status, &ended["cancelled"]), (StatusCode::OK, &json!(true)), "{ended}");
    let record = server.get(&format!("{pool}/instances/{id}")).await;
    assert_eq!(
        (&record["status"], &record["summary"]["failedStep"]),
        (&json!("failed"), &json!("warm_pool_setup"))
    );
    assert_eq!(record["failureReason"], BY_WHOM);
    let last = record["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(last["error"], BY_WHOM, "{last}");
    // What came before the hanging one stays in the entry.
    assert_eq!(last["metadata"]["commands"][0]["name"], "first");
    let deadline = tokio::time::Instant::now() + SOON;
    while server.get(&format!("{pool}/explain")).await["host"]["vms"] != 0 {
        assert!(tokio::time::Instant::now() < deadline, "the VM stays");
        pause().await;
    }
    let again = server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
    assert_eq!((again.0, &again.1["cancelled"]), (StatusCode::OK, &json!(false)));
    let record = server.get(&format!("{pool}/instances/{id}")).await;
    assert_eq!(record["failureReason"], BY_WHOM);
}

#[tokio::test]
async fn a_boot_of_the_pool_is_ended_without_counting_against_the_set_up() {
    let server = hanging().await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let enable = json!({ "enabled": true, "targetSize": 1, "setupCommands": commands() });
    server.patch(&pool, enable).await;
    until_it_hangs(&server, &pool).await;
    let making = server.get(&format!("{pool}/instances?status=provisioning")).await;
    let id = making["items"][0]["id"].as_str().unwrap().to_owned();
    let disable = json!({ "enabled": false });
    let (status, _) = server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
    assert_eq!(status, StatusCode::OK);
    // An enabled pool makes another one at once: its set-up does not count as broken.
    let others = |it: &Value| it["items"].as_array().unwrap().iter().any(|one| one["id"] != json!(id));
    server
        .until(SOON, &format!("{pool}/instances?status=provisioning"), others)
        .await;
    server.patch(&pool, disable).await;
    let record = server.get(&format!("{pool}/instances/{id}")).await;
    assert_eq!(record["failureReason"], BY_WHOM);
}

#[tokio::test]
async fn what_is_ready_or_claimed_is_not_ended_like_a_boot() {
    let server = hanging().await;
    let (_, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0]["id"].clone();
    let path = format!("/instances/{}", ready.as_str().unwrap());
    let (status, refused) = server.call(Method::DELETE, &path, json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        refused["error"]["message"].as_str().unwrap().contains("/clear"),
        "{refused}"
    );
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    let path = format!("/instances/{}", claimed["id"].as_str().unwrap());
    let (status, refused) = server.call(Method::DELETE, &path, json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        refused["error"]["message"].as_str().unwrap().contains("release"),
        "{refused}"
    );
    let nobody = server
        .call(
            Method::DELETE,
            "/instances/wpi_00000000000000000000000000000000",
            json!({}),
        )
        .await;
    assert_eq!(nobody.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_admin_may_work_in_a_vm_that_is_being_made() {
    let (server, _, id) = hanging_boot().await;
    let done = server
        .post(&format!("/instances/{id}/exec"), json!({ "argv": ["ps"] }))
        .await;
    assert_eq!(done["exitCode"], 0);
    let body = json!({ "name": "agent", "scopes": ["claim"] });
    let token = server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
    let url = format!("http://{}/api/v1/instances/{id}/exec", server.address);
    let request = reqwest::Client::new().post(url).bearer_auth(token);
    let response = request.json(&json!({ "argv": ["ps"] })).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
}

#[tokio::test]
async fn watcher_sees_which_command_runs_and_how_it_ended() {
    let (server, _, id) = hanging_boot().await;
    let follow = server.request(Method::GET, &format!("/instances/{id}/follow"));
    let watching = tokio::spawn(async move { follow.send().await.unwrap().text().await.unwrap() });
    server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
    let message = watching.await.unwrap();
    for event in ["\"status\":\"failed\"", BY_WHOM] {
        assert!(message.contains(event), "{event} is missing in {message}");
    }
}

#[tokio::test]
async fn a_test_vm_that_is_gone_says_when_and_why_where_the_documented_status_stays() {
    let server = hanging().await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let id = boot["id"].as_str().unwrap();
    let view = server.get(&format!("/instances/{id}")).await;
    assert_eq!((&view["status"], &view["vmEndedAt"]), (&json!("ready"), &json!(null)));
    let (status, ended) = server
        .call(Method::DELETE, &format!("/instances/{id}"), json!({}))
        .await;
    assert_eq!(
        (status, &ended["cancelled"]),
        (StatusCode::OK, &json!(false)),
        "{ended}"
    );
    let why = "removed by default (token `first admin token`)";
    let view = server.get(&format!("/instances/{id}")).await;
    assert_eq!(
        (&view["status"], &view["vmEndedBecause"]),
        (&json!("ready"), &json!(why))
    );
    assert!(view["vmEndedAt"].is_string());
    let message = server.get(&format!("{pool}/explain")).await["instances"][0].clone();
    assert_eq!(
        (&message["vmEndedAt"], &message["vmEndedBecause"]),
        (&view["vmEndedAt"], &json!(why))
    );
    let detail = server.get(&format!("{pool}/instances/{id}")).await;
    assert_eq!(detail["status"], "ready");
    assert!(detail.get("vmEndedAt").is_none(), "{detail}");
    let exec = server.request(Method::POST, &format!("/instances/{id}/exec"));
    let (status, refused) = server.send(exec.json(&json!({ "argv": ["x"] }))).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(refused["error"]["message"].as_str().unwrap().contains(why), "{refused}");
}

#[tokio::test]
async fn a_test_vm_that_ends_by_itself_says_so_where_the_documented_status_stays() {
    let (server, driver) = watchful(FakeOptions {
        rules: vec![ExecRule::fails("boom", 3, "no")],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    for (command, status) in [("true", "ready"), ("boom", "failed")] {
        let commands = json!({ "setupCommands": [{ "name": "c", "command": command }] });
        let boot = server.test_boot(SOON, &project, commands).await;
        assert_eq!(boot["status"], status, "{boot}");
        assert!(driver.power_off(&vm(&boot)));
        let id = boot["id"].as_str().unwrap();
        let view = server
            .until(SOON, &format!("/instances/{id}"), |it| it["vmEndedAt"].is_string())
            .await;
        assert_eq!(view["status"], status);
        assert!(
            view["vmEndedBecause"].as_str().unwrap().contains("ended by itself"),
            "{view}"
        );
        let explained = server.get(&format!("{project}/warm-pool/explain")).await;
        let mut all = explained["instances"].as_array().unwrap().iter();
        let counted = all.find(|it| it["id"] == id).unwrap();
        assert_eq!(counted["memoryMib"], 0, "{counted}");
    }
}
