//! Charts over time: claims by where their VMs came from and how long they waited, and for one project how its pool went ([`super::course`]).

use axum::response::Response;
use hearth_api::claim::ClaimSource;
use hearth_api::explain::MissCause;
use hearth_api::ids::ProjectId;
use hearth_api::project::ProjectView;
use hearth_api::token::Scope;
use jiff::Timestamp;
use maud::{Markup, html};

use super::course;
use super::drawing::{Axis, Range, bar, chart, percentile, round_up};
use super::form::Fields;
use super::frame::{self, Frame, Section};
use super::parts;
use super::refusal::Refusal;
use super::visitor::Visitor;
use crate::store::ClaimSeen;

/// What came in one part of the axis.
#[derive(Debug, Clone, Default)]
struct Part {
    /// Claims by source, in the order of [`ClaimSource::ALL`].
    sources: [u64; ClaimSource::ALL.len()],
    /// Waits, milliseconds, sorted.
    waits: Vec<u64>,
}

impl Part {
    fn total(&self) -> u64 {
        self.sources.iter().sum()
    }
}

fn place_of(source: ClaimSource) -> usize {
    let place = ClaimSource::ALL.iter().position(|one| *one == source);
    place.unwrap_or_default()
}

/// The claims in the parts of the axis.
fn parted(claims: &[ClaimSeen], axis: &Axis) -> Vec<Part> {
    let mut all = vec![Part::default(); axis.len()];
    for claim in claims {
        let Some(part) = axis.place(claim.at).and_then(|at| all.get_mut(at)) else {
            continue;
        };
        part.sources[place_of(claim.source)] += 1;
        part.waits.push(claim.wait_ms);
    }
    for part in &mut all {
        part.waits.sort_unstable();
    }
    all
}

/// `GET /charts`.
pub async fn show(visitor: Visitor, query: Fields, headers: axum::http::HeaderMap) -> Result<Response, Refusal> {
    let project: Option<ProjectView> = match query.get("project").and_then(|id| id.parse::<ProjectId>().ok()) {
        Some(id) => Some(visitor.get(&format!("/projects/{id}/view")).await?),
        None => None,
    };
    let range = Range::of(&query);
    let caller = &visitor.caller;
    let now = Timestamp::now();
    let axis = Axis::until(now, range);
    let store = &visitor.state.store;
    let sight = caller.sees(project.as_ref().map(|project| &project.id));
    // Only the history knows them.
    let tells_causes = caller.has(Scope::ProjectRead);
    let claims = if tells_causes {
        store.claims_told(sight, axis.since()).await?
    } else {
        caller.need(Scope::Claim)?;
        store.claims_since(sight, axis.since()).await?
    };
    // Copies of a VM in use, and claims of a checkpoint, ask no pool.
    let (claims, copies): (Vec<_>, Vec<_>) = claims
        .into_iter()
        .partition(|claim| claim.source == ClaimSource::Ready || claim.cause.is_some() || !tells_causes);
    let course = match &project {
        Some(project) if caller.has(Scope::ProjectRead) => Some(store.pool_course(&project.id, axis.since()).await?),
        _ => None,
    };
    let address = |range: Range| match &project {
        Some(project) => format!("/charts?range={}&project={}", range.as_str(), project.id),
        None => format!("/charts?range={}", range.as_str()),
    };
    let part = html! {
        div #charts hx-get=(address(range)) hx-trigger="every 10s" hx-swap="outerMorph" {
            (of_claims(&parted(&claims, &axis), &axis, &claims))
            @if !copies.is_empty() {
                p.help { (parts::counted(copies.len() as u64, "VM")) " more came from a copy or a checkpoint, and asked no pool." }
            }
            @if let Some(course) = &course { (course::show(course, &axis, now)) }
        }
    };
    if headers.contains_key("hx-request") {
        return Ok(frame::part(part));
    }
    let body = html! {
        div.title {
            h1 { "The last " (range.name()) }
            @if let Some(project) = &project { p { "of " a href=(format!("/projects/{}", project.id)) { (project.name) } } }
            nav.tabs aria-label="How far back" {
                @for one in Range::ALL { a href=(address(one)) aria-current=[(one == range).then_some("page")] { (one.name()) } }
            }
        }
        (part)
        @if project.is_none() && visitor.may(Scope::ProjectRead) {
            p.help { "A project's charts also show its ready VMs against the target, the time by step and VM-hours." }
        }
    };
    Ok(Frame::new(&visitor, Section::Charts, "Charts").show(&body))
}

fn of_claims(all: &[Part], axis: &Axis, claims: &[ClaimSeen]) -> Markup {
    let mut waits: Vec<u64> = all.iter().flat_map(|part| part.waits.iter().copied()).collect();
    waits.sort_unstable();
    let total: u64 = all.iter().map(Part::total).sum();
    let warm: u64 = all.iter().map(|part| part.sources[place_of(ClaimSource::Ready)]).sum();
    let wait = |percent| percentile(&waits, percent).map_or_else(|| "–".to_owned(), parts::millis);
    html! {
        dl.figures {
            div { dt { "Claims" } dd { (total) } }
            div { dt { "From a ready VM" } dd { (warm) @if total > 0 { small { " " ((warm * 100 + total / 2) / total) " %" } } } }
            div { dt { "Wait, median" } dd { (wait(50)) } }
            div { dt { "Wait, p95" } dd { (wait(95)) } }
            div { dt { "Wait, p99" } dd { (wait(99)) } }
        }
        @if total == 0 {
            p.empty { "There was no claim in this time." }
        } @else {
            figure {
                figcaption { "Claims by source" (legend()) }
                (sources_chart(all, axis))
            }
            figure {
                figcaption { "Wait" span.legend { span.key.p50 { "median" } span.key.p95 { "p95" } } }
                (waits_chart(all, axis))
            }
            (causes(claims))
            (table(all, axis))
        }
    }
}

