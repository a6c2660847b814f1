//! The setup object, from the request to what runs in a VM; settings files; personal variables.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, commit, git, git_repo};

/// Hooks as they are in repositories today.
const LEGACY: &str = r#"{"hooks":{"setup":["legacy-hook"],"terminals":[{"name":"dev","command":"npm run dev"}]}}"#;

async fn server(rules: Vec<ExecRule>) -> (Server, FakeDriver) {
    Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await
}

/// A project with these repositories, each with one file.
pub async fn project_of(server: &Server, names: &[&str], file: (&str, &str)) -> String {
    let repos: Vec<Value> = names
        .iter()
        .map(|name| {
            let url = git_repo(server.folder.path(), name, &[file]);
            json!({ "repoFullName": format!("acme/{name}"), "branch": "main", "url": url })
        })
        .collect();
    server.project(json!({ "name": "p", "repos": repos })).await
}

fn repo(name: &str, initialize: Option<&str>, update: Option<&str>, startup: Option<&str>) -> Value {
    json!({
        "repository": format!("acme/{name}"), "branch": "main",
        "scripts": { "initialize": initialize, "updateAfterCheckout": update, "startup": startup },
        "timeouts": { "initialize": 60, "startup": 3600 },
        "commands": [{ "name": "test", "command": "cargo test" }]
    })
}

fn shells(driver: &FakeDriver, vm: &Value) -> Vec<(String, Option<String>, Option<u64>)> {
    driver
        .commands(&vm.as_str().unwrap().parse().unwrap())
        .into_iter()
        .filter_map(|spec| Some((spec.shell?, spec.cwd, spec.timeout_ms)))
        .collect()
}

#[tokio::test]
async fn the_setup_object_is_made_up_until_it_is_saved_and_then_comes_back_as_it_was() {
    let (server, _) = server(Vec::new()).await;
    let project = project_of(&server, &["app", "lib"], ("a", "b")).await;
    let path = format!("{project}/setup");
    let before = server.get(&path).await;
    assert_eq!(
        (&before["source"], &before["legacyHooks"]),
        (
            &json!("none"),
            &json!({ "status": "none", "repositories": [], "checkComplete": true })
        )
    );
    let empty = json!({ "initialize": null, "updateAfterCheckout": null, "startup": null });
    assert_eq!(
        before["setup"],
        json!({ "vmSize": "medium", "repositories": [
            { "repository": "acme/app", "branch": "main", "scripts": empty, "commands": [] },
            { "repository": "acme/lib", "branch": "main", "scripts": empty, "commands": [] }
        ] })
    );
    let body = json!({
        "vmSize": "small",
        "repositories": [repo("app", Some("init"), None, Some("start"))],
        "hooks": { "pre": { "edit": ["lint"] }, "context": { "maxOutputLength": 2000, "truncateStrategy": "tail" } }
    });
    let saved = server.patch(&path, body.clone()).await;
    assert_eq!((&saved["source"], &saved["setup"]), (&json!("setup"), &body));
    // Absent keeps: the size and the hooks stay, the repositories are replaced.
    let other = json!({ "repositories": [repo("lib", None, Some("update"), None)] });
    let saved = server.patch(&path, other.clone()).await["setup"].clone();
    assert_eq!(
        (&saved["vmSize"], &saved["hooks"], &saved["repositories"]),
        (&json!("small"), &body["hooks"], &other["repositories"])
    );
    assert_eq!(server.get(&path).await["setup"], saved);
}

