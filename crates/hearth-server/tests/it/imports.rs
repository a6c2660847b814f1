//! A project without a set-up: its repositories' own files are read for it, in test boots and in pools alike.

use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, commit, git, git_repo, repo_folder};
use crate::pages::Person;

const FILE: &str = ".devcontainer/devcontainer.json";
const DEVCONTAINER: &str = r#"{
    "image": "debian",
    "onCreateCommand": "create s3cret-4711",
    "updateContentCommand": "update",
    "postCreateCommand": {"b": "second", "a": ["first", "of two"]},
    "postStartCommand": "start",
    "forwardPorts": [3000],
    "mounts": ["s3cret-4711"]
}"#;

async fn server(rules: Vec<ExecRule>) -> (Server, FakeDriver) {
    Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await
}

async fn project(server: &Server, files: &[(&str, &str)]) -> (String, String) {
    let url = git_repo(server.folder.path(), "app", files);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    (server.project(json!({ "name": "p", "repos": repos })).await, url)
}

/// What ran in a VM's checkout, in order.
fn ran(driver: &FakeDriver, vm: &Value) -> Vec<String> {
    let all = driver.commands(&vm.as_str().unwrap().parse().unwrap()).into_iter();
    all.filter(|spec| spec.cwd.as_deref() == Some("/home/app"))
        .filter_map(|spec| spec.shell)
        .collect()
}

fn step<'a>(boot: &'a Value, name: &str) -> Option<&'a Value> {
    boot["steps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|step| step["name"] == name)
}

#[tokio::test]
async fn a_test_boot_and_a_pool_set_up_what_the_repository_says_and_say_so() {
    let (server, driver) = server(Vec::new()).await;
    let (project, url) = project(&server, &[(FILE, DEVCONTAINER), ("package-lock.json", "{}")]).await;
    let variables = json!({ "variables": [{ "name": "KEY", "value": "s3cret-4711" }] });
    let path = format!("{project}/environment-variables/shared");
    server.put(&path, variables).await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let all = ["create s3cret-4711", "update", "first 'of two'", "second", "start"];
    assert_eq!(ran(&driver, &boot["instanceId"]), all);
    let init = step(&boot, "init_repo").unwrap();
    let metadata = &init["metadata"];
    assert_eq!(
        (&metadata["repo"], &metadata["commands"]),
        (&json!("acme/app"), &json!(4))
    );
    assert_eq!(metadata["imported"]["files"], json!([FILE]));
    assert_eq!(
        metadata["imported"]["taken"][1],
        format!("{FILE}: onCreateCommand: `create ***` runs in the set-up")
    );
    assert_eq!(
        metadata["imported"]["notTaken"],
        json!([format!("{FILE}: mounts: not taken: a VM has no folders of the host")])
    );
    let output = init["output"].as_str().unwrap();
    assert!(output.starts_with(&format!("{FILE}\n  + image: ")), "{output}");
    assert!(!boot.to_string().contains("s3cret-4711"), "{boot:#}");

    // The pool is made of the same, and each command was frozen: nothing of it runs again.
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    // It is a fork of what ran them.
    assert_eq!(ran(&driver, &claimed["instanceId"]), all);
    let id = claimed["id"].as_str().unwrap();
    let view = server.get(&format!("/instances/{id}")).await;
    assert_eq!(
        (&view["recipe"], &claimed["recipe"]),
        (&claimed["recipe"], &view["recipe"])
    );
    let settings = &view["settings"][0];
    assert_eq!(settings["file"], FILE);
    assert_eq!(
        settings["settings"]["hooks"]["previews"],
        json!([{ "name": "port 3000", "port": 3000 }])
    );
    assert_eq!(settings["settings"]["hooks"]["updateAfterCheckout"], "update");

    // A claim that moves the checkout runs what the file has for that.
    git(&repo_folder(&url), &["checkout", "--quiet", "-b", "feature"]);
    commit(&repo_folder(&url), &[("package-lock.json", "{\"a\":1}")], "feature");
    git(&repo_folder(&url), &["checkout", "--quiet", "main"]);
    server.until_full(SOON, &project, 1).await;
    let moved = server
        .post(&format!("{pool}/claim"), json!({ "branch": "feature" }))
        .await;
    assert_eq!(moved["repos"][0]["branch"], "feature", "{moved:#}");
    // After what moves the checkout.
    let moved = ran(&driver, &moved["instanceId"]);
    assert_eq!(moved.last().unwrap(), "update");
    assert_eq!(
        moved.iter().filter(|command| *command == "update").count(),
        2,
        "{moved:?}"
    );
}

#[tokio::test]
async fn what_is_set_up_by_hand_or_in_the_repository_s_settings_file_is_not_added_to() {
    let (server, driver) = server(Vec::new()).await;
    let (project, url) = project(&server, &[(FILE, DEVCONTAINER)]).await;
    let boot = server
        .test_boot(
            SOON,
            &project,
            json!({ "setupCommands": [{ "name": "own", "command": "true" }] }),
        )
        .await;
    assert!(step(&boot, "init_repo").is_none(), "{boot:#}");
    // Without its commands it is a project without a set-up again; an empty setup object is one.
    let boot = server.test_boot(SOON, &project, json!({ "setupCommands": null })).await;
    assert_eq!(step(&boot, "init_repo").unwrap()["metadata"]["commands"], 4, "{boot:#}");
    server
        .patch(&format!("{project}/setup"), json!({ "repositories": [] }))
        .await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert!(step(&boot, "init_repo").is_none(), "{boot:#}");
    // The settings file says what the import would, start and update as well.
    let own = r#"{"hooks":{"setup":["own"],"startup":"own start","updateAfterCheckout":"own update"}}"#;
    commit(&repo_folder(&url), &[(".hearth/settings.json", own)], "own");
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(ran(&driver, &boot["instanceId"]), ["own", "own start"], "{boot:#}");
    assert_eq!(
        step(&boot, "init_repo").unwrap()["metadata"],
        json!({ "repo": "acme/app", "commands": 1 })
    );
}

