//! Texts that a person writes: setup objects with everything that is wrong, editors, branches that are not there, files of
//! variables, and refusals in this program's own words.

use std::path::Path;

use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::support::{PROJECT, hearth, hearth_at, project_page, run, run_with_stdin};

const VIEW: &str = r#"{"source":"setup","legacyHooks":{"status":"none","repositories":[],"checkComplete":true},
    "setup":{"vmSize":"small","repositories":[{"repository":"acme/web","branch":"dev",
    "scripts":{"initialize":null,"updateAfterCheckout":null,"startup":null},"commands":[]}]}}"#;
const PROJECT_VIEW: &str = r#"{"id":"prj_1","name":"web","description":null,"taskCode":"WEB","repos":[
    {"repoFullName":"acme/web","branch":"mian","url":"https://h/acme/web.git","lfs":true,"submodules":true},
    {"repoFullName":"acme/lib","branch":"main","url":"https://h/acme/lib.git","lfs":true,"submodules":true}],
    "image":null,"projectSetup":null,"vmSize":"medium","maxVms":null,"gitIdentity":null,
    "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;
const BRANCHES: &str = r#"{"items":[
    {"repoFullName":"acme/web","branch":"mian","isThere":false,"branches":["topic","main"]},
    {"repoFullName":"acme/lib","branch":"main","isThere":null,"branches":null}]}"#;
const CONFIG: &str = r#"{"enabled":true,"targetSize":2,"maxAgeMinutes":60,"branch":BRANCH,
    "setupCommands":[{"name":"install","command":"npm ci"},{"name":"db","command":"./db","background":true}],
    "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;

fn server(pool_branch: &'static str) -> Fake {
    Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/setup") => Reply::ok(VIEW),
        line if line.ends_with("/view") => Reply::ok(PROJECT_VIEW),
        line if line.ends_with("/branches") => Reply::ok(BRANCHES),
        line if line.ends_with("/warm-pool") => {
            let config = CONFIG.replace("BRANCH", pool_branch);
            let status = r#""status":{"ready":0,"provisioning":0,"failed":0}"#;
            Reply::ok(&format!(
                r#"{{"allowed":true,"config":{config},{status},"metadata":null}}"#
            ))
        }
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        _ => Reply::ok(PROJECT),
    })
}

fn sent(fake: &Fake) -> Value {
    serde_json::from_str(&fake.requests_of("PATCH").pop().unwrap().body).unwrap()
}

#[test]
fn all_of_a_setup_object_but_the_repository_may_be_left_out() {
    let fake = server("null");
    let text = "\u{feff}{\r\n  // only what is needed\r\n  \"repositories\": [{\"repository\": \"acme/web\"},]\r\n}";
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // The branch is the project's.
    let nothing = json!({ "initialize": null, "updateAfterCheckout": null, "startup": null });
    assert_eq!(
        sent(&fake),
        json!({ "repositories": [{ "repository": "acme/web", "branch": "main", "scripts": nothing, "commands": [] }] })
    );
}

#[test]
fn everything_wrong_in_a_setup_object_is_said_at_once_with_its_place() {
    let fake = server("null");
    let text = r#"{
  "vmsize": "small",
  "repositories": [
    {"repository": "acme", "scripts": {"initalize": "npm ci", "startup": 5}},
    {"branch": "a b", "timeouts": {"startup": 10}, "branch": "main", "commands": [{"name": "x"}]}
  ],
  "somethingElseEntirely": 1
}"#;
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    for part in [
        "standard input holds no setup object: 9 faults",
        "line 2, column 3: vmsize: is not known here; is `vmSize` meant?",
        "line 4, column 6: repositories[0].repository: must be ",
        "line 4, column 40: repositories[0].scripts.initalize: is not known here; is `initialize` meant?",
        "line 4, column 63: repositories[0].scripts.startup: must be of the type string",
        "line 5, column 5: repositories[1].repository: is missing",
        "line 5, column 36: repositories[1].timeouts.startup: must be at least 60",
        "line 7, column 3: somethingElseEntirely: is not known here; there is hooks, repositories, vmSize",
        "repositories[1].branch: is there twice",
        "repositories[1].commands[0].command: is missing",
    ] {
        assert!(ran.stderr.contains(part), "{part}:\n{}", ran.stderr);
    }
    assert!(fake.requests().is_empty());
}

