//! A project's variables: those that all share, and those of the token's owner.
//!
//! Setting and removing by name does no more twice than once, so a lost answer is asked for again. A removal that was sent
//! twice may then say that there was nothing to remove.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::page::Items;
use crate::variables::{PutVariables, VariableDeleted, VariableItem, VariableKind};

impl Client {
    /// The variables; values never come back.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_variables(&self, id: &ProjectId, kind: VariableKind) -> Result<Items<VariableItem>, ClientError> {
        self.get(&path(id, kind)).read().await
    }

    /// Makes or replaces variables.
    ///
    /// # Errors
    /// As every call.
    pub async fn put_variables(
        &self,
        id: &ProjectId,
        kind: VariableKind,
        body: &PutVariables,
    ) -> Result<Items<VariableItem>, ClientError> {
        self.call(Method::PUT, &path(id, kind))
            .json(body)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// Removes a variable.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_variable(
        &self,
        id: &ProjectId,
        kind: VariableKind,
        name: &str,
    ) -> Result<VariableDeleted, ClientError> {
        let [projects, id, variables, kind] = path(id, kind);
        self.call(Method::DELETE, &[projects, id, variables, kind, name])
            .repeat(Repeat::Harmless)
            .read()
            .await
    }
}

fn path(id: &ProjectId, kind: VariableKind) -> [&str; 4] {
    ["projects", id.as_str(), "environment-variables", kind.as_str()]
}
