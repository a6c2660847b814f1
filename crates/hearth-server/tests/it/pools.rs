//! The pool loop: target, refill, surplus, failure, freshness, clear.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, git_repo};
use crate::pages::Person;

fn ids(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_pool_fills_shrinks_and_empties_as_it_is_told() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(5).await;
    let before = ids(&server.get(&format!("{pool}/instances?status=ready")).await);
    server.patch(&pool, json!({ "targetSize": 2 })).await;
    server.until_full(SOON, &project, 2).await;
    // Newest first in the list, so the first two stay.
    assert_eq!(ids(&server.get(&format!("{pool}/instances")).await), before[..2]);
    server.patch(&pool, json!({ "enabled": false })).await;
    server
        .until(SOON, &format!("{pool}/instances"), |list| ids(list).is_empty())
        .await;
    let deadline = tokio::time::Instant::now() + SOON;
    while !hearth_drivers::Driver::list(&driver).await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "VMs are left");
        crate::harness::pause().await;
    }
}

#[tokio::test]
async fn a_schedule_keeps_another_number_ready_and_its_removal_gives_the_pool_its_own_back() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let schedule = format!("{pool}/schedule");
    let put = async |body: Value| server.call(Method::PUT, &schedule, body).await;
    let window = |start: &str, end: &str, size: i64| json!({ "start": start, "end": end, "targetSize": size });
    // It began this minute, and 30 February never comes.
    let always = json!({ "timeZone": "Europe/Berlin", "windows": [window("* * * * *", "0 0 30 2 *", 3)] });
    let (status, view) = put(always.clone()).await;
    assert_eq!(status, StatusCode::OK, "{view}");
    assert_eq!(
        (&view["targetSize"], &view["ownTargetSize"]),
        (&json!(3), &json!(1)),
        "{view}"
    );
    assert!(view["changesAt"].is_string(), "{view}");
    server.until_full(SOON, &project, 3).await;
    assert_eq!(server.get(&pool).await["config"]["targetSize"], 1);
    // All that say how many there are to be say the schedule's number.
    assert_eq!(server.get(&format!("{pool}/explain")).await["target"], 3);
    let metrics = reqwest::Client::new().get(format!("http://{}/metrics", server.address));
    let metrics = metrics.bearer_auth(&server.token).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let target = metrics.lines().find(|line| line.starts_with("hearth_pool_target{"));
    assert!(target.is_some_and(|line| line.ends_with(" 3")), "{target:?}");
    let person = Person::sign_in(&server, &server.token).await;
    let overview = person.page("/").await;
    assert!(overview.contains("3 of 3") && overview.contains(">Full<"), "{overview}");
    let zone = json!({ "timeZone": "Europe/Atlantis", "windows": [] });
    let day = json!({ "timeZone": "UTC", "windows": [window("0 8 * * 5-1", "0 9 * * *", 2)] });
    for (body, path) in [(zone, "timeZone"), (day, "windows[0].start")] {
        let (status, reply) = put(body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
        assert_eq!(reply["error"]["details"][0]["path"], path, "{reply}");
    }
    assert_eq!(server.get(&schedule).await["windows"], always["windows"]);
    let (status, view) = put(json!({ "timeZone": "UTC", "windows": [] })).await;
    assert_eq!((status, &view["timeZone"]), (StatusCode::OK, &Value::Null), "{view}");
    server.until_full(SOON, &project, 1).await;
}

#[tokio::test]
async fn first_pool_of_a_slow_host_is_filled_by_one_recipe_and_is_not_rolling() {
    // What the host gives to VMs takes long to find out the first time: the server must not make VMs without knowing.
    let slow = Duration::from_millis(800);
    let (server, _) = Server::fake(FakeOptions {
        call_delay: slow..=slow,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    let condition = |explained: &Value, kind: &str| {
        let all = explained["conditions"].as_array().unwrap().iter();
        all.filter(|it| it["type"] == kind).all(|it| it["status"] == true)
    };
    let full = server
        .until(2 * SOON, &format!("{pool}/explain"), |explained| {
            assert!(!condition(explained, "Rolling"), "{explained:#}");
            condition(explained, "Full")
        })
        .await;
    assert!(condition(&full, "Fresh"), "{full:#}");
    let instances = full["instances"].as_array().unwrap();
    assert!(instances.iter().all(|it| it["current"] == true), "{full:#}");
}

#[tokio::test]
async fn a_lost_vm_is_noticed_and_replaced() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let list = server.get(&format!("{pool}/instances")).await;
    let lost = list["items"][0].clone();
    assert!(driver.crash(&lost["instanceId"].as_str().unwrap().parse().unwrap()));
    let detail = format!("{pool}/instances/{}", lost["id"].as_str().unwrap());
    let failed = server
        .until(Duration::from_secs(10), &detail, |it| it["status"] == "failed")
        .await;
    assert!(failed["failureReason"].as_str().unwrap().contains("ended unexpectedly"));
    let full = server.until_full(SOON, &project, 1).await;
    assert_eq!(full["status"]["failed"], 1);
}

#[tokio::test]
async fn changed_commands_replace_ready_instances_without_dropping_below_the_target() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let old = ids(&server.get(&format!("{pool}/instances")).await);
    server
        .patch(&pool, json!({ "setupCommands": [{ "name": "a", "command": "make" }] }))
        .await;
    server
        .until(SOON, &format!("{pool}/instances?status=ready"), |list| {
            let now = ids(list);
            assert!(now.len() >= 2, "below the target: {list}");
            now.len() == 2 && now.iter().all(|id| !old.contains(id))
        })
        .await;
}

