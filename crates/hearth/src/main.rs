//! The binary `hearth`: `serve` and every client command. The commands talk to the server through hearth-api's client only.

mod agent;
mod args;
mod boot;
mod branches;
mod caller_env;
mod commands;
mod complete;
mod config;
mod connect;
mod editor;
mod env_file;
mod failure;
mod hint;
mod input;
mod json_file;
mod lease_warning;
mod listen;
mod local;
mod output;
mod places;
mod resolve;
mod setup_commands;
mod start;
mod text;
mod words;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    if let Some(code) = complete::answer() {
        return code;
    }
    // Not a command: what the server starts in the VM network.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == hearth_drivers::GATEWAY_WORD)
    {
        return hearth_drivers::run_gateway();
    }
    if std::env::args_os().len() == 1 {
        // A reader that went away is no fault.
        let _ = std::io::stdout().lock().write_all(start::TEXT.as_bytes());
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) if refusal.use_stderr() && asks_for_json() => {
            return end(&Failure::from(refusal), true);
        }
        // Help, the version, or what is wrong with the arguments, as people read it.
        Err(refusal) => refusal.exit(),
    };
    hint::remember(&cli.globals);
    let json = cli.globals.json;
    match runtime(&cli).and_then(|runtime| runtime.block_on(commands::run(cli))) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => end(&failure, json),
    }
}

/// Says what did not work, in the form that was asked for, and gives the exit code.
fn end(failure: &Failure, json: bool) -> ExitCode {
    let text = if json { failure.as_json() } else { failure.to_string() };
    // A closed standard error has no one to complain to.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
    ExitCode::from(failure.code())
}

/// Whether `--json` stands among arguments that could not be understood as a whole. What follows `--` is a command for a VM.
fn asks_for_json() -> bool {
    std::env::args_os()
        .skip(1)
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

/// The server uses every processor; a command needs no threads beside its own.
fn runtime(cli: &Cli) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match cli.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("the program cannot start: {error}")))
}
