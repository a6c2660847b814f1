//! API tokens.

use reqwest::Method;

use super::{Client, ClientError};
use crate::ids::TokenId;
use crate::page::Items;
use crate::token::{CreateToken, TokenCreated, TokenItem, TokenRevoked};

impl Client {
    /// All tokens; secrets never come back.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_tokens(&self) -> Result<Items<TokenItem>, ClientError> {
        self.get(&["tokens"]).read().await
    }

    /// Makes a token. The reply is the only place where its secret is ever shown.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_token(&self, body: &CreateToken) -> Result<TokenCreated, ClientError> {
        self.post(&["tokens"]).json(body)?.read().await
    }

    /// Makes a token stop working.
    ///
    /// # Errors
    /// As every call.
    pub async fn revoke_token(&self, id: &TokenId) -> Result<TokenRevoked, ClientError> {
        self.call(Method::DELETE, &["tokens", id.as_str()]).read().await
    }
}
