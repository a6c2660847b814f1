//! Completion in a shell: the shell starts this program with what is typed so far, and gets what may follow. Options and commands
//! come from the command line's own description, the names of what is there from the server.

mod bash;
mod live;
mod typed;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::ArgValueCompleter;
use clap_complete::env::{EnvCompleter, Fish, Shells, Zsh};

use crate::args::Cli;

pub(crate) use bash::Bash;

/// The shells' scripts set it to the shell's name.
const VARIABLE: &str = "HEARTH_COMPLETE";
/// The command that is completed.
const PROGRAM: &str = "hearth";

/// The words before the one that is completed, where a shell's own words are not it.
static BEFORE: OnceLock<Vec<OsString>> = OnceLock::new();

/// What is completed from a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An id, a task, or `last`.
    Instance,
    /// A project's name.
    Project,
    /// A session of the instance that stands before it.
    Session,
    /// A log of that instance, or a session.
    Log,
    /// A named checkpoint of the project, or of the instance's project.
    Checkpoint,
    /// A file of this machine, or `INSTANCE:PATH`.
    Location,
}

/// What kind of thing an argument takes.
fn kind(command: &str, arg: &Arg) -> Option<Kind> {
    let takes_instance = arg
        .get_value_names()
        .is_some_and(|names| names.iter().any(|name| name == "INSTANCE"));
    match (command, arg.get_id().as_str()) {
        _ if takes_instance => Some(Kind::Instance),
        ("cp", "locations") => Some(Kind::Location),
        ("logs", "name") => Some(Kind::Log),
        ("restore", "name") | ("delete", "names") | ("claim", "checkpoint") => Some(Kind::Checkpoint),
        (_, "session") => Some(Kind::Session),
        (_, "project") => Some(Kind::Project),
        _ => None,
    }
}

/// The command line, with what completes its arguments.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    with_completers(command)
}

fn with_completers(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command
        .mut_args(|arg| {
            // Hidden ones are offered where nothing else is: options stay out of the way until `-` is typed.
            let is_option = !arg.is_positional();
            let arg = match kind(&name, &arg) {
                Some(kind) => arg.add(ArgValueCompleter::new(move |word: &OsStr| live::candidates(kind, word))),
                None => arg,
            };
            if is_option { arg.hide(true) } else { arg }
        })
        .mut_subcommands(with_completers)
}

/// Keeps the words before the one that is completed.
fn remember(before: &[String]) {
    // One command line is completed.
    let _ = BEFORE.set(before.iter().map(OsString::from).collect());
}

/// The words before the one that is completed, the program's name first.
fn words_before() -> Vec<OsString> {
    if let Some(before) = BEFORE.get() {
        return before.clone();
    }
    let all = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let mut words: Vec<OsString> = all.collect();
    // zsh gives every word of the line, and says which one is completed.
    let index = std::env::var("_CLAP_COMPLETE_INDEX")
        .ok()
        .and_then(|index| index.parse().ok());
    let before = index.unwrap_or_else(|| words.len().saturating_sub(1));
    words.truncate(before);
    words
}

/// Answers a shell that completes a command line; `None` when this is another call of the program.
pub(crate) fn answer() -> Option<ExitCode> {
    std::env::var_os(VARIABLE).filter(|shell| !shell.is_empty())?;
    live::begin();
    let answered = CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .shells(Shells(&[&Bash, &Zsh, &Fish]))
        .try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref());
    match answered {
        Ok(true) => Some(ExitCode::SUCCESS),
        Ok(false) => None,
        // A message would stand in the middle of what a person types.
        Err(_) => Some(ExitCode::FAILURE),
    }
}

/// The script that a shell needs.
pub(crate) fn script(shell: &dyn EnvCompleter) -> io::Result<String> {
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, &this_program(), &mut script)?;
    Ok(String::from_utf8_lossy(&script).trim().to_owned())
}

/// As it was called: by its name where the shell finds it in its path, else by a path that is right in every folder.
fn this_program() -> String {
    let called = std::env::args_os().next().unwrap_or_else(|| OsString::from(PROGRAM));
    let path = Path::new(&called);
    let path = if path.components().count() > 1 {
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    } else {
        path.to_owned()
    };
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(path: &[&str]) -> Vec<(String, Kind)> {
        let mut command = Cli::command();
        command.build();
        let found = path
            .iter()
            .fold(&command, |command, name| command.find_subcommand(name).unwrap());
        let of = |arg: &Arg| Some((arg.get_id().to_string(), kind(found.get_name(), arg)?));
        found.get_arguments().filter_map(of).collect()
    }

    #[test]
    fn every_command_that_takes_a_name_completes_it() {
        for command in [
            "exec",
            "release",
            "shell",
            "logs",
            "ps",
            "ssh",
            "forward",
            "pause",
            "resume",
            "fork",
            "attach",
            "kill",
            "wait",
            "run",
            "ls",
            "ports",
            "share",
            "instance",
            "ssh-proxy",
        ] {
            assert_eq!(kinds(&[command])[0].1, Kind::Instance, "{command}");
        }
        for path in [
            &["claim"][..],
            &["claims"],
            &["pool", "set"],
            &["setup", "show"],
            &["env", "list"],
            &["project", "show"],
        ] {
            assert_eq!(kinds(path)[0].1, Kind::Project, "{path:?}");
        }
        for command in ["attach", "kill", "wait", "shell"] {
            assert_eq!(kinds(&[command])[1].1, Kind::Session, "{command}");
        }
        assert_eq!(kinds(&["logs"])[1].1, Kind::Log);
        for path in [&["checkpoint", "restore"][..], &["checkpoint", "delete"]] {
            assert_eq!(kinds(path)[1].1, Kind::Checkpoint, "{path:?}");
        }
        assert!(kinds(&["claim"]).iter().any(|(_, kind)| *kind == Kind::Checkpoint));
        assert_eq!(kinds(&["cp"])[0].1, Kind::Location);
    }
}