#[test]
fn refusal_of_the_server_has_its_place_in_the_file() {
    let fake = Fake::start(|request| {
        if request.line.starts_with("PATCH") {
            return Reply::json(
                422,
                r#"{"error":{"code":"validation_error","message":"the request is not valid","details":[
                {"path":"repositories[0].repository","message":"is no repository of this project"}]}}"#,
            );
        }
        Reply::ok(&project_page())
    });
    let text = "{\"repositories\":\n [{\"repository\": \"acme/other\", \"branch\": \"main\"}]}";
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert!(
        ran.stderr
            .contains("line 2, column 4: repositories[0].repository: is no repository of this project"),
        "{}",
        ran.stderr
    );
}

#[test]
fn branch_that_is_not_there_is_said_when_it_is_saved_with_the_command_that_changes_it() {
    let fake = server("null");
    let ran = run_with_stdin(
        hearth_at(&fake.url, &["setup", "save", "web"]),
        br#"{"repositories":[]}"#,
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let command = "hearth project set web --repo 'acme/web@main=https://h/acme/web.git' --repo 'acme/lib@main=https://h/acme/lib.git'";
    for part in ["acme/web has no branch `mian`; it has main, topic", command] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("acme/lib has"), "{}", ran.stderr);
    let fake = server(r#""mian""#);
    let ran = run(hearth_at(&fake.url, &["pool", "set", "web", "--branch", "mian"]));
    assert!(
        ran.stderr.contains("hearth pool set web --branch main"),
        "{}",
        ran.stderr
    );
}

/// An editor that runs this script with the file as `$1`.
fn editor(folder: &Path, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("editor");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn setup_and_project_are_changed_in_the_persons_editor() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "stat -c %a \"$2\" > {0}/mode; cp \"$2\" {0}/seen; sed -i \"$1\" \"$2\"",
        folder.path().display()
    );
    let program = editor(folder.path(), &script);
    let at = |fake: &Fake, args: &[&str], change: &str| {
        let mut command = hearth_at(&fake.url, args);
        command
            .env("PATH", std::env::var("PATH").unwrap())
            .env("EDITOR", "/nonexistent");
        command.env("VISUAL", format!("{program} '{change}'"));
        run(command)
    };
    let fake = server("null");
    let ran = at(&fake, &["setup", "edit", "web"], "s/\"small\"/\"large\"/");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(sent(&fake)["vmSize"], "large");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("mode")).unwrap().trim(),
        "600"
    );

    let ran = at(&fake, &["project", "edit", "web"], "s/\"WEB\"/\"SHOP\"/");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(sent(&fake)["taskCode"], "SHOP");
    assert_eq!(sent(&fake)["repos"][0]["url"], "https://h/acme/web.git");
    let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
    assert!(!seen.contains("createdAt") && seen.contains("maxVms"), "{seen}");

    // Of several commands one is changed and the others stay.
    let ran = at(&fake, &["pool", "edit", "web"], "s/npm ci/npm install/");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (install, db) = (
        json!({ "name": "install", "command": "npm install" }),
        json!({ "name": "db", "command": "./db", "background": true }),
    );
    assert_eq!(
        sent(&fake),
        json!({ "enabled": true, "targetSize": 2, "maxAgeMinutes": 60, "branch": null, "setupCommands": [install, db] })
    );
    assert!(
        !std::fs::read_to_string(folder.path().join("seen"))
            .unwrap()
            .contains("createdAt")
    );

    // Left as it was, nothing is sent; with a fault nothing is sent and nothing that was written is lost.
    let fake = server("null");
    let ran = at(&fake, &["setup", "edit", "web"], "s/x/x/");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "nothing was changed\n"));
    let ran = at(&fake, &["project", "edit", "web"], "s/\"taskCode\"/\"taskcode\"/");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("taskcode: is not known here; is `taskCode` meant?"),
        "{}",
        ran.stderr
    );
    let kept = |stderr: &str| {
        let kept = stderr
            .split("is kept in ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        let text = std::fs::read_to_string(&kept).unwrap();
        std::fs::remove_file(&kept).unwrap();
        (kept, text)
    };
    assert!(kept(&ran.stderr).1.contains("taskcode"));
    // What is to be done with it is a whole command where one takes it.
    let ran = at(&fake, &["setup", "edit", "web"], "s/vmSize/vmSiez/");
    let (file, text) = kept(&ran.stderr);
    assert!(text.contains("vmSiez"));
    assert!(
        ran.stderr
            .contains(&format!("hint: fix it there, then `hearth setup save web {file}`")),
        "{}",
        ran.stderr
    );
    let ran = at(&fake, &["pool", "edit", "web"], "s/background/backgroud/");
    assert!(
        ran.stderr
            .contains("setupCommands[1].backgroud: is not known here; is `background` meant?"),
        "{}",
        ran.stderr
    );
    kept(&ran.stderr);
    assert!(fake.requests_of("PATCH").is_empty());
    let program = editor(folder.path(), "exit 3");
    let mut command = hearth_at(&fake.url, &["setup", "edit", "web"]);
    command
        .env("PATH", std::env::var("PATH").unwrap())
        .env("EDITOR", program);
    let ran = run(command);
    assert!(ran.code == 1 && ran.stderr.contains("exit status: 3"), "{}", ran.stderr);
}

