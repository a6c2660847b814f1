//! Whether this server acts on the pools, and whether its clock can be believed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::store::{Store, StoreError};

/// Length of the controller's lease. A server that stops for longer acts no more until it has it again.
const LEASE: SignedDuration = SignedDuration::from_secs(30);
/// It is renewed when so much of it has passed.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// A clock that differs by more from the time that passed has jumped; less is how clocks are set right.
const JUMP: SignedDuration = SignedDuration::from_secs(60);
/// Stands for the generation of a lease that could not be written because the disk is full.
const UNWRITTEN: i64 = 0;

/// What is known of lease and clock.
#[derive(Debug, Default)]
struct Known {
    /// When the lease was last taken or renewed.
    held: Option<Instant>,
    /// The log has said that another server has it.
    said: bool,
    /// The clock's time and the time that passes whatever the clock says, as of the last look.
    last: Option<(Timestamp, Instant)>,
    /// When the clock last jumped, and by how much.
    jumped: Option<(Timestamp, SignedDuration)>,
}

/// Holds the lease, and watches the clock.
#[derive(Debug)]
pub(super) struct Leader {
    store: Store,
    /// Names this server process.
    session: String,
    known: Mutex<Known>,
}

impl Leader {
    /// `session` names this server process.
    pub(super) fn new(store: Store, session: String) -> Self {
        Self {
            store,
            session,
            known: Mutex::default(),
        }
    }

    /// Takes the lease at the start: no other server can use this data folder, which is locked.
    pub(super) async fn take(&self) -> Result<(), StoreError> {
        if self.store.is_shared() {
            return Ok(());
        }
        let generation = self
            .store
            .hold_controller(&self.session, Timestamp::now(), LEASE, true)
            .await;
        let generation = match generation {
            Err(error) if error.is_disk_full() => Some(UNWRITTEN),
            held => held?,
        };
        self.known(|known| known.held = generation.map(|_| Instant::now()));
        Ok(())
    }

    /// Whether this server acts in this pass.
    pub(super) async fn is_leader(&self, now: Timestamp) -> Result<bool, StoreError> {
        // Of several servers each acts on the pools that are at home on it, and the store sees to that.
        if self.store.is_shared() {
            return Ok(true);
        }
        let held = self.known(|known| known.held);
        if held.is_some_and(|at| at.elapsed() < RENEW_AFTER) {
            return Ok(true);
        }
        let asked = Instant::now();
        let generation = self.store.hold_controller(&self.session, now, LEASE, false).await;
        let generation = match generation {
            // The folder's lock says that no other server acts here, and deletions must continue: they make room.
            Err(error) if error.is_disk_full() && held.is_some() => Some(UNWRITTEN),
            held => held?,
        };
        let news = self.known(|known| {
            known.held = generation.map(|_| asked);
            std::mem::replace(&mut known.said, generation.is_none()) != generation.is_none()
        });
        match generation {
            None if news => tracing::warn!("another server acts on these pools; this one answers requests and waits"),
            Some(generation) if news => tracing::info!(generation, "this server acts on the pools again"),
            _ => {}
        }
        Ok(generation.is_some())
    }

    /// Lets go of the lease, so that the next server need not wait.
    pub(super) async fn release(&self) {
        if self.store.is_shared() {
            return;
        }
        if let Err(error) = self.store.release_controller(&self.session).await {
            tracing::warn!(%error, "the controller's lease could not be given back; it runs out by itself");
        }
    }

    /// Looks whether the clock has jumped since the last pass. Leases then last as long as they were given; ages count by the
    /// new time, and whatever is too old by it is replaced one by one.
    pub(super) async fn check_clock(&self, now: Timestamp) -> Result<(), StoreError> {
        let here = Instant::now();
        let last = self.known(|known| known.last.replace((now, here)));
        let Some(by) = last.and_then(|last| jump(last, (now, here))) else {
            return Ok(());
        };
        tracing::warn!(
            seconds = by.as_secs(),
            "the clock of this host has jumped; VMs that are too old by its new time are replaced one by one, leases are kept"
        );
        self.known(|known| known.jumped = Some((now, by)));
        if by.is_positive() {
            self.store.shift_leases(by).await?;
        }
        Ok(())
    }

    /// When the clock last jumped, and by how much.
    pub(super) fn clock_jumped(&self) -> Option<(Timestamp, SignedDuration)> {
        self.known(|known| known.jumped)
    }

    fn known<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// By how much the clock ran away from the time that passed.
fn jump(last: (Timestamp, Instant), now: (Timestamp, Instant)) -> Option<SignedDuration> {
    let passed = SignedDuration::try_from(now.1.duration_since(last.1)).ok()?;
    let by = now.0.duration_since(last.0) - passed;
    (by.abs() > JUMP).then_some(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_with_the_time_has_not_jumped() {
        let (wall, here) = (Timestamp::UNIX_EPOCH, Instant::now());
        let later = |wall_seconds: i64, seconds: u64| {
            (
                wall + SignedDuration::from_secs(wall_seconds),
                here + Duration::from_secs(seconds),
            )
        };
        for (wall_seconds, seconds, by) in [
            (3, 3, None),
            (600, 600, None),
            (30, 3, None),
            (7203, 3, Some(7200)),
            (-100, 5, Some(-105)),
        ] {
            let by: Option<i64> = by;
            assert_eq!(
                jump((wall, here), later(wall_seconds, seconds)),
                by.map(SignedDuration::from_secs)
            );
        }
    }
}
