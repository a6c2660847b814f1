//! The history: claims and boots are found when their instances are gone, each claim that was not warm with one cause.

use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, options};

fn only(list: &Value) -> &Value {
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    &list[0]
}

async fn release(server: &Server, claim: &Value) {
    let id = claim["id"].as_str().unwrap();
    server.post(&format!("/instances/{id}/release"), json!({})).await;
}

#[tokio::test]
async fn each_claim_that_was_not_warm_has_its_one_cause() {
    let (server, _driver) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let claim = |body: Value| {
        let (server, pool) = (&server, &pool);
        async move { server.post(&format!("{pool}/claim"), body).await }
    };
    // The pool is not enabled; then its first VM takes part in nothing; then it is warm, or left alone.
    let disabled = claim(json!({ "taskId": "disabled", "waitMs": 20_000 })).await;
    release(&server, &disabled).await;
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    release(&server, &claim(json!({ "taskId": "warm", "waitMs": 20_000 })).await).await;
    release(
        &server,
        &claim(json!({ "taskId": "bypass", "miss": "bypass", "waitMs": 20_000 })).await,
    )
    .await;
    let history = server
        .until(SOON, &format!("{project}/history"), |history| {
            let claims = history["claims"].as_array().unwrap();
            claims.len() == 3 && claims.iter().all(|claim| claim["endedAt"].is_string())
        })
        .await;
    let causes: Vec<(&str, &Value)> = history["claims"]
        .as_array()
        .unwrap()
        .iter()
        .map(|claim| (claim["taskId"].as_str().unwrap(), &claim["cause"]))
        .collect();
    assert_eq!(
        causes,
        [
            ("bypass", &json!("bypass")),
            ("warm", &json!(null)),
            ("disabled", &json!("poolDisabled"))
        ]
    );
    let troubled = server.get(&format!("{project}/history?troubled=true")).await;
    assert_eq!(troubled["claims"].as_array().unwrap().len(), 2);
    let found = server.get(&format!("{project}/history?text=WARM")).await;
    let warm = only(&found["claims"]);
    assert_eq!(
        (&warm["source"], &warm["endedBecause"], &warm["owner"]),
        (&json!("ready"), &json!("it was released"), &json!("default"))
    );
    let older = format!(
        "{project}/history?before={}&limit=1",
        warm["claimedAt"].as_str().unwrap()
    );
    assert_eq!(only(&server.get(&older).await["claims"])["taskId"], "disabled");
}

#[tokio::test]
async fn a_failed_boot_is_found_with_its_log_when_it_is_gone_and_without_secrets() {
    const SECRET: &str = "s3cr3t-value-of-this-test";
    let (server, _driver) = Server::fake(FakeOptions {
        rules: vec![ExecRule::fails("die", 3, &format!("no such thing {SECRET}\n"))],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "S", "value": SECRET }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let commands = json!({ "setupCommands": [{ "name": "die", "command": "die" }] });
    let boot = server.test_boot(SOON, &project, commands).await;
    let id = boot["id"].as_str().unwrap();
    // Its log is copied a moment after it ended.
    server
        .until(SOON, &format!("{project}/history"), |it| {
            it["boots"][0]["hasLog"] == true
        })
        .await;
    server.post(&format!("{project}/warm-pool/clear"), json!({})).await;
    let path = format!("{project}/history?troubled=true");
    let history = server
        .until(SOON, &path, |it| {
            it["boots"][0]["goneAt"].is_string() && it["boots"][0]["hasLog"] == true
        })
        .await;
    let record = only(&history["boots"]);
    assert_eq!(
        (
            &record["id"],
            &record["outcome"],
            &record["purpose"],
            &record["goneBecause"]
        ),
        (
            &json!(id),
            &json!("failed"),
            &json!("test"),
            &json!("the pool was cleared")
        )
    );
    server
        .until(SOON, &format!("{project}/warm-pool/instances"), |it| {
            it["items"] == json!([])
        })
        .await;
    let kept = server.get(&format!("{project}/history/{id}")).await;
    assert_eq!(kept["steps"], boot["steps"]);
    assert!(kept["steps"].to_string().contains("no such thing"), "{kept}");
    assert!(!kept.to_string().contains(SECRET) && !history.to_string().contains(SECRET));
    let found = server.get(&format!("{project}/history?text=no+such+thing")).await;
    assert_eq!(only(&found["boots"])["id"], id);
    let other = server.project(json!({ "name": "other", "repos": [] })).await;
    let request = server.request(Method::GET, &format!("{other}/history/{id}"));
    assert_eq!(server.send(request).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn advice_replays_the_claims_that_there_were() {
    let (server, _driver) = Server::fake(FakeOptions::default()).await;
    let nothing = server.project(bare_project()).await;
    let request = server.request(Method::GET, &format!("{nothing}/warm-pool/advice"));
    assert_eq!(server.send(request).await.0, StatusCode::CONFLICT);
    let (project, pool) = server.full_pool(3).await;
    let mut claims = Vec::new();
    for _ in 0..3 {
        claims.push(server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await);
    }
    claims.push(
        server
            .post(&format!("{pool}/claim"), json!({ "miss": "bypass", "waitMs": 20_000 }))
            .await,
    );
    for claim in &claims {
        release(&server, claim).await;
    }
    // The one that left the pool alone does not count.
    let advice = server
        .until(SOON, &format!("{project}/warm-pool/advice?days=1&target=0"), |it| {
            it["claims"] == 3
        })
        .await;
    assert_eq!(
        (
            &advice["present"]["target"],
            &advice["present"]["hitRate"],
            &advice["present"]["p95WaitMs"]
        ),
        (&json!(3), &json!(1.0), &json!(0))
    );
    assert_eq!(
        (&advice["asked"]["target"], &advice["asked"]["hitRate"]),
        (&json!(0), &json!(0.0))
    );
    assert!(
        advice["suggested"]["target"]
            .as_u64()
            .is_some_and(|target| (1..=3).contains(&target)),
        "{advice}"
    );
    // Three VMs that wait ready all day.
    let hours = advice["present"]["vmHours"].as_f64().unwrap();
    assert!((71.5..=72.0).contains(&hours), "{advice}");
}

#[tokio::test]
async fn history_is_kept_by_age_and_size_and_goes_with_its_project() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = FakeDriver::new(1, FakeOptions::default());
    let mut options = options(folder.path());
    options.provision_concurrency = 4;
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (project, _) = server.full_pool(3).await;
    let path = format!("{project}/history");
    server
        .until(SOON, &path, |it| {
            let boots = it["boots"].as_array().unwrap();
            // One that was too many went before it had an outcome.
            let ended = || boots.iter().filter(|boot| !boot["outcome"].is_null());
            ended().count() >= 3 && ended().all(|boot| boot["outcome"] == "ready")
        })
        .await;
    let (folder, mut options) = server.stop().await;
    options.history_disk_mib = 0;
    let made: Arc<dyn Driver> = Arc::new(driver);
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    server.until(SOON, &path, |it| it["boots"] == json!([])).await;
}
