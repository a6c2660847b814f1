//! Charts of the last day: claims by where their VMs came from, and how long they waited. Drawn here as SVG; the table beside has the same
//! figures. Claims are kept for a day after their end, so that is how far the charts reach back.

use axum::response::Response;
use hearth_api::claim::ClaimSource;
use hearth_api::ids::ProjectId;
use hearth_api::project::ProjectView;
use hearth_api::token::Scope;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};

use super::form::Fields;
use super::frame::{self, Frame, Section};
use super::parts;
use super::refusal::Refusal;
use super::visitor::Visitor;
use crate::store::{ClaimSeen, Sight};

/// Hours that are shown.
const HOURS: usize = 24;
/// Size of a chart, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 180.0;
/// Room for the scale and the hours.
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 24.0;
/// Lines of the scale.
const STEPS: usize = 4;

/// What came in one hour.
#[derive(Debug, Clone, Default)]
struct Hour {
    begin: Timestamp,
    /// Claims by source, in the order of [`ClaimSource::ALL`].
    sources: [u64; ClaimSource::ALL.len()],
    /// Waits, milliseconds, sorted.
    waits: Vec<u64>,
}

impl Hour {
    fn total(&self) -> u64 {
        self.sources.iter().sum()
    }
}

/// The wait that so many percent of the claims did not exceed; nearest rank.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The claims in the hours before `now`, the current one last.
fn hours(claims: &[ClaimSeen], now: Timestamp) -> Vec<Hour> {
    const SECONDS: i64 = 3600;
    let current = now.as_second().div_euclid(SECONDS);
    let first = current - (HOURS as i64 - 1);
    let mut hours: Vec<Hour> = (first..=current)
        .map(|hour| Hour {
            begin: Timestamp::from_second(hour * SECONDS).unwrap_or(now),
            ..Hour::default()
        })
        .collect();
    for claim in claims {
        let at = claim.at.as_second().div_euclid(SECONDS) - first;
        let Some(hour) = usize::try_from(at).ok().and_then(|at| hours.get_mut(at)) else {
            continue;
        };
        if let Some(source) = ClaimSource::ALL.iter().position(|source| *source == claim.source) {
            hour.sources[source] += 1;
        }
        hour.waits.push(claim.wait_ms);
    }
    for hour in &mut hours {
        hour.waits.sort_unstable();
    }
    hours
}

/// `GET /charts`.
pub async fn show(visitor: Visitor, query: Fields, headers: axum::http::HeaderMap) -> Result<Response, Refusal> {
    let project: Option<ProjectView> = match query.get("project").and_then(|id| id.parse::<ProjectId>().ok()) {
        Some(id) => Some(visitor.get(&format!("/projects/{id}/view")).await?),
        None => None,
    };
    let caller = &visitor.caller;
    if !caller.has(Scope::ProjectRead) {
        caller.need(Scope::Claim)?;
    }
    let sight = Sight {
        tenant: &caller.0.tenant,
        project: project
            .as_ref()
            .map(|project| &project.id)
            .or(caller.0.project_id.as_ref()),
        claimed_by: (!caller.has(Scope::ProjectRead)).then_some(&caller.0.id),
        name_prefix: caller.0.name_prefix.as_deref(),
    };
    let now = Timestamp::now();
    let since = now - SignedDuration::from_hours(HOURS as i64);
    let hours = hours(&visitor.state.store.claims_since(sight, since).await?, now);
    let address = match &project {
        Some(project) => format!("/charts?project={}", project.id),
        None => "/charts".to_owned(),
    };
    let part = charts(&hours, &address);
    if headers.contains_key("hx-request") {
        return Ok(frame::part(part));
    }
    let body = html! {
        div.title {
            h1 { "Claims of the last 24 hours" }
            @if let Some(project) = &project { p { "of " a href=(format!("/projects/{}", project.id)) { (project.name) } } }
        }
        (part)
    };
    Ok(Frame::new(&visitor, Section::Charts, "Charts").show(&body))
}

