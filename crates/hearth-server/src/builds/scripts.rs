//! Running the scripts of the setup object. Those of different repositories run at the same time; the first that fails ends
//! the others.

use futures::future::try_join_all;
use hearth_core::checkout::Checkout;
use hearth_core::redact::{Redacted, Redactor};
use hearth_core::redacted;
use hearth_core::scripts::{Phase, ScriptRun};
use hearth_core::time::millis;
use hearth_guest::ExecSpec;
use hearth_guest::client::AgentClient;

use super::output::CommandOutput;
use super::step_log::message;
use crate::secrets::env_file;

/// How the script of a phase is run in a checkout; `None` when there is none.
#[must_use]
pub fn script_spec(checkout: &Checkout, phase: Phase) -> Option<ExecSpec> {
    let ScriptRun { shell, limit } = checkout.scripts.run(phase)?;
    Some(ExecSpec {
        shell: Some(shell),
        cwd: Some(checkout.path.clone()),
        env_file: Some(env_file::PATH.to_owned()),
        timeout_ms: Some(millis(limit)),
        ..ExecSpec::default()
    })
}

/// Runs the scripts of a phase outside a provisioning run (at a claim), all at once; a sentence when one fails. What they
/// print is not kept.
pub async fn run_at_claim(
    agent: &AgentClient,
    phase: Phase,
    checkouts: &[&Checkout],
    redactor: &Redactor,
) -> Result<(), Redacted> {
    /// What is kept of a script's output for the sentence, bytes.
    const KEPT_BYTES: usize = 64 * 1024;
    let runs = checkouts.iter().filter_map(|checkout| {
        let spec = script_spec(checkout, phase)?;
        Some(async move {
            let repo = &checkout.repo_full_name;
            let what = &redacted!["the script ", phase.as_str(), " of ", redactor.redact(repo)];
            let output = agent
                .exec_collect(&spec, KEPT_BYTES)
                .await
                .map_err(|error| redacted![what, " could not be run: ", redactor.redact(&error.to_string())])?;
            let mut said = CommandOutput::new(redactor);
            said.stderr(&output.stderr);
            said.finish();
            match message(&output.end, &spec, &said.last_error_lines(), redactor) {
                None => Ok(()),
                Some(message) => Err(redacted![what, " failed: ", message]),
            }
        })
    });
    try_join_all(runs).await.map(drop)
}
