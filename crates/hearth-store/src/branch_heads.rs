//! BranchHeads: what each branch was last seen at.

use std::collections::HashMap;

use hearth_api::ids::ProjectId;
use hearth_core::checkout::{Checkout, Remote};
use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::{ProjectRow, RunOn as _, Store, StoreError, db, millis, parse, timestamp};

/// What branches were last seen at. A snapshot.
#[derive(Debug, Clone, Default)]
pub struct BranchHeads(HashMap<(Remote, String), BranchHead>);

/// What one branch was last seen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchHead {
    /// Full hexadecimal name.
    pub commit: String,
    /// When it was first seen there.
    pub changed_at: Timestamp,
}

impl BranchHeads {
    /// The commit of a branch of a repository, if it was ever seen.
    #[must_use]
    pub fn commit(&self, remote: &Remote, branch: &str) -> Option<&str> {
        self.get(remote, branch).map(|head| head.commit.as_str())
    }

    /// The commits of these checkouts' branches, in order.
    #[must_use]
    pub fn commits(&self, checkouts: &[Checkout]) -> Vec<Option<&str>> {
        let commit = |checkout: &Checkout| self.commit(&checkout.remote(), &checkout.branch);
        checkouts.iter().map(commit).collect()
    }

    /// The same with its time.
    #[must_use]
    pub fn get(&self, remote: &Remote, branch: &str) -> Option<&BranchHead> {
        self.0.get(&(remote.clone(), branch.to_owned()))
    }
}

/// With whose credentials it was looked at.
fn project_column(remote: &Remote) -> &str {
    remote.project.as_ref().map_or("", ProjectId::as_str)
}

impl Store {
    /// Notes what a branch is at; true when that is news.
    pub async fn note_branch_head(
        &self,
        remote: &Remote,
        branch: &str,
        commit: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = db::query(
            "INSERT INTO tip (tenant, url, branch, commit_id, changed_at, project_id) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (tenant, project_id, url, branch) DO UPDATE
             SET commit_id = excluded.commit_id, changed_at = excluded.changed_at WHERE tip.commit_id <> excluded.commit_id",
        )
        .bind(&remote.tenant)
        .bind(&remote.url)
        .bind(branch)
        .bind(commit)
        .bind(millis(now))
        .bind(project_column(remote))
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Every branch that was ever seen.
    pub async fn branch_heads(&self) -> Result<BranchHeads, StoreError> {
        let rows: Vec<(String, String, String, String, String, i64)> =
            db::query_as("SELECT tenant, project_id, url, branch, commit_id, changed_at FROM tip")
                .fetch_all(&self.read)
                .await?;
        let mut heads = BranchHeads::default();
        for (tenant, project, url, branch, commit, changed_at) in rows {
            let changed_at = timestamp(changed_at)?;
            let project = match project.as_str() {
                "" => None,
                id => Some(parse("tip.project_id", id)?),
            };
            let remote = Remote { tenant, project, url };
            heads.0.insert((remote, branch), BranchHead { commit, changed_at });
        }
        Ok(heads)
    }

    /// The branch heads of a project's repositories.
    pub async fn branch_heads_of(&self, project: &ProjectRow) -> Result<BranchHeads, StoreError> {
        let remotes: Vec<_> = project.repos.iter().map(|repo| project.remote(repo)).collect();
        self.branch_heads_at(&remotes).await
    }

    /// The branch heads of these repositories alone, each with every branch that was seen.
    pub async fn branch_heads_at(&self, remotes: &[Remote]) -> Result<BranchHeads, StoreError> {
        let mut heads = BranchHeads::default();
        for remote in remotes {
            let rows: Vec<(String, String, i64)> = db::query_as(
                "SELECT branch, commit_id, changed_at FROM tip WHERE tenant = $1 AND project_id = $2 AND url = $3",
            )
            .bind(&remote.tenant)
            .bind(project_column(remote))
            .bind(&remote.url)
            .fetch_all(&self.read)
            .await?;
            for (branch, commit, changed_at) in rows {
                let changed_at = timestamp(changed_at)?;
                heads
                    .0
                    .insert((remote.clone(), branch), BranchHead { commit, changed_at });
            }
        }
        Ok(heads)
    }

    /// Forgets branches of repositories that no project has any more.
    pub async fn forget_branch_heads(&self) -> Result<(), StoreError> {
        let statement = format!(
            "DELETE FROM tip WHERE NOT EXISTS (
                SELECT 1 FROM project, {}
                WHERE project.tenant = tip.tenant AND element.value ->> 'url' = tip.url
                  AND tip.project_id = CASE WHEN project.credentials_version > 0 THEN project.id ELSE '' END)",
            self.dialect().elements("project.repos")
        );
        db::query(AssertSqlSafe(statement)).run_on(&self.write).await?;
        Ok(())
    }
}
