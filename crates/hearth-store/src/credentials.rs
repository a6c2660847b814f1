//! Git credentials of a project, sealed.

use hearth_api::credential::{Credential, CredentialItem, CredentialKind};
use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::{Store, StoreError, db, millis, parse, timestamp};

/// A credential with its secret.
#[derive(Clone)]
pub struct CredentialRow {
    /// The git server.
    pub host: String,
    /// What kind of secret it is.
    pub kind: CredentialKind,
    /// Of a token: who it is said to be of.
    pub username: Option<String>,
    /// Of a token: it may be sent unencrypted.
    pub allow_http: bool,
    /// The token or the private key.
    pub secret: String,
}

impl std::fmt::Debug for CredentialRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialRow")
            .field("host", &self.host)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A VM that somebody has claimed, and whose it is.
#[derive(Debug, Clone)]
pub struct ClaimedVm {
    pub id: InstanceId,
    /// Its VM.
    pub vm: VmId,
    /// Its project.
    pub project: ProjectId,
}

#[derive(sqlx::FromRow)]
struct Raw {
    host: String,
    kind: String,
    username: Option<String>,
    allow_http: bool,
    fingerprint: Option<String>,
    secret: Vec<u8>,
    updated_at: i64,
    updated_by: Option<String>,
}

/// What a sealed secret is bound to: moved to another row it does not open.
fn context(project: &ProjectId, host: &str, kind: CredentialKind) -> String {
    format!("credential\0{project}\0{host}\0{}", kind.as_str())
}

impl Store {
    async fn credential_rows(&self, project: &ProjectId) -> Result<Vec<Raw>, StoreError> {
        let rows = db::query_as(
            "SELECT host, kind, username, allow_http, fingerprint, secret, updated_at, updated_by
             FROM credential WHERE project_id = $1 ORDER BY host, kind",
        );
        Ok(rows.bind(project.as_str()).fetch_all(&self.read).await?)
    }

    /// What is shown of a project's credentials, by host.
    pub async fn credential_items(&self, project: &ProjectId) -> Result<Vec<CredentialItem>, StoreError> {
        let rows = self.credential_rows(project).await?;
        rows.into_iter()
            .map(|raw| {
                Ok(CredentialItem {
                    kind: parse("credential.kind", &raw.kind)?,
                    host: raw.host,
                    username: raw.username,
                    allow_http: raw.allow_http,
                    fingerprint: raw.fingerprint,
                    updated_at: timestamp(raw.updated_at)?,
                    last_updated_by_user_id: raw.updated_by,
                })
            })
            .collect()
    }

    /// A project's credentials with their secrets, by host.
    pub async fn credentials(&self, project: &ProjectId) -> Result<Vec<CredentialRow>, StoreError> {
        let rows = self.credential_rows(project).await?;
        rows.into_iter()
            .map(|raw| {
                let kind = parse("credential.kind", &raw.kind)?;
                let secret = self
                    .cipher
                    .open_value(&context(project, &raw.host, kind), &raw.secret)?;
                Ok(CredentialRow {
                    host: raw.host,
                    kind,
                    username: raw.username,
                    allow_http: raw.allow_http,
                    secret,
                })
            })
            .collect()
    }

