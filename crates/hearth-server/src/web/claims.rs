//! Claims: who has which VM, for what, since when and until when; and claiming one.

use axum::http::Method;
use axum::response::Response;
use hearth_api::claim::{ClaimReply, ClaimSource, Released};
use hearth_api::find::ClaimItem;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::page::Items;
use hearth_api::token::Scope;
use maud::{Markup, html};
use serde_json::json;

use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{self, Frame, Section, proof_field};
use super::parts::{self, Tone, badge};
use super::pool::or_say;
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Claims of one page.
const PER_PAGE: usize = 100;
/// A claim that finds none ready waits so long for one that is being made.
const WAIT_MS: u64 = 60_000;

/// `GET /claims`.
pub async fn list(visitor: Visitor, query: Fields, headers: axum::http::HeaderMap) -> Result<Response, Refusal> {
    let only: Option<ProjectId> = query.get("project").and_then(|id| id.parse().ok());
    let part = part(&visitor, only.as_ref(), &query).await?;
    if headers.contains_key("hx-request") {
        return Ok(frame::part(part));
    }
    let body = html! {
        div.title { h1 { "Claims" } }
        (done::notice(&query))
        @if only.is_some() { p { a href="/claims" { "Claims of all projects" } } }
        (part)
    };
    Ok(Frame::new(&visitor, Section::Claims, "Claims").show(&body))
}

async fn part(visitor: &Visitor, only: Option<&ProjectId>, query: &Fields) -> Result<Markup, Refusal> {
    let filter = only.map(|id| format!("?projectId={id}")).unwrap_or_default();
    let all: Items<ClaimItem> = visitor.get(&format!("/claims{filter}")).await?;
    let (page, pages) = query.page(all.items.len(), PER_PAGE);
    let mut rows = Vec::new();
    for item in all.items.iter().skip((page - 1) * PER_PAGE).take(PER_PAGE) {
        // They are the caller's to see: the list is.
        let reply = visitor.state.store.claim(&item.id).await?.map(|claim| claim.reply);
        rows.push((item, reply));
    }
    let at = |page: usize| match only {
        Some(id) => format!("/claims?project={id}&p={page}"),
        None => format!("/claims?p={page}"),
    };
    Ok(html! {
        div #claims hx-get=(at(page)) hx-trigger="every 3s" hx-swap="outerMorph" {
            p.summary { (parts::counted(all.items.len() as u64, "claim")) "." }
            @if rows.is_empty() {
                p.empty { "Nobody has a VM now. A project's page claims one." }
            } @else {
                table.cards {
                    caption.hidden { "Claims that have not ended, newest first" }
                    thead {
                        tr {
                            th scope="col" { "VM" } th scope="col" { "Project" } th scope="col" { "Task" } th scope="col" { "Who" }
                            th scope="col" { "Source" } th.number scope="col" { "Wait" } th scope="col" { "Since" } th scope="col" { "Lease ends" }
                            th scope="col" { span.hidden { "Actions" } }
                        }
                    }
                    tbody { @for (item, reply) in &rows { (row(visitor, item, reply.as_ref())) } }
                }
            }
            @if pages > 1 {
                nav.pages aria-label="Pages of the list" {
                    @if page > 1 { a href=(at(page - 1)) rel="prev" { "Previous" } }
                    span { "Page " (page) " of " (pages) }
                    @if page < pages { a href=(at(page + 1)) rel="next" { "Next" } }
                }
            }
        }
    })
}

fn row(visitor: &Visitor, item: &ClaimItem, reply: Option<&ClaimReply>) -> Markup {
    html! {
        tr #(format!("claim-{}", item.id)) {
            th scope="row" {
                a href=(format!("/instances/{}", item.id)) title=(item.id.as_str()) { code { (parts::short_id(item.id.as_str())) } }
                @if item.vm_ended_at.is_some() { " " (badge(Tone::Bad, "VM ended")) }
                @else if item.paused_to_disk { " " (badge(Tone::Off, "paused to disk")) }
                @else if item.paused { " " (badge(Tone::Off, "paused")) }
                @if item.unresponsive.is_some() { " " (badge(Tone::Warn, "does not answer")) }
            }
            td data-label="Project" { a href=(format!("/projects/{}", item.project_id)) { (item.project_name) } }
            td data-label="Task" { (item.task_id.as_deref().unwrap_or("–")) }
            td data-label="Who" { (item.owner.as_deref().unwrap_or("–")) }
            td data-label="Source" { @match reply { Some(reply) => (source(reply.source)), None => span.dim { "–" } } }
            td.number data-label="Wait" { @match reply { Some(reply) => (parts::millis(reply.wait_ms)), None => span.dim { "–" } } }
            td data-label="Since" { (parts::time(item.claimed_at)) }
            td data-label="Lease ends" {
                (parts::time(item.expires_at))
                @if item.lease_ends_soon { " " (badge(Tone::Warn, "soon")) }
            }
            td {
                @if visitor.may(Scope::Claim) {
                    form method="post" action=(format!("/instances/{}/release", item.id)) {
                        (proof_field(visitor))
                        button.quiet type="submit" { "Release" span.hidden { " " (item.id.as_str()) } }
                    }
                }
            }
        }
    }
}

/// Where a VM came from.
pub fn source(source: ClaimSource) -> Markup {
    match source {
        ClaimSource::Ready => badge(Tone::Good, "ready"),
        ClaimSource::Fork => badge(Tone::Busy, "fork"),
        ClaimSource::Joined => badge(Tone::Warn, "joined"),
        ClaimSource::Cold => badge(Tone::Bad, "cold"),
    }
}

/// `POST /projects/{project}/claim`.
pub async fn claim(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let mut body = json!({ "waitMs": WAIT_MS });
    for name in ["taskId", "branch"] {
        if let Some(text) = fields.filled(name) {
            body[name] = text.into();
        }
    }
    if let Some(minutes) = fields.number("ttlMinutes") {
        body["ttlMinutes"] = minutes;
    }
    let path = format!("/projects/{id}/warm-pool/claim");
    match visitor.send::<ClaimReply>(Method::POST, &path, &body).await {
        Ok(reply) => Ok(Done::Claimed.at(&format!("/instances/{}", reply.id))),
        Err(refusal) => or_say::<()>(&visitor, &id, Err(refusal), Done::Claimed).await,
    }
}

/// Gives a VM back.
pub async fn release(visitor: &Visitor, id: &InstanceId) -> Result<Response, Refusal> {
    let _: Released = visitor.order(Method::POST, &format!("/instances/{id}/release")).await?;
    Ok(Done::Released.at("/claims"))
}
