//! Who is signed in to the pages: sessions of tokens, by hash only.

use hearth_api::ids::TokenId;
use jiff::Timestamp;

use super::tokens::RawToken;
use super::{RunOn as _, Store, StoreError, TokenRow, db, millis};

impl Store {
    /// Writes a new session, and removes those that have ended.
    pub async fn insert_web_session(
        &self,
        hash: &str,
        token: &TokenId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        db::query("DELETE FROM web_session WHERE expires_at <= $1")
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        db::query("INSERT INTO web_session (hash, token_id, created_at, expires_at) VALUES ($1, $2, $3, $4)")
            .bind(hash)
            .bind(token.as_str())
            .bind(millis(now))
            .bind(millis(expires_at))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// The token of the session with this hash, if that has not ended. The hash is of 256 random bits.
    pub async fn token_of_web_session(&self, hash: &str, now: Timestamp) -> Result<Option<TokenRow>, StoreError> {
        let raw: Option<RawToken> = db::query_as(
            "SELECT token.* FROM web_session JOIN token ON token.id = web_session.token_id
             WHERE web_session.hash = $1 AND web_session.expires_at > $2",
        )
        .bind(hash)
        .bind(millis(now))
        .fetch_optional(&self.read)
        .await?;
        raw.map(TokenRow::try_from).transpose()
    }

    /// Ends a session.
    pub async fn delete_web_session(&self, hash: &str) -> Result<(), StoreError> {
        self.freeing(|| self.delete_web_session_once(hash)).await
    }

    async fn delete_web_session_once(&self, hash: &str) -> Result<(), StoreError> {
        db::query("DELETE FROM web_session WHERE hash = $1")
            .bind(hash)
            .run_on(&self.write)
            .await?;
        Ok(())
    }
}
