//! What the host gives to VMs of a kind (image, engine, size), as the driver's digest. A cache: the pool's loop and claims ask
//! far more often than it can change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_drivers::{Driver, DriverError, VmShape};
use tokio::sync::Notify;

/// What was found out so long ago is true enough.
const FRESH: Duration = Duration::from_secs(2);
/// A caller waits no longer; the check continues, and its answer is there the next time.
const PATIENCE: Duration = Duration::from_millis(500);
/// The first check of a kind is waited for longer: a VM that is made before its answer belongs to no recipe that a pool will follow,
/// and is replaced as soon as the answer is there. Finding out whether KVM works boots tiny guests one after the other, up to 10 s each:
/// on a busy host 23 s were seen.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);

type Kind = (Option<String>, VmShape);

/// What was found out.
#[derive(Debug, Clone)]
pub struct Environments {
    driver: Arc<dyn Driver>,
    known: Arc<Mutex<HashMap<Kind, Known>>>,
    /// Notified when a check has ended.
    ended: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    digest: Option<String>,
    at: Option<Instant>,
    looking: bool,
    /// When the first look began.
    began: Option<Instant>,
}

impl Environments {
    /// Nothing known yet.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            driver,
            known: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// The digest; nothing when the image is not there, or as long as it is not known.
    pub async fn get(&self, image: Option<&str>, shape: VmShape) -> Option<String> {
        let kind = (image.map(str::to_owned), shape);
        let (last, due, patience) = self.with(&kind, |known| {
            let is_fresh = known.at.is_some_and(|at| at.elapsed() < FRESH);
            let due = !is_fresh && !known.looking;
            known.looking |= due;
            let began = *known.began.get_or_insert_with(Instant::now);
            let patience = match known.at {
                Some(_) => PATIENCE,
                None => FIRST_PATIENCE.saturating_sub(began.elapsed()),
            };
            (known.digest.clone(), due, patience)
        });
        if !due {
            if patience == PATIENCE {
                return last;
            }
            let first = tokio::time::timeout(patience, self.first_answer(&kind)).await;
            return first.unwrap_or(last);
        }
        let this = self.clone();
        let look = tokio::spawn(async move {
            let found = this.driver.environment(kind.0.as_deref(), kind.1).await;
            let digest = this.with(&kind, |known| {
                known.looking = false;
                known.at = Some(Instant::now());
                match found {
                    Ok(digest) => known.digest = Some(digest),
                    // It will say so when a VM is made of it.
                    Err(DriverError::Permanent { .. }) => known.digest = None,
                    Err(error) => tracing::debug!(%error, "what the host gives to VMs is not known right now"),
                }
                known.digest.clone()
            });
            this.ended.notify_waiters();
            digest
        });
        match tokio::time::timeout(patience, look).await {
            Ok(Ok(digest)) => digest,
            _ => last,
        }
    }

    /// What the first check finds, which another caller began.
    async fn first_answer(&self, kind: &Kind) -> Option<String> {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // From here on no end is missed.
            ended.as_mut().enable();
            let known = self.with(kind, |known| known.at.map(|_| known.digest.clone()));
            if let Some(digest) = known {
                return digest;
            }
            ended.await;
        }
    }

    fn with<T>(&self, kind: &Kind, act: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        act(known.entry(kind.clone()).or_default())
    }
}
