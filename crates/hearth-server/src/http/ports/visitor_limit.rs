//! How many requests come by shared links into one VM at once. All that goes through a VM's one stream shares its window, and who takes an
//! answer slowly, or not at all, holds a part of that: strangers together never hold so much that the owner's own work waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_api::ids::InstanceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;

/// Three quarters of the answers that fit into a VM's window while nobody takes them.
const AT_ONCE: usize = 48;
/// How long one more waits for its turn; then its client is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those that are under way, by VM.
#[derive(Debug, Clone)]
pub struct VisitorLimit {
    places: Arc<Mutex<HashMap<InstanceId, Arc<Semaphore>>>>,
    patience: Duration,
}

impl Default for VisitorLimit {
    fn default() -> Self {
        Self {
            places: Arc::default(),
            patience: PATIENCE,
        }
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl VisitorLimit {
    /// Waits for a turn.
    pub async fn enter(&self, id: &InstanceId) -> Result<Place, ApiError> {
        let places = {
            let mut all = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            // Of VMs that nobody is in or waits for.
            all.retain(|_, places| Arc::strong_count(places) > 1);
            Arc::clone(
                all.entry(id.clone())
                    .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))),
            )
        };
        match tokio::time::timeout(self.patience, places.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            _ => Err(ApiError::too_often("this shared page", PATIENCE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_wait_for_each_other_and_for_those_of_their_vm_alone() {
        let limit = VisitorLimit {
            patience: Duration::from_millis(200),
            ..VisitorLimit::default()
        };
        let (one, other) = (InstanceId::example(1), InstanceId::example(2));
        let mut places = Vec::new();
        for _ in 0..AT_ONCE {
            places.push(limit.enter(&one).await.unwrap());
        }
        assert!(limit.enter(&one).await.is_err());
        drop(limit.enter(&other).await.unwrap());
        let waits = limit.enter(&one);
        let leaves = async { drop(places.pop()) };
        let (entered, ()) = tokio::join!(waits, leaves);
        assert!(entered.is_ok());
        drop((entered, places));
        drop(limit.enter(&other).await.unwrap());
        assert_eq!(
            limit.places.lock().unwrap().len(),
            1,
            "nothing is kept of a VM that nobody is in"
        );
    }
}
