//! An instance's page: what it is, what its owner can do with it, and what is in it (ports with previews, sessions, logs).

use axum::extract::Path;
use axum::http::Method;
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::claim::{Heartbeat, Paused};
use hearth_api::error::ErrorCode;
use hearth_api::explain::ClaimExplained;
use hearth_api::fork::ForkReply;
use hearth_api::ids::InstanceId;
use hearth_api::instance::{InstanceStatus, InstanceView};
use hearth_api::log::InstanceLog;
use hearth_api::page::Items;
use hearth_api::port::{InstancePort, InstancePorts, Share};
use hearth_api::project::ProjectView;
use hearth_api::session::Session;
use hearth_api::token::Scope;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::claims::{release, source};
use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{self, Frame, Section, proof_field};
use super::parts::{self, Tone, badge};
use super::project::refused;
use super::refusal::Refusal;
use super::visitor::Visitor;

/// A link to a preview works for so long after it was opened.
const PREVIEW_SECONDS: u64 = 3600;
/// What of a log a page shows, from its end.
const LOG_BYTES: usize = 256 * 1024;

/// The crumbs and the name of an instance's page.
pub fn head(view: &InstanceView, project: Option<&ProjectView>, here: Option<&str>) -> Markup {
    let id = view.id.as_str();
    html! {
        p.crumbs {
            a href="/claims" { "Claims" } " / "
            @if let Some(project) = project { a href=(format!("/projects/{}", project.id)) { (project.name) } " / " }
            @if here.is_some() { a href=(format!("/instances/{id}")) { code { (parts::short_id(id)) } } } @else { code { (parts::short_id(id)) } }
        }
        div.title {
            h1 { @match here { Some(here) => (here), None => { "VM " code title=(id) { (parts::short_id(id)) } } } }
            nav.tabs aria-label="VM" {
                a href=(format!("/instances/{id}")) aria-current=[here.is_none().then_some("page")] { "Overview" }
                a href=(format!("/instances/{id}/terminal")) aria-current=[(here == Some("Terminal")).then_some("page")] { "Terminal" }
                a href=(format!("/instances/{id}/files")) aria-current=[(here == Some("Files")).then_some("page")] { "Files" }
            }
        }
    }
}

/// The instance, and its project where that may be read.
pub async fn look_up(visitor: &Visitor, id: &InstanceId) -> Result<(InstanceView, Option<ProjectView>), Refusal> {
    let view: InstanceView = visitor.get(&format!("/instances/{id}")).await?;
    let project = match visitor.may(Scope::ProjectRead) {
        true => visitor.get(&format!("/projects/{}/view", view.project_id)).await.ok(),
        false => None,
    };
    Ok((view, project))
}

/// `GET /instances/{instance}`.
pub async fn show(Named(id): Named<InstanceId>, visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    page(&visitor, &id, &done::notice(&query)).await
}

async fn page(visitor: &Visitor, id: &InstanceId, notice: &Markup) -> Result<Response, Refusal> {
    let (view, project) = look_up(visitor, id).await?;
    let claimed = view.status == InstanceStatus::Claimed;
    let claim: Option<ClaimExplained> = match claimed {
        true => visitor.get(&format!("/instances/{id}/claim")).await.ok(),
        false => None,
    };
    // A call into a paused VM resumes it: a look at its page is none.
    let runs = claimed && !view.paused && view.vm_ended_at.is_none();
    let body = html! {
        (head(&view, project.as_ref(), None))
        (notice)
        (facts(&view, claim.as_ref()))
        @if claimed && visitor.may(Scope::Claim) { (actions(visitor, &view)) }
        @if runs {
            div #inside hx-get=(format!("/instances/{id}/inside")) hx-trigger="load" hx-swap="outerMorph" {
                p.dim { "Asking the VM what is in it …" }
            }
        } @else if claimed && view.paused {
            p.empty { "The VM is paused; ports, sessions and logs are shown once it is resumed." }
        }
    };
    let title = format!("VM {}", parts::short_id(id.as_str()));
    Ok(Frame::new(visitor, Section::Claims, &title).show(&body))
}

