//! Cursor's self-hosted pools: `agent worker controller --spawn` runs its command once per claimed request, and once per warm worker that is
//! missing, with what the worker needs in the environment.

use clap::Args;

use super::order::Order;
use super::outcome::Outcome;
use super::{RelayOptions, given, needed};

/// Names the worker: a request that is claimed again, because its machine is gone, names the same one.
const WORKER_ID: &str = "CURSOR_AGENT_WORKER_ID";
/// A key that works for as long as it is not revoked.
const API_KEY: &str = "CURSOR_API_KEY";
const POOL: &str = "CURSOR_POOL";
const REPOSITORY: &str = "CURSOR_REPO_URL";
/// What else the worker gets, where the controller sets it.
const PASSED: [&str; 6] = [
    "CURSOR_API_URL",
    "CURSOR_API_ENDPOINT",
    "CURSOR_REQUEST_ID",
    "CURSOR_BC_ID",
    "CURSOR_WORKER_NAME",
    "CURSOR_REPO_URL",
];
/// Becomes a worker of the pool, for the checkout.
const WORKER: &str = r#"exec agent worker --pool "$CURSOR_POOL" --worker-id "$CURSOR_AGENT_WORKER_ID" ${HEARTH_CHECKOUT:+--worker-dir "$HEARTH_CHECKOUT"} start"#;

/// `hearth relay cursor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Start the controller with it:

  agent worker controller --pool hearth --spawn 'hearth relay cursor --project web'

Exit codes: 0 the worker was started (or runs already); 1 try again; 2 a person has to do something, see standard error.")]
pub(crate) struct CursorArgs {
    #[command(flatten)]
    options: RelayOptions,
    /// The worker, instead of `agent worker --pool … --worker-id … start`
    #[arg(last = true, value_name = "COMMAND")]
    worker: Vec<String>,
}

impl CursorArgs {
    pub(super) fn order(self) -> (RelayOptions, Result<Order, Outcome>) {
        let order = read(self.worker);
        (self.options, order)
    }
}

fn read(worker: Vec<String>) -> Result<Order, Outcome> {
    let id = needed(WORKER_ID)?;
    let mut env = vec![
        (WORKER_ID, id.clone()),
        (API_KEY, needed(API_KEY)?),
        (POOL, needed(POOL)?),
    ];
    env.extend(PASSED.into_iter().filter_map(|name| Some((name, given(name)?))));
    let worker = match worker.is_empty() {
        true => ["bash", "-c", WORKER].map(str::to_owned).into(),
        false => worker,
    };
    Ok(Order {
        key: match given("CURSOR_REQUEST_ID") {
            Some(request) => format!("{request}/{id}"),
            None => id,
        },
        // Its machine may be asked for again, when the one before has ended.
        once: false,
        repository: given(REPOSITORY),
        revision: None,
        env,
        worker,
    })
}
