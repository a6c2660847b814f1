//! Outgoing webhooks: events are put on their way in the order in which they were written, and posted until the receiver takes them or they
//! are given up. Signed as Standard Webhooks are: HMAC-SHA-256 over the id, the time of the attempt and the body.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hearth_api::ids::WebhookId;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use serde_json::json;
use sha2::Sha256;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::events::Feed;
use crate::servers::Servers;
use crate::store::{Attempt, DueDelivery, EventFilter, EventRow, NewDelivery, Store, StoreError};

/// Secrets begin so, and the rest is Base64.
const SECRET_PREFIX: &str = "whsec_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 24;
/// Events that are put on their way at a time.
const PAGE: u32 = 200;
/// Deliveries to one receiver that are taken up at a time, and posted at once.
const TAKEN: u32 = 64;
const AT_ONCE: usize = 8;
/// A receiver has this long to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pauses before the attempts after the first, seconds: about 28 hours in all. After the last one a delivery is given up.
const PAUSES: [u32; 7] = [5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600];
/// Pauses are longer by up to this share, so that receivers that were away are not all asked at once.
const JITTER: f64 = 0.2;
/// Deliveries that ended are kept for this long.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Deliveries that are removed in one transaction.
const BATCH: u32 = 500;
/// At the latest after this long it is looked whether something is due.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A new secret.
#[must_use]
pub fn new_secret() -> String {
    let secret: [u8; SECRET_BYTES] = rand::rng().random();
    format!("{SECRET_PREFIX}{}", STANDARD.encode(secret))
}

/// `v1,` and the signature of one attempt.
fn signature(secret: &str, id: &str, at: i64, body: &str) -> Option<String> {
    let key = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{at}.{body}").as_bytes());
    Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

/// Delivers events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhooks {
    store: Store,
    feed: Feed,
    servers: Servers,
    http: reqwest::Client,
    /// How long a second of the pauses lasts.
    second: Duration,
    /// Something was put on its way, or a webhook was made.
    changed: Arc<Notify>,
}

