//! What happens, as it happens.

use super::stream::{self, EventsStream};
use super::{Client, ClientError};
use crate::ids::ProjectId;

/// Which events, and from where on.
#[derive(Debug, Clone, Default)]
pub struct EventsQuery {
    /// Only of this project.
    pub project: Option<ProjectId>,
    /// Begin after this event.
    pub after: Option<u64>,
    /// Begin with the newest so many.
    pub last: Option<u32>,
    /// Wait for what happens next; else the stream ends after what is kept.
    pub follow: bool,
}

impl Client {
    /// Watches events. A stream that is cut off is continued by another one with `after`.
    ///
    /// # Errors
    /// As every call.
    pub async fn events(&self, query: &EventsQuery) -> Result<EventsStream, ClientError> {
        let mut call = self.get(&["events"]).timeout(None);
        if let Some(project) = &query.project {
            call = call.query("projectId", project.as_str());
        }
        if let Some(after) = query.after {
            call = call.query("after", &after.to_string());
        }
        if let Some(last) = query.last {
            call = call.query("last", &last.to_string());
        }
        let call = call
            .query("follow", &query.follow.to_string())
            .accept("text/event-stream");
        Ok(stream::events(self.address(), call.open().await?))
    }
}
