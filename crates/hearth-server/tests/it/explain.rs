//! Why a pool is as it is and why a claim got what it got, as people read it.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, commit, git, git_repo, repo_folder};

fn condition<'a>(explained: &'a Value, kind: &str) -> &'a Value {
    let all = explained["conditions"].as_array().unwrap();
    all.iter()
        .find(|it| it["type"] == kind)
        .unwrap_or_else(|| panic!("no {kind}: {explained:#}"))
}

fn is_so(explained: &Value, kind: &str) -> bool {
    condition(explained, kind)["status"] == true
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[track_caller]
fn says(value: &Value, parts: &[&str]) {
    for part in parts {
        assert!(text(value).contains(part), "no `{part}` in: {value}");
    }
}

fn named(name: &str) -> Value {
    json!([{ "name": name, "command": format!("run-{name}") }])
}

#[tokio::test]
async fn a_pool_tells_how_it_fills_and_goes_over_to_a_changed_set_up() {
    let slow = |name: &str| ExecRule {
        takes: Duration::from_millis(500),
        ..ExecRule::prints(&format!("run-{name}"), "")
    };
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![slow("a"), slow("b")],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let explain = format!("{pool}/explain");
    let none = server.get(&explain).await;
    assert!(is_so(&none, "Disabled") && !is_so(&none, "Full") && !is_so(&none, "Fresh"));
    says(&none["summary"], &["disabled", "`hearth pool set demo --enabled"]);
    let (status, refusal) = server.call(Method::POST, &format!("{pool}/retry"), json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    says(&refusal["error"]["message"], &["no warm pool yet"]);
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": named("a") }),
        )
        .await;
    let building = server.until(SOON, &explain, |it| is_so(it, "Building")).await;
    says(&building["summary"], &["0 of 2 ready, 1 being made"]);
    says(
        &condition(&building, "Building")["message"],
        &["being set up by", "--follow"],
    );
    assert_eq!(building["templates"], json!([]));
    // The host's figures are those of the pass before.
    let full = |it: &Value| is_so(it, "Full") && it["host"]["vms"] == 2;
    let full = server.until(SOON, &explain, full).await;
    assert_eq!(full["summary"], "2 of 2 ready, all of the target recipe");
    assert!(
        is_so(&full, "Fresh") && !is_so(&full, "Building") && !is_so(&full, "Disabled"),
        "{full:#}"
    );
    assert_eq!(
        (&full["templates"][0]["serving"], &full["templates"][0]["recipe"]),
        (&json!(true), &full["recipe"])
    );
    let created: u64 = full["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["action"] == "create")
        .map(|it| it["count"].as_u64().unwrap())
        .sum();
    assert_eq!(created, 2, "{full:#}");
    let host = &full["host"];
    assert_eq!(
        (&host["maxVms"], &host["maxProvisions"], &host["forks"]),
        (&json!(server.options.max_vms), &json!(4), &json!(0))
    );
    // What holds keeps its time from pass to pass.
    let later = server.get(&explain).await;
    assert_eq!(condition(&later, "Full")["since"], condition(&full, "Full")["since"]);

    server.patch(&pool, json!({ "setupCommands": named("b") })).await;
    let beside = server.until(SOON, &explain, |it| is_so(it, "Building")).await;
    says(&beside["summary"], &["2 of 2 ready", "of the recipe before"]);
    assert!(is_so(&beside, "Full") && !is_so(&beside, "Fresh"));
    assert_ne!(beside["servingRecipe"], beside["recipe"]);
    let over = server
        .until(SOON, &explain, |it| is_so(it, "Fresh") && is_so(it, "Full"))
        .await;
    assert!(
        over["instances"]
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it["current"] == true)
    );
    let decided = over["decisions"].as_array().unwrap();
    for (action, reason) in [
        ("build", "no template yet"),
        ("create", "successor"),
        ("delete", "older recipe"),
    ] {
        let message = decided
            .iter()
            .any(|it| it["action"] == action && text(&it["reason"]).contains(reason));
        assert!(message, "{action}: {decided:#?}");
    }
    server.patch(&pool, json!({ "enabled": false })).await;
    server
        .until(SOON, &explain, |it| {
            is_so(it, "Disabled") && it["instances"] == json!([])
        })
        .await;
}

#[tokio::test]
async fn a_push_that_breaks_the_set_up_says_so_while_the_recipe_before_serves_and_a_retry_mends_it() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let url = git_repo(server.folder.path(), "app", &[("a", "b")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "my web", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    let explain = format!("{pool}/explain");
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": named("check") }),
        )
        .await;
    server
        .until(SOON, &explain, |it| is_so(it, "Full") && is_so(it, "Fresh"))
        .await;
    driver.add_rule(ExecRule {
        times: Some(4),
        ..ExecRule::fails("run-check", 7, "boom\n")
    });
    commit(&repo_folder(&url), &[("a", "c")], "second");
    let head = git(&repo_folder(&url), &["rev-parse", "HEAD"]);
    // The first fetch sees the push.
    server.test_boot(SOON, &project, json!({})).await;
    let open = |it: &Value| is_so(it, "BreakerOpen") && is_so(it, "DebugVmKept");
    let failing = server.until(SOON, &explain, open).await;
    assert!(is_so(&failing, "RecipeFailing") && is_so(&failing, "Full") && !is_so(&failing, "Fresh"));
    let id = project.rsplit('/').next().unwrap();
    let push = format!(
        "since the push of {} to acme/app (warm_pool_setup: the command `check` ended with exit code 7: boom)",
        &head[..7]
    );
    let log = format!("`hearth pool instance {id} ");
    says(
        &failing["summary"],
        &[
            &push,
            "2 VMs of the recipe before keep serving",
            &log,
            "--log` shows why",
        ],
    );
    says(
        &condition(&failing, "BreakerOpen")["message"],
        &["after 3 failures", &format!("`hearth pool retry {id}`")],
    );
    assert_eq!(failing["repositories"][0]["commit"], head.as_str());
    let instances = failing["instances"].as_array().unwrap();
    for ready in instances.iter().filter(|it| it["status"] == "ready") {
        assert_eq!(
            (&ready["repos"][0]["behind"], &ready["current"]),
            (&json!(1), &json!(false))
        );
    }
    let metrics = reqwest::Client::new().get(format!("http://{}/metrics", server.address));
    let metrics = metrics
        .bearer_auth(&server.token)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let lag = format!("hearth_checkout_lag_commits{{project=\"{id}\"}} 1\n");
    assert!(metrics.contains(&lag), "{metrics}");
    let kept = instances.iter().find(|it| !it["keptUntil"].is_null()).unwrap();
    says(
        &condition(&failing, "DebugVmKept")["message"],
        &[
            text(&kept["id"]),
            "until",
            &format!("`hearth shell {}`", text(&kept["id"])),
        ],
    );
    let exec = format!("/instances/{}/exec", text(&kept["id"]));
    assert_eq!(server.post(&exec, json!({ "command": "look" })).await["exitCode"], 0);
    // Passes repeat what they decide; it is listed once.
    let waits = |it: &Value| it["decisions"][0]["action"] == "wait" && it["decisions"][0]["count"].as_u64() >= Some(2);
    let folded = server.until(SOON, &explain, waits).await;
    says(&folded["decisions"][0]["reason"], &["failed 3 times in a row"]);
    assert_eq!(folded["decisions"][0]["inputs"]["recipeFailures"], 3);
    let waiting = folded["decisions"].as_array().unwrap().iter();
    assert_eq!(waiting.filter(|it| it["action"] == "wait").count(), 1, "{folded:#}");

    // The fourth failure was the last: what was outside the set-up is mended.
    let reply = server.post(&format!("{pool}/retry"), json!({})).await;
    assert_eq!(reply["status"]["ready"], 2);
    let well = |it: &Value| is_so(it, "Full") && is_so(it, "Fresh") && it["decisions"][0]["action"] != "wait";
    let mended = server.until(SOON, &explain, well).await;
    for kind in ["RecipeFailing", "BreakerOpen", "DebugVmKept", "Rolling"] {
        assert!(!is_so(&mended, kind), "{kind}: {mended:#}");
    }
    assert_eq!(mended["summary"], "2 of 2 ready, all of the target recipe");
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_to_do() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let url = git_repo(server.folder.path(), "app", &[("a", "b")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "nowhere", "url": url }]);
    let project = server.project(json!({ "name": "web", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true })).await;
    let missing = |it: &Value| is_so(it, "RepositoryMissing");
    let explained = server.until(SOON, &format!("{pool}/explain"), missing).await;
    says(
        &explained["summary"],
        &["a repository cannot be had", "`nowhere`", "nothing is ready"],
    );
    says(
        &condition(&explained, "RepositoryMissing")["message"],
        &["`hearth pool retry web`"],
    );
    assert!(!is_so(&explained, "RecipeFailing") && !is_so(&explained, "ImageMissing"));
    assert_eq!(explained["repositories"][0]["commit"], Value::Null);
}

