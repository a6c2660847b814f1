//! Ready VMs are asked now and then whether they still answer: one that stands still is let go on for it. One that misses
//! several times in a row is taken out of the pool before a claim finds it.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::ids::VmId;
use hearth_core::state::FailureKind;
use hearth_core::world::Failure;
use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Reconciler;
use crate::store::{InstanceRow, StoreError};

/// A VM has this long to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Misses in a row before a VM is given up: a host can be busy.
const MISSES: u32 = 3;
/// After a miss the VM is asked again so much sooner; so often it is looked which VMs are due, too.
const SOONER: u32 = 20;
/// VMs that are asked at once.
const AT_ONCE: usize = 2;

/// When each ready VM is due, and how often it missed.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<VmId, Probe>);

#[derive(Debug, Clone, Copy)]
struct Probe {
    due: Instant,
    misses: u32,
}

impl Reconciler {
    /// Rounds until the server stops.
    pub async fn probe(&self, stop: CancellationToken) {
        if self.probe_interval.is_zero() {
            return;
        }
        loop {
            if let Err(error) = self.probe_round().await {
                tracing::warn!(%error, "ready VMs could not be looked at; the next round tries again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.probe_interval / SOONER) => {}
            }
        }
    }

    /// How often a ready VM has not answered in a row.
    #[must_use]
    pub fn misses(&self, vm: &VmId) -> u32 {
        self.probes(|probes| probes.0.get(vm).map_or(0, |probe| probe.misses))
    }

    async fn probe_round(&self) -> Result<(), StoreError> {
        let ready = self.context.store.pooled_instances().await?;
        let due = self.probes(|probes| probes.due(&ready, self.probe_interval));
        futures::stream::iter(ready.into_iter().filter(|row| due.contains(&row.vm)))
            .for_each_concurrent(AT_ONCE, |row| async move {
                if let Err(error) = self.probe_one(&row).await {
                    tracing::warn!(%error, instance = %row.id, "what a look at a VM found could not be written");
                }
            })
            .await;
        Ok(())
    }

    async fn probe_one(&self, row: &InstanceRow) -> Result<(), StoreError> {
        let answers = async {
            let _awake = self.keep_awake(&row.vm).await.map_err(|error| error.to_string())?;
            let agent = self.context.agents.get(&row.vm, PATIENCE).await;
            let agent = agent.map_err(|error| error.to_string())?;
            agent.health().await.map(drop).map_err(|error| error.to_string())
        };
        let answer = tokio::time::timeout(PATIENCE, answers).await;
        let fault = match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let misses = self.probes(|probes| probes.note(&row.vm, fault.is_some(), self.probe_interval));
        let Some(fault) = fault else { return Ok(()) };
        // Whoever asks next makes a new connection.
        self.context.agents.forget(&row.vm);
        tracing::warn!(instance = %row.id, misses, fault, "a ready VM did not answer");
        if misses < MISSES {
            return Ok(());
        }
        let failure = Failure {
            kind: FailureKind::VmLost,
            reason: format!("it did not answer {misses} times in a row while it stood ready: {fault}"),
        };
        self.give_up(row, &failure).await
    }

    fn probes<T>(&self, act: impl FnOnce(&mut Probes) -> T) -> T {
        act(&mut self.probing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Probes {
    /// Those that are due; a new one is due at any moment of the first interval, so that VMs made together are not asked together.
    fn due(&mut self, ready: &[InstanceRow], interval: Duration) -> Vec<VmId> {
        self.0.retain(|vm, _| ready.iter().any(|row| row.vm == *vm));
        let now = Instant::now();
        for row in ready {
            self.0.entry(row.vm.clone()).or_insert_with(|| Probe {
                due: now + interval.mul_f64(rand::rng().random_range(0.1..1.0)),
                misses: 0,
            });
        }
        let due = self.0.iter().filter(|(_, probe)| probe.due <= now);
        due.map(|(vm, _)| vm.clone()).collect()
    }

    /// Notes how it ended; the misses in a row.
    fn note(&mut self, vm: &VmId, missed: bool, interval: Duration) -> u32 {
        let Some(probe) = self.0.get_mut(vm) else { return 0 };
        probe.misses = if missed { probe.misses + 1 } else { 0 };
        let pause = if missed { interval / SOONER } else { interval };
        probe.due = Instant::now() + pause.mul_f64(rand::rng().random_range(0.75..1.25));
        probe.misses
    }
}
