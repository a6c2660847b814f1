//! Scripts of the setup object: which run in which phase, with which limit.

use std::time::Duration;

use hearth_api::settings::Hooks;
use hearth_api::setup::{DEFAULT_SCRIPT_SECONDS, RepoSetup, Scripts, Timeouts};

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
    /// Takes what the repository's own settings file says where nothing else is said.
    pub fn adopt(&mut self, hooks: &Hooks) {
        let scripts = &mut self.scripts;
        for (script, own) in [
            (&mut scripts.update_after_checkout, &hooks.update_after_checkout),
            (&mut scripts.startup, &hooks.startup),
        ] {
            if script.is_none() {
                script.clone_from(own);
            }
        }
    }

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

    /// What a shell runs in a phase, and for how long at most; `None` when there is nothing to run.
    #[must_use]
    pub fn run(&self, phase: Phase) -> Option<ScriptRun> {
        Some(ScriptRun {
            shell: shell_text(self.script(phase)?),
            limit: self.limit(phase),
        })
    }
}

/// One script as it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptRun {
    /// What the shell reads.
    pub shell: String,
    /// It is ended after this time.
    pub limit: Duration,
}