fn facts(view: &InstanceView, claim: Option<&ClaimExplained>) -> Markup {
    html! {
        dl.facts {
            div { dt { "State" } dd {
                (parts::status(view.status))
                @if view.paused_to_disk { " " (badge(Tone::Off, "paused to disk")) } @else if view.paused { " " (badge(Tone::Off, "paused")) }
                @if let Some(why) = &view.paused_because { " " span.dim { (why) } }
            } }
            @if let Some(end) = view.expires_at { div { dt { "Lease ends" } dd { (parts::time(end)) } } }
            @if let Some(claim) = claim {
                div { dt { "Claimed" } dd { (parts::time(claim.claimed_at)) } }
                div { dt { "Source" } dd { (source(claim.source)) " " span.dim { (claim.why) } } }
                @if let Some(over) = &claim.hand_over {
                    div { dt { "Hand-over" } dd {
                        (format!("{:.0} ms", over.total_ms))
                        @for phase in &over.phases { " · " span.dim { (phase.name) " " (format!("{:.0}", phase.ms)) } }
                    } }
                }
            }
            div { dt { "Recipe" } dd { code title=(view.recipe) { (parts::short_hash(&view.recipe)) } } }
            @for repo in &view.repos {
                div { dt { (repo.repo_full_name) } dd {
                    code { (repo.branch) } " at " code title=(repo.commit) { (parts::short_hash(&repo.commit)) } " in " code { (repo.path) }
                    @if repo.behind { " " (badge(Tone::Warn, "behind")) }
                } }
            }
            @if let Some(why) = &view.failure { div { dt { "Failure" } dd { (why) } } }
            @if let Some(silent) = &view.unresponsive { div { dt { "Does not answer" } dd { (silent.reason) } } }
            @if let Some(why) = &view.vm_ended_because { div { dt { "VM ended" } dd { (why) } } }
            @if let Some(at) = view.rebooted_at { div { dt { "Restarted" } dd { (parts::time(at)) } } }
        }
    }
}

fn actions(visitor: &Visitor, view: &InstanceView) -> Markup {
    let at = |action: &str| format!("/instances/{}/{action}", view.id);
    html! {
        div.buttons {
            @if view.vm_ended_at.is_none() {
                @if view.paused {
                    form method="post" action=(at("resume")) { (proof_field(visitor)) button type="submit" { "Resume" } }
                } @else {
                    form method="post" action=(at("pause")) {
                        (proof_field(visitor))
                        button type="submit" { "Pause" }
                        label.check { input type="checkbox" name="disk" value="yes"; " to the disk" }
                    }
                }
                form method="post" action=(at("fork")) {
                    (proof_field(visitor))
                    button type="submit" { "Fork" }
                    label.check { input type="number" name="count" min="1" max="64" value="1" aria-label="How many forks"; " times" }
                }
                form method="post" action=(at("extend")) {
                    (proof_field(visitor))
                    button type="submit" { "Extend" }
                    label.check { " by " input type="number" name="minutes" min="1" max="10080" value="120" aria-label="Minutes"; " minutes" }
                }
            }
            form method="post" action=(at("release")) { (proof_field(visitor)) button.bad type="submit" { "Release" } }
        }
    }
}

/// `POST /instances/{instance}/{action}`.
pub async fn act(
    Path((_, action)): Path<(String, String)>,
    Named(id): Named<InstanceId>,
    Posted { visitor, fields }: Posted,
) -> Result<Response, Refusal> {
    let here = format!("/instances/{id}");
    let done = match action.as_str() {
        "release" => return release(&visitor, &id).await,
        "pause" => {
            let to_disk = if fields.has("disk") { "?toDisk=true" } else { "" };
            let paused: Result<Paused, _> = visitor.order(Method::POST, &format!("{here}/pause{to_disk}")).await;
            paused.map(|_| Done::Paused)
        }
        "resume" => {
            let resumed: Result<Paused, _> = visitor.order(Method::POST, &format!("{here}/resume")).await;
            resumed.map(|_| Done::Resumed)
        }
        "fork" => {
            let body = json!({ "count": fields.number("count").unwrap_or(1.into()) });
            let forked: Result<ForkReply, _> = visitor.send(Method::POST, &format!("{here}/fork"), &body).await;
            forked.map(|_| Done::Forked)
        }
        "extend" => {
            let body = json!({ "minutes": fields.number("minutes").unwrap_or(120.into()) });
            let extended: Result<Heartbeat, _> = visitor.send(Method::POST, &format!("{here}/extend"), &body).await;
            extended.map(|_| Done::Extended)
        }
        _ => Err(Refusal::new(ErrorCode::NotFound, "there is no such action")),
    };
    match done {
        Ok(Done::Forked) => Ok(Done::Forked.at("/claims")),
        Ok(done) => Ok(done.at(&here)),
        Err(refusal) => {
            let page = page(&visitor, &id, &refusal.notice()).await?;
            Ok(refused(page, Some(&refusal)))
        }
    }
}