fn charts(hours: &[Hour], address: &str) -> Markup {
    let mut waits: Vec<u64> = hours.iter().flat_map(|hour| hour.waits.iter().copied()).collect();
    waits.sort_unstable();
    let total: u64 = hours.iter().map(Hour::total).sum();
    let of = |source: ClaimSource| {
        let at = ClaimSource::ALL
            .iter()
            .position(|one| *one == source)
            .unwrap_or_default();
        hours.iter().map(|hour| hour.sources[at]).sum::<u64>()
    };
    let warm = of(ClaimSource::Ready);
    let wait = |percent| percentile(&waits, percent).map_or_else(|| "–".to_owned(), parts::millis);
    html! {
        div #charts hx-get=(address) hx-trigger="every 10s" hx-swap="outerMorph" {
            dl.figures {
                div { dt { "Claims" } dd { (total) } }
                div { dt { "From a ready VM" } dd { (warm) @if total > 0 { small { " " (warm * 100 / total) " %" } } } }
                div { dt { "Wait, median" } dd { (wait(50)) } }
                div { dt { "Wait, p95" } dd { (wait(95)) } }
                div { dt { "Wait, p99" } dd { (wait(99)) } }
            }
            @if total == 0 {
                p.empty { "There was no claim in this time." }
            } @else {
                figure {
                    figcaption { "Claims by source" (legend()) }
                    (sources_chart(hours))
                }
                figure {
                    figcaption { "Wait per hour" span.legend { span.key.p50 { "median" } span.key.p95 { "p95" } } }
                    (waits_chart(hours))
                }
                (table(hours))
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        span.legend { @for source in ClaimSource::ALL { span.key.(source.as_str()) { (source.as_str()) } } }
    }
}

/// A number that an attribute of SVG takes.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

/// Where an hour begins, and how wide it is.
fn column(at: usize, hours: usize) -> (f64, f64) {
    let width = (WIDTH - LEFT) / hours.max(1) as f64;
    (LEFT + width * at as f64, width)
}

/// The next number that a scale ends with: 1, 2 or 5 with zeros.
fn round_up(value: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for step in [1, 2, 5] {
            if let Some(end) = unit.checked_mul(step)
                && end >= value
            {
                return end.max(STEPS as u64);
            }
        }
        let Some(next) = unit.checked_mul(10) else { return value };
        unit = next;
    }
}

fn chart(label: &str, hours: &[Hour], most: u64, text: impl Fn(u64) -> String, inside: &Markup) -> Markup {
    let ground = HEIGHT - BOTTOM;
    html! {
        svg role="img" aria-label=(label) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
            @for step in 0..=STEPS {
                @let y = ground - (ground - 8.0) * step as f64 / STEPS as f64;
                line.grid x1=(number(LEFT)) x2=(number(WIDTH)) y1=(number(y)) y2=(number(y)) {}
                text.scale x=(number(LEFT - 6.0)) y=(number(y + 4.0)) text-anchor="end" { (text(most * step as u64 / STEPS as u64)) }
            }
            (inside)
            @for (at, hour) in hours.iter().enumerate().filter(|(at, _)| at % 4 == 0) {
                @let (x, width) = column(at, hours.len());
                text.scale x=(number(x + width / 2.0)) y=(number(HEIGHT - 6.0)) text-anchor="middle" { (clock(hour.begin)) }
            }
        }
    }
}

/// The hour of a time, UTC.
fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M").to_string()
}

fn height(value: u64, most: u64) -> f64 {
    (HEIGHT - BOTTOM - 8.0) * value as f64 / most.max(1) as f64
}

