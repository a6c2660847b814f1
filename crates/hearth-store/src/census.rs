//! For tests: what the database holds, beside the server that works with it.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::StoreError;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Id, VM and state of every instance.
    pub instances: Vec<(String, String, String)>,
    /// Key and instance of every claim that has not ended.
    pub claims: Vec<(Option<String>, String)>,
    /// Names of the checkpoints.
    pub checkpoints: Vec<String>,
    /// Rows of projects, pools, templates, variables and steps.
    pub others: i64,
}

impl Census {
    /// Counts what is in this file now.
    pub async fn of(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        // One transaction: it all belongs to one moment.
        let mut tx = pool.begin().await?;
        let census = Self {
            instances: sqlx::query_as("SELECT id, vm_id, state FROM instance ORDER BY id")
                .fetch_all(&mut *tx)
                .await?,
            claims: sqlx::query_as("SELECT key, instance_id FROM claim WHERE ended_at IS NULL ORDER BY instance_id")
                .fetch_all(&mut *tx)
                .await?,
            checkpoints: sqlx::query_scalar("SELECT key FROM checkpoint ORDER BY key")
                .fetch_all(&mut *tx)
                .await?,
            others: sqlx::query_scalar(
                "SELECT (SELECT count(*) FROM project) + (SELECT count(*) FROM pool) + (SELECT count(*) FROM template)
                      + (SELECT count(*) FROM variable) + (SELECT count(*) FROM step)",
            )
            .fetch_one(&mut *tx)
            .await?,
        };
        tx.rollback().await?;
        pool.close().await;
        Ok(census)
    }
}
