//! How a command ended, as a client is told: also when its agent can no longer say it.

use std::time::{Duration, Instant};

use hearth_api::exec::ExecExit;
use hearth_api::ids::VmId;
use hearth_guest::client::AgentError;
use hearth_guest::{EXIT_NOT_FOUND, EXIT_NOT_RUN, ExecEnd, ExecSpec, Health};

use super::AppState;
use crate::provision::agents::{Agents, ConnectError};
use crate::store::InstanceRow;

/// How long an agent whose connection was lost has to be there again: it is restarted, or its VM is.
const RETURN_PATIENCE: Duration = Duration::from_secs(15);

/// A command that was given to an agent.
#[derive(Debug, Clone)]
pub struct Begun {
    agents: Agents,
    vm: VmId,
    at: Instant,
    timeout_ms: Option<u64>,
}

impl Begun {
    /// It begins now.
    pub fn now(state: &AppState, row: &InstanceRow, spec: &ExecSpec) -> Self {
        Self {
            agents: state.reconciler.context().agents.clone(),
            vm: row.vm.clone(),
            at: Instant::now(),
            timeout_ms: spec.timeout_ms,
        }
    }

    /// What the agent said of its end.
    pub fn exit(&self, end: &ExecEnd) -> ExecExit {
        to_exit(end, self.timeout_ms)
    }

    /// The agent broke off. Whoever answers in the VM now is asked, so that the client learns what happened; how the command itself
    /// ended nobody can say.
    pub async fn lost(&self, error: &AgentError) -> ExecExit {
        let elapsed = self.at.elapsed();
        tracing::info!(vm = %self.vm, %error, "an agent was lost while a command ran");
        if let Some(why) = self.agents.given_up(&self.vm) {
            return ExecExit {
                error: Some(format!(
                    "{why}; how the command ended nobody knows. Nothing brings its work back by itself: release the VM, or look again later"
                )),
                duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                ..ExecExit::default()
            };
        }
        let answer = self.agents.get(&self.vm, RETURN_PATIENCE).await;
        let health = match answer {
            Ok(agent) => match tokio::time::timeout(RETURN_PATIENCE, agent.health()).await {
                Ok(health) => health.map_err(ConnectError::from),
                Err(_) => Err(AgentError::NoAnswer.into()),
            },
            Err(error) => Err(error),
        };
        ExecExit {
            error: Some(what_happened(health, self.at.elapsed())),
            duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            ..ExecExit::default()
        }
    }
}

/// What it means that an agent broke off `since` a command was given to it, by who answers now.
fn what_happened(health: Result<Health, ConnectError>, since: Duration) -> String {
    let began_later = |ms: u64| Duration::from_millis(ms) < since;
    match health {
        Err(error) => format!(
            "the connection to the agent in the VM was lost while the command ran, and there is none to it now ({error}): the VM was \
             shut down or removed, or it hangs; the command has ended with it, or nobody knows how it ended"
        ),
        Ok(health) if began_later(health.uptime_ms) => {
            "the VM was restarted while the command ran, and that ended the command; what it had written to the disk may be \
             incomplete"
                .to_owned()
        }
        Ok(health) if health.agent_uptime_ms.is_some_and(began_later) => {
            "the agent in the VM died while the command ran, and was started again: whether the command has ended, was killed too or \
             still runs is not known. `kill -9 -1` does this, and so can a VM without free memory; look at what the command did \
             before it is run again"
                .to_owned()
        }
        Ok(_) => "the connection to the agent in the VM was lost while the command ran; the agent has ended the command with \
                  everything that it had started"
            .to_owned(),
    }
}

fn to_exit(end: &ExecEnd, timeout_ms: Option<u64>) -> ExecExit {
    let exit = |code: Option<i32>, signal: Option<i32>, duration_ms| ExecExit {
        exit_code: code,
        signal: signal.map(signal_name),
        duration_ms,
        ..ExecExit::default()
    };
    match end {
        ExecEnd::Exited {
            code,
            signal,
            duration_ms,
            log,
            out_of_memory,
        } => ExecExit {
            log: log.clone(),
            oom_killed: out_of_memory.is_some(),
            error: out_of_memory.as_ref().map(|whom| {
                format!(
                    "the VM had no memory left, so its kernel killed {whom} while the command ran; let it use less, or give the \
                     project's VMs more with a larger `vmSize`"
                )
            }),
            ..exit(*code, *signal, *duration_ms)
        },
        ExecEnd::TimedOut {
            code,
            signal,
            duration_ms,
        } => {
            let limit = Duration::from_millis(timeout_ms.unwrap_or(*duration_ms));
            ExecExit {
                timed_out: true,
                error: Some(format!(
                    "the command's time was up after {} s: it was ended with everything it had started",
                    limit.as_secs()
                )),
                ..exit(*code, *signal, *duration_ms)
            }
        }
        ExecEnd::NotStarted { reason, code } => ExecExit {
            error: Some(reason.clone()),
            ..exit(code.or_else(|| code_of_old_agent(reason)), None, 0)
        },
        // Only asked for by the provisioner.
        ExecEnd::Detached { .. } => ExecExit {
            error: Some("the command was detached".to_owned()),
            ..ExecExit::default()
        },
    }
}

/// Agents before protocol 6, which live in VMs that were made before, say the sentence alone.
fn code_of_old_agent(reason: &str) -> Option<i32> {
    let of_the_command = ["the program ", "the working directory ", "there is no user "];
    if reason.starts_with("the program ") && reason.ends_with(" was not found") {
        return Some(EXIT_NOT_FOUND);
    }
    let is = of_the_command.iter().any(|start| reason.starts_with(start));
    is.then_some(EXIT_NOT_RUN)
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(uptime_ms: u64, agent_uptime_ms: Option<u64>) -> Result<Health, ConnectError> {
        Ok(Health {
            version: "1".to_owned(),
            protocol: 6,
            boot_id: "b".to_owned(),
            uptime_ms,
            agent_uptime_ms,
        })
    }

    #[test]
    fn whoever_answers_now_tells_what_happened() {
        let told = |health| what_happened(health, Duration::from_secs(60));
        assert!(told(health(5_000, Some(4_000))).contains("the VM was restarted"));
        assert!(told(health(900_000, Some(4_000))).contains("the agent in the VM died"));
        assert!(told(health(900_000, Some(800_000))).contains("the agent has ended the command"));
        assert!(told(health(900_000, None)).contains("the agent has ended the command"));
        assert!(told(Err(AgentError::NoAnswer.into())).contains("shut down or removed"));
    }

    #[test]
    fn what_old_agents_say_has_the_codes_of_a_shell() {
        let code = |reason: &str| {
            let end = ExecEnd::NotStarted {
                reason: reason.to_owned(),
                code: None,
            };
            to_exit(&end, None).exit_code
        };
        assert_eq!(code("the program x was not found"), Some(127));
        assert_eq!(code("the program x may not be run"), Some(126));
        assert_eq!(code("the working directory /x does not exist"), Some(126));
        assert_eq!(code("no cgroup of its own: full"), None);
    }
}
