//! Commands: what they are given, what comes back, and that nothing of them is left.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hearth_guest::client::{AgentError, ExecEvent, ExecOutput, Upload};
use hearth_guest::{Detach, ExecEnd, ExecSpec};
use tokio::time::Instant;

use crate::support::*;

pub(super) const MAX: usize = 1 << 20;

pub(super) fn code(output: &ExecOutput) -> Option<i32> {
    match output.end {
        ExecEnd::Exited { code, .. } => code,
        ref other => panic!("not an exit: {other:?}"),
    }
}

fn reason(output: &ExecOutput) -> &str {
    match &output.end {
        ExecEnd::NotStarted { reason, .. } => reason,
        other => panic!("it started: {other:?}"),
    }
}

pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn variables_that_linux_cannot_export_are_left_out_and_fail_no_command() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path_text("large.env");
    let mut content = format!("TOO_LONG='{}'\nQUOTED='it'\\''s'\n", "x".repeat(140_000));
    for at in 0..40 {
        content.push_str(&format!("V{at}='{}'\n", "y".repeat(99_000)));
    }
    std::fs::write(&file, content).unwrap();
    let mut spec = shell("echo \"${TOO_LONG-out} $QUOTED ${#V0} ${V39-out} $MINE\"");
    spec.env_file = Some(file);
    spec.env = vec![("MINE".into(), "mine".into())];
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    assert_eq!(
        (text(&output.stdout), code(&output)),
        ("out it's 99000 out mine\n", Some(0))
    );
}

#[tokio::test]
async fn outputs_and_exit_code() {
    let agent = Agent::start();
    let client = agent.client().await;
    let output = client
        .exec_collect(&shell("echo out; echo err >&2; exit 7"), MAX)
        .await
        .unwrap();
    assert_eq!(
        (text(&output.stdout), text(&output.stderr), code(&output)),
        ("out\n", "err\n", Some(7))
    );
    let output = client
        .exec_collect(&argv(&["/bin/sh", "-c", "kill -9 $$"]), MAX)
        .await
        .unwrap();
    assert!(matches!(
        output.end,
        ExecEnd::Exited {
            code: None,
            signal: Some(9),
            ..
        }
    ));
    // `-e` and `pipefail`.
    assert_eq!(
        code(&client.exec_collect(&shell("false | true; echo no"), MAX).await.unwrap()),
        Some(1)
    );
    let cut = client.exec_collect(&shell("seq 1000"), 10).await.unwrap();
    assert_eq!((cut.stdout.len(), cut.truncated, code(&cut)), (10, true, Some(0)));
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_the_environment_is_small_and_exact() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut spec = argv(&["env", "-0"]);
    spec.env = vec![("WEIRD".into(), "a'b\"c\n$d\\ ".into()), ("LANG".into(), "de".into())];
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    let mut found: Vec<&str> = text(&output.stdout).split_terminator('\0').collect();
    // What the machine itself adds.
    let own = std::fs::read_to_string("/etc/environment").unwrap_or_default();
    found.retain(|pair| !own.lines().any(|line| line.split('=').next() == pair.split('=').next()));
    found.sort_unstable();
    let expected = [
        "HOME=/root",
        "LANG=de",
        "LOGNAME=root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/bash",
        "USER=root",
        "WEIRD=a'b\"c\n$d\\ ",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn the_variables_file_is_exact_for_shells_and_programs() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path_text("it's .env");
    std::fs::write(&file, "A='one\ntwo '\\''three'\\'' $HOME `x`'\nB=\n").unwrap();
    let wanted = "one\ntwo 'three' $HOME `x`|";
    for mut spec in [
        shell("printf '%s|%s' \"$A\" \"$B\""),
        argv(&["sh", "-c", "printf '%s|%s' \"$A\" \"$B\""]),
    ] {
        spec.env_file = Some(file.clone());
        let output = client.exec_collect(&spec, MAX).await.unwrap();
        assert_eq!((text(&output.stdout), text(&output.stderr)), (wanted, ""));
    }
    // A new content is seen at once, whichever program wrote it; the caller's own variables take precedence.
    std::fs::write(&file, "A=new\nB='own'\n").unwrap();
    let mut changed = argv(&["sh", "-c", "printf '%s|%s' \"$A\" \"$B\""]);
    (changed.env_file, changed.env) = (Some(file.clone()), vec![("B".into(), "mine".into())]);
    assert_eq!(
        text(&client.exec_collect(&changed, MAX).await.unwrap().stdout),
        "new|mine"
    );
    std::fs::write(&file, "A='unfinished\n").unwrap();
    assert!(reason(&client.exec_collect(&changed, MAX).await.unwrap()).contains("bash finds an error in it"));
    let mut missing = shell("echo fine");
    missing.env_file = Some(agent.path_text("none"));
    assert_eq!(
        text(&client.exec_collect(&missing, MAX).await.unwrap().stdout),
        "fine\n"
    );
}

#[tokio::test]
async fn a_search_path_that_leads_nowhere_is_the_commands_own_matter() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path_text("env");
    std::fs::write(&file, "PATH='/no/such'\nHOME='/no/home'\n").unwrap();
    for mut spec in [
        shell("echo \"$PATH $HOME\"; no-such-program || echo \"$?\""),
        argv(&["sh", "-c", "echo \"$PATH $HOME\"; no-such-program || echo \"$?\""]),
    ] {
        spec.env_file = Some(file.clone());
        let output = client.exec_collect(&spec, MAX).await.unwrap();
        assert_eq!(text(&output.stdout), "/no/such /no/home\n127\n", "{output:?}");
        assert!(text(&output.stderr).contains("not found"), "{output:?}");
    }
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let agent = Agent::start();
    let client = agent.client().await;
    let ask = async |spec: ExecSpec| reason(&client.exec_collect(&spec, MAX).await.unwrap()).to_owned();
    assert_eq!(
        ask(argv(&["no-such-program"])).await,
        "the program no-such-program was not found"
    );
    assert_eq!(
        ask(argv(&["/etc/passwd"])).await,
        "the program /etc/passwd may not be run"
    );
    let nowhere = ExecSpec {
        cwd: Some("/no/such".into()),
        ..shell("true")
    };
    assert_eq!(ask(nowhere).await, "the working directory /no/such does not exist");
    let nobody = ExecSpec {
        user: Some("no-such-user".into()),
        ..shell("true")
    };
    assert_eq!(ask(nobody).await, "there is no user \"no-such-user\" in this VM");
    assert_eq!(
        ask(ExecSpec::default()).await,
        "exactly one of argv and shell must be given"
    );
    assert_eq!(ask(argv(&[])).await, "argv names no program");
    assert!(ask(argv(&["echo", &"x".repeat(200_000)])).await.contains("128 KiB"));
    let big: Vec<(String, String)> = (0..60).map(|n| (format!("V{n}"), "x".repeat(100_000))).collect();
    assert!(
        ask(ExecSpec {
            env: big,
            ..shell("true")
        })
        .await
        .contains("longer than Linux allows")
    );
    assert!(
        ask(ExecSpec {
            env: vec![("A=B".into(), String::new())],
            ..shell("true")
        })
        .await
        .contains("variable")
    );
    // And the agent still works.
    assert_eq!(code(&client.exec_collect(&shell("true"), MAX).await.unwrap()), Some(0));
}

