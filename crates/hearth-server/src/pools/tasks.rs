//! What this process is working on right now. A cache: when it is lost, the rows say what was begun.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::InstanceId;
use hearth_core::redact::Redacted;
use tokio_util::sync::CancellationToken;

use crate::builds::end_request::EndRequest;

/// The work under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    provisions: HashMap<InstanceId, Provision>,
    teardowns: HashSet<String>,
}

/// A provisioning run.
#[derive(Debug, Clone)]
struct Provision {
    end: EndRequest,
    cancel: CancellationToken,
    done: CancellationToken,
}

/// Ends the entry of a run when dropped, however the run ended.
pub(super) struct Running {
    tasks: Tasks,
    id: InstanceId,
    done: CancellationToken,
    /// Asked when a person wants it to end.
    pub(super) end: EndRequest,
    /// Cancelled when the run is not needed any more.
    pub(super) cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.with(|kept| kept.provisions.remove(&self.id));
        self.done.cancel();
    }
}

/// Ends the entry of a teardown when dropped.
pub(super) struct TearingDown {
    tasks: Tasks,
    key: String,
}

impl Drop for TearingDown {
    fn drop(&mut self) {
        self.tasks.with(|kept| kept.teardowns.remove(&self.key));
    }
}

impl Tasks {
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers a run; before its row says that it began.
    pub(super) fn begin_provision(&self, id: &InstanceId) -> Running {
        let run = Provision {
            end: EndRequest::default(),
            cancel: CancellationToken::new(),
            done: CancellationToken::new(),
        };
        self.with(|kept| kept.provisions.insert(id.clone(), run.clone()));
        Running {
            tasks: self.clone(),
            id: id.clone(),
            done: run.done,
            end: run.end,
            cancel: run.cancel,
        }
    }

    /// Registers a teardown of an instance or of an orphan VM; `None` when there is one already.
    pub(super) fn begin_teardown(&self, key: &str) -> Option<TearingDown> {
        let new = self.with(|kept| kept.teardowns.insert(key.to_owned()));
        new.then(|| TearingDown {
            tasks: self.clone(),
            key: key.to_owned(),
        })
    }

    pub(super) fn is_provisioning(&self, id: &InstanceId) -> bool {
        self.with(|kept| kept.provisions.contains_key(id))
    }

    pub(super) fn is_tearing_down(&self, key: &str) -> bool {
        self.with(|kept| kept.teardowns.contains(key))
    }

    /// Asks a run to end, if there is one; what resolves when it has.
    pub(super) fn ask_to_end(&self, id: &InstanceId, reason: &Redacted) -> Option<CancellationToken> {
        let run = self.with(|kept| kept.provisions.get(id).cloned())?;
        run.end.ask(reason.clone());
        Some(run.done)
    }

    /// Ends a run, if there is one, and waits until it has let go of the VM.
    pub(super) async fn cancel_provision(&self, id: &InstanceId) {
        let run = self.with(|kept| kept.provisions.get(id).cloned());
        if let Some(run) = run {
            run.cancel.cancel();
            run.done.cancelled().await;
        }
    }
}
