//! The branch that a claim asks for: it gets that one, or a clear refusal.

use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, commit, git, git_repo, options, repo_folder};
use crate::secrets::files_with;
use crate::watch::SELDOM;

/// Ends the script that moves a checkout, and no other command.
const MOVE: &str = "$TARGET";
/// Of the script that tells what a set-up left.
const RECORD: &str = "update-index";

/// A server that follows branches by webhooks alone.
async fn server(rules: Vec<ExecRule>) -> (Server, FakeDriver) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.watch_interval = SELDOM;
    let driver = FakeDriver::new(
        1,
        FakeOptions {
            rules,
            ..FakeOptions::default()
        },
    );
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    (Server::start(folder, options, move |_| Ok(made)).await.unwrap(), driver)
}

/// A branch with one commit of its own; that commit.
fn branch(url: &str, name: &str) -> String {
    let repo = repo_folder(url);
    git(&repo, &["checkout", "--quiet", "-b", name]);
    commit(&repo, &[("file", name)], name);
    let head = git(&repo, &["rev-parse", "HEAD"]);
    git(&repo, &["checkout", "--quiet", "main"]);
    head
}

/// A full pool of a project with these repositories; its path.
async fn pool(server: &Server, repos: &[(&str, &str)], target: u64) -> String {
    let repos: Vec<_> = repos
        .iter()
        .map(|(name, url)| json!({ "repoFullName": name, "branch": "main", "url": url }))
        .collect();
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    server
        .patch(&pool, json!({ "enabled": true, "targetSize": target }))
        .await;
    server.until_full(SOON, &project, target).await;
    pool
}

