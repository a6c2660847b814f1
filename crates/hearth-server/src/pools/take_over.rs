//! Boots that the end of another server interrupted continue: the same instance, from the last stage that was frozen.

use jiff::Timestamp;

use super::act::Actor;
use crate::store::StoreError;

/// A boot that was interrupted so often is not begun once more: it may be what ends the server.
const MOST_RESTARTS: i64 = 3;

impl Actor {
    /// Before the first pass: what is half made is removed, and its rows wait for their turn again. Whatever cannot be taken over
    /// is left to the planner, which ends it.
    pub(super) async fn take_over(&self) -> Result<(), StoreError> {
        let store = &self.store;
        for row in store.half_made(&self.session, MOST_RESTARTS).await? {
            // A run cannot continue in the middle of a command.
            if let Err(error) = self.driver.destroy(&row.vm).await {
                tracing::warn!(%error, instance = %row.id, "a half-made VM could not be destroyed; its boot does not continue");
                continue;
            }
            if store.begin_again(&row.id, Timestamp::now()).await? {
                tracing::info!(instance = %row.id, project = %row.project, "a boot that was interrupted continues");
            }
        }
        Ok(())
    }
}
