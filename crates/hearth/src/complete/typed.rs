//! What is typed so far: the server it names, and the arguments before the word that is completed.

use std::ffi::OsString;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use crate::args::{Cli, Globals};

/// The arguments before the word that is completed.
pub(super) struct Typed {
    pub(super) globals: Globals,
    /// The instance that stands there.
    pub(super) instance: Option<String>,
    /// The project that stands there.
    pub(super) project: Option<String>,
}

impl Typed {
    /// From the words before the one that is completed, the program's name first.
    pub(super) fn parse(words: Vec<OsString>) -> Option<Self> {
        // Half of a command line is a mistake in many ways.
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
        let globals = Globals::from_arg_matches(&matches).ok()?;
        let mut last: &ArgMatches = &matches;
        while let Some((_, below)) = last.subcommand() {
            last = below;
        }
        let named = |name: &str| last.try_get_one::<String>(name).ok().flatten().cloned();
        Some(Self {
            globals,
            instance: named("id"),
            project: named("project"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_command_line_names_server_and_instance() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let typed = Typed::parse(words("hearth attach --url http://h:1 T1")).unwrap();
        assert_eq!(typed.globals.url.as_deref(), Some("http://h:1"));
        assert_eq!(typed.instance.as_deref(), Some("T1"));
        let typed = Typed::parse(words("hearth --data-dir=/d shell T1 --session")).unwrap();
        assert_eq!(typed.globals.data_dir.as_deref(), Some(std::path::Path::new("/d")));
        assert_eq!(typed.instance.as_deref(), Some("T1"));
        assert_eq!(Typed::parse(words("hearth claim")).unwrap().instance, None);
    }
}