#[tokio::test]
async fn wrong_setup_objects_are_422_and_every_field_is_named() {
    let (server, _) = server(Vec::new()).await;
    let project = project_of(&server, &["app"], ("a", "b")).await;
    let path = format!("{project}/setup");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({ "repositories": [repo("app", None, None, None)] });
        change(&mut body);
        body
    };
    for (body, at) in [
        (json!({}), "repositories"),
        (json!({ "repositories": null }), "repositories"),
        (with(&|it| it["vmSize"] = json!("huge")), "vmSize"),
        (
            with(&|it| it["repositories"][0]["timeouts"]["startup"] = json!(59)),
            "repositories[0].timeouts.startup",
        ),
        (
            with(&|it| it["repositories"][0]["timeouts"]["startup"] = json!(3601)),
            "repositories[0].timeouts.startup",
        ),
        (
            with(&|it| it["repositories"][0]["scripts"]["startup"] = json!(1)),
            "repositories[0].scripts.startup",
        ),
        (
            with(&|it| it["repositories"][0]["scripts"] = json!({})),
            "repositories[0].scripts.initialize",
        ),
        (
            with(&|it| it["repositories"][0]["repository"] = json!("acme/other")),
            "repositories[0].repository",
        ),
        (
            with(&|it| it["repositories"][0]["commands"] = json!([{ "name": "x" }])),
            "repositories[0].commands[0].command",
        ),
        (
            with(&|it| it["hooks"] = json!({ "context": { "maxOutputLength": 0 } })),
            "hooks.context.maxOutputLength",
        ),
        (
            with(&|it| it["hooks"] = json!({ "context": { "truncateStrategy": "x" } })),
            "hooks.context.truncateStrategy",
        ),
        (
            with(&|it| it["hooks"] = json!({ "pre": { "edit": "x" } })),
            "hooks.pre.edit",
        ),
    ] {
        let (status, reply) = server.call(Method::PATCH, &path, body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let details = reply["error"]["details"].as_array().unwrap();
        assert!(details.iter().any(|detail| detail["path"] == at), "{body}: {reply}");
    }
    assert_eq!(server.get(&path).await["source"], "none");
}

