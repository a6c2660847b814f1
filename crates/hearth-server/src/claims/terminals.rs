//! The terminals of the repositories' settings files: after a hand-over they run in the task's VM, each as a session with its name as
//! tag.
//!
//! They are started when the claim has been answered, so no claim waits for them, and not when the VM is set up: processes that were
//! frozen with a template would have the variables and the branch of the pool, and each warm VM would pay for their memory.

use std::time::Duration;

use hearth_api::claim::ClaimReply;
use hearth_api::settings::Terminal;
use hearth_core::scripts::shell_text;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::exec_session::{LONGEST_TAG, SessionSpec, SessionStart, tag_fault};
use hearth_guest::{DEFAULT_TERM, ExecSpec, TerminalSize};

use super::Claims;
use crate::secrets::env_file;
use crate::store::InstanceRow;

/// A task runs something in its VM at once: the terminals wait this long, so that they do not take the processor from that.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the VM's agent has to take the connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Until somebody attaches whose terminal is larger or smaller.
const SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

impl Claims {
    /// Starts them, in a task of its own. Those that run already stay as they are: a claim may be repeated.
    pub(super) fn start_terminals(&self, row: &InstanceRow, reply: &ClaimReply) {
        let specs: Vec<SessionSpec> = row
            .settings
            .iter()
            .flat_map(|read| {
                let path = reply
                    .repos
                    .iter()
                    .find(|repo| repo.repo_full_name == read.repo_full_name);
                let path = path.map(|repo| repo.path.clone());
                let terminals = read.settings.hooks.terminals.iter();
                terminals.map(move |terminal| spec(terminal, path.clone()))
            })
            .collect();
        if specs.is_empty() {
            return;
        }
        let (connections, vm) = (self.connections.clone(), row.vm.clone());
        let call = self.pause.begin_call(&vm);
        tokio::spawn(async move {
            let _until_they_run = call;
            tokio::time::sleep(PAUSE).await;
            let agent = match connections.get(&vm, CONNECT_PATIENCE).await {
                Ok(agent) => agent,
                // It was released already, say: `hearth claim --exec` keeps a VM for a moment.
                Err(error) => return tracing::info!(%vm, %error, "the terminals of a VM could not be started"),
            };
            for spec in specs {
                start(&agent, &spec).await;
            }
        });
    }
}

async fn start(agent: &AgentClient, spec: &SessionSpec) {
    let tag = spec.tag.as_deref().unwrap_or_default();
    match agent.start_session(spec).await {
        Ok(SessionStart::Started(_)) => {}
        Ok(SessionStart::NotStarted { reason, .. }) => tracing::warn!(tag, reason, "a terminal could not be started"),
        // It runs already, or the agent is older than sessions.
        Err(AgentError::Refused { message, .. }) => tracing::debug!(tag, message, "a terminal was not started"),
        Err(error) => tracing::info!(tag, %error, "a terminal could not be started"),
    }
}

fn spec(terminal: &Terminal, path: Option<String>) -> SessionSpec {
    SessionSpec {
        command: ExecSpec {
            argv: Some(vec!["bash".to_owned(), "-c".to_owned(), shell_text(&terminal.command)]),
            cwd: Some(path.unwrap_or_else(|| "/home".to_owned())),
            env: vec![("TERM".to_owned(), DEFAULT_TERM.to_owned())],
            env_file: Some(env_file::PATH.to_owned()),
            ..ExecSpec::default()
        },
        tag: Some(tag(&terminal.name)),
        terminal: Some(SIZE),
        stdin: false,
        read_only: terminal.readonly,
    }
}

/// Any name of the settings file can be a session's tag, with a word before it where it would be taken for something else.
fn tag(name: &str) -> String {
    let short = |text: &str| text.chars().take(LONGEST_TAG).collect::<String>();
    match tag_fault(&short(name)) {
        None => short(name),
        Some(_) => short(&format!("terminal {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_becomes_a_tag() {
        assert_eq!(tag("Dev server"), "Dev server");
        assert_eq!(tag("8080"), "terminal 8080");
        assert_eq!(tag("s-x"), "terminal s-x");
        assert_eq!(tag_fault(&tag(&"ä".repeat(200))), None);
    }
}
