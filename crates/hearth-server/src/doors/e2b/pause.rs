//! Pausing sandboxes: because their client wants it, or instead of their end. A paused one is not there for calls into it until its client
//! connects to it again, unless it was made with `autoResume`.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::access::{Key, managed, sandbox_id};
use super::fault::{Fault, Refusal};
use super::sandboxes::{PAUSED_LEASE, set_end};
use crate::http::AppState;
use crate::store::{E2bRow, SandboxSeen};
use crate::vms::pause::{NotPaused, PauseOrder};

/// How often sandboxes are looked for whose time is over.
const ROUND: Duration = Duration::from_secs(2);

/// Pauses a sandbox. Its memory goes to the disk.
pub async fn pause(State(state): State<AppState>, key: Key, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    if seen.is_paused() {
        let why = format!("sandbox {name} is paused already");
        return Err(Refusal::new(StatusCode::CONFLICT, why).never_again());
    }
    put_to_sleep(&state, &seen).await.map_err(|error| match error {
        NotPaused::NotClaimed => Refusal::no_sandbox(&name),
        other => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the sandbox could not be paused: {other}"),
        ),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// A row for a claim that another client made.
pub fn row_of(seen: &SandboxSeen) -> E2bRow {
    seen.kept.clone().unwrap_or_else(|| E2bRow {
        template: seen.project.to_string(),
        metadata: Default::default(),
        timeout: seen.expires_at.duration_since(seen.claimed_at),
        auto_pause: false,
        auto_resume: false,
        public_traffic: false,
        network: None,
        ends_at: None,
        paused_at: None,
    })
}

async fn put_to_sleep(state: &AppState, seen: &SandboxSeen) -> Result<(), NotPaused> {
    let row = row_of(seen);
    let now = Timestamp::now();
    // First: a call that comes now must not wake it.
    let asleep = E2bRow {
        paused_at: Some(now),
        ..row.clone()
    };
    state.store.put_e2b(&seen.id, &asleep).await?;
    let order = PauseOrder {
        force: true,
        to_disk: true,
        ..PauseOrder::default()
    };
    if let Err(error) = state.pause.pause_claimed(&seen.id, &seen.vm, order).await {
        state.store.put_e2b(&seen.id, &row).await?;
        return Err(error);
    }
    state
        .store
        .set_lease(&seen.id, now + PAUSED_LEASE, PAUSED_LEASE)
        .await?;
    tracing::info!(instance = %seen.id, "paused for a client of E2B");
    Ok(())
}

/// Lets a paused sandbox run again, for so long from now.
pub async fn wake(state: &AppState, seen: &SandboxSeen, timeout: SignedDuration) -> Result<(), Fault> {
    let resumed = state.pause.enter_claimed(&seen.vm).await;
    let (_call, was_paused) = resumed.map_err(|error| Fault::unavailable(error.to_string()))?;
    if was_paused && let Some(row) = state.store.instance(&seen.id).await? {
        state.probes.set_clock(&row).await;
        state.pause.clock_is_set(&row.vm);
    }
    let awake = E2bRow {
        paused_at: None,
        ..row_of(seen)
    };
    let seen = SandboxSeen {
        kept: Some(awake),
        ..seen.clone()
    };
    let set = set_end(state, &seen, timeout).await;
    set.map_err(|_| Fault::NoSandbox(sandbox_id(&seen.id).to_owned()))
}

/// Until the server stops: pauses what is to be paused at its end.
pub async fn run(state: AppState, stop: CancellationToken) {
    loop {
        match state.store.e2b_to_pause(Timestamp::now()).await {
            Ok(due) => {
                for seen in due {
                    if let Err(error) = put_to_sleep(&state, &seen).await {
                        tracing::warn!(%error, instance = %seen.id, "a sandbox could not be paused at its end; it is tried again");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "sandboxes to be paused could not be read; it is tried again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}
