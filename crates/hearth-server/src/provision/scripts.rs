//! Scripts of the setup object: which run in which phase, with which limit. Those of different repositories run at the
//! same time; the first that fails ends the others.

use std::time::Duration;

use futures::future::try_join_all;
use hearth_api::setup::{DEFAULT_SCRIPT_SECONDS, RepoSetup, Scripts, Timeouts};
use hearth_guest::ExecSpec;
use hearth_guest::client::AgentClient;

use super::blueprint::Checkout;
use super::envfile;
use super::mask::Masker;
use super::millis;
use super::output::CommandOutput;
use super::recorder::sentence;

/// A command as a shell is to read it: a carriage return before the end of a line, or at the very end, is how some editors end
/// lines and no part of the command. What is stored stays as it was given.
#[must_use]
pub fn shell_text(command: &str) -> String {
    command.trim_end_matches('\r').replace("\r\n", "\n")
}

/// When a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Once in a fresh VM.
    Initialize,
    /// After a claim moved the checkout.
    UpdateAfterCheckout,
    /// When the VM becomes ready.
    Startup,
}

impl Phase {
    /// The script's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::UpdateAfterCheckout => "updateAfterCheckout",
            Self::Startup => "startup",
        }
    }
}

/// The scripts of one repository with their limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepoScripts {
    scripts: Scripts,
    timeouts: Timeouts,
}

impl From<&RepoSetup> for RepoScripts {
    fn from(setup: &RepoSetup) -> Self {
        Self {
            scripts: setup.scripts.clone(),
            timeouts: setup.timeouts.clone().unwrap_or_default(),
        }
    }
}

impl RepoScripts {
    /// The script of a phase.
    #[must_use]
    pub fn script(&self, phase: Phase) -> Option<&str> {
        let script = match phase {
            Phase::Initialize => &self.scripts.initialize,
            Phase::UpdateAfterCheckout => &self.scripts.update_after_checkout,
            Phase::Startup => &self.scripts.startup,
        };
        script.as_deref()
    }

    fn limit(&self, phase: Phase) -> Duration {
        let seconds = match phase {
            Phase::Initialize => self.timeouts.initialize,
            Phase::UpdateAfterCheckout => self.timeouts.update_after_checkout,
            Phase::Startup => self.timeouts.startup,
        };
        Duration::from_secs(u64::try_from(seconds.unwrap_or(DEFAULT_SCRIPT_SECONDS)).unwrap_or_default())
    }

    /// How the script of a phase is run in a checkout at this path; `None` when there is none.
    #[must_use]
    pub fn spec(&self, phase: Phase, path: &str) -> Option<ExecSpec> {
        Some(ExecSpec {
            shell: Some(shell_text(self.script(phase)?)),
            cwd: Some(path.to_owned()),
            env_file: Some(envfile::PATH.to_owned()),
            timeout_ms: Some(millis(self.limit(phase))),
            ..ExecSpec::default()
        })
    }
}

/// Runs the scripts of a phase outside a provisioning run (at a claim), all at once; a sentence when one fails. What they
/// print is not kept.
pub async fn run_at_claim(
    agent: &AgentClient,
    phase: Phase,
    checkouts: &[&Checkout],
    masker: &Masker,
) -> Result<(), String> {
    /// What is kept of a script's output for the sentence, bytes.
    const KEPT_BYTES: usize = 64 * 1024;
    let runs = checkouts.iter().filter_map(|checkout| {
        let spec = checkout.scripts.spec(phase, &checkout.path)?;
        Some(async move {
            let repo = &checkout.repo_full_name;
            let what = format!("the script {} of {repo}", phase.as_str());
            let output = agent
                .exec_collect(&spec, KEPT_BYTES)
                .await
                .map_err(|error| format!("{what} could not be run: {error}"))?;
            let mut said = CommandOutput::new(masker);
            said.stderr(&output.stderr);
            said.finish();
            match sentence(&output.end, &spec, &said.last_error_lines()) {
                None => Ok(()),
                Some(sentence) => Err(masker.mask(&format!("{what} failed: {sentence}"))),
            }
        })
    });
    try_join_all(runs).await.map(drop)
}