/// `GET …/inside`: what the VM itself is asked for.
pub async fn inside(Named(id): Named<InstanceId>, visitor: Visitor) -> Result<Response, Refusal> {
    let here = format!("/instances/{id}");
    let ports: Result<InstancePorts, _> = visitor.get(&format!("{here}/ports")).await;
    let sessions: Result<Items<Session>, _> = visitor.get(&format!("{here}/sessions")).await;
    let logs: Result<Items<InstanceLog>, _> = visitor.get(&format!("{here}/logs")).await;
    let mut listening: Vec<&InstancePort> = ports.iter().flat_map(|ports| &ports.items).collect();
    // One server may listen on several addresses.
    listening.dedup_by_key(|port| port.port);
    let name = |port: u16| {
        let named = ports
            .as_ref()
            .ok()?
            .previews
            .iter()
            .find(|preview| preview.port == port)?;
        Some(named.name.clone())
    };
    Ok(frame::part(html! {
        div #inside hx-get=(format!("{here}/inside")) hx-trigger="every 5s" hx-swap="outerMorph" {
            section aria-labelledby="ports-title" {
                h2 #ports-title { "Ports and previews" }
                @match &ports {
                    Err(refusal) => (refusal.notice()),
                    Ok(_) if listening.is_empty() => p.empty { "Nothing listens on a port in this VM." },
                    Ok(_) => ul.list {
                        @for port in &listening {
                            li {
                                strong { (port.port) } " "
                                @if let Some(name) = name(port.port) { (name) " " }
                                span.dim { (port.process.as_deref().unwrap_or("")) " on " (port.address) } " "
                                a href=(format!("{here}/ports/{}", port.port)) target="_blank" rel="noopener noreferrer" { "Open preview" span.hidden { " of port " (port.port) } }
                            }
                        }
                    },
                }
            }
            section aria-labelledby="sessions-title" {
                h2 #sessions-title { "Sessions" }
                @match &sessions {
                    Err(refusal) => (refusal.notice()),
                    Ok(all) if all.items.is_empty() => p.empty { "None was started." },
                    Ok(all) => ul.list {
                        @for one in &all.items {
                            li {
                                @if one.is_running() { (badge(Tone::Busy, "running")) } @else { (badge(Tone::Off, "ended")) } " "
                                a href=(format!("{here}/sessions/{}", utf8_percent_encode(&one.id, NON_ALPHANUMERIC))) { code { (one.argv.join(" ")) } } " "
                                span.dim { (one.tag.as_deref().unwrap_or_default()) " " (one.user) " in " (one.cwd) ", since " (parts::time(one.started_at)) }
                            }
                        }
                    },
                }
            }
            section aria-labelledby="logs-title" {
                h2 #logs-title { "Logs" }
                @match &logs {
                    Err(refusal) => (refusal.notice()),
                    Ok(all) if all.items.is_empty() => p.empty { "Nothing in this VM writes one." },
                    Ok(all) => ul.list {
                        @for one in &all.items {
                            li {
                                a href=(format!("{here}/logs/{}", utf8_percent_encode(&one.name, NON_ALPHANUMERIC))) { (one.name) } " "
                                span.dim { (parts::bytes(one.bytes)) " " (one.command.as_deref().unwrap_or_default()) }
                            }
                        }
                    },
                }
            }
        }
    }))
}

/// `GET …/ports/{port}`: to what listens there, by a link of its own.
pub async fn preview(
    Path((_, port)): Path<(String, String)>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
) -> Result<Response, Refusal> {
    let port: u16 = port
        .parse()
        .map_err(|_| Refusal::new(ErrorCode::NotFound, "there is no such port"))?;
    let body = json!({ "port": port, "expiresInSeconds": PREVIEW_SECONDS });
    let share: Share = visitor
        .send(Method::POST, &format!("/instances/{id}/shares"), &body)
        .await?;
    Ok(Redirect::to(&share.url).into_response())
}

/// `GET …/logs/{log}`.
pub async fn log(
    Path((_, name)): Path<(String, String)>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
) -> Result<Response, Refusal> {
    let path = format!("/instances/{id}/logs/{}", utf8_percent_encode(&name, NON_ALPHANUMERIC));
    text(&visitor, &id, "Log", &name, &path).await
}

/// `GET …/sessions/{session}`: what it printed.
pub async fn session(
    Path((_, name)): Path<(String, String)>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
) -> Result<Response, Refusal> {
    let name = utf8_percent_encode(&name, NON_ALPHANUMERIC);
    let path = format!("/instances/{id}/sessions/{name}");
    let session: Session = visitor.get(&path).await?;
    let path = format!("{path}/output?last={LOG_BYTES}");
    text(&visitor, &id, "Session", &session.argv.join(" "), &path).await
}

/// A text from inside a VM as a page.
async fn text(visitor: &Visitor, id: &InstanceId, kind: &str, name: &str, path: &str) -> Result<Response, Refusal> {
    let (view, project) = look_up(visitor, id).await?;
    let text = visitor.text(path, LOG_BYTES).await?;
    let body = html! {
        (head(&view, project.as_ref(), Some(kind)))
        h2 { code { (name) } }
        @if text.is_empty() { p.empty { "Nothing was printed." } } @else { pre tabindex="0" { (parts::plain(&text)) } }
    };
    Ok(Frame::new(visitor, Section::Claims, kind).show(&body))
}