#[test]
fn file_of_variables_is_set_whole_and_its_faults_are_said_without_values() {
    let fake = Fake::start(|request| {
        if request.line.starts_with("PUT") {
            return Reply::ok(r#"{"items":[]}"#);
        }
        Reply::ok(&project_page())
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".env");
    std::fs::write(&file, "# shop\nA=1\nexport B='x $y'\nC=pa$$w0rd # remark\n").unwrap();
    let path = file.to_str().unwrap();
    let ran = run(hearth_at(&fake.url, &["env", "set", "web", "--env-file", path, "A=2"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "set B, C, A\n"), "{}", ran.stderr);
    let body: Value = serde_json::from_str(&fake.requests_of("PUT")[0].body).unwrap();
    let one = |name: &str, value: &str| json!({ "name": name, "value": value });
    assert_eq!(
        body["variables"],
        json!([one("B", "x $y"), one("C", "pa$$w0rd"), one("A", "2")])
    );
    let ran = run_with_stdin(
        hearth_at(&fake.url, &["env", "set", "web", "--env-file", "-"]),
        b"A=\"geheim\n1B=geheim\n",
    );
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("line 1: ") && !ran.stderr.contains("geheim"),
        "{}",
        ran.stderr
    );
    let help = run(hearth(&["env", "set", "--help"])).stdout;
    assert!(help.contains("docker") && help.contains("dotenv"), "{help}");
}

#[test]
fn refused_field_is_called_what_the_option_is_called() {
    let fake = Fake::start(|request| match request.line.as_str() {
        line if line.starts_with("PATCH") => Reply::json(
            422,
            r#"{"error":{"code":"validation_error","message":"the request is not valid: targetSize: must be at most 20",
            "details":[{"path":"targetSize","message":"must be at most 20"}]}}"#,
        ),
        line if line.ends_with("/claim") => Reply::json(
            409,
            r#"{"error":{"code":"conflict","message":"used before (`ttlMinutes` differs)","details":
            [{"path":"ttlMinutes","message":"is not what the first claim of this task said"}]}}"#,
        ),
        _ => Reply::ok(&project_page()),
    });
    let ran = run(hearth_at(&fake.url, &["pool", "set", "web", "--target", "21"]));
    assert_eq!(
        ran.stderr,
        "error: the request is not valid: --target: must be at most 20\n"
    );
    let ran = run(hearth_at(&fake.url, &["claim", "web", "--task", "T", "--ttl", "5"]));
    assert!(
        ran.stderr.contains("(`--ttl` differs)") && ran.stderr.contains("--ttl: is not"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("ttlMinutes"), "{}", ran.stderr);
}

