//! Somebody works in a VM that is still being made: that is said, because what is changed in it may become part of the template.

use std::time::Duration;

use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_api::instance::InstanceStatus;

use crate::output;

/// A remark is not worth a longer wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says so of an instance that is being made; nothing of any other, and when the server does not say.
pub(super) async fn note(client: &Client, id: &InstanceId) {
    let view = tokio::time::timeout(PATIENCE, client.view_instance(id)).await;
    if matches!(view, Ok(Ok(view)) if view.status == InstanceStatus::Provisioning) {
        output::note(
            "note: this VM is unfinished: its set-up still runs, and what is changed in it may become part of the template",
        );
    }
}
