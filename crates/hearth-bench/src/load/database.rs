//! What PostgreSQL alone does: the bare claim statement, one durable transaction each, through pgbench.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hearth_test_postgres::programs;
use tokio::process::Command;

use crate::peers::output;

/// Rows for each second that pgbench runs: more than any machine of this kind claims.
const ROWS_A_SECOND: u64 = 60_000;

/// Claims per second of the statement alone, by so many clients: it decides who gets a VM, so that no two get the same and none waits for another.
pub(crate) async fn bare_claims(url: &str, folder: &Path, pools: usize, clients: usize, time: Duration) -> Result<f64> {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map(|()| path)
    };
    let pools = format!("pools={pools}");
    output(
        Command::new(programs().join("psql"))
            .args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--set", &pools])
            .args(["--set", &format!("rows={}", ROWS_A_SECOND * time.as_secs()), "--file"])
            .arg(file("tables.sql", include_str!("tables.sql"))?)
            .arg(url),
    )
    .await?;
    let said = output(
        Command::new(programs().join("pgbench"))
            .args(["--no-vacuum", "--protocol", "prepared", "--define", &pools])
            .args([
                "--client",
                &clients.to_string(),
                "--time",
                &time.as_secs().to_string(),
                "--file",
            ])
            .arg(file("claim.sql", include_str!("claim.sql"))?)
            .arg(url),
    )
    .await?;
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    let rate = rate.with_context(|| format!("pgbench said no rate: {said}"))?;
    Ok(rate.parse()?)
}
