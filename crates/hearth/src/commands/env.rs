//! `hearth env`: a project's variables. Values go in and never come out, and no value has to stand in an argument, where
//! every user of the machine could read it.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hearth_api::page::Items;
use hearth_api::values::VariableValue;
use hearth_api::variables::{PutVariables, Variable, VariableItem, VariableKind};

use crate::args::Globals;
use crate::failure::Failure;
use crate::{caller_env, connect, env_file, hint, input, output};

/// Shorter values are never redacted.
const REDACTED_BYTES: usize = 3;
/// A value with fewer characters stands in many texts by chance.
const SHORT_VALUE_CHARS: usize = 6;
/// So does one word of letters alone, up to about this length: `production`, `development`. Secrets have digits or are longer.
const LONG_WORD_CHARS: usize = 16;

const SET_HELP: &str = "\
Examples:
  hearth env set web DATABASE_URL=postgres://db.example.org/shop
  hearth env set web API_KEY < key.txt
  hearth env set web DEPLOY_KEY --from-file ~/.ssh/deploy --exact
  hearth env set web GITHUB_TOKEN --personal < token.txt
  hearth env set web --env-file .env

Every value is taken for a secret: it is redacted (***) wherever it stands in what a set-up prints. A short or common one, as
`debug`, makes holes in other words too: write such settings into the set-up's commands or scripts instead.

A value in an argument can be read by every user of this machine and stays in the shell's history: give secrets as NAME
alone, with the value from --from-file or standard input. One line end at the end is removed from such a value, unless
--exact is given, and an empty one is refused: write NAME= for that.

A file of --env-file has a NAME=VALUE in each line; blank lines and those that begin with # do not count. That is what `docker
run --env-file` and dotenv have in common. Where they differ: as in dotenv, quotes around a value are taken away, a quoted value may
go over several lines (\\n, \\\" and \\\\ mean what they mean there when it stands in double quotes), ` #` after a value begins a
remark, and `export` may stand before a NAME; as in docker, a $ is nothing but a $, blanks and backslashes in a value without quotes
stay, and a NAME alone takes its value from your environment.

Personal variables are yours alone: no VM of a pool holds them, a VM gets them when you claim it, and they win over the
project's variables of the same name.";

/// What to do with variables.
#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// Set variables: NAME=VALUE, or NAME with the value from a file or standard input (use that for secrets)
    #[command(after_help = SET_HELP)]
    Set(SetArgs),
    /// List the variables (never the values)
    List {
        /// The project's name or id
        project: String,
        /// Yours instead of those that all share
        #[arg(long)]
        personal: bool,
    },
    /// Remove variables
    Unset {
        /// The project's name or id
        project: String,
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// Yours instead of those that all share
        #[arg(long)]
        personal: bool,
    },
    /// Print the variables by which E2B's clients use this server: `eval "$(hearth env e2b)"`. The key is your token
    E2b {
        /// The server's `--ports-domain`, where it has a certificate for every name below it: clients then use names, not an address
        #[arg(long)]
        domain: Option<String>,
    },
}

/// `hearth env set`.
#[derive(Args)]
pub(crate) struct SetArgs {
    /// The project's name or id
    project: String,
    /// NAME=VALUE, or one NAME alone
    #[arg(required_unless_present = "env_file", value_name = "NAME[=VALUE]")]
    variables: Vec<String>,
    /// All variables of this file (`-`: standard input), in the form that docker and dotenv share; may be repeated
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Take the value of NAME from this file
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Keep the line end at the end of a value from a file or standard input
    #[arg(long)]
    exact: bool,
    /// For you alone instead of for all: given to the VMs that you claim
    #[arg(long)]
    personal: bool,
}

impl std::fmt::Debug for SetArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetArgs")
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

pub(crate) async fn run(globals: &Globals, command: EnvCommand) -> Result<u8, Failure> {
    match command {
        EnvCommand::E2b { domain } => return super::env_e2b::run(globals, domain),
        EnvCommand::Set(args) => {
            // Before the server is asked: a mistake in the arguments needs no server to be seen.
            let body = PutVariables {
                variables: variables(&args)?,
            };
            let client = connect::client(globals)?;
            let project = connect::project(&client, &args.project).await?;
            let items = client.put_variables(&project.id, kind(args.personal), &body).await?;
            output::print(globals.json, &items, |_| {
                let names: Vec<&str> = body.variables.iter().map(|variable| variable.name.as_str()).collect();
                format!("set {}", names.join(", "))
            })?;
            if !globals.json {
                warn_of_common(&body.variables);
            }
        }
        EnvCommand::List { project, personal } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let items = client.list_variables(&project.id, kind(personal)).await?;
            output::print(globals.json, &items, |items| list(items, personal))?;
            if !globals.json && !personal {
                let others = hint::command(["env", "list", project.name.as_str(), "--personal"]);
                output::note(&format!("your personal variables are apart: {others}"));
            }
        }
        EnvCommand::Unset {
            project,
            names,
            personal,
        } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            for name in &names {
                let deleted = client.delete_variable(&project.id, kind(personal), name).await?;
                output::print(globals.json, &deleted, |reply| {
                    if reply.deleted {
                        format!("removed {name}")
                    } else {
                        // Not "was": a removal that had to be sent twice finds nothing the second time.
                        format!("{name} is not set")
                    }
                })?;
            }
        }
    }
    Ok(0)
}

