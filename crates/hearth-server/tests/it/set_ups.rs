//! A VM that was made by another set-up than its pool is to follow: said in the reply, and offered its own commands.

use hearth_drivers::fake::FakeOptions;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, git_repo};

/// A setup object for `acme/app`.
fn setup(startup: &str, command: &str) -> Value {
    let scripts = json!({ "initialize": null, "updateAfterCheckout": null, "startup": startup });
    let commands = json!([{ "name": "test", "command": command }]);
    json!({ "vmSize": "small", "repositories": [
        { "repository": "acme/app", "branch": "main", "scripts": scripts, "commands": commands } ] })
}

#[tokio::test]
async fn a_vm_of_an_older_set_up_is_said_to_be_and_offers_the_commands_it_was_made_with() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let url = git_repo(server.folder.path(), "app", &[("a", "1")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    let claim = format!("{pool}/claim");
    server
        .patch(&format!("{project}/setup"), setup("serve", "old test"))
        .await;
    server.patch(&pool, json!({ "enabled": true })).await;
    server.until_full(SOON, &project, 1).await;
    let current = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    assert!(current.get("stale").is_none(), "{current:#}");
    server.patch(&pool, json!({ "enabled": false })).await;
    server.until_full(SOON, &project, 0).await;

    let before = jiff::Timestamp::now();
    server
        .patch(&format!("{project}/setup"), setup("serve --new", "new test"))
        .await;
    let variables = json!({ "variables": [{ "name": "SECRET", "value": "geheim-4711" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let stale = server.post(&claim, json!({ "taskId": "T", "waitMs": 20_000 })).await;
    assert_eq!(
        (&stale["source"], &stale["stale"]),
        (&json!("fork"), &json!(true)),
        "{stale:#}"
    );
    assert_eq!(stale["staleParts"], json!(["scripts", "variables"]), "{stale:#}");
    let since: jiff::Timestamp = stale["staleSince"].as_str().unwrap().parse().unwrap();
    assert!(
        since.as_millisecond() >= before.as_millisecond() && since <= jiff::Timestamp::now(),
        "{stale:#}"
    );
    assert_eq!(
        server.post(&claim, json!({ "taskId": "T", "waitMs": 20_000 })).await,
        stale
    );
    let commands = async |reply: &Value| {
        let view = server
            .get(&format!("/instances/{}", reply["id"].as_str().unwrap()))
            .await;
        view["commands"][0]["command"].clone()
    };
    assert_eq!(commands(&stale).await, "old test");
    assert_eq!(commands(&current).await, "old test");

    let strict = server.post(&claim, json!({ "strict": true, "waitMs": 20_000 })).await;
    assert!(strict.get("stale").is_none(), "{strict:#}");
    assert_eq!(commands(&strict).await, "new test");
    // A command that only a person runs changes no VM: it is offered in those that are there.
    server
        .patch(&format!("{project}/setup"), setup("serve --new", "newest test"))
        .await;
    assert_eq!(commands(&strict).await, "newest test");
    assert_eq!(commands(&stale).await, "old test");
    server.stop().await;
}
