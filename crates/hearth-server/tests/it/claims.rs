//! The hand-over: never twice, idempotent, clear when there is nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, options};

/// What the boot of a fake VM waits for in these tests.
const SLOW_BOOT: Duration = Duration::from_millis(300);
/// What the proof that a fork is ready takes.
const SLOW_FORK: Duration = Duration::from_secs(3);

/// A claim orders a VM and goes away while it is forked, and another one waits by then: what had begun before the other one came, and
/// what the other one got.
async fn abandoned(server: &Server, pool: &str) -> (BTreeSet<String>, Value) {
    let claim = format!("{pool}/claim");
    let patient = json!({ "waitMs": 60_000 });
    let waiting = async |count: u64| {
        let explained = format!("{pool}/explain");
        server.until(SOON, &explained, |it| it["waitingClaims"] == count).await
    };
    let mut first = Box::pin(server.call(Method::POST, &claim, patient.clone()));
    let begins = async {
        waiting(1).await;
        let being_made = format!("{pool}/instances?status=provisioning");
        let is_any = |list: &Value| list["items"].as_array().is_some_and(|items| !items.is_empty());
        server.until(SOON, &being_made, is_any).await
    };
    let begun = tokio::select! {
        reply = &mut first => panic!("it had its VM too soon: {reply:?}"),
        begun = begins => begun,
    };
    let begun = begun["items"].as_array().unwrap().iter();
    let begun = begun.map(|item| item["id"].as_str().unwrap().to_owned()).collect();
    let mut second = Box::pin(server.post(&claim, patient));
    tokio::select! {
        reply = &mut first => panic!("it had its VM too soon: {reply:?}"),
        reply = &mut second => panic!("it overtook: {reply:?}"),
        _ = waiting(2) => {}
    }
    drop(first);
    (begun, second.await)
}

#[tokio::test]
async fn ten_concurrent_claims_on_three_get_three_different_vms_and_seven_answers() {
    let fake = FakeOptions {
        boot_delay: SLOW_BOOT..=SLOW_BOOT,
        // With a template the seven would be forked for.
        no_checkpoints: true,
        ..FakeOptions::default()
    };
    let (server, _) = Server::fake(fake).await;
    let (project, pool) = server.full_pool(3).await;
    let claim = format!("{pool}/claim");
    let replies = join_all((0..10).map(|_| server.call(Method::POST, &claim, json!({})))).await;
    let got: Vec<_> = replies
        .iter()
        .filter(|(status, _)| *status == StatusCode::OK)
        .map(|(_, body)| body)
        .collect();
    let vms: BTreeSet<_> = got.iter().map(|body| body["instanceId"].as_str().unwrap()).collect();
    assert!((1..=3).contains(&vms.len()) && vms.len() == got.len(), "{replies:?}");
    for (status, body) in replies.iter().filter(|(status, _)| *status != StatusCode::OK) {
        assert_eq!(
            (*status, &body["error"]["code"]),
            (StatusCode::TOO_MANY_REQUESTS, &json!("too_many_requests"))
        );
    }
    let refused = server
        .request(Method::POST, &claim)
        .json(&json!({ "strict": true }))
        .send()
        .await
        .unwrap();
    if refused.status() == StatusCode::TOO_MANY_REQUESTS {
        assert!(refused.headers().contains_key("retry-after"));
    }
    server.until_full(SOON, &project, 3).await;
}

