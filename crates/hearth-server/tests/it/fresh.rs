//! What follows when a branch moves: the new commit is prepared once while the previous recipe serves, the pool rolls, and a claim
//! gets the new files whichever VM it gets.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Verb};
use hearth_server::WebhookSecret;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{BOOT, SOON, Server, commit, git, git_repo, options, pause, repo_folder};
use crate::vms::{clean_up, exec, qemu_of, server_with};
use crate::watch::{SECRET, SELDOM, follow, hook};

/// Says that `acme/app` was pushed to.
async fn pushed(server: &Server) {
    pushed_to(server, "acme/app").await;
}

async fn pushed_to(server: &Server, repo: &str) {
    let headers = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", SECRET)];
    let body = json!({ "project": { "path_with_namespace": repo } }).to_string();
    let (status, _) = hook(server, &headers, &body).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

/// Waits until the pool is to follow another recipe than this one.
async fn until_noticed(server: &Server, pool: &str, before: &Value) -> Value {
    let moved = |it: &Value| it["recipe"] != *before;
    server.until(SOON, &format!("{pool}/explain"), moved).await["recipe"].clone()
}

/// Waits until this many are ready, all by the recipe that the pool is to follow.
async fn until_fresh(server: &Server, patience: Duration, pool: &str, ready: usize) {
    let fresh = |it: &Value| {
        let instances = it["instances"].as_array().unwrap();
        let current = |it: &&Value| it["status"] == "ready" && it["current"] == true;
        let all = instances
            .iter()
            .filter(|it| it["isTest"] == false && it["status"] != "claimed" && it["status"] != "failed");
        all.clone().filter(current).count() == ready && all.count() == ready
    };
    server.until(patience, &format!("{pool}/explain"), fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_push_rolls_a_pool_of_real_vms_and_claims_get_its_files_at_once() {
    let server = server_with(|options| {
        options.watch_interval = SELDOM;
        options.webhook_secret = WebhookSecret::new(SECRET);
    })
    .await;
    let parent = server.folder.path();
    let app = git_repo(parent, "app", &[("version", "1\n"), ("package-lock.json", "1\n")]);
    let lib = git_repo(parent, "lib", &[("a", "1\n")]);
    let repos = json!([
        { "repoFullName": "acme/app", "branch": "main", "url": app },
        { "repoFullName": "acme/lib", "branch": "main", "url": lib },
    ]);
    let project = server.project(json!({ "name": "fresh", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    let none = Value::Null;
    let scripts =
        json!({ "initialize": none, "startup": none, "updateAfterCheckout": "cp package-lock.json /home/updated" });
    let setup = json!({ "vmSize": "small", "repositories": [
        { "repository": "acme/app", "branch": "main", "scripts": scripts, "commands": [] } ] });
    server.patch(&format!("{project}/setup"), setup).await;
    let commands =
        json!([{ "name": "prepare", "command": "cp /home/app/version /home/prepared; echo own >>/home/lib/a" }]);
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": commands }),
        )
        .await;
    server.until_full(BOOT, &project, 2).await;
    until_fresh(&server, SOON, &pool, 2).await;
    let first = server.get(&format!("{pool}/explain")).await["recipe"].clone();

    commit(&repo_folder(&app), &[("version", "2\n")], "second");
    commit(&repo_folder(&lib), &[("a", "2\n")], "second");
    let second = git(&repo_folder(&app), &["rev-parse", "HEAD"]);
    pushed(&server).await;
    pushed_to(&server, "acme/lib").await;
    let heads = [second.clone(), git(&repo_folder(&lib), &["rev-parse", "HEAD"])];
    let both_moved = |it: &Value| {
        let seen = it["repositories"].as_array().unwrap().iter();
        seen.map(|repo| repo["commit"].as_str().unwrap_or_default()).eq(&heads)
    };
    let noticed = server.until(SOON, &format!("{pool}/explain"), both_moved).await;
    let wanted = noticed["recipe"].clone();
    // A VM of the commit before is updated to the new one, and what its set-up changed is replaced.
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    assert_eq!(claimed["source"], "ready", "{claimed:#}");
    assert_eq!(claimed["recipe"], first);
    assert_eq!(claimed["repos"][0]["commit"], second);
    assert_eq!(
        claimed["repos"][1]["commit"],
        git(&repo_folder(&lib), &["rev-parse", "HEAD"])
    );
    let id = claimed["id"].as_str().unwrap();
    for (command, prints) in [
        ("cat /home/app/version /home/prepared", "2\n1\n"),
        ("git -C /home/app status --short --branch", "## main...origin/main\n"),
        ("cat /home/lib/a; ls /home/updated 2>/dev/null", "2\n"),
    ] {
        assert_eq!(exec(&server, id, command).await["stdout"], prints, "{command}");
    }
    // The target recipe or nothing.
    let strict = server
        .post(&format!("{pool}/claim"), json!({ "strict": true, "waitMs": 300_000 }))
        .await;
    assert_eq!(strict["recipe"], wanted, "{strict:#}");
    let said = exec(
        &server,
        strict["id"].as_str().unwrap(),
        "cat /home/app/version /home/prepared",
    )
    .await;
    assert_eq!(said["stdout"], "2\n2\n");
    until_fresh(&server, BOOT, &pool, 2).await;

    git(&repo_folder(&app), &["checkout", "--quiet", "-b", "later"]);
    commit(&repo_folder(&app), &[("version", "later\n")], "later");
    git(&repo_folder(&app), &["checkout", "--quiet", "main"]);
    commit(&repo_folder(&app), &[("package-lock.json", "3\n")], "third");
    pushed(&server).await;
    until_noticed(&server, &pool, &wanted).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    let updated = exec(&server, claimed["id"].as_str().unwrap(), "cat /home/updated").await;
    assert_eq!(updated["stdout"], "3\n", "{claimed:#}");
    // A branch that is younger than every VM; one repository has it.
    let claimed = server
        .post(&format!("{pool}/claim"), json!({ "branch": "later" }))
        .await;
    let branches = (&claimed["repos"][0]["branch"], &claimed["repos"][1]["branch"]);
    assert_eq!(branches, (&json!("later"), &json!("main")), "{claimed:#}");
    let said = exec(&server, claimed["id"].as_str().unwrap(), "cat /home/app/version").await;
    assert_eq!(said["stdout"], "later\n");
    clean_up(server, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn vms_that_stopped_answering_are_found_and_replaced() {
    let server = server_with(|options| options.probe_interval = Duration::from_secs(5)).await;
    let project = server.project(json!({ "name": "health" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 3 })).await;
    server.until_full(BOOT, &project, 3).await;
    let list = server.get(&format!("{pool}/instances?status=ready")).await;
    let items: Vec<_> = list["items"].as_array().unwrap().iter().collect();
    let signal = |item: &Value, signal| {
        let pid = qemu_of(item["instanceId"].as_str().unwrap()).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    signal(items[0], nix::sys::signal::Signal::SIGSTOP);
    signal(items[1], nix::sys::signal::Signal::SIGKILL);
    // Whatever state the VMs are in, a claim gets one that answers.
    let claimed = server.post(&format!("{pool}/claim"), json!({ "waitMs": 60_000 })).await;
    let said = exec(&server, claimed["id"].as_str().unwrap(), "echo here").await;
    assert_eq!(said["stdout"], "here\n");
    for gone in &items[..2] {
        let path = format!("{pool}/instances/{}", gone["id"].as_str().unwrap());
        let deadline = Instant::now() + BOOT;
        loop {
            let (status, it) = server.call(Method::GET, &path, json!({})).await;
            // Found by a claim, it is gone; found by a look, its record says why.
            if status == StatusCode::NOT_FOUND || it["status"] == "failed" {
                break;
            }
            assert!(Instant::now() < deadline, "nobody noticed: {it:#}");
            pause().await;
        }
        let vm = gone["instanceId"].as_str().unwrap();
        while qemu_of(vm).is_some() {
            assert!(Instant::now() < deadline, "its process is left");
            pause().await;
        }
    }
    server.until_full(BOOT, &project, 3).await;
    clean_up(server, &project).await;
}

/// A server with the fake driver that takes webhooks and makes so many forks at once, and where hooks that say `boom` fail.
async fn fake(folder: &Arc<tempfile::TempDir>, forks: usize) -> (Server, FakeDriver) {
    let mut options = options(folder.path());
    options.fork_concurrency = forks;
    // A thousand pushes may come faster than one client may ask.
    options.requests_per_second = 0;
    options.watch_interval = SELDOM;
    options.webhook_secret = WebhookSecret::new(SECRET);
    let rules = vec![ExecRule {
        stderr: "boom: no such thing\n".to_owned(),
        code: 7,
        ..ExecRule::prints("boom", "")
    }];
    let driver = FakeDriver::new(
        1,
        FakeOptions {
            rules,
            ..FakeOptions::default()
        },
    );
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    (
        Server::start(folder.clone(), options, move |_| Ok(made)).await.unwrap(),
        driver,
    )
}

#[tokio::test]
async fn a_push_that_breaks_the_set_up_stops_itself_and_the_one_that_mends_it_goes_on() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (server, _) = fake(&folder, 4).await;
    let url = git_repo(
        folder.path(),
        "app",
        &[(".hearth/settings.json", r#"{"hooks":{"setup":["fine"]}}"#)],
    );
    let project = follow(&server, &url).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "targetSize": 3 })).await;
    server.until_full(SOON, &project, 3).await;
    let good = server.get(&format!("{pool}/explain")).await["recipe"].clone();
    commit(
        &repo_folder(&url),
        &[(".hearth/settings.json", r#"{"hooks":{"setup":["boom"]}}"#)],
        "break",
    );
    pushed(&server).await;
    let bad = until_noticed(&server, &pool, &good).await;
    // Three tries, then no more; what went well last serves on.
    let held = |it: &Value| {
        let conditions = it["conditions"].as_array().unwrap();
        conditions
            .iter()
            .any(|it| it["type"] == "BreakerOpen" && it["status"] != false)
    };
    server.until(SOON, &format!("{pool}/explain"), held).await;
    server
        .until(SOON, &pool, |it| {
            it["status"]["ready"] == 3 && it["status"]["failed"] == 3
        })
        .await;
    for _ in 0..5 {
        let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
        assert!(
            claimed["source"] == "ready" || claimed["source"] == "fork",
            "{claimed:#}"
        );
        assert_eq!(claimed["recipe"], good);
    }
    // The target recipe must be mended first: a claim that takes nothing else gets that answer, and does not wait.
    let asked = Instant::now();
    let (status, reply) = server
        .call(Method::POST, &format!("{pool}/claim"), json!({ "strict": true }))
        .await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("failed 3 times"), "{message}");
    assert!(asked.elapsed() < SOON);
    // One of the failed VMs is there to look into.
    let failed = server.get(&format!("{pool}/instances?status=failed")).await;
    let mut reachable = 0;
    for item in failed["items"].as_array().unwrap() {
        let path = format!("/instances/{}/exec", item["id"].as_str().unwrap());
        let (status, _) = server.call(Method::POST, &path, json!({ "command": "true" })).await;
        reachable += usize::from(status == StatusCode::OK);
    }
    assert_eq!(reachable, 1, "{failed:#}");
    commit(
        &repo_folder(&url),
        &[(".hearth/settings.json", r#"{"hooks":{"setup":["mended"]}}"#)],
        "mend",
    );
    pushed(&server).await;
    // At once, before a pass has seen that it was mended.
    let claimed = server.post(&format!("{pool}/claim"), json!({ "strict": true })).await;
    assert!(claimed["recipe"] != good && claimed["recipe"] != bad, "{claimed:#}");
    until_noticed(&server, &pool, &bad).await;
    until_fresh(&server, SOON, &pool, 3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_thousand_pushes_are_one_rebuild() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (server, driver) = fake(&folder, 4).await;
    let url = git_repo(folder.path(), "app", &[("a", "0")]);
    let project = follow(&server, &url).await;
    let pool = format!("{project}/warm-pool");
    until_fresh(&server, SOON, &pool, 1).await;
    let first = server.get(&format!("{pool}/explain")).await["recipe"].clone();
    let built = driver.calls(Verb::Checkpoint);
    let repo = repo_folder(&url);
    let tree = git(&repo, &["rev-parse", "HEAD^{tree}"]);
    let mut head = git(&repo, &["rev-parse", "HEAD"]);
    for number in 0..1000 {
        let message = number.to_string();
        let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        let words = ["commit-tree", &tree, "-p", &head, "-m", &message];
        head = git(&repo, &[&who[..], &words[..]].concat());
        git(&repo, &["update-ref", "refs/heads/main", &head]);
        pushed(&server).await;
    }
    until_noticed(&server, &pool, &first).await;
    let deadline = Instant::now() + SOON;
    loop {
        until_fresh(&server, SOON, &pool, 1).await;
        let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
        if claimed["repos"][0]["commit"] == head {
            break;
        }
        assert!(Instant::now() < deadline, "the last push was never built: {claimed:#}");
        pause().await;
    }
    // A project with one repository and no commands has one checkpoint of its own.
    let rebuilds = driver.calls(Verb::Checkpoint) - built;
    assert!((1..=2).contains(&rebuilds), "{rebuilds} rebuilds");
    server.stop().await;
}

#[tokio::test]
async fn a_fork_that_a_claim_ordered_before_a_push_was_built_is_of_the_push() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (server, driver) = fake(&folder, 1).await;
    let url = git_repo(folder.path(), "app", &[("a", "0")]);
    let project = follow(&server, &url).await;
    let pool = format!("{project}/warm-pool");
    until_fresh(&server, SOON, &pool, 1).await;
    let first = server.get(&format!("{pool}/explain")).await["recipe"].clone();
    // A fork is checked by a command before it is ready: the next one takes long enough for a push to be built, on a busy machine too, and its
    // turn is the only one.
    driver.add_rule(ExecRule {
        takes: Duration::from_secs(15),
        times: Some(1),
        ..ExecRule::prints("true", "")
    });
    let claim = format!("{pool}/claim");
    assert_eq!(server.post(&claim, json!({})).await["source"], "ready");
    let patient = || server.post(&claim, json!({ "waitMs": 30_000 }));
    let push = async {
        server
            .until(SOON, &format!("{pool}/instances?status=provisioning"), |list| {
                list["items"].as_array().is_some_and(|items| items.len() >= 2)
            })
            .await;
        commit(&repo_folder(&url), &[("a", "1")], "second");
        pushed(&server).await;
        until_noticed(&server, &pool, &first).await
    };
    let (one, two, second) = tokio::join!(patient(), patient(), push);
    // The turn was the refill's, which the push makes one too many, or that of one of the claims, which ends as it was begun.
    let recipes = [&one["recipe"], &two["recipe"]];
    assert!(recipes.contains(&&second), "{one:#}\n{two:#}");
    assert!(
        recipes.iter().all(|it| [&first, &second].contains(it)),
        "{one:#}\n{two:#}"
    );
    until_fresh(&server, SOON, &pool, 1).await;
    server.stop().await;
}
