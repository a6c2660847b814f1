//! The clients: each claims from one pool after the other, until no VM is left.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;
use hearth_api::claim::ClaimRequest;
use hearth_api::ids::{InstanceId, ProjectId};

use super::servers::Servers;

/// All claims of a run.
pub(crate) struct Run {
    /// Of each claim, shortest first, milliseconds.
    pub(crate) took: Vec<f64>,
    /// From the first request to the last answer.
    pub(crate) all: Duration,
}

/// Takes every VM of all pools; those of one pool through the servers in turn. Every claim must get a VM, and each VM goes to one claim.
pub(crate) async fn take_all(servers: &Servers, pools: &[ProjectId], of_a_pool: usize, clients: usize) -> Result<Run> {
    let (next, total) = (AtomicUsize::new(0), pools.len() * of_a_pool);
    let begin = Instant::now();
    let client = async || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= total {
                return Ok::<_, anyhow::Error>(done);
            }
            let pool = &pools[number % pools.len()];
            let body = ClaimRequest {
                task_id: Some(format!("task-{number}").as_str().try_into()?),
                ..ClaimRequest::default()
            };
            let begun = Instant::now();
            let reply = servers.client(number + number / pools.len()).claim(pool, &body).await?;
            done.push((reply.id, begun.elapsed()));
        }
    };
    let done: Vec<(InstanceId, Duration)> = try_join_all((0..clients).map(|_| client()))
        .await?
        .into_iter()
        .flatten()
        .collect();
    let all = begin.elapsed();
    let different: HashSet<&InstanceId> = done.iter().map(|(id, _)| id).collect();
    if different.len() != done.len() {
        bail!("{} claims got {} VMs: some got the same", done.len(), different.len());
    }
    let mut took: Vec<f64> = done.iter().map(|(_, took)| took.as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    Ok(Run { took, all })
}
