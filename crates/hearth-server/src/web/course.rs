//! Charts of one pool: its ready VMs against the target, VM-hours, and how long each step takes.

use std::collections::BTreeMap;

use hearth_api::instance::StepName;
use jiff::Timestamp;
use maud::{Markup, html};

use super::drawing::{Axis, bar, chart, level, percentile, round_up};
use super::parts;
use crate::store::{PoolCourse, Span};

/// What one part of the axis had.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// VMs that were ready, on average over what has passed of it.
    ready: f64,
    /// The largest target in it; `None` where it is not known.
    target: Option<u64>,
    /// Hours that VMs waited ready, and that they were claimed.
    warm_hours: f64,
    claimed_hours: f64,
}

fn seconds(spans: &[Span], axis: &Axis, at: usize, now: Timestamp) -> f64 {
    let covered = |(begin, end): &Span| axis.covered(at, *begin, end.unwrap_or(now));
    spans.iter().map(covered).sum()
}

/// The largest target between two times.
fn target(targets: &[(Timestamp, u64)], from: Timestamp, until: Timestamp) -> Option<u64> {
    let before = targets.iter().rfind(|(at, _)| *at <= from);
    let within = targets.iter().filter(|(at, _)| *at > from && *at < until);
    before.into_iter().chain(within).map(|(_, target)| *target).max()
}

fn parted(course: &PoolCourse, axis: &Axis, now: Timestamp) -> Vec<Part> {
    let part = |at: usize| {
        let (begin, end) = axis.bounds(at);
        let passed = axis.covered(at, begin, now.min(end)).max(1.0);
        let ready = seconds(&course.ready, axis, at, now);
        Part {
            ready: ready / passed,
            target: target(&course.targets, begin, now.min(end)),
            warm_hours: ready / 3600.0,
            claimed_hours: seconds(&course.claimed, axis, at, now) / 3600.0,
        }
    };
    (0..axis.len()).map(part).collect()
}

/// All charts of a pool.
pub fn show(course: &PoolCourse, axis: &Axis, now: Timestamp) -> Markup {
    let all = parted(course, axis, now);
    let total = |hours: fn(&Part) -> f64| all.iter().map(hours).sum::<f64>();
    html! {
        h2 { "The pool" }
        dl.figures {
            div { dt { "VM-hours, ready" } dd { (hours(total(|part| part.warm_hours))) } }
            div { dt { "VM-hours, claimed" } dd { (hours(total(|part| part.claimed_hours))) } }
        }
        figure {
            figcaption { "Ready against target" span.legend { span.key.ready { "ready, average" } span.key.target { "target" } } }
            (ready_chart(&all, axis))
        }
        figure {
            figcaption { "VM-hours" span.legend { span.key.ready { "ready" } span.key.claimed { "claimed" } } }
            (hours_chart(&all, axis))
        }
        (table(&all, axis))
        (steps(&course.steps))
    }
}

fn hours(hours: f64) -> String {
    format!("{hours:.1}")
}

fn ready_chart(all: &[Part], axis: &Axis) -> Markup {
    let highest = all
        .iter()
        .map(|part| (part.ready.ceil() as u64).max(part.target.unwrap_or_default()));
    let most = round_up(highest.max().unwrap_or_default());
    let drawn = html! {
        @for (at, part) in all.iter().enumerate() {
            (bar(axis, at, "ready", (0.0, part.ready), most, (0.0, 1.0)))
            @if let Some(target) = part.target { (level(axis, at, "target", target, most)) }
        }
    };
    let label = "Ready VMs on average, and the target; the table below has the figures";
    chart(label, axis, most, |value| value.to_string(), &drawn)
}

fn hours_chart(all: &[Part], axis: &Axis) -> Markup {
    let highest = all
        .iter()
        .map(|part| (part.warm_hours + part.claimed_hours).ceil() as u64);
    let most = round_up(highest.max().unwrap_or_default());
    let drawn = html! {
        @for (at, part) in all.iter().enumerate() {
            (bar(axis, at, "ready", (0.0, part.warm_hours), most, (0.0, 1.0)))
            (bar(axis, at, "claimed", (part.warm_hours, part.warm_hours + part.claimed_hours), most, (0.0, 1.0)))
        }
    };
    let label = "Hours that VMs waited ready, and that they were claimed; the table below has the figures";
    chart(label, axis, most, |value| value.to_string(), &drawn)
}

