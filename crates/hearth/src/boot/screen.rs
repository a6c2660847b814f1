//! The picture of a boot on standard error: one line per running step with a clock on a terminal, plain lines elsewhere.
//! Usually one step runs; the scripts of several repositories run at the same time.

use std::io::IsTerminal as _;
use std::time::Duration;

use console::style;
use hearth_api::instance::{Step, StepStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{repo_of, subject_of, title};
use crate::output;
use crate::text::{LineBuffer, clean_line};

/// How often the clock of a running step moves.
const TICK: Duration = Duration::from_millis(100);
/// Room for the result in front of a step's name.
const RESULT_WIDTH: usize = 6;

/// Shows steps as they run.
pub(crate) struct Screen {
    /// The running steps' lines, on a terminal.
    live: Option<MultiProgress>,
    running: Vec<Running>,
    /// Output that belongs to no running step.
    stray: LineBuffer,
}

/// A step that runs.
struct Running {
    name: String,
    subject: Option<String>,
    lines: LineBuffer,
    bar: Option<ProgressBar>,
}

impl Running {
    fn title(&self) -> String {
        title(&self.name, self.subject.as_deref())
    }
}

impl Screen {
    /// On standard error, whatever it is.
    pub(crate) fn on_stderr() -> Self {
        let live = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            live,
            running: Vec::new(),
            stray: LineBuffer::default(),
        }
    }

    pub(crate) fn step_started(&mut self, name: &str, subject: Option<&str>) {
        let mut step = Running {
            name: name.to_owned(),
            subject: subject.map(str::to_owned),
            lines: LineBuffer::default(),
            bar: None,
        };
        match &self.live {
            Some(live) => {
                let bar = live.add(ProgressBar::no_length());
                bar.set_style(running_style());
                bar.set_message(step.title());
                bar.enable_steady_tick(TICK);
                step.bar = Some(bar);
            }
            None => output::note(&format!("{:RESULT_WIDTH$} {}", "start", step.title())),
        }
        self.running.push(step);
    }

    pub(crate) fn output(&mut self, subject: Option<&str>, text: &str) {
        let at = self.position_of_output(subject);
        let lines = match at {
            Some(at) => self.running[at].lines.push(text),
            None => self.stray.push(text),
        };
        self.output_lines(at, &lines);
    }

    pub(crate) fn step_ended(&mut self, step: &Step) {
        let at = self.position_of_end(step);
        let mut shown = title(&step.name, subject_of(step).as_deref());
        if let Some(at) = at {
            self.flush(at);
            let ended = self.take(at);
            // It ends under the name it began with; only which script it was is known no earlier than now.
            if repo_of(step).is_none() {
                shown = ended.title();
            }
        }
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
        self.note(&format!("{word} {shown}{took}"));
        if let Some(error) = &step.error {
            self.note(&format!("{:RESULT_WIDTH$} {}", "", clean_line(error)));
        }
    }

    /// A remark beside the steps.
    pub(crate) fn note(&self, text: &str) {
        match &self.live {
            // The running steps' lines make room and come back below it.
            Some(live) => live.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    /// The boot is over and these are its entries.
    pub(crate) fn finish(&mut self, steps: &[Step]) {
        // The news of an end may have been lost; its entry is the later one where a repository has several.
        for step in steps.iter().rev() {
            if self.position_of_end(step).is_some() {
                self.step_ended(step);
            }
        }
        // What has no entry was ended by the failure of another step.
        while !self.running.is_empty() {
            self.flush(0);
            let stopped = self.take(0);
            self.note(&format!("{:RESULT_WIDTH$} {}", "stop", stopped.title()));
        }
        if let Some(rest) = self.stray.finish() {
            self.output_lines(None, &[rest]);
        }
    }

    /// The running step that printed this. Servers that run one step at a time do not say which.
    fn position_of_output(&self, subject: Option<&str>) -> Option<usize> {
        if subject.is_none() && self.running.len() == 1 {
            return Some(0);
        }
        self.running.iter().rposition(|step| step.subject.as_deref() == subject)
    }

    fn position_of_end(&self, ended: &Step) -> Option<usize> {
        let repo = repo_of(ended);
        let whole = subject_of(ended);
        let named = |step: &Running| step.name == ended.name;
        let exact = |step: &Running| {
            let subject = step.subject.as_deref();
            // A server may say from the beginning which of the repository's scripts it is.
            named(step) && (subject == repo || subject == whole.as_deref())
        };
        // Steps that are not about a repository have a subject of another kind, and run alone.
        let loose = |step: &Running| named(step) && (repo.is_none() || step.subject.is_none());
        let running = &self.running;
        running
            .iter()
            .position(exact)
            .or_else(|| running.iter().position(loose))
    }

    /// Shows what a step printed without a line end.
    fn flush(&mut self, at: usize) {
        if let Some(rest) = self.running[at].lines.finish() {
            self.output_lines(Some(at), &[rest]);
        }
    }

    /// The step is over: its line goes.
    fn take(&mut self, at: usize) -> Running {
        let step = self.running.remove(at);
        if let (Some(live), Some(bar)) = (&self.live, &step.bar) {
            bar.finish_and_clear();
            live.remove(bar);
        }
        step
    }

    /// Lines that a step printed; while several run, each says whose it is.
    fn output_lines(&self, at: Option<usize>, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        let whose = match at.map(|at| &self.running[at]) {
            Some(step) if self.running.len() > 1 => {
                format!("{} ", clean_line(step.subject.as_ref().unwrap_or(&step.name)))
            }
            _ => String::new(),
        };
        let lines: Vec<String> = lines
            .iter()
            .map(|line| format!("{:RESULT_WIDTH$} {whose}| {line}", ""))
            .map(|line| style(line).for_stderr().dim().to_string())
            .collect();
        self.note(&lines.join("\n"));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        while !self.running.is_empty() {
            self.take(0);
        }
    }
}

fn running_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:6} {msg}  {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}
