//! The result of a command, as a client gets it: its output, and how it ended, also when its agent can no longer say it.

use std::time::Duration;

use axum::body::Bytes;
use hearth_api::exec::ExecExit;
use hearth_api::ids::VmId;
use hearth_core::time::millis;
use hearth_guest::client::{AgentError, ExecEvent};
use hearth_guest::{EXIT_NOT_FOUND, EXIT_NOT_RUN, ExecEnd, ExecSpec};
use tokio::time::Instant;

use super::AppState;
use crate::store::InstanceRow;
use crate::vms::connections::Connections;
use crate::vms::lost::{self, Became, Given};

/// How long an agent whose connection was lost has to be there again: it is restarted, or its VM is, which takes an emulated one long.
pub const RETURN_PATIENCE: Duration = Duration::from_secs(60);

/// A command that was given to an agent.
pub struct StartedExec {
    connections: Connections,
    vm: VmId,
    given: Given,
    timeout_ms: Option<u64>,
}

/// One thing that came of a command.
pub enum Heard {
    Stdout(Bytes),
    Stderr(Bytes),
    /// How it ended; nothing follows.
    Exit(ExecExit),
}

impl StartedExec {
    /// It begins now.
    pub async fn now(state: &AppState, row: &InstanceRow, spec: &ExecSpec) -> Self {
        Self {
            connections: state.connections.clone(),
            vm: row.vm.clone(),
            given: Given {
                at: Instant::now(),
                boot: state.connections.known_boot(&row.vm).await,
                text: spec.argv.as_ref().map(|words| words.join(" ")).unwrap_or_default(),
            },
            timeout_ms: spec.timeout_ms,
        }
    }

    /// What the agent's stream said means this.
    pub async fn heard(&self, event: Option<Result<ExecEvent, AgentError>>) -> Heard {
        match event {
            Some(Ok(ExecEvent::Stdout(bytes))) => Heard::Stdout(bytes),
            Some(Ok(ExecEvent::Stderr(bytes))) => Heard::Stderr(bytes),
            Some(Ok(ExecEvent::End(end))) => Heard::Exit(to_exit(&end, self.timeout_ms)),
            Some(Err(error)) => Heard::Exit(self.lost(&error).await),
            None => {
                // Such a stream always has an end.
                let error = "the output ended without saying how the command did".to_owned();
                Heard::Exit(self.lost(&AgentError::Protocol(error)).await)
            }
        }
    }

    /// The agent broke off, or says nothing though the command's time is up. In the first case the agent that answers in the VM now is
    /// asked, so that the client learns what happened; how the command itself ended is not known.
    pub async fn lost(&self, error: &AgentError) -> ExecExit {
        let duration_ms = millis(self.given.at.elapsed());
        if let AgentError::Overdue { limit } = error {
            tracing::warn!(vm = %self.vm, %error, "an agent did not end a command in time");
            let message = match self.connections.is_paused(&self.vm).await {
                true => paused(*limit),
                false => unconfirmed(*limit),
            };
            return ExecExit {
                timed_out: true,
                error: Some(message),
                duration_ms,
                ..ExecExit::default()
            };
        }
        tracing::info!(vm = %self.vm, %error, "an agent was lost while a command ran");
        let became = self.connections.find_out(&self.vm, &self.given, RETURN_PATIENCE).await;
        ExecExit {
            error: Some(what_happened(became)),
            duration_ms,
            ..ExecExit::default()
        }
    }
}

fn paused(limit: Duration) -> String {
    format!(
        "the command's time was up after {} s, while the VM was paused: the command is ended with everything it had started when \
         the VM is resumed",
        limit.as_secs_f64()
    )
}

fn unconfirmed(limit: Duration) -> String {
    format!(
        "the command's time was up after {} s; the agent in the VM is asked to end it with everything it had started, and has not \
         confirmed that: the VM is very busy, or hangs. Some of it may still run; look with `ps` before it is run again",
        limit.as_secs_f64()
    )
}

/// What that means for a command, or a session.
pub fn what_happened(became: Became) -> String {
    let message = match became {
        Became::Restarted => {
            "the VM was restarted while the command ran, and that ended the command; what it had written to the disk may be \
             incomplete"
        }
        Became::WentOff => {
            "the VM was shut down while the command ran, and that ended the command. Nothing brings its work back by itself: release \
             the VM"
        }
        Became::Panicked(line) => {
            return format!(
                "the guest's kernel panicked while the command ran, and that ended the command and everything else in the VM; its console \
                 says \"{line}\". A VM that answers again has restarted, and what was written to the disk last may be incomplete; if the \
                 kernel ran out of memory, give the project's VMs more with a larger `vmSize`"
            );
        }
        Became::Saved => {
            "the VM was paused to the disk while the command ran: the command is ended when the VM is resumed. Detached \
             sessions (`hearth exec --detach`) continue then"
        }
        Became::AgentDied => {
            "the agent in the VM died while the command ran, and was started again: whether the command has ended, was killed too or \
             still runs is not known. `kill -9 -1` does this, and so can a VM without free memory; check what the command did \
             before it is run again"
        }
        Became::ConnectionLost => {
            "the connection to the agent in the VM was lost while the command ran; the agent has ended the command with \
             everything that it had started"
        }
        Became::Gone => {
            "the VM has ended while the command ran, and the command with it: its process on the host is gone, since the VM was removed, \
             its guest went down, or the host ended it"
        }
        Became::Silent(None) => {
            "the connection to the agent in the VM was lost while the command ran, and there is none to it now, though the VM runs: it \
             hangs, or is starting again; it is not known how the command ended"
        }
        Became::Silent(Some(why)) => {
            return format!(
                "{why}; it is not known how the command ended. Its work does not come back by itself: release the VM, or try again later"
            );
        }
    };
    message.to_owned()
}

/// The agent's result as clients get it.
pub fn to_exit(end: &ExecEnd, timeout_ms: Option<u64>) -> ExecExit {
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
            error: out_of_memory.as_deref().map(lost::out_of_memory),
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

/// Connections before protocol 6, which live in VMs that were made before, say the sentence alone.
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

    #[test]
    fn a_client_is_told_what_happened() {
        let told = what_happened;
        assert!(told(Became::Restarted).contains("the VM was restarted"));
        assert!(told(Became::AgentDied).contains("the agent in the VM died"));
        assert!(told(Became::ConnectionLost).contains("the agent has ended the command"));
        assert!(told(Became::WentOff).contains("shut down"));
        let panicked = told(Became::Panicked("Kernel panic - x".to_owned()));
        assert!(panicked.contains("kernel panicked") && panicked.contains("\"Kernel panic - x\""));
        assert!(told(Became::Gone).contains("removed"));
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
