//! The configuration of git in a VM: every user there may use every checkout, can commit, and has the project's credentials. It is in a file of Hearth's
//! own, which the system's configuration includes: what a set-up writes with `git config`, system-wide or not, wins.

use hearth_api::project::GitIdentity;
use hearth_guest::ShortFile;

/// Where the file is in every VM. Its folder is there in every image.
pub const PATH: &str = "/etc/gitconfig.hearth";
/// Its mode: everybody reads it.
pub const MODE: u32 = 0o644;
/// The last words of addresses that were made up: no mail can ever reach them (RFC 2606).
const DOMAIN: &str = "hearth.invalid";
/// Who commits when no identity is known: during the set-up of a project without an identity of its own.
const PLACEHOLDER: &str = "hearth";
/// What git takes off both ends of a name; of a name that is nothing else, nothing is left.
const CRUD: &str = ".,:;<>\"\\'";

/// Git asks the agent for the project's credentials, and ssh for its keys where the user has no agent of their own. Both ask Hearth,
/// which answers while the VM is claimed.
const CREDENTIALS: &str = "[credential]\n\thelper = /usr/local/sbin/hearth-agent git-credential\n[ssh]\n\tvariant = ssh\n[core]\n\t\
                           sshCommand = SSH_AUTH_SOCK=${SSH_AUTH_SOCK:-/run/hearth/ssh-agent.sock} ssh -o \
                           StrictHostKeyChecking=accept-new\n";

/// Lets the system's configuration include the file; for `sh`, without git.
pub const INCLUDE: &str = "grep -qs /etc/gitconfig.hearth /etc/gitconfig || \
                           printf '[include]\\n\\tpath = /etc/gitconfig.hearth\\n' >>/etc/gitconfig";

/// Rendered files are this long, or a multiple of it: one replaces another in place without a change of its length, which would
/// cost a claim some milliseconds in an emulated VM.
const BLOCK: usize = 512;

/// Who commits in a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committer {
    name: String,
    email: String,
}

impl From<&GitIdentity> for Committer {
    fn from(identity: &GitIdentity) -> Self {
        Self {
            name: identity.name.to_string(),
            email: identity.email.to_string(),
        }
    }
}

/// The file. Checkouts belong to root; git lets others use them only when its configuration says so.
#[must_use]
pub fn render(identity: &Committer) -> String {
    let text = format!(
        "[safe]\n\tdirectory = *\n{CREDENTIALS}[user]\n\tname = {}\n\temail = {}\n",
        quoted(&identity.name),
        quoted(&identity.email)
    );
    let missing = text.len().next_multiple_of(BLOCK) - text.len();
    text + &"\n".repeat(missing)
}

/// The file as a task's VM gets it at the hand-over.
#[must_use]
pub fn file(identity: &Committer) -> ShortFile {
    ShortFile {
        path: PATH.to_owned(),
        mode: MODE,
        text: render(identity),
    }
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Who commits while a project is set up that has no identity of its own.
#[must_use]
pub fn placeholder() -> Committer {
    of_user(PLACEHOLDER)
}

/// Who commits when a user claims without saying it.
#[must_use]
pub fn of_user(user: &str) -> Committer {
    let is_name = |c: char| !(c.is_whitespace() || c.is_control() || CRUD.contains(c));
    let name: String = user.chars().filter(|c| !c.is_control() && !"<>".contains(*c)).collect();
    let local: String = user
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._+-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let local = local.trim_matches(['.', '-']);
    Committer {
        name: if name.chars().any(is_name) {
            name.trim().to_owned()
        } else {
            PLACEHOLDER.to_owned()
        },
        email: if local.is_empty() {
            format!("{PLACEHOLDER}@{DOMAIN}")
        } else {
            format!("{local}@{DOMAIN}")
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn git(folder: &Path, system: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(args)
            .env("GIT_CONFIG_SYSTEM", system)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env_remove("GIT_CONFIG_NOSYSTEM")
            .env_remove("EMAIL")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn git_commits_as_whom_the_file_says_whatever_the_name_holds() {
        let folder = tempfile::tempdir().unwrap();
        let system = folder.path().join("system");
        let identity = |name: &str, email: &str| Committer {
            name: name.to_owned(),
            email: email.to_owned(),
        };
        git(folder.path(), &system, &["init", "--quiet"]);
        for (identity, author) in [
            (
                identity("A \\ \"B\" # ; ü", "a#b@example.org"),
                "A \\ \"B\" # ; ü <a#b@example.org>",
            ),
            (placeholder(), "hearth <hearth@hearth.invalid>"),
            (of_user("admin"), "admin <admin@hearth.invalid>"),
            (of_user("Zoë <z@x>"), "Zoë z@x <Zo---z-x@hearth.invalid>"),
            (of_user(".,;"), "hearth <hearth@hearth.invalid>"),
        ] {
            std::fs::write(&system, render(&identity)).unwrap();
            git(
                folder.path(),
                &system,
                &["commit", "--quiet", "--allow-empty", "-m", "x"],
            );
            assert_eq!(
                git(folder.path(), &system, &["log", "-1", "--format=%an <%ae>"]),
                author
            );
        }
        let asks = |key| git(folder.path(), &system, &["config", "--get-all", key]);
        assert_eq!(asks("safe.directory"), "*");
        assert_eq!(asks("credential.helper"), "/usr/local/sbin/hearth-agent git-credential");
        let command = asks("core.sshCommand");
        assert!(command.contains(hearth_guest::requests::SSH_SOCKET), "{command}");
    }

    #[test]
    fn the_systems_configuration_includes_the_file_once_and_keeps_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("hearth");
        let system = folder.path().join("system");
        std::fs::write(&system, "[user]\n\tname = before\n[lfs]\n\tx = 1\n").unwrap();
        std::fs::write(&own, render(&placeholder())).unwrap();
        let place = |text: &str, path: &Path| text.replace(PATH, path.to_str().unwrap());
        let script = place(INCLUDE, &own).replace("/etc/gitconfig", system.to_str().unwrap());
        for _ in 0..2 {
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        }
        let text = std::fs::read_to_string(&system).unwrap();
        assert_eq!(text.matches("[include]").count(), 1, "{text}");
        git(folder.path(), &system, &["init", "--quiet"]);
        let asks = |key| git(folder.path(), &system, &["config", "--get", key]);
        assert_eq!(
            (asks("user.name"), asks("safe.directory"), asks("lfs.x")),
            ("hearth".into(), "*".into(), "1".into())
        );
    }
}