fn legend() -> Markup {
    html! {
        span.legend { @for source in ClaimSource::ALL { span.key.(source.as_str()) { (source.as_str()) } } }
    }
}

fn sources_chart(all: &[Part], axis: &Axis) -> Markup {
    let most = round_up(all.iter().map(Part::total).max().unwrap_or_default());
    let bars = html! {
        @for (at, part) in all.iter().enumerate() {
            @for (source, name) in ClaimSource::ALL.into_iter().enumerate() {
                @let below: u64 = part.sources[..source].iter().sum();
                @let values = (below as f64, (below + part.sources[source]) as f64);
                (bar(axis, at, name.as_str(), values, most, (0.0, 1.0)))
            }
        }
    };
    let label = "Claims by source; the table below has the figures";
    chart(label, axis, most, |value| value.to_string(), &bars)
}

fn waits_chart(all: &[Part], axis: &Axis) -> Markup {
    let longest = all.iter().filter_map(|part| percentile(&part.waits, 95)).max();
    let most = round_up(longest.unwrap_or_default());
    let bars = html! {
        @for (at, part) in all.iter().enumerate() {
            @for (class, percent, share) in [("p50", 50, (0.0, 0.5)), ("p95", 95, (0.5, 1.0))] {
                @if let Some(wait) = percentile(&part.waits, percent) {
                    (bar(axis, at, class, (0.0, wait as f64), most, share))
                }
            }
        }
    };
    let label = "Median and 95th percentile of the wait; the table below has the figures";
    chart(label, axis, most, parts::millis, &bars)
}

/// In words, for each cause.
fn meaning(cause: MissCause) -> &'static str {
    match cause {
        MissCause::Bypass => "The claim was to leave the pool alone.",
        MissCause::PoolDisabled => "The pool is disabled.",
        MissCause::Unfit => "The ready VMs that were tried were not fit.",
        MissCause::OlderRecipe => "The claim was strict, and the ready VMs were of an older recipe.",
        MissCause::SetUpFails => "The set-up fails, so the pool is not filled.",
        MissCause::NoTemplate => "The pool's first VMs were still being made.",
        MissCause::Drained => "Claims came faster than the pool was filled.",
    }
}

fn causes(claims: &[ClaimSeen]) -> Markup {
    let count = |cause| claims.iter().filter(|claim| claim.cause == Some(cause)).count();
    let all: Vec<(MissCause, usize)> = MissCause::ALL.into_iter().map(|cause| (cause, count(cause))).collect();
    html! {
        @if all.iter().any(|(_, count)| *count > 0) {
            h2 { "Why claims were not warm" }
            table.cards {
                caption.hidden { "Claims that got no ready VM, by cause" }
                thead { tr { th scope="col" { "Cause" } th scope="col" { "Meaning" } th.number scope="col" { "Claims" } } }
                tbody {
                    @for (cause, count) in all.into_iter().filter(|(_, count)| *count > 0) {
                        tr {
                            th scope="row" { code { (cause.as_str()) } }
                            td data-label="Meaning" { (meaning(cause)) }
                            td.number data-label="Claims" { (count) }
                        }
                    }
                }
            }
        }
    }
}

fn table(all: &[Part], axis: &Axis) -> Markup {
    let wait = |part: &Part, percent| percentile(&part.waits, percent).map_or_else(|| "–".to_owned(), parts::millis);
    html! {
        table.cards {
            caption.hidden { "Claims by source, and their wait" }
            thead {
                tr {
                    th scope="col" { "From (UTC)" }
                    @for source in ClaimSource::ALL { th.number scope="col" { (source.as_str()) } }
                    th.number scope="col" { "Wait, median" } th.number scope="col" { "Wait, p95" }
                }
            }
            tbody {
                @for (at, part) in all.iter().enumerate().rev().filter(|(_, part)| part.total() > 0) {
                    tr {
                        th scope="row" { (axis.label(at)) }
                        @for (at, source) in ClaimSource::ALL.into_iter().enumerate() { td.number data-label=(source.as_str()) { (part.sources[at]) } }
                        td.number data-label="Wait, median" { (wait(part, 50)) }
                        td.number data-label="Wait, p95" { (wait(part, 95)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn claims_fall_into_their_hours() {
        let now: Timestamp = "2026-05-01T12:30:00Z".parse().unwrap();
        let claim = |ago: i64, source, wait_ms| ClaimSeen {
            at: now - SignedDuration::from_mins(ago),
            source,
            wait_ms,
            cause: None,
        };
        let told = [
            claim(10, ClaimSource::Ready, 30),
            claim(20, ClaimSource::Cold, 9000),
            claim(31, ClaimSource::Ready, 40),
            claim(60 * 25, ClaimSource::Fork, 1),
        ];
        let all = parted(&told, &Axis::until(now, Range::Day));
        assert_eq!(all[23].sources, [1, 0, 0, 1]);
        assert_eq!(all[22].sources, [1, 0, 0, 0]);
        assert_eq!(all.iter().map(Part::total).sum::<u64>(), 3);
    }
}
