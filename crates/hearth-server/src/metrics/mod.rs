//! Metrics, as Prometheus reads them: counters and histograms are counted from events as they come, and gauges are read from the store
//! when they are asked for. Base units, `_total` for counters, and labels whose values are bounded: a project beyond the first many is
//! counted as `other`.

mod counted;
mod gauges;
mod labels;

use std::sync::Arc;
use std::time::Duration;

use hearth_api::error::ErrorCode;
use hearth_api::ids::ProjectId;
use jiff::Timestamp;
use prometheus::{Encoder as _, TextEncoder};
use tokio_util::sync::CancellationToken;

use crate::events::Feed;
use crate::pools::schedule::Schedules;
use crate::status::PoolStatus;
use crate::store::{Store, StoreError};
use crate::templates::gc::Gc;
use counted::Counted;
use labels::Projects;

/// Leases that end so soon are counted as ending.
const LEASE_ENDS_SOON: Duration = Duration::from_secs(10 * 60);
/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bug here: two metrics of one name, say.
    #[error("the metrics could not be written: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Counts what happens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    store: Store,
    status: PoolStatus,
    gc: Gc,
    feed: Feed,
    schedules: Schedules,
    /// Where the data folder is.
    data_dir: Arc<std::path::Path>,
    counted: Counted,
    projects: Projects,
}

impl Metrics {
    /// Counts nothing until [`Metrics::run`].
    pub fn new(
        store: Store,
        status: PoolStatus,
        gc: Gc,
        feed: Feed,
        schedules: Schedules,
        data_dir: &std::path::Path,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            store,
            status,
            gc,
            feed,
            schedules,
            data_dir: data_dir.into(),
            counted: Counted::new()?,
            projects: Projects::default(),
        })
    }

    /// Counts events until the server stops.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.count() => {}
        }
    }

    async fn count(&self) {
        let mut last = self.feed.newest().await;
        let mut changes = self.feed.changes();
        loop {
            changes.mark_unchanged();
            match self.feed.all_after(last) {
                Ok(events) => {
                    for told in events {
                        last = told.event.id;
                        self.counted.event(&told.event, &self.projects);
                    }
                }
                Err(_) => {
                    // It counts faster than the store writes; should it not, what it missed is not made up.
                    last = self.feed.newest().await;
                    tracing::warn!("events came faster than they were counted: counters lack some");
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// A claim was refused.
    pub fn claim_refused(&self, project: &ProjectId, code: ErrorCode) {
        self.counted.claim_refused(self.projects.label(project), code.as_str());
    }

    /// Everything, as Prometheus reads it.
    pub async fn text(&self) -> Result<Vec<u8>, MetricsError> {
        let now = Timestamp::now();
        let mut families = self.counted.gather();
        families.extend(self.gauges(now).await?);
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}
