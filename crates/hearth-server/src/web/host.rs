//! The host: how much of it is used, what checkpoints cost, and what `hearth doctor` finds.

use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::explain::HostUse;
use hearth_api::template::{CheckpointItem, TemplateList};
use hearth_drivers::host::{Finding, Status, check};
use maud::{Markup, html};

use super::Pages;
use super::frame::{self, Frame, Section};
use super::parts::{self, Tone, badge};
use super::refusal::Refusal;
use super::visitor::Visitor;
use crate::store::{Sight, Store};

/// All checks of the machine may take so long.
const DOCTOR_PATIENCE: Duration = Duration::from_secs(60);
/// Checkpoints that the page lists.
const LISTED: usize = 200;

/// `GET /host`.
pub async fn show(visitor: Visitor, headers: HeaderMap) -> Result<Response, Refusal> {
    visitor.caller.need_host()?;
    let used = visitor.state.status.host_use();
    if headers.contains_key("hx-request") {
        return Ok(frame::part(use_part(&used)));
    }
    let templates: TemplateList = visitor.get("/templates").await?;
    let sight = Sight {
        tenant: &visitor.caller.0.tenant,
        project: None,
        claimed_by: None,
        name_prefix: None,
    };
    let projects = visitor
        .state
        .pools
        .overview(sight, Store::failed_window(jiff::Timestamp::now()))
        .await?;
    let name = |item: &CheckpointItem| {
        let id = item.project_id.as_ref()?;
        let name = projects
            .iter()
            .find(|project| project.id == *id)
            .map(|project| project.name.clone());
        Some((id.clone(), name.unwrap_or_else(|| id.to_string())))
    };
    let mut items: Vec<&CheckpointItem> = templates.items.iter().collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.bytes));
    let body = html! {
        div.title { h1 { "Host" } }
        (use_part(&used))
        section aria-labelledby="templates-title" {
            h2 #templates-title { "Templates and other checkpoints" }
            p {
                (parts::meter(templates.disk_bytes, templates.disk_limit_bytes, &format!(
                    "{} of {} on the disk", parts::bytes(templates.disk_bytes), parts::bytes(templates.disk_limit_bytes)
                )))
            }
            @for fault in &templates.faults {
                div.notice.bad { p { "Checkpoint " code { (parts::short_hash(&fault.key)) } " was found damaged " (parts::time(fault.at)) ": " (fault.reason) } }
            }
            @if items.is_empty() { p.empty { "There is none yet: the first test boot or enabled pool makes some." } }
            @else {
                table.cards {
                    caption.hidden { "Checkpoints, largest first" }
                    thead {
                        tr {
                            th scope="col" { "Checkpoint" } th scope="col" { "Project" } th scope="col" { "After" }
                            th.number scope="col" { "Disk" } th scope="col" { "Made" } th scope="col" { "Last used" } th scope="col" { "Needed" }
                        }
                    }
                    tbody {
                        @for item in items.iter().take(LISTED) {
                            tr {
                                th scope="row" { code title=(item.key) { (parts::short_hash(&item.key)) } @if !item.recipes.is_empty() { " " (badge(Tone::Good, "template")) } }
                                td data-label="Project" { @match name(item) { Some((id, name)) => a href=(format!("/projects/{id}")) { (name) }, None => span.dim { "all" } } }
                                td data-label="After" { (item.stage) }
                                td.number data-label="Disk" { (parts::bytes(item.bytes)) }
                                td data-label="Made" { (parts::time(item.created_at)) }
                                td data-label="Last used" { (parts::time(item.last_used_at)) }
                                td data-label="Needed" { @if item.needed { "yes" } @else { span.dim { "no" } } }
                            }
                        }
                    }
                }
            }
        }
        section aria-labelledby="doctor-title" {
            h2 #doctor-title { "What this machine can do" }
            div #doctor hx-get="/host/doctor" hx-trigger="load" hx-swap="outerHTML" { p.dim { "Checking …" } }
        }
    };
    Ok(Frame::new(&visitor, Section::Host, "Host").show(&body))
}

fn use_part(used: &HostUse) -> Markup {
    let memory = format!("{} of {}", parts::mib(used.memory_mib), parts::mib(used.max_memory_mib));
    html! {
        div #use hx-get="/host" hx-trigger="every 3s" hx-swap="outerMorph" {
            dl.figures {
                div { dt { "VMs" } dd { (used.vms) small { " of " (used.max_vms) } } }
                div { dt { "Memory of VMs" } dd.small { (parts::meter(used.memory_mib, used.max_memory_mib, &memory)) } }
                div { dt { "Being set up" } dd { (used.provisions) small { " of " (used.max_provisions) } } }
                div { dt { "Forks being made" } dd { (used.forks) small { " of " (used.max_forks) } } }
            }
            @if !used.claimed_memory.is_empty() { p.help { (parts::sentence(&used.claimed_memory)) } }
            @if let Some(at) = used.clock_jumped_at { div.notice { p { "The host's clock jumped " (parts::time(at)) "; leases were moved along." } } }
        }
    }
}

/// `GET /host/doctor`: takes some seconds.
pub async fn doctor(State(pages): State<Pages>, visitor: Visitor, headers: HeaderMap) -> Result<Response, Refusal> {
    visitor.caller.need_host()?;
    if !headers.contains_key("hx-request") {
        return Ok(Redirect::to("/host").into_response());
    }
    let checked = tokio::time::timeout(DOCTOR_PATIENCE, check(&pages.data_dir, &pages.images, None)).await;
    Ok(frame::part(match checked {
        Ok(findings) => html! { div #doctor { ul.findings { @for one in &findings { (finding(one)) } } } },
        Err(_) => {
            html! { div #doctor { p.notice.bad { "The checks took too long; run " code { "hearth doctor" } " on the machine." } } }
        }
    }))
}

fn finding(one: &Finding) -> Markup {
    html! {
        li {
            @match one.status {
                Status::Ok => (badge(Tone::Good, "ok")),
                Status::Warn => (badge(Tone::Warn, "warning")),
                Status::Fail => (badge(Tone::Bad, "fails")),
            }
            span { strong { (one.name) } " " (one.summary) @if let Some(fix) = &one.fix { br; span.dim { (fix) } } }
        }
    }
}
