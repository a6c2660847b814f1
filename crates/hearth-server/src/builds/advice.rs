//! Advice about a set-up command that failed, where its output shows the cause: it asked a question that no one could answer, or
//! a variable of the project changes how programs are found and run. Pure.

use hearth_core::redact::{Redacted, Redactor};
use hearth_core::redacted;
use hearth_guest::ExecEnd;

use crate::store::VariableRow;

/// Shells answer this for a program that was not found, and the one below for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 126;
/// How names of variables begin that git reads and that neither move what it works on nor how it fetches.
const GIT_HARMLESS: [&str; 6] = [
    "GIT_AUTHOR_",
    "GIT_COMMITTER_",
    "GIT_TRACE",
    "GIT_TERMINAL_PROMPT",
    "GIT_MERGE_",
    "GIT_EDITOR",
];

/// How a command ended.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Its end.
    pub end: &'a ExecEnd,
    /// Its text.
    pub command: &'a str,
    /// The last lines that it printed, on both outputs, as a terminal would show them.
    pub last_lines: &'a [String],
    /// The variables that it was given.
    pub variables: &'a [VariableRow],
    /// Knows their values.
    pub redactor: &'a Redactor,
}

/// Others ask so, too: it is pip's where the command or its output names pip.
const PIP_QUESTION: &str = "proceed (y/n)";
/// How the last line ends of a program that waits for a line behind it.
const PROMPT_ENDS: [&str; 4] = [": ", "? ", "] ", ") "];

/// A question that a known tool asks: how it looks in the last lines (in small letters), and what answers it beforehand.
const QUESTIONS: [(&[&str], &str); 21] = [
    (
        &["corepack is about to download"],
        "set COREPACK_ENABLE_DOWNLOAD_PROMPT=0 for corepack",
    ),
    (
        &["do you want to continue? [y/n]", "[y/n] abort"],
        "apt asks: say `apt-get install --yes …`, with DEBIAN_FRONTEND=noninteractive so that packages ask nothing either",
    ),
    (
        &[
            "unable to initialize frontend",
            "configuring tzdata",
            "end of file on stdin at conffile prompt",
        ],
        "a package asks: set DEBIAN_FRONTEND=noninteractive, and for its files `-o Dpkg::Options::=--force-confold`",
    ),
    (
        &["ok to proceed? (y)", "need to install the following packages"],
        "npx and `npm create` ask: say `npx --yes …`, `npm create --yes …`",
    ),
    (
        &["is this ok? (yes)", "package name: ("],
        "npm asks: say `npm init --yes`",
    ),
    (
        &["err_pnpm_aborted_remove_modules_dir_no_tty"],
        "pnpm asks: set CI=true",
    ),
    (
        &[
            "are you sure you want to continue connecting",
            "host key verification failed",
        ],
        "ssh does not know the host: say `ssh-keyscan HOST >>~/.ssh/known_hosts` first, or `-o StrictHostKeyChecking=accept-new`",
    ),
    (
        &[
            "could not read username for",
            "could not read password for",
            "terminal prompts disabled",
        ],
        "git asks for a name or password, and VMs hold none: make the repository one of the project's, or give a token in a variable",
    ),
    (
        &["enter passphrase for"],
        "ssh asks for a passphrase: use a key without one",
    ),
    (&[PIP_QUESTION], "pip asks: say `pip uninstall --yes …`"),
    (&["proceed ([y]/n)?"], "conda asks: say `conda install --yes …`"),
    (
        &[
            "enter a value:",
            "error asking for approval",
            "only 'yes' will be accepted",
        ],
        "terraform asks: say `-auto-approve` and `-input=false`",
    ),
    (
        &["a terminal is required to read the password", "[sudo] password for"],
        "sudo asks for a password: set-up commands are root's, leave sudo out",
    ),
    (&["1) proceed with"], "rustup asks: say `sh -s -- -y`"),
    (&["type 'yes' to continue"], "Django asks: say `--noinput`"),
    (
        &["do you trust", "do you want to run the composer"],
        "composer asks: say `--no-interaction`",
    ),
    (
        &["accept? (y/n)"],
        "licences are asked about: say `yes | sdkmanager --licenses`",
    ),
    (
        &["(y/i/n/o/d/z)"],
        "dpkg asks: say `-o Dpkg::Options::=--force-confold`",
    ),
    (
        &["press any key", "press enter", "press return", "hit enter"],
        "it waits for a key: see its options, like `--yes` or `--non-interactive`",
    ),
    (
        &["[y/n]", "(y/n)", "[yes/no]", "(yes/no)", "[y/n]?"],
        "it asks yes or no: see its options, like `--yes`, `-y` or `--non-interactive`",
    ),
    (
        &[
            "eof when reading a line",
            "eoferror",
            "not a tty",
            "not a terminal",
            "stdin is not",
            "inappropriate ioctl for device",
        ],
        "see its options, like `--yes`, `-y` or `--non-interactive`",
    ),
];

