//! A project's history: claims, each with the one cause why it was not warm, and boots with their logs, also when their VMs are gone.

use axum::response::Response;
use hearth_api::history::{BootDetail, BootRecord, ClaimRecord, History};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{Step, StepStatus};
use hearth_api::project::ProjectView;
use jiff::Timestamp;
use maud::{Markup, html};

use super::claims::source;
use super::form::{Fields, Named, pairs};
use super::frame::{Frame, Section};
use super::parts::{self, Tone, badge};
use super::pool::{Tab, head};
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Records of one page.
const PER_PAGE: usize = 50;

/// Which records are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Claims,
    Boots,
}

/// What is asked for.
struct Search<'a> {
    kind: Kind,
    text: Option<&'a str>,
    troubled: bool,
    before: Option<Timestamp>,
}

impl<'a> Search<'a> {
    fn of(query: &'a Fields) -> Self {
        Self {
            kind: if query.get("show") == Some("boots") {
                Kind::Boots
            } else {
                Kind::Claims
            },
            text: query.filled("text"),
            troubled: query.has("troubled"),
            before: query.get("before").and_then(|at| at.parse().ok()),
        }
    }

    /// The same as an address.
    fn pairs(&self, kind: Kind, before: Option<Timestamp>) -> String {
        let before = before.map(|at| at.to_string());
        pairs(&[
            ("show", (kind == Kind::Boots).then_some("boots")),
            ("text", self.text),
            ("troubled", self.troubled.then_some("true")),
            ("before", before.as_deref()),
        ])
    }
}

/// `GET /projects/{project}/history`.
pub async fn show(Named(id): Named<ProjectId>, visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    let project: ProjectView = visitor.get(&format!("/projects/{id}/view")).await?;
    let search = Search::of(&query);
    let path = format!(
        "/projects/{id}/history?limit={PER_PAGE}&{}",
        search.pairs(Kind::Claims, search.before)
    );
    let found: History = visitor.get(path.trim_end_matches('&')).await?;
    let here = format!("/projects/{id}/history");
    let at = |kind: Kind, before| format!("{here}?{}", search.pairs(kind, before));
    let last = match search.kind {
        Kind::Claims => found.claims.get(PER_PAGE - 1).map(|claim| claim.claimed_at),
        Kind::Boots => found.boots.get(PER_PAGE - 1).map(|boot| boot.ordered_at),
    };
    let body = html! {
        (head(&project, Some(Tab::History)))
        nav.tabs aria-label="Kind of record" {
            @for (kind, name) in [(Kind::Claims, "Claims"), (Kind::Boots, "Boots")] {
                a href=(at(kind, None)) aria-current=[(kind == search.kind).then_some("page")] { (name) }
            }
        }
        form.row method="get" action=(here) role="search" {
            @if search.kind == Kind::Boots { input type="hidden" name="show" value="boots"; }
            label { span { "Instance, task, owner or failure" } input name="text" maxlength="191" value=(search.text.unwrap_or_default()); }
            label.check {
                input type="checkbox" name="troubled" value="true" checked[search.troubled];
                @if search.kind == Kind::Boots { " only failed ones" } @else { " only those that were not warm" }
            }
            button type="submit" { "Search" }
        }
        @match search.kind {
            Kind::Claims => (claims(&found.claims)),
            Kind::Boots => (boots(&id, &found.boots)),
        }
        @if let Some(last) = last {
            nav.pages aria-label="Pages of the list" { a href=(at(search.kind, Some(last))) rel="next" { "Older" } }
        }
    };
    let title = format!("History of {}", project.name);
    Ok(Frame::new(&visitor, Section::Projects, &title).show(&body))
}

