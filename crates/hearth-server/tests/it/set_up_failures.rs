//! What a record says of a set-up command that did not work: plain, and with what to do about it.

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Special};
use hearth_guest::ExecEnd;
use reqwest::Method;
use serde_json::{Value, json};

use crate::edges::refused;
use crate::harness::{SOON, Server, bare_project, options};

/// The record of a test boot whose one command ends so.
async fn failed_by(rule: ExecRule, command: &str) -> Value {
    let (server, _) = Server::fake(FakeOptions {
        rules: vec![rule],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let body = json!({ "setupCommands": [{ "name": "it", "command": command }] });
    server.test_boot(SOON, &project, body).await
}

fn reason(record: &Value) -> &str {
    record["failureReason"].as_str().unwrap()
}

#[tokio::test]
async fn of_a_progress_bar_the_reason_has_the_last_state_and_the_log_has_everything() {
    let bar: String = (1..=100).map(|percent| format!("\rdownload {percent:3}%")).collect();
    let printed = format!("\u{1b}[1mget\u{1b}[0m\n{bar}\u{1b}[31merror\u{1b}[0m: no such package\n");
    let record = failed_by(ExecRule::fails("fetch", 1, &printed), "fetch").await;
    assert_eq!(
        reason(&record),
        "exit code 1: get\ndownload 100%\nerror: no such package"
    );
    assert_eq!(record["summary"]["error"], record["failureReason"]);
    let step = record["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&step["error"], &step["output"]),
        (&record["failureReason"], &json!(printed))
    );
}

#[tokio::test]
async fn a_command_that_asks_or_reads_is_told_that_its_input_is_closed() {
    let silent = failed_by(ExecRule::fails("quiet", 1, ""), "quiet").await;
    assert!(
        reason(&silent).starts_with("exit code 1: it printed nothing; standard input is closed while a set-up runs"),
        "{silent}"
    );
    let apt = ExecRule {
        stdout: "After this operation, 1 MB will be used.\nDo you want to continue? [Y/n] Abort.\n".into(),
        ..ExecRule::fails("apt-get", 1, "")
    };
    let apt = failed_by(apt, "apt-get install jq").await;
    assert!(
        reason(&apt).starts_with("exit code 1: standard input is closed"),
        "{apt}"
    );
    assert!(
        reason(&apt).contains("`apt-get install --yes …`, with DEBIAN_FRONTEND=noninteractive"),
        "{apt}"
    );
    let git = ExecRule::fails(
        "git clone",
        128,
        "fatal: could not read Username for 'https://x': No such device\n",
    );
    let git = failed_by(git, "git clone https://x").await;
    let (first, then) = reason(&git).split_once('\n').unwrap();
    assert_eq!(
        first,
        "exit code 128: fatal: could not read Username for 'https://x': No such device"
    );
    assert!(then.contains("VMs hold none"), "{git}");
}

#[tokio::test]
async fn a_command_that_restarts_the_vm_or_turns_it_off_is_named() {
    for (command, what) in [
        (
            "sleep 1; reboot",
            "the VM restarted during the command `it`; a set-up command must not restart the VM",
        ),
        (
            "systemctl poweroff",
            "the VM went off during the command `it`; a set-up command must not turn the VM off",
        ),
        (
            "make",
            "the VM ended during the command `it`: its process on the host is gone",
        ),
    ] {
        let endless = ExecRule {
            takes: Duration::from_secs(3600),
            ..ExecRule::prints(command, "")
        };
        let rules = vec![endless];
        let (server, driver) = Server::fake(FakeOptions {
            rules,
            ..FakeOptions::default()
        })
        .await;
        let project = server.project(bare_project()).await;
        let pool = format!("{project}/warm-pool");
        let body = json!({ "setupCommands": [{ "name": "it", "command": command }] });
        let id = server.post(&format!("{pool}/test"), body).await["id"].clone();
        let runs = |it: &Value| it["conditions"].to_string().contains("it has run for");
        server.until(SOON, &format!("{pool}/explain"), runs).await;
        let path = format!("{pool}/instances/{}", id.as_str().unwrap());
        let vm = server.get(&path).await["instanceId"].as_str().unwrap().parse().unwrap();
        assert!(driver.crash(&vm));
        let record = server.until(SOON, &path, |it| it["status"] == "failed").await;
        assert!(reason(&record).starts_with(what), "{record}");
        assert_eq!(record["summary"]["failedStep"], "warm_pool_setup");
    }
}

#[tokio::test]
async fn a_command_under_which_the_agent_dies_or_that_it_does_not_end_is_named() {
    let dies = ExecRule {
        takes: Duration::from_millis(200),
        ..ExecRule::does("kill -9 -1", Special::AgentDies)
    };
    let record = failed_by(dies, "kill -9 -1").await;
    assert!(
        reason(&record).starts_with("the agent in the VM died during the command `"),
        "{record}"
    );
    assert!(reason(&record).contains("larger `vmSize`"), "{record}");
}

#[tokio::test]
async fn of_two_commands_the_one_under_which_the_agent_dies_is_named() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    driver.add_rule(ExecRule {
        takes: Duration::from_millis(200),
        ..ExecRule::does("kill -9 -1", Special::AgentDies)
    });
    let project = server.project(bare_project()).await;
    let commands = json!([{ "name": "good", "command": "true" }, { "name": "bad", "command": "kill -9 -1" }]);
    let record = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands }))
        .await;
    assert!(
        reason(&record).starts_with("the agent in the VM died during the command `bad`"),
        "{record}"
    );
}

