//! The users of a VM as E2B's clients name them, and where their paths begin. Who names none is root and works in `/home`, where the
//! checkouts are, as Hearth's own commands do. The user `user`, which clients of E2B take for given, is made when it is first named.

use hearth_guest::ExecSpec;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::exec_session::{SessionSpec, SessionStart};

use super::fault::Fault;

/// Where the paths of root begin.
const WORK_FOLDER: &str = "/home";
/// Whom E2B's VMs have.
const THEIR_USER: &str = "user";
/// That one's home.
const THEIR_HOME: &str = "/home/user";
/// Makes that user, with the rights that it has there.
pub const MAKE: &str = "id user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash user
mkdir -p /home/user && chown user: /home/user
if [ -d /etc/sudoers.d ]; then
  printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\\n' >/etc/sudoers.d/user && chmod 0440 /etc/sudoers.d/user
fi";
/// What is kept of what that prints.
const KEPT_BYTES: usize = 4096;

/// Where commands of a user run that do not say.
pub fn work_folder(user: Option<&str>) -> String {
    match user {
        None | Some("root") => WORK_FOLDER.to_owned(),
        Some(user) => format!("/home/{user}"),
    }
}

/// A path as the agent takes it: absolute, or in the user's home.
pub fn path(user: Option<&str>, path: &str) -> Result<String, Fault> {
    if path.contains('\0') {
        return Err(Fault::wrong("a path holds no zero byte"));
    }
    if path.starts_with('/') || path == "~" || path.starts_with("~/") {
        return Ok(path.to_owned());
    }
    if path.starts_with('~') {
        return Err(Fault::wrong(
            "a path may begin with ~/, and not with another user's ~name",
        ));
    }
    let rest = path.strip_prefix("./").unwrap_or(path);
    let folder = work_folder(user);
    Ok(match rest {
        "" | "." => folder,
        rest => format!("{folder}/{rest}"),
    })
}

/// The same for the folder of a command, which must be absolute.
pub fn folder(user: Option<&str>, text: &str) -> Result<String, Fault> {
    let path = path(user, text)?;
    let Some(rest) = path.strip_prefix('~') else {
        return Ok(path);
    };
    let home = match user {
        None | Some("root") => "/root".to_owned(),
        Some(user) => format!("/home/{user}"),
    };
    Ok(format!("{home}{rest}"))
}

/// Whether a command could not be started because what E2B's VMs have is not in this one.
pub fn lacks(started: &Result<SessionStart, AgentError>, spec: &SessionSpec) -> bool {
    let Ok(SessionStart::NotStarted { .. }) = started else {
        return false;
    };
    let command = &spec.command;
    command.user.as_deref() == Some(THEIR_USER) || command.cwd.as_deref() == Some(THEIR_HOME)
}

/// Whether a refusal may be due to the same.
pub fn may_lack(user: Option<&str>, fault: &Fault) -> bool {
    user == Some(THEIR_USER)
        && matches!(
            fault,
            Fault::Rpc {
                code: super::fault::Code::Unauthenticated,
                ..
            }
        )
}

/// Makes it.
pub async fn make(agent: &AgentClient) -> Result<(), Fault> {
    let spec = ExecSpec {
        argv: Some(["bash", "-c", MAKE].map(str::to_owned).to_vec()),
        ..ExecSpec::default()
    };
    agent.exec_collect(&spec, KEPT_BYTES).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_where_commands_run() {
        for (user, given, expected) in [
            (None, "a/b", "/home/a/b"),
            (Some("root"), "./a", "/home/a"),
            (Some("dev"), "a", "/home/dev/a"),
            (None, "/a", "/a"),
            (None, "~/a", "~/a"),
            (None, ".", "/home"),
        ] {
            assert_eq!(path(user, given).unwrap(), expected, "{given}");
        }
        assert!(path(None, "~other/a").is_err());
        assert!(path(None, "a\0").is_err());
        assert_eq!(folder(None, "~/x").unwrap(), "/root/x");
        assert_eq!(folder(Some("user"), "~").unwrap(), "/home/user");
    }
}
