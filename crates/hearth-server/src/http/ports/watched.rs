//! Work that lasts: bytes that go to or come from a VM are signs of life, and a VM of the pool runs for as long as they can come.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_api::ids::InstanceId;
use hearth_core::state::InstanceState;
use tokio::time::Instant;

use super::visitor_limit::Place;
use crate::http::AppState;
use crate::http::exec::show_life;
use crate::store::{InstanceRow, Store};
use crate::vms::pause::ResumedVm;

/// From one sign of life to the next.
const LIFE_EVERY: Duration = Duration::from_secs(30);

/// Held for as long as something is under way. Cheap to clone.
#[derive(Clone)]
pub struct Watched(Arc<Inner>);

struct Inner {
    store: Store,
    /// The claim whose lease is renewed.
    lease: Option<InstanceId>,
    shown: Mutex<Instant>,
    _awake: Option<ResumedVm>,
    _place: Option<Place>,
}

impl Watched {
    /// Entering the VM was the first sign of life.
    pub fn new(state: &AppState, row: &InstanceRow, resumed: Option<ResumedVm>) -> Self {
        Self(Arc::new(Inner {
            store: state.store().clone(),
            lease: (row.state == InstanceState::Claimed).then(|| row.id.clone()),
            shown: Mutex::new(Instant::now()),
            _awake: resumed,
            _place: None,
        }))
    }

    /// The same for somebody else than the owner.
    pub fn of_visitor(state: &AppState, resumed: Option<ResumedVm>, place: Place) -> Self {
        Self(Arc::new(Inner {
            store: state.store().clone(),
            lease: None,
            shown: Mutex::new(Instant::now()),
            _awake: resumed,
            _place: Some(place),
        }))
    }

    /// Bytes moved.
    pub fn moved(&self) {
        let Some(lease) = &self.0.lease else { return };
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.elapsed() >= LIFE_EVERY {
            *shown = Instant::now();
            tokio::spawn(show_life(self.0.store.clone(), lease.clone()));
        }
    }
}
