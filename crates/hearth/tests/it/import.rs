//! `hearth import`: of a folder and of an address, shown, written, and saved in a project.

use std::path::Path;

use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::support::{Ran, hearth, hearth_at, project_page, run};

const DEVCONTAINER: &str = r#"{
    // A comment.
    "image": "debian", "hostRequirements": {"cpus": 3, "memory": "2gb"},
    "updateContentCommand": "npm ci", "postStartCommand": "npm start &", "forwardPorts": [3000],
    "mounts": ["a"],
}"#;
const SETTINGS: &str = ".hearth/settings.json";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("app/.devcontainer")).unwrap();
    std::fs::write(folder.path().join("app/.devcontainer/devcontainer.json"), DEVCONTAINER).unwrap();
    folder
}

fn import(source: &Path, more: &[&str]) -> Ran {
    run(hearth(&[&["import", source.to_str().unwrap()], more].concat()))
}

#[test]
fn a_folder_is_read_and_written_to() {
    let folder = folder();
    let app = folder.path().join("app");
    let ran = import(&app, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        ".devcontainer/devcontainer.json
  + hostRequirements.cpus: 3 vCPUs; the project's VM size decides, which `hearth import --project` sets
  + hostRequirements.memory: 2048 MiB; the project's VM size decides, which `hearth import --project` sets
  + image: a VM of Hearth's image stands in for debian
  + updateContentCommand: `npm ci` runs in the set-up
  + updateContentCommand: runs after each checkout, too
  + postStartCommand: `npm start &` runs when the VM becomes ready
  + forwardPorts[0]: a preview of port 3000
  - mounts: not taken: a VM has no folders of the host
the VM size that meets this: large

the set-up: 1 command
  1. npm ci
after a checkout:
     npm ci
when the VM becomes ready:
     npm start &
"
    );
    let ran = import(&app, &["--write", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("it counts once it is committed and pushed"),
        "{}",
        ran.stderr
    );
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    let hooks = json!({ "setup": ["npm ci"], "updateAfterCheckout": "npm ci", "startup": "npm start &",
        "previews": [{ "name": "port 3000", "port": 3000 }] });
    assert_eq!(
        (&shown["settings"]["hooks"], &shown["vmSize"]),
        (&hooks, &json!("large"))
    );
    assert_eq!(shown["notTaken"].as_array().unwrap().len(), 1);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(app.join(SETTINGS)).unwrap()).unwrap();
    assert_eq!(written, shown["settings"]);

    // What a person changed is not written over unasked.
    std::fs::write(app.join(SETTINGS), "mine").unwrap();
    let ran = import(&app, &["--write"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("is there already") && ran.stderr.contains("--replace"),
        "{}",
        ran.stderr
    );
    assert_eq!(std::fs::read_to_string(app.join(SETTINGS)).unwrap(), "mine");
    assert_eq!(import(&app, &["--write", "--replace"]).code, 0);
    assert_ne!(std::fs::read_to_string(app.join(SETTINGS)).unwrap(), "mine");
}

#[test]
fn an_address_is_cloned_for_the_moment_and_its_password_never_shown() {
    let folder = folder();
    let app = folder.path().join("app");
    let git = |args: &[&str]| {
        let identity = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "init.defaultBranch=main",
        ];
        let ran = std::process::Command::new("git")
            .arg("-C")
            .arg(&app)
            .args(identity)
            .args(args)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "-m", "first"]);
    let url = format!("file://{}", app.display());
    let ran = run(hearth(&["import", &url, "--branch", "main"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("the set-up: 1 command"), "{}", ran.stdout);
    let ran = run(hearth(&["import", &url, "--write"]));
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--project"), "{}", ran.stderr);
    let ran = run(hearth(&["import", &format!("{url}-none")]));
    assert!(
        ran.code == 1 && ran.stderr.contains("-none cannot be cloned: ") && ran.stderr.contains("does not"),
        "{}",
        ran.stderr
    );
    let ran = run(hearth(&["import", "https://me:s3cret-4711@git.example/a/b"]));
    assert_eq!(ran.code, 2);
    assert!(!ran.stderr.contains("s3cret-4711"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_read_is_named_with_its_place() {
    let folder = folder();
    let app = folder.path().join("app");
    std::fs::write(app.join(".devcontainer/devcontainer.json"), "{\"image\": 7}").unwrap();
    let ran = import(&app, &["--write"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains(".devcontainer/devcontainer.json, image: is a number, and must be a text"),
        "{}",
        ran.stderr
    );
    assert!(!app.join(SETTINGS).exists());
    std::fs::remove_dir_all(app.join(".devcontainer")).unwrap();
    std::os::unix::fs::symlink("/etc", app.join(".devcontainer")).unwrap();
    let ran = import(&app, &[]);
    assert!(ran.code == 1 && ran.stderr.contains("symbolic link"), "{}", ran.stderr);
    std::fs::remove_file(app.join(".devcontainer")).unwrap();
    let ran = import(&app, &[]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "nothing was found that says how it is set up\n")
    );
}

/// A project whose pool has these commands.
fn server(commands: &'static str) -> Fake {
    Fake::start(move |request| {
        let view = r#"{"id":"prj_1","name":"web","description":null,"taskCode":"WEB","image":null,"projectSetup":null,
            "repos":[{"repoFullName":"acme/web","branch":"main","url":"file:///srv/web","lfs":true,"submodules":true}],
            "vmSize":"medium","maxVms":null,"gitIdentity":null,
            "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;
        if request.line.contains("/setup") {
            return Reply::ok(
                r#"{"source":"none","legacyHooks":{"status":"none","repositories":[],"checkComplete":true},
                "setup":{"repositories":[]}}"#,
            );
        }
        if request.line.contains("/warm-pool") {
            return Reply::ok(&format!(
                r#"{{"allowed":true,"status":{{"ready":0,"provisioning":0,"failed":0}},"config":{{"enabled":false,"targetSize":1,
                "maxAgeMinutes":60,"branch":null,"setupCommands":{commands},"createdAt":"2025-01-01T00:00:00.000Z",
                "updatedAt":"2025-01-01T00:00:00.000Z"}}}}"#
            ));
        }
        if request.line.ends_with("/view") {
            return Reply::ok(view);
        }
        Reply::ok(&project_page())
    })
}

