//! Any other service that starts a command per order.

use clap::Args;

use super::RelayOptions;
use super::order::Order;
use super::outcome::Outcome;

/// `hearth relay command`.
#[derive(Debug, Args)]
#[command(after_help = "\
  hearth relay command --order \"$ORDER\" --repo \"$REPO_URL\" --revision \"$BRANCH\" --pass WORKER_SECRET -- worker --once

Secrets go by --pass, never by arguments: other users of a machine can read those.
Exit codes: 0 the worker was started (or was, by an earlier delivery); 1 try again; 2 a person has to do something, see standard error.")]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    options: RelayOptions,
    /// The order's id: the same again never makes a second VM
    #[arg(long, value_name = "ID", env = "HEARTH_RELAY_ORDER")]
    order: String,
    /// URL of the repository that is worked on
    #[arg(long, value_name = "URL", env = "HEARTH_RELAY_REPO")]
    repo: Option<String>,
    /// Branch, commit or tag
    #[arg(long, value_name = "REVISION", env = "HEARTH_RELAY_REVISION")]
    revision: Option<String>,
    /// When the order's VM has ended, the same order gets another one
    #[arg(long)]
    again: bool,
    /// The worker: what runs in the VM, which is released when it ends
    #[arg(last = true, required = true, value_name = "COMMAND")]
    worker: Vec<String>,
}

impl CommandArgs {
    pub(super) fn order(self) -> (RelayOptions, Result<Order, Outcome>) {
        let filled = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let order = Order {
            key: self.order,
            once: !self.again,
            repository: filled(self.repo),
            revision: filled(self.revision),
            env: Vec::new(),
            worker: self.worker,
        };
        (self.options, Ok(order))
    }
}
