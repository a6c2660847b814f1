//! The connection to an agent was lost while a command ran: what became of the VM, and whether the command itself did it. One
//! answer for set-up commands and for what is run in a VM later; each has its own sentences.

use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::VmState;
use hearth_guest::Health;
use tokio::time::{Instant, timeout_at};

use super::connections::Connections;

/// How long one try to reach the agent takes.
const CONNECT_TRY: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How much of the console tells how the guest ended, bytes.
const CONSOLE_TAIL: u64 = 2000;

/// What became of a VM whose agent was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// Its guest has restarted.
    Restarted,
    /// Its guest has turned it off.
    WentOff,
    /// The kernel of its guest has stopped.
    Panicked,
    /// Another agent answers in the same boot.
    AgentDied,
    /// The same agent answers: it has ended what ran for the connection.
    ConnectionLost,
    /// Its process is gone, and the reason is not known.
    Gone,
    /// It runs and does not answer: why, where that was looked into.
    Silent(Option<String>),
}

/// A command that was given to the agent.
#[derive(Debug, Clone)]
pub struct Given {
    /// When.
    pub at: Instant,
    /// The boot that the guest was in, where that is known.
    pub boot: Option<String>,
    /// What it runs, for a VM that ends without a word.
    pub text: String,
}

impl Connections {
    /// Finds out which agent answers in the VM now, and if none does, why.
    pub async fn find_out(&self, vm: &VmId, given: &Given, patience: Duration) -> Became {
        // The connection was broken off because the guest hangs: that was looked into.
        if let Some(why) = self.given_up(vm) {
            return Became::Silent(Some(why));
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.driver.inspect(vm).await {
                Ok(None | Some(VmState::Stopped)) => {
                    let console = self.driver.console(vm, CONSOLE_TAIL).await.unwrap_or_default();
                    return fate(&String::from_utf8_lossy(&console), &given.text);
                }
                Ok(Some(_)) => {
                    if let Ok(agent) = self.get(vm, CONNECT_TRY).await
                        && let Ok(Ok(health)) = timeout_at(deadline, agent.health()).await
                    {
                        return who_answers(&health, given.boot.as_deref(), given.at.elapsed());
                    }
                }
                Err(error) => tracing::debug!(%error, %vm, "the driver does not say what became of a VM"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Became::Silent(None)
    }
}

/// What it means who answers, `since` a command was given in this boot.
fn who_answers(health: &Health, boot: Option<&str>, since: Duration) -> Became {
    let began_later = |ms: u64| Duration::from_millis(ms) < since;
    if boot.map_or_else(|| began_later(health.uptime_ms), |before| before != health.boot_id) {
        Became::Restarted
    } else if health.agent_uptime_ms.is_some_and(began_later) {
        Became::AgentDied
    } else {
        Became::ConnectionLost
    }
}

fn fate(console: &str, text: &str) -> Became {
    let says = |words: &[&str]| words.iter().any(|word| console.contains(word));
    let runs = |words: &[&str]| {
        let is_word = |c: char| !(c.is_alphanumeric() || "-_./".contains(c));
        text.split(is_word)
            .any(|word| words.contains(&word.rsplit('/').next().unwrap_or_default()))
    };
    if says(&["Kernel panic"]) {
        Became::Panicked
    } else if says(&["Restarting system", "reboot: Restarting"]) {
        Became::Restarted
    } else if says(&["reboot: Power down", "Power off", "System halted"]) {
        Became::WentOff
    } else if runs(&["reboot", "kexec"]) || text.contains("shutdown -r") || text.contains("init 6") {
        Became::Restarted
    } else if runs(&["poweroff", "halt", "shutdown"]) || text.contains("init 0") {
        Became::WentOff
    } else {
        Became::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_how_a_guest_ended_and_else_the_command_does() {
        assert_eq!(fate("[ 9.1] reboot: Restarting system\r\n", "make"), Became::Restarted);
        assert_eq!(fate("[ 9.1] reboot: Power down", "make"), Became::WentOff);
        assert_eq!(fate("Kernel panic - not syncing", "reboot"), Became::Panicked);
        assert_eq!(fate("", "sleep 1; /sbin/reboot -f"), Became::Restarted);
        assert_eq!(fate("", "systemctl poweroff"), Became::WentOff);
        assert_eq!(fate("", "shutdown -r now"), Became::Restarted);
        assert_eq!(fate("", "make reboot-test"), Became::Gone);
    }

    #[test]
    fn whoever_answers_now_tells_what_happened() {
        let health = |uptime_ms: u64, agent_uptime_ms: Option<u64>| Health {
            version: "1".to_owned(),
            protocol: 6,
            boot_id: "b".to_owned(),
            uptime_ms,
            agent_uptime_ms,
        };
        let told = |health: Health, boot| who_answers(&health, boot, Duration::from_secs(60));
        assert_eq!(told(health(5_000, Some(4_000)), None), Became::Restarted);
        assert_eq!(told(health(900_000, Some(4_000)), Some("a")), Became::Restarted);
        // A guest that says how long it runs by a clock that was wrong.
        assert_eq!(told(health(5_000, Some(4_000)), Some("b")), Became::AgentDied);
        assert_eq!(told(health(900_000, Some(4_000)), None), Became::AgentDied);
        assert_eq!(told(health(900_000, Some(800_000)), Some("b")), Became::ConnectionLost);
        assert_eq!(told(health(900_000, None), None), Became::ConnectionLost);
    }
}