#[test]
fn a_project_gets_it_as_a_set_up_of_its_own() {
    let folder = folder();
    let app = folder.path().join("app");
    let args = ["import", app.to_str().unwrap(), "--project", "web", "--write"];
    let fake = server("null");
    let ran = run(hearth_at(&fake.url, &args));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let sent: Vec<(String, Value)> = fake
        .requests_of("PATCH")
        .into_iter()
        .map(|request| (request.line, serde_json::from_str(&request.body).unwrap()))
        .collect();
    let scripts = json!({ "initialize": null, "updateAfterCheckout": "npm ci", "startup": "npm start &" });
    let repository = json!({ "repository": "acme/web", "branch": "main", "scripts": scripts, "commands": [] });
    let commands = json!([{ "name": "updateContentCommand of .devcontainer/devcontainer.json", "command": "cd /home/web\nnpm ci" }]);
    assert_eq!(
        sent,
        [
            (
                "PATCH /api/v1/projects/prj_1/setup".to_owned(),
                json!({ "vmSize": "large", "repositories": [repository] })
            ),
            (
                "PATCH /api/v1/projects/prj_1/warm-pool".to_owned(),
                json!({ "setupCommands": commands })
            ),
        ]
    );
    let fake = server(r#"[{"name":"mine","command":"true"}]"#);
    let ran = run(hearth_at(&fake.url, &args));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("web has a set-up already") && ran.stderr.contains("--replace"),
        "{}",
        ran.stderr
    );
    assert!(fake.requests_of("PATCH").is_empty());
}
