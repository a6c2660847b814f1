//! The config file of the server. Every option of `hearth serve` has a key of its name in it, and a variable in the environment:
//! the list of options is the command line's own, so none can be forgotten, and what a value may be is asked of the same parsers.
//! What is said on the command line counts first, then the environment, then the file.

mod example;
mod file;
mod keys;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command};
use crate::commands::serve::ServeArgs;
use crate::failure::Failure;
use crate::{args, input};
pub(crate) use example::example;
pub(crate) use file::{Setting, read};
pub(crate) use keys::{Key, keys};

/// Where the file is, unless another one is named.
pub(crate) const USUAL_FILE: &str = "/etc/hearth/hearth.toml";
/// Names another file.
const FILE_VARIABLE: &str = "HEARTH_CONFIG";
/// A file of settings is short.
const BOUND: input::Bound = input::Bound {
    bytes: 1024 * 1024,
    than: "the 1 MiB that a config file may have",
};

/// All settings that hold: what arguments, environment and file say, and the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective(BTreeMap<String, Vec<OsString>>);

impl Effective {
    /// The names of the settings that differ.
    pub(crate) fn changed(&self, other: &Self) -> Vec<String> {
        let names = self.0.keys().chain(other.0.keys());
        let mut changed: Vec<String> = names
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

/// What a server was started with.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) globals: args::Globals,
    pub(crate) args: ServeArgs,
    pub(crate) effective: Effective,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
}

/// The arguments of this process, which are those of `hearth serve`, with what the environment and the config file say besides.
pub(crate) fn complete(named: Option<&Path>) -> Result<Complete, Failure> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    // It ends the options, and there is nothing else.
    if words.last().is_some_and(|word| word == "--") {
        words.pop();
    }
    let variable = std::env::var_os(FILE_VARIABLE).filter(|value| !value.is_empty());
    let (path, is_named) = match (named, variable) {
        (Some(path), _) => (path.to_owned(), true),
        (None, Some(path)) => (PathBuf::from(path), true),
        (None, None) => (PathBuf::from(USUAL_FILE), false),
    };
    let settings = match text(&path) {
        Ok(text) => Some(read(&path, &text)?),
        Err(_) if !is_named && !path.exists() => None,
        Err(failure) => return Err(failure),
    };
    let file = settings.is_some().then_some(path);
    let settings = settings.unwrap_or_default();
    let given = Cli::command().try_get_matches_from(&words)?;
    let given = given.subcommand_matches(keys::SERVE);
    for key in keys() {
        let is_given =
            given.is_some_and(|given| given.value_source(key.id()) == Some(clap::parser::ValueSource::CommandLine));
        if is_given {
            continue;
        }
        if let Some(texts) = key.environment()? {
            words.extend(key.words(&texts));
        } else if let Some(setting) = settings.iter().find(|setting| setting.key == key.name()) {
            words.extend(key.words(&setting.texts));
        }
    }
    parsed(words, file)
}

/// Whether these settings can be together, as `hearth serve` would find.
pub(crate) fn check(settings: &[Setting]) -> Result<Complete, Failure> {
    let mut words: Vec<OsString> = vec!["hearth".into(), keys::SERVE.into()];
    for key in keys() {
        if let Some(setting) = settings.iter().find(|setting| setting.key == key.name()) {
            words.extend(key.words(&setting.texts));
        }
    }
    parsed(words, None)
}

fn parsed(words: Vec<OsString>, file: Option<PathBuf>) -> Result<Complete, Failure> {
    let matches = Cli::command().try_get_matches_from(&words).map_err(incomplete)?;
    let served = matches.subcommand_matches(keys::SERVE);
    let values = |key: &Key| {
        let values = served?.get_raw(key.id())?.map(ToOwned::to_owned).collect();
        Some((key.name().to_owned(), values))
    };
    let effective = Effective(keys().iter().filter_map(values).collect());
    match Cli::try_parse_from(words)? {
        Cli {
            globals,
            command: Command::Serve(args),
        } => Ok(Complete {
            globals,
            args: *args,
            effective,
            file,
        }),
        _ => Err(Failure::new("the settings cannot be read outside of `hearth serve`")),
    }
}

/// Settings that need another one beside them, whatever each comes from.
fn incomplete(error: clap::Error) -> Failure {
    let missing = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) if error.kind() == ErrorKind::MissingRequiredArgument => {
            missing.join(", ")
        }
        _ => return error.into(),
    };
    Failure::usage(format!("with these settings there must be another one: {missing}"))
        .hint("name it as an option, as a variable or in the config file; `hearth serve --help` explains it")
}

/// What is in a config file.
pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    let bytes = input::file_bytes(path, BOUND)?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::new(format!("the config file {} is not text (UTF-8)", path.display())))
}