#[tokio::test]
async fn a_failing_command_says_what_failed_and_the_pool_stops_after_three() {
    let rules = vec![ExecRule::fails("make all", 7, "one\nboom: no rule\n")];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let commands = json!([{ "name": "ok", "command": "true" }, { "name": "build", "command": "make all" }]);
    let failed = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands }))
        .await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["summary"]["failedStep"], "warm_pool_setup");
    assert_eq!(failed["summary"]["error"], "exit code 7: one\nboom: no rule");
    assert_eq!(failed["failureReason"], failed["summary"]["error"]);
    assert_eq!(
        (&failed["summary"]["completedSteps"], &failed["summary"]["totalSteps"]),
        (&json!(2), &json!(3))
    );
    let step = failed["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(step["output"], "one\nboom: no rule\n");
    let entries = &step["metadata"]["commands"];
    assert_eq!(
        (&entries[0]["exitCode"], &entries[1]["exitCode"], &entries[1]["name"]),
        (&json!(0), &json!(7), &json!("build"))
    );
    server.patch(&pool, json!({ "enabled": true, "targetSize": 3 })).await;
    server
        .until(SOON, &pool, |it| {
            it["status"]["failed"] == 3 && it["status"]["provisioning"] == 0
        })
        .await;
    // Mending the commands closes the breaker at once.
    server
        .patch(&pool, json!({ "setupCommands": [{ "name": "ok", "command": "true" }] }))
        .await;
    server.until_full(SOON, &project, 3).await;
    // Everything is forked from the one base that was made first.
    assert_eq!(driver.calls(hearth_drivers::fake::Verb::Create), 1);
}

#[tokio::test]
async fn clear_removes_everything_but_what_is_claimed() {
    let rules = vec![ExecRule {
        takes: Duration::from_secs(600),
        ..ExecRule::prints("hang", "")
    }];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let (project, pool) = server.full_pool(3).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    server.until_full(SOON, &project, 3).await;
    server
        .patch(
            &pool,
            json!({ "targetSize": 5, "setupCommands": [{ "name": "h", "command": "hang" }] }),
        )
        .await;
    // What went well last fills the larger pool while the new set-up hangs beside it.
    server
        .until(SOON, &pool, |it| {
            it["status"]["provisioning"] == 1 && it["status"]["ready"] == 5
        })
        .await;
    let cleared = server
        .post(&format!("{pool}/clear"), json!({ "replenish": true }))
        .await;
    assert_eq!(cleared["cleared"], 6);
    let list = server.get(&format!("{pool}/instances?status=claimed")).await;
    assert_eq!(ids(&list), [claimed["id"].as_str().unwrap()]);
    server
        .until(SOON, &pool, |it| it["status"]["provisioning"].as_u64() >= Some(1))
        .await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let (status, _) = server
        .call(
            reqwest::Method::POST,
            &format!("{pool}/clear"),
            json!({ "replenish": true }),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    server.post(&format!("{pool}/clear"), json!({})).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while hearth_drivers::Driver::list(&driver).await.unwrap().len() != 1 {
        assert!(tokio::time::Instant::now() < deadline, "VMs are left");
        crate::harness::pause().await;
    }
}

#[tokio::test]
async fn repositories_fail_their_own_step_with_a_sentence() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let parent = server.folder.path();
    let good = git_repo(parent, "good", &[("a", "b")]);
    let broken = git_repo(parent, "broken", &[(".capy/settings.json", "{\n  \"hooks\": [}\n")]);
    let repo = |name: &str, url: &str, branch: &str| json!({ "repoFullName": format!("o/{name}"), "branch": branch, "url": url });
    for (repos, step, says) in [
        (
            json!([repo("good", &good, "nope")]),
            "clone_repo",
            "has no branch `nope`",
        ),
        (
            json!([repo("x", "file:///nowhere/at/all", "main")]),
            "clone_repo",
            "cannot fetch o/x from file:///nowhere/at/all",
        ),
        (
            json!([repo("x", "http://127.0.0.1:9/x.git", "main")]),
            "clone_repo",
            "cannot fetch o/x from http://127.0.0.1:9",
        ),
        (
            json!([repo("good", &good, "main"), repo("broken", &broken, "main")]),
            "init_repo",
            ".capy/settings.json is broken at line 2, column 13",
        ),
    ] {
        let project = server.project(json!({ "name": "p", "repos": repos })).await;
        let failed = server.test_boot(SOON, &project, json!({})).await;
        assert_eq!(
            (&failed["status"], &failed["summary"]["failedStep"]),
            (&json!("failed"), &json!(step)),
            "{failed:#}"
        );
        let error = failed["summary"]["error"].as_str().unwrap();
        assert!(error.contains(says), "{error}");
        assert_eq!(
            failed["steps"].as_array().unwrap().last().unwrap()["error"],
            failed["summary"]["error"]
        );
    }
}