/// What to do about it: sentences; `None` when its end tells nothing.
#[must_use]
pub fn advice(ended: &Ended<'_>) -> Option<Redacted> {
    match ended.end {
        ExecEnd::Exited { code: Some(0), .. } | ExecEnd::Detached { .. } => return None,
        _ => {}
    }
    match (about_variables(ended), about_input(ended)) {
        (Some(one), Some(other)) => Some(redacted![one, "\n", other]),
        (one, other) => one.or(other),
    }
}

fn about_input(ended: &Ended<'_>) -> Option<Redacted> {
    let ended_by_itself =
        matches!(ended.end, ExecEnd::Exited { code: Some(code), .. } if ![NOT_FOUND, NOT_RUN].contains(code));
    if !ended_by_itself && !matches!(ended.end, ExecEnd::TimedOut { .. }) {
        return None;
    }
    let closed = "standard input is closed while a set-up runs";
    let said = ended.last_lines.join("\n").to_lowercase();
    let names_pip = said.contains("pip") || ended.command.contains("pip");
    let is_asked = |question: &&str| said.contains(*question) && (*question != PIP_QUESTION || names_pip);
    if let Some((_, answer)) = QUESTIONS.iter().find(|(questions, _)| questions.iter().any(is_asked)) {
        return Some(redacted![closed, ", no one can answer: ", *answer]);
    }
    if reads_input(ended.command) {
        let nothing = if said.trim().is_empty() {
            "it printed nothing; "
        } else {
            ""
        };
        return Some(redacted![
            nothing,
            closed,
            ": `read` finds nothing; give it what it is to read (`read NAME <<<value`), or a variable instead",
        ]);
    }
    let last = ended.last_lines.last().map_or("", String::as_str);
    if PROMPT_ENDS.iter().any(|end| last.ends_with(end)) {
        return Some(redacted![
            closed,
            ", and its last line looks like a question: see its options, like `--yes`, `-y` or `--non-interactive`, or give it the answer (`<<<value`)",
        ]);
    }
    let silent = said.trim().is_empty() && ended_by_itself;
    silent.then(|| {
        redacted![
            "it printed nothing; ",
            closed,
            ": a command that reads it or asks something ends like this (see its options, like `--yes`, `-y`, or \
             DEBIAN_FRONTEND=noninteractive), and so does a test that does not hold (`set -x` shows which)",
        ]
    })
}

/// Whether a shell text uses its builtin `read`, with nothing given to it.
fn reads_input(text: &str) -> bool {
    text.split(['\n', ';', '&', '(', '{']).any(|part| {
        let part = part.trim_start();
        let part = part
            .strip_prefix("while ")
            .or_else(|| part.strip_prefix("if "))
            .unwrap_or(part)
            .trim_start();
        let reads = ["read ", "select "].iter().any(|word| part.starts_with(word));
        reads && !part.contains('<')
    })
}

/// The project's variables that may be the cause, by the way it ended.
fn about_variables(ended: &Ended<'_>) -> Option<Redacted> {
    let said = ended.last_lines.join("\n");
    let (code, by_signal, not_started) = match ended.end {
        ExecEnd::Exited { code, signal, .. } => (*code, signal.is_some(), false),
        ExecEnd::NotStarted { .. } => (None, false, true),
        _ => (None, false, false),
    };
    let silent = said.trim().is_empty();
    let unfound = not_started || matches!(code, Some(NOT_FOUND | NOT_RUN)) || said.contains("command not found");
    // What variables hold is redacted in what is shown.
    let shows = |name: &str| said.contains(name) || said.contains("***");
    let runs_git = is_about_git(ended.command, &said);
    let is_suspect = |name: &str| match name {
        "PATH" => unfound,
        _ if name.starts_with("GIT_") => runs_git && !GIT_HARMLESS.iter().any(|start| name.starts_with(start)),
        _ if name.starts_with("LD_") => {
            unfound || by_signal || said.contains("ld.so") || said.contains("shared librar")
        }
        "BASH_ENV" | "ENV" | "POSIXLY_CORRECT" => silent || shows(name),
        "HOME" | "SHELL" | "TMPDIR" | "USER" | "LOGNAME" | "LANG" | "LC_ALL" | "XDG_CONFIG_HOME" => shows(name),
        _ => false,
    };
    let names: Vec<&str> = ended
        .variables
        .iter()
        .map(|variable| variable.name.as_str())
        .filter(|name| is_suspect(name))
        .collect();
    let shown = ended.redactor.redact(&names.join(", "));
    match names.as_slice() {
        [] => None,
        ["PATH"] => Some(
            "the project's variable PATH replaces the search path of its commands: it must name /usr/local/bin:/usr/bin:/bin too, \
             or be removed"
                .into(),
        ),
        [_] => Some(redacted![
            "the project's variable ",
            shown,
            " changes how programs run and may be the cause; set it only in the commands that need it",
        ]),
        _ => Some(redacted![
            "the project's variables ",
            shown,
            " change how programs run and may be the cause; set them only in the commands that need them",
        ]),
    }
}

