//! The keys: one for each option of `hearth serve`.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, CommandFactory as _};

use crate::args::Cli;
use crate::failure::Failure;

/// The command whose options they are.
pub(super) const SERVE: &str = "serve";
/// Options that say how a client finds a server and how it prints, which file this is, or that show a text.
const NO_KEYS: [&str; 7] = ["ca", "config", "help", "json", "token", "token-file", "url"];
/// And the one that shows the version.
const VERSION: &str = "version";

/// An option of `hearth serve`, as a key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    name: String,
    arg: Arg,
}

/// All of them, in the order of `hearth serve --help`.
pub(crate) fn keys() -> Vec<Key> {
    let mut command = Cli::command();
    command.build();
    let serve = command.find_subcommand(SERVE);
    let options = serve.into_iter().flat_map(clap::Command::get_arguments);
    options
        .filter_map(|arg| {
            let name = arg.get_long()?.to_owned();
            let is_key = !NO_KEYS.contains(&name.as_str()) && name != VERSION;
            is_key.then(|| Key { name, arg: arg.clone() })
        })
        .collect()
}

impl Key {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn id(&self) -> &str {
        self.arg.get_id().as_str()
    }

    /// Options that nobody needs are not shown.
    pub(super) fn is_shown(&self) -> bool {
        !self.arg.is_hide_set()
    }

    /// Whether it may be there more than once.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    /// Whether it takes no value on the command line.
    pub(super) fn is_switch(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::SetTrue)
    }

    /// What its values are called.
    pub(super) fn value_name(&self) -> &str {
        let names = self.arg.get_value_names().unwrap_or_default();
        names.first().map_or("", |name| name.as_str())
    }

    /// Whether its value is a file that is read.
    pub(crate) fn is_file(&self) -> bool {
        self.value_name() == "FILE"
    }

    pub(super) fn help(&self) -> String {
        self.arg.get_help().map(ToString::to_string).unwrap_or_default()
    }

    /// The default that clap knows.
    pub(super) fn default(&self) -> Option<String> {
        let default = self.arg.get_default_values().first()?;
        Some(default.to_string_lossy().into_owned())
    }

    /// The variable with the same meaning.
    pub(crate) fn variable(&self) -> String {
        format!("HEARTH_{}", self.name.replace('-', "_").to_uppercase())
    }

    /// What the environment says; several values are on lines of their own.
    pub(super) fn environment(&self) -> Result<Option<Vec<String>>, Failure> {
        let variable = self.variable();
        let Some(value) = std::env::var_os(&variable).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let text = value
            .into_string()
            .map_err(|_| Failure::usage(format!("{variable} is not text (UTF-8)")))?;
        let texts: Vec<String> = if self.is_list() {
            text.lines().map(str::to_owned).collect()
        } else {
            vec![text]
        };
        for text in &texts {
            self.fault(text)
                .map_or(Ok(()), |fault| Err(Failure::usage(format!("{variable}: {fault}"))))?;
        }
        Ok(Some(texts))
    }

    /// The same on the command line.
    pub(super) fn words(&self, texts: &[String]) -> Vec<OsString> {
        let word = |text: &String| match (self.is_switch(), text.as_str()) {
            (true, "true") => Some(format!("--{}", self.name).into()),
            (true, _) => None,
            (false, text) => Some(format!("--{}={text}", self.name).into()),
        };
        texts.iter().filter_map(word).collect()
    }

    /// What is wrong with a value.
    pub(super) fn fault(&self, text: &str) -> Option<String> {
        if self.is_switch() {
            let is_good = matches!(text, "true" | "false");
            return (!is_good).then(|| "write true or false".to_owned());
        }
        // Alone: what it needs beside it is asked when all are known.
        let arg = Arg::new("value")
            .long("value")
            .action(ArgAction::Set)
            .value_parser(self.arg.get_value_parser().clone());
        let parsed = clap::Command::new("hearth")
            .no_binary_name(true)
            .arg(arg)
            .try_get_matches_from([format!("--value={text}")]);
        parsed.err().map(|error| said(&error))
    }
}

/// Why a value is refused, without the option around it.
fn said(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(possible)) = error.get(ContextKind::ValidValue)
        && error.kind() == ErrorKind::InvalidValue
        && !possible.is_empty()
    {
        return format!("write one of {}", possible.join(", "));
    }
    match error.source() {
        Some(fault) if fault.is::<std::num::ParseIntError>() => "write a whole number".to_owned(),
        Some(fault) => fault.to_string(),
        None => "it needs a value".to_owned(),
    }
}
