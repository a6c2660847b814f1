//! What a newcomer does, in Chromium: sign in, make a project, break its set-up, see what failed, mend it, see only the changed step run,
//! enable the pool, see it fill, claim, type into the terminal, open a preview, release.

use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeOptions, Special};
use reqwest::Method;
use serde_json::json;

use super::browser::Window;
use crate::harness::{BOOT, Server};
use crate::ports;
use crate::vms::{clean_up, server_with};

/// A command that prints this and takes some time, so that it is seen to run.
fn rule(contains: &str, stdout: &str, stderr: &str, code: i32) -> ExecRule {
    ExecRule {
        contains: contains.to_owned(),
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
        code,
        takes: Duration::from_secs(2),
        times: None,
        special: Special::None,
    }
}

/// Signs in with the server's own token.
pub async fn sign_in(window: &Window, server: &Server) {
    window.go("/").await;
    window.is_at("/sign-in").await;
    window.fill("#token", &server.token).await;
    window.click("Sign in").await;
    window.sees("Projects").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn newcomer_comes_from_sign_in_to_a_preview_in_the_browser() {
    let fake = FakeOptions {
        rules: vec![
            rule("install-tools", "tools are here\n", "", 0),
            rule(
                "make biuld",
                "",
                "make: *** No rule to make target 'biuld'.  Stop.\n",
                2,
            ),
            rule("make build", "built\n", "", 0),
        ],
        ..FakeOptions::default()
    };
    let (server, driver) = Server::fake(fake).await;
    driver.listen(3000, ports::serve().await);
    let window = Window::open(&server).await;
    window.go("/").await;
    window.is_at("/sign-in").await;
    window.shots("sign-in").await;
    sign_in(&window, &server).await;
    window.shots("projects-none").await;

    window.click("New project").await;
    window.is_at("/projects/new").await;
    window.shots("project-new").await;
    window.fill("#name", "shop").await;
    window.click("Make the project").await;
    window.sees("Project made.").await;
    window.fill("[data-row]:nth-child(1) input[name=name]", "tools").await;
    window.fill("[data-row]:nth-child(1) textarea", "install-tools").await;
    window.click("Add a command").await;
    window.fill("[data-row]:nth-child(2) input[name=name]", "build").await;
    window.fill("[data-row]:nth-child(2) textarea", "make biuld").await;
    window.click("Save and test").await;

    // What fails is seen while it runs, and why.
    window
        .until("document.querySelector('#output')?.textContent.includes('tools are here') === true")
        .await;
    window.shots("boot-running").await;
    window.sees("No rule to make target").await;
    window
        .until("document.querySelector('#step-warm_pool_setup.failed details[open] pre.error') !== null")
        .await;
    window.shots("boot-failed").await;
    assert!(window.text().await.contains("build"));

    // Only what changed runs.
    window.fill("[data-row]:nth-child(2) textarea", "make build").await;
    window.click("Save and test").await;
    window
        .until("document.querySelector('#steps')?.dataset.status === 'ready'")
        .await;
    window.sees("Succeeded").await;
    let boot = window.path().await;
    let boot = boot.split("boot=").nth(1).unwrap().to_owned();
    let project = window.path().await.split("/setup").next().unwrap().to_owned();
    let detail = server.get(&format!("{project}/warm-pool/instances/{boot}")).await;
    let last = detail["steps"].as_array().unwrap().last().unwrap().clone();
    let cached = |at: usize| last["metadata"]["commands"][at]["cached"] == true;
    assert!(cached(0) && !cached(1), "{last:#}");
    window.shots("setup").await;
    window.go(&format!("{project}/boots/{boot}")).await;
    window.sees("Succeeded").await;
    window.shots("boot").await;

    // The keyboard moves a command.
    window.go(&format!("{project}/setup")).await;
    window.type_keys("[data-row]:nth-child(2) [data-move=up]", "").await;
    window
        .until("document.querySelector('[data-row] input[name=name]').value === 'build'")
        .await;
    window.until("document.activeElement.dataset.move === 'up'").await;

    window.go(&project).await;
    window.tick("input[name=enabled]").await;
    window.fill("input[name=targetSize]", "2").await;
    window.click("Save").await;
    window
        .until("document.querySelector('#pool .figures dd')?.innerText.trim() === '2 of 2'")
        .await;
    window.shots("project").await;
    window.go("/").await;
    window.sees("shop").await;
    window.shots("projects").await;

    window.go(&project).await;
    window.fill("#task", "task-7").await;
    window.click("Claim").await;
    window.is_at("/claims").await;
    window.go(&project).await;
    window.fill("#task", "task-7").await;
    window
        .ask("document.querySelector('form[action$=\"/claim\"] button').click()")
        .await;
    window.is_at("/instances/").await;
    window.sees("Open preview").await;
    window.shots("instance").await;
    let vm = window.path().await.split('?').next().unwrap().to_owned();

    // The page that the link opens is the VM's own, on a host of its own.
    let link = window
        .ask("[...document.querySelectorAll('a')].find(a => a.innerText.startsWith('Open preview')).href")
        .await;
    let shown = window.source_of(link.as_str().unwrap()).await;
    assert!(shown.contains("localhost:3000"), "{shown}");
    assert!(!shown.contains("hearth_session"), "{shown}");

    window.go(&format!("{vm}/terminal")).await;
    window.sees("Connected").await;
    window
        .until("document.querySelector('.xterm-rows')?.innerText.includes(' x ') === true")
        .await;
    window.type_keys(".xterm-helper-textarea", "hello").await;
    window
        .until("document.querySelector('.xterm-rows').innerText.includes('hello')")
        .await;
    window.shots("terminal").await;

    let file = server
        .request(Method::PUT, &format!("{vm}/files?path=/home/notes.txt"))
        .body("notes");
    assert!(file.send().await.unwrap().status().is_success());
    window.go(&format!("{vm}/files")).await;
    window.sees("notes.txt").await;
    window.shots("files").await;
    let id = project.rsplit('/').next().unwrap();
    for (path, name) in [
        ("/claims".to_owned(), "claims"),
        ("/charts".to_owned(), "charts"),
        (format!("/charts?project={id}"), "charts-project"),
        (format!("{project}/history"), "history"),
        (format!("{project}/history?show=boots"), "history-boots"),
        (format!("{project}/history/{boot}"), "history-boot"),
        (format!("{project}/advice?target=3"), "advice"),
        ("/host".to_owned(), "host"),
        ("/tokens".to_owned(), "tokens"),
        ("/audit".to_owned(), "audit"),
    ] {
        window.go(&path).await;
        window.until("document.readyState === 'complete'").await;
        if name == "host" {
            window
                .until("document.querySelector('#doctor .findings') !== null")
                .await;
        }
        window.shots(name).await;
    }

    window.go(&vm).await;
    window.click("Release").await;
    window.sees("VM released").await;
    window.click("Sign out").await;
    window.is_at("/sign-in").await;
    // The policy of the pages refuses what they try themselves: nothing.
    let said = window.complaints().await;
    window.close().await;
    let refused: Vec<_> = said
        .iter()
        .filter(|text| text.contains("Content Security Policy"))
        .collect();
    assert_eq!(refused, Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn hostile_texts_run_no_script_in_the_browser() {
    const HOSTILE: &str =
        "\"><script>window.hostile=1</script><img src=x onerror=\"window.hostile=2\"><svg onload=window.hostile=3>";
    let fake = FakeOptions {
        rules: vec![rule("print-it", HOSTILE, HOSTILE, 1)],
        ..FakeOptions::default()
    };
    let (server, _) = Server::fake(fake).await;
    let body = json!({
        "name": "<img src=x onerror=window.hostile=4>", "description": HOSTILE,
        "repos": [{ "repoFullName": "acme/app", "branch": "x\"onload=\"window.hostile=5", "url": "file:///nowhere" }],
    });
    let (status, made) = server.call(Method::POST, "/projects", body).await;
    // A branch that git could not have is refused: then the name alone is hostile.
    let project = match status.is_success() {
        true => format!("/projects/{}", made["id"].as_str().unwrap()),
        false => {
            server
                .project(json!({ "name": "<img src=x onerror=window.hostile=4>", "description": HOSTILE }))
                .await
        }
    };
    let bare = server.project(json!({ "name": HOSTILE })).await;
    let window = Window::open(&server).await;
    sign_in(&window, &server).await;
    window.go(&format!("{bare}/setup")).await;
    window
        .fill(
            "[data-row]:nth-child(1) input[name=name]",
            "<script>window.hostile=6</script>",
        )
        .await;
    window
        .fill("[data-row]:nth-child(1) textarea", &format!("print-it # {HOSTILE}"))
        .await;
    window.click("Save and test").await;
    window
        .until("document.querySelector('#output')?.textContent.includes('window.hostile=2') === true")
        .await;
    window
        .until("document.querySelector('#steps')?.dataset.status === 'failed'")
        .await;
    window.sees("window.hostile=1").await;
    let visited = [
        window.path().await,
        "/".to_owned(),
        "/?q=%3Cscript%3Ewindow.hostile=7%3C/script%3E&done=%3Cscript%3E".to_owned(),
        project.clone(),
        bare.clone(),
        format!("{project}/setup"),
        "/sign-in?next=javascript:window.hostile=8".to_owned(),
    ];
    for path in visited {
        window.go(&path).await;
        window.until("document.readyState === 'complete'").await;
        assert_eq!(window.ask("typeof window.hostile").await, json!("undefined"), "{path}");
        assert_eq!(
            window
                .ask("document.querySelectorAll('main script, main img').length")
                .await,
            json!(0),
            "{path}"
        );
    }
    window.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM and Chromium (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn real_vm_is_typed_into_and_looked_at_in_the_browser() {
    let server = server_with(|_| ()).await;
    let window = Window::open(&server).await;
    sign_in(&window, &server).await;
    window.click("New project").await;
    window.is_at("/projects/new").await;
    window.fill("#name", "real").await;
    window.ask("document.querySelector('#vmSize').value = 'small'").await;
    window.click("Make the project").await;
    window.sees("Project made.").await;
    let project = window.path().await.split("/setup").next().unwrap().to_owned();
    window.fill("[data-row]:nth-child(1) input[name=name]", "page").await;
    window
        .fill(
            "[data-row]:nth-child(1) textarea",
            "echo from the real VM > /home/index.html; false",
        )
        .await;
    window.click("Save and test").await;
    let ended = |status: &str| format!("document.querySelector('#steps')?.dataset.status === '{status}'");
    window.until_within(&ended("failed"), BOOT).await;
    window.sees("exit code 1").await;
    window
        .fill(
            "[data-row]:nth-child(1) textarea",
            "echo from the real VM > /home/index.html",
        )
        .await;
    window.click("Save and test").await;
    window.until_within(&ended("ready"), BOOT).await;
    window.shots("real-boot").await;

    window.go(&project).await;
    window.tick("input[name=enabled]").await;
    window.click("Save").await;
    let full = "document.querySelector('#pool .figures dd')?.innerText.trim() === '1 of 1'";
    window.until_within(full, BOOT).await;
    window
        .ask("document.querySelector('form[action$=\"/claim\"] button').click()")
        .await;
    window.is_at("/instances/").await;
    let vm = window.path().await.split('?').next().unwrap().to_owned();
    window.go(&format!("{vm}/terminal")).await;
    window.sees("Connected").await;
    let shown = |text: &str| format!("document.querySelector('.xterm-rows').innerText.includes('{text}')");
    window
        .type_keys(".xterm-helper-textarea", "echo $((40 + 2))-typed; cat /home/index.html")
        .await;
    window.until_within(&shown("42-typed"), BOOT).await;
    window.until_within(&shown("from the real VM"), BOOT).await;
    let serve = json!({ "request": { "argv": ["python3", "-m", "http.server", "3000", "--directory", "/home"] } });
    server.post(&format!("{vm}/sessions"), serve).await;
    window.go(&vm).await;
    window
        .until_within("document.body.innerText.includes('Open preview')", BOOT)
        .await;
    window.shots("real-instance").await;
    let link = window
        .ask("[...document.querySelectorAll('a')].find(a => a.innerText.startsWith('Open preview')).href")
        .await;
    let shown = window.source_of(link.as_str().unwrap()).await;
    assert!(shown.contains("from the real VM"), "{shown}");
    window.click("Release").await;
    window.sees("VM released").await;
    window.close().await;
    clean_up(server, &project).await;
}