/// A client for addresses that an admin has named; each request may take so long.
pub fn outgoing_client(patience: Duration) -> reqwest::Result<reqwest::Client> {
    // The second call in a process is refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        // What one of them redirects to was not named.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(patience)
        .user_agent(concat!("Hearth/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Webhooks {
    /// Delivers nothing until [`Webhooks::run`].
    pub fn new(store: Store, feed: Feed, servers: Servers, second: Duration) -> reqwest::Result<Self> {
        let http = outgoing_client(PATIENCE)?;
        Ok(Self {
            store,
            feed,
            servers,
            http,
            second,
            changed: Arc::default(),
        })
    }

    /// A delivery is to be sent again, or a webhook was made.
    pub fn check(&self) {
        self.changed.notify_one();
    }

    /// Delivers until the server stops. The next server continues where this one was.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.queue() => {}
            () = self.deliver() => {}
        }
    }

    /// Puts events on their way.
    async fn queue(&self) {
        let mut changes = self.feed.changes();
        // Without webhooks nothing is written: where it is then stays in memory.
        let mut seen = 0;
        loop {
            changes.mark_unchanged();
            if let Err(error) = self.queue_new(&mut seen).await {
                tracing::warn!(%error, "events could not be put on their way to webhooks; it is tried again");
                tokio::time::sleep(LONGEST_PAUSE).await;
                continue;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn queue_new(&self, seen: &mut u64) -> Result<(), StoreError> {
        // One of several servers posts for all.
        while self.servers.leads() {
            let webhooks = self.store.all_webhooks().await?;
            let Some(oldest) = webhooks.iter().map(|webhook| webhook.after).min() else {
                *seen = self.store.event_span().await?.newest;
                return Ok(());
            };
            let after = self.store.webhook_cursor().await?.max(oldest).max(*seen);
            let events = self.store.events_after(EventFilter::default(), after, PAGE).await?;
            let Some(last) = events.last().map(|row| row.event.id) else {
                return Ok(());
            };
            let mut new = Vec::new();
            for row in &events {
                for webhook in webhooks.iter().filter(|webhook| webhook.wants(row)) {
                    new.push(NewDelivery {
                        webhook: webhook.id.clone(),
                        event: row.event.id,
                        kind: row.event.kind,
                        body: body(row),
                    });
                }
            }
            if !new.is_empty() {
                self.store.queue_deliveries(&new, last, Timestamp::now()).await?;
                self.check();
            }
            *seen = last;
        }
        Ok(())
    }

    /// Posts what is due, to every receiver by itself: one that is slow delays no other.
    async fn deliver(&self) {
        let mut working = BTreeSet::new();
        let mut receivers = FuturesUnordered::new();
        loop {
            let pause = match self.due_receivers(&working).await {
                Ok((due, pause)) => {
                    for webhook in due {
                        working.insert(webhook.clone());
                        receivers.push(self.deliver_to(webhook));
                    }
                    pause
                }
                Err(error) => {
                    tracing::warn!(%error, "webhooks could not be delivered; it is tried again");
                    LONGEST_PAUSE
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
                Some(webhook) = receivers.next() => {
                    working.remove(&webhook);
                }
            }
        }
    }

    /// The receivers that something is due for, and how long until something is due for another; without those that are posted to
    /// at this moment.
    async fn due_receivers(&self, working: &BTreeSet<WebhookId>) -> Result<(Vec<WebhookId>, Duration), StoreError> {
        if !self.servers.leads() {
            return Ok((Vec::new(), LONGEST_PAUSE));
        }
        let now = Timestamp::now();
        self.store.remove_deliveries(now - KEPT, BATCH).await?;
        let mut next = self.store.next_deliveries().await?;
        next.retain(|(webhook, _)| !working.contains(webhook));
        let (due, later): (Vec<_>, Vec<_>) = next.into_iter().partition(|(_, at)| *at <= now);
        let pause = later
            .into_iter()
            .filter_map(|(_, at)| Duration::try_from(at.duration_since(now)).ok())
            .fold(LONGEST_PAUSE, Duration::min);
        Ok((due.into_iter().map(|(webhook, _)| webhook).collect(), pause))
    }

    /// Posts what is due to one receiver.
    async fn deliver_to(&self, webhook: WebhookId) -> WebhookId {
        if let Err(error) = self.deliver_due(&webhook).await {
            tracing::warn!(%error, %webhook, "a webhook could not be delivered to; it is tried again");
            tokio::time::sleep(LONGEST_PAUSE).await;
        }
        webhook
    }

    async fn deliver_due(&self, webhook: &WebhookId) -> Result<(), StoreError> {
        loop {
            let due = self.store.due_deliveries(webhook, Timestamp::now(), TAKEN).await?;
            if due.is_empty() {
                return Ok(());
            }
            let posted = futures::stream::iter(due)
                .map(|due| async move {
                    let attempt = self.post(&due).await;
                    self.store.note_attempt(&due.id, &attempt).await
                })
                .buffer_unordered(AT_ONCE);
            let noted: Vec<Result<(), StoreError>> = posted.collect().await;
            noted.into_iter().collect::<Result<(), StoreError>>()?;
        }
    }

    async fn post(&self, due: &DueDelivery) -> Attempt {
        let at = Timestamp::now().as_second();
        let Some(signature) = signature(&due.secret, due.id.as_str(), at, &due.body) else {
            return self.failed(due, None, "its secret is damaged; make the webhook anew".to_owned());
        };
        let request = self
            .http
            .post(&due.url)
            .header("content-type", "application/json")
            .header("webhook-id", due.id.as_str())
            .header("webhook-timestamp", at.to_string())
            .header("webhook-signature", signature)
            .body(due.body.clone());
        match request.send().await {
            Ok(reply) if reply.status().is_success() => Attempt {
                status: Some(reply.status().as_u16()),
                error: None,
                next_at: None,
            },
            Ok(reply) => {
                let status = reply.status();
                self.failed(due, Some(status.as_u16()), format!("the receiver answered {status}"))
            }
            Err(error) => {
                let error = hearth_api::error::chain(&error.without_url());
                self.failed(due, None, error)
            }
        }
    }

    fn failed(&self, due: &DueDelivery, status: Option<u16>, error: String) -> Attempt {
        let pause = usize::try_from(due.attempts)
            .ok()
            .and_then(|attempt| PAUSES.get(attempt));
        let next_at = pause.and_then(|pause| {
            let jitter = 1.0 + rand::rng().random_range(0.0..JITTER);
            let pause = (self.second * *pause).mul_f64(jitter);
            Timestamp::now().checked_add(SignedDuration::try_from(pause).ok()?).ok()
        });
        tracing::info!(webhook = %due.webhook, delivery = %due.id, status, error, given_up = next_at.is_none(), "a webhook was not delivered");
        Attempt {
            status,
            error: Some(error),
            next_at,
        }
    }
}

/// What is posted.
fn body(row: &EventRow) -> String {
    let event = &row.event;
    json!({ "type": event.kind, "timestamp": hearth_api::time::format(event.at), "data": event }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_that_of_standard_webhooks() {
        // The example of their specification.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(signature(&new_secret(), "msg_1", 1, "").is_some());
        assert!(signature("whsec_?", "msg_1", 1, "").is_none());
    }
}
