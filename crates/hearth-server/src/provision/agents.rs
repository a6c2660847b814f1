//! One connection to each VM's agent, made when it is first needed, shared by everybody, made anew when it is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_api::agent::client::{AgentClient, AgentError};
use hearth_api::ids::VmId;
use hearth_drivers::{Driver, DriverError};
use tokio::time::Instant;

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

type Slot = Arc<tokio::sync::Mutex<Option<AgentClient>>>;

/// The connections.
#[derive(Debug, Clone)]
pub struct Agents {
    driver: Arc<dyn Driver>,
    slots: Arc<Mutex<HashMap<VmId, Slot>>>,
}

impl Agents {
    /// None yet.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            driver,
            slots: Arc::default(),
        }
    }

    /// The connection to a VM's agent, waiting up to `patience` for it to answer.
    pub async fn get(&self, vm: &VmId, patience: Duration) -> Result<AgentClient, ConnectError> {
        let deadline = Instant::now() + patience;
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(vm.clone()).or_default().clone()
        };
        // Only one connects; the others wait for its result.
        let mut slot = tokio::time::timeout_at(deadline, slot.lock())
            .await
            .map_err(|_| AgentError::NoAnswer)?;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let stream = self.driver.connect(vm).await?;
        let client = AgentClient::connect(stream, deadline).await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// The VM is gone or going.
    pub fn forget(&self, vm: &VmId) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(vm);
    }
}
