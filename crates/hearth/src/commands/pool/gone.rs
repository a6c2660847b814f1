//! VMs that are gone whose records stay: the documented list shows how their boots ended, and not that there is no VM any more.

use futures::future::join_all;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_api::instance::{InstanceItem, InstanceStatus};
use jiff::Timestamp;

use crate::output;
use crate::text::clean_line;

/// A VM that is gone.
#[derive(Debug, Clone)]
pub(super) struct Gone {
    id: InstanceId,
    at: Timestamp,
    why: String,
}

impl Gone {
    /// `VM gone since 3 h ago: why`.
    pub(super) fn text(&self) -> String {
        clean_line(&format!("VM ended {}: {}", output::ago(self.at), self.why))
    }
}

/// Those among these instances: test boots and failures, whose records outlive their VMs.
pub(super) async fn of(client: &Client, items: &[InstanceItem]) -> Vec<Gone> {
    let outlives = |item: &&InstanceItem| match item.status {
        InstanceStatus::Failed => true,
        InstanceStatus::Ready => item.is_test,
        InstanceStatus::Provisioning | InstanceStatus::Claimed => false,
    };
    let looks = items.iter().filter(outlives).map(|item| of_one(client, &item.id));
    join_all(looks).await.into_iter().flatten().collect()
}

/// Whether this one's VM is gone; a server that does not say says nothing.
pub(super) async fn of_one(client: &Client, id: &InstanceId) -> Option<Gone> {
    let view = client.view_instance(id).await.ok()?;
    Some(Gone {
        id: view.id,
        at: view.vm_ended_at?,
        why: view.vm_ended_because.unwrap_or_default(),
    })
}

/// The one of this instance.
pub(super) fn find<'a>(gone: &'a [Gone], id: &InstanceId) -> Option<&'a Gone> {
    gone.iter().find(|gone| gone.id == *id)
}
