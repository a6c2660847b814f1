//! The loop that makes the world as the pools' configurations say: observe → plan → act. A wake carries no data; every pass reads
//! everything again; the timer is the retry.

use std::time::Duration;

use hearth_api::ids::InstanceId;
use hearth_core::plan::decide;
use hearth_core::world::World;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::act::Actor;
use super::leader::Leader;
use super::observe::Observer;
use crate::options::Pulse;
use crate::status::PoolStatus;
use crate::store::{Store, StoreError};
use crate::wake::Wake;

/// Ended claims are remembered this long, so that a repeated key is recognised.
const CLAIMS_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// The loop.
#[derive(Debug)]
pub struct Controller {
    store: Store,
    wake: Wake,
    leader: Leader,
    observer: Observer,
    actor: Actor,
    status: PoolStatus,
    /// Says that the loop works.
    pulse: Pulse,
    /// Time between two passes when no wake comes.
    tick: Duration,
}

impl Controller {
    /// Does nothing until [`Controller::run`]. `tick`: time between two passes when no wake comes.
    #[must_use]
    pub fn new(
        store: Store,
        wake: Wake,
        observer: Observer,
        actor: Actor,
        status: PoolStatus,
        pulse: Pulse,
        tick: Duration,
    ) -> Self {
        Self {
            leader: Leader::new(store.clone(), actor.session().to_owned()),
            store,
            wake,
            observer,
            actor,
            status,
            pulse,
            tick,
        }
    }

    /// Passes until the server stops. VMs and half-made work stay as they are: the next server continues.
    pub async fn run(&self, stop: CancellationToken) {
        if let Err(error) = self.leader.take().await {
            tracing::error!(%error, "the controller's lease could not be taken; the first pass tries again");
        }
        if let Err(error) = self.actor.take_over().await {
            tracing::error!(%error, "boots that were interrupted cannot continue; they start again");
        }
        loop {
            self.pulse.beat();
            self.pass().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.woken() => {}
                () = tokio::time::sleep(self.tick) => {}
            }
        }
        self.leader.release().await;
    }

    async fn pass(&self) {
        let _alone = self.observer.begin_pass().await;
        let began = std::time::Instant::now();
        let world = match self.world().await {
            Ok(Some(world)) => world,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the pools could not be read; the next pass tries again");
                return;
            }
        };
        let (pools, observed) = (world.pools.len(), began.elapsed());
        let decision = decide(&world);
        let (observe_us, decide_us) = (observed.as_micros(), (began.elapsed() - observed).as_micros());
        tracing::debug!(pools, observe_us, decide_us, actions = decision.actions.len(), "a pass");
        self.status.note_pass(&world, &decision);
        for action in &decision.actions {
            self.pulse.beat();
            if let Err(error) = self.actor.act(&world, action).await {
                let instance = action.instance().map(InstanceId::as_str);
                tracing::error!(%error, action = action.as_str(), instance, "an action could not be done; the next pass tries again");
            }
        }
        self.store.refill_reserve();
        if let Err(error) = self.store.forget_claims(world.now - CLAIMS_KEPT).await {
            tracing::warn!(%error, "old claims could not be removed");
        }
    }

    /// What this pass decides on; `None` while another server does.
    async fn world(&self) -> Result<Option<World>, StoreError> {
        let now = Timestamp::now();
        let checked = self.leader.check_clock(now).await;
        self.status.note_clock(self.leader.clock_jumped());
        checked?;
        if !self.leader.is_leader(now).await? {
            return Ok(None);
        }
        let (world, claimed) = self.observer.observe(now, self.actor.tokens()).await?;
        self.status.note_claimed(claimed);
        Ok(Some(world))
    }
}
