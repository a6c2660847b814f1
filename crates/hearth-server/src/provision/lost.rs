//! The agent was lost while a set-up command ran: what became of the VM, and whether the command itself did it.

use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_core::state::FailureKind;
use hearth_core::world::Failure;
use hearth_drivers::VmState;
use hearth_guest::client::AgentError;
use tokio::time::Instant;

use super::Context;
use super::steps::{failure, vm_lost};

/// A guest that goes down stops its services first, some of which take their time.
const PATIENCE: Duration = Duration::from_secs(100);
/// How long one try to reach the agent takes.
const CONNECT_TRY: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How much of the console tells how the guest ended, bytes.
const CONSOLE_TAIL: u64 = 2000;

/// What became of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Restarted,
    WentOff,
    Panicked,
    /// It is gone, and nobody knows why.
    Gone,
}

/// Why there is no agent any more. `command` is its name, `text` what it runs, `boot` the guest's boot id before it.
pub(super) async fn explain(
    context: &Context,
    vm: &VmId,
    (command, text): (&str, &str),
    boot: Option<&str>,
    error: AgentError,
) -> Failure {
    // The connection was broken off because the guest hangs: that was looked into, and is said with the step.
    if context.agents.given_up(vm).is_some() {
        return vm_lost(error);
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match context.driver.inspect(vm).await {
            Ok(None | Some(VmState::Stopped)) => {
                let console = context.driver.console(vm, CONSOLE_TAIL).await.unwrap_or_default();
                return say(fate(&String::from_utf8_lossy(&console), text), command);
            }
            Ok(Some(_)) => {
                if let Ok(agent) = context.agents.get(vm, CONNECT_TRY).await
                    && let Ok(health) = agent.health().await
                {
                    let restarted = boot.is_some_and(|before| before != health.boot_id);
                    return if restarted {
                        say(Fate::Restarted, command)
                    } else {
                        vm_lost(error)
                    };
                }
            }
            Err(error) => tracing::debug!(%error, %vm, "the driver does not say what became of a VM"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    failure(
        FailureKind::VmLost,
        format!("the VM stopped answering during the command `{command}`, though it runs: {error}"),
    )
}

fn fate(console: &str, text: &str) -> Fate {
    let says = |words: &[&str]| words.iter().any(|word| console.contains(word));
    let runs = |words: &[&str]| {
        let is_word = |c: char| !(c.is_alphanumeric() || "-_./".contains(c));
        text.split(is_word)
            .any(|word| words.contains(&word.rsplit('/').next().unwrap_or_default()))
    };
    if says(&["Kernel panic"]) {
        Fate::Panicked
    } else if says(&["Restarting system", "reboot: Restarting"]) {
        Fate::Restarted
    } else if says(&["reboot: Power down", "Power off", "System halted"]) {
        Fate::WentOff
    } else if runs(&["reboot", "kexec"]) || text.contains("shutdown -r") || text.contains("init 6") {
        Fate::Restarted
    } else if runs(&["poweroff", "halt", "shutdown"]) || text.contains("init 0") {
        Fate::WentOff
    } else {
        Fate::Gone
    }
}

fn say(fate: Fate, command: &str) -> Failure {
    let frozen = "the VM is frozen as it runs after its set-up, and forks of it go on from there";
    match fate {
        Fate::Restarted => failure(
            FailureKind::Setup,
            format!(
                "the VM restarted during the command `{command}`; a set-up command must not restart the VM: {frozen}. Take the restart \
                 out; what should start anew does so with `systemctl restart NAME`"
            ),
        ),
        Fate::WentOff => failure(
            FailureKind::Setup,
            format!(
                "the VM went off during the command `{command}`; a set-up command must not turn the VM off: {frozen}. Take `poweroff`, \
                 `halt` or `shutdown` out"
            ),
        ),
        Fate::Panicked => failure(
            FailureKind::Setup,
            format!(
                "the kernel of the VM stopped with a panic during the command `{command}`; its memory may be too small"
            ),
        ),
        Fate::Gone => failure(
            FailureKind::VmLost,
            format!(
                "the VM ended during the command `{command}`: its process on the host is gone; the guest went down, or the host ended it \
                 (out of memory, say)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_how_a_guest_ended_and_else_the_command_does() {
        assert_eq!(fate("[ 9.1] reboot: Restarting system\r\n", "make"), Fate::Restarted);
        assert_eq!(fate("[ 9.1] reboot: Power down", "make"), Fate::WentOff);
        assert_eq!(fate("Kernel panic - not syncing", "reboot"), Fate::Panicked);
        assert_eq!(fate("", "sleep 1; /sbin/reboot -f"), Fate::Restarted);
        assert_eq!(fate("", "systemctl poweroff"), Fate::WentOff);
        assert_eq!(fate("", "shutdown -r now"), Fate::Restarted);
        assert_eq!(fate("", "make reboot-test"), Fate::Gone);
    }
}
