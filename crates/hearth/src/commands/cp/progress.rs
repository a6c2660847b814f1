//! How far a copy is, on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::text::clean_line;

/// How often it moves by itself.
const TICK: Duration = Duration::from_millis(200);
/// Of something whose size is known.
const WITH_END: &str = "{msg}  {bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta}";
/// Of a folder or a pipe.
const WITHOUT_END: &str = "{spinner} {msg}  {bytes} {bytes_per_sec}";

/// One copy's line; nothing where nobody looks.
#[derive(Debug, Clone)]
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn new(shows: bool, name: &str) -> Self {
        Self(shows.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_message(clean_line(name));
            style(&bar, WITHOUT_END);
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    /// So many bytes will come.
    pub(super) fn expect(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(bytes);
            style(bar, WITH_END);
        }
    }

    /// So many more have come.
    pub(super) fn moved(&self, bytes: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes as u64);
        }
    }

    /// It begins again.
    pub(super) fn restart(&self) {
        if let Some(bar) = &self.0 {
            bar.set_position(0);
        }
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(bar: &ProgressBar, template: &str) {
    // The templates are ours and good.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
