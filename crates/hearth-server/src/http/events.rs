//! Events as they happen: server-sent events that can be resumed.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use futures::Stream;
use hearth_api::error::ErrorCode;
use hearth_api::event::{EventsPosition, EventsReset};
use hearth_api::ids::{ProjectId, TokenId};
use hearth_api::token::Scope;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Query;
use crate::events::{self, Told};
use crate::store::StoreError;

/// A silent stream says that it is still there, so that proxies keep it; and the token is checked again.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that are read from the store at a time, for a client that resumes.
const PAGE: u32 = 500;
/// How a client that reconnects by itself says where it was.
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only of this project.
    #[param(nullable = false)]
    project_id: Option<ProjectId>,
    /// Begin after this event; `Last-Event-ID` goes before it. Without either, and without `last`, the stream begins with what happens next.
    #[param(nullable = false, minimum = 0)]
    after: Option<u64>,
    /// Begin with the newest so many events that are kept.
    #[param(nullable = false, minimum = 1, maximum = 10_000)]
    last: Option<u32>,
    /// Whether the stream stays open for what happens next; without that it ends after what is kept.
    #[param(nullable = false, required = false, default = true)]
    follow: Option<bool>,
}

/// Watch events
///
/// Server-sent events in the order in which they were written: `id` is the event's, `event` its kind, and the data an `Event`. A client that
/// was cut off continues with the header `Last-Event-ID` (or `after`) and misses nothing. The first event is `begin`; with `follow=false` the last one
/// is `end`; both say where the stream is (`EventsPosition`). When what came after that is not kept any more, or
/// never was here, an event `reset` with an `EventsReset` says so: the client reads the state anew, and what happens from then on follows. A
/// client that is too slow is cut off.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<u64>, Header, description = "The last event that the client has")),
    responses((status = 200, content_type = "text/event-stream", body = String, description = "The events"), (status = 404, description = "refused"))
)]
pub async fn watch_events(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<EventsQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    match &query.project_id {
        Some(project) => drop(caller.project(&state, project, Scope::ProjectRead).await?),
        None => {
            caller.need(Scope::ProjectRead)?;
            if let Some(prefix) = &caller.0.name_prefix {
                return Err(ApiError::new(
                    ErrorCode::Forbidden,
                    format!(
                        "this token is for projects whose names begin with `{prefix}`, and the events of all are more: say which one with \
                         `projectId`"
                    ),
                ));
            }
        }
    }
    let after = last_event_id(&headers)?.or(query.after);
    let scope = events::Scope {
        tenant: caller.0.tenant.clone(),
        project: query.project_id.or_else(|| caller.0.project_id.clone()),
    };
    let begin = Begin::of(&state, &scope, after, query.last).await?;
    let watcher = Watcher {
        cursor: begin.after,
        token: caller.0.id.clone(),
        scope,
        state,
    };
    let follow = query.follow.unwrap_or(true);
    Ok(Sse::new(watcher.stream(begin, follow)))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(ApiError::field(
            "Last-Event-ID",
            "must be the id of an event, a whole number",
        )),
    }
}

/// Where a stream begins.
struct Begin {
    after: u64,
    /// What the client had is too old.
    reset: Option<EventsReset>,
}

impl Begin {
    async fn of(
        state: &AppState,
        scope: &events::Scope,
        after: Option<u64>,
        last: Option<u32>,
    ) -> Result<Self, StoreError> {
        let store = state.store();
        let span = store.event_span().await?;
        let Some(after) = after else {
            let after = match last {
                Some(last) => store.before_last_events(scope.filter(), last).await?,
                None => span.newest,
            };
            return Ok(Self { after, reset: None });
        };
        // Ids have no gaps: the next one is kept, or it is yet to come.
        let is_known = after <= span.newest && after + 1 >= span.oldest;
        Ok(match is_known {
            true => Self { after, reset: None },
            false => Self {
                after: span.newest,
                reset: Some(EventsReset {
                    oldest: span.oldest,
                    newest: span.newest,
                }),
            },
        })
    }
}

/// One client that watches.
struct Watcher {
    state: AppState,
    scope: events::Scope,
    token: TokenId,
    /// It has everything up to this event.
    cursor: u64,
}

impl Watcher {
    fn stream(mut self, begin: Begin, follow: bool) -> impl Stream<Item = Result<Event, Infallible>> {
        async_stream::stream! {
            if let Some(reset) = begin.reset {
                let event = Event::default().id(reset.newest.to_string()).event("reset");
                yield Ok(event.json_data(reset).unwrap_or_default());
            } else {
                // A client that is cut off before anything happens knows where to continue.
                yield Ok(self.position("begin"));
            }
            // Everything up to here is in the store already.
            let newest = self.state.feed.newest().await;
            loop {
                let page = self.state.store().events_after(self.scope.filter(), self.cursor, PAGE).await;
                let page = match page {
                    Ok(page) => page,
                    Err(error) => {
                        tracing::warn!(%error, "events could not be read; a client that watches is cut off");
                        return;
                    }
                };
                let is_all = page.len() < PAGE as usize;
                for row in page {
                    self.cursor = row.event.id;
                    yield Ok(to_sse(&Told::new(row)));
                }
                if is_all {
                    break;
                }
            }
            self.cursor = self.cursor.max(newest);
            if !follow {
                yield Ok(self.position("end"));
                return;
            }
            let mut changes = self.state.feed.changes();
            let mut alive = tokio::time::interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
            loop {
                changes.mark_unchanged();
                let Ok(next) = self.state.feed.after(self.cursor, &self.scope) else {
                    yield Ok(Event::default().comment("too slow: continue with Last-Event-ID"));
                    return;
                };
                for told in next.events {
                    yield Ok(to_sse(&told));
                }
                self.cursor = next.last;
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    _ = alive.tick() => {
                        if !self.may_watch().await {
                            return;
                        }
                        yield Ok(Event::default().id(self.cursor.to_string()));
                    }
                }
            }
        }
    }

    /// Says where the client is.
    fn position(&self, name: &str) -> Event {
        let event = Event::default().id(self.cursor.to_string()).event(name);
        event
            .json_data(EventsPosition { after: self.cursor })
            .unwrap_or_default()
    }

    /// Whether the token may still watch.
    async fn may_watch(&self) -> bool {
        let known = self.state.store().token_lives(&self.token, Timestamp::now()).await;
        // A database that is busy says nothing about the token.
        known.unwrap_or(true)
    }
}

fn to_sse(told: &Told) -> Event {
    Event::default()
        .id(told.event.id.to_string())
        .event(told.event.kind.as_str())
        .data(&told.json)
}