#[tokio::test]
async fn what_fails_is_named_with_its_file_and_its_place() {
    let (server, _) = server(vec![ExecRule::fails("second", 7, "boom\n")]).await;
    let (project, url) = project(&server, &[(FILE, DEVCONTAINER)]).await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(boot["failureReason"], "exit code 7: boom", "{boot:#}");
    let failed = step(&boot, "init_repo").unwrap();
    let named = format!("postCreateCommand.b of {FILE} in acme/app ended with exit code 7: boom");
    assert_eq!(failed["metadata"]["failure"], named, "{failed:#}");

    commit(&repo_folder(&url), &[(FILE, "{\n  \"image\": [\n}")], "broken");
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let reason = boot["failureReason"].as_str().unwrap();
    assert!(reason.starts_with(&format!("{FILE}, line 3, column 1: ")), "{reason}");
    assert!(
        reason.ends_with("; fix it, or save a setup object: then the repository's own files are not read"),
        "{reason}"
    );
    assert_eq!(step(&boot, "init_repo").unwrap()["status"], "error");

    // A link leads nowhere, and what can be used in no way is told without a command.
    let folder = repo_folder(&url);
    git(&folder, &["rm", "--quiet", "-r", ".devcontainer"]);
    std::os::unix::fs::symlink("/etc", folder.join(".devcontainer")).unwrap();
    commit(&folder, &[("a", "b")], "link");
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let reason = boot["failureReason"].as_str().unwrap();
    assert!(reason.contains("is a symbolic link, or behind one"), "{reason}");
    git(&folder, &["rm", "--quiet", ".devcontainer"]);
    commit(&folder, &[("Dockerfile", "FROM alpine\n")], "alpine");
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let init = step(&boot, "init_repo").unwrap();
    assert_eq!(init["metadata"]["commands"], 0, "{init:#}");
    assert!(
        init["output"]
            .as_str()
            .unwrap()
            .contains("- line 1: not taken: the image alpine"),
        "{init:#}"
    );
}

#[tokio::test]
async fn what_the_repository_says_is_read_and_shown_to_be_saved() {
    let (server, _) = server(Vec::new()).await;
    let (project, _) = project(&server, &[(FILE, DEVCONTAINER)]).await;
    let variables = json!({ "variables": [{ "name": "KEY", "value": "s3cret-4711" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let imported = server.get(&format!("{project}/setup/import")).await;
    let read = &imported["repositories"][0];
    assert_eq!((&read["files"], &read["problem"]), (&json!([FILE]), &Value::Null));
    let commands = read["setupCommands"].as_array().unwrap();
    assert_eq!(commands[0]["name"], format!("onCreateCommand of {FILE}"));
    assert_eq!(commands[0]["command"], "cd /home/app\ncreate s3cret-4711");
    assert_eq!(read["scripts"]["startup"], "start");
    assert!(!read["taken"].to_string().contains("s3cret-4711"), "{read:#}");
    assert!(!read["notTaken"].to_string().contains("s3cret-4711"), "{read:#}");

    // The page fills its forms with it, saves nothing, and saves what the person sends.
    let person = Person::sign_in(&server, &server.token).await;
    let setup = format!("{project}/setup");
    assert!(person.page(&setup).await.contains("Read the repositories"));
    let page = person.page(&format!("{setup}?import=yes")).await;
    for shown in [
        "Nothing is saved yet",
        "cd /home/app\ncreate",
        ">start</textarea>",
        "Not taken:",
        "mounts",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    let before = server.get(&format!("{project}/warm-pool")).await;
    assert_eq!(before["config"], Value::Null, "nothing is saved");
    let form = [
        ("name", "create"),
        ("command", "cd /home/app\ncreate"),
        ("background", "no"),
    ];
    person.send(&format!("{setup}/commands"), &form).await;
    let saved = server.get(&format!("{project}/warm-pool")).await;
    assert_eq!(saved["config"]["setupCommands"][0]["command"], "cd /home/app\ncreate");
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_is_said_and_the_others_are_shown() {
    let (server, _) = server(Vec::new()).await;
    let good = git_repo(
        server.folder.path(),
        "good",
        &[("package-lock.json", "{}"), ("package.json", "{}")],
    );
    let broken = git_repo(server.folder.path(), "broken", &[(FILE, "{ \"image\": 1")]);
    let repo = |name: &str, url: &str| json!({ "repoFullName": format!("acme/{name}"), "branch": "main", "url": url });
    let repos = json!([
        repo("gone", "file:///nowhere/at/all.git"),
        repo("broken", &broken),
        repo("good", &good)
    ]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let imported = server.get(&format!("{project}/setup/import")).await;
    let problem = |at: usize| imported["repositories"][at]["problem"].as_str().unwrap_or_default();
    assert!(problem(0).contains("cannot fetch acme/gone"), "{imported:#}");
    assert!(problem(1).contains(FILE), "{imported:#}");
    assert_eq!(problem(2), "");
    assert!(
        !imported["repositories"][2]["setupCommands"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}
