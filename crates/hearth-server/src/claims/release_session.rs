//! Claims that end with a session: the VM is released when that session's first process has ended, whether or not the client that started it is
//! still there. What is to happen stands in the claim's row before the session begins, so a server that starts again watches on.

use std::borrow::Cow;
use std::time::Duration;

use hearth_api::ids::InstanceId;
use hearth_core::state::InstanceState;
use hearth_drivers::VmState;
use hearth_guest::ExecEnd;
use hearth_guest::client::AgentError;
use jiff::Timestamp;

use super::Claims;
use crate::store::{InstanceRow, Moved, StoreError};

/// How long one question to the VM's agent waits for the end.
const QUESTION: Duration = Duration::from_secs(60);
/// How long the agent has to take the connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the host has to say what became of the VM.
const HOST_CHECK: Duration = Duration::from_secs(5);
/// Between two questions where there is no answer, or the VM is paused.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of the session, as far as it is known.
enum SessionState {
    /// It runs, or nothing is known.
    Running,
    /// It has ended, for this reason.
    Ended(Cow<'static, str>),
}

impl SessionState {
    fn ended(why: &'static str) -> Self {
        Self::Ended(why.into())
    }

    /// The first process has ended in this way. A worker that could not begin shows here, since nobody waits for it.
    fn ended_by_itself(end: Option<&ExecEnd>) -> Self {
        const ENDED: &str = "the session that releases it ended";
        Self::Ended(match end {
            Some(ExecEnd::Exited { code: Some(0), .. }) | None => ENDED.into(),
            Some(ExecEnd::Exited { code: Some(code), .. }) => format!("{ENDED} with exit code {code}").into(),
            Some(ExecEnd::Exited {
                signal: Some(signal), ..
            }) => format!("{ENDED} by signal {signal}").into(),
            Some(ExecEnd::TimedOut { .. }) => format!("{ENDED} at its time limit").into(),
            Some(_) => ENDED.into(),
        })
    }
}

impl Claims {
    /// Notes that the end of this session releases the VM. Whether that is new.
    pub async fn note_release_session(&self, row: &InstanceRow, session: &str) -> Result<bool, StoreError> {
        self.store.set_release_session(&row.id, session).await
    }

    /// The session whose end releases the VM.
    pub async fn release_session(&self, row: &InstanceRow) -> Result<Option<String>, StoreError> {
        self.store.release_session(&row.id).await
    }

    /// The session was not started, and releases nothing.
    pub async fn forget_release_session(&self, row: &InstanceRow) -> Result<(), StoreError> {
        self.store.forget_release_session(&row.id).await
    }

    /// Releases a claimed VM; whether it was claimed until now.
    pub async fn release(&self, row: &InstanceRow, why: &str) -> Result<bool, StoreError> {
        let moved = self
            .store
            .move_instance(
                &row.id,
                InstanceState::Deleting,
                Some(row.generation),
                why,
                Timestamp::now(),
            )
            .await?;
        self.wake.wake();
        Ok(moved != Moved::Lost)
    }

    /// At start: watches every session whose end releases a VM.
    pub async fn watch_release_sessions(&self) {
        match self.store.release_sessions().await {
            Ok(all) => all.into_iter().for_each(|id| self.watch_release_session(id)),
            Err(error) => tracing::error!(%error, "which sessions release their VM could not be read"),
        }
    }

    /// Watches a session that releases its VM, in a task of its own.
    pub fn watch_release_session(&self, id: InstanceId) {
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                match this.check_release_session(&id).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(%error, instance = %id, "a session that releases its VM could not be watched; it is tried again")
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Waits for a while for the session's end, and releases the VM then. Whether it is to be watched on.
    async fn check_release_session(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let row = self.store.instance(id).await?;
        let Some(row) = row.filter(|row| row.state == InstanceState::Claimed) else {
            return Ok(false);
        };
        let Some(session) = self.store.release_session(id).await? else {
            return Ok(false);
        };
        // A paused VM ends nothing, and is not resumed for this.
        if row.vm_ended.is_none() && self.pause.is_paused(&row.vm).await {
            return Ok(true);
        }
        let seen = match row.vm_ended {
            Some(_) => SessionState::ended("its VM ended, and with it the session that releases it"),
            None => self.session_of(&row, &session).await,
        };
        let SessionState::Ended(why) = seen else {
            return Ok(true);
        };
        if self.release(&row, &why).await? {
            tracing::info!(instance = %id, session, %why, "released with its session");
            return Ok(false);
        }
        // Its row has changed meanwhile.
        Ok(true)
    }

    async fn session_of(&self, row: &InstanceRow, session: &str) -> SessionState {
        // It works without a call from outside: it is not paused for being idle.
        let _call = self.pause.begin_call(&row.vm);
        let asked = async {
            let agent = self.connections.get(&row.vm, CONNECT_PATIENCE).await.ok()?;
            Some(agent.wait_session(session, QUESTION).await)
        };
        match asked.await {
            Some(Ok(info)) if !info.runs() => SessionState::ended_by_itself(info.end.as_ref()),
            // The agent is another one: what it had is gone.
            Some(Err(AgentError::Refused { status: 404, .. })) => {
                SessionState::ended("the session that releases it is gone, with the agent that had it")
            }
            Some(Ok(_)) => SessionState::Running,
            Some(Err(_)) | None => {
                let seen = tokio::time::timeout(HOST_CHECK, self.driver.inspect(&row.vm)).await;
                match seen {
                    Ok(Ok(Some(VmState::Stopped) | None)) => {
                        SessionState::ended("its VM ended, and with it the session that releases it")
                    }
                    _ => SessionState::Running,
                }
            }
        }
    }
}