    /// Makes or replaces credentials, each with its fingerprint where it is a key; false when the project is gone.
    pub async fn put_credentials(
        &self,
        project: &ProjectId,
        credentials: &[(Credential, Option<String>)],
        by: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let known = db::query("UPDATE project SET credentials_version = credentials_version + 1 WHERE id = $1")
            .bind(project.as_str())
            .execute(&mut *tx)
            .await?;
        if known.rows_affected() == 0 {
            return Ok(false);
        }
        // From now on the project fetches for itself. It keeps what it has seen: its recipe does not change by that.
        let keep = format!(
            "INSERT INTO tip (tenant, project_id, url, branch, commit_id, changed_at)
             SELECT tip.tenant, project.id, tip.url, tip.branch, tip.commit_id, tip.changed_at
             FROM project, tip
             WHERE project.id = $1 AND project.credentials_version = 1 AND tip.tenant = project.tenant
               AND tip.project_id = ''
               AND tip.url IN (SELECT element.value ->> 'url' FROM {})
             ON CONFLICT DO NOTHING",
            self.dialect().elements("project.repos")
        );
        db::query(sqlx::AssertSqlSafe(keep))
            .bind(project.as_str())
            .execute(&mut *tx)
            .await?;
        for (credential, fingerprint) in credentials {
            let sealed = self.cipher.seal(
                &context(project, &credential.host, credential.kind),
                credential.secret.as_str(),
            )?;
            db::query(
                "INSERT INTO credential (project_id, host, kind, username, allow_http, fingerprint, secret, updated_at,
                                         updated_by)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 ON CONFLICT (project_id, host, kind) DO UPDATE SET username = excluded.username, allow_http = excluded.allow_http,
                                           fingerprint = excluded.fingerprint, secret = excluded.secret,
                                           updated_at = excluded.updated_at, updated_by = excluded.updated_by",
            )
            .bind(project.as_str())
            .bind(credential.host.as_str())
            .bind(credential.kind.as_str())
            .bind(credential.username.as_deref())
            .bind(credential.allow_http)
            .bind(fingerprint)
            .bind(sealed)
            .bind(millis(now))
            .bind(by)
            .execute(&mut *tx)
            .await?;
        }
        let change = Change::of_project(EventKind::ProjectChanged, project, now);
        tx.tell(change.with(json!({ "what": "credentials" }))).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes what there is for a host; false when there was nothing.
    pub async fn delete_credential(&self, project: &ProjectId, host: &str) -> Result<bool, StoreError> {
        self.freeing(|| self.delete_credential_once(project, host)).await
    }

    async fn delete_credential_once(&self, project: &ProjectId, host: &str) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let done = db::query("DELETE FROM credential WHERE project_id = $1 AND host = $2")
            .bind(project.as_str())
            .bind(host)
            .execute(&mut *tx)
            .await?;
        let deleted = done.rows_affected() > 0;
        if deleted {
            db::query("UPDATE project SET credentials_version = credentials_version + 1 WHERE id = $1")
                .bind(project.as_str())
                .execute(&mut *tx)
                .await?;
            let change = Change::of_project(EventKind::ProjectChanged, project, Timestamp::now());
            tx.tell(change.with(json!({ "what": "credentials" }))).await?;
        }
        tx.commit().await?;
        Ok(deleted)
    }

    /// The VMs of this server that are claimed and have not ended; without copies that are not handed over yet.
    pub async fn claimed_vms(&self) -> Result<Vec<ClaimedVm>, StoreError> {
        self.claimed(
            "SELECT id, vm_id, project_id FROM instance
             WHERE server = $1 AND state = 'claimed' AND vm_ended_at IS NULL AND (fork_of IS NULL
               OR EXISTS (SELECT 1 FROM claim WHERE instance_id = instance.id AND handed_over))",
        )
        .await
    }

    /// The same with those: their processes run already.
    pub async fn claimed_vms_and_copies(&self) -> Result<Vec<ClaimedVm>, StoreError> {
        self.claimed(
            "SELECT id, vm_id, project_id FROM instance
             WHERE server = $1 AND state = 'claimed' AND vm_ended_at IS NULL",
        )
        .await
    }

    async fn claimed(&self, query: &'static str) -> Result<Vec<ClaimedVm>, StoreError> {
        let rows: Vec<(String, String, String)> = db::query_as(query).bind(self.server()).fetch_all(&self.read).await?;
        rows.into_iter()
            .map(|(id, vm, project)| {
                Ok(ClaimedVm {
                    id: parse("instance.id", &id)?,
                    vm: parse("instance.vm_id", &vm)?,
                    project: parse("instance.project_id", &project)?,
                })
            })
            .collect()
    }
}
