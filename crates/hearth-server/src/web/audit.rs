//! The audit log: who did what, when, from where, with which result.

use axum::response::Response;
use hearth_api::audit::AuditEntry;
use hearth_api::page::Items;
use maud::{Markup, html};

use super::form::{Fields, pairs};
use super::frame::{Frame, Section};
use super::parts::{self, Tone, badge};
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Entries of one page.
const PER_PAGE: usize = 100;

/// `GET /audit`.
pub async fn show(visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    let project = query.filled("project");
    let limit = PER_PAGE.to_string();
    let asked = pairs(&[
        ("before", query.get("before")),
        ("limit", Some(&limit)),
        ("projectId", project),
    ]);
    let found: Items<AuditEntry> = visitor.get(&format!("/audit?{asked}")).await?;
    let older = found.items.get(PER_PAGE - 1).map(|last| {
        let last = last.id.to_string();
        format!("/audit?{}", pairs(&[("before", Some(&last)), ("project", project)]))
    });
    let body = html! {
        div.title { h1 { "Audit log" } }
        p.help { "Every request that changes something or enters a VM, newest first. Bodies and secrets are not kept." }
        form.row method="get" action="/audit" role="search" {
            label { span { "Project " span.dim { "(its id)" } } input name="project" value=(project.unwrap_or_default()) placeholder="prj_…"; }
            button type="submit" { "Search" }
        }
        @if found.items.is_empty() {
            p.empty { "There is no such entry." }
        } @else {
            table.cards {
                caption.hidden { "Entries of the audit log, newest first" }
                thead {
                    tr {
                        th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "On" }
                        th scope="col" { "From" } th scope="col" { "Result" }
                    }
                }
                tbody { @for entry in &found.items { (row(entry)) } }
            }
        }
        @if let Some(older) = older { nav.pages aria-label="Pages of the list" { a href=(older) rel="next" { "Older" } } }
    };
    Ok(Frame::new(&visitor, Section::Audit, "Audit log").show(&body))
}

fn row(entry: &AuditEntry) -> Markup {
    let result = match entry.status {
        ..400 => badge(Tone::Good, &entry.status.to_string()),
        400..500 => badge(Tone::Warn, &format!("{} refused", entry.status)),
        _ => badge(Tone::Bad, &format!("{} failed", entry.status)),
    };
    html! {
        tr {
            td data-label="When" { (parts::time(entry.at)) }
            td data-label="Who" { (entry.owner) @if entry.token_name != entry.owner { div.dim { "token " (entry.token_name) } } }
            td data-label="What" { code { (entry.operation) } }
            td data-label="On" {
                @if let Some(id) = &entry.project_id { a href=(format!("/projects/{id}")) title=(id.as_str()) { code { (parts::short_id(id.as_str())) } } " " }
                @if let Some(id) = &entry.instance_id { code title=(id.as_str()) { (parts::short_id(id.as_str())) } " " }
                @if let Some(subject) = &entry.subject { (subject) }
            }
            td data-label="From" { (entry.address.as_deref().unwrap_or("–")) }
            td data-label="Result" title=[entry.request_id.as_ref().map(|id| format!("request {id}"))] { (result) }
        }
    }
}
