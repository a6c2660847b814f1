//! What a VM gets with its repositories: line ends as they are meant, who commits, what Git LFS keeps, submodules.

use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, git_repo};

/// Where a VM's git finds who commits.
const GIT_CONFIG: &str = "/etc/gitconfig.hearth";

/// The commands that a VM's shells were given, but for Hearth's own.
fn shells(driver: &FakeDriver, vm: &Value) -> Vec<String> {
    let commands = driver.commands(&vm.as_str().unwrap().parse().unwrap());
    let shells = commands.into_iter().filter_map(|spec| spec.shell);
    shells.filter(|shell| !shell.contains("HEARTH_NAME")).collect()
}

#[tokio::test]
async fn carriage_returns_at_line_ends_and_a_byte_order_mark_are_no_part_of_commands() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let settings = "\u{feff}{\"hooks\":{\"setup\":[\"cd hooks\\r\",\"one\\r\\ntwo\"]}}\r\n";
    let url = git_repo(server.folder.path(), "app", &[(".hearth/settings.json", settings)]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let own = json!([{ "name": "own", "command": "p1\r\np2\r\n" }]);
    let project = server
        .project(json!({ "name": "p", "repos": repos, "projectSetup": own }))
        .await;
    let setup = json!({ "repositories": [{
        "repository": "acme/app", "branch": "main", "commands": [],
        "scripts": { "initialize": "i1\r\ni2\r", "updateAfterCheckout": null, "startup": "s1\r\n" }
    }] });
    let saved = server.patch(&format!("{project}/setup"), setup.clone()).await;
    // What was saved reads back as it was given.
    assert_eq!(saved["setup"]["repositories"], setup["repositories"]);
    let commands = json!([{ "name": "w", "command": "a=\"x\\ry\"\r\nprintf $'\\r'\r" }]);
    let boot = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands }))
        .await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let pool = server.get(&format!("{project}/warm-pool")).await;
    assert_eq!(pool["config"]["setupCommands"], commands);
    let expected = [
        "cd hooks",
        "one\ntwo",
        "p1\np2\n",
        "i1\ni2",
        "a=\"x\\ry\"\nprintf $'\\r'",
        "s1\n",
    ];
    assert_eq!(shells(&driver, &boot["instanceId"]), expected);
    let id = boot["id"].as_str().unwrap();
    let exec = json!({ "command": "e1\r\ne2\r" });
    server.post(&format!("/instances/{id}/exec"), exec).await;
    let vm = boot["instanceId"].as_str().unwrap().parse().unwrap();
    let last = driver.commands(&vm).pop().unwrap();
    assert_eq!(last.argv.unwrap(), ["bash", "-c", "e1\ne2"]);
    server.stop().await;
}

/// Whom the VM's git commits as, read by git itself.
fn identity(driver: &FakeDriver, vm: &Value) -> String {
    let text = driver.file(&vm.as_str().unwrap().parse().unwrap(), GIT_CONFIG).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    let get = |key: &str| {
        let asks = ["config", "--file", file.path().to_str().unwrap(), "--get", key];
        crate::harness::git(file.path().parent().unwrap(), &asks)
    };
    assert_eq!(get("safe.directory"), "*");
    format!("{} <{}>", get("user.name"), get("user.email"))
}

#[tokio::test]
async fn commits_are_the_claims_or_the_projects_or_the_claimers() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let mut body = bare_project();
    body["gitIdentity"] = json!({ "name": "Shop \"Agent\"", "email": "shop@example.org" });
    let project = server.project(body).await;
    let shown = server.get(&project).await;
    assert!(shown.get("gitIdentity").is_none(), "a documented reply: {shown}");
    let view = server.get(&format!("{project}/view")).await;
    assert_eq!(view["gitIdentity"]["name"], "Shop \"Agent\"");
    server
        .patch(
            &format!("{project}/warm-pool"),
            json!({ "enabled": true, "targetSize": 1 }),
        )
        .await;
    server.until_full(SOON, &project, 1).await;
    let claim = format!("{project}/warm-pool/claim");
    let ready = server.get(&format!("{project}/warm-pool/instances")).await["items"][0]["instanceId"].clone();
    // It is there while the set-up runs already.
    assert_eq!(identity(&driver, &ready), "Shop \"Agent\" <shop@example.org>");
    let claimed = server.post(&claim, json!({})).await;
    assert_eq!(
        identity(&driver, &claimed["instanceId"]),
        "Shop \"Agent\" <shop@example.org>"
    );
    let own = json!({ "gitIdentity": { "name": "Task", "email": "task@example.org" }, "waitMs": 20_000 });
    let claimed = server.post(&claim, own).await;
    assert_eq!(identity(&driver, &claimed["instanceId"]), "Task <task@example.org>");
    server.patch(&project, json!({ "gitIdentity": null })).await;
    assert_eq!(server.get(&format!("{project}/view")).await["gitIdentity"], json!(null));
    let claimed = server.post(&claim, json!({ "waitMs": 20_000 })).await;
    assert_eq!(
        identity(&driver, &claimed["instanceId"]),
        "default <default@hearth.invalid>"
    );
    // A VM that is not claimed can commit as well.
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(identity(&driver, &boot["instanceId"]), "hearth <hearth@hearth.invalid>");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_git_identity_is_422_and_the_field_is_named() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    for (identity, at) in [
        (json!({ "name": "a" }), "gitIdentity.email"),
        (json!({ "name": "a\nb", "email": "a@b" }), "gitIdentity.name"),
        (json!({ "name": "<>", "email": "a@b" }), "gitIdentity.name"),
        (json!({ "name": " . ", "email": "a@b" }), "gitIdentity.name"),
        (json!({ "name": "a", "email": "a b@c" }), "gitIdentity.email"),
        (json!({ "name": "a", "email": "<a@b>" }), "gitIdentity.email"),
        (json!({ "name": "a", "email": "a@b", "x": 1 }), "gitIdentity.x"),
        (json!("a <a@b>"), "gitIdentity"),
    ] {
        for (method, path) in [
            (Method::PATCH, project.clone()),
            (Method::POST, format!("{project}/warm-pool/claim")),
        ] {
            let (status, reply) = server.call(method, &path, json!({ "gitIdentity": identity })).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{identity}: {reply}");
            assert_eq!(reply["error"]["details"][0]["path"], at, "{identity}: {reply}");
        }
    }
    server.stop().await;
}
