//! The feed of events: one reader of the store, however many clients watch. What it read is kept in a ring, from which each client
//! takes what comes after the last event that it has; one that is further behind begins again at the store.

mod kept;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hearth_api::event::Event;
use hearth_api::ids::ProjectId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{EventFilter, EventRow, Store, StoreError};

pub use kept::Keep;

/// Events that the ring holds: some minutes of a busy server, a few megabytes.
const RING: usize = 8192;
/// Events that are read from the store at a time.
const PAGE: u32 = 500;
/// Events that come close together are read together: a client hears of them so much later.
const GATHER: Duration = Duration::from_millis(30);
/// What another process wrote is noticed after this long.
const POLL: Duration = Duration::from_secs(2);

/// An event as it goes out.
#[derive(Debug)]
pub struct Told {
    tenant: String,
    pub event: Event,
    /// As JSON, made once for all who watch.
    pub json: String,
}

/// Who watches: what he sees.
#[derive(Debug, Clone)]
pub struct Scope {
    pub tenant: String,
    /// Of this project alone.
    pub project: Option<ProjectId>,
}

impl Scope {
    fn sees(&self, told: &Told) -> bool {
        told.tenant == self.tenant
            && self
                .project
                .as_ref()
                .is_none_or(|project| *project == told.event.project_id)
    }

    /// As the store reads it.
    #[must_use]
    pub fn filter(&self) -> EventFilter<'_> {
        EventFilter {
            tenant: Some(&self.tenant),
            project: self.project.as_ref(),
        }
    }
}

/// What comes after an event.
#[derive(Debug)]
pub struct Next {
    pub events: Vec<Arc<Told>>,
    /// Where to continue: the newest event that was considered.
    pub last: u64,
}

/// The ring does not reach back that far.
#[derive(Debug, PartialEq, Eq)]
pub struct TooFarBehind;

#[derive(Debug, Default)]
struct Ring {
    told: VecDeque<Arc<Told>>,
    /// All events after this one are in the ring.
    after: u64,
}

/// The feed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    store: Store,
    ring: Arc<RwLock<Ring>>,
    /// The newest event in the ring; `None` until the store was read for the first time.
    newest: watch::Sender<Option<u64>>,
    keep: Keep,
}

impl Feed {
    /// Reads nothing until [`Feed::run`].
    #[must_use]
    pub fn new(store: Store, keep: Keep) -> Self {
        Self {
            store,
            ring: Arc::default(),
            newest: watch::Sender::new(None),
            keep,
        }
    }

    /// Reads the store until the server stops, and removes what is not to be kept.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.read_on() => {}
            () = self.keep.run(&self.store) => {}
        }
    }

    async fn read_on(&self) {
        let mut written = self.store.events_written();
        loop {
            if let Err(error) = self.read().await {
                tracing::warn!(%error, "events could not be read; they are tried again");
            }
            tokio::select! {
                // The store is there for as long as this is.
                _ = written.changed() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(POLL) => {}
            }
            written.mark_unchanged();
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let Some(mut last) = *self.newest.borrow() else {
            let newest = self.store.event_span().await?.newest;
            self.ring_mut().after = newest;
            self.newest.send_replace(Some(newest));
            return Ok(());
        };
        loop {
            let rows = self.store.events_after(EventFilter::default(), last, PAGE).await?;
            let is_all = rows.len() < PAGE as usize;
            if let Some(row) = rows.last() {
                last = row.event.id;
                self.ring_mut().push(rows);
                self.newest.send_replace(Some(last));
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// Changes when there are new events.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<u64>> {
        self.newest.subscribe()
    }

    /// Resolves when the feed has begun; the newest event that it has read.
    pub async fn newest(&self) -> u64 {
        let mut changes = self.changes();
        // The sender is this feed's own.
        let newest = changes.wait_for(Option::is_some).await;
        newest.ok().and_then(|newest| *newest).unwrap_or_default()
    }

    /// What comes after this event, for who watches.
    pub fn after(&self, last: u64, scope: &Scope) -> Result<Next, TooFarBehind> {
        let ring = self.ring();
        if last < ring.after {
            return Err(TooFarBehind);
        }
        let from = ring.told.partition_point(|told| told.event.id <= last);
        let new = ring.told.range(from..);
        Ok(Next {
            last: ring.told.back().map_or(last, |told| last.max(told.event.id)),
            events: new.filter(|told| scope.sees(told)).cloned().collect(),
        })
    }

    /// The same for everything, for what the server itself does with events.
    pub fn all_after(&self, last: u64) -> Result<Vec<Arc<Told>>, TooFarBehind> {
        let ring = self.ring();
        if last < ring.after {
            return Err(TooFarBehind);
        }
        let from = ring.told.partition_point(|told| told.event.id <= last);
        Ok(ring.told.range(from..).cloned().collect())
    }

    fn ring(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_mut(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// As it goes out.
    #[must_use]
    pub fn new(row: EventRow) -> Self {
        Self {
            tenant: row.tenant,
            // Plain structs with string keys do not fail to serialise.
            json: serde_json::to_string(&row.event).unwrap_or_default(),
            event: row.event,
        }
    }
}

impl Ring {
    fn push(&mut self, rows: Vec<EventRow>) {
        self.told.extend(rows.into_iter().map(|row| Arc::new(Told::new(row))));
        let surplus = self.told.len().saturating_sub(RING);
        if let Some(last) = self.told.drain(..surplus).next_back() {
            self.after = last.event.id;
        }
    }
}
