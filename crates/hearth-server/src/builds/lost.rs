//! The agent was lost while a set-up command ran: why, in a sentence for its entry.

use std::time::{Duration, Instant};

use hearth_api::ids::VmId;
use hearth_core::redact::{Redacted, Redactor};
use hearth_core::redacted;
use hearth_core::state::FailureKind;
use hearth_core::world::Failure;
use hearth_drivers::VmState;
use hearth_guest::client::AgentError;

use super::run::{Run, Stop, failure, vm_lost};
use crate::vms::connections::Connections;
use crate::vms::lost::{Became, Given};

/// A guest that goes down in its set-up stops its services first, some of which take their time.
const PATIENCE: Duration = Duration::from_secs(100);

/// Why there is no agent any more, for the set-up command of this name.
pub(super) async fn explain(
    connections: &Connections,
    vm: &VmId,
    command: &Redacted,
    given: &Given,
    error: &AgentError,
    redactor: &Redactor,
) -> Failure {
    match connections.find_out(vm, given, PATIENCE).await {
        Became::Silent(None) => failure(
            FailureKind::VmLost,
            redacted![
                "the VM stopped answering during the command `",
                command,
                "`, though it runs: ",
                redactor.redact(&error.to_string()),
            ],
        ),
        // Why it is silent is said with the step.
        Became::Silent(Some(_)) | Became::ConnectionLost => vm_lost(redactor, error),
        became => say(&became, command, redactor).unwrap_or_else(|| vm_lost(redactor, error)),
    }
}

/// The command that ended well last, while nothing else has run since.
#[derive(Debug)]
pub(super) struct LastCommand {
    name: Redacted,
    given: Given,
}

impl Run<'_> {
    pub(super) async fn note_last(&self, name: &str, text: &str, began: Instant) {
        let given = Given {
            at: began.into(),
            boot: self.builder.connections.known_boot(&self.boot.vm).await,
            text: text.to_owned(),
        };
        let name = self.redactor().redact(name);
        *self.last.lock().await = Some(LastCommand { name, given });
    }

    /// What the last command did to the VM, when that is why the run cannot continue: commands that restart the guest end well before it
    /// does.
    pub(super) async fn what_it_did(&self, stop: &Stop) -> Option<Failure> {
        let Stop::Failure(failure) = stop else { return None };
        // Asked once: finding out takes long where the guest is silent.
        let LastCommand { name, given } = self.last.lock().await.take()?;
        let is_lost = match self.builder.driver.inspect(&self.boot.vm).await {
            Ok(None | Some(VmState::Stopped)) => matches!(failure.kind, FailureKind::VmLost | FailureKind::Host),
            Ok(Some(VmState::Running)) => failure.kind == FailureKind::VmLost,
            // A paused one answers nobody, and did not do that itself.
            _ => false,
        };
        if !is_lost {
            return None;
        }
        let connections = &self.builder.connections;
        let became = connections.find_out(&self.boot.vm, &given, PATIENCE).await;
        say(&became, &name, self.redactor())
    }
}

fn say(became: &Became, command: &Redacted, redactor: &Redactor) -> Option<Failure> {
    let frozen = "the VM is frozen as it runs after its set-up, and forks of it start from there";
    let (kind, reason) = match became {
        Became::Restarted => (
            FailureKind::Setup,
            redacted![
                "the VM restarted during the command `",
                command,
                "`; a set-up command must not restart the VM: ",
                frozen,
                ". Take the restart out; restart services with `systemctl restart NAME`",
            ],
        ),
        Became::WentOff => (
            FailureKind::Setup,
            redacted![
                "the VM went off during the command `",
                command,
                "`; a set-up command must not turn the VM off: ",
                frozen,
                ". Take `poweroff`, `halt` or `shutdown` out",
            ],
        ),
        Became::Panicked(line) => (
            FailureKind::Setup,
            redacted![
                "the guest's kernel panicked during the command `",
                command,
                "`, and that ended everything in the VM; its console says \"",
                redactor.redact(line),
                "\". Take out what makes it panic; if it ran out of memory, give the project a larger `vmSize`",
            ],
        ),
        Became::AgentDied => (
            FailureKind::VmLost,
            redacted![
                "the agent in the VM died during the command `",
                command,
                "`, and was started again: how the command ended is not known. `kill -9 -1` does this, and so can a VM without free \
                 memory: then give the project a larger `vmSize`",
            ],
        ),
        Became::Gone => (
            FailureKind::VmLost,
            redacted![
                "the VM ended during the command `",
                command,
                "`: its process on the host is gone; the guest went down, or the host ended it (out of memory, say)",
            ],
        ),
        Became::ConnectionLost | Became::Saved | Became::Silent(_) => return None,
    };
    Some(failure(kind, reason))
}
