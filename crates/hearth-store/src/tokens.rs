//! API tokens, by hash only.

use hearth_api::ids::{ProjectId, TokenId};
use hearth_api::token::{Scope, TokenItem};
use jiff::Timestamp;
use subtle::ConstantTimeEq as _;

use super::{
    RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, set_meta, timestamp, to_json,
};

/// What begins the key of a token that has no secret, where others have a hash: no secret leads to it.
pub const SIGN_IN_PREFIX: &str = "openid:";
/// By which settings people were let in who show no secret.
const SIGN_IN_SETTINGS: &str = "openid_settings";

/// A token as the server knows it.
pub type TokenRow = TokenItem;

/// A token to be written.
#[derive(Debug)]
pub struct NewToken<'a> {
    /// Everything that is shown.
    pub item: &'a TokenItem,
    /// SHA-256 of the whole token, hexadecimal.
    pub hash: &'a str,
}

/// Which tokens a caller may see and revoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenReach<'a> {
    /// Those of every tenant.
    Everywhere,
    /// A tenant's.
    Tenant(&'a str),
    /// Those for one project alone.
    Project(&'a ProjectId),
}

impl<'a> TokenReach<'a> {
    /// What the columns `tenant` and `project_id` must be, if anything.
    fn columns(self) -> (Option<&'a str>, Option<&'a str>) {
        match self {
            Self::Everywhere => (None, None),
            Self::Tenant(tenant) => (Some(tenant), None),
            Self::Project(project) => (None, Some(project.as_str())),
        }
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct RawToken {
    id: String,
    tenant: String,
    name: String,
    owner: String,
    hash: String,
    scopes: String,
    project_id: Option<String>,
    name_prefix: Option<String>,
    max_vms: Option<i64>,
    created_at: i64,
    last_used_at: Option<i64>,
    expires_at: Option<i64>,
}

impl TryFrom<RawToken> for TokenRow {
    type Error = StoreError;
    fn try_from(raw: RawToken) -> Result<Self, StoreError> {
        let scopes: Vec<Scope> = from_json("token.scopes", &raw.scopes)?;
        Ok(Self {
            id: parse("token.id", &raw.id)?,
            name: raw.name,
            owner: raw.owner,
            tenant: raw.tenant,
            scopes,
            project_id: raw
                .project_id
                .map(|id| parse::<ProjectId>("token.project_id", &id))
                .transpose()?,
            name_prefix: raw.name_prefix,
            max_vms: raw
                .max_vms
                .map(|most| u32::try_from(most).map_err(|error| StoreError::corrupt("token.max_vms", error)))
                .transpose()?,
            created_at: timestamp(raw.created_at)?,
            last_used_at: optional_timestamp(raw.last_used_at)?,
            expires_at: optional_timestamp(raw.expires_at)?,
        })
    }
}

impl Store {
    /// Writes a new token.
    pub async fn insert_token(&self, new: &NewToken<'_>) -> Result<(), StoreError> {
        let item = new.item;
        db::query(
            "INSERT INTO token (id, tenant, name, owner, hash, scopes, project_id, created_at, expires_at,
                                name_prefix, max_vms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(item.id.as_str())
        .bind(&item.tenant)
        .bind(&item.name)
        .bind(&item.owner)
        .bind(new.hash)
        .bind(to_json(&item.scopes)?)
        .bind(item.project_id.as_ref().map(ProjectId::as_str))
        .bind(millis(item.created_at))
        .bind(item.expires_at.map(millis))
        .bind(&item.name_prefix)
        .bind(item.max_vms)
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// Writes the token of somebody who shows no secret, or what has changed of it; its id stays. `hash` is then a key that is no hash.
    /// `None` when it was revoked in the same moment.
    pub async fn put_token(&self, new: &NewToken<'_>) -> Result<Option<TokenRow>, StoreError> {
        let item = new.item;
        db::query(
            "INSERT INTO token (id, tenant, name, owner, hash, scopes, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (hash) DO UPDATE SET tenant = excluded.tenant, name = excluded.name, owner = excluded.owner,
                                              scopes = excluded.scopes, expires_at = excluded.expires_at",
        )
        .bind(item.id.as_str())
        .bind(&item.tenant)
        .bind(&item.name)
        .bind(&item.owner)
        .bind(new.hash)
        .bind(to_json(&item.scopes)?)
        .bind(millis(item.created_at))
        .bind(item.expires_at.map(millis))
        .run_on(&self.write)
        .await?;
        self.token_by_hash(new.hash).await
    }

    /// Ends the tokens of those who show no secret where these are not the settings by which they were let in: they sign in again, and their
    /// tokens keep their ids.
    pub async fn end_sign_ins_unless(&self, settings: &str, now: Timestamp) -> Result<(), StoreError> {
        let before = self.meta(SIGN_IN_SETTINGS).await?;
        if before.unwrap_or_default() == settings {
            return Ok(());
        }
        let mut tx = self.write.begin().await?;
        db::query("UPDATE token SET expires_at = $1 WHERE hash LIKE $2 || '%' AND expires_at > $1")
            .bind(millis(now))
            .bind(SIGN_IN_PREFIX)
            .execute(&mut *tx)
            .await?;
        set_meta(&mut tx, SIGN_IN_SETTINGS, settings).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The token with this hash. The hash is of 256 random bits, so the index look-up tells a guesser nothing; the found
    /// one is compared in constant time all the same.
    pub async fn token_by_hash(&self, hash: &str) -> Result<Option<TokenRow>, StoreError> {
        let raw: Option<RawToken> = db::query_as("SELECT * FROM token WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&self.read)
            .await?;
        raw.filter(|raw| raw.hash.as_bytes().ct_eq(hash.as_bytes()).into())
            .map(TokenRow::try_from)
            .transpose()
    }

    /// Whether there still is a token of this id that has not expired.
    pub async fn token_lives(&self, id: &TokenId, now: Timestamp) -> Result<bool, StoreError> {
        let lives = db::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM token WHERE id = $1 AND (expires_at IS NULL OR expires_at > $2))",
        );
        Ok(lives.bind(id.as_str()).bind(millis(now)).fetch_one(&self.read).await?)
    }

    /// The tokens of a reach, oldest first.
    pub async fn tokens(&self, reach: TokenReach<'_>) -> Result<Vec<TokenRow>, StoreError> {
        let (tenant, project) = reach.columns();
        let raw: Vec<RawToken> = db::query_as(
            "SELECT * FROM token WHERE ($1 IS NULL OR tenant = $1) AND ($2 IS NULL OR project_id = $2) ORDER BY id",
        )
        .bind(tenant)
        .bind(project)
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(TokenRow::try_from).collect()
    }

    /// How many tokens there are at all.
    pub async fn count_tokens(&self) -> Result<i64, StoreError> {
        Ok(db::query_scalar("SELECT count(*) FROM token")
            .fetch_one(&self.read)
            .await?)
    }

    /// Removes a token; false when there is none of that id in the reach.
    pub async fn delete_token(&self, reach: TokenReach<'_>, id: &TokenId) -> Result<bool, StoreError> {
        self.freeing(|| self.delete_token_once(reach, id)).await
    }

    async fn delete_token_once(&self, reach: TokenReach<'_>, id: &TokenId) -> Result<bool, StoreError> {
        let (tenant, project) = reach.columns();
        let done = db::query(
            "DELETE FROM token WHERE ($1 IS NULL OR tenant = $1) AND ($2 IS NULL OR project_id = $2) AND id = $3",
        )
        .bind(tenant)
        .bind(project)
        .bind(id.as_str())
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Notes that a token was used.
    pub async fn touch_token(&self, id: &TokenId, now: Timestamp) -> Result<(), StoreError> {
        db::query("UPDATE token SET last_used_at = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(millis(now))
            .run_on(&self.write)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::testing::{Database, Kind, on_both};

    on_both!(other_settings_end_sign_ins_and_their_tokens_keep_their_ids);

    async fn other_settings_end_sign_ins_and_their_tokens_keep_their_ids(kind: Kind) {
        let database = Database::new(kind);
        let (store, now) = (database.open().await, Timestamp::now());
        let item = |name: &str| TokenItem {
            id: TokenId::generate(),
            name: name.to_owned(),
            owner: "ada".to_owned(),
            tenant: "default".to_owned(),
            scopes: vec![Scope::Admin],
            project_id: None,
            name_prefix: None,
            max_vms: None,
            created_at: now,
            last_used_at: None,
            expires_at: Some(now + SignedDuration::from_hours(12)),
        };
        store.end_sign_ins_unless("rules", now).await.unwrap();
        let (first, other) = (item("sign-in"), item("by hand"));
        let person = NewToken {
            item: &first,
            hash: "openid:1",
        };
        let signed_in = store.put_token(&person).await.unwrap().unwrap();
        let by_hand = NewToken {
            item: &other,
            hash: "2",
        };
        store.insert_token(&by_hand).await.unwrap();
        let later = now + SignedDuration::from_secs(1);
        let lives = async |id: &TokenId| {
            let after = later + SignedDuration::from_secs(1);
            store.token_lives(id, after).await.unwrap()
        };
        store.end_sign_ins_unless("rules", later).await.unwrap();
        assert!(lives(&signed_in.id).await);
        store.end_sign_ins_unless("other rules", later).await.unwrap();
        assert!(!lives(&signed_in.id).await && lives(&other.id).await);
        let again = item("sign-in");
        let person = NewToken {
            item: &again,
            hash: "openid:1",
        };
        let again = store.put_token(&person).await.unwrap().unwrap();
        assert_eq!(again.id, signed_in.id);
        assert!(lives(&again.id).await);
    }
}