#[tokio::test]
async fn what_cannot_start_has_the_exit_code_of_a_shell() {
    let agent = Agent::start();
    let client = agent.client().await;
    let ask = async |spec: ExecSpec| match client.exec_collect(&spec, MAX).await.unwrap().end {
        ExecEnd::NotStarted { code, reason } => (code, reason),
        other => panic!("it started: {other:?}"),
    };
    assert_eq!(ask(argv(&["no-such-program"])).await.0, Some(127));
    assert_eq!(ask(argv(&["./no/such/program"])).await.0, Some(127));
    assert_eq!(ask(argv(&["/etc/passwd"])).await.0, Some(126));
    assert_eq!(ask(argv(&["/etc"])).await.0, Some(126));
    let script = agent.path_text("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, reason) = ask(argv(&[&script])).await;
    assert_eq!(code, Some(126));
    assert!(reason.contains("interpreter"), "{reason}");
    let nowhere = ExecSpec {
        cwd: Some("/no/such".into()),
        ..shell("true")
    };
    assert_eq!(ask(nowhere).await.0, Some(126));
    let nobody = ExecSpec {
        user: Some("no-such-user".into()),
        ..shell("true")
    };
    assert_eq!(ask(nobody).await.0, Some(126));
}

#[tokio::test]
async fn long_commands_work() {
    let agent = Agent::start();
    let client = agent.client().await;
    for length in [50_000, 100_000, 150_000, 2_000_000] {
        let command = format!("x='{}'; echo ${{#x}}", "y".repeat(length));
        let output = client.exec_collect(&shell(&command), MAX).await.unwrap();
        assert_eq!(text(&output.stdout), format!("{length}\n"));
    }
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_long_command_of_another_user_works() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut other = shell(&format!("x='{}'; echo ${{#x}} $(id -u)", "y".repeat(150_000)));
    other.user = Some("nobody".into());
    assert_eq!(
        text(&client.exec_collect(&other, MAX).await.unwrap().stdout),
        "150000 65534\n"
    );
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_folder_and_user() {
    let agent = Agent::start();
    let client = agent.client().await;
    let spec = ExecSpec {
        cwd: Some("/usr/bin".into()),
        ..shell("pwd")
    };
    assert_eq!(
        text(&client.exec_collect(&spec, MAX).await.unwrap().stdout),
        "/usr/bin\n"
    );
    let spec = ExecSpec {
        user: Some("daemon".into()),
        ..shell("id -un; id -u; echo $HOME; id -G")
    };
    assert_eq!(
        text(&client.exec_collect(&spec, MAX).await.unwrap().stdout),
        "daemon\n1\n/usr/sbin\n1\n"
    );
    let spec = ExecSpec {
        user: Some("4242:77".into()),
        ..shell("id -u; id -G")
    };
    assert_eq!(
        text(&client.exec_collect(&spec, MAX).await.unwrap().stdout),
        "4242\n77\n"
    );
    // Its own session and process group.
    let output = client
        .exec_collect(&shell("ps -o pid=,pgid=,sid= -p $$"), MAX)
        .await
        .unwrap();
    let numbers: Vec<&str> = text(&output.stdout).split_whitespace().collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(|number| *number == numbers[0]),
        "{numbers:?}"
    );
}

#[tokio::test]
async fn output_streams_while_input_is_open() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let input = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let mut stream = client
        .exec(&argv(&["cat"]), Upload::from_stream(Box::pin(input)))
        .await
        .unwrap();
    for word in ["one", "two"] {
        sender.send(Ok(Bytes::from_static(word.as_bytes()))).await.unwrap();
        assert_eq!(
            stream.next().await.unwrap().unwrap(),
            ExecEvent::Stdout(Bytes::from_static(word.as_bytes()))
        );
    }
    drop(sender);
    assert!(matches!(
        stream.next().await,
        Some(Ok(ExecEvent::End(ExecEnd::Exited { code: Some(0), .. })))
    ));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn input_that_is_not_read_harms_nobody() {
    let agent = Agent::start();
    let client = agent.client().await;
    let stream = client.exec(&shell("exit 3"), vec![0; 4 << 20]).await.unwrap();
    assert_eq!(code(&stream.collect(MAX).await.unwrap()), Some(3));
    let stuck = client.exec(&shell("sleep 1000"), vec![0; 4 << 20]).await.unwrap();
    assert_eq!(code(&client.exec_collect(&shell("true"), MAX).await.unwrap()), Some(0));
    drop(stuck);
}

/// The command whose grandchild leaves the session, and where its number is.
fn hide_and_seek(agent: &Agent) -> (String, std::path::PathBuf) {
    let file = agent.path("grandchild");
    let command = format!(
        "(setsid sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' &) ; sleep 1000",
        file.display()
    );
    (command, file)
}

async fn timeout_ends_everything(agent: Agent) {
    let client = agent.client().await;
    let (command, file) = hide_and_seek(&agent);
    let spec = ExecSpec {
        // Long enough for the grandchild to be there on a busy host, too.
        timeout_ms: Some(3000),
        ..shell(&command)
    };
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    assert!(
        matches!(
            output.end,
            ExecEnd::TimedOut {
                duration_ms: 3000..,
                signal: Some(15),
                code: None
            }
        ),
        "{output:?}"
    );
    // The end is only said when it is true.
    assert!(!alive(pid_in(&file).await));
}

#[tokio::test]
async fn a_timeout_ends_grandchildren_with_sessions_of_their_own() {
    timeout_ends_everything(Agent::start()).await;
}

#[tokio::test]
async fn a_timeout_ends_them_without_cgroups_too() {
    timeout_ends_everything(Agent::start_with(&["--no-cgroups"])).await;
}

#[tokio::test]
async fn a_crowd_that_does_not_listen_is_ended_without_the_whole_grace() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path("crowd");
    let crowd = "trap '' TERM; for i in $(seq 300); do sleep 600 & done; echo $$ >";
    let spec = ExecSpec {
        timeout_ms: Some(20_000),
        ..shell(&format!("{crowd} {}; wait", file.display()))
    };
    let running = client.exec(&spec, Upload::empty()).await.unwrap();
    let leader = pid_in(&file).await;
    let start = Instant::now();
    drop(running);
    is_gone(leader).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_gentle_command_may_clean_up_at_the_timeout() {
    let agent = Agent::start();
    let client = agent.client().await;
    let spec = ExecSpec {
        timeout_ms: Some(300),
        ..shell("trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done")
    };
    let start = Instant::now();
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    assert!(matches!(output.end, ExecEnd::TimedOut { code: Some(0), .. }));
    assert_eq!(text(&output.stdout), "bye\n");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "it waited for the whole grace"
    );
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_the_command_along() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (command, file) = hide_and_seek(&agent);
    for input in [
        Upload::empty(),
        vec![0; 4 << 20].into(),
        Upload::from_stream(futures::stream::pending()),
    ] {
        let stream = client.exec(&shell(&command), input).await.unwrap();
        let pid = pid_in(&file).await;
        assert!(alive(pid));
        drop(stream);
        is_gone(pid).await;
        std::fs::remove_file(&file).unwrap();
    }
    assert!(!client.is_closed());
}

