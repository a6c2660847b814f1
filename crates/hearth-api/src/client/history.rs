//! What was claimed and made.

use jiff::Timestamp;

use super::{Client, ClientError};
use crate::advice::PoolAdvice;
use crate::history::{BootDetail, History};
use crate::ids::{InstanceId, ProjectId};
use crate::time;

/// Which records.
#[derive(Debug, Clone, Default)]
pub struct HistoryQuery {
    /// Most of each list.
    pub limit: Option<u32>,
    /// Older than this.
    pub before: Option<Timestamp>,
    /// Only claims that were not warm, and boots that failed.
    pub troubled: bool,
    /// Only those with this text.
    pub text: Option<String>,
}

impl Client {
    /// A project's history.
    ///
    /// # Errors
    /// As every call.
    pub async fn history(&self, project: &ProjectId, query: &HistoryQuery) -> Result<History, ClientError> {
        let mut call = self.get(&["projects", project.as_str(), "history"]);
        if let Some(limit) = query.limit {
            call = call.query("limit", &limit.to_string());
        }
        if let Some(before) = query.before {
            call = call.query("before", &time::format(before));
        }
        if query.troubled {
            call = call.query("troubled", "true");
        }
        if let Some(text) = &query.text {
            call = call.query("text", text);
        }
        call.read().await
    }

    /// A boot of a project's history, with its log.
    ///
    /// # Errors
    /// As every call.
    pub async fn history_boot(&self, project: &ProjectId, id: &InstanceId) -> Result<BootDetail, ClientError> {
        self.get(&["projects", project.as_str(), "history", id.as_str()])
            .read()
            .await
    }

    /// Advice for a pool's target size, from the claims of the last days.
    ///
    /// # Errors
    /// As every call; 409 while nothing is known of the pool.
    pub async fn advise_pool(
        &self,
        project: &ProjectId,
        days: u32,
        target: Option<u32>,
    ) -> Result<PoolAdvice, ClientError> {
        let call = self.get(&["projects", project.as_str(), "warm-pool", "advice"]);
        let mut call = call.query("days", &days.to_string());
        if let Some(target) = target {
            call = call.query("target", &target.to_string());
        }
        call.read().await
    }
}
