//! An instance fails or changes: its row says so, and claims and clients that wait are notified.

use async_trait::async_trait;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::InstanceStatus;
use hearth_core::world::Failure;
use jiff::Timestamp;

use crate::builds::live_log::LiveLogs;
use crate::claims::Queues;
use crate::store::{End, InstanceRow, Moved, Store, StoreError};
use crate::vms::connections::Connections;
use crate::vms::probe::GiveUp;
use crate::wake::Wake;

/// Writes that instances failed, and tells those who wait. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Endings {
    /// The rows.
    pub store: Store,
    /// Connections to the agents.
    pub connections: Connections,
    /// The clients that watch boots.
    pub live_logs: LiveLogs,
    /// The claims that wait.
    pub queues: Queues,
    /// Wakes the loop.
    pub wake: Wake,
}

impl Endings {
    /// An instance changed: the claims that it concerns check again, and the loop.
    pub fn changed(&self, project: &ProjectId, instance: &InstanceId) {
        self.queues.notify(project, instance);
        self.wake.wake();
    }
}

#[async_trait]
impl GiveUp for Endings {
    async fn give_up(&self, row: &InstanceRow, failure: &Failure) -> Result<(), StoreError> {
        let (end, now) = (End::Failed(failure), Timestamp::now());
        let moved = self.store.end_instance(&row.id, Some(row.generation), end, now).await?;
        if moved != Moved::Lost {
            tracing::warn!(instance = %row.id, project = %row.project, reason = failure.reason.as_str(), "an instance failed");
            self.connections.forget(&row.vm);
            let reason = Some(failure.reason.clone());
            self.live_logs.ended(&row.id, Some(InstanceStatus::Failed), reason);
            self.changed(&row.project, &row.id);
        }
        Ok(())
    }
}
