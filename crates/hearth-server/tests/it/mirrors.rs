//! Mirrors go with the last project that names their repository.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::extra_content::set_submodule;
use crate::harness::{SOON, Server, git_repo, pause, repo_folder};

/// What the repositories are called whose mirrors are there: each has a file that says so.
fn mirrored(server: &Server) -> BTreeSet<String> {
    let folder = server.folder.path().join("data/mirrors");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |mirror: std::path::PathBuf| {
        let shown = Command::new("git")
            .arg("-C")
            .arg(mirror)
            .args(["show", "main:readme"])
            .output();
        // One that is just being made or removed cannot be read.
        let shown = shown.ok().filter(|shown| shown.status.success())?;
        Some(String::from_utf8(shown.stdout).unwrap().trim().to_owned())
    };
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "git"))
        .filter_map(read)
        .collect()
}

async fn until_mirrored(server: &Server, names: &[&str]) {
    let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let deadline = Instant::now() + SOON;
    loop {
        let there = mirrored(server);
        if there == names {
            return;
        }
        assert!(Instant::now() < deadline, "{there:?} instead of {names:?}");
        pause().await;
    }
}

fn repos(urls: &[&String]) -> Value {
    let repos = urls.iter().enumerate();
    let repos = repos.map(|(at, url)| json!({ "repoFullName": format!("acme/{at}"), "branch": "main", "url": url }));
    repos.collect()
}

/// A project of these repositories that was set up once.
async fn set_up(server: &Server, urls: &[&String]) -> String {
    let project = server.project(json!({ "name": "p", "repos": repos(urls) })).await;
    boot(server, &project).await;
    project
}

async fn boot(server: &Server, project: &str) {
    let boot = server.test_boot(SOON, project, json!({})).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
}

async fn delete(server: &Server, project: &str) {
    let (status, reply) = server.call(Method::DELETE, project, Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
}

#[tokio::test]
async fn mirror_goes_when_no_project_names_its_repository_and_comes_again() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let make = |name: &str| git_repo(server.folder.path(), name, &[("readme", name)]);
    let (one, two, three) = (make("one"), make("two"), make("three"));
    let first = set_up(&server, &[&one, &two]).await;
    let second = set_up(&server, &[&two]).await;
    until_mirrored(&server, &["one", "two"]).await;
    // Both name the second repository.
    delete(&server, &first).await;
    until_mirrored(&server, &["two"]).await;
    server.patch(&second, json!({ "repos": repos(&[&three]) })).await;
    until_mirrored(&server, &[]).await;
    boot(&server, &second).await;
    set_up(&server, &[&one]).await;
    until_mirrored(&server, &["one", "three"]).await;
}

#[tokio::test]
async fn mirror_of_a_submodule_stays_as_long_as_that_of_its_repository() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let make = |name: &str| git_repo(server.folder.path(), name, &[("readme", name)]);
    let (app, lib, core, other) = (make("app"), make("lib"), make("core"), make("other"));
    let folder = |url: &String| repo_folder(url);
    set_submodule(&folder(&lib), "core", "core", &core, &folder(&core));
    set_submodule(&folder(&app), "lib", "lib", &lib, &folder(&lib));
    let (with, without) = (set_up(&server, &[&app]).await, set_up(&server, &[&other]).await);
    until_mirrored(&server, &["app", "core", "lib", "other"]).await;
    delete(&server, &without).await;
    until_mirrored(&server, &["app", "core", "lib"]).await;
    delete(&server, &with).await;
    until_mirrored(&server, &[]).await;
}

/// Somebody else's fetch hangs: a claim says so within the time that it has for its own.
#[tokio::test]
async fn claim_of_a_branch_does_not_wait_for_a_fetch_that_hangs() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/acme/app.git", listener.local_addr().unwrap());
    let project = server.project(json!({ "name": "p", "repos": repos(&[&url]) })).await;
    server.post(&format!("{project}/warm-pool/test"), json!({})).await;
    // It is asked, and never answers.
    let _asked = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let began = Instant::now();
    let claim = json!({ "branch": "topic", "waitMs": 1000 });
    let (status, reply) = server
        .call(Method::POST, &format!("{project}/warm-pool/claim"), claim)
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("still busy with an earlier fetch of acme/0"),
        "{message}"
    );
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
