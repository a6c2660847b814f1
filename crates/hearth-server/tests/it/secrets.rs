//! Known secrets must be nowhere but in the VM.

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Special, Verb};
use hearth_guest::ExecEnd;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, options};

/// What is looked for; long and unlikely enough.
const SECRET: &str = "it's a \"secret\" $HOME #1\nsecond-line-of-secret";

pub fn files_with(folder: &Path, needle: &[u8], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, needle, found);
        } else if std::fs::read(&path).is_ok_and(|text| text.windows(needle.len()).any(|w| w == needle)) {
            found.push(path.display().to_string());
        }
    }
}

#[tokio::test]
async fn a_variable_is_in_no_output_no_error_no_file_and_no_reply() {
    let printing = format!("before {SECRET} after\n");
    let rules = vec![
        ExecRule::prints("leak", &printing),
        ExecRule::fails("die", 3, &printing),
    ];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "S", "value": SECRET }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let commands = json!([{ "name": "leak", "command": "leak" }, { "name": "die", "command": "die" }]);
    let id = server
        .post(
            &format!("{project}/warm-pool/test"),
            json!({ "setupCommands": commands }),
        )
        .await["id"]
        .clone();
    let id = id.as_str().unwrap();
    let follow = server
        .request(Method::GET, &format!("/instances/{id}/follow"))
        .send()
        .await
        .unwrap();
    let mut stream = follow.bytes_stream();
    let mut live = Vec::new();
    while let Some(chunk) = stream.next().await {
        live.extend(chunk.unwrap());
    }
    let live = String::from_utf8(live).unwrap();
    assert!(
        live.contains("event: ended") && live.contains("event: stepEnded"),
        "{live}"
    );
    let detail = server
        .until(SOON, &format!("{project}/warm-pool/instances/{id}"), |it| {
            it["status"] == "failed"
        })
        .await;
    assert_eq!(detail["failureReason"], "exit code 3: before *** after");
    for text in [
        live,
        detail.to_string(),
        server
            .get(&format!("{project}/environment-variables/shared"))
            .await
            .to_string(),
    ] {
        for chunk in ["$HOME #1", "second-line"] {
            assert!(!text.contains(chunk), "{text}");
        }
    }
    let vm = detail["instanceId"].as_str().unwrap().parse().unwrap();
    let env = driver.file(&vm, "/home/.env").unwrap();
    assert!(String::from_utf8_lossy(&env).contains("second-line-of-secret"));
    let (folder, _) = server.stop().await;
    let mut found = Vec::new();
    for needle in [SECRET.as_bytes(), b"second-line-of-secret"] {
        files_with(folder.path(), needle, &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

/// The value is part of what the host says when a call fails: of the VM that is set up, of its fork right after, of one that stands ready.
#[tokio::test]
async fn what_the_host_says_of_a_failed_vm_is_redacted() {
    const SAID: &str = "fault that the test planned";
    // The pool's first VM is set up in one VM and is a fork of that.
    for (verb, call) in [
        (Verb::Create, 1),
        (Verb::Connect, 1),
        (Verb::Connect, 2),
        (Verb::Pause, 1),
    ] {
        let fault = Fault {
            verb,
            call,
            kind: FaultKind::Permanent,
            moment: FaultMoment::Before,
        };
        let (server, _) = Server::fake(FakeOptions {
            faults: vec![fault],
            ..FakeOptions::default()
        })
        .await;
        let project = server.project(bare_project()).await;
        let variables = json!({ "variables": [{ "name": "S", "value": SAID }] });
        server
            .put(&format!("{project}/environment-variables/shared"), variables)
            .await;
        let pool = format!("{project}/warm-pool");
        server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
        let failed = |it: &Value| {
            it["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|one| one["status"] == "failed")
        };
        let all = server.until(SOON, &format!("{pool}/instances"), failed).await;
        let one = all["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["status"] == "failed")
            .unwrap();
        let detail = server
            .get(&format!("{pool}/instances/{}", one["id"].as_str().unwrap()))
            .await;
        let reason = detail["failureReason"].as_str().unwrap();
        assert!(reason.contains("a ***"), "{verb:?} {call}: {detail:#}");
        assert!(!detail.to_string().contains(SAID), "{verb:?} {call}: {detail:#}");
        let (folder, _) = server.stop().await;
        let mut found = Vec::new();
        files_with(folder.path(), SAID.as_bytes(), &mut found);
        assert_eq!(found, Vec::<String>::new(), "{verb:?} {call}");
    }
}

#[tokio::test]
async fn what_the_agent_says_of_a_command_is_redacted() {
    let end = ExecEnd::NotStarted {
        reason: "no such folder: /srv/s3cret".to_owned(),
        code: None,
    };
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![ExecRule::does("run-it", Special::End(end))],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "S", "value": "s3cret" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let commands = json!([{ "name": "it", "command": "run-it" }]);
    let record = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands }))
        .await;
    assert_eq!(
        record["failureReason"],
        "the command could not be started: no such folder: /srv/***"
    );
    assert!(!record.to_string().contains("s3cret"), "{record:#}");
}

#[tokio::test]
async fn values_as_long_as_they_may_be_do_not_hold_up_a_boot() {
    let long = "a".repeat(100_000);
    let rules = vec![ExecRule::prints("leak", &format!("<{long}>\n"))];
    let (server, _) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let variables: Vec<_> = (0..10)
        .map(|at| json!({ "name": format!("S{at}"), "value": long[at..] }))
        .collect();
    server
        .put(
            &format!("{project}/environment-variables/shared"),
            json!({ "variables": variables }),
        )
        .await;
    let body = json!({ "setupCommands": [{ "name": "leak", "command": "leak" }] });
    let boot = server.test_boot(SOON, &project, body).await;
    let step = boot["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&boot["status"], &step["output"]),
        (&json!("ready"), &json!("<***>\n")),
        "{boot}"
    );
}

/// A data folder that was made by hand may be open to all users; the files in it are not, however they were made.
#[tokio::test]
async fn other_users_of_the_host_can_open_nothing_in_an_open_data_folder() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let data = folder.path().join("data");
    let open = |path: &Path| {
        std::fs::create_dir_all(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(&data);
    open(&data.join("mirrors"));
    let made: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder.clone(), options(folder.path()), move |_| Ok(made))
        .await
        .unwrap();
    let mut looked_at = 0;
    for entry in std::fs::read_dir(&data).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode();
        // The lock is empty, and the pieces of the reserve are zeros.
        let holds_nothing = entry.metadata().unwrap().len() == 0 || entry.file_name() == "reserve";
        looked_at += 1;
        assert!(
            mode & 0o077 == 0 || holds_nothing,
            "{} is open: {mode:o}",
            entry.path().display()
        );
    }
    assert!(looked_at >= 4, "{looked_at}");
    drop(server);
}

#[tokio::test]
async fn variable_that_is_set_to_what_it_is_changes_no_recipe() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let shared = format!("{project}/environment-variables/shared");
    let set = async |value: &str| {
        let variables = json!({ "variables": [{ "name": "GREETING", "value": value }] });
        server.put(&shared, variables).await;
        server.get(&format!("{pool}/explain")).await["recipe"].clone()
    };
    let hello = set("hello").await;
    assert_eq!(set("hello").await, hello);
    assert_ne!(set("good morning").await, hello);
}