#[tokio::test]
async fn background_children_stay_but_do_not_hold_the_exec_open() {
    let agent = Agent::start();
    let client = agent.client().await;
    let file = agent.path("child");
    let start = Instant::now();
    let command = format!("sleep 1000 & echo $! > {}; echo done", file.display());
    let output = client.exec_collect(&shell(&command), MAX).await.unwrap();
    assert_eq!((text(&output.stdout), code(&output)), ("done\n", Some(0)));
    assert!(start.elapsed() < Duration::from_secs(2));
    let pid = pid_in(&file).await;
    assert!(alive(pid));
    // A child that never stops writing does not either, and keeps running.
    let file = agent.path("writer");
    let command = format!("(echo $BASHPID > {}; exec yes) & sleep 0.2", file.display());
    let output = client.exec_collect(&shell(&command), MAX).await.unwrap();
    assert_eq!(code(&output), Some(0));
    let writer = pid_in(&file).await;
    assert!(alive(writer));
    for pid in [pid, writer] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn a_detached_command_survives_caller_and_agent() {
    let mut agent = Agent::start();
    let client = agent.client().await;
    let log = agent.path_text("logs/a.log");
    let spec = ExecSpec {
        detach: Some(Detach {
            log_path: log.clone(),
            grace_ms: 200,
        }),
        ..shell("echo up; while :; do echo tick; sleep 0.05; done")
    };
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    let ExecEnd::Detached { pid } = output.end else {
        panic!("{output:?}")
    };
    let pid = i32::try_from(pid).unwrap();
    drop(client);
    agent.replace();
    drop(agent.client().await);
    let length = std::fs::metadata(&log).unwrap().len();
    eventually("the log grows", async || {
        (std::fs::metadata(&log).unwrap().len() > length).then_some(())
    })
    .await;
    assert!(std::fs::read_to_string(&log).unwrap().starts_with("up\ntick\n"));
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_detached_command_that_crashes_shows_its_log() {
    let agent = Agent::start();
    let client = agent.client().await;
    let log = agent.path_text("a.log");
    std::fs::write(&log, "older\n").unwrap();
    let detach = Some(Detach {
        log_path: log.clone(),
        grace_ms: 20_000,
    });
    let spec = ExecSpec {
        detach: detach.clone(),
        ..shell("echo one; echo two >&2; exit 4")
    };
    let output = client.exec_collect(&spec, MAX).await.unwrap();
    assert_eq!((text(&output.stdout), code(&output)), ("one\ntwo\n", Some(4)));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "older\none\ntwo\n");
    let output = client
        .exec_collect(
            &ExecSpec {
                detach,
                ..argv(&["nothing-here"])
            },
            MAX,
        )
        .await
        .unwrap();
    assert_eq!(reason(&output), "the program nothing-here was not found");
    let folder = Some(Detach {
        log_path: "/".into(),
        grace_ms: 1,
    });
    let output = client
        .exec_collect(
            &ExecSpec {
                detach: folder,
                ..shell("true")
            },
            MAX,
        )
        .await
        .unwrap();
    assert!(reason(&output).contains("cannot be written"));
}

#[tokio::test]
async fn a_lost_connection_is_called_lost() {
    let mut agent = Agent::start();
    let client = agent.client().await;
    let stream = client.exec(&shell("sleep 20"), Upload::empty()).await.unwrap();
    agent.replace();
    assert!(matches!(stream.collect(MAX).await, Err(AgentError::Lost { .. })));
    tokio::time::timeout(DEADLINE, client.closed()).await.unwrap();
    assert!(client.is_closed());
    assert!(matches!(client.health().await, Err(AgentError::Lost { .. })));
    agent.client().await.health().await.unwrap();
}
