//! Claude Code's self-hosted environments: its orchestrator runs `spawn-runner` once per spawn request, with the order in the environment and the
//! one-use work order in a file that is gone when the hook ends.

use std::path::Path;

use clap::Args;

use super::order::Order;
use super::outcome::Outcome;
use super::{RelayOptions, given, needed};
use crate::input;

/// Names the request, and nothing else does.
const ORDER_ID: &str = "CLAUDE_RUNNER_ORDER_ID";
/// The file with the work order.
const WORK_ORDER_FILE: &str = "CLAUDE_RUNNER_WORK_ORDER_FILE";
/// What the runner reads the work order from.
const RUNNER_SECRET: &str = "SELF_HOSTED_RUNNER_ENVIRONMENT_SECRET";

/// `hearth relay claude-code`.
#[derive(Debug, Args)]
#[command(after_help = "\
Put this into the file spawn-runner of the orchestrator's --hooks-dir:

  #!/bin/sh
  exec hearth relay claude-code

Exit codes: 0 the runner was started (or was, by an earlier delivery); 1 try again; 2 a person has to do something, see standard error.")]
pub(crate) struct ClaudeCodeArgs {
    #[command(flatten)]
    options: RelayOptions,
    /// The runner, instead of `claude self-hosted-runner --capacity 1`
    #[arg(last = true, value_name = "COMMAND")]
    runner: Vec<String>,
}

impl ClaudeCodeArgs {
    pub(super) fn order(self) -> (RelayOptions, Result<Order, Outcome>) {
        let order = read(self.runner);
        (self.options, order)
    }
}

fn read(runner: Vec<String>) -> Result<Order, Outcome> {
    let key = needed(ORDER_ID)?;
    let file = needed(WORK_ORDER_FILE)?;
    let file = Path::new(&file);
    let secret = input::secret(file, "the work order").map_err(|failure| {
        let why = failure.into_parts().0;
        // It may be gone when the orchestrator gave up on this hook: the next request brings another one.
        match file.exists() {
            true => Outcome::Blocked(why),
            false => Outcome::Again(why),
        }
    })?;
    let secret = secret.trim().to_owned();
    if secret.is_empty() {
        return Err(Outcome::Blocked("the work order's file is empty".to_owned()));
    }
    let worker = match runner.is_empty() {
        true => ["claude", "self-hosted-runner", "--capacity", "1"]
            .map(str::to_owned)
            .into(),
        false => runner,
    };
    Ok(Order {
        key,
        once: true,
        repository: given("CLAUDE_RUNNER_PRIMARY_REPO_URL"),
        revision: given("CLAUDE_RUNNER_PRIMARY_REPO_REVISION"),
        env: vec![(RUNNER_SECRET, secret)],
        worker,
    })
}