/// Whether a command runs git, or what it printed comes from git.
fn is_about_git(command: &str, said: &str) -> bool {
    let is_in = |text: &str| {
        let words = text.split(|char: char| !(char.is_alphanumeric() || "-_.".contains(char)));
        words.into_iter().any(|word| word == "git")
    };
    is_in(command) || is_in(said) || said.contains("fatal: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExecEnd {
        ExecEnd::Exited {
            code: Some(code),
            signal: None,
            duration_ms: 1,
            log: None,
            out_of_memory: None,
        }
    }

    fn of(code: i32, command: &str, said: &[&str], names: &[&str]) -> Redacted {
        let variables = names.iter().map(|name| VariableRow {
            name: (*name).to_owned(),
            value: "x".to_owned(),
        });
        let variables: Vec<_> = variables.collect();
        let last_lines: Vec<_> = said.iter().map(|line| (*line).to_owned()).collect();
        advice(&Ended {
            end: &exited(code),
            command,
            last_lines: &last_lines,
            variables: &variables,
            redactor: &Redactor::new([]),
        })
        .unwrap_or_default()
    }

    #[test]
    fn questions_of_known_tools_are_answered_beforehand() {
        let cases = [
            (
                "Do you want to continue? [Y/n] Abort.",
                "DEBIAN_FRONTEND=noninteractive",
            ),
            ("Ok to proceed? (y)", "npx --yes"),
            ("Is this OK? (yes)", "npm init --yes"),
            ("Host key verification failed.", "ssh-keyscan"),
            (
                "fatal: could not read Username for 'https://x': No such device",
                "token in a variable",
            ),
            ("Uninstalling pip-tools: Proceed (Y/n)?", "pip uninstall --yes"),
            ("Proceed (Y/n)?", "asks yes or no"),
            (
                "Enter file in which to save the key (/root/.ssh/id_ed25519): ",
                "looks like a question",
            ),
            ("  Enter a value: ", "-auto-approve"),
            ("EOFError: EOF when reading a line", "--non-interactive"),
            ("Overwrite? (y/n)", "`--yes`"),
        ];
        for (said, answer) in cases {
            let advice = of(1, "x", &["before", said], &[]);
            assert!(
                advice.contains("standard input is closed") && advice.contains(answer),
                "{said}: {advice}"
            );
        }
    }

    #[test]
    fn a_silent_end_says_that_standard_input_is_closed_and_others_say_nothing() {
        assert!(of(1, "false", &[], &[]).starts_with("it printed nothing; standard input is closed"));
        assert!(of(1, "echo q; read -r answer", &["q"], &[]).contains("`read` finds nothing"));
        assert_eq!(of(1, "read -r line <file; x", &["boom"], &[]), "");
        assert_eq!(of(7, "make", &["boom"], &["PATH", "HOME", "API_KEY"]), "");
        assert_eq!(of(0, "true", &[], &[]), "");
    }

    #[test]
    fn a_variable_that_changes_how_programs_run_is_named() {
        assert!(of(127, "x", &["bash: line 1: npm: command not found"], &["A", "PATH"]).contains("variable PATH"));
        assert!(
            of(
                1,
                "x",
                &["ERROR: ld.so: object '***' cannot be preloaded"],
                &["LD_PRELOAD"]
            )
            .contains("LD_PRELOAD")
        );
        assert!(of(3, "x", &[], &["BASH_ENV"]).contains("variable BASH_ENV"));
        assert!(of(1, "x", &["mkdir: cannot create directory '***'"], &["HOME", "TMPDIR"]).contains("HOME, TMPDIR"));
    }

    #[test]
    fn variable_that_moves_what_git_works_on_is_named_where_git_fails() {
        for name in [
            "GIT_DIR",
            "GIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_COUNT",
            "GIT_SSH_COMMAND",
            "GIT_EXEC_PATH",
        ] {
            for (command, said) in [
                ("npm ci", &["fatal: not a git repository: '***'"][..]),
                ("cd web && git status", &["boom"]),
                ("git diff --quiet", &[]),
            ] {
                let told = of(128, command, said, &["API_KEY", name, "GIT_AUTHOR_NAME"]);
                assert!(told.contains(&format!("variable {name} changes")), "{command}: {told}");
            }
            assert_eq!(of(2, "make digit", &["boom"], &[name]), "");
        }
    }
}
