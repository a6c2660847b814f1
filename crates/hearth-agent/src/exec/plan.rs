//! From an [`ExecSpec`] to exactly what is started: arguments, environment, user, folder. Starts nothing itself.

use std::io::Write;
use std::os::unix::fs::chown;

use hearth_guest::ExecSpec;
use nix::sys::resource::{Resource, getrlimit};
use tempfile::NamedTempFile;

use super::launcher::{Order, Reads, User};
use crate::users::Identity;

/// Search path of every command that is not given another one.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the image's maker wants under every command: certificates, proxies, a longer search path.
const IMAGE_ENVIRONMENT: &str = "/etc/environment";

/// The kernel allows 128 KiB for one argument. A longer text goes through a file; well below, because of what is added.
const LONGEST_ARGUMENT: usize = 96 * 1024;

/// The kernel's limit for one string of arguments and environment, its zero byte included (`MAX_ARG_STRLEN`).
const LONGEST_STRING: usize = 128 * 1024;
/// Each string also takes a pointer of the same room.
const POINTER_BYTES: usize = 8;
/// The program's path and the auxiliary vector, with room to spare.
const ROOM_MARGIN: usize = 32 * 1024;
/// The room that Linux gives arguments and environment together never exceeds this (three quarters of 8 MiB, `execve(2)`).
const MOST_ROOM: usize = 6 * 1024 * 1024;
/// What it gives at the usual limit of the stack, where that cannot be asked for.
const DEFAULT_ROOM: usize = 2 * 1024 * 1024;

/// What a string of this length takes of the room.
fn string_bytes(length: usize) -> usize {
    length + 1 + POINTER_BYTES
}

/// Room for arguments and environment: a quarter of the stack's limit, as `execve(2)` says.
fn environment_room() -> usize {
    let stack = getrlimit(Resource::RLIMIT_STACK).map(|(soft, _)| usize::try_from(soft / 4).unwrap_or(MOST_ROOM));
    stack.unwrap_or(DEFAULT_ROOM).min(MOST_ROOM).saturating_sub(ROOM_MARGIN)
}

/// What is started.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) order: Order,
    /// A text too long for an argument; it must stay until the command has read it.
    pub(super) script: Option<NamedTempFile>,
}

impl Plan {
    /// `variables` are those of the spec's file. The error is a sentence for the person who wrote the command.
    pub(super) fn new(spec: &ExecSpec, variables: &[(String, String)]) -> Result<Self, String> {
        let identity = Identity::find(spec.user.as_deref())?;
        let mut script = None;
        let argv = match (&spec.argv, &spec.shell) {
            (Some(argv), None) if argv.first().is_some_and(|program| !program.is_empty()) => argv.clone(),
            (Some(_), None) => return Err("argv names no program".to_owned()),
            (None, Some(text)) => shell(text, &identity, &mut script)?,
            _ => return Err("exactly one of argv and shell must be given".to_owned()),
        };
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err("an argument holds a zero byte, which no program can be given".to_owned());
        }
        if argv.iter().any(|argument| argument.len() >= 128 * 1024) {
            return Err(
                "an argument is longer than the 128 KiB that Linux allows; pass it in a file or by stdin".into(),
            );
        }
        let cwd = spec.cwd.clone().unwrap_or_else(|| "/".to_owned());
        if !cwd.starts_with('/') || cwd.contains('\0') {
            return Err(format!("the working directory {cwd:?} is not an absolute path"));
        }
        let taken = argv.iter().map(|argument| string_bytes(argument.len())).sum();
        let env = environment(&identity, variables, &spec.env, taken)?;
        // An agent that is not root itself (in a test) can only run commands as who it is.
        let switch_user = spec.user.is_some() && identity.uid != nix::unistd::getuid().as_raw();
        let user = switch_user.then_some(User {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
        });
        let order = Order {
            user,
            cwd,
            argv,
            env,
            reads: match spec.detach {
                None => Reads::Caller,
                Some(_) => Reads::Nothing,
            },
        };
        Ok(Self { order, script })
    }
}

fn shell(text: &str, identity: &Identity, script: &mut Option<NamedTempFile>) -> Result<Vec<String>, String> {
    if text.len() <= LONGEST_ARGUMENT {
        return Ok(bash(text));
    }
    let file = script_file(text, identity).map_err(|error| format!("the command could not be stored: {error}"))?;
    let path = file
        .path()
        .to_str()
        .ok_or("the folder for temporary files has a strange name")?;
    let argv = bash(&format!(". {}", quote(path)));
    *script = Some(file);
    Ok(argv)
}

fn bash(text: &str) -> Vec<String> {
    ["bash", "-eo", "pipefail", "-c", text].map(str::to_owned).to_vec()
}

/// Readable by the command's user only.
fn script_file(text: &str, identity: &Identity) -> std::io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("hearth-command-").tempfile()?;
    file.write_all(text.as_bytes())?;
    if identity.uid != nix::unistd::getuid().as_raw() {
        chown(file.path(), Some(identity.uid), Some(identity.gid))?;
    }
    Ok(file)
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// From weak to strong: our defaults, the image's own in [`IMAGE_ENVIRONMENT`], who the user is, the variables' file, what
/// the caller wants.
fn environment(
    identity: &Identity,
    variables: &[(String, String)],
    extra: &[(String, String)],
    mut taken: usize,
) -> Result<Vec<(String, String)>, String> {
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let mut all = own(&[("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8")]);
    // An image need not have one; a broken one must not stop every command.
    let image = std::fs::read(IMAGE_ENVIRONMENT).unwrap_or_default();
    all.extend(String::from_utf8_lossy(&image).lines().filter_map(parse_assignment));
    all.extend(own(&[
        ("HOME", &identity.home),
        ("USER", &identity.name),
        ("LOGNAME", &identity.name),
        ("SHELL", &identity.shell),
    ]));
    let of = |(name, value): &(String, String)| string_bytes(name.len() + 1 + value.len());
    taken += all.iter().chain(extra).map(of).sum::<usize>();
    // Those that Linux gives no process are left out, like a shell that has them without exporting them: the file has them
    // all, and a command that needs none of them must not fail for it.
    let room = environment_room();
    for variable in variables {
        if of(variable) - POINTER_BYTES <= LONGEST_STRING && taken + of(variable) <= room {
            taken += of(variable);
            all.push(variable.clone());
        }
    }
    for (name, value) in extra {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("{name:?} cannot be the name of a variable"));
        }
        if value.contains('\0') {
            return Err(format!(
                "the value of {name} holds a zero byte, which no program can be given"
            ));
        }
        all.push((name.clone(), value.clone()));
    }
    Ok(all)
}

/// One line as `pam_env` reads it: `NAME=value`, an `export` before it and one pair of quotes around the value are ignored.
fn parse_assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (name, value) = line
        .strip_prefix("export ")
        .unwrap_or(line)
        .trim_start()
        .split_once('=')?;
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name(name) || value.contains('\0') {
        return None;
    }
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some((name.to_owned(), quoted.unwrap_or(value).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_environment_is_read_like_pam_does() {
        let parse = |line| parse_assignment(line).map(|(name, value)| format!("{name}|{value}"));
        assert_eq!(parse("A=b c").as_deref(), Some("A|b c"));
        assert_eq!(parse("  export A=\"b=c\" ").as_deref(), Some("A|b=c"));
        assert_eq!(parse("A='\"'").as_deref(), Some("A|\""));
        assert_eq!(parse("A=").as_deref(), Some("A|"));
        for nothing in ["", "# A=b", "A", "=b", "A B=c"] {
            assert_eq!(parse(nothing), None);
        }
    }
}
