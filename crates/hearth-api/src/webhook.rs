//! Outgoing webhooks: events are posted to a URL, signed as Standard Webhooks are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::event::EventKind;
use crate::ids::{DeliveryId, ProjectId, WebhookId};
use crate::time;

/// Body of `POST /webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "url": "https://example.org/hearth", "kinds": ["instance.failed", "claim.ended"] }))]
pub struct CreateWebhook {
    /// Where events are posted: `https://…` or `http://…`, without user and password.
    #[schema(min_length = 1, max_length = 2048)]
    pub url: String,
    /// Only events of this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<ProjectId>,
    /// Only events of these kinds; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 100)]
    pub kinds: Option<Vec<EventKind>>,
}

/// An outgoing webhook. Its secret is never shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookItem {
    /// Its id.
    pub id: WebhookId,
    /// Where events are posted.
    pub url: String,
    /// Only events of this project.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// Only events of these kinds; `null`: all.
    #[schema(required)]
    pub kinds: Option<Vec<EventKind>>,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Deliveries that wait for their first or next attempt.
    pub pending: u64,
    /// Deliveries that were given up, of those that are kept.
    pub failed: u64,
}

/// A new webhook with its secret, which is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookCreated {
    /// Its id.
    pub id: WebhookId,
    /// What deliveries are signed with: `whsec_…`.
    pub secret: String,
}

impl std::fmt::Debug for WebhookCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookCreated")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Reply of `DELETE /webhooks/{webhookId}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookDeleted {
    /// The webhook that was deleted, with its deliveries.
    pub id: WebhookId,
    /// Always true.
    pub deleted: bool,
}

/// Reply of `POST …/replay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookReplayed {
    /// The delivery that is sent again.
    pub id: DeliveryId,
    /// Always true.
    pub replayed: bool,
}

/// How a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// It waits for its first or next attempt.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryStatus {
    /// The name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// One event on its way to a webhook's receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// What the receiver gets as `webhook-id`: the same in each attempt.
    pub id: DeliveryId,
    /// The event.
    pub event_id: u64,
    /// Its kind.
    pub kind: EventKind,
    /// When it was put on its way.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// How it is.
    pub status: DeliveryStatus,
    /// Attempts until now.
    pub attempts: u32,
    /// When it is tried next.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// HTTP status of the latest answer; `null` when there was none.
    #[schema(required)]
    pub last_status: Option<u16>,
    /// Why the latest attempt failed.
    #[schema(required)]
    pub last_error: Option<String>,
}
