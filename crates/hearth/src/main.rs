//! The binary `hearth`: `serve` and every client command. The commands talk to the server through hearth-api's client only.

mod agent;
mod args;
mod boot;
mod caller_env;
mod commands;
mod connect;
mod failure;
mod input;
mod local;
mod output;
mod places;
mod setup_commands;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = runtime(&cli)
        .and_then(|runtime| runtime.block_on(commands::run(cli)))
        .unwrap_or_else(|failure| {
            // A closed standard error has no one to complain to.
            let _ = write!(std::io::stderr().lock(), "{failure}");
            failure.code()
        });
    ExitCode::from(code)
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
