//! Launchers that wait for commands of callers: starting one takes longer than most commands do, above all where the
//! processor is emulated. A checkpoint holds them too, and each of its forks has them for itself.
//!
//! They are started when nothing else is to be done, and in haste only when none is left: a VM that has just been handed over has
//! better things to do. A command that finds none waits for one of its own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::cgroup::Cgroups;
use super::launch::{Launcher, Outputs};
use super::not_started::NotStarted;

/// So many wait: in a fork, the proof that it is ready and the first two commands of a task use one each.
const SPARES: usize = 3;
/// When none waits and no command has begun or ended for this long, others are started.
const IDLE: Duration = Duration::from_millis(30);
/// The same while some are already there, or while commands run: a user may wait for those.
const QUIET: Duration = Duration::from_secs(1);
/// From one launcher to the next.
const BETWEEN: Duration = Duration::from_millis(1);
/// So often it is tried to clean up behind all commands before a freeze: each fork would do it for itself.
const SWEEPS: usize = 10;
/// From one of these to the next.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Activity {
    /// Commands of callers.
    running: usize,
    /// When one began or ended.
    last: Instant,
}

/// The launchers in stock.
#[derive(Debug)]
pub(super) struct PreStarted {
    waiting: Mutex<Vec<Launcher>>,
    activity: Mutex<Activity>,
    ended: Notify,
}

impl PreStarted {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            activity: Mutex::new(Activity {
                running: 0,
                last: Instant::now(),
            }),
            ended: Notify::new(),
        }
    }

    /// Counts a command until the guard is dropped.
    pub(super) fn begin(&self) -> Running<'_> {
        self.note(|running| running + 1);
        Running(self)
    }

    fn note(&self, change: fn(usize) -> usize) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        activity.running = change(activity.running);
        activity.last = Instant::now();
    }

    /// One that waits, or a new one.
    pub(super) fn take(&self, cgroups: &Cgroups) -> Result<Launcher, NotStarted> {
        while let Some(mut process) = self.pop() {
            if process.waits() {
                return Ok(process);
            }
            // Something in the VM has killed it.
            process.forget(cgroups);
        }
        Launcher::start(cgroups, Outputs::piped())
    }

    fn pop(&self) -> Option<Launcher> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn count(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Cleans up after commands and fills the stock, for ever.
    pub(super) async fn keep(&self, cgroups: &Cgroups) {
        loop {
            self.ended.notified().await;
            self.idle().await;
            cgroups.sweep();
            while self.count() < SPARES && self.add(cgroups).await {
                self.idle().await;
            }
        }
    }

    /// Cleans up and fills the stock now: the VM is about to be frozen.
    pub(super) async fn quiesce(&self, cgroups: &Cgroups) {
        while self.count() < SPARES && self.add(cgroups).await {}
        // The last command may still be on its way out.
        for _ in 0..SWEEPS {
            if cgroups.sweep() {
                break;
            }
            sleep(SWEEP_PAUSE).await;
        }
    }

    /// Starts one. When it fails, a command will find out, and say so.
    async fn add(&self, cgroups: &Cgroups) -> bool {
        let Ok(process) = Launcher::start(cgroups, Outputs::piped()) else {
            return false;
        };
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(process);
        // The new process goes first, and so does whatever was asked meanwhile.
        sleep(BETWEEN).await;
        true
    }

    async fn idle(&self) {
        while let Some(then) = self.idle_at() {
            // A command that ends meanwhile may make it sooner.
            tokio::select! {
                () = sleep_until(then) => {}
                () = self.ended.notified() => {}
            }
        }
    }

    /// When to look again whether the agent is idle; `None` when it is.
    fn idle_at(&self) -> Option<Instant> {
        let in_haste = self.count() == 0;
        let activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if in_haste && activity.running == 0 { IDLE } else { QUIET };
        let then = activity.last + pause;
        (Instant::now() < then).then_some(then)
    }

    /// Ends all of them.
    pub(super) async fn end(&self, cgroups: &Cgroups) {
        while let Some(process) = self.pop() {
            process.end(cgroups).await;
        }
        cgroups.sweep();
    }
}

/// A command that runs.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a PreStarted);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.note(|running| running.saturating_sub(1));
        self.0.ended.notify_one();
    }
}
