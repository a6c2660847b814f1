//! One call at a time per name, as many names at once as there are.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// The names that somebody is busy with.
#[derive(Debug)]
pub(super) struct Gates<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Gates<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Gates<K> {
    /// Waits until nobody else is busy with this name; the caller is, until it drops what it gets.
    pub(super) async fn enter(&self, name: &K) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(name.clone()).or_default().clone()
        };
        gate.lock_owned().await
    }
}
