//! A request to end a boot: made once, and noticed by the command that runs, so that its entry is written as far as it came.

use std::sync::{Arc, OnceLock};

use hearth_core::redact::Redacted;
use hearth_core::state::FailureKind;
use hearth_core::world::Failure;
use tokio_util::sync::CancellationToken;

use super::run::failure;

/// Not requested at first. All clones are the same request.
#[derive(Debug, Clone, Default)]
pub struct EndRequest {
    asked: CancellationToken,
    reason: Arc<OnceLock<Redacted>>,
}

impl EndRequest {
    /// Asks; only the first reason counts.
    pub fn ask(&self, reason: Redacted) {
        // The first request has given the reason.
        drop(self.reason.set(reason));
        self.asked.cancel();
    }

    /// Resolves when it was asked, with how the boot fails then.
    pub async fn asked(&self) -> Failure {
        self.asked.cancelled().await;
        self.failure()
            .unwrap_or_else(|| failure(FailureKind::Cancelled, "cancelled"))
    }

    /// How the boot fails, if it was asked.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let reason = self.reason.get()?;
        Some(failure(FailureKind::Cancelled, reason.clone()))
    }
}
