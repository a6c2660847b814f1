//! A repository's checkout in a VM: what the set-up left of it, and moving it to another commit. The scripts run in the VM with its
//! own git; they name every reference in full, so that no tag is taken for a branch.

use std::time::Duration;

use hearth_core::checkout::CheckoutState;
use hearth_guest::client::{AgentClient, AgentError, ExecOutput};
use hearth_guest::{ExecEnd, ExecSpec};

use hearth_core::time::millis;
use serde_json::json;

#[cfg(test)]
mod tests;

/// Time limit of what git does in the VM.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Tells what the set-up left; its words are read by [`read`].
const RECORD: &str = include_str!("checkout/record.sh");
/// Moves a checkout.
const MOVE: &str = include_str!("checkout/move.sh");
/// Bytes of a script's output that are kept.
const KEPT_BYTES: usize = 4096;
/// What a script ends with when the tree is not as Hearth and the set-up left it.
const NOT_OURS: i32 = 3;
/// What a script ends with when there is no repository.
const NO_REPOSITORY: i32 = 4;
/// What a script ends with when it was not remembered what the set-up changed.
const NOT_RECORDED: i32 = 5;

/// Why a checkout could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// It was changed since the set-up ended.
    #[error("files or commits in it were changed after its set-up had ended")]
    NotOurs,
    /// It is not known what of it the set-up changed.
    #[error(
        "its set-up left so much in it that it could not be recorded; let git ignore what the set-up makes (.gitignore)"
    )]
    NotRecorded,
    /// The set-up moved or removed it.
    #[error("there is no repository at {0} any more: the set-up moved or removed it")]
    NoRepository(String),
    /// Git said no.
    #[error("git in the VM said: {0}")]
    Refused(String),
    /// The VM itself cannot be trusted any more.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Tells what the set-up left of the checkout at this path, and remembers in the VM which files it changed.
pub async fn record(agent: &AgentClient, path: &str) -> Result<CheckoutState, AgentError> {
    let argv = ["sh", "-ec", RECORD].map(str::to_owned).into();
    let spec = ExecSpec {
        argv: Some(argv),
        cwd: Some(path.to_owned()),
        timeout_ms: Some(millis(PATIENCE)),
        ..ExecSpec::default()
    };
    match agent.exec_collect(&spec, KEPT_BYTES).await {
        Ok(output) => Ok(read(&output)),
        // A folder that is gone cannot be a command's.
        Err(AgentError::Refused { .. }) => Ok(CheckoutState::gone()),
        Err(error) => Err(error),
    }
}

/// Moves the checkout at this path from one commit to another, and onto that branch. Where no one has `worked_in` the VM, everything in
/// it is the set-up's, also what its services have changed since; else only what is still as the set-up left it is replaced. Nothing has happened, or not all of it, when this
/// is an error: the VM's user must not get a wrong answer about where the checkout is.
pub async fn move_to(
    agent: &AgentClient,
    path: &str,
    have: &str,
    branch: &str,
    target: &str,
    worked_in: bool,
) -> Result<(), CheckoutError> {
    let worked_in = if worked_in { "yes" } else { "" };
    let variables = [
        ("HAVE", have),
        ("TARGET", target),
        ("BRANCH", branch),
        ("WORKED_IN", worked_in),
    ];
    let spec = ExecSpec {
        shell: Some(MOVE.to_owned()),
        cwd: Some(path.to_owned()),
        env: variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        timeout_ms: Some(millis(PATIENCE)),
        ..ExecSpec::default()
    };
    let output = agent.exec_collect(&spec, KEPT_BYTES).await?;
    match output.end {
        ExecEnd::Exited { code: Some(0), .. } => Ok(()),
        ExecEnd::Exited {
            code: Some(NOT_OURS), ..
        } => Err(CheckoutError::NotOurs),
        ExecEnd::Exited {
            code: Some(NOT_RECORDED),
            ..
        } => Err(CheckoutError::NotRecorded),
        ExecEnd::Exited {
            code: Some(NO_REPOSITORY),
            ..
        }
        | ExecEnd::NotStarted { .. } => Err(CheckoutError::NoRepository(path.to_owned())),
        ExecEnd::Exited { .. } => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(CheckoutError::Refused(said))
        }
        // It may have stopped anywhere.
        _ => Err(AgentError::Protocol("moving the checkout did not end".to_owned()).into()),
    }
}

/// What a [`RECORD`] said.
fn read(output: &ExecOutput) -> CheckoutState {
    match output.end {
        ExecEnd::Exited {
            code: Some(NO_REPOSITORY),
            ..
        }
        | ExecEnd::NotStarted { .. } => return CheckoutState::gone(),
        ExecEnd::Exited { code: Some(0), .. } => {}
        // What was changed is not remembered: such a checkout is not moved, which is said when it is to be.
        _ => tracing::warn!(
            end = %json!(output.end),
            said = %String::from_utf8_lossy(&output.stderr).trim(),
            "what a set-up changed could not be recorded"
        ),
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let word = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    CheckoutState {
        commit: word("# branch.oid "),
        branch: word("# branch.head "),
        gone: false,
    }
}
