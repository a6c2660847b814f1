//! The picture of a boot on standard error: one line per running step with a clock on a terminal, plain lines elsewhere.
//! Usually one step runs; the scripts of several repositories run at the same time.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use console::style;
use hearth_api::instance::{Step, StepStatus};
use hearth_core::progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{from_a_checkpoint, repo_of, subject_of, title};
use crate::output;
use crate::text::{LineBuffer, clean_line, clean_lines};

/// How often the clock of a running step moves.
const TICK: Duration = Duration::from_millis(100);
/// After so much silence something is said where there is no clock to look at: well within half a minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(25);
/// Room for the result in front of a step's name.
const RESULT_WIDTH: usize = 6;

/// Shows steps as they run.
pub(crate) struct Screen {
    /// The running steps' lines, on a terminal.
    live: Option<MultiProgress>,
    running: Vec<Running>,
    /// Output that belongs to no running step.
    stray: LineBuffer,
    /// When something was last said.
    said: Cell<Instant>,
    /// When no step ran any more.
    idle_since: Instant,
    /// Steps that failed, whose output was shown as it came.
    shown_failures: Vec<String>,
}

/// A step that runs.
struct Running {
    name: String,
    subject: Option<String>,
    lines: LineBuffer,
    bar: Option<ProgressBar>,
    began: Instant,
    /// The command that runs, and since when.
    command: Option<(String, Instant)>,
    /// When it last printed something.
    printed: Option<Instant>,
    /// Something of what it printed was shown.
    is_shown: bool,
}

impl Running {
    fn title(&self) -> String {
        title(&self.name, self.subject.as_deref())
    }

    /// The same with the command that runs.
    fn title_now(&self) -> String {
        match &self.command {
            Some((command, _)) => format!("{}: {}", self.title(), clean_line(command)),
            None => self.title(),
        }
    }

