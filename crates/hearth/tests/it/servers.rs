//! Three servers on one PostgreSQL, as processes: one is killed, and nothing is lost or double.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::server::{Server, command};
use crate::support::{eventually, hearth, run};

fn start(folder: &Path, url: &str) -> Server {
    let mut command = command(folder, &["--listen", "127.0.0.1:0"]);
    command.env("HEARTH_DATABASE", url);
    Server::started(folder, command)
}

fn logs(servers: &[Server]) -> String {
    servers.iter().map(Server::log).collect()
}

/// A claim that asks one server after the other until one answers, as a client behind a load balancer does.
fn claim(servers: &[String], token: &Path, project: &str, task: &str) -> String {
    let mut id = None;
    let mut at = 0;
    eventually("the claim is answered", || {
        at += 1;
        let url = &servers[at % servers.len()];
        let token = token.to_str().unwrap();
        let asked = hearth(&[
            "--url",
            url,
            "--token-file",
            token,
            "--json",
            "claim",
            project,
            "--task",
            task,
            "--wait",
            "5",
        ]);
        let answer: Option<Value> = serde_json::from_str(&run(asked).stdout).ok();
        id = answer.and_then(|claim| claim["id"].as_str().map(str::to_owned));
        id.is_some()
    });
    id.unwrap()
}

#[test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn killed_server_loses_no_claim_and_the_others_serve_its_pools() {
    let url = hearth_test_postgres::shared().database();
    let folders: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let data = |name: &str| folders[0].path().join("data").join(name);
    let mut servers = vec![start(folders[0].path(), &url)];
    let token = data("admin-token");
    for folder in &folders[1..] {
        let own = folder.path().join("data");
        fs::create_dir(&own).unwrap();
        fs::copy(data("secret.key"), own.join("secret.key")).unwrap();
        servers.push(start(folder.path(), &url));
    }
    let mut urls: Vec<String> = servers.iter().map(Server::url).collect();
    let ask = |url: &str, words: &[&str]| {
        run(hearth(
            &[&["--url", url, "--token-file", token.to_str().unwrap()], words].concat(),
        ))
    };
    let projects = ["one", "two", "three", "four", "five", "six"];
    for project in projects {
        // As a client does it: what is refused for the moment is asked again.
        for (url, words) in [
            (&urls[0], ["project", "create", project, "--exist-ok"].as_slice()),
            (&urls[1], &["pool", "set", project, "--enabled", "--target", "2"]),
        ] {
            eventually("it is done", || {
                let done = ask(url, words);
                if done.code != 0 {
                    println!("{}\n{}", done.stderr, logs(&servers));
                }
                done.code == 0
            });
        }
    }
    let listed = |url: &str| -> Vec<Value> {
        let listed = ask(url, &["server", "list", "--json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        listed["items"].as_array().unwrap().clone()
    };
    eventually("each has two pools", || {
        listed(&urls[2]).iter().all(|server| server["pools"] == 2)
    });
    let mut claims: BTreeMap<String, String> = BTreeMap::new();
    let mut claim_all = |urls: &[String], round: &str| {
        for project in projects {
            let task = format!("{project}-{round}");
            let id = claim(urls, &token, project, &task);
            assert!(!claims.values().any(|other| *other == id), "{id} is given twice");
            // Asked for again, it is the same one.
            assert_eq!(claim(&urls[1..], &token, project, &task), id);
            claims.insert(task, id);
        }
    };
    claim_all(&urls, "before");
    servers[2].signal(Signal::SIGKILL);
    servers[2].wait();
    let gone = urls.pop().unwrap();
    claim_all(&urls, "after");
    let servers_now = listed(&urls[0]);
    let dead = servers_now
        .iter()
        .find(|server| server["url"] == gone.as_str())
        .unwrap();
    assert_eq!((&dead["alive"], &dead["pools"]), (&Value::Bool(false), &Value::from(0)));
    // It is removed for good: nothing waits for it any more.
    let mut uninstall = hearth(&["uninstall", "--yes", "--data-dir"]);
    uninstall
        .arg(folders[2].path().join("data"))
        .env("HEARTH_DATABASE", &url);
    let removed = run(uninstall);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    assert_eq!(listed(&urls[1]).len(), 2);
}
