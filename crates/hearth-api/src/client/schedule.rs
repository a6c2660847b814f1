//! When a pool keeps another number of VMs ready. Setting a schedule does no more twice than once.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::schedule::{PoolSchedule, PoolScheduleView};

impl Client {
    /// A pool's schedule, and what it comes to now.
    ///
    /// # Errors
    /// As every call.
    pub async fn pool_schedule(&self, id: &ProjectId) -> Result<PoolScheduleView, ClientError> {
        self.get(&["projects", id.as_str(), "warm-pool", "schedule"])
            .read()
            .await
    }

    /// Sets a pool's schedule; one without windows removes it.
    ///
    /// # Errors
    /// As every call; 422 for a time zone that the server does not know.
    pub async fn put_pool_schedule(
        &self,
        id: &ProjectId,
        schedule: &PoolSchedule,
    ) -> Result<PoolScheduleView, ClientError> {
        self.call(Method::PUT, &["projects", id.as_str(), "warm-pool", "schedule"])
            .json(schedule)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }
}