#[tokio::test]
async fn a_command_that_runs_out_of_memory_says_so() {
    let killed = ExecEnd::Exited {
        code: None,
        signal: Some(9),
        duration_ms: 5,
        log: None,
        out_of_memory: Some("python3 (process 322, which used 818 MiB)".to_owned()),
    };
    let record = failed_by(ExecRule::does("hungry", Special::End(killed)), "hungry").await;
    let said =
        "ended by signal 9; the VM had no memory left, so its kernel killed python3 (process 322, which used 818 MiB)";
    assert!(reason(&record).contains(said), "{record}");
    assert!(reason(&record).contains("larger `vmSize`"), "{record}");
}

/// The server's limit, or the command's own.
#[tokio::test]
async fn a_command_ends_within_its_time_limit() {
    let rules = vec![ExecRule::does("bomb", Special::NeverEnds)];
    let driver = FakeDriver::new(
        1,
        FakeOptions {
            rules,
            ..FakeOptions::default()
        },
    );
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.command_timeout = Duration::from_secs(1);
    let made: Arc<dyn Driver> = Arc::new(driver);
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let project = server.project(bare_project()).await;
    let body = json!({ "setupCommands": [{ "name": "it", "command": "bomb" }] });
    let record = server.test_boot(SOON, &project, body).await;
    assert!(
        reason(&record).starts_with("timed out after 1 s; the agent in the VM was to end the command"),
        "{record}"
    );
    let body = json!({ "setupCommands": [{ "name": "it", "command": "bomb", "timeoutSeconds": 2 }] });
    let record = server.test_boot(SOON, &project, body).await;
    assert!(reason(&record).starts_with("timed out after 2 s;"), "{record}");
    for wrong in [json!(0), json!(86_401), json!("soon"), json!(null), json!(1.5)] {
        let body = json!({ "setupCommands": [{ "name": "it", "command": "bomb", "timeoutSeconds": wrong }] });
        let test = server.request(Method::POST, &format!("{project}/warm-pool/test"));
        let (status, faults) = refused(&server, test.json(&body)).await;
        assert_eq!(status, 422);
        assert!(faults[0].starts_with("setupCommands[0].timeoutSeconds: "), "{faults:?}");
    }
}

#[tokio::test]
async fn a_variable_that_no_command_would_see_is_refused_wherever_it_is_given() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let variables = json!({ "variables": [{ "name": "A", "value": "1" }, { "name": "UID", "value": "5" }] });
    for kind in ["shared", "personal"] {
        let path = format!("{project}/environment-variables/{kind}");
        let (status, faults) = refused(&server, server.request(Method::PUT, &path).json(&variables)).await;
        assert_eq!(status, 422);
        assert!(
            faults[0].starts_with("variables[1].name: `UID` is read-only in bash"),
            "{faults:?}"
        );
        assert_eq!(server.get(&path).await["items"], json!([]));
    }
    let claim = server.request(Method::POST, &format!("{pool}/claim"));
    let (status, faults) = refused(&server, claim.json(&json!({ "env": { "IFS": "," } }))).await;
    assert_eq!(status, 422);
    assert!(
        faults[0].starts_with("env.IFS: `IFS` is how a shell splits words"),
        "{faults:?}"
    );
    let claimed = server
        .post(&format!("{pool}/claim"), json!({ "env": { "PATH": "/opt/bin" } }))
        .await;
    let exec = server.request(
        Method::POST,
        &format!("/instances/{}/exec", claimed["id"].as_str().unwrap()),
    );
    let (status, faults) = refused(&server, exec.json(&json!({ "argv": ["x"], "env": { "SECONDS": "1" } }))).await;
    assert_eq!(status, 422);
    assert!(
        faults[0].starts_with("env.SECONDS: bash sets `SECONDS` itself"),
        "{faults:?}"
    );
}

#[tokio::test]
async fn variable_that_moves_what_git_works_on_is_named_by_the_failure() {
    let said = "fatal: not a git repository: '/elsewhere'\n";
    let rules = vec![ExecRule::fails("npm version", 128, said)];
    let (server, _) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let body = json!({ "setupCommands": [{ "name": "it", "command": "npm version patch" }] });
    for name in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_CONFIG_GLOBAL",
        "GIT_SSH_COMMAND",
    ] {
        let project = server
            .project(json!({ "name": name.to_lowercase().replace('_', "-") }))
            .await;
        let variables = json!({ "variables": [
            { "name": name, "value": "/elsewhere" }, { "name": "GIT_AUTHOR_NAME", "value": "A. Gent" },
        ] });
        server
            .put(&format!("{project}/environment-variables/shared"), variables)
            .await;
        let record = server.test_boot(SOON, &project, body.clone()).await;
        let (_, then) = reason(&record).split_once('\n').unwrap();
        assert_eq!(
            then,
            format!(
                "the project's variable {name} changes how programs run and may be the cause; set it only in the commands that need it"
            )
        );
    }
}

#[tokio::test]
async fn a_search_path_that_hides_the_programs_is_named_by_the_failure() {
    let rule = ExecRule::fails("npm ci", 127, "bash: line 1: npm: command not found\n");
    let rules = vec![rule];
    let (server, _) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "PATH", "value": "/opt/bin" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let body = json!({ "setupCommands": [{ "name": "it", "command": "npm ci" }] });
    let record = server.test_boot(SOON, &project, body).await;
    let (first, then) = reason(&record).split_once('\n').unwrap();
    assert_eq!(first, "exit code 127: bash: line 1: npm: command not found");
    assert!(
        then.starts_with("the project's variable PATH replaces the search path"),
        "{record}"
    );
}