fn message(reply: &Value) -> &str {
    reply["error"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn a_branch_that_no_repository_has_is_refused_and_costs_no_vm() {
    let (server, _) = server(Vec::new()).await;
    let parent = server.folder.path();
    let (app, lib) = (
        git_repo(parent, "app", &[("a", "1")]),
        git_repo(parent, "lib", &[("a", "1")]),
    );
    branch(&app, "feature/login");
    let pool = pool(&server, &[("acme/app", &app), ("acme/lib", &lib)], 1).await;
    let claim = format!("{pool}/claim");
    let ready = server.get(&format!("{pool}/instances?status=ready")).await;
    for miss in ["prefer", "require", "bypass"] {
        let asked = json!({ "branch": "feature/logni", "miss": miss, "waitMs": 20_000 });
        let (status, reply) = server.call(Method::POST, &claim, asked).await;
        assert_eq!(
            (status, &reply["error"]["code"]),
            (StatusCode::CONFLICT, &json!("conflict"))
        );
        assert_eq!(
            message(&reply),
            "no repository has a branch `feature/logni`; similar ones in acme/app: `feature/login`; acme/lib has `main`; \
             push it, or claim another branch; nothing was handed over"
        );
    }
    // No VM was spent, and none was made.
    assert_eq!(server.get(&format!("{pool}/instances")).await, ready);
    let bare = server.project(bare_project()).await;
    let (status, _) = server
        .call(
            Method::POST,
            &format!("{bare}/warm-pool/claim"),
            json!({ "branch": "x", "waitMs": 20_000 }),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    server.stop().await;
}

#[tokio::test]
async fn repositories_without_the_branch_are_named_and_one_that_cannot_be_asked_is_no_answer() {
    let (server, _) = server(Vec::new()).await;
    let parent = server.folder.path();
    let (app, lib) = (
        git_repo(parent, "app", &[("a", "1")]),
        git_repo(parent, "lib", &[("a", "1")]),
    );
    let topic = branch(&app, "topic");
    let pool = pool(&server, &[("acme/app", &app), ("acme/lib", &lib)], 2).await;
    let claim = format!("{pool}/claim");
    let asked = json!({ "branch": "topic", "taskId": "T" });
    let reply = server.post(&claim, asked.clone()).await;
    let (first, second) = (&reply["repos"][0], &reply["repos"][1]);
    assert_eq!(
        (&first["branch"], &first["commit"]),
        (&json!("topic"), &json!(topic)),
        "{reply:#}"
    );
    assert_eq!(
        (&second["branch"], &second["branchMissing"]),
        (&json!("main"), &json!(true)),
        "{reply:#}"
    );
    assert!(first.get("branchMissing").is_none(), "{reply:#}");
    // What the instance is said to hold is what it was brought to.
    let view = server
        .get(&format!("/instances/{}", reply["id"].as_str().unwrap()))
        .await;
    assert_eq!(view["repos"], reply["repos"]);
    std::fs::rename(repo_folder(&lib), parent.join("elsewhere")).unwrap();
    let (status, refused) = server.call(Method::POST, &claim, json!({ "branch": "main2" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{refused:#}");
    assert!(
        message(&refused).starts_with("it is not known whether acme/lib has a branch `main2`: cannot fetch acme/lib"),
        "{refused:#}"
    );
    // A claim that was answered is answered the same, whatever became of the branch.
    git(&repo_folder(&app), &["branch", "--quiet", "-D", "topic"]);
    assert_eq!(server.post(&claim, asked).await, reply);
    server.stop().await;
}

#[tokio::test]
async fn tags_and_replaced_branches_lead_nobody_astray() {
    let (server, _) = server(Vec::new()).await;
    let app = git_repo(server.folder.path(), "app", &[("a", "1")]);
    let repo = repo_folder(&app);
    let topic = branch(&app, "topic");
    for tag in ["topic", "origin/topic", "main", "heads/main"] {
        git(&repo, &["tag", tag, "refs/heads/main"]);
    }
    branch(&app, "rel");
    let pool = pool(&server, &[("acme/app", &app)], 1).await;
    let claim = format!("{pool}/claim");
    let claim = async |branch: &str| server.post(&claim, json!({ "branch": branch, "waitMs": 20_000 })).await;
    assert_eq!(claim("topic").await["repos"][0]["commit"], topic);
    assert_eq!(claim("rel").await["repos"][0]["branch"], "rel");
    git(&repo, &["branch", "--quiet", "-D", "rel"]);
    let second = branch(&app, "rel/2");
    assert_eq!(claim("rel/2").await["repos"][0]["commit"], second);
    // A tag alone is no branch.
    git(&repo, &["tag", "only-a-tag"]);
    let (status, _) = server
        .call(
            Method::POST,
            &format!("{pool}/claim"),
            json!({ "branch": "only-a-tag" }),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    server.stop().await;
}

#[tokio::test]
async fn a_checkout_that_cannot_be_moved_costs_two_vms_and_then_the_claim_is_refused() {
    let (server, driver) = server(Vec::new()).await;
    let app = git_repo(server.folder.path(), "app", &[("a", "1")]);
    let topic = branch(&app, "topic");
    let pool = pool(&server, &[("acme/app", &app)], 2).await;
    let claim = format!("{pool}/claim");
    let refuses = |times| ExecRule {
        times: Some(times),
        ..ExecRule::fails(MOVE, 3, "")
    };
    driver.add_rule(refuses(1));
    let asked = json!({ "branch": "topic", "waitMs": 20_000 });
    let reply = server.post(&claim, asked.clone()).await;
    assert_eq!(reply["repos"][0]["commit"], topic, "{reply:#}");
    let why = server
        .get(&format!("/instances/{}/claim", reply["id"].as_str().unwrap()))
        .await;
    assert!(
        why["why"]
            .as_str()
            .unwrap()
            .contains("cannot be moved to the branch `topic`"),
        "{why:#}"
    );
    for (code, says) in [
        (3, "were changed after its set-up"),
        (1, "git in the VM said: no room"),
        (4, "no repository at /home/app"),
    ] {
        driver.add_rule(ExecRule {
            times: Some(2),
            ..ExecRule::fails(MOVE, code, "no room\n")
        });
        let (status, reply) = server.call(Method::POST, &claim, asked.clone()).await;
        assert_eq!(status, StatusCode::CONFLICT, "{reply:#}");
        assert!(
            message(&reply).contains(says) && message(&reply).contains("nothing was handed over"),
            "{reply:#}"
        );
    }
    assert_eq!(server.post(&claim, asked).await["repos"][0]["commit"], topic);
    server.stop().await;
}

/// What git in a VM says may quote the task's variables: a hook of the repository prints them, say.
#[tokio::test]
async fn what_git_in_a_claimed_vm_says_is_redacted_in_refusal_and_trace() {
    const SECRET: &str = "s3cret-of-the-task";
    let (server, driver) = server(Vec::new()).await;
    let app = git_repo(server.folder.path(), "app", &[("a", "1")]);
    branch(&app, "topic");
    let pool = pool(&server, &[("acme/app", &app)], 2).await;
    let claim = format!("{pool}/claim");
    let refuses = |times| ExecRule {
        times: Some(times),
        ..ExecRule::fails(MOVE, 1, &format!("no room for {SECRET}\n"))
    };
    let asked = json!({ "branch": "topic", "env": { "TASK": SECRET }, "waitMs": 20_000 });
    driver.add_rule(refuses(1));
    let reply = server.post(&claim, asked.clone()).await;
    let explained = server
        .get(&format!("/instances/{}/claim", reply["id"].as_str().unwrap()))
        .await;
    assert!(
        explained["why"].as_str().unwrap().contains("no room for ***"),
        "{explained:#}"
    );
    driver.add_rule(refuses(2));
    let (status, refused) = server.call(Method::POST, &claim, asked).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused:#}");
    assert!(
        message(&refused).contains("git in the VM said: no room for ***"),
        "{refused:#}"
    );
    for text in [explained.to_string(), refused.to_string()] {
        assert!(!text.contains(SECRET), "{text}");
    }
    let (folder, _) = server.stop().await;
    let mut found = Vec::new();
    files_with(folder.path(), SECRET.as_bytes(), &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[tokio::test]
async fn a_checkout_that_stays_behind_is_said_to_and_one_that_its_set_up_moved_is_told_as_it_is() {
    let (server, driver) = server(Vec::new()).await;
    let app = git_repo(server.folder.path(), "app", &[("a", "1")]);
    let first = git(&repo_folder(&app), &["rev-parse", "HEAD"]);
    let pool = pool(&server, &[("acme/app", &app)], 1).await;
    driver.add_rule(ExecRule {
        times: Some(1),
        ..ExecRule::fails(MOVE, 3, "")
    });
    // What is pushed cannot be set up: the pool stays on the commit before.
    driver.add_rule(ExecRule::fails("reset --hard", 1, "no\n"));
    commit(&repo_folder(&app), &[("a", "2")], "second");
    let claim = format!("{pool}/claim");
    server.post(&format!("{pool}/test"), json!({})).await;
    let noticed = |it: &Value| {
        it["instances"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["current"] == false)
    };
    server.until(SOON, &format!("{pool}/explain"), noticed).await;
    let reply = server.post(&claim, json!({})).await;
    let repo = &reply["repos"][0];
    assert_eq!(
        (&repo["commit"], &repo["behind"]),
        (&json!(first), &json!(true)),
        "{reply:#}"
    );
    assert!(
        repo["why"].as_str().unwrap().contains("were changed after its set-up"),
        "{reply:#}"
    );
    let (server, _) = {
        server.stop().await;
        let own = "# branch.oid 1111111111111111111111111111111111111111\n# branch.head (detached)\n";
        self::server(vec![ExecRule::prints(RECORD, own)]).await
    };
    let app = git_repo(server.folder.path(), "app", &[("a", "1")]);
    let main = git(&repo_folder(&app), &["rev-parse", "HEAD"]);
    let pool = self::pool(&server, &[("acme/app", &app)], 1).await;
    let reply = server.post(&format!("{pool}/claim"), json!({})).await;
    let repo = &reply["repos"][0];
    assert_eq!(
        (&repo["branch"], &repo["commit"], &repo["cloned"]),
        (
            &json!("(detached)"),
            &json!("1111111111111111111111111111111111111111"),
            &json!({ "branch": "main", "commit": main })
        ),
        "{reply:#}"
    );
    server.stop().await;
}
