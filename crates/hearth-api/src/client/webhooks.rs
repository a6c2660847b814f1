//! Outgoing webhooks.

use reqwest::Method;

use super::{Client, ClientError};
use crate::ids::{DeliveryId, WebhookId};
use crate::page::Items;
use crate::webhook::{CreateWebhook, Delivery, WebhookCreated, WebhookDeleted, WebhookItem, WebhookReplayed};

impl Client {
    /// The webhooks.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_webhooks(&self) -> Result<Items<WebhookItem>, ClientError> {
        self.get(&["webhooks"]).read().await
    }

    /// Makes a webhook. The reply has its secret, this once.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_webhook(&self, webhook: &CreateWebhook) -> Result<WebhookCreated, ClientError> {
        self.post(&["webhooks"]).json(webhook)?.read().await
    }

    /// Deletes a webhook with its deliveries.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_webhook(&self, id: &WebhookId) -> Result<WebhookDeleted, ClientError> {
        self.call(Method::DELETE, &["webhooks", id.as_str()]).read().await
    }

    /// The deliveries of a webhook, newest first.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_deliveries(
        &self,
        id: &WebhookId,
        failed: bool,
        limit: u32,
    ) -> Result<Items<Delivery>, ClientError> {
        self.get(&["webhooks", id.as_str(), "deliveries"])
            .query("failed", &failed.to_string())
            .query("limit", &limit.to_string())
            .read()
            .await
    }

    /// Sends a delivery again.
    ///
    /// # Errors
    /// As every call.
    pub async fn replay_delivery(&self, id: &WebhookId, delivery: &DeliveryId) -> Result<WebhookReplayed, ClientError> {
        self.post(&["webhooks", id.as_str(), "deliveries", delivery.as_str(), "replay"])
            .read()
            .await
    }
}