fn table(all: &[Part], axis: &Axis) -> Markup {
    let some =
        |part: &Part| part.ready > 0.0 || part.claimed_hours > 0.0 || part.target.is_some_and(|target| target > 0);
    html! {
        details {
            summary { "Figures" }
            table.cards {
                caption.hidden { "Ready VMs, target and VM-hours" }
                thead {
                    tr {
                        th scope="col" { "From (UTC)" } th.number scope="col" { "Ready, average" } th.number scope="col" { "Target" }
                        th.number scope="col" { "VM-hours, ready" } th.number scope="col" { "VM-hours, claimed" }
                    }
                }
                tbody {
                    @for (at, part) in all.iter().enumerate().rev().filter(|(_, part)| some(part)) {
                        tr {
                            th scope="row" { (axis.label(at)) }
                            td.number data-label="Ready, average" { (hours(part.ready)) }
                            td.number data-label="Target" { @match part.target { Some(target) => (target), None => span.dim { "–" } } }
                            td.number data-label="VM-hours, ready" { (hours(part.warm_hours)) }
                            td.number data-label="VM-hours, claimed" { (hours(part.claimed_hours)) }
                        }
                    }
                }
            }
        }
    }
}

/// How long each step took, where it took any time.
fn steps(took: &[(String, u64)]) -> Markup {
    let mut by_name: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (name, ms) in took {
        if let Some(at) = StepName::ALL.iter().position(|step| step.as_str() == name) {
            by_name.entry(at).or_default().push(*ms);
        }
    }
    for all in by_name.values_mut() {
        all.sort_unstable();
    }
    let longest = by_name
        .values()
        .filter_map(|all| percentile(all, 95))
        .max()
        .unwrap_or(1);
    html! {
        @if !by_name.is_empty() {
            h2 { "Time by step" }
            table.cards {
                caption.hidden { "How long each step took" }
                thead {
                    tr {
                        th scope="col" { "Step" } th.number scope="col" { "Times" } th scope="col" { "Median" } th scope="col" { "p95" }
                    }
                }
                tbody {
                    @for (at, all) in &by_name {
                        tr {
                            th scope="row" { code { (StepName::ALL[*at].as_str()) } }
                            td.number data-label="Times" { (all.len()) }
                            @for (label, percent) in [("Median", 50), ("p95", 95)] {
                                @let ms = percentile(all, percent).unwrap_or_default();
                                td data-label=(label) { (parts::meter(ms, longest, &parts::millis(ms))) }
                            }
                        }
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
    use crate::web::drawing::Range;

    #[test]
    fn ready_vms_and_targets_are_read_from_spans_and_changes() {
        let now: Timestamp = "2026-05-01T12:30:00Z".parse().unwrap();
        let ago = |minutes| now - SignedDuration::from_mins(minutes);
        let course = PoolCourse {
            // Two for all of the hour before, one of them for half of this one.
            ready: vec![(ago(90), Some(ago(30))), (ago(90), None)],
            claimed: vec![(ago(30), Some(ago(15)))],
            targets: vec![(ago(600), 4), (ago(40), 0), (ago(10), 2)],
            steps: Vec::new(),
        };
        let all = parted(&course, &Axis::until(now, Range::Day), now);
        let close = |a: f64, b: f64| (a - b).abs() < 0.001;
        assert!(
            close(all[22].ready, 2.0) && close(all[23].ready, 1.0),
            "{:?}",
            &all[22..]
        );
        assert!(
            close(all[23].warm_hours, 0.5) && close(all[23].claimed_hours, 0.25),
            "{:?}",
            all[23]
        );
        assert_eq!(
            (all[10].target, all[22].target, all[23].target),
            (None, Some(4), Some(2))
        );
    }
}
