//! Claimed VMs that nobody uses are paused, where their project wants that: see `idlePauseMinutes`. A VM is used while a call is under way
//! in it (a command, a terminal, a file, a connection to a port), and while a session in it uses the processor. The next call resumes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::counted::count;
use hearth_api::ids::VmId;
use hearth_guest::exec_session::ProcessInfo;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::Connections;
use super::pause::{NotPaused, Pause, PauseOrder};
use crate::store::{IdleRule, Store, StoreError};

/// The longest time between two checks of all VMs.
const ROUND: Duration = Duration::from_secs(15);
/// How long an agent may take to say which processes there are.
const PATIENCE: Duration = Duration::from_secs(5);
/// VMs that are checked at a time.
const AT_ONCE: usize = 8;
/// A session that uses less than this share of a processor waits for something: a server without visitors, say.
const WAITING_SHARE: f64 = 0.02;

/// Pauses VMs that nobody uses. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IdlePause {
    store: Store,
    pause: Pause,
    connections: Connections,
    /// How long a minute of a project's setting lasts.
    minute: Duration,
    samples: Arc<Mutex<HashMap<VmId, Sample>>>,
}

/// The processes of a VM's sessions at some moment. Not with when they began: what a guest says of that moves with its clock.
#[derive(Debug)]
struct Sample {
    at: Instant,
    /// When the VM had been used last.
    used: Instant,
    /// Their processor time, ms, by process id.
    processes: HashMap<u32, u64>,
}

impl IdlePause {
    #[must_use]
    pub fn new(store: Store, pause: Pause, connections: Connections, minute: Duration) -> Self {
        Self {
            store,
            pause,
            connections,
            minute,
            samples: Arc::default(),
        }
    }

    /// Until the server stops.
    pub async fn run(&self, stop: CancellationToken) {
        let round = (self.minute / 4).min(ROUND);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(round) => {}
            }
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "which VMs are to be paused could not be read; it is tried again");
            }
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        let rules = self.store.idle_rules().await?;
        self.samples().retain(|vm, _| rules.iter().any(|rule| rule.vm == *vm));
        futures::stream::iter(rules)
            .for_each_concurrent(AT_ONCE, |rule| async move { self.check(&rule).await })
            .await;
        Ok(())
    }

    fn samples(&self) -> MutexGuard<'_, HashMap<VmId, Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn check(&self, rule: &IdleRule) {
        let Some(used) = self.pause.idle_since(&rule.vm) else {
            return;
        };
        let limit = self.minute.saturating_mul(rule.minutes);
        // The first half of the time says nothing: the guest is asked twice in the other one.
        if used.elapsed() < limit / 2 || self.pause.is_paused(&rule.vm).await {
            return;
        }
        let has_sample = self.samples().get(&rule.vm).is_some_and(|sample| sample.used == used);
        if has_sample && used.elapsed() < limit {
            return;
        }
        // One that does not answer is nobody's to pause.
        let Some(now) = self.sample(&rule.vm, used).await else {
            return;
        };
        let before = self.samples().remove(&rule.vm).filter(|sample| sample.used == used);
        let Some(before) = before else {
            self.samples().insert(rule.vm.clone(), now);
            return;
        };
        if before.is_active_until(&now) {
            return self.pause.note_use(&rule.vm);
        }
        self.pause(rule, used).await;
    }

    async fn sample(&self, vm: &VmId, used: Instant) -> Option<Sample> {
        let ask = async {
            let agent = self.connections.get(vm, PATIENCE).await.ok()?;
            agent.processes().await.ok()
        };
        let processes = tokio::time::timeout(PATIENCE, ask).await.ok().flatten()?;
        Some(Sample::new(used, &processes))
    }

    async fn pause(&self, rule: &IdleRule, used: Instant) {
        let minutes = usize::try_from(rule.minutes).unwrap_or(usize::MAX);
        let order = |to_disk| PauseOrder {
            force: false,
            to_disk,
            because: Some(format!("nobody used it for {}", count(minutes, "minute"))),
            unused_since: Some(used),
        };
        let (id, vm) = (&rule.id, &rule.vm);
        let mut paused = self.pause.pause_claimed(id, vm, order(rule.to_disk)).await;
        if let (true, Err(NotPaused::Driver(error))) = (rule.to_disk, &paused) {
            tracing::warn!(instance = %id, %error, "an idle VM could not be paused to the disk; it is paused in memory");
            paused = self.pause.pause_claimed(id, vm, order(false)).await;
        }
        match paused {
            Ok(()) => tracing::info!(instance = %id, "paused: nobody used it for {}", count(minutes, "minute")),
            // Somebody was faster.
            Err(NotPaused::InUse(_) | NotPaused::NotClaimed) => {}
            Err(error) => tracing::warn!(instance = %id, %error, "an idle VM could not be paused"),
        }
    }
}

impl Sample {
    fn new(used: Instant, processes: &[ProcessInfo]) -> Self {
        let of_sessions = processes.iter().filter(|process| process.session.is_some());
        Self {
            at: Instant::now(),
            used,
            processes: of_sessions.map(|process| (process.pid, process.cpu_ms)).collect(),
        }
    }

    /// Whether a session began something since, or used the processor.
    fn is_active_until(&self, later: &Self) -> bool {
        let mut used_ms = 0;
        for (process, ms) in &later.processes {
            match self.processes.get(process) {
                Some(before) if before <= ms => used_ms += ms - before,
                // Another one, of the same id perhaps.
                _ => return true,
            }
        }
        let length = later.at.saturating_duration_since(self.at);
        Duration::from_millis(used_ms) > length.mul_f64(WAITING_SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, processes: &[(u32, u64)]) -> Sample {
        Sample {
            at,
            used: at,
            processes: processes.iter().copied().collect(),
        }
    }

    #[test]
    fn a_session_that_waits_is_no_use_and_one_that_computes_or_begins_something_is() {
        let begin = Instant::now();
        let later = begin + Duration::from_secs(60);
        let before = sample(begin, &[(1, 100), (2, 5000)]);
        for (processes, active) in [
            (&[(1, 100), (2, 5000)][..], false),
            (&[(1, 700), (2, 5400)], false),
            (&[(1, 100), (2, 6300)], true),
            (&[(2, 5000)], false),
            (&[(1, 100), (2, 5000), (3, 0)], true),
            (&[(1, 10), (2, 5000)], true),
            (&[], false),
        ] {
            let is_active = before.is_active_until(&sample(later, processes));
            assert_eq!(is_active, active, "{processes:?}");
        }
    }
}
