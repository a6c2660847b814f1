//! Small parts that several pages have: times, durations, sizes, states.

use std::time::Duration;

use hearth_api::instance::InstanceStatus;
use hearth_core::plain_text::plain_lines;
use jiff::Timestamp;
use maud::{Markup, html};

/// Characters of an id's end that tell it apart from others.
const SHORT_ID: usize = 8;
/// Characters of a hash that tell it apart.
const SHORT_HASH: usize = 10;

/// How a state is coloured; the word beside it says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
    Off,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "badge good",
            Self::Busy => "badge busy",
            Self::Warn => "badge warn",
            Self::Bad => "badge bad",
            Self::Off => "badge off",
        }
    }
}

/// A state as a word.
pub fn badge(tone: Tone, text: &str) -> Markup {
    html! { span class=(tone.class()) { (text) } }
}

/// The state of an instance.
pub fn status(status: InstanceStatus) -> Markup {
    match status {
        InstanceStatus::Ready => badge(Tone::Good, "Ready"),
        InstanceStatus::Provisioning => badge(Tone::Busy, "Provisioning"),
        InstanceStatus::Failed => badge(Tone::Bad, "Failed"),
        InstanceStatus::Claimed => badge(Tone::Off, "Claimed"),
    }
}

/// The same of a test boot: nobody gets its VM.
pub fn status_of(state: InstanceStatus, is_test: bool) -> Markup {
    match state {
        InstanceStatus::Ready if is_test => badge(Tone::Good, "Succeeded"),
        state => status(state),
    }
}

/// A time, as how long ago or ahead it is.
pub fn time(at: Timestamp) -> Markup {
    let now = Timestamp::now();
    let exact = format!("{at:.0}");
    let ahead = at > now;
    let far = if ahead {
        at.duration_since(now)
    } else {
        now.duration_since(at)
    };
    let text = span_text(far.unsigned_abs());
    html! {
        time datetime=(exact) title=(exact) {
            @if ahead { "in " (text) } @else { (text) " ago" }
        }
    }
}

/// One that may not be known.
pub fn optional_time(at: Option<Timestamp>) -> Markup {
    match at {
        Some(at) => time(at),
        None => html! { span.dim { "–" } },
    }
}

/// `3 min`, `2 h`, `5 days`: the largest unit that says it.
pub fn span_text(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", (seconds + 1800) / 3600),
        seconds => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

/// `340 ms`, `2.4 s`, `3 min 20 s`.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut unit, mut tenths) = (0, u128::from(bytes) * 10);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let unit = UNITS[unit];
    if unit == "B" {
        return format!("{bytes} B");
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// The same of MiB.
pub fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1 << 20))
}

/// The end of an id, which is what tells it apart.
pub fn short_id(id: &str) -> &str {
    let at = id.char_indices().rev().nth(SHORT_ID - 1).map_or(0, |(at, _)| at);
    &id[at..]
}

/// The beginning of a hash.
pub fn short_hash(hash: &str) -> &str {
    let end = hash.char_indices().nth(SHORT_HASH).map_or(hash.len(), |(at, _)| at);
    &hash[..end]
}

/// So much of so much, as a bar with its text.
pub fn meter(value: u64, most: u64, text: &str) -> Markup {
    html! {
        span.meter {
            progress max=(most.max(1)) value=(value.min(most.max(1))) aria-hidden="true" {}
            span { (text) }
        }
    }
}

/// A text as a terminal would show it, without colours and what was overwritten.
pub fn plain(text: &str) -> String {
    plain_lines(text).join("\n")
}

/// A message of the API as a sentence: they begin with a small letter and end with none.
pub fn sentence(message: &str) -> String {
    let end = if message.ends_with(['.', '!', '?', ':']) {
        ""
    } else {
        "."
    };
    // The name of a step, a field or a file stays as it is.
    let first = message.split(' ').next().unwrap_or_default();
    if !first.chars().all(char::is_alphabetic) {
        return format!("{message}{end}");
    }
    let mut letters = message.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}{end}", first.unwrap_or_default(), letters.as_str())
}

/// `1 VM`, `3 VMs`.
pub fn counted(count: u64, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!([bytes(3), bytes(1536), bytes(5 << 30)], ["3 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!(
            [millis(340), millis(2440), millis(200_000)],
            ["340 ms", "2.4 s", "3 min 20 s"]
        );
        assert_eq!(span_text(Duration::from_secs(119)), "1 min");
        assert_eq!(span_text(Duration::from_secs(12 * 3600 - 1)), "12 h");
        assert_eq!(sentence("there is no such project"), "There is no such project.");
        assert_eq!(sentence("Did it?"), "Did it?");
        assert_eq!(sentence("create_vm: no"), "create_vm: no.");
        assert_eq!(span_text(Duration::from_secs(3 * 86_400)), "3 days");
        assert_eq!(
            [short_id("wpi_123456789"), short_id("é"), short_hash("é")],
            ["23456789", "é", "é"]
        );
    }
}
