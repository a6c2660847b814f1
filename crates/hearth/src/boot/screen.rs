//! The picture of a boot on standard error: one line per step with a running clock on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use console::style;
use hearth_api::instance::{Step, StepStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::subject_of;
use crate::output;
use crate::text::{LineBuffer, clean_line};

/// How often the clock of a running step moves.
const TICK: Duration = Duration::from_millis(100);
/// Room for the result in front of a step's name.
const RESULT_WIDTH: usize = 6;

/// Shows steps as they run.
pub(crate) struct Screen {
    /// The line of the running step, on a terminal.
    live: Option<ProgressBar>,
    terminal: bool,
    current: Option<String>,
    lines: LineBuffer,
}

impl Screen {
    /// On standard error, whatever it is.
    pub(crate) fn on_stderr() -> Self {
        Self {
            live: None,
            terminal: std::io::stderr().is_terminal(),
            current: None,
            lines: LineBuffer::default(),
        }
    }

    pub(crate) fn step_started(&mut self, name: &str, subject: Option<&str>) {
        self.end_line();
        let title = title(name, subject);
        if self.terminal {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(running_style());
            bar.set_message(title.clone());
            bar.enable_steady_tick(TICK);
            self.live = Some(bar);
        } else {
            output::note(&format!("{:RESULT_WIDTH$} {title}", "start"));
        }
        self.current = Some(title);
    }

    pub(crate) fn output(&mut self, text: &str) {
        for line in self.lines.push(text) {
            self.output_line(&line);
        }
    }

    pub(crate) fn step_ended(&mut self, step: &Step) {
        if let Some(rest) = self.lines.finish() {
            self.output_line(&rest);
        }
        let started_as = self.current.take();
        let title = started_as.unwrap_or_else(|| title(&step.name, subject_of(step).as_deref()));
        self.end_line();
        let took = step
            .duration_ms
            .map_or_else(String::new, |took| format!("  {}", output::millis(took)));
        let (word, ok) = match step.status {
            StepStatus::Success => ("ok", true),
            StepStatus::Error => ("FAILED", false),
        };
        // Padded before it is coloured: escape sequences have no width, but `format` counts them.
        let padded = style(format!("{word:RESULT_WIDTH$}")).for_stderr().bold();
        let word = if ok { padded.green() } else { padded.red() };
        output::note(&format!("{word} {title}{took}"));
        if let Some(error) = &step.error {
            output::note(&format!("{:RESULT_WIDTH$} {}", "", clean_line(error)));
        }
    }

    /// A remark beside the steps.
    pub(crate) fn note(&self, text: &str) {
        match &self.live {
            Some(bar) => bar.println(text),
            None => output::note(text),
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&mut self) {
        if let Some(rest) = self.lines.finish() {
            self.output_line(&rest);
        }
        self.current = None;
        self.end_line();
    }

    fn output_line(&self, line: &str) {
        let text = format!("{:RESULT_WIDTH$} | {line}", "");
        match &self.live {
            Some(bar) => bar.println(style(text).for_stderr().dim().to_string()),
            None => output::note(&text),
        }
    }

    fn end_line(&mut self) {
        if let Some(bar) = self.live.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end_line();
    }
}

fn title(name: &str, subject: Option<&str>) -> String {
    match subject {
        Some(subject) => clean_line(&format!("{name} {subject}")),
        None => clean_line(name),
    }
}

fn running_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:6} {msg}  {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}
