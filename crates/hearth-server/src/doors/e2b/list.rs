//! Lists of sandboxes, page by page.

use std::collections::{BTreeMap, HashMap};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use hearth_api::token::Scope;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;

use super::access::{Key, sandbox_id};
use super::fault::Refusal;
use super::find::{projects, slug_or_id};
use super::sandboxes::{shown, template_of};
use super::wire::{PAUSED, RUNNING};
use crate::http::AppState;
use crate::store::{ProjectRow, SandboxSeen};

/// Names the page that follows.
const NEXT: HeaderName = HeaderName::from_static("x-next-token");
/// Entries of a page when nothing is said, and at most.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// What a list is asked for.
#[derive(Debug, Default)]
struct Asked {
    metadata: BTreeMap<String, String>,
    states: Vec<String>,
    oldest_first: bool,
    started_after: Option<Timestamp>,
    template: Option<String>,
    limit: Option<usize>,
    next: Option<String>,
}

impl Asked {
    fn of(query: &str) -> Result<Self, Refusal> {
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                // A form in itself, and clients encode its names and values before they write it.
                "metadata" => {
                    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
                    let pairs = form_urlencoded::parse(value.as_bytes());
                    asked
                        .metadata
                        .extend(pairs.map(|(name, value)| (plain(&name), plain(&value))));
                }
                "state" => asked
                    .states
                    .extend(value.split(',').map(|state| state.trim().to_owned())),
                "order" => asked.oldest_first = value == "asc",
                "startedAfter" => {
                    let at: Timestamp = value
                        .parse()
                        .map_err(|_| Refusal::wrong("`startedAfter` must be a time as RFC 3339 writes it"))?;
                    asked.started_after = Some(at);
                }
                "template" => asked.template = Some(value.into_owned()),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit));
                    let limit = limit.ok_or_else(|| Refusal::wrong("`limit` must be 1 to 1000"))?;
                    asked.limit = Some(limit);
                }
                "nextToken" => asked.next = Some(value.into_owned()).filter(|next| !next.is_empty()),
                _ => {}
            }
        }
        if let Some(state) = asked
            .states
            .iter()
            .find(|state| ![RUNNING, PAUSED].contains(&state.as_str()))
        {
            return Err(Refusal::wrong(format!(
                "`state` must be running or paused, not `{state}`"
            )));
        }
        Ok(asked)
    }

    fn wants(&self, seen: &SandboxSeen, project: &ProjectRow) -> bool {
        let state = if seen.is_paused() { PAUSED } else { RUNNING };
        let metadata = seen.kept.as_ref().map(|kept| &kept.metadata);
        let has =
            |(name, value): (&String, &String)| metadata.is_some_and(|metadata| metadata.get(name) == Some(value));
        (self.states.is_empty() || self.states.iter().any(|wanted| wanted == state))
            && self.metadata.iter().all(has)
            && self.started_after.is_none_or(|at| seen.claimed_at > at)
            && self
                .template
                .as_ref()
                .is_none_or(|wanted| [template_of(seen), project.id.to_string(), slug_or_id(project)].contains(wanted))
    }
}

/// The sandboxes that a key sees.
pub async fn list(State(state): State<AppState>, key: Key, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    all(&state, &key, query.as_deref().unwrap_or_default(), Some(PAGE)).await
}

/// The same as older clients ask for it: all that run, on one page.
pub async fn list_running(
    State(state): State<AppState>,
    key: Key,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = format!("{}&state=running", query.unwrap_or_default());
    all(&state, &key, &query, None).await
}

async fn all(state: &AppState, key: &Key, query: &str, page: Option<usize>) -> Result<Response, Refusal> {
    if !key.0.has(Scope::ProjectRead) {
        key.0.need(Scope::Claim)?;
    }
    let asked = Asked::of(query)?;
    let projects = projects(state, key).await?;
    let projects: HashMap<_, _> = projects.iter().map(|project| (&project.id, project)).collect();
    let now = Timestamp::now();
    let mut found: Vec<(SandboxSeen, &ProjectRow)> = state
        .store
        .sandboxes(key.0.sees(None))
        .await?
        .into_iter()
        .filter(|seen| seen.expires_at > now && !seen.vm_ended)
        .filter_map(|seen| Some((seen.clone(), *projects.get(&seen.project)?)))
        .filter(|(seen, project)| asked.wants(seen, project))
        .collect();
    if asked.oldest_first {
        found.reverse();
    }
    // A page begins after the last one of the page before, whatever was made or killed meanwhile.
    let after = asked.next.as_deref().map(Mark::of).transpose()?;
    if let Some(mark) = &after {
        found.retain(|(seen, _)| mark.is_before(seen, asked.oldest_first));
    }
    let limit = asked.limit.or(page).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let items: Vec<_> = found
        .iter()
        .map(|(seen, project)| shown(state, seen, project))
        .collect();
    let mut response = axum::Json(items).into_response();
    let last = found.last().filter(|_| more).map(|(seen, _)| Mark::at(seen));
    if let Some(next) = last.and_then(|next| HeaderValue::from_str(&next).ok()) {
        response.headers_mut().insert(NEXT, next);
    }
    Ok(response)
}

/// The last entry of a page.
struct Mark {
    millis: i64,
    id: String,
}

impl Mark {
    fn at(seen: &SandboxSeen) -> String {
        format!("{}-{}", seen.claimed_at.as_millisecond(), sandbox_id(&seen.id))
    }

    fn of(text: &str) -> Result<Self, Refusal> {
        let parts = text
            .split_once('-')
            .and_then(|(millis, id)| Some((millis.parse().ok()?, id.to_owned())));
        let (millis, id) = parts.ok_or_else(|| Refusal::wrong("`nextToken` is not one of this server"))?;
        Ok(Self { millis, id })
    }

    fn is_before(&self, seen: &SandboxSeen, oldest_first: bool) -> bool {
        let mark = (self.millis, self.id.as_str());
        let other = (seen.claimed_at.as_millisecond(), sandbox_id(&seen.id));
        if oldest_first { other > mark } else { other < mark }
    }
}
