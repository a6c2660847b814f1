//! The report for a person.

use crate::Row;
use crate::report::{Report, Unit};

/// The rows in their order, with their headings.
const ROWS: [(Row, &str); 9] = [
    (Row::Fork, "1  fork to paused"),
    (Row::Claim, "2  claim and first command"),
    (Row::Cold, "3  the same without templates"),
    (
        Row::Peers,
        "4  what a user would pick instead (to the first command's end)",
    ),
    (Row::Fill, "5  filling a pool of 20; a burst of 50 claims on it"),
    (Row::Memory, "6  memory of a warm VM"),
    (Row::Again, "7  test boot again"),
    (Row::Work, "8  daily work in a claimed VM"),
    (Row::Clients, "9  programs of others"),
];

pub(crate) fn print_head(report: &Report) {
    let machine = &report.machine;
    println!("machine   {}", machine.processor);
    println!(
        "          {} processors, {} MiB, load {} at the start",
        machine.processors, machine.memory_mib, machine.load
    );
    println!("kernel    {}", machine.kernel);
    for (name, version) in &machine.versions {
        println!("{name:<9} {version}");
    }
    println!();
}

pub(crate) fn print(report: &Report) {
    for (row, heading) in ROWS {
        let samples = report.samples.iter().filter(|line| line.row == row).peekable();
        let figures = report.figures.iter().filter(|line| line.row == row);
        let notes = report.notes.iter().filter(|line| line.row == row);
        let mut lines = samples
            .map(|line| {
                let number = |value| shown(line.unit, value);
                format!(
                    "  {:<62} {:>4} {:>9} {:>9} {:>9} {:>9}",
                    line.what,
                    line.n,
                    number(line.p50),
                    number(line.p95),
                    number(line.p99),
                    number(line.max)
                )
            })
            .chain(figures.map(|line| format!("  {:<67} {:>9}", line.what, shown(line.unit, line.value))))
            .chain(notes.map(|line| format!("  {}", line.text)))
            .peekable();
        if lines.peek().is_none() {
            continue;
        }
        println!(
            "\n{heading:<64} {:>4} {:>9} {:>9} {:>9} {:>9}",
            "n", "p50", "p95", "p99", "max"
        );
        lines.for_each(|line| println!("{line}"));
    }
    println!(
        "\nload {} at the start, {} at the end",
        report.machine.load, report.machine.load_at_end
    );
    if !report.verdicts.is_empty() {
        println!("\nmust hold");
    }
    for verdict in &report.verdicts {
        println!(
            "  {}  {:<84} {:>9}  ({} {})",
            if verdict.holds { "yes" } else { "NO " },
            verdict.what,
            shown(verdict.unit, verdict.value),
            if verdict.at_most { "at most" } else { "at least" },
            shown(verdict.unit, verdict.demand)
        );
    }
}

fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Ms if value >= 10_000.0 => format!("{:.1} s", value / 1000.0),
        Unit::Ms if value >= 100.0 => format!("{value:.0} ms"),
        Unit::Ms => format!("{value:.1} ms"),
        Unit::Mib => format!("{value:.1} MiB"),
        Unit::Count => format!("{value:.0}"),
        Unit::Times => format!("{value:.2} x"),
    }
}
