//! `hearth config`: the server's config file, checked and as an example.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_server::PostgresUrl;
use serde_json::{Map, Value};

use super::serve;
use crate::args::Globals;
use crate::config::{self, USUAL_FILE};
use crate::failure::Failure;
use crate::output;

/// The one key whose value may hold a secret.
const DATABASE_KEY: &str = "database";

const AFTER_HELP: &str = "\
Examples:
  hearth config example >/etc/hearth/hearth.toml      begin with every key as a comment
  hearth config check                                 what is wrong in it, with line and column
  systemctl reload hearth                             takes changes over; the log says which need a restart";

/// `hearth config`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum ConfigCommand {
    /// Check a config file: every key, every value, and the files that they name
    Check(CheckArgs),
    /// Print a config file with every key as a comment, what it means and its default
    Example,
}

/// `hearth config check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The file
    #[arg(default_value = USUAL_FILE)]
    file: PathBuf,
}

pub(crate) fn run(globals: &Globals, command: &ConfigCommand) -> Result<u8, Failure> {
    match command {
        ConfigCommand::Check(args) => check(globals, args),
        ConfigCommand::Example => {
            output::print_as_it_is(config::example().trim_end())?;
            Ok(0)
        }
    }
}

fn check(globals: &Globals, args: &CheckArgs) -> Result<u8, Failure> {
    let text = config::text(&args.file)?;
    let settings = config::read(&args.file, &text)?;
    let complete = config::check(&settings)?;
    let mut faults = Vec::new();
    for key in config::keys().iter().filter(|key| key.is_file()) {
        let named = settings.iter().filter(|setting| setting.key == key.name());
        for path in named.flat_map(|setting| &setting.texts) {
            if let Err(error) = std::fs::File::open(path) {
                faults.push(format!("{}: the file {path} cannot be read: {error}", key.name()));
            }
        }
    }
    if faults.is_empty() {
        faults = serve::unusable(&complete.args);
    }
    if !faults.is_empty() {
        let count = output::count(faults.len() as u64, "setting");
        let failure = Failure::usage(format!("{}: {count} cannot be used", args.file.display()));
        let failure = faults.into_iter().fold(failure, Failure::detail);
        return Err(failure.hint("files must be there, and readable for the user that the server runs as"));
    }
    if globals.json {
        let said: Map<String, Value> = settings
            .iter()
            .map(|setting| (setting.key.clone(), shown(&setting.key, &setting.texts).into()))
            .collect();
        output::print_json(&serde_json::json!({ "file": args.file, "settings": said }))?;
        return Ok(0);
    }
    for setting in &settings {
        output::print_line(&format!(
            "{} = {}",
            setting.key,
            shown(&setting.key, &setting.texts).join(", ")
        ))?;
    }
    output::note(&format!(
        "{}: {}, no fault",
        args.file.display(),
        output::count(settings.len() as u64, "setting")
    ));
    Ok(0)
}

/// The values without the password that a database's address may hold.
fn shown(key: &str, texts: &[String]) -> Vec<String> {
    let shown = |text: &String| match text.parse::<PostgresUrl>() {
        Ok(url) if key == DATABASE_KEY => url.to_string(),
        Err(_) if key == DATABASE_KEY => "(not shown)".to_owned(),
        _ => text.clone(),
    };
    texts.iter().map(shown).collect()
}
