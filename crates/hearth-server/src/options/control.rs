//! What can be done with a server while it runs: change some settings, and see that its loop works.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::repos::watch::WebhookSecret;

/// The settings that a running server takes over.
#[derive(Debug, Clone)]
pub struct Changeable {
    /// VMs that may exist at once.
    pub max_vms: usize,
    /// VMs that all projects of one tenant may have at once.
    pub tenant_vms: Option<usize>,
    /// VMs that may be in the making at once.
    pub provision_concurrency: usize,
    /// Requests per second and token; 0 sets no limit.
    pub requests_per_second: u32,
    /// What webhooks are signed with.
    pub webhook_secret: Option<WebhookSecret>,
}

type Change = Arc<dyn Fn(Changeable) -> Result<(), String> + Send + Sync>;

/// A hold on a running server. Cheap to clone.
#[derive(Clone, Default)]
pub struct Control(Arc<Inner>);

#[derive(Default)]
struct Inner {
    change: Mutex<Option<Change>>,
    pulse: Pulse,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Takes settings over and reads the certificate's files again. An error says which of it did not work; the rest did.
    pub fn change(&self, settings: Changeable) -> Result<(), String> {
        let change = self.0.change.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match change {
            Some(change) => change(settings),
            None => Err("the server is not up yet".to_owned()),
        }
    }

    /// The server says how it changes.
    pub(crate) fn on_change(&self, change: impl Fn(Changeable) -> Result<(), String> + Send + Sync + 'static) {
        *self.0.change.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(change));
    }

    /// The pools' loop.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.0.pulse.clone()
    }
}

/// When the pools' loop last made a step.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<Instant>>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Pulse {
    /// It made one.
    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}
