//! How charts are drawn: an axis of time in equal parts, and bars on it as SVG. A table beside each chart has the same figures.

use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};

use super::form::Fields;

/// Size of a chart, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 180.0;
/// Room for the scale and the times.
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 24.0;
/// Room above the highest bar.
const TOP: f64 = 8.0;
/// Lines of the scale.
const STEPS: usize = 4;
/// Times that are written below a chart, about.
const LABELS: usize = 6;

/// How far back a chart reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Range {
    #[default]
    Day,
    Week,
    Month,
}

impl Range {
    pub const ALL: [Self; 3] = [Self::Day, Self::Week, Self::Month];

    /// The one that an address asks for.
    pub fn of(query: &Fields) -> Self {
        let asked = query.get("range").unwrap_or_default();
        Self::ALL
            .into_iter()
            .find(|range| range.as_str() == asked)
            .unwrap_or_default()
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "24 hours",
            Self::Week => "7 days",
            Self::Month => "30 days",
        }
    }

    /// How many parts, and how many hours each is long.
    fn parts(self) -> (i64, i64) {
        match self {
            Self::Day => (24, 1),
            Self::Week => (28, 6),
            Self::Month => (30, 24),
        }
    }
}

/// The parts of a range, the current one last.
#[derive(Debug, Clone)]
pub struct Axis {
    begins: Vec<Timestamp>,
    part: SignedDuration,
    format: &'static str,
}

impl Axis {
    pub fn until(now: Timestamp, range: Range) -> Self {
        let (count, hours) = range.parts();
        let seconds = hours * 3600;
        let current = now.as_second().div_euclid(seconds);
        let begin = |part: i64| Timestamp::from_second(part * seconds).unwrap_or(now);
        Self {
            begins: (current - (count - 1)..=current).map(begin).collect(),
            part: SignedDuration::from_hours(hours),
            format: if range == Range::Day { "%H:%M" } else { "%d %b %H:%M" },
        }
    }

    pub fn since(&self) -> Timestamp {
        self.begins.first().copied().unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.begins.len()
    }

    /// When a part begins and ends.
    pub fn bounds(&self, at: usize) -> (Timestamp, Timestamp) {
        let begin = self.begins[at];
        (begin, begin.checked_add(self.part).unwrap_or(Timestamp::MAX))
    }

    /// The part that a time falls into.
    pub fn place(&self, at: Timestamp) -> Option<usize> {
        let since = at.duration_since(self.since()).as_secs();
        let place = usize::try_from(since.div_euclid(self.part.as_secs().max(1))).ok()?;
        (place < self.len()).then_some(place)
    }

    /// How much of a part a span covers, seconds.
    pub fn covered(&self, at: usize, begin: Timestamp, end: Timestamp) -> f64 {
        let (from, until) = self.bounds(at);
        end.min(until).duration_since(begin.max(from)).as_secs_f64().max(0.0)
    }

    /// The beginning of a part, UTC.
    pub fn label(&self, at: usize) -> String {
        self.begins[at].strftime(self.format).to_string()
    }

    /// Where a part begins, and how wide it is.
    pub fn column(&self, at: usize) -> (f64, f64) {
        let width = (WIDTH - LEFT) / self.len().max(1) as f64;
        (LEFT + width * at as f64, width)
    }
}

/// The value that so many percent do not exceed; nearest rank.
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The next number that a scale ends with: 1, 2, 4 or 8 with zeros, whose steps are whole.
pub fn round_up(value: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for step in [1, 2, 4, 8] {
            if let Some(end) = unit.checked_mul(step)
                && end >= value
                && end.is_multiple_of(STEPS as u64)
            {
                return end;
            }
        }
        let Some(next) = unit.checked_mul(10) else { return value };
        unit = next;
    }
}

/// A number that an attribute of SVG takes.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

fn tall(value: f64, most: u64) -> f64 {
    (HEIGHT - BOTTOM - TOP) * value / most.max(1) as f64
}

/// A bar from one value to another in a part of the axis, or in a share of it (`from` and `to`, 0 to 1).
pub fn bar(axis: &Axis, at: usize, class: &str, values: (f64, f64), most: u64, (from, to): (f64, f64)) -> Markup {
    let (x, width) = axis.column(at);
    let inner = (width - 4.0).max(1.0);
    let (below, above) = (tall(values.0, most), tall(values.1, most));
    html! {
        @if above > below {
            rect.(class) x=(number(x + 2.0 + inner * from)) width=(number((inner * (to - from)).max(1.0)))
                height=(number((above - below).max(1.0))) y=(number(HEIGHT - BOTTOM - above)) {}
        }
    }
}

/// A level in a part of the axis, as a stroke over its whole width.
pub fn level(axis: &Axis, at: usize, class: &str, value: u64, most: u64) -> Markup {
    let (x, width) = axis.column(at);
    let y = number(HEIGHT - BOTTOM - tall(value as f64, most));
    html! { line.(class) x1=(number(x)) x2=(number(x + width)) y1=(y) y2=(y) {} }
}

/// A chart with its scale around what was drawn.
pub fn chart(label: &str, axis: &Axis, most: u64, text: impl Fn(u64) -> String, inside: &Markup) -> Markup {
    let ground = HEIGHT - BOTTOM;
    let every = axis.len().div_ceil(LABELS).max(1);
    html! {
        svg role="img" aria-label=(label) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
            @for step in 0..=STEPS {
                @let y = ground - (ground - TOP) * step as f64 / STEPS as f64;
                line.grid x1=(number(LEFT)) x2=(number(WIDTH)) y1=(number(y)) y2=(number(y)) {}
                text.scale x=(number(LEFT - 6.0)) y=(number(y + 4.0)) text-anchor="end" { (text(most * step as u64 / STEPS as u64)) }
            }
            (inside)
            @for at in (0..axis.len()).step_by(every) {
                @let (x, width) = axis.column(at);
                text.scale x=(number(x + width / 2.0)) y=(number(HEIGHT - 6.0)) text-anchor="middle" { (axis.label(at)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_parts() {
        let now: Timestamp = "2026-05-01T12:30:00Z".parse().unwrap();
        let day = Axis::until(now, Range::Day);
        assert_eq!(day.len(), 24);
        assert_eq!(day.place(now), Some(23));
        assert_eq!(day.place(now - SignedDuration::from_mins(31)), Some(22));
        assert_eq!(day.place(now - SignedDuration::from_hours(24)), None);
        assert_eq!(day.label(23), "12:00");
        let hour = now - SignedDuration::from_mins(60);
        assert_eq!([22, 23, 0].map(|at| day.covered(at, hour, now)), [1800.0, 1800.0, 0.0]);
        let month = Axis::until(now, Range::Month);
        assert_eq!(month.label(0), "02 Apr 00:00");
        assert_eq!(month.place(now - SignedDuration::from_hours(24)), Some(28));
    }

    #[test]
    fn percentiles_and_scales() {
        let waits: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [50, 95, 99].map(|percent| percentile(&waits, percent)),
            [Some(50), Some(95), Some(99)]
        );
        assert_eq!((percentile(&[], 50), percentile(&[7], 99)), (None, Some(7)));
        assert_eq!([0, 3, 7, 60, 1000].map(round_up), [4, 4, 8, 80, 1000]);
    }
}
