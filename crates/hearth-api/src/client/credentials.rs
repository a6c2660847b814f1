//! A project's git credentials.
//!
//! Setting and removing by host does no more twice than once, so a lost answer is asked for again.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::credential::{CredentialDeleted, CredentialItem, PutCredentials};
use crate::ids::ProjectId;
use crate::page::Items;

impl Client {
    /// The credentials; secrets never come back.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_credentials(&self, id: &ProjectId) -> Result<Items<CredentialItem>, ClientError> {
        self.get(&path(id)).read().await
    }

    /// Makes or replaces credentials.
    ///
    /// # Errors
    /// As every call.
    pub async fn put_credentials(
        &self,
        id: &ProjectId,
        body: &PutCredentials,
    ) -> Result<Items<CredentialItem>, ClientError> {
        self.call(Method::PUT, &path(id))
            .json(body)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// Removes what there is for a host.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_credential(&self, id: &ProjectId, host: &str) -> Result<CredentialDeleted, ClientError> {
        let [projects, id, credentials] = path(id);
        self.call(Method::DELETE, &[projects, id, credentials, host])
            .repeat(Repeat::Harmless)
            .read()
            .await
    }
}

fn path(id: &ProjectId) -> [&str; 3] {
    ["projects", id.as_str(), "credentials"]
}
