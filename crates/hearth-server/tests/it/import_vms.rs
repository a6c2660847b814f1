//! Real VMs: what repositories say about their set-up runs in them, and the examples work with a VM so prepared.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{BOOT, Server, git_repo};
use crate::vms::{exec, server_with};

/// The repositories that the import's own tests read.
const REPOSITORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hearth-import/tests/repos");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
/// An install under emulation.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// One repository, what its VM is asked, and what that answers.
struct Case {
    name: &'static str,
    asks: &'static str,
    answer: &'static str,
}

/// The examples run in a VM of the last one.
const CASES: [Case; 4] = [
    Case {
        name: "devcontainer_node",
        asks: "cat /tmp/created; test -d node_modules/is-number && echo \"$MODE $TOOLS\"; case $PATH in /opt/tools:/*) echo path;; esac; curl -sS 127.0.0.1:3000",
        answer: "created\ndev /home/app/tools\npath\nhello",
    },
    Case {
        name: "dockerfile_python",
        asks: "cat seen; readlink /app; cat who; sudo -u app git status --porcelain; sudo -u app sudo id -un; echo $APP_HOME",
        answer: "home = /app\n1.17.0\n/home/app\napp\n?? seen\n?? who\nroot\n/app\n",
    },
    Case {
        name: "devcontainer_dockerfile_and_feature",
        asks: "cat greeting /etc/said; echo $GREETS; git lfs version | cut -c 1-7",
        answer: "hello you!\nhello hello\nyes\ngit-lfs\n",
    },
    Case {
        name: "copilot",
        asks: "cat sub/seen; .venv/bin/python -c 'import six; print(six.__version__)'; echo $GREETING; uv --version | cut -c 1-2; case $PATH in /opt/own:/*) echo path;; esac",
        answer: "shared 3 /home/app\n1.17.0\nhello\nuv\npath\n",
    },
];

fn files(name: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(Path::new(REPOSITORIES).join(format!("{name}.txt"))).unwrap();
    let mut files: Vec<(String, String)> = Vec::new();
    for line in text.split_inclusive('\n') {
        match line
            .trim_end()
            .strip_prefix("-- ")
            .and_then(|line| line.strip_suffix(" --"))
        {
            Some(path) => files.push((path.to_owned(), String::new())),
            None => files.last_mut().unwrap().1.push_str(line),
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn repositories_boot_by_what_they_say_and_the_examples_run_in_one() {
    let server = server_with(|options| options.command_timeout = COMMAND_TIMEOUT).await;
    let mut last = String::new();
    for case in CASES {
        // Each is called `app`, in a folder of its own.
        let parent = server.folder.path().join(case.name);
        std::fs::create_dir_all(&parent).unwrap();
        let files = files(case.name);
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let url = git_repo(&parent, "app", &files);
        let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
        let body = json!({ "name": case.name, "repos": repos, "vmSize": "small" });
        last = server.project(body).await;
        let boot = server.test_boot(BOOT, &last, json!({})).await;
        assert_eq!(boot["status"], "ready", "{}: {boot:#}", case.name);
        let id = boot["id"].as_str().unwrap();
        let answer = exec(&server, id, &format!("cd app\n{}", case.asks)).await;
        assert_eq!(answer["stdout"], case.answer, "{}: {answer:#}", case.name);
        server.post(&format!("{last}/warm-pool/clear"), json!({})).await;
    }
    examples(&server, &last).await;
    for project in server.get("/projects").await["items"].as_array().unwrap() {
        let path = format!("/projects/{}", project["id"].as_str().unwrap());
        server.call(Method::DELETE, &path, json!({})).await;
    }
    crate::vms::until_no_vm_is_left(&server).await;
    server.stop().await;
}

/// Every example claims a VM of this project, runs its tests, copies the result out and releases the VM.
async fn examples(server: &Server, project: &str) {
    let installed = std::env::var_os("HEARTH_EXAMPLES")
        .expect("HEARTH_EXAMPLES is not set: `cargo xtask test NAME` installs what the examples need and sets it");
    let installed = PathBuf::from(installed);
    let python = |name: &str| installed.join(name).join("bin/python");
    let tsx = installed.join("typescript/node_modules/.bin/tsx");
    let all = [
        ("curl/run.sh", PathBuf::from("/bin/bash"), ""),
        ("python/with_httpx.py", python("python"), ""),
        ("python/with_e2b.py", python("python"), ""),
        ("typescript/with_fetch.ts", tsx.clone(), ""),
        ("typescript/with_e2b.ts", tsx, ""),
        (
            "mini-swe-agent/run.py",
            python("mini-swe-agent"),
            "submitted: six 1.17.0\n",
        ),
        ("harbor/run.py", python("harbor"), "back: from the host\n"),
    ];
    for (example, program, says) in all {
        // Its framework needs a newer Python than every machine has.
        if example.starts_with("harbor") && !program.exists() {
            println!("{example} is left out: what it needs is not installed");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut script = Path::new(EXAMPLES).join(example);
        if example.starts_with("typescript") {
            // Node.js looks for modules beside the script.
            let beside = installed.join(example);
            std::fs::copy(&script, &beside).unwrap();
            script = beside;
        }
        let url = format!("http://{}", server.address);
        let mut command = Command::new(program);
        command.arg(script).current_dir(folder.path());
        command.env("HEARTH_URL", &url).env("HEARTH_TOKEN", &server.token);
        command.env("E2B_API_KEY", &server.token);
        command
            .env("E2B_API_URL", format!("{url}/e2b"))
            .env("E2B_SANDBOX_URL", format!("{url}/e2b"));
        command.env("HEARTH_PROJECT", project.trim_start_matches("/projects/"));
        command.env("FOLDER", "/home/app").env("RESULT", "out/report.txt");
        command.env(
            "TESTS",
            "mkdir -p out; .venv/bin/python -c 'import six; print(\"six\", six.__version__)' | tee out/report.txt",
        );
        command
            .env("MSWEA_SILENT_STARTUP", "1")
            .env("MSWEA_GLOBAL_CONFIG_DIR", folder.path());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let (said, errors) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert!(
            ran.status.success() && said.contains("six 1.17.0"),
            "{example}: {said}\n{errors}"
        );
        assert!(said.contains(says), "{example}: {said}");
        let result = std::fs::read_to_string(folder.path().join("report.txt")).unwrap();
        assert_eq!(result, "six 1.17.0\n", "{example}");
    }
    let claims: Value = server.get("/claims").await;
    assert_eq!(claims["items"], json!([]), "an example left its VM");
}
