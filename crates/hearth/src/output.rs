//! What goes to standard output: tables for people, the API's JSON for programs. Nothing else is ever printed there.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width};
use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;
use crate::hint;

pub(crate) use hearth_api::counted::count;

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;

/// One line under the heading, blanks between the columns: what `grep`, `awk` and eyes like alike.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// How wide a table is where no terminal says it.
const PAGE_WIDTH: usize = 120;
/// Words up to this length are never cut: ids are shorter, with what stands around them.
const LONGEST_WORD: usize = 40;
/// Stands for a blank where no line may end, until the table is laid out.
const NO_BREAK: &str = "\u{a0}";
/// Blanks before and after what stands in a column.
const PADDING: (u16, u16) = (0, 2);

/// Prints a value exactly as the API has it (indented).
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(format!("the reply is no JSON: {e}")))?;
    print_as_it_is(&text)
}

/// Prints one line (or several) for people and its end. Commands in it name the server.
pub(crate) fn print_line(text: &str) -> Result<(), Failure> {
    print_as_it_is(&hint::complete(text))
}

/// Prints what is not this program's own text.
pub(crate) fn print_as_it_is(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Says something to the person, beside the data.
pub(crate) fn note(text: &str) {
    // A closed standard error has no one to complain to.
    let _ = writeln!(io::stderr().lock(), "{}", hint::complete(text));
}

/// Says what a command in a VM printed.
pub(crate) fn note_as_it_is(text: &str) {
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

/// A table with a heading line. It is as wide as the terminal, or as a page where there is none: cells go over several lines.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| hint::complete(&cell)));
    }
    laid_out(table)
}

/// Names and values, each value wrapped in a column of its own.
pub(crate) fn wrapped_pairs<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    for (name, value) in rows {
        table.add_row([format!("{name}:"), hint::complete(&value)]);
    }
    laid_out(table)
}

/// The widths are chosen here and not by the table: no id is cut, and the room that is left goes to the columns that need it.
fn laid_out(mut table: Table) -> String {
    let page = match table.width() {
        Some(width) if width > 0 && io::stdout().is_terminal() => usize::from(width),
        _ => PAGE_WIDTH,
    };
    let padding = usize::from(PADDING.0 + PADDING.1);
    // The table itself puts a blank between two columns.
    let between = table.column_count().saturating_sub(1);
    let needs: Vec<Need> = (0..table.column_count()).map(|at| need_of(&table, at)).collect();
    let widths = widths(&needs, page.saturating_sub(padding * needs.len() + between));
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_padding(PADDING);
        let width = u16::try_from(width + padding).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    table.trim_fmt().replace(NO_BREAK, " ")
}

/// Words that a table leaves on one line.
pub(crate) fn unbroken(text: &str) -> String {
    text.replace(' ', NO_BREAK)
}

/// What a column needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// So that no word is cut.
    least: usize,
    /// So that no cell is wrapped.
    whole: usize,
}

fn need_of(table: &Table, column: usize) -> Need {
    let rows = table.row_iter().chain(table.header());
    let cells = rows.filter_map(|row| row.cell_iter().nth(column));
    let mut need = Need { least: 1, whole: 1 };
    for line in cells.flat_map(|cell| cell.content().lines().map(str::to_owned).collect::<Vec<_>>()) {
        let words = line.split(' ').map(console::measure_text_width);
        need.least = need.least.max(words.max().unwrap_or_default().min(LONGEST_WORD));
        need.whole = need.whole.max(console::measure_text_width(&line));
    }
    need
}

/// Shares the room: each column has what it needs at least, and beyond that at most as much as the widest others have.
fn widths(needs: &[Need], room: usize) -> Vec<usize> {
    let at_level = |level: usize| {
        needs
            .iter()
            .map(move |need| level.clamp(need.least, need.whole.max(need.least)))
    };
    let level = (0..=room).rev().find(|level| at_level(*level).sum::<usize>() <= room);
    at_level(level.unwrap_or(0)).collect()
}

/// Names and values, one pair per line.
pub(crate) fn pairs<'a>(rows: impl AsRef<[(&'a str, String)]>) -> String {
    let rows = rows.as_ref();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let mut lines = Vec::with_capacity(rows.len());
    for (name, value) in rows {
        let value = hint::complete(value);
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
    fn a_table_is_as_wide_as_a_page_and_cuts_no_id() {
        let id = "wpi_01a209bacc5b714f95acb5a1b59650f7";
        let long = format!("a sentence about `{id}` ") + &"and so on ".repeat(30);
        let rows = [[id.to_owned(), long.clone(), "x ".repeat(100), "yes".to_owned()]];
        let text = table(["Id", "What", "Why", "Is so"], rows);
        assert!(text.lines().all(|line| line.chars().count() <= PAGE_WIDTH), "{text}");
        assert_eq!(text.matches(id).count(), 2, "{text}");
        assert!(text.lines().count() > 6 && text.lines().count() < 16, "{text}");
        let text = wrapped_pairs([("a", long), ("b", "1\n2".to_owned())]);
        assert!(text.lines().all(|line| line.chars().count() <= PAGE_WIDTH), "{text}");
        assert!(text.starts_with("a:") && text.ends_with("b:  1\n    2"), "{text}");
    }

    #[test]
    fn short_columns_keep_what_they_need_and_long_ones_share_the_rest() {
        let need = |least, whole| Need { least, whole };
        let wide = [need(36, 36), need(5, 200), need(3, 8), need(5, 300)];
        assert_eq!(widths(&wide, 104), [36, 30, 8, 30]);
        assert_eq!(widths(&[need(3, 8), need(2, 5)], 104), [8, 5]);
        assert_eq!(
            widths(&wide, 10),
            [36, 5, 3, 5],
            "words are whole even where there is no room"
        );
    }

    #[test]
    fn pairs_stand_under_each_other() {
        let text = pairs([("a", "1".to_owned()), ("long", "2\n3".to_owned())]);
        assert_eq!(text, "a:    1\nlong: 2\n      3");
    }
}
