//! Examples of what is told of the past, and of a pool over time: events, history, the audit log, webhooks, advice, schedules.

use std::borrow::Cow;

use hearth_api::event::{Event, EventKind, EventsData, EventsPosition};
use hearth_api::ids::{DeliveryId, InstanceId, ProjectId, TokenId, WebhookId};
use jiff::Timestamp;
use serde_json::{Value, json};
use utoipa::ToSchema as _;

use super::examples::{THEN, recipe};

const AT: &str = "2026-11-24T09:34:55.012Z";
const LATER: &str = "2026-11-24T09:41:07.480Z";

/// What a stream of events sends, and the schema of its data.
pub fn stream() -> (String, Cow<'static, str>) {
    let event = |id: u64, name: &str, data: String| format!("id: {id}\nevent: {name}\ndata: {data}\n\n");
    let text = |data: &EventsData| serde_json::to_string(data).unwrap_or_default();
    let happened = Event {
        id: 4712,
        at: AT.parse().unwrap_or(Timestamp::UNIX_EPOCH),
        project_id: ProjectId::example(1),
        instance_id: Some(InstanceId::example(4)),
        kind: EventKind::InstanceReady,
        reason: Some("its set-up is done, and a command ran in it".to_owned()),
        detail: json!({ "purpose": "pool", "recipe": recipe(THEN) }),
    };
    let name = happened.kind.as_str();
    let begin = EventsData::Position(EventsPosition { after: 4711 });
    let example = event(4711, "begin", text(&begin)) + &event(4712, name, text(&EventsData::Event(happened)));
    (example, EventsData::name())
}

/// An example of a reply, by its schema's name.
pub fn example(schema: &str) -> Option<Value> {
    let boot = json!({
        "id": InstanceId::example(4), "purpose": "pool", "recipe": recipe(THEN), "orderedAt": AT, "reason": "fewer are ready or being made than should be ready",
        "endedAt": LATER, "outcome": "ready", "failure": null, "goneAt": null, "goneBecause": null, "hasLog": true
    });
    Some(match schema {
        "Items_AuditEntry" => json!({ "items": [{
            "id": 815, "at": AT, "tokenId": TokenId::example(6), "tokenName": "ci", "owner": "ada", "address": "203.0.113.7",
            "operation": "release_instance", "projectId": ProjectId::example(1), "instanceId": InstanceId::example(4), "subject": null,
            "status": 200, "requestId": "01a2293c9885720084c62fbda6b2564d"
        }] }),
        "History" => json!({
            "claims": [{
                "id": InstanceId::example(4), "claimedAt": AT, "endedAt": LATER, "endedBecause": "it was released", "owner": "ada",
                "taskId": "task-4711", "source": "fork", "cause": "drained", "waitMs": 1890, "totalMs": 1904.2, "recipe": recipe(THEN)
            }],
            "boots": [boot]
        }),
        "BootDetail" => json!({
            "boot": boot,
            "steps": [{ "name": "create_vm", "status": "success", "durationMs": 1_900, "timestamp": AT }]
        }),
        "Items_WebhookItem" => json!({ "items": [{
            "id": WebhookId::example(7), "url": "https://example.org/hearth", "projectId": null, "kinds": ["instance.failed"], "createdAt": AT,
            "pending": 0, "failed": 1
        }] }),
        "WebhookCreated" => json!({ "id": WebhookId::example(7), "secret": "whsec_…" }),
        "WebhookDeleted" => json!({ "id": WebhookId::example(7), "deleted": true }),
        "Items_Delivery" => json!({ "items": [{
            "id": DeliveryId::example(8), "eventId": 4712, "kind": "instance.failed", "createdAt": AT, "status": "pending", "attempts": 1,
            "nextAt": LATER, "lastStatus": 503, "lastError": "the receiver answered 503 Service Unavailable"
        }] }),
        "PoolScheduleView" => json!({
            "timeZone": "Europe/Berlin", "windows": [{ "start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "targetSize": 8 }],
            "targetSize": 8, "ownTargetSize": 2, "changesAt": LATER
        }),
        "PoolAdvice" => {
            let outcome = |target: u32, rate: f64, wait: u32, hours: f64| json!({ "target": target, "hitRate": rate, "p95WaitMs": wait, "vmHours": hours });
            json!({
                "since": "2026-11-17T09:34:55.012Z", "until": AT, "claims": 412, "refillMs": 1890, "atOnce": 3,
                "suggested": outcome(4, 0.961, 0, 655.2), "present": outcome(2, 0.874, 1890, 318.4), "asked": null
            })
        }
        "WebhookReplayed" => json!({ "id": DeliveryId::example(8), "replayed": true }),
        _ => return None,
    })
}
