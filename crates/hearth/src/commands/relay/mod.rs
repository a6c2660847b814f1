//! `hearth relay`: hook programs, and a receiver of webhooks, that give the self-hosted runners of cloud agents one VM per order. Each reads its
//! vendor's order from where the vendor puts it; [`order`] does the rest, and [`outcome`] says it in the exit codes that vendors document.

mod claude_code;
mod command;
mod cursor;
mod openai;
mod order;
mod outcome;
mod signature;

use clap::{Args, Subcommand};

use crate::args::Globals;
use crate::connect;
use crate::failure::Failure;
use order::Order;
use outcome::Outcome;

/// Whose orders.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// The `spawn-runner` hook of Claude Code's self-hosted environments
    ClaudeCode(claude_code::ClaudeCodeArgs),
    /// The spawn command of a Cursor worker controller
    Cursor(cursor::CursorArgs),
    /// A receiver of the webhooks of OpenAI's Agents API
    Openai(openai::OpenaiArgs),
    /// Any other service: the order is said by arguments
    Command(command::CommandArgs),
}

/// What all of them take.
#[derive(Debug, Clone, Args)]
pub(crate) struct RelayOptions {
    /// The project (name or id) for orders whose repository no project has, and for those that name none
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// How long to wait for a VM that is being made, seconds; the vendor's own limit is 60
    #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=3600))]
    wait: u64,
    /// Longest life of the VM, minutes: it is released when the worker ends, and then at the latest
    #[arg(long, value_name = "MINUTES", default_value_t = 1440, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    ttl: u64,
    /// Run the worker as this user of the VM (default: root)
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A variable of this program's environment that the worker gets too; may be repeated
    #[arg(long = "pass", value_name = "VARIABLE")]
    pass: Vec<String>,
}

pub(crate) async fn run(globals: &Globals, command: RelayCommand) -> Result<u8, Failure> {
    let (options, order) = match command {
        RelayCommand::Openai(args) => return openai::run(globals, args).await,
        RelayCommand::ClaudeCode(args) => args.order(),
        RelayCommand::Cursor(args) => args.order(),
        RelayCommand::Command(args) => args.order(),
    };
    let outcome = match order {
        Ok(order) => submit(globals, &options, order).await,
        Err(outcome) => outcome,
    };
    outcome.say();
    Ok(outcome.exit_code())
}

/// Submits an order that a hook was started for.
async fn submit(globals: &Globals, options: &RelayOptions, order: Order) -> Outcome {
    match connect::client(globals) {
        Ok(client) => order.submit(&client, options).await,
        Err(failure) => Outcome::of_failure(&failure),
    }
}

/// A variable that must hold something.
fn needed(name: &str) -> Result<String, Outcome> {
    given(name).ok_or_else(|| {
        Outcome::Blocked(format!(
            "{name} is not set: this program is started by the vendor's own, which sets it"
        ))
    })
}

/// A variable, if it holds something.
fn given(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}
