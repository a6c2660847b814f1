//! What took how long.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::test::readable;

/// The stages so far.
#[derive(Debug, Default)]
pub(super) struct Timing {
    stages: Vec<(&'static str, Duration)>,
}

impl Timing {
    /// Runs a stage under a heading and notes its time.
    pub(super) fn stage<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {name}");
        let start = Instant::now();
        let done = work()?;
        self.stages.push((name, start.elapsed()));
        Ok(done)
    }

    /// The table.
    pub(super) fn print(&self) {
        println!("\nWhat took how long");
        for (name, length) in &self.stages {
            println!("  {name:<18} {:>12}", precise(*length));
        }
        let total: Duration = self.stages.iter().map(|(_, length)| *length).sum();
        println!("  {:<18} {:>12}", "together", precise(total));
    }
}

/// Short times in milliseconds.
fn precise(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        format!("{} ms", length.as_millis())
    } else {
        readable(length)
    }
}
