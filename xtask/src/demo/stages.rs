//! What the demo shows: one line per stage, with a clock and how far it is on a terminal, or a line now and then where there is none;
//! everything else is in a log. A stage that fails shows the end of the log and where the log is.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::compile::Progress;
use crate::process;
use crate::test::readable;

/// How often the line of a running stage is drawn.
const TICK: Duration = Duration::from_millis(120);
/// How often the end of the log is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often a build says how far it is where there is no terminal.
const PLAIN_PAUSE: Duration = Duration::from_secs(30);
/// As much of the log's end as is looked at.
const TAIL_BYTES: u64 = 8 * 1024;
/// As much of the log's end as a failure shows.
const SHOWN_LINES: usize = 25;
/// The longest name of a stage fits.
const NAME_WIDTH: usize = 18;

/// The stages so far.
#[derive(Debug)]
pub(super) struct Stages {
    log: PathBuf,
    total: Duration,
}

/// What a running stage says of itself.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How far its build is.
    progress: Mutex<Option<Progress>>,
    /// What is worth knowing when it is over.
    note: Mutex<String>,
}

impl Told {
    /// How far its build is.
    pub(super) fn progress(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    fn now(&self) -> Option<String> {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.as_ref().map(|progress| progress.text(Instant::now()))
    }

    /// Stands behind its time when it is over.
    pub(super) fn note(&self, text: impl Into<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }
}

impl Stages {
    /// From now on everything but the stages goes to this log.
    pub(super) fn new(log: PathBuf) -> Result<Self> {
        process::log_to(&log)?;
        Ok(Self {
            log,
            total: Duration::ZERO,
        })
    }

    /// Runs a stage and shows its line.
    pub(super) fn stage<T>(&mut self, name: &str, work: impl FnOnce(&Told) -> Result<T>) -> Result<T> {
        process::say(format_args!("\n==> {name}"));
        let line = Line::begin(name);
        let told = Told::default();
        let start = Instant::now();
        let ended = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let (log, told, ended, line) = (&self.log, &told, &ended, &line);
            scope.spawn(move || match line {
                Line::Bar(bar) => follow(bar, log, told, ended),
                Line::Plain { interrupted } => follow_plainly(interrupted, start, told, ended),
            });
            let done = work(told);
            ended.store(true, Ordering::SeqCst);
            done
        });
        let took = start.elapsed();
        self.total += took;
        match &done {
            Ok(_) => {
                let note = told.note.lock().unwrap_or_else(PoisonError::into_inner);
                line.end(name, &format!("{:>12}  {note}", precise(took)));
            }
            Err(error) if error.is::<process::Interrupted>() => line.end(name, "interrupted"),
            Err(_) => {
                line.end(name, &format!("FAILED after {}", precise(took)));
                self.show_end();
            }
        }
        done
    }

    /// The time of all stages.
    pub(super) fn total(&self) -> String {
        precise(self.total)
    }

    /// Where everything is written.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    fn show_end(&self) {
        let text = tail(&self.log);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        eprintln!("\nThe end of the log, {}:", self.log.display());
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("  {}", clean(line));
        }
        eprintln!();
    }
}

/// The line of a running stage.
enum Line {
    Bar(ProgressBar),
    /// `interrupted`: other lines came between its beginning and its end.
    Plain {
        interrupted: AtomicBool,
    },
}

impl Line {
    fn begin(name: &str) -> Self {
        if std::io::stderr().is_terminal() && std::io::stdout().is_terminal() {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:>12}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(format!("{name:<NAME_WIDTH$}"));
            bar.enable_steady_tick(TICK);
            return Self::Bar(bar);
        }
        print!("{name:<NAME_WIDTH$} ");
        // A reader that went away is no reason to stop.
        let _ = std::io::stdout().flush();
        Self::Plain {
            interrupted: AtomicBool::new(false),
        }
    }

    fn end(self, name: &str, result: &str) {
        match self {
            Self::Bar(bar) => {
                bar.finish_and_clear();
                println!("  {name:<NAME_WIDTH$} {}", result.trim_end());
            }
            Self::Plain { interrupted } => {
                if interrupted.load(Ordering::SeqCst) {
                    print!("{name:<NAME_WIDTH$} ");
                }
                println!("{}", result.trim_end());
            }
        }
    }
}

/// Shows how far the stage is: what it says itself, else the last line of the log.
fn follow(bar: &ProgressBar, log: &Path, told: &Told, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        let text = told.now().unwrap_or_else(|| {
            let text = tail(log);
            let last = text.lines().rev().map(clean).find(|line| !line.trim().is_empty());
            last.unwrap_or_default()
        });
        bar.set_message(text);
        std::thread::sleep(LOOK);
    }
}

/// Says now and then how far a build is, in lines of their own.
fn follow_plainly(interrupted: &AtomicBool, start: Instant, told: &Told, ended: &AtomicBool) {
    let mut last = start;
    while !ended.load(Ordering::SeqCst) {
        if last.elapsed() >= PLAIN_PAUSE
            && let Some(text) = told.now()
        {
            last = Instant::now();
            if !interrupted.swap(true, Ordering::SeqCst) {
                println!();
            }
            println!("  {:>12}  {text}", readable(start.elapsed()));
        }
        std::thread::sleep(LOOK);
    }
}

/// The end of a file.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// A line as it would stand on a screen, without what would steer one.
fn clean(line: &str) -> String {
    let plain = console::strip_ansi_codes(line.trim_end());
    let shown = plain.rsplit('\r').next().unwrap_or_default();
    shown.chars().filter(|c| !c.is_control()).collect()
}

/// Short times in milliseconds.
fn precise(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        format!("{} ms", length.as_millis())
    } else {
        readable(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_what_a_screen_would_show() {
        assert_eq!(clean("download 1%\rdownload 100%"), "download 100%");
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m\u{7}"), "red");
    }

    #[test]
    fn end_of_a_long_log_is_read_and_no_more() {
        let path = std::env::temp_dir().join(format!("hearth-xtask-tail-{}", std::process::id()));
        std::fs::write(&path, format!("{}last\n", "first\n".repeat(10_000))).unwrap();
        let text = tail(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(text.ends_with("first\nlast\n") && text.len() as u64 == TAIL_BYTES);
        assert_eq!(tail(&path), "");
    }
}
