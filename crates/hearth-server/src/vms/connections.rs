//! One connection to each VM's agent, made when it is first needed, shared by all callers, made again when it is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_core::redact::Redacted;
use hearth_drivers::{Driver, DriverError};
use hearth_guest::client::{AgentClient, AgentError};
use tokio::time::Instant;

/// Why a VM that restarted cannot stay in the pool.
pub const RESTARTED: &str = "its guest restarted while it was ready: what the set-up had started does not run any more";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The driver has no stream to it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The agent did not answer on the stream.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// What there is of one VM's agent.
#[derive(Debug, Default)]
struct Connection {
    client: Option<AgentClient>,
    /// The boot of the guest, as it was said over this very connection: a guest that restarts loses it.
    boot: Option<String>,
}

type Slot = Arc<tokio::sync::Mutex<Connection>>;

/// The connections.
#[derive(Debug, Clone)]
pub struct Connections {
    pub(super) driver: Arc<dyn Driver>,
    slots: Arc<Mutex<HashMap<VmId, Slot>>>,
    /// VMs whose connection was broken off because they did not answer, and what to say about it.
    given_up: Arc<Mutex<HashMap<VmId, Redacted>>>,
}

impl Connections {
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            driver,
            slots: Arc::default(),
            given_up: Arc::default(),
        }
    }

    /// The connection to a VM's agent, waiting up to `patience` for it to answer.
    pub async fn get(&self, vm: &VmId, patience: Duration) -> Result<AgentClient, ConnectError> {
        let deadline = Instant::now() + patience;
        let slot = self.slots().entry(vm.clone()).or_default().clone();
        // Only one connects; the others wait for its result.
        let mut slot = tokio::time::timeout_at(deadline, slot.lock())
            .await
            .map_err(|_| AgentError::NoAnswer)?;
        if let Some(client) = slot.client.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let stream = tokio::time::timeout_at(deadline, self.driver.connect(vm)).await;
        let stream = stream.map_err(|_| AgentError::NoAnswer)??;
        let client = AgentClient::connect(stream, deadline).await?;
        *slot = Connection {
            client: Some(client.clone()),
            boot: None,
        };
        self.reasons().remove(vm);
        Ok(client)
    }

    /// The connection that there is now, if there is one and it is not just being made.
    pub fn current(&self, vm: &VmId) -> Option<AgentClient> {
        let slot = self.slots().get(vm).cloned()?;
        let slot = slot.try_lock().ok()?;
        slot.client.clone().filter(|client| !client.is_closed())
    }

    /// Notes the boot that a guest has said it is in.
    pub async fn note_boot(&self, vm: &VmId, boot: &str) {
        let slot = self.slots().get(vm).cloned();
        if let Some(slot) = slot {
            slot.lock().await.boot = Some(boot.to_owned());
        }
    }

    /// The boot that a guest has said it is in, over the connection that there is.
    pub async fn known_boot(&self, vm: &VmId) -> Option<String> {
        let slot = self.slots().get(vm).cloned()?;
        let slot = slot.lock().await;
        slot.boot.clone()
    }

    /// The same; a guest that has not said it yet is asked, over this connection.
    pub async fn boot(&self, vm: &VmId, agent: &AgentClient) -> Result<String, AgentError> {
        let slot = self.slots().entry(vm.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(known) = &slot.boot {
            return Ok(known.clone());
        }
        let boot = agent.health().await?.boot_id;
        slot.boot = Some(boot.clone());
        Ok(boot)
    }

    /// The VM is gone or going.
    pub fn forget(&self, vm: &VmId) {
        self.slots().remove(vm);
        self.reasons().remove(vm);
    }

    /// The next caller makes a new connection.
    pub fn renew(&self, vm: &VmId) {
        self.slots().remove(vm);
    }

    /// Ends every call to a VM that does not answer: each would wait for ever. `why`: the error that they get.
    pub async fn give_up(&self, vm: &VmId, why: Redacted) {
        self.reasons().insert(vm.clone(), why);
        self.renew(vm);
        // There is one stream at a time: a new one ends the one before it.
        if let Err(error) = self.driver.connect(vm).await {
            tracing::debug!(%vm, %error, "the stream to a silent VM could not be replaced");
        }
    }

    /// Whether a VM is paused, as far as the host says it in time: its agent says nothing then.
    pub async fn is_paused(&self, vm: &VmId) -> bool {
        super::pause::paused_in(&*self.driver, vm).await.is_some()
    }

    /// Why the connection to a VM was broken off, when it was and there is none since.
    pub fn given_up(&self, vm: &VmId) -> Option<Redacted> {
        self.reasons().get(vm).cloned()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<VmId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reasons(&self) -> MutexGuard<'_, HashMap<VmId, Redacted>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