#[test]
fn completion_is_there_for_three_shells() {
    for (shell, part) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef hearth"),
        ("fish", "--command hearth"),
    ] {
        let ran = run(hearth(&["completion", shell]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(
            ran.stdout.contains(part) && ran.stdout.contains("HEARTH_COMPLETE"),
            "{shell}"
        );
    }
    assert_eq!(run(hearth(&["completion", "tcsh"])).code, 2);
}

#[test]
fn claim_of_a_disabled_pool_is_told_what_helps_and_not_to_try_again() {
    let fake = Fake::start(|request| match request.line.as_str() {
        line if line.ends_with("/claim") => Reply::json(
            429,
            r#"{"error":{"code":"too_many_requests","message":"the pool is disabled: claim with a wait (`waitMs`)",
            "details":[{"path":"enabled","message":"is false for this pool"}]}}"#,
        )
        .with("content-type: application/json\r\nretry-after: 300\r\n"),
        _ => Reply::ok(&project_page()),
    });
    let ran = run(hearth_at(&fake.url, &["claim", "web", "--task", "T"]));
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("`hearth pool set web --enabled`") && ran.stderr.contains("`--wait`"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("try again"), "{}", ran.stderr);
}

#[test]
fn what_has_no_end_or_is_no_text_is_refused_with_a_sentence_and_nothing_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let binary = path("binary");
    std::fs::write(&binary, b"\x7fELF\xff\xfe").unwrap();
    let large = path("large");
    // It has no content on the disk.
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let long = path("long");
    std::fs::write(&long, "x".repeat(100_001)).unwrap();
    let fake = server("null");
    let folder = folder.path().to_str().unwrap();
    for (args, says) in [
        (
            &["setup", "save", "web", "/dev/zero"][..],
            "/dev/zero is not UTF-8 text",
        ),
        (
            &["setup", "save", "web", &large],
            "longer than the 64 MiB that the server takes",
        ),
        (&["setup", "save", "web", folder], "is a folder and no file"),
        (
            &["setup", "save", "web", &binary],
            "is not UTF-8 text: it holds other bytes at byte 5",
        ),
        (
            &["env", "set", "web", "--env-file", "/dev/zero"],
            "/dev/zero is not UTF-8 text",
        ),
        (&["env", "set", "web", "--env-file", folder], "is a folder and no file"),
        (
            &["env", "set", "web", "A", "--from-file", "/dev/zero"],
            "100,000 characters that a variable may have",
        ),
        (
            &["env", "set", "web", "A", "--from-file", &long],
            "100,000 characters that a variable may have",
        ),
        (
            &["env", "set", "web", "A", "--from-file", folder],
            "is a folder and no file",
        ),
        (
            &["pool", "set", "web", "--commands-file", "/dev/zero"],
            "/dev/zero is not UTF-8 text",
        ),
        (
            &["pool", "test", "web", "--commands-file", &large],
            "longer than the 64 MiB that the server takes",
        ),
        (&["serve", "--webhook-secret-file", "/dev/zero"], "is not UTF-8 text"),
        (&["serve", "--webhook-secret-file", folder], "is a folder and no file"),
    ] {
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
    }
    for args in [
        &["setup", "save", "web"][..],
        &["env", "set", "web", "--env-file", "-"],
        &["env", "set", "web", "A"],
        &["pool", "set", "web", "--commands-file", "-"],
    ] {
        // Letters that never end, through a pipe: the one that writes is stopped when no process reads any more.
        let mut endless = std::process::Command::new("yes")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut command = hearth_at(&fake.url, args);
        command.stdin(endless.stdout.take().unwrap());
        let ran = run(command);
        endless.wait().unwrap();
        assert!(
            ran.code == 2 && ran.stderr.contains("standard input is longer than the"),
            "{args:?}: {}",
            ran.stderr
        );
    }
    let mut command = hearth(&["project", "list", "--url", &fake.url, "--token-file", "/dev/zero"]);
    command.env("HEARTH_TOKEN", "");
    let ran = run(command);
    assert!(
        ran.code == 4 && ran.stderr.contains("the token file /dev/zero is not UTF-8 text"),
        "{}",
        ran.stderr
    );
    assert!(fake.requests().is_empty());
}