fn phases(explained: &Value) -> Vec<&str> {
    let all = explained["handOver"]["phases"].as_array().unwrap();
    all.iter().map(|phase| text(&phase["name"])).collect()
}

async fn explain_claim(server: &Server, claim: &Value) -> Value {
    server.get(&format!("/instances/{}/claim", text(&claim["id"]))).await
}

#[tokio::test]
async fn a_claim_tells_why_it_got_a_ready_one_the_next_one_or_a_fork() {
    let unfit = Fault {
        verb: Verb::Resume,
        call: 1,
        kind: FaultKind::Permanent,
        moment: FaultMoment::Before,
    };
    let (server, driver) = Server::fake(FakeOptions {
        faults: vec![unfit],
        ..FakeOptions::default()
    })
    .await;
    let (project, pool) = server.full_pool(2).await;
    let claim = format!("{pool}/claim");
    let token = server
        .post("/tokens", json!({ "name": "t", "scopes": ["claim"] }))
        .await;
    let http = reqwest::Client::new();
    let url = |path: &str| format!("http://{}/api/v1{path}", server.address);
    let own = http
        .post(url(&claim))
        .bearer_auth(text(&token["token"]))
        .json(&json!({}));
    let (_, next) = server.send(own).await;
    let message = explain_claim(&server, &next).await;
    assert_eq!(message["source"], "ready");
    says(
        &message["why"],
        &["2 ready, 2 of the target recipe", "was not fit", "the test planned"],
    );
    assert_eq!(message["handOver"]["skipped"].as_array().unwrap().len(), 1);
    let work = [
        "take",
        "resume",
        "connect",
        "variables",
        "prepare",
        "checkouts",
        "scripts",
    ];
    assert_eq!(phases(&message), [&["wait", "skipped"][..], &work[..]].concat());
    let parts: f64 = message["handOver"]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["ms"].as_f64().unwrap())
        .sum();
    let total = message["handOver"]["totalMs"].as_f64().unwrap();
    assert!((total - parts).abs() < 0.2, "{message:#}");

    server.until_full(SOON, &project, 2).await;
    let ready = server.post(&claim, json!({ "strict": true })).await;
    let message = explain_claim(&server, &ready).await;
    says(
        &message["why"],
        &["2 ready", "the oldest of the target recipe was taken"],
    );
    assert_eq!(phases(&message), [&["wait"][..], &work[..]].concat());
    server.until_full(SOON, &project, 2).await;
    let fork = server.post(&claim, json!({ "miss": "bypass" })).await;
    let message = explain_claim(&server, &fork).await;
    assert_eq!(
        (&message["source"], &message["handOver"]["ready"]),
        (&json!("fork"), &Value::Null)
    );
    says(&message["why"], &["left the pool alone", "forked from it"]);

    // A token that may only claim sees its own, and no VM of the pool was claimed for it.
    let see = async |claim: &Value| {
        let request = http.get(url(&format!("/instances/{}/claim", text(&claim["id"]))));
        server.send(request.bearer_auth(text(&token["token"]))).await.0
    };
    assert_eq!(
        (see(&next).await, see(&ready).await),
        (StatusCode::OK, StatusCode::NOT_FOUND)
    );
    let listed = server.get(&format!("{pool}/instances?status=ready")).await;
    let path = format!("/instances/{}/claim", text(&listed["items"][0]["id"]));
    assert_eq!(server.call(Method::GET, &path, json!({})).await.0, StatusCode::CONFLICT);

    // It is in the database, and outlives the instance.
    let before = explain_claim(&server, &fork).await;
    server
        .post(&format!("/instances/{}/release", text(&next["id"])), json!({}))
        .await;
    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    assert_eq!(explain_claim(&server, &fork).await, before);
    let over = explain_claim(&server, &next).await;
    assert!(over["endedAt"].is_string() && over["handOver"].is_object(), "{over:#}");
}

