//! Wakes the pools' loop. A wake carries nothing: whoever changes something wakes, and the next pass reads everything anew.

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

    /// Until somebody wakes; at once when somebody did since the last time.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}