/// Says which values will be redacted where they are no secret. The values themselves are not said.
fn warn_of_common(variables: &[Variable]) {
    let names: Vec<&str> = variables
        .iter()
        .filter(|variable| is_common(&variable.value))
        .map(|variable| variable.name.as_str())
        .collect();
    if names.is_empty() {
        return;
    }
    let (values, has, one) = match names.len() {
        1 => ("the value is short or a common word", "has it", "it"),
        _ => ("the values are short or common words", "has one of them", "one"),
    };
    output::note(&format!(
        "warning: {}: {values}, and every place that {has} is redacted (***) in what the set-up prints, inside other words too; if \
         {one} needs no hiding, set it in a command or a script of the set-up instead",
        names.join(", ")
    ));
}

/// Whether a value stands in many texts by chance.
fn is_common(value: &str) -> bool {
    let is_redacted = value.len() >= REDACTED_BYTES;
    let value = value.trim();
    let is_word = value.chars().all(|c| c.is_ascii_lowercase()) || value.chars().all(|c| c.is_ascii_uppercase());
    is_redacted && (value.chars().count() < SHORT_VALUE_CHARS || is_word && value.len() < LONG_WORD_CHARS)
}

fn kind(personal: bool) -> VariableKind {
    if personal {
        VariableKind::Personal
    } else {
        VariableKind::Shared
    }
}

fn list(items: &Items<VariableItem>, personal: bool) -> String {
    if items.items.is_empty() {
        let (whose, option) = if personal {
            ("personal ", " --personal")
        } else {
            ("", "")
        };
        return format!("no {whose}variables yet: set one with `hearth env set PROJECT NAME{option}`");
    }
    let row = |item: &VariableItem| {
        let by = item.last_updated_by_user_id.clone().unwrap_or_else(|| "-".to_owned());
        [item.name.clone(), output::ago(item.updated_at), by]
    };
    output::table(["Name", "Set", "By"], items.items.iter().map(row))
}

fn variables(args: &SetArgs) -> Result<Vec<Variable>, Failure> {
    let mut outside_value = None;
    let mut variables = Vec::with_capacity(args.variables.len());
    for file in &args.env_file {
        let more = env_file::parse(&input::name(file), &input::text(file)?)?;
        // Of a name that is given twice the later value counts.
        variables.retain(|one: &Variable| !more.iter().any(|other| other.name == one.name));
        variables.extend(more);
    }
    for text in &args.variables {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if outside_value.is_some() => {
                return Err(Failure::usage(
                    "only one variable can take its value from outside; set the others apart",
                ));
            }
            None => {
                outside_value = Some(());
                (
                    text.as_str(),
                    value_from_outside(text, args.from_file.as_deref(), args.exact)?,
                )
            }
        };
        variables.retain(|one| one.name != name);
        let (name, value) = caller_env::variable(name, value)?;
        variables.push(Variable { name, value });
    }
    if outside_value.is_none() && args.from_file.is_some() {
        return Err(Failure::usage("--from-file needs a NAME without a value"));
    }
    Ok(variables)
}

fn value_from_outside(name: &str, file: Option<&Path>, exact: bool) -> Result<String, Failure> {
    let (bytes, from) = match file {
        Some(path) => (input::file_bytes(path, input::VALUE)?, path.display().to_string()),
        None if io::stdin().is_terminal() => {
            let prompt = format!("type the value of {name} (it is not shown), then Enter:");
            return read_hidden_line(&prompt)
                .map_err(|error| Failure::new(format!("the value cannot be read: {error}")));
        }
        None => (input::standard_input_bytes(input::VALUE)?, "standard input".to_owned()),
    };
    let mut value = String::from_utf8(bytes).map_err(|_| {
        Failure::usage(format!(
            "{from} is not UTF-8 text; a variable cannot hold other bytes (use base64)"
        ))
    })?;
    if !exact && value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    if value.chars().count() > VariableValue::RULE.max_chars {
        return Err(input::VALUE.refusal(&from));
    }
    // `NAME </dev/null` is more often a forgotten pipe than meant; a variable that is empty can be said in so many words.
    if value.is_empty() && !exact {
        return Err(Failure::usage(format!("{from} is empty, so {name} would be too"))
            .hint(format!("to set it to nothing, write `{name}=` or add --exact")));
    }
    Ok(value)
}

/// One line from the terminal without showing it; the terminal is put back even when reading fails. The prompt comes when the terminal
/// shows nothing any more: a program that waits for it types at once.
pub(super) fn read_hidden_line(prompt: &str) -> io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let terminal = io::stdin();
    let shown = tcgetattr(&terminal)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&terminal, SetArg::TCSANOW, &hidden)?;
    output::note(prompt);
    let mut line = String::new();
    let read = terminal.read_line(&mut line);
    tcsetattr(&terminal, SetArg::TCSANOW, &shown)?;
    output::note("");
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(variables: &[&str]) -> SetArgs {
        let variables = variables.iter().map(|&text| text.to_owned()).collect();
        SetArgs {
            project: "p".to_owned(),
            variables,
            env_file: Vec::new(),
            from_file: None,
            exact: false,
            personal: false,
        }
    }

    #[test]
    fn short_values_and_plain_words_are_common_and_secrets_are_not() {
        for value in ["info", "dev", "development", "1234", "TRUE", " debug "] {
            assert!(is_common(value), "{value}");
        }
        for value in [
            "",
            "42",
            "s3cret-value",
            "postgres://db",
            "correcthorsebatterystaple",
            "hunter2hunter2",
        ] {
            assert!(!is_common(value), "{value}");
        }
    }

    #[test]
    fn only_the_first_equals_sign_divides() {
        let set = variables(&args(&["A=b=c", "B="])).unwrap();
        let seen: Vec<_> = set.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
        assert_eq!(seen, [("A", "b=c"), ("B", "")]);
    }
}
