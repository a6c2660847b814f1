//! The network of fake VMs: there is none. What each one is held to is kept, and a test says what it was refused.

use hearth_api::egress::{EgressPolicy, RefusedAttempt};
use hearth_api::ids::VmId;

use super::{FakeDriver, Verb};
use crate::{DriverError, Egress};

impl FakeDriver {
    /// Lets a VM have been refused something. False when there is none.
    pub fn refuse(&self, id: &VmId, attempt: RefusedAttempt) -> bool {
        let mut state = self.world.state();
        let noted = state
            .machines
            .inside_mut(id)
            .map(|inside| inside.egress.refused.insert(0, attempt));
        noted.is_ok()
    }

    pub(super) async fn hold(&self, id: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let (of, policy) = (id.clone(), policy.clone());
        self.change(Verb::HoldEgress, id, move |world| {
            world.state().machines.inside_mut(&of)?.egress.policy = policy;
            Ok(())
        })
        .await
    }

    pub(super) fn egress_of(&self, id: &VmId) -> Result<Egress, DriverError> {
        Ok(self.world.state().machines.inside_mut(id)?.egress.clone())
    }
}
