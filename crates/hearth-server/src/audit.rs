//! The audit log's writer: entries come from requests that were answered, and are written together, a moment later, so that no request waits
//! for it. A server that stops writes all of them first; one that is killed loses those of the last moment.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::retention;
use crate::store::{NewAuditEntry, Store};

/// Entries that wait to be written; one more makes its request wait.
const WAITING: usize = 4096;
/// Entries that are written together.
const BATCH: usize = 256;
/// Old entries that are removed in one transaction.
const REMOVED: u32 = 500;
/// Between two batches of one removal.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Message {
    Entry(Box<NewAuditEntry>),
    /// The server stops: this is told when everything before it is written.
    End(oneshot::Sender<()>),
}

/// Takes entries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditLog(mpsc::Sender<Message>);

/// Writes them.
#[derive(Debug)]
pub struct AuditWriter {
    store: Store,
    entries: mpsc::Receiver<Message>,
    /// How long entries are kept.
    max_age: Duration,
}

/// Both ends.
#[must_use]
pub fn audit_log(store: Store, max_age: Duration) -> (AuditLog, AuditWriter) {
    let (sender, entries) = mpsc::channel(WAITING);
    let writer = AuditWriter {
        store,
        entries,
        max_age,
    };
    (AuditLog(sender), writer)
}

impl AuditLog {
    /// Writes an entry soon.
    pub async fn note(&self, entry: NewAuditEntry) {
        // The writer ends after the last request.
        drop(self.0.send(Message::Entry(Box::new(entry))).await);
    }

    /// Until everything is written; nothing is taken after that.
    pub async fn end(&self) {
        let (sender, written) = oneshot::channel();
        if self.0.send(Message::End(sender)).await.is_ok() {
            drop(written.await);
        }
    }
}

impl AuditWriter {
    /// Writes until [`AuditLog::end`].
    pub async fn run(mut self) {
        let mut remove_at = Instant::now();
        let mut messages = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                count = self.entries.recv_many(&mut messages, BATCH) => if count == 0 { return },
                () = tokio::time::sleep_until(remove_at) => {
                    remove_at = Instant::now() + self.remove().await;
                    continue;
                }
            }
            let (mut entries, mut end) = (Vec::with_capacity(messages.len()), None);
            for message in messages.drain(..) {
                match message {
                    Message::Entry(entry) => entries.push(*entry),
                    Message::End(sender) => end = Some(sender),
                }
            }
            self.write(&entries).await;
            if let Some(end) = end {
                // Nobody may wait for it any more.
                let _ = end.send(());
                return;
            }
        }
    }

    async fn write(&self, entries: &[NewAuditEntry]) {
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.store.write_audit(entries).await {
            // So that they are somewhere.
            for entry in entries {
                let by = entry.by.token.as_str();
                tracing::error!(%error, operation = entry.operation, by, status = entry.status, project = entry.project, instance = entry.instance,
                    "an entry of the audit log could not be written");
            }
        }
    }

    /// Removes some of what is too old; when to remove more.
    async fn remove(&self) -> Duration {
        let removed = self.store.remove_audit(retention::since(self.max_age), REMOVED).await;
        retention::pause(removed, PAUSE, "old entries of the audit log")
    }
}
