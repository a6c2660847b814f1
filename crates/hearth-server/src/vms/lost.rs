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
/// Pause between two checks.
const PAUSE: Duration = Duration::from_millis(200);
/// How much of the console tells how the guest ended, bytes: a kernel that boots after a panic writes some 50 KiB.
const CONSOLE_TAIL: u64 = 256 * 1024;
/// The longest line of a console that is quoted, characters.
const LONGEST_QUOTE: usize = 200;
/// The beginning of a boot on the console.
const BOOT: &str = "Linux version ";
/// What a kernel says when it gives up.
const PANIC: &str = "Kernel panic";

/// What became of a VM whose agent was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// Its guest has restarted.
    Restarted,
    /// Its guest has turned it off.
    WentOff,
    /// The kernel of its guest has panicked, and said this; where the VM runs, the guest has restarted by that.
    Panicked(String),
    /// Another agent answers in the same boot.
    AgentDied,
    /// The same agent answers: it has ended what ran for the connection.
    ConnectionLost,
    /// It was paused to the disk.
    Saved,
    /// Its process is gone, and the reason is not known.
    Gone,
    /// It runs and does not answer: why, where that was looked into.
    Silent(Option<String>),
}

/// A command that was given to the agent.
#[derive(Debug, Clone)]
pub struct Given {
    pub at: Instant,
    /// The boot that the guest was in, where that is known.
    pub boot: Option<String>,
    /// What it runs, for a VM that ends without a word.
    pub text: String,
}

/// What is said of a command during which the kernel killed for memory: whom, as the agent names it.
pub fn out_of_memory(whom: &str) -> String {
    format!(
        "the VM had no memory left, so its kernel killed {whom} while the command ran; let it use less, or give the project's VMs more \
         with a larger `vmSize`"
    )
}

impl Connections {
    /// Finds out which agent answers in the VM now, and if none does, why.
    pub async fn find_out(&self, vm: &VmId, given: &Given, patience: Duration) -> Became {
        // The connection was broken off because the guest hangs: that was looked into.
        if let Some(why) = self.given_up(vm) {
            return Became::Silent(Some(why.into()));
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.driver.inspect(vm).await {
                Ok(None | Some(VmState::Stopped)) => {
                    return fate(&self.read_console(vm).await, &given.text);
                }
                Ok(Some(VmState::Saved)) => return Became::Saved,
                Ok(Some(_)) => {
                    if let Ok(agent) = self.get(vm, CONNECT_TRY).await
                        && let Ok(Ok(health)) = timeout_at(deadline, agent.health()).await
                    {
                        return match who_answers(&health, given.boot.as_deref(), given.at.elapsed()) {
                            Became::Restarted => why_restarted(&self.read_console(vm).await),
                            other => other,
                        };
                    }
                }
                Err(error) => tracing::debug!(%error, %vm, "the driver does not say what became of a VM"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Became::Silent(None)
    }

    /// How a VM ended whose process is gone, and nobody knows what ran in it then: the end of a sentence.
    pub async fn how_it_ended(&self, vm: &VmId) -> String {
        match fate(&self.read_console(vm).await, "") {
            Became::Panicked(line) => format!("the guest's kernel panicked (\"{line}\")"),
            Became::WentOff => "its guest turned it off".to_owned(),
            _ => {
                "its process on the host is gone, and its guest said nothing: it was killed, or the host ended it (out of memory, say)"
                    .to_owned()
            }
        }
    }

    async fn read_console(&self, vm: &VmId) -> String {
        let console = tokio::time::timeout(CONNECT_TRY, self.driver.console(vm, CONSOLE_TAIL)).await;
        let console = console.ok().and_then(Result::ok).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }
}

/// What a kernel said when it panicked, where this boot's console has that.
fn panic_of(boot: &str) -> Option<String> {
    let line = boot.lines().find_map(|line| line.find(PANIC).map(|at| &line[at..]))?;
    let printable = line.chars().filter(|c| !c.is_control());
    Some(printable.take(LONGEST_QUOTE).collect::<String>().trim().to_owned())
}

/// A guest runs again: how the boot before this one ended.
fn why_restarted(console: &str) -> Became {
    let before = console.rfind(BOOT).map_or("", |now| &console[..now]);
    let before = before.rfind(BOOT).map_or(before, |began| &before[began..]);
    panic_of(before).map_or(Became::Restarted, Became::Panicked)
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

/// How the last boot ended, of a VM whose process is gone.
fn fate(console: &str, text: &str) -> Became {
    let boot = console.rfind(BOOT).map_or(console, |began| &console[began..]);
    let says = |words: &[&str]| words.iter().any(|word| boot.contains(word));
    let runs = |words: &[&str]| {
        let is_word = |c: char| !(c.is_alphanumeric() || "-_./".contains(c));
        text.split(is_word)
            .any(|word| words.contains(&word.rsplit('/').next().unwrap_or_default()))
    };
    if let Some(line) = panic_of(boot) {
        Became::Panicked(line)
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
        let panicked = |line: &str| Became::Panicked(line.to_owned());
        assert_eq!(
            fate("[ 9.1] Kernel panic - not syncing: x\r\n[ 9.2] CPU: 0\r\n", "reboot"),
            panicked("Kernel panic - not syncing: x")
        );
        // Of an earlier boot.
        let earlier = "[ 9.1] Kernel panic - not syncing\n[ 0.0] Linux version 6.1\n";
        assert_eq!(fate(earlier, "make"), Became::Gone);
        assert_eq!(fate("", "sleep 1; /sbin/reboot -f"), Became::Restarted);
        assert_eq!(fate("", "systemctl poweroff"), Became::WentOff);
        assert_eq!(fate("", "shutdown -r now"), Became::Restarted);
        assert_eq!(fate("", "make reboot-test"), Became::Gone);
    }

    #[test]
    fn a_restart_is_a_panic_when_the_boot_before_it_ended_so() {
        let boot = "[ 0.0] Linux version 6.1\r\n[ 1.0] Run /init\r\n";
        let panic = "[ 9.1] Kernel panic - not syncing: sysrq triggered crash\r\n[ 9.2] Rebooting\r\n";
        let reboot = "[ 9.1] reboot: Restarting system\r\n";
        let panicked = Became::Panicked("Kernel panic - not syncing: sysrq triggered crash".to_owned());
        assert_eq!(why_restarted(&[boot, panic, boot].concat()), panicked);
        // A fork's console begins in the middle of a boot.
        assert_eq!(why_restarted(&[panic, boot].concat()), panicked);
        assert_eq!(
            why_restarted(&[boot, panic, boot, reboot, boot].concat()),
            Became::Restarted
        );
        assert_eq!(why_restarted(&[reboot, boot].concat()), Became::Restarted);
        assert_eq!(why_restarted(panic), Became::Restarted);
    }

    #[test]
    fn answering_agent_tells_what_happened() {
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
