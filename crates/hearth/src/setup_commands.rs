//! Set-up commands on the command line: `--command 'name: text'` and `--background 'name: text'` in the order in which they
//! stand there, or a JSON file of the API's form.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use hearth_api::pool::SetupCommand;

use crate::failure::Failure;
use crate::input;
use crate::json_file::JsonFile;

const COMMAND: &str = "command";
const BACKGROUND: &str = "background";
const COMMANDS_FILE: &str = "commands_file";
const NO_COMMANDS: &str = "no_commands";
/// Between a command's name and its text. With the blank, so that the colon of an address is never taken for it.
const SEPARATOR: &str = ": ";

/// What the command line says about set-up commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SetupArgs {
    /// Nothing.
    Unsaid,
    /// There should be none.
    None,
    /// These.
    These(Vec<SetupCommand>),
    /// Those of a file (`-`: standard input).
    File(PathBuf),
}

impl SetupArgs {
    /// In the API's form: absent, `null` or a list.
    pub(crate) fn read(&self) -> Result<Option<Option<Vec<SetupCommand>>>, Failure> {
        match self {
            Self::Unsaid => Ok(None),
            Self::None => Ok(Some(None)),
            Self::These(commands) => Ok(Some(Some(commands.clone()))),
            Self::File(path) => read_file(path).map(|commands| Some(Some(commands))),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<SetupCommand>, Failure> {
    let name = input::name(path);
    let text = input::text(path)?;
    let with_help = |failure: Failure| {
        failure.hint(
            r#"write it like [{"name": "install", "command": "npm ci", "timeoutSeconds": 600}, {"name": "db", "command": "...", "background": true}]"#,
        )
    };
    let mut file = JsonFile::parse(&name, &text, None).map_err(with_help)?;
    file.check_each("SetupCommand");
    file.finish("list of set-up commands").map_err(with_help)?;
    serde_json::from_value(file.value.clone()).map_err(|error| {
        with_help(Failure::usage(format!(
            "{name} holds no list of set-up commands: {error}"
        )))
    })
}

/// `name: text` as clap's value parser.
pub(crate) fn parse_command(text: &str) -> Result<SetupCommand, String> {
    let wanted = "write it as 'name: command', with a blank after the colon";
    let (name, command) = text.split_once(SEPARATOR).ok_or(wanted)?;
    let (name, command) = (name.trim(), command.trim());
    if name.is_empty() || command.is_empty() {
        return Err(wanted.to_owned());
    }
    Ok(SetupCommand {
        name: name.parse().map_err(|fault| format!("the name {fault}"))?,
        command: command.parse().map_err(|fault| format!("the command {fault}"))?,
        background: None,
        timeout_seconds: None,
    })
}

fn option(name: &'static str, long: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(long)
        .action(ArgAction::Append)
        .value_name("'NAME: TEXT'")
        .value_parser(parse_command)
        .help(help)
}

// By hand and not derived: only the raw matches know the order between two different options.
impl Args for SetupArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(option(
                COMMAND,
                "command",
                "A set-up command, run by bash; may be repeated, they run in this order. The given ones replace all that the pool has; \
                 `hearth pool edit` changes one of them",
            ))
            .arg(option(
                BACKGROUND,
                "background",
                "The same, started in the background; later ones do not wait for it. They count with --command",
            ))
            .arg(
                Arg::new(COMMANDS_FILE)
                    .long("commands-file")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .conflicts_with_all([COMMAND, BACKGROUND, NO_COMMANDS])
                    .help("Take the set-up commands from this JSON file (`-`: standard input). They replace all that the pool has"),
            )
            .arg(
                Arg::new(NO_COMMANDS)
                    .long("no-commands")
                    .action(ArgAction::SetTrue)
                    .conflicts_with_all([COMMAND, BACKGROUND])
                    .help("No set-up commands any more"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SetupArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.get_flag(NO_COMMANDS) {
            return Ok(Self::None);
        }
        if let Some(path) = matches.get_one::<PathBuf>(COMMANDS_FILE) {
            return Ok(Self::File(path.clone()));
        }
        let mut placed: Vec<(usize, SetupCommand)> = Vec::new();
        for (option, background) in [(COMMAND, None), (BACKGROUND, Some(true))] {
            let places = matches.indices_of(option).into_iter().flatten();
            let commands = matches.get_many::<SetupCommand>(option).into_iter().flatten();
            placed.extend(places.zip(commands).map(|(place, command)| {
                (
                    place,
                    SetupCommand {
                        background,
                        ..command.clone()
                    },
                )
            }));
        }
        if placed.is_empty() {
            return Ok(Self::Unsaid);
        }
        placed.sort_by_key(|(place, _)| *place);
        Ok(Self::These(placed.into_iter().map(|(_, command)| command).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> SetupArgs {
        let command = SetupArgs::augment_args(Command::new("test").no_binary_name(true));
        SetupArgs::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
    }

    #[test]
    fn the_order_on_the_command_line_is_kept_between_both_kinds() {
        let SetupArgs::These(commands) =
            parse(&["--command", "a: 1", "--background", "b: 2", "--command", "c: echo x: y"])
        else {
            panic!("commands were given");
        };
        let seen: Vec<_> = commands
            .iter()
            .map(|c| (c.name.as_str(), c.command.as_str(), c.background))
            .collect();
        assert_eq!(
            seen,
            [("a", "1", None), ("b", "2", Some(true)), ("c", "echo x: y", None)]
        );
    }

    #[test]
    fn nothing_said_is_not_the_same_as_none() {
        assert_eq!(parse(&[]).read(), Ok(None));
        assert_eq!(parse(&["--no-commands"]).read(), Ok(Some(None)));
    }

    #[test]
    fn an_address_is_not_taken_for_a_name() {
        assert!(parse_command("curl https://example.org").is_err());
        assert!(parse_command(": x").is_err());
    }
}
