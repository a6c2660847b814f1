//! For tests: what the database holds, beside the server that works with it.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::db::{self, Tx};
use super::{PostgresUrl, StoreError};

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
    /// Counts what is in this file now, or in this PostgreSQL database.
    pub async fn of(file: &Path, database: Option<&PostgresUrl>) -> Result<Self, StoreError> {
        match database {
            None => {
                let options = SqliteConnectOptions::new().filename(file).read_only(true);
                let pool = SqlitePoolOptions::new()
                    .max_connections(1)
                    .connect_with(options)
                    .await?;
                let census = Self::count(Tx::Sqlite(pool.begin().await?)).await?;
                pool.close().await;
                Ok(census)
            }
            Some(url) => {
                let pool = url.pool(1);
                let of_one_moment = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                let census = Self::count(Tx::Postgres(pool.begin_with(of_one_moment).await?)).await?;
                pool.close().await;
                Ok(census)
            }
        }
    }

    /// In one transaction: it all belongs to one moment.
    async fn count(mut tx: Tx) -> Result<Self, StoreError> {
        let census = Self {
            instances: db::query_as("SELECT id, vm_id, state FROM instance ORDER BY id")
                .fetch_all(&mut tx)
                .await?,
            claims: db::query_as("SELECT key, instance_id FROM claim WHERE ended_at IS NULL ORDER BY instance_id")
                .fetch_all(&mut tx)
                .await?,
            checkpoints: db::query_scalar("SELECT key FROM checkpoint ORDER BY key")
                .fetch_all(&mut tx)
                .await?,
            others: db::query_scalar(
                "SELECT (SELECT count(*) FROM project) + (SELECT count(*) FROM pool) + (SELECT count(*) FROM template)
                      + (SELECT count(*) FROM variable) + (SELECT count(*) FROM step)",
            )
            .fetch_one(&mut tx)
            .await?,
        };
        tx.commit().await?;
        Ok(census)
    }
}