#[tokio::test]
async fn hooks_in_capy_settings_run_until_a_setup_object_replaces_them() {
    let (server, driver) = server(Vec::new()).await;
    let project = project_of(&server, &["app"], (".capy/settings.json", LEGACY)).await;
    let path = format!("{project}/setup");
    let before = server.get(&path).await;
    assert_eq!(
        (
            &before["source"],
            &before["legacyHooks"]["status"],
            &before["legacyHooks"]["repositories"]
        ),
        (&json!("legacy"), &json!("active"), &json!(["acme/app"]))
    );
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert!(
        shells(&driver, &boot["instanceId"])
            .iter()
            .any(|(shell, ..)| shell == "legacy-hook")
    );
    let view = server
        .get(&format!("/instances/{}", boot["id"].as_str().unwrap()))
        .await;
    assert_eq!(
        (
            &view["settings"][0]["file"],
            &view["settings"][0]["settings"]["hooks"]["terminals"][0]["name"]
        ),
        (&json!(".capy/settings.json"), &json!("dev"))
    );
    let body = json!({ "repositories": [repo("app", Some("init"), None, None)] });
    let (status, reply) = server.call(Method::PATCH, &path, body.clone()).await;
    assert_eq!(
        (status, &reply["error"]["details"][0]["path"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("replaceLegacyHooks"))
    );
    let saved = server
        .patch(&format!("{path}?replaceLegacyHooks=true"), body.clone())
        .await;
    assert_eq!(
        (&saved["source"], &saved["legacyHooks"]["status"]),
        (&json!("setup"), &json!("ignored"))
    );
    // Once replaced they are not active any more: no second confirmation.
    server.patch(&path, body).await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let ran = shells(&driver, &boot["instanceId"]);
    assert!(!ran.iter().any(|(shell, ..)| shell == "legacy-hook"), "{ran:?}");
    // What its file says beside the hooks is shown all the same.
    let view = server
        .get(&format!("/instances/{}", boot["id"].as_str().unwrap()))
        .await;
    assert_eq!(
        view["settings"][0]["settings"],
        json!({ "hooks": { "terminals": [{ "name": "dev", "command": "npm run dev", "readonly": false }] } })
    );
    assert!(
        ran.contains(&("init".to_owned(), Some("/home/app".to_owned()), Some(60_000))),
        "{ran:?}"
    );
}

#[tokio::test]
async fn scripts_run_by_phase_all_repositories_at_once_and_the_size_is_the_objects() {
    let slow = |contains: &str| ExecRule {
        takes: Duration::from_millis(400),
        ..ExecRule::prints(contains, "did it\n")
    };
    let (server, driver) = server(vec![slow("init-")]).await;
    let project = project_of(&server, &["app", "lib"], ("a", "b")).await;
    let repositories = json!([
        repo("app", Some("init-app"), Some("never"), Some("start-app")),
        repo("lib", Some("init-lib"), None, None)
    ]);
    let body = json!({ "vmSize": "large", "repositories": repositories });
    server.patch(&format!("{project}/setup"), body).await;
    let commands = json!({ "setupCommands": [{ "name": "pool", "command": "pool-command" }] });
    let boot = server.test_boot(SOON, &project, commands).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let steps: Vec<(&str, &str)> = boot["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            let script = step["metadata"]["script"].as_str().unwrap_or_default();
            (step["name"].as_str().unwrap(), script)
        })
        .collect();
    assert_eq!(
        steps,
        [
            ("create_vm", ""),
            ("ensure_server", ""),
            ("clone_repo", ""),
            ("clone_repo", ""),
            ("repo_setup", "initialize"),
            ("repo_setup", "initialize"),
            ("warm_pool_setup", ""),
            ("repo_setup", "startup")
        ]
    );
    assert_eq!(boot["steps"][0]["metadata"]["memoryMib"], 8192);
    let took = |at: usize| boot["steps"][at]["durationMs"].as_u64().unwrap();
    let end = |at: usize| {
        boot["steps"][at]["timestamp"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    let apart = end(5).duration_since(end(4)).as_millis();
    assert!(
        took(4) >= 400 && took(5) >= 400 && apart < 300,
        "they did not run together: {apart} ms apart"
    );
    assert_eq!(boot["steps"][4]["output"], "did it\n");
    let ran = shells(&driver, &boot["instanceId"]);
    let at = |name: &str| ran.iter().position(|(shell, ..)| shell == name);
    assert!(
        at("init-app") < at("pool-command") && at("pool-command") < at("start-app"),
        "{ran:?}"
    );
    assert_eq!(at("never"), None);
    assert!(ran.contains(&("start-app".to_owned(), Some("/home/app".to_owned()), Some(3_600_000))));
}

#[tokio::test]
async fn a_failing_script_fails_the_instance_and_ends_the_others() {
    let hangs = ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("hang", "")
    };
    let (server, _) = server(vec![hangs, ExecRule::fails("broken", 7, "no such thing\n")]).await;
    let project = project_of(&server, &["app", "lib"], ("a", "b")).await;
    let repositories = json!([
        repo("app", Some("hang"), None, None),
        repo("lib", Some("broken"), None, None)
    ]);
    server
        .patch(&format!("{project}/setup"), json!({ "repositories": repositories }))
        .await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(
        (&boot["status"], &boot["summary"]["failedStep"], &boot["failureReason"]),
        (
            &json!("failed"),
            &json!("repo_setup"),
            &json!("exit code 7: no such thing")
        )
    );
    assert_eq!(
        boot["steps"].as_array().unwrap().last().unwrap()["metadata"]["repo"],
        "acme/lib"
    );
}

#[tokio::test]
async fn a_claim_that_moves_the_checkout_updates_it_and_a_failing_update_is_a_conflict() {
    let (server, driver) = server(vec![ExecRule::fails("update-bad", 3, "lockfile is broken\n")]).await;
    let project = project_of(&server, &["app", "lib"], ("a", "b")).await;
    let app = server.folder.path().join("repos/app");
    git(&app, &["checkout", "--quiet", "-b", "feature"]);
    commit(&app, &[("a", "feature")], "feature");
    let feature = git(&app, &["rev-parse", "HEAD"]);
    let (setup, pool) = (format!("{project}/setup"), format!("{project}/warm-pool"));
    let good = json!([
        repo("app", None, Some("update-good"), Some("start")),
        repo("lib", None, None, None)
    ]);
    server.patch(&setup, json!({ "repositories": good })).await;
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    let moved = server
        .post(&format!("{pool}/claim"), json!({ "branch": "feature" }))
        .await;
    assert_eq!(
        (&moved["repos"][0]["branch"], &moved["repos"][0]["commit"]),
        (&json!("feature"), &json!(feature))
    );
    let ran = shells(&driver, &moved["instanceId"]);
    let count = |name: &str| ran.iter().filter(|(shell, ..)| shell == name).count();
    // Processes were kept, so services are not started again.
    assert_eq!((count("update-good"), count("start")), (1, 1), "{ran:?}");
    server.until_full(SOON, &project, 1).await;
    let stays = server.post(&format!("{pool}/claim"), json!({})).await;
    let ran = shells(&driver, &stays["instanceId"]);
    assert!(!ran.iter().any(|(shell, ..)| shell == "update-good"), "{ran:?}");
    let bad = json!([repo("app", None, Some("update-bad"), None)]);
    server.patch(&setup, json!({ "repositories": bad })).await;
    server.until_full(SOON, &project, 1).await;
    let claim = json!({ "branch": "feature", "taskId": "T" });
    let (status, reply) = server.call(Method::POST, &format!("{pool}/claim"), claim).await;
    let message = reply["error"]["message"].as_str().unwrap();
    assert_eq!(status, StatusCode::CONFLICT, "{reply}");
    assert!(
        message.contains("updateAfterCheckout of acme/app failed: exit code 3: lockfile is broken"),
        "{message}"
    );
}

#[tokio::test]
async fn where_a_hand_over_loses_processes_services_are_started_again() {
    let (server, driver) = Server::fake(FakeOptions {
        loses_processes: true,
        ..FakeOptions::default()
    })
    .await;
    let project = project_of(&server, &["app"], ("a", "b")).await;
    let repositories = json!([repo("app", None, None, Some("start"))]);
    server
        .patch(&format!("{project}/setup"), json!({ "repositories": repositories }))
        .await;
    let claimed = server
        .post(&format!("{project}/warm-pool/claim"), json!({ "waitMs": 20_000 }))
        .await;
    let ran = shells(&driver, &claimed["instanceId"]);
    assert_eq!(ran.iter().filter(|(shell, ..)| shell == "start").count(), 2, "{ran:?}");
}

#[tokio::test]
async fn a_claims_wait_holds_what_was_done_in_its_vm_and_its_trace_adds_up() {
    let slow = Duration::from_millis(400);
    let (server, _) = Server::fake(FakeOptions {
        loses_processes: true,
        rules: vec![ExecRule {
            takes: slow,
            ..ExecRule::prints("start", "")
        }],
        ..FakeOptions::default()
    })
    .await;
    let project = project_of(&server, &["app"], ("a", "b")).await;
    let pool = format!("{project}/warm-pool");
    let repositories = json!([repo("app", None, None, Some("start"))]);
    server
        .patch(&format!("{project}/setup"), json!({ "repositories": repositories }))
        .await;
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    assert_eq!(claimed["source"], "ready");
    let waited = claimed["waitMs"].as_f64().unwrap();
    assert!(waited >= 400.0, "{claimed}");
    let path = format!("/instances/{}/claim", claimed["id"].as_str().unwrap());
    let message = server.get(&path).await;
    let total = message["handOver"]["totalMs"].as_f64().unwrap();
    let parts = message["handOver"]["phases"].as_array().unwrap().iter();
    let parts: f64 = parts.map(|phase| phase["ms"].as_f64().unwrap()).sum();
    assert!(
        (total - parts).abs() < 0.2 && (total - waited).abs() < 50.0,
        "{message:#}"
    );
}

#[tokio::test]
async fn personal_variables_go_only_into_the_vms_their_owner_claims() {
    let (server, driver) = server(Vec::new()).await;
    let (project, pool) = {
        let project = server.project(bare_project()).await;
        (project.clone(), format!("{project}/warm-pool"))
    };
    let shared = json!({ "variables": [{ "name": "A", "value": "shared-a" }, { "name": "B", "value": "shared-b" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), shared)
        .await;
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    server.until_full(SOON, &project, 2).await;
    let recipe = server.get(&format!("{pool}/instances")).await["items"].clone();
    let token = async |owner: &str, scope: &str| {
        let body = json!({ "name": owner, "owner": owner, "scopes": [scope, "project:read"] });
        server.post("/tokens", body).await["token"].as_str().unwrap().to_owned()
    };
    let (ada, bob) = (token("ada", "claim").await, token("bob", "claim").await);
    let reader = token("rita", "project:read").await;
    let http = reqwest::Client::new();
    let call = async |method: Method, token: &str, path: &str, body: Value| {
        let url = format!("http://{}/api/v1{path}", server.address);
        server
            .send(http.request(method, url).bearer_auth(token).json(&body))
            .await
    };
    let personal = format!("{project}/environment-variables/personal");
    let own = json!({ "variables": [{ "name": "B", "value": "adas-b" }, { "name": "C", "value": "it's adas" }] });
    let (status, items) = call(Method::PUT, &ada, &personal, own.clone()).await;
    assert_eq!(
        (
            status,
            &items["items"][0]["name"],
            &items["items"][0]["lastUpdatedByUserId"]
        ),
        (StatusCode::OK, &json!("B"), &json!("ada"))
    );
    assert_eq!(
        call(Method::PUT, &reader, &personal, own).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        call(Method::GET, &bob, &personal, json!({})).await.1,
        json!({ "items": [] })
    );
    assert_eq!(call(Method::GET, &ada, &personal, json!({})).await.1, items);
    // They are no part of the recipe, and no VM of the pool has them.
    assert_eq!(server.get(&format!("{pool}/instances")).await["items"], recipe);
    let env = |vm: &Value| {
        let file = driver
            .file(&vm.as_str().unwrap().parse().unwrap(), "/home/.env")
            .unwrap();
        String::from_utf8(file.to_vec()).unwrap()
    };
    for instance in recipe.as_array().unwrap() {
        assert_eq!(env(&instance["instanceId"]), "A='shared-a'\nB='shared-b'\n");
    }
    let claim = json!({ "env": { "D": "task" } });
    let (_, adas) = call(Method::POST, &ada, &format!("{pool}/claim"), claim).await;
    assert_eq!(
        env(&adas["instanceId"]),
        "A='shared-a'\nB='adas-b'\nC='it'\\''s adas'\nD='task'\n"
    );
    let (_, bobs) = call(Method::POST, &bob, &format!("{pool}/claim"), json!({})).await;
    assert_eq!(env(&bobs["instanceId"]), "A='shared-a'\nB='shared-b'\n");
    let (_, gone) = call(Method::DELETE, &ada, &format!("{personal}/B"), json!({})).await;
    assert_eq!(gone, json!({ "deleted": true, "name": "B" }));
}

#[tokio::test]
async fn an_instance_shows_its_named_commands_and_a_projects_limit_forbids_its_pool() {
    let (server, _) = server(Vec::new()).await;
    let project = project_of(
        &server,
        &["app"],
        (
            ".hearth/settings.json",
            r#"{"hooks":{"previews":[{"name":"a","port":1}]}}"#,
        ),
    )
    .await;
    server
        .patch(
            &format!("{project}/setup"),
            json!({ "repositories": [repo("app", None, None, None)] }),
        )
        .await;
    let pool = format!("{project}/warm-pool");
    let claimed = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    let view = server
        .get(&format!("/instances/{}", claimed["id"].as_str().unwrap()))
        .await;
    assert_eq!(
        view["commands"],
        json!([{ "name": "test", "command": "cargo test", "repoFullName": "acme/app", "path": "/home/app" }])
    );
    assert_eq!(
        (
            &view["status"],
            &view["settings"][0]["settings"]["hooks"]["previews"][0]["port"]
        ),
        (&json!("claimed"), &json!(1))
    );
    server.patch(&project, json!({ "maxVms": 0 })).await;
    assert_eq!(server.get(&pool).await["allowed"], false);
    for (method, path) in [(Method::PATCH, pool.clone()), (Method::POST, format!("{pool}/test"))] {
        let (status, reply) = server.call(method, &path, json!({})).await;
        assert_eq!(
            (status, &reply["error"]["code"]),
            (StatusCode::FORBIDDEN, &json!("forbidden"))
        );
    }
    server.patch(&project, json!({ "maxVms": null })).await;
    assert_eq!(server.get(&pool).await["allowed"], true);
}