#[tokio::test]
async fn the_same_key_gives_the_same_vm_and_another_body_is_a_conflict() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let claim = format!("{pool}/claim");
    let body = json!({ "taskId": "T-1", "env": { "TASK": "geheim" } });
    let replies = join_all((0..4).map(|_| server.post(&claim, body.clone()))).await;
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");
    assert_eq!(replies[0]["source"], "ready");
    let (status, _) = server.call(Method::POST, &claim, json!({ "taskId": "T-1" })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let id = replies[0]["id"].as_str().unwrap();
    server.post(&format!("/instances/{id}/heartbeat"), json!({})).await;
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let (status, _) = server.call(Method::POST, &claim, body).await;
    assert_eq!(status, StatusCode::GONE);
    let (status, _) = server
        .call(Method::POST, &format!("/instances/{id}/release"), json!({}))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_claim_with_patience_waits_for_what_is_made_or_has_one_made() {
    let fake = FakeOptions {
        boot_delay: SLOW_BOOT..=SLOW_BOOT,
        no_checkpoints: true,
        ..FakeOptions::default()
    };
    let (server, _) = Server::fake(fake).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let claim = format!("{pool}/claim");
    let (status, reply) = server.call(Method::POST, &claim, json!({})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(
        reply["error"]["message"]
            .as_str()
            .unwrap()
            .contains("claim with a wait"),
        "{reply}"
    );
    let cold = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    assert_eq!(cold["source"], "cold");
    server.patch(&pool, json!({ "enabled": true })).await;
    let joined = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    assert_eq!(
        (&joined["source"], joined["waitMs"].as_u64() > Some(100)),
        (&json!("joined"), true)
    );
    server.until_full(SOON, &project, 1).await;
    let bypass = server.post(&claim, json!({ "miss": "bypass", "waitMs": 20_000 })).await;
    assert_eq!(bypass["source"], "cold");
    assert_eq!(server.get(&pool).await["status"]["ready"], 1);
    let all: BTreeSet<_> = [&cold, &joined, &bypass]
        .iter()
        .map(|it| it["instanceId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn what_was_begun_for_a_claim_that_went_away_serves_the_next() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.fork_concurrency = 1;
    let driver = FakeDriver::new(1, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (project, pool) = server.full_pool(1).await;
    // A fork is checked by a command before it is ready: this one is slow.
    driver.add_rule(ExecRule {
        takes: SLOW_FORK,
        ..ExecRule::prints("true", "")
    });
    let claim = format!("{pool}/claim");
    assert_eq!(server.post(&claim, json!({})).await["source"], "ready");
    let (begun, reply) = abandoned(&server, &pool).await;
    assert!(begun.contains(reply["id"].as_str().unwrap()), "{begun:?} {reply:#}");
    assert_eq!(reply["source"], "fork");
    let why = server
        .get(&format!("/instances/{}/claim", reply["id"].as_str().unwrap()))
        .await;
    assert!(why["why"].as_str().unwrap().contains("forked from it"), "{why:#}");
    server.until_full(SOON, &project, 1).await;
}

/// A disabled pool whose template is there still.
async fn disabled_pool(server: &Server) -> String {
    let (project, pool) = server.full_pool(1).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    server.until_full(SOON, &project, 0).await;
    pool
}

#[tokio::test]
async fn what_was_begun_for_a_claim_that_went_away_serves_the_next_of_a_disabled_pool_too() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.fork_concurrency = 1;
    let driver = FakeDriver::new(1, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let pool = disabled_pool(&server).await;
    driver.add_rule(ExecRule {
        takes: SLOW_FORK,
        ..ExecRule::prints("true", "")
    });
    let (begun, reply) = abandoned(&server, &pool).await;
    assert!(begun.contains(reply["id"].as_str().unwrap()), "{begun:?} {reply:#}");
    // What was begun for the second one is not needed now.
    let gone = |list: &serde_json::Value| list["items"].as_array().is_some_and(|items| items.len() == 1);
    server.until(SOON, &format!("{pool}/instances"), gone).await;
}

#[tokio::test]
async fn a_claim_whose_own_vm_fails_gets_the_next_one() {
    // The pool's own VM is the first fork; then two fail, one is made, and from then on all fail.
    let fails = |call| Fault {
        verb: Verb::Fork,
        call,
        kind: FaultKind::Retry,
        moment: FaultMoment::Before,
    };
    let faults = (2..4).chain(5..100).map(fails).collect();
    let (server, _) = Server::fake(FakeOptions {
        faults,
        ..FakeOptions::default()
    })
    .await;
    let pool = disabled_pool(&server).await;
    let reply = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    assert_eq!(reply["source"], "fork");
    let failed = server.get(&format!("{pool}/instances?status=failed")).await;
    assert_eq!(failed["items"].as_array().unwrap().len(), 2, "{failed:#}");
    // The last one's reason is said at the end of the claim's patience.
    let bypass = json!({ "waitMs": 1_000, "miss": "bypass" });
    let bare = server.project(bare_project()).await;
    let (status, reply) = server
        .call(Method::POST, &format!("{bare}/warm-pool/claim"), bypass)
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply:#}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("was made for this claim failed"), "{message}");
}

#[tokio::test]
async fn a_claim_token_works_only_in_its_own_instances_and_exec_answers_in_both_ways() {
    let rules = vec![
        ExecRule::prints("greet", "hello\n"),
        ExecRule::fails("exit 3", 3, "no\n"),
    ];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(2).await;
    let token = server
        .post("/tokens", json!({ "name": "agent", "scopes": ["claim"] }))
        .await;
    let http = reqwest::Client::new();
    let as_agent = |path: &str, body: serde_json::Value| {
        let url = format!("http://{}/api/v1{path}", server.address);
        http.post(url).bearer_auth(token["token"].as_str().unwrap()).json(&body)
    };
    let (_, own) = server
        .send(as_agent(&format!("{pool}/claim"), json!({ "env": { "A": "it's" } })))
        .await;
    let foreign = server.post(&format!("{pool}/claim"), json!({})).await;
    let exec = |reply: &serde_json::Value| format!("/instances/{}/exec", reply["id"].as_str().unwrap());
    let (status, done) = server.send(as_agent(&exec(&own), json!({ "command": "greet" }))).await;
    assert_eq!(
        (status, &done["stdout"], &done["exitCode"]),
        (StatusCode::OK, &json!("hello\n"), &json!(0))
    );
    let (status, _) = server
        .send(as_agent(&exec(&foreign), json!({ "command": "greet" })))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let failed = server.post(&exec(&own), json!({ "command": "exit 3" })).await;
    assert_eq!((&failed["exitCode"], &failed["stderr"]), (&json!(3), &json!("no\n")));
    let stream = server
        .request(Method::POST, &exec(&own))
        .header("accept", "text/event-stream");
    let text = stream
        .json(&json!({ "argv": ["greet"] }))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        text.contains("event: stdout\ndata: aGVsbG8K\n") && text.contains("event: exit\ndata: {\"exitCode\":0"),
        "{text}"
    );
    let vm = own["instanceId"].as_str().unwrap().parse().unwrap();
    assert_eq!(driver.file(&vm, "/home/.env").unwrap(), "A='it'\\''s'\n");
    assert!(driver.clock(&vm).is_some());
    for body in [
        json!({}),
        json!({ "command": "a", "argv": ["b"] }),
        json!({ "argv": [] }),
        json!({ "command": 1 }),
    ] {
        let (status, _) = server.call(Method::POST, &exec(&own), body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    }
}

#[tokio::test]
async fn claim_whose_vms_do_not_answer_is_answered_soon_after_its_wait_though_there_are_more() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(8).await;
    // Each one that it takes costs it three seconds.
    driver.answer_late(Duration::from_secs(60));
    let began = tokio::time::Instant::now();
    let body = json!({ "miss": "require", "waitMs": 500 });
    let (status, reply) = server.call(Method::POST, &format!("{pool}/claim"), body).await;
    let took = began.elapsed();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    assert!(took < Duration::from_secs(18), "{took:?}");
    driver.answer_late(Duration::ZERO);
}

#[tokio::test]
async fn repeated_key_does_not_wait_for_the_earlier_request_longer_than_it_said() {
    let hang = ExecRule {
        takes: Duration::from_secs(600),
        ..ExecRule::prints("hang", "")
    };
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![hang],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let commands = json!([{ "name": "it", "command": "hang" }]);
    let body = json!({ "enabled": true, "targetSize": 1, "setupCommands": commands });
    server.patch(&pool, body).await;
    let claim = format!("{pool}/claim");
    let key = |wait_ms: u64| json!({ "taskId": "T-1", "miss": "require", "waitMs": wait_ms });
    let mut first = Box::pin(server.call(Method::POST, &claim, key(600_000)));
    let explain = format!("{pool}/explain");
    tokio::select! {
        reply = &mut first => panic!("there was nothing for it: {reply:?}"),
        _ = server.until(SOON, &explain, |it| it["waitingClaims"] == 1) => {}
    }
    let again = tokio::time::timeout(Duration::from_secs(20), server.call(Method::POST, &claim, key(0)));
    let (status, reply) = tokio::select! {
        reply = &mut first => panic!("there was nothing for it: {reply:?}"),
        reply = again => reply.expect("it waits as long as the first"),
    };
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    let said = reply["error"]["message"].as_str().unwrap();
    assert!(
        said.contains("an earlier claim of this task id is still on its way"),
        "{said}"
    );
}

#[tokio::test]
async fn fifty_claims_at_once_are_all_answered_when_their_wait_is_over() {
    let wait = Duration::from_secs(3);
    let (server, _) = Server::fake(FakeOptions {
        boot_delay: SLOW_BOOT..=SLOW_BOOT,
        no_checkpoints: true,
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(2).await;
    server.patch(&pool, json!({ "targetSize": 1 })).await;
    let claim = format!("{pool}/claim");
    let body = json!({ "miss": "require", "waitMs": 3000 });
    let claims = (0..50).map(async |_| {
        let began = tokio::time::Instant::now();
        let (status, _) = server.call(Method::POST, &claim, body.clone()).await;
        (status, began.elapsed())
    });
    let answers = join_all(claims).await;
    assert!(
        answers.iter().any(|(status, _)| *status == StatusCode::OK),
        "{answers:?}"
    );
    for (status, took) in &answers {
        assert!(
            [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(status) && *took < wait + SOON,
            "{answers:?}"
        );
    }
}
