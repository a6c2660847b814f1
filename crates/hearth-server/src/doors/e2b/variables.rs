//! Variables for a sandbox that continues from a snapshot: what a claim of a pool gets at its hand-over is written into it afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use hearth_api::ids::InstanceId;

use super::access::sandbox_id;
use super::fault::Refusal;
use crate::http::AppState;
use crate::secrets::env_file;
use crate::store::VariableRow;

/// How long its agent may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest file of variables.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Adds variables to those that its commands have; they win.
pub async fn add(state: &AppState, id: &InstanceId, variables: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let failed = |why: String| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the variables could not be written: {why}"),
        )
    };
    let row = state.store.instance(id).await?;
    let row = row.ok_or_else(|| Refusal::no_sandbox(sandbox_id(id)))?;
    let agent = state
        .connections
        .get(&row.vm, PATIENCE)
        .await
        .map_err(|error| failed(error.to_string()))?;
    // One that was never written is empty.
    let mut text = match agent.read_file(env_file::PATH).await {
        Ok(file) => file
            .collect(MAX_BYTES)
            .await
            .map_err(|error| failed(error.to_string()))?
            .to_vec(),
        Err(_) => Vec::new(),
    };
    let rows: Vec<VariableRow> = variables
        .iter()
        .map(|(name, value)| VariableRow {
            name: name.clone(),
            value: value.clone(),
        })
        .collect();
    text.extend_from_slice(env_file::render(&rows).as_bytes());
    let written = agent.write_file(env_file::PATH, env_file::MODE, text).await;
    written.map_err(|error| failed(error.to_string()))
}
