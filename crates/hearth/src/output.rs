//! What goes to standard output: tables for people, the API's JSON for programs. Nothing else is ever printed there.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};
use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;

/// One line under the heading, blanks between the columns: what `grep`, `awk` and eyes like alike.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Blanks before and after what stands in a column.
const PADDING: (u16, u16) = (0, 2);

/// Prints a value exactly as the API has it (indented).
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(format!("the reply is no JSON: {e}")))?;
    print_line(&text)
}

/// Prints one line (or several) and its end.
pub(crate) fn print_line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Says something to the person, beside the data.
pub(crate) fn note(text: &str) {
    // A closed standard error has no one to complain to.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints JSON or what people read.
pub(crate) fn print<T: Serialize>(json: bool, value: &T, human: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    if json {
        print_json(value)
    } else {
        print_line(&human(value))
    }
}

/// A table with a heading line.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    // Cut to the screen only where there is one (and it knows its width): `grep` wants whole lines.
    if io::stdout().is_terminal() && table.width() > Some(0) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(row);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding(PADDING);
    });
    table.trim_fmt()
}

/// Names and values, one pair per line.
pub(crate) fn pairs<'a>(rows: impl AsRef<[(&'a str, String)]>) -> String {
    let rows = rows.as_ref();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let mut lines = Vec::with_capacity(rows.len());
    for (name, value) in rows {
        let mut parts = value.lines();
        lines.push(format!(
            "{:width$} {}",
            format!("{name}:"),
            parts.next().unwrap_or_default()
        ));
        lines.extend(parts.map(|part| format!("{:width$} {part}", "")));
    }
    lines.join("\n")
}

/// Several lines as one value of a pair; `-` when there are none.
pub(crate) fn lines_or_dash(lines: impl IntoIterator<Item = String>) -> String {
    let lines: Vec<String> = lines.into_iter().collect();
    if lines.is_empty() {
        return "-".to_owned();
    }
    lines.join("\n")
}

/// `0.4 s`, `12.3 s`, `3 min 5 s`, `2 h 10 min`.
pub(crate) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", length.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The same for milliseconds; short times are shown in them.
pub(crate) fn millis(length: u64) -> String {
    if length < MS_PER_S {
        format!("{length} ms")
    } else {
        duration(Duration::from_millis(length))
    }
}

/// As much of a digest or a checkpoint's key as people need: enough to tell some thousands apart.
pub(crate) fn short_digest(digest: &str) -> String {
    const SHORT_DIGEST_CHARS: usize = 12;
    digest.chars().take(SHORT_DIGEST_CHARS).collect()
}

/// `5 min 2 s ago`.
pub(crate) fn ago(at: Timestamp) -> String {
    match Duration::try_from(Timestamp::now() - at) {
        Ok(age) if age.as_secs() == 0 => "now".to_owned(),
        Ok(age) => format!("{} ago", whole_seconds(age)),
        // The server's clock is ahead of ours.
        Err(_) => hearth_api::time::format(at),
    }
}

/// The same for a time that may not have come yet.
pub(crate) fn ago_or(at: Option<Timestamp>, never: &str) -> String {
    at.map_or_else(|| never.to_owned(), ago)
}

/// `5 s`, `5 min 2 s`.
pub(crate) fn whole_seconds(length: Duration) -> String {
    let seconds = length.as_secs();
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        duration(length)
    }
}

/// `1 instance`, `2 instances`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_read_well() {
        assert_eq!(millis(7), "7 ms");
        assert_eq!(millis(1_500), "1.5 s");
        assert_eq!(millis(185_000), "3 min 5 s");
        assert_eq!(millis(7_800_000), "2 h 10 min");
    }

    #[test]
    fn pairs_stand_under_each_other() {
        let text = pairs([("a", "1".to_owned()), ("long", "2\n3".to_owned())]);
        assert_eq!(text, "a:    1\nlong: 2\n      3");
    }
}
