//! What the documented list does not say of records that outlive their VMs: when and why the VM ended, and which command failed.

use futures::future::join_all;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_api::instance::{InstanceItem, InstanceStatus};
use jiff::Timestamp;

use crate::output;
use crate::text::clean_line;

/// What only Hearth's own paths say of an instance.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    id: InstanceId,
    /// When its VM ended, and why.
    ended: Option<(Timestamp, String)>,
    /// Why it failed: the step, the command and how that ended.
    pub(super) failure: Option<String>,
}

impl Seen {
    /// `VM ended 3 h ago: why`.
    pub(super) fn vm_ended(&self) -> Option<String> {
        let (at, why) = self.ended.as_ref()?;
        Some(clean_line(&format!("VM ended {}: {why}", output::ago(*at))))
    }
}

/// Those among these instances: test boots and failures, whose records outlive their VMs.
pub(super) async fn of(client: &Client, items: &[InstanceItem]) -> Vec<Seen> {
    let outlives = |item: &&InstanceItem| match item.status {
        InstanceStatus::Failed => true,
        InstanceStatus::Ready => item.is_test,
        InstanceStatus::Provisioning | InstanceStatus::Claimed => false,
    };
    let looks = items.iter().filter(outlives).map(|item| of_one(client, &item.id));
    join_all(looks).await.into_iter().flatten().collect()
}

/// Of this one; a server that does not say says nothing.
pub(super) async fn of_one(client: &Client, id: &InstanceId) -> Option<Seen> {
    let view = client.view_instance(id).await.ok()?;
    let why = view.vm_ended_because.unwrap_or_default();
    Some(Seen {
        id: view.id,
        ended: view.vm_ended_at.map(|at| (at, why)),
        failure: view.failure,
    })
}

/// The one of this instance.
pub(super) fn find<'a>(seen: &'a [Seen], id: &InstanceId) -> Option<&'a Seen> {
    seen.iter().find(|seen| seen.id == *id)
}