fn claims(all: &[ClaimRecord]) -> Markup {
    html! {
        @if all.is_empty() {
            p.empty { "The history has no such claim." }
        } @else {
            table.cards {
                caption.hidden { "Claims, newest first" }
                thead {
                    tr {
                        th scope="col" { "VM" } th scope="col" { "Claimed" } th scope="col" { "Task" } th scope="col" { "Who" }
                        th scope="col" { "Source" } th scope="col" { "Why not warm" } th.number scope="col" { "Wait" } th scope="col" { "Ended" }
                    }
                }
                tbody {
                    @for one in all {
                        tr {
                            th scope="row" { code title=(one.id.as_str()) { (parts::short_id(one.id.as_str())) } }
                            td data-label="Claimed" { (parts::time(one.claimed_at)) }
                            td data-label="Task" { (one.task_id.as_deref().unwrap_or("–")) }
                            td data-label="Who" { (one.owner.as_deref().unwrap_or("–")) }
                            td data-label="Source" { (source(one.source)) }
                            td data-label="Why not warm" { @match one.cause { Some(cause) => code { (cause.as_str()) }, None => span.dim { "–" } } }
                            td.number data-label="Wait" { (parts::millis(one.wait_ms)) }
                            td data-label="Ended" {
                                (parts::optional_time(one.ended_at))
                                @if let Some(why) = &one.ended_because { div.dim.clip { (why) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn outcome(boot: &BootRecord) -> Markup {
    match boot.outcome.as_deref() {
        Some("ready") => badge(Tone::Good, "Ready"),
        Some("failed") => badge(Tone::Bad, "Failed"),
        _ if boot.gone_at.is_some() => badge(Tone::Off, "Ended"),
        _ => badge(Tone::Busy, "Provisioning"),
    }
}

/// How long it took, where it is over.
fn took(boot: &BootRecord) -> Markup {
    let took = boot.ended_at.map(|end| end.duration_since(boot.ordered_at).as_millis());
    match took.and_then(|took| u64::try_from(took).ok()) {
        Some(took) => html! { (parts::millis(took)) },
        None => html! { span.dim { "–" } },
    }
}

fn boots(project: &ProjectId, all: &[BootRecord]) -> Markup {
    html! {
        @if all.is_empty() {
            p.empty { "The history has no such boot." }
        } @else {
            table.cards {
                caption.hidden { "Boots, newest first" }
                thead {
                    tr {
                        th scope="col" { "Boot" } th scope="col" { "Made for" } th scope="col" { "Ordered" } th scope="col" { "Result" }
                        th.number scope="col" { "Took" } th scope="col" { "Why" } th scope="col" { "Gone" }
                    }
                }
                tbody {
                    @for one in all {
                        tr {
                            th scope="row" {
                                @if one.has_log {
                                    a href=(format!("/projects/{project}/history/{}", one.id)) title=(one.id.as_str()) { code { (parts::short_id(one.id.as_str())) } }
                                } @else {
                                    code title=(one.id.as_str()) { (parts::short_id(one.id.as_str())) }
                                }
                            }
                            td data-label="Made for" { (one.purpose) }
                            td data-label="Ordered" { (parts::time(one.ordered_at)) }
                            td data-label="Result" { (outcome(one)) }
                            td.number data-label="Took" { (took(one)) }
                            td data-label="Why" { div.clip { (one.failure.as_deref().or(one.reason.as_deref()).unwrap_or("–")) } }
                            td data-label="Gone" {
                                (parts::optional_time(one.gone_at))
                                @if let Some(why) = &one.gone_because { div.dim.clip { (why) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `GET /projects/{project}/history/{instance}`.
pub async fn boot(
    Named(project): Named<ProjectId>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
) -> Result<Response, Refusal> {
    let view: ProjectView = visitor.get(&format!("/projects/{project}/view")).await?;
    let BootDetail { boot, steps } = visitor.get(&format!("/projects/{project}/history/{id}")).await?;
    let body = html! {
        (head(&view, Some(Tab::History)))
        h2 { "Boot " code title=(id.as_str()) { (parts::short_id(id.as_str())) } }
        p.summary { (outcome(&boot)) " " span.dim { "made for " (boot.purpose) ", ordered " (parts::time(boot.ordered_at)) ", took " (took(&boot)) } }
        @if let Some(failure) = &boot.failure { div.notice.bad { p { strong { (failure) } } } }
        @if steps.is_empty() { p.empty { "Its log is not kept." } }
        @for one in &steps { (step(one)) }
    };
    let title = format!("Boot {} of {}", parts::short_id(id.as_str()), view.name);
    Ok(Frame::new(&visitor, Section::Projects, &title).show(&body))
}

fn step(step: &Step) -> Markup {
    let failed = step.status == StepStatus::Error;
    html! {
        details open[failed] {
            summary {
                code { (step.name) } " "
                @if failed { (badge(Tone::Bad, "failed")) }
                @if let Some(took) = step.duration_ms { " " span.dim { (parts::millis(took)) } }
            }
            @if let Some(error) = &step.error { pre.error { (parts::plain(error)) } }
            @match &step.output {
                Some(output) => pre tabindex="0" aria-label=(format!("Output of {}", step.name)) { (parts::plain(output)) },
                None => p.dim { "It printed nothing." },
            }
        }
    }
}