fn sources_chart(hours: &[Hour]) -> Markup {
    let most = round_up(hours.iter().map(Hour::total).max().unwrap_or_default());
    let bars = html! {
        @for (at, hour) in hours.iter().enumerate() {
            @let (x, width) = column(at, hours.len());
            @for (source, name) in ClaimSource::ALL.into_iter().enumerate() {
                @let below: u64 = hour.sources[..source].iter().sum();
                @let tall = height(hour.sources[source], most);
                @if tall > 0.0 {
                    rect.(name.as_str()) x=(number(x + 2.0)) width=(number((width - 4.0).max(1.0))) height=(number(tall))
                        y=(number(HEIGHT - BOTTOM - height(below, most) - tall)) {}
                }
            }
        }
    };
    chart(
        "Claims of each hour by source; the table below has the figures",
        hours,
        most,
        |value| value.to_string(),
        &bars,
    )
}

fn waits_chart(hours: &[Hour]) -> Markup {
    let most = round_up(
        hours
            .iter()
            .filter_map(|hour| percentile(&hour.waits, 95))
            .max()
            .unwrap_or_default(),
    );
    let bars = html! {
        @for (at, hour) in hours.iter().enumerate() {
            @let (x, width) = column(at, hours.len());
            @for (class, percent, side) in [("p50", 50, 0.0), ("p95", 95, 0.5)] {
                @if let Some(wait) = percentile(&hour.waits, percent) {
                    @let tall = height(wait, most).max(1.0);
                    rect.(class) x=(number(x + 2.0 + side * (width - 4.0))) width=(number(((width - 4.0) / 2.0).max(1.0)))
                        height=(number(tall)) y=(number(HEIGHT - BOTTOM - tall)) {}
                }
            }
        }
    };
    chart(
        "Median and 95th percentile of the wait of each hour; the table below has the figures",
        hours,
        most,
        parts::millis,
        &bars,
    )
}

fn table(hours: &[Hour]) -> Markup {
    let wait = |hour: &Hour, percent| percentile(&hour.waits, percent).map_or_else(|| "–".to_owned(), parts::millis);
    html! {
        table.cards {
            caption.hidden { "Claims of each hour (UTC) by source, and their wait" }
            thead {
                tr {
                    th scope="col" { "Hour (UTC)" }
                    @for source in ClaimSource::ALL { th.number scope="col" { (source.as_str()) } }
                    th.number scope="col" { "Wait, median" } th.number scope="col" { "Wait, p95" }
                }
            }
            tbody {
                @for hour in hours.iter().rev().filter(|hour| hour.total() > 0) {
                    tr {
                        th scope="row" { (clock(hour.begin)) }
                        @for (at, source) in ClaimSource::ALL.into_iter().enumerate() { td.number data-label=(source.as_str()) { (hour.sources[at]) } }
                        td.number data-label="Wait, median" { (wait(hour, 50)) }
                        td.number data-label="Wait, p95" { (wait(hour, 95)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_fall_into_their_hours_and_waits_into_percentiles() {
        let now: Timestamp = "2026-05-01T12:30:00Z".parse().unwrap();
        let claim = |ago: i64, source, wait_ms| ClaimSeen {
            at: now - SignedDuration::from_mins(ago),
            source,
            wait_ms,
        };
        let seen = [
            claim(10, ClaimSource::Ready, 30),
            claim(20, ClaimSource::Cold, 9000),
            claim(31, ClaimSource::Ready, 40),
            claim(60 * 25, ClaimSource::Fork, 1),
        ];
        let hours = hours(&seen, now);
        assert_eq!(hours.len(), HOURS);
        assert_eq!(hours[23].sources, [1, 0, 0, 1]);
        assert_eq!(hours[22].sources, [1, 0, 0, 0]);
        assert_eq!(hours.iter().map(Hour::total).sum::<u64>(), 3);
        let waits: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [50, 95, 99].map(|percent| percentile(&waits, percent)),
            [Some(50), Some(95), Some(99)]
        );
        assert_eq!((percentile(&[], 50), percentile(&[7], 99)), (None, Some(7)));
        assert_eq!([0, 3, 7, 60, 1000].map(round_up), [4, 5, 10, 100, 1000]);
    }
}
