//! Wakes the pools' loop. A wake carries no data: after any change a wake is sent, and the next pass reads everything again.

use std::sync::Arc;

use tokio::sync::Notify;

/// Wakes the pools' loop. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Something changed: a pass begins soon.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Until the next wake; at once when one came since the last time.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}
