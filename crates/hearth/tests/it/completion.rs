//! Completion as shells ask for it, against a real server with the fake driver; and the manual pages.

use std::process::Command;
use std::time::{Duration, Instant};

use hearth_drivers::fake::{ExecRule, Special};

use crate::attached::House;
use crate::fake::{Fake, Reply, Request};
use crate::files::entry;
use crate::support::{Ran, hearth, hearth_at, private, run, run_at_terminal_after};

/// A server with a claim for the task `fix-17`.
fn house() -> House {
    let house = House::start(vec![ExecRule::does("build", Special::NeverEnds)]);
    let created = run(house.command(&["project", "create", "my shop"]));
    assert_eq!(created.code, 0, "{}", created.stderr);
    let released = run(house.command(&["release", &house.id]));
    assert_eq!(released.code, 0, "{}", released.stderr);
    let claimed = run(house.command(&["claim", "demo", "--wait", "--task", "fix-17"]));
    assert_eq!(claimed.code, 0, "{}", claimed.stderr);
    house
}

/// As many milliseconds as a machine under load may need.
const PATIENT: &str = "30000";

/// Asks as bash does when the cursor stands at the end of words without quotes and colons.
fn as_bash(mut command: Command, words: &[&str]) -> Ran {
    command
        .arg("--")
        .args(words)
        .env("HEARTH_COMPLETE", "bash")
        .env("HEARTH_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("HEARTH_COMPLETE_LINE", words.join(" "))
        .env("HEARTH_COMPLETE_WORD", words.last().unwrap());
    run(command)
}

fn patient(mut command: Command) -> Command {
    command.env("HEARTH_COMPLETE_MS", PATIENT);
    command
}

fn lines(ran: &Ran) -> Vec<&str> {
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    ran.stdout.lines().collect()
}

#[test]
fn a_shell_completes_what_is_there() {
    let house = house();
    let ask = |words: &[&str]| as_bash(patient(house.command(&[])), &[&["hearth"], words].concat());
    for command in [
        "exec", "release", "shell", "logs", "ps", "ssh", "forward", "pause", "resume", "attach", "kill", "wait", "ls",
    ] {
        let ran = ask(&[command, ""]);
        let names = lines(&ran);
        assert!(
            names.len() == 3 && names[0] == "fix-17" && names[1].starts_with("wpi_") && names[2] == "last",
            "{command}: {names:?}"
        );
    }
    assert_eq!(lines(&ask(&["ps", "f"])), ["fix-17"]);
    assert_eq!(lines(&ask(&["claim", "d"])), ["demo"]);
    assert_eq!(lines(&ask(&["pool", "set", "m"])), ["my\\ shop"]);
    assert_eq!(lines(&ask(&["cp", "fix"])), ["fix-17:"]);
    let detached = run(house.command(&["exec", "--detach", "--tag", "nightly", "fix-17", "--", "build"]));
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    for command in ["attach", "kill", "wait", "logs"] {
        assert_eq!(lines(&ask(&[command, "fix-17", "n"])), ["nightly"], "{command}");
    }
    assert_eq!(lines(&ask(&["shell", "fix-17", "--session", "n"])), ["nightly"]);
    let options = ask(&["exec", "--det"]);
    assert_eq!(lines(&options), ["--detach"]);
    assert_eq!(lines(&ask(&["pau"])), ["pause"]);

    // The server is named on the line, and nowhere else.
    let token = house.token_file();
    let line = ["hearth", "--url", &house.url, "--token-file", &token, "ps", "f"];
    assert_eq!(lines(&as_bash(patient(hearth(&[])), &line)), ["fix-17"]);

    let paused = run(house.command(&["pause", "fix-17", "--force"]));
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    assert_eq!(lines(&ask(&["attach", "fix-17", "n"])), [""; 0]);
    let claims = run(house.command(&["claims", "--json"]));
    assert!(claims.stdout.contains(r#""paused": true"#), "{}", claims.stdout);
}

#[test]
fn zsh_and_fish_are_told_what_a_name_means() {
    let house = house();
    let mut zsh = house.command(&["--", "hearth", "ps", "f"]);
    zsh.env("HEARTH_COMPLETE_MS", PATIENT)
        .env("HEARTH_COMPLETE", "zsh")
        .env("_CLAP_COMPLETE_INDEX", "2");
    assert!(run(zsh).stdout.starts_with("fix-17:demo, claimed "));
    let mut fish = house.command(&["--", "hearth", "attach", "--url", &house.url, "f"]);
    fish.env("HEARTH_COMPLETE_MS", PATIENT)
        .env("HEARTH_COMPLETE", "fish")
        .env_remove("HEARTH_URL");
    assert!(run(fish).stdout.starts_with("fix-17\tdemo, claimed "));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(hearth(&["completion", shell]));
        let script = script.stdout.replace('"', "");
        assert!(script.contains(&format!("HEARTH_COMPLETE={shell}")), "{script}");
    }
}

#[test]
fn a_real_bash_types_the_rest() {
    let house = house();
    let mut shell = Command::new("bash");
    shell
        .args(["--norc", "--noprofile", "-i"])
        .env_clear()
        .env("PS1", "> ")
        .env("HEARTH_COMPLETE_MS", PATIENT);
    for (name, value) in house.command(&[]).get_envs() {
        shell.env(name, value.unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completion");
    std::fs::write(&script, run(hearth(&["completion", "bash"])).stdout).unwrap();
    let url = &house.url;
    let typed = format!(
        "bind 'set enable-bracketed-paste off'; source {}; complete -F _hearth echo; history -c; set +o history\n\
         echo ps f\techo\n\
         echo claim my\tas\n\
         echo cp a fix\tpath\n\
         echo --url={url} kill la\tx\n\
         exit\n",
        script.display()
    );
    let (_, shown) = run_at_terminal_after(shell, "> ", typed.as_bytes());
    for printed in [
        "ps fix-17 echo".to_owned(),
        "claim my shop as".to_owned(),
        "cp a fix-17:path".to_owned(),
        format!("--url={url} kill last x"),
    ] {
        assert!(
            shown.lines().any(|line| line.trim_end() == printed),
            "{printed} in {shown}"
        );
    }
}

#[test]
fn files_in_a_vm_are_completed_where_they_are_copied() {
    const VM: &str = "wpi_01a209bacc5b714f95acb5a1b59650f7";
    let fake = Fake::with_look_ups(|request: &Request| match request.line.split('?').next().unwrap() {
        "GET /api/v1/claims" => Reply::ok(r#"{"items":[]}"#),
        "GET /api/v1/find/instances" => Reply::ok(&format!(
            r#"{{"items":[{{"id":"{VM}","projectId":"prj_1","projectName":"web","status":"claimed","taskId":"T1","claimedAt":null}}]}}"#
        )),
        _ => Reply::ok(&format!(
            r#"{{"items":[{},{},{}],"truncated":false,"unreadable":[]}}"#,
            entry("src", "directory"),
            entry("start me", "file"),
            entry("other", "file")
        )),
    });
    let ask = |typed: &str, current: &str| {
        let mut command = hearth_at(&fake.url, &["--", "hearth", "cp", "T1", ":"]);
        if !current.is_empty() {
            command.arg(current);
        }
        command
            .env("HEARTH_COMPLETE_MS", PATIENT)
            .env("HEARTH_COMPLETE", "bash")
            .env("HEARTH_COMPLETE_INDEX", if current.is_empty() { "3" } else { "4" })
            .env("HEARTH_COMPLETE_LINE", format!("hearth cp {typed}"))
            .env("HEARTH_COMPLETE_WORD", current);
        run(command)
    };
    assert_eq!(lines(&ask("T1:app/s", "app/s")), ["app/src/", "app/start\\ me"]);
    assert_eq!(lines(&ask("T1:/s", "/s")), ["/src/", "/start\\ me"]);
    assert_eq!(lines(&ask("T1:", "")), ["src/", "start\\ me", "other"]);
    let lists = fake.requests_of("GET /api/v1/instances/");
    for (list, folder) in lists.iter().zip(["path=app&", "path=%2F&", "path=.&"]) {
        assert!(list.line.contains(VM) && list.line.contains(folder), "{}", list.line);
    }
    assert_eq!(lists.len(), 3);
}

#[test]
fn what_others_name_is_neither_run_nor_an_option() {
    let claim = |id: &str, task: &str| {
        serde_json::json!({
            "id": format!("wpi_{id}"), "projectId": "prj_1", "projectName": "web", "taskId": task, "owner": null,
            "claimedAt": "2025-01-01T00:00:00.000Z", "expiresAt": "2030-01-01T00:00:00.000Z",
        })
    };
    let items = [
        claim("1", "t$(id)"),
        claim("2", "t\u{1b}[2J"),
        claim("3", "--all"),
        claim("4", "t two"),
    ];
    let reply = serde_json::json!({ "items": items }).to_string();
    let fake = Fake::start(move |_| Reply::ok(&reply));
    let ran = as_bash(patient(hearth_at(&fake.url, &[])), &["hearth", "release", "t"]);
    assert_eq!(lines(&ran), ["t\\$\\(id\\)", "t\\ two"]);
    let ran = as_bash(patient(hearth_at(&fake.url, &[])), &["hearth", "release", ""]);
    assert!(
        !ran.stdout.contains("--all") && !ran.stdout.contains('\u{1b}'),
        "{}",
        ran.stdout
    );
}

#[test]
fn no_server_and_a_silent_one_give_nothing_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let began = Instant::now();
    let ran = as_bash(hearth_at(&url, &[]), &["hearth", "ps", "w"]);
    assert_eq!(lines(&ran), [""; 0]);
    // Much more than the limit, for a machine under load; a request alone waits longer.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let folder = tempfile::tempdir().unwrap();
    let mut none = hearth(&[]);
    none.env("HEARTH_RUNTIME_DIR", private(folder.path()));
    assert_eq!(lines(&as_bash(none, &["hearth", "ps", "w"])), [""; 0]);
    let line = ["hearth", "--token-file", "-", "--url", &url, "ps", "w"];
    assert_eq!(lines(&as_bash(hearth(&[]), &line)), [""; 0]);
    let refused = Fake::start(|_| Reply::json(401, r#"{"error":{"code":"unauthorized","message":"no hearth_test"}}"#));
    assert_eq!(
        lines(&as_bash(hearth_at(&refused.url, &[]), &["hearth", "ps", "w"])),
        [""; 0]
    );
}
