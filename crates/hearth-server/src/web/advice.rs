//! What another target size would have meant for the claims of the last days.

use axum::response::Response;
use hearth_api::advice::{AdviceOutcome, PoolAdvice};
use hearth_api::ids::ProjectId;
use hearth_api::project::ProjectView;
use maud::{Markup, html};

use super::form::{Fields, Named, pairs};
use super::frame::{Frame, Section};
use super::parts;
use super::pool::{Tab, head};
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Days that are replayed when nothing else is asked for.
const DAYS: &str = "7";

/// `GET /projects/{project}/advice`.
pub async fn show(Named(id): Named<ProjectId>, visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    let project: ProjectView = visitor.get(&format!("/projects/{id}/view")).await?;
    let days = query.filled("days").unwrap_or(DAYS);
    let target = query.filled("target");
    let asked = pairs(&[("days", Some(days)), ("target", target)]);
    let path = format!("/projects/{id}/warm-pool/advice?{asked}");
    let advice = visitor.get::<PoolAdvice>(&path).await;
    let body = html! {
        (head(&project, Some(Tab::Advice)))
        p.help { "The claims of the last days are replayed against pools of other sizes that are filled as fast as this one was." }
        form.row method="get" {
            label { span { "Days" } input type="number" name="days" min="1" max="90" value=(days); }
            label { span { "Target to try " span.dim { "(optional)" } } input type="number" name="target" min="0" max="50" value=(target.unwrap_or_default()); }
            button type="submit" { "Replay" }
        }
        @match &advice {
            Ok(advice) => (outcomes(advice)),
            Err(refusal) => (refusal.notice()),
        }
    };
    let title = format!("Advice for {}", project.name);
    Ok(Frame::new(&visitor, Section::Projects, &title).show(&body))
}

fn outcomes(advice: &PoolAdvice) -> Markup {
    let rows = [
        ("Suggested", Some(&advice.suggested)),
        ("Present", Some(&advice.present)),
        ("Asked for", advice.asked.as_ref()),
    ];
    html! {
        dl.figures {
            div { dt { "Claims" } dd { (advice.claims) } }
            div { dt { "Time to make a VM" } dd { (parts::millis(advice.refill_ms)) } }
            div { dt { "Made at a time" } dd { (advice.at_once) } }
        }
        @if advice.claims == 0 { p.empty { "There was no claim in this time, so every target would have done." } }
        table.cards {
            caption.hidden { "What each target would have meant" }
            thead {
                tr {
                    th scope="col" { "" } th.number scope="col" { "Target" } th.number scope="col" { "From a ready VM" }
                    th.number scope="col" { "Wait, p95" } th.number scope="col" { "VM-hours, ready" }
                }
            }
            tbody {
                @for (name, outcome) in rows {
                    @if let Some(outcome) = outcome { (row(name, outcome)) }
                }
            }
        }
        p.help { "The suggested target is the smallest with which 95 of 100 claims would have got a ready VM." }
    }
}

fn row(name: &str, outcome: &AdviceOutcome) -> Markup {
    html! {
        tr {
            th scope="row" { (name) }
            td.number data-label="Target" { (outcome.target) }
            td.number data-label="From a ready VM" { (format!("{:.0} %", outcome.hit_rate * 100.0)) }
            td.number data-label="Wait, p95" { (parts::millis(outcome.p95_wait_ms)) }
            td.number data-label="VM-hours, ready" { (format!("{:.1}", outcome.vm_hours)) }
        }
    }
}