    /// `npm ci has run for 2 min 30 s, last output 2 min ago`.
    fn progress(&self, now: Instant) -> String {
        let since = |at: Instant| now.saturating_duration_since(at);
        let silent = self.printed.map(since);
        let text = match &self.command {
            // One that has just begun is not what took so long.
            Some((command, began)) if since(*began).as_secs() > 0 => {
                progress::message(&clean_line(command), since(*began), silent)
            }
            _ => progress::message(&self.title(), since(self.began), silent),
        };
        match self.lines.pending() {
            pending if pending.trim().is_empty() => text,
            pending => format!("{text}: {pending}"),
        }
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
            said: Cell::new(Instant::now()),
            idle_since: Instant::now(),
            shown_failures: Vec::new(),
        }
    }

    /// Whether what a failed step printed was shown while it ran.
    pub(crate) fn has_shown_failure(&self, step: &str) -> bool {
        self.shown_failures.iter().any(|shown| shown == step)
    }

    /// What ran does not run any more: the server was restarted.
    pub(crate) fn forget(&mut self) {
        while !self.running.is_empty() {
            self.flush(0);
            self.take(0);
        }
    }

    pub(crate) fn step_started(&mut self, name: &str, subject: Option<&str>, ran: Duration) {
        let now = Instant::now();
        let mut step = Running {
            name: name.to_owned(),
            subject: subject.map(str::to_owned),
            lines: LineBuffer::default(),
            bar: None,
            began: now.checked_sub(ran).unwrap_or(now),
            command: None,
            printed: None,
            is_shown: false,
        };
        match &self.live {
            Some(live) => {
                let bar = live.add(ProgressBar::no_length());
                bar.set_style(running_style());
                bar.set_message(step.title());
                bar.set_elapsed(ran);
                bar.enable_steady_tick(TICK);
                step.bar = Some(bar);
            }
            None => output::note(&format!("{:RESULT_WIDTH$} {}", "start", step.title())),
        }
        self.running.push(step);
    }

    /// A command of a running step began, so long ago; it last printed something so long ago.
    pub(crate) fn command_started(
        &mut self,
        subject: Option<&str>,
        command: &str,
        ran: Duration,
        silent: Option<Duration>,
    ) {
        let Some(at) = self.position_of_output(subject) else {
            return;
        };
        // What the command before it left without an end.
        self.flush(at);
        let now = Instant::now();
        let before = |length: Duration| now.checked_sub(length).unwrap_or(now);
        let step = &mut self.running[at];
        step.command = Some((command.to_owned(), before(ran)));
        step.printed = silent.map(before);
        if let Some(bar) = &step.bar {
            bar.set_message(step.title_now());
        }
    }

    /// Time passes: says what runs when nothing was said for long, where there is no clock to look at.
    pub(crate) fn tick(&self) {
        let now = Instant::now();
        if self.live.is_some() || now.saturating_duration_since(self.said.get()) < LONGEST_SILENCE {
            return;
        }
        self.note(&self.silence(now).join("\n"));
    }

    fn silence(&self, now: Instant) -> Vec<String> {
        let line = |text: String| format!("{:RESULT_WIDTH$} {text}", "...");
        if self.running.is_empty() {
            let waited = progress::span(now.saturating_duration_since(self.idle_since));
            return vec![line(format!(
                "no step has run for {waited}: the boot waits for its turn, or its VM is being frozen"
            ))];
        }
        self.running.iter().map(|step| line(step.progress(now))).collect()
    }

    pub(crate) fn output(&mut self, subject: Option<&str>, text: &str) {
        let at = self.position_of_output(subject);
        if let Some(at) = at {
            self.running[at].printed = Some(Instant::now());
            self.running[at].is_shown = true;
        }
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
            if ended.is_shown && step.status == StepStatus::Error {
                self.shown_failures.push(step.name.clone());
            }
            // It ends under the name it began with; only which script it was is known no earlier than now.
            if repo_of(step).is_none() {
                shown = ended.title();
            }
        }
        let took = step
            .duration_ms
            .map_or_else(String::new, |took| format!("  {}", output::millis(took)));
        let cached = from_a_checkpoint(step).map_or_else(String::new, |cached| format!("  {cached}"));
        let (word, ok) = match step.status {
            StepStatus::Success => ("ok", true),
            StepStatus::Error => ("FAILED", false),
        };
        // Padded before it is coloured: escape sequences have no width, but `format` counts them.
        let padded = style(format!("{word:RESULT_WIDTH$}")).for_stderr().bold();
        let word = if ok { padded.green() } else { padded.red() };
        self.note(&format!("{word} {shown}{took}{cached}"));
        if let Some(error) = &step.error {
            for line in clean_lines(error) {
                self.note(&format!("{:RESULT_WIDTH$} {line}", ""));
            }
        }
    }

    /// A remark beside the steps.
    pub(crate) fn note(&self, text: &str) {
        self.say(text, output::note);
    }

    fn say(&self, text: &str, say: fn(&str)) {
        self.said.set(Instant::now());
        match &self.live {
            // The running steps' lines make room and come back below it.
            Some(live) => live.suspend(|| say(text)),
            None => say(text),
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
        let rest = self.stray.finish();
        self.output_lines(None, &rest);
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
        let rest = self.running[at].lines.finish();
        self.output_lines(Some(at), &rest);
    }

    /// The step is over: its line goes.
    fn take(&mut self, at: usize) -> Running {
        let step = self.running.remove(at);
        self.idle_since = Instant::now();
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
        self.say(&lines.join("\n"), output::note_as_it_is);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_silence_is_told_with_the_command_and_its_last_output() {
        let mut screen = Screen::on_stderr();
        let later = || Instant::now() + Duration::from_secs(30);
        assert!(screen.silence(later())[0].contains("no step has run for 30 s"));
        screen.step_started("warm_pool_setup", None, Duration::from_secs(200));
        screen.command_started(None, "npm ci", Duration::from_secs(120), Some(Duration::from_secs(90)));
        assert_eq!(
            screen.silence(later()),
            ["...    npm ci has run for 2 min 30 s, last output 2 min ago"]
        );
        screen.output(None, "\rdownload 1%\rdownload 42%");
        assert!(screen.silence(later())[0].ends_with("last output 30 s ago: download 42%"));
    }
}
