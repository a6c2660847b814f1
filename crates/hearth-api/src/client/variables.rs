//! A project's variables: those that all share, and those of the token's owner.
//!
//! Setting and removing by name does no more twice than once, so a lost answer is asked for again. A removal that was sent
//! twice may then say that there was nothing to remove.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::page::Items;
use crate::variables::{PutVariables, VariableDeleted, VariableItem};

/// Every VM of the project has them.
const SHARED: &str = "shared";
/// Only VMs that their owner claimed have them.
const PERSONAL: &str = "personal";

impl Client {
    /// The project's variables; values never come back.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_variables(&self, id: &ProjectId) -> Result<Items<VariableItem>, ClientError> {
        self.list_of(id, SHARED).await
    }

    /// Makes or replaces variables of the project.
    ///
    /// # Errors
    /// As every call.
    pub async fn put_variables(&self, id: &ProjectId, body: &PutVariables) -> Result<Items<VariableItem>, ClientError> {
        self.put_of(id, SHARED, body).await
    }

    /// Removes a variable of the project.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_variable(&self, id: &ProjectId, name: &str) -> Result<VariableDeleted, ClientError> {
        self.delete_of(id, SHARED, name).await
    }

    /// The variables of the token's owner; values never come back.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_personal_variables(&self, id: &ProjectId) -> Result<Items<VariableItem>, ClientError> {
        self.list_of(id, PERSONAL).await
    }

    /// Makes or replaces variables of the token's owner.
    ///
    /// # Errors
    /// As every call.
    pub async fn put_personal_variables(
        &self,
        id: &ProjectId,
        body: &PutVariables,
    ) -> Result<Items<VariableItem>, ClientError> {
        self.put_of(id, PERSONAL, body).await
    }

    /// Removes a variable of the token's owner.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_personal_variable(&self, id: &ProjectId, name: &str) -> Result<VariableDeleted, ClientError> {
        self.delete_of(id, PERSONAL, name).await
    }

    async fn list_of(&self, id: &ProjectId, kind: &str) -> Result<Items<VariableItem>, ClientError> {
        self.get(&["projects", id.as_str(), "environment-variables", kind])
            .read()
            .await
    }

    async fn put_of(
        &self,
        id: &ProjectId,
        kind: &str,
        body: &PutVariables,
    ) -> Result<Items<VariableItem>, ClientError> {
        self.call(Method::PUT, &["projects", id.as_str(), "environment-variables", kind])
            .json(body)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    async fn delete_of(&self, id: &ProjectId, kind: &str, name: &str) -> Result<VariableDeleted, ClientError> {
        let path = ["projects", id.as_str(), "environment-variables", kind, name];
        self.call(Method::DELETE, &path).repeat(Repeat::Harmless).read().await
    }
}
