//! Which claim a boot is made for: its span, so that logs and traces show the boot as a part of the request that waits for it. Only
//! kept in memory: after a restart a boot is nobody's part.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_api::ids::InstanceId;
use tracing::Span;

static WAITING: Mutex<BTreeMap<InstanceId, Span>> = Mutex::new(BTreeMap::new());

fn waiting() -> MutexGuard<'static, BTreeMap<InstanceId, Span>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The current span waits for this instance.
pub fn note(id: &InstanceId) {
    waiting().insert(id.clone(), Span::current());
}

/// The span that waits for this instance, if one does.
pub fn span(id: &InstanceId) -> Span {
    waiting().get(id).cloned().unwrap_or_else(Span::none)
}

/// It does not any more.
pub fn forget(id: &InstanceId) {
    waiting().remove(id);
}

/// The span of a boot that begins.
pub fn boot_span(id: &InstanceId, project: &hearth_api::ids::ProjectId, purpose: &'static str) -> Span {
    let cause = waiting().remove(id);
    let parent = cause.as_ref().and_then(Span::id);
    tracing::info_span!(parent: parent, "boot", instance = %id, %project, purpose)
}
