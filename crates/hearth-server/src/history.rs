//! The history's writer: it follows the events, from the last one that the history has, and writes records of claims and boots that outlive
//! their rows, with the logs of boots compressed. What is too old goes in batches.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use hearth_api::event::EventKind;
use hearth_api::ids::InstanceId;
use hearth_api::instance::Step;
use tokio_util::sync::CancellationToken;

use crate::events::Feed;
use crate::retention;
use crate::servers::Servers;
use crate::store::{EventFilter, HistoryKept, Store, StoreError};

/// Events that are written at a time.
const PAGE: u32 = 200;
/// Events that come close together are written together: nobody waits for the history.
const GATHER: Duration = Duration::from_millis(200);
/// Records that are removed in one transaction.
const BATCH: u32 = 200;
/// Until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two batches of one removal.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest log that is read again: far more than is ever written.
const MAX_LOG_BYTES: u64 = 256 << 20;

/// What of the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct KeepHistory {
    pub age: Duration,
    /// What all of it may take on the disk, about, bytes.
    pub bytes: u64,
}

/// Writes the history.
#[derive(Debug, Clone)]
pub struct Historian {
    store: Store,
    feed: Feed,
    servers: Servers,
    keep: KeepHistory,
}

impl Historian {
    /// Writes nothing until [`Historian::run`].
    #[must_use]
    pub fn new(store: Store, feed: Feed, servers: Servers, keep: KeepHistory) -> Self {
        Self {
            store,
            feed,
            servers,
            keep,
        }
    }

    /// Writes until the server stops. The next server continues where this one was.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.write() => {}
            () = self.remove() => {}
        }
    }

    async fn write(&self) {
        let mut changes = self.feed.changes();
        loop {
            changes.mark_unchanged();
            if let Err(error) = self.write_new().await {
                tracing::warn!(%error, "the history could not be written; it is tried again");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            if changes.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn write_new(&self) -> Result<(), StoreError> {
        // One of several servers writes for all.
        while self.servers.leads() {
            let after = self.store.history_cursor().await?;
            let events = self.store.events_after(EventFilter::default(), after, PAGE).await?;
            let Some(last) = events.last().map(|row| row.event.id) else {
                return Ok(());
            };
            let mut logs = HashMap::new();
            for row in &events {
                let ended = matches!(row.event.kind, EventKind::InstanceReady | EventKind::InstanceFailed);
                if let Some(id) = row.event.instance_id.as_ref().filter(|_| ended) {
                    let steps = self.store.steps(id).await?;
                    if let Some(log) = packed(id, &steps) {
                        logs.insert(id.clone(), log);
                    }
                }
            }
            self.store.write_history(&events, &logs, last).await?;
        }
        Ok(())
    }

    async fn remove(&self) {
        loop {
            let kept = HistoryKept {
                since: retention::since(self.keep.age),
                bytes: self.keep.bytes,
            };
            let removed = self.store.remove_history(kept, BATCH).await;
            tokio::time::sleep(retention::pause(removed, PAUSE, "old history")).await;
        }
    }
}

/// A log as it is kept; nothing where there is none.
fn packed(id: &InstanceId, steps: &[Step]) -> Option<Vec<u8>> {
    if steps.is_empty() {
        return None;
    }
    let pack = || {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&serde_json::to_vec(steps)?)?;
        encoder.finish()
    };
    pack()
        .inspect_err(|error| tracing::warn!(%error, instance = %id, "a log could not be packed"))
        .ok()
}

/// A log that was kept.
pub fn unpacked(log: &[u8]) -> std::io::Result<Vec<Step>> {
    let mut text = Vec::new();
    ZlibDecoder::new(log).take(MAX_LOG_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
