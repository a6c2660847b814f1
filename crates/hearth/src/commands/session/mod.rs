//! Commands about sessions: commands in a VM that its agent keeps. Which session a person means, and how it is shown.

pub(crate) mod attach;
pub(crate) mod follow;
pub(crate) mod kill;
pub(crate) mod ps;
mod replay;
pub(crate) mod wait;

use std::io::{self, Write as _};

use hearth_api::client::Client;
use hearth_api::exec::ExecExit;
use hearth_api::find::LAST;
use hearth_api::ids::InstanceId;
use hearth_api::session::Session;

use crate::failure::Failure;
use crate::hint;
use crate::text::clean_line;

/// What an argument for a session takes, in `--help`.
pub(super) const SESSION_HELP: &str =
    "The session: its id or the beginning of it, its tag, the id of its first process, or `last` for the newest";
/// The longest command in a table, characters.
const COMMAND_CHARS: usize = 100;

/// The session that a person means, which must be there.
pub(super) async fn find(client: &Client, id: &InstanceId, text: &str) -> Result<Session, Failure> {
    choose(client.list_sessions(id).await?, id, text)
}

/// Of several with a tag, the one that runs is meant, or the newest.
pub(super) fn choose(all: Vec<Session>, id: &InstanceId, text: &str) -> Result<Session, Failure> {
    let exact = |session: &&Session| {
        session.id == text || session.tag.as_deref() == Some(text) || session.pid.to_string() == text
    };
    if let Some(session) = all.iter().filter(exact).max_by_key(|session| session.is_running()) {
        return Ok(session.clone());
    }
    if text == LAST
        && let Some(session) = all.last()
    {
        return Ok(session.clone());
    }
    let digits = text.strip_prefix("s-").unwrap_or(text);
    let begins = |session: &&Session| {
        let id = session.id.strip_prefix("s-").unwrap_or(&session.id);
        !digits.is_empty() && id.starts_with(digits)
    };
    let found: Vec<&Session> = all.iter().filter(begins).collect();
    match found[..] {
        [one] => Ok(one.clone()),
        [] => Err(none(&all, id, text)),
        _ => {
            let failure = Failure::usage(format!("`{}` may mean {} sessions", clean_line(text), found.len()));
            let failure = failure.hint("use more of the id");
            Err(found.iter().fold(failure, |failure, one| {
                failure.detail(format!("{}  {}", one.id, command(one)))
            }))
        }
    }
}

fn none(all: &[Session], id: &InstanceId, text: &str) -> Failure {
    let failure = Failure::new(format!("there is no session `{}` in this VM", clean_line(text)));
    if all.is_empty() {
        let start = hint::command(["exec", "--detach", id.as_str()]);
        return failure.hint(format!(
            "there are none; `{start} -- COMMAND` starts one. When the VM or its agent is restarted, its sessions are gone"
        ));
    }
    failure.hint(format!("see `{}`", hint::command(["ps", id.as_str()])))
}

/// What it runs, in one line: the text itself of one that a shell runs.
fn command(session: &Session) -> String {
    let text = match &session.argv[..] {
        [shell, option, text] if shell == "bash" && option == "-c" => text.clone(),
        argv => shlex::try_join(argv.iter().map(String::as_str)).unwrap_or_else(|_| argv.join(" ")),
    };
    let line = clean_line(&text);
    if line.chars().count() <= COMMAND_CHARS {
        return line;
    }
    line.chars().take(COMMAND_CHARS - 1).chain(['…']).collect()
}

/// Its status in a table: `running`, `exit 3`, `SIGTERM`, `timed out`.
fn status_text(session: &Session) -> String {
    match &session.exit {
        None => "running".to_owned(),
        Some(exit) if exit.timed_out => "timed out".to_owned(),
        Some(exit) if exit.oom_killed => "out of memory".to_owned(),
        Some(ExecExit {
            exit_code: Some(code), ..
        }) => format!("exit {code}"),
        Some(ExecExit { signal: Some(name), .. }) => clean_line(name),
        Some(_) => "ended".to_owned(),
    }
}

/// Says something to the person on standard error.
pub(super) fn say(text: &str) {
    // A closed standard error has no one to talk to.
    let _ = writeln!(io::stderr().lock(), "{}", hint::complete(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_api::session::SessionStatus;

    pub(super) fn session(id: &str, tag: Option<&str>, pid: u32, runs: bool) -> Session {
        Session {
            id: id.to_owned(),
            tag: tag.map(str::to_owned),
            pid,
            argv: ["bash", "-c", "npm run dev"].map(str::to_owned).to_vec(),
            cwd: "/home".to_owned(),
            user: "root".to_owned(),
            status: if runs {
                SessionStatus::Running
            } else {
                SessionStatus::Ended
            },
            exit: (!runs).then(|| ExecExit {
                exit_code: Some(3),
                ..ExecExit::default()
            }),
            terminal: None,
            stdin_open: false,
            timeout_seconds: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: None,
            output_bytes: 0,
            dropped_bytes: 0,
            output_open: runs,
            readers: 0,
        }
    }

    #[test]
    fn a_session_is_meant_by_its_id_tag_pid_or_place() {
        let all = || {
            vec![
                session("s-11aa", Some("dev"), 40, false),
                session("s-11bb", Some("dev"), 41, true),
                session("s-22cc", None, 42, false),
            ]
        };
        let id: InstanceId = "wpi_1".parse().unwrap();
        let found = |text: &str| choose(all(), &id, text).map(|session| session.id);
        for (text, expected) in [
            ("s-11aa", "s-11aa"),
            ("11a", "s-11aa"),
            ("s-22", "s-22cc"),
            ("dev", "s-11bb"),
            ("40", "s-11aa"),
            ("last", "s-22cc"),
        ] {
            assert_eq!(found(text).as_deref(), Ok(expected), "{text}");
        }
        let several = found("s-11").unwrap_err().to_string();
        assert!(
            several.contains("2 sessions") && several.contains("s-11bb  npm run dev"),
            "{several}"
        );
        assert!(found("nothing").unwrap_err().to_string().contains("hearth ps wpi_1"));
        let none = choose(Vec::new(), &id, "dev").unwrap_err().to_string();
        assert!(none.contains("exec --detach wpi_1 -- COMMAND"), "{none}");
    }

    #[test]
    fn a_status_is_one_word_or_two() {
        assert_eq!(status_text(&session("s-1", None, 1, true)), "running");
        assert_eq!(status_text(&session("s-1", None, 1, false)), "exit 3");
    }
}