#[tokio::test]
async fn a_claim_that_waited_or_had_one_made_says_so() {
    let boot = Duration::from_millis(300);
    let (server, _) = Server::fake(FakeOptions {
        boot_delay: boot..=boot,
        no_checkpoints: true,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let claim = format!("{pool}/claim");
    let cold = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    let message = explain_claim(&server, &cold).await;
    assert_eq!(
        (&message["source"], &message["handOver"]["template"]),
        (&json!("cold"), &json!(false))
    );
    says(&message["why"], &["none was ready", "no template", "made from nothing"]);
    server.patch(&pool, json!({ "enabled": true })).await;
    let joined = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    let message = explain_claim(&server, &joined).await;
    assert_eq!(
        (&message["source"], &message["handOver"]["ready"]),
        (&json!("joined"), &json!(0))
    );
    says(
        &message["why"],
        &["none was ready", "waited", "being made for the pool"],
    );
    let wait = &message["handOver"]["phases"][0];
    assert!(
        wait["name"] == "wait" && wait["ms"].as_f64() > Some(100.0),
        "{message:#}"
    );
}

#[tokio::test]
async fn a_strict_claim_gets_the_wanted_recipe_and_says_what_it_passed_by() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let claim = format!("{pool}/claim");
    server.patch(&pool, json!({ "setupCommands": named("b") })).await;
    let strict = server.post(&claim, json!({ "strict": true, "waitMs": 20_000 })).await;
    let message = explain_claim(&server, &strict).await;
    assert_eq!(
        (&message["handOver"]["strict"], &message["handOver"]["current"]),
        (&json!(true), &json!(true))
    );
    // Whether the pool has gone over by then is a race.
    if message["handOver"]["ready"] == 1 && message["handOver"]["readyCurrent"] == 0 {
        says(
            &message["why"],
            &["1 ready, none of the target recipe, and the claim was strict"],
        );
    }
    server.until_full(SOON, &project, 1).await;
}

#[tokio::test]
async fn claimed_vm_counts_with_what_it_uses_and_a_share_of_what_it_may_still_take() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let explain = format!("{pool}/explain");
    let rule = server.get(&explain).await["host"]["claimedMemory"].clone();
    says(
        &rule,
        &[
            "uses now and 50 % of what it may still take up to its size",
            "--claimed-reserve",
        ],
    );
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let counts = |it: &Value| {
        let instances = it["instances"].as_array().unwrap();
        let claimed = instances.iter().find(|instance| instance["id"] == claim["id"]);
        claimed.and_then(|instance| instance["memoryMib"].as_u64())
    };
    // A fake VM uses 40 MiB of its 2048.
    let measured = server.until(SOON, &explain, |it| counts(it) == Some(40 + 1004)).await;
    let host = &server
        .until(SOON, &explain, |it| {
            it["host"]["claimedMemory"]
                .as_str()
                .unwrap()
                .contains("counts with 1044 of 2048 MiB")
        })
        .await["host"];
    assert!(host["memoryMib"].as_u64() < Some(2048), "{measured:#}");
    // One that has ended uses nothing.
    assert!(driver.crash(&claim["instanceId"].as_str().unwrap().parse().unwrap()));
    server.until(SOON, &explain, |it| counts(it) == Some(0)).await;
}
