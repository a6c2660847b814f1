//! How long one decision takes, by the number of pools.

use std::time::{Duration, Instant};

use hearth_core::plan::decide;
use hearth_core::state::InstanceState;
use hearth_core::world::{Limits, VmPresence, Work, World};

use crate::state::{FORK_MIB, State};

/// Instances of a pool.
const OF_EACH: usize = 3;
/// Decisions of which the shortest is taken: whatever else the machine does only adds to it.
const TRIES: usize = 15;

/// A world in which nothing is to be done, and one in which every pool has moved on and misses one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    pub(crate) pools: usize,
    pub(crate) quiet: Duration,
    pub(crate) busy: Duration,
}

pub(crate) fn measure(pools: usize) -> anyhow::Result<Growth> {
    let quiet = world(pools, false)?;
    let busy = world(pools, true)?;
    Ok(Growth {
        pools,
        quiet: shortest(&quiet),
        busy: shortest(&busy),
    })
}

fn shortest(world: &World) -> Duration {
    let times = (0..TRIES).map(|_| {
        let began = Instant::now();
        std::hint::black_box(decide(std::hint::black_box(world)));
        began.elapsed()
    });
    times.min().unwrap_or_default()
}

fn world(pools: usize, busy: bool) -> anyhow::Result<World> {
    let mut state = State::new(Limits {
        max_vms: pools * 10,
        tenant_vms: None,
        memory_mib: pools as u64 * 10_240,
        concurrent_provisions: pools,
        concurrent_forks: pools,
        tokens: pools * 2,
    });
    for _ in 0..pools {
        let pool = state.add_pool(OF_EACH, 24 * 3600)?;
        state.want(pool, false, None);
        let name = state.world.pools[pool].recipe.clone();
        state.set_template(pool, &name, true);
        for _ in usize::from(busy)..OF_EACH {
            let slot = state.add_row(pool, name.clone())?;
            let row = state.row_mut(slot);
            (row.state, row.work) = (InstanceState::Ready, Work::Idle);
            (row.vm, row.memory_mib) = (VmPresence::Paused, FORK_MIB);
        }
        if busy {
            state.want(pool, false, None);
        }
    }
    Ok(state.world)
}
