//! The servers that share one database.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::page::Items;
use crate::server::{PutPoolHome, ServerItem};

impl Client {
    /// The servers of the database; none where its store is in SQLite.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_servers(&self) -> Result<Items<ServerItem>, ClientError> {
        self.get(&["servers"]).read().await
    }

    /// Gives a project's pool another home.
    ///
    /// # Errors
    /// As every call.
    pub async fn put_pool_home(
        &self,
        project: &ProjectId,
        home: &PutPoolHome,
    ) -> Result<Items<ServerItem>, ClientError> {
        self.call(Method::PUT, &["projects", project.as_str(), "warm-pool", "home"])
            .json(home)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }
}
